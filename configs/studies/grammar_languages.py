"""Which part of the effect survives where the rare language is no clone.

    python -m imbalance_jax.study run --config=configs/studies/grammar_languages.py --pack=5

At 90:10, beside each rare language alone with as many tokens and updates, the rare language is

    clone     the dominant one's text in other ids
    text      another text of the same grammar, in a lexicon of its own
    overlap   as text, and every second word is the same in both languages, under one id
    order     as text, and heads come last: the words of a sentence in another order
    world     another grammar: nothing in common but the form of a sentence

others takes some of these with + between them. The other choices are those of
configs/studies/grammar.py.
"""

import ml_collections

from imbalance_jax import config as config_lib
from imbalance_jax.config import LanguageConfig, ParallelConfig, SourceConfig
from imbalance_jax.study import grid, study_presets

OTHERS = ("clone", "text", "overlap", "order", "world")
_HELPS = {
    "clone": "a clone of itself",
    "text": "another lexicon of its grammar",
    "overlap": "a language of its grammar that has every second word in common",
    "order": "a language of its grammar in another order of words",
    "world": "a language of another grammar",
}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    choice = study_presets.parse_grammar(arg, others="all", seeds="5")
    clone = study_presets.grammatical(choice, "90:10")
    study = grid.Grid("A rare toy language beside ever less of a relative.", unit=clone)
    for other in study_presets.chosen("others", choice.others, OTHERS):
        config = clone if other == "clone" else _make_relative(clone, other)
        study.add(other, config, seeds=choice.seeds)
        (alone,) = study.baselines(
            config,
            "toy2",
            fractions=(0.1,),
            seeds=choice.seeds,
            kinds=("matched",),
            prefix="" if other == "clone" else f"{other}_",
        )
        study.claim(
            f"{other}_helps",
            f"The rare language has a lower loss beside {_HELPS[other]} than alone.",
            cell=other,
            against=alone,
            language="toy2",
            against_language="toy1" if other == "clone" else "",
            smallest=0.1,
        )
    return study.to_config()


def _make_relative(clone: ml_collections.ConfigDict, other: str) -> ml_collections.ConfigDict:
    """Returns a mixture whose rare language has a source of its own."""
    config = ml_collections.ConfigDict(clone.to_dict())
    text = clone.sources.toy.to_dict()
    config.sources = {name: config_lib.declared(SourceConfig, **text) for name in ("toy1", "toy2")}
    first, second = config.sources.toy1.synthetic, config.sources.toy2.synthetic
    second.language = 1
    if other == "overlap":
        first.overlap = second.overlap = 0.5
        config.vocabulary.layout = "merged"
    elif other == "order":
        second.order = "head_last"
    elif other == "world":
        second.world = first.world + 1000
    for tag in ("toy1", "toy2"):
        config.languages[tag] = config_lib.declared(LanguageConfig, source=tag)
    if other != "world":  # translations of each other
        config.parallel.toy1_toy2 = config_lib.declared(ParallelConfig, sources=("toy1", "toy2"))
    return config
