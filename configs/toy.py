"""Toy languages without end, whose entropy is known: a loss has a floor to be compared with.

    python -m imbalance_jax.main --config=configs/toy.py --workdir=runs/toy
    python -m imbalance_jax.main --config=configs/toy.py:overlap=0.2,order=head_last,ratio=90:10

All of them say the same things. overlap is the share of words that all have in common; order
is the word order of all but the first: head_first, head_middle or head_last. layout=merged lets
equal words share an id. ratio has a part for each language. zipf and depth are the exponent of
the words' frequencies and the levels of a sentence; every other dial is a field, such as
--config.sources.toy1.synthetic.shared_words=True. scale is as in configs/90_10.py.
"""

import ml_collections

from imbalance_jax import config as config_lib
from imbalance_jax.config import ParallelConfig, SourceConfig


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    choice = config_lib.parse_arg(
        arg,
        scale="demo",
        ratio="50:50",
        overlap="0",
        order="head_first",
        layout="merged",
        zipf="1",
        depth="3",
    )
    names = [f"toy{index}" for index in range(len(config_lib.parse_ratio(choice.ratio)))]
    sources = {}
    for index, name in enumerate(names):
        source = config_lib.declared(SourceConfig, kind="synthetic")
        source.synthetic.language = index
        source.synthetic.order = choice.order if index else "head_first"
        for dial, kind in (("overlap", float), ("zipf", float), ("depth", int)):
            value = getattr(choice, dial)
            try:
                source.synthetic[dial] = kind(value)
            except ValueError:
                raise ValueError(f"{dial}={value}: write a number.") from None
        sources[name] = source
    config = config_lib.spoken(sources, scale=choice.scale, ratio=choice.ratio)
    config.vocabulary.layout = choice.layout
    for name in names[1:]:
        pair = (names[0], name)
        config.parallel["_".join(pair)] = config_lib.declared(ParallelConfig, sources=pair)
    return config
