"""What lies between a clone and another real language, one difference at a time.

    python -m imbalance_jax.main --config=configs/dials.py:dial=reversed --workdir=runs/reversed

    none        en2 is a clone of en1
    tokenizer   en2 has the text of en1 under a tokenizer with half as many pieces
    reversed    the words of en2 come in reverse order, eight at a time
    permuted    the words of en2 come in one fixed other order, eight at a time
    placebo     en2 is the text of a clone, its ids shuffled: only their frequencies are left
    separator   en1 and en2 have the same separator of documents
    document    a document is in one of the languages, so text never changes language inside

ratio and scale are as in configs/90_10.py. For anchors see configs/anchors.py.
"""

import ml_collections

from imbalance_jax import config as config_lib
from imbalance_jax.config import SourceConfig

DIALS = ("none", "tokenizer", "reversed", "permuted", "placebo", "separator", "document")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    choice = config_lib.parse_arg(arg, scale="demo", ratio="90:10", dial="none")
    if choice.dial not in DIALS:
        raise ValueError(f"dial={choice.dial}: choose one of {', '.join(DIALS)}.")
    if choice.dial == "tokenizer":
        return _two_tokenizers(choice.scale, choice.ratio)
    config = config_lib.cloned(scale=choice.scale, ratio=choice.ratio)
    if "en2" not in config.languages and choice.dial != "none":
        raise ValueError(f"ratio={choice.ratio}: dial={choice.dial} is of a clone. Write 2 parts.")
    clone = config.languages.get("en2")
    if choice.dial in ("reversed", "permuted"):
        clone.words = choice.dial
    elif choice.dial == "placebo":
        clone.words = "shuffled"
    elif choice.dial == "separator":
        config.vocabulary.separator = "shared"
    elif choice.dial == "document":
        config.mixture.switch = "document"
    return config


def _two_tokenizers(scale: str, ratio: str) -> ml_collections.ConfigDict:
    sources = {tag: config_lib.declared(SourceConfig) for tag in ("en1", "en2")}
    config = config_lib.spoken(sources, scale=scale, ratio=ratio)
    config.sources.en2.tokenizer.vocab_size //= 2
    # Every document exists twice, as one with a translation does, and goes to one of the two.
    config.mixture.content = "disjoint"
    for source in config.sources.values():
        source.ids = "shared"
    return config
