"""When the rare clone needs the dominant one: taken away from a step on, or there only from it on.

    python -m imbalance_jax.study run --config=configs/studies/grammar_removed.py --pack=5

Of 40 sequences of every update the rare clone (toy2) has 4 all along. The other 36 are of the
dominant clone (toy1), or of filler: words of toy1 in random order, under ids of their own. So the
rare clone has as many tokens and updates in every cell, and so has all else together:

    steady        the dominant clone all along
    removed_300   the dominant clone up to step 300, filler from then on; also 500
    joins_300     filler up to step 300, the dominant clone from then on; also 500
    filler        filler all along

steps_at=300+500 are the steps. The runs keep twelve checkpoints. The other choices are
those of configs/studies/grammar.py.
"""

import ml_collections

from imbalance_jax import config as config_lib
from imbalance_jax.config import LanguageConfig
from imbalance_jax.study import grid, study_presets

# Sequences of each language in a block of the order.
_WITH = {"toy1": 9, "toy2": 1, "toy3": 0}
_WITHOUT = {"toy1": 0, "toy2": 1, "toy3": 9}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    choice = study_presets.parse_grammar(arg, seeds="5", steps_at="300+500")
    places = [study_presets.whole("steps_at", text) for text in choice.steps_at.split("+")]
    steady = study_presets.grammatical(choice, "9:1")
    if max(places) >= steady.steps:
        raise ValueError(
            f"steps_at={choice.steps_at}: the runs have {steady.steps} steps. Write steps before "
            "their last one, or more steps."
        )
    steady.languages.toy3 = config_lib.declared(LanguageConfig, clone_of="toy1", words="shuffled")
    steady.mixture.ratio = _WITH
    steady.checkpoint.update(every=max(1, steady.steps // 12), keep=12)
    study = grid.Grid("A toy language taken away from its rare clone, or come late.", unit=steady)
    study.add("steady", steady, seeds=choice.seeds)
    study.add("filler", _follow(steady, (0, _WITHOUT)), seeds=choice.seeds)
    for step in places:
        removed = _follow(steady, (0, _WITH), (step, _WITHOUT))
        study.add(f"removed_{step}", removed, seeds=choice.seeds)
        joins = _follow(steady, (0, _WITHOUT), (step, _WITH))
        study.add(f"joins_{step}", joins, seeds=choice.seeds)
        study.claim(
            f"removal_hurts_{step}",
            f"The rare clone ends with a higher loss if the dominant one is taken away at {step}.",
            cell=f"removed_{step}",
            against="steady",
            language="toy2",
            direction="higher",
            smallest=0.1,
        )
        study.claim(
            f"late_helps_{step}",
            f"The rare clone ends with a lower loss if the dominant one comes at {step} than if it "
            "never comes.",
            cell=f"joins_{step}",
            against="filler",
            language="toy2",
            smallest=0.1,
        )
    return study.to_config()


def _follow(
    steady: ml_collections.ConfigDict, *stages: tuple[int, dict[str, int]]
) -> ml_collections.ConfigDict:
    """Returns the run with these stages, each a first step and a ratio."""
    config = ml_collections.ConfigDict(steady.to_dict())
    if len(stages) == 1:
        config.mixture.ratio = stages[0][1]
    else:
        config.mixture.stages = stages
    return config
