"""Train multilingual language models at a chosen language ratio, and measure what it does.

The same letters name a dimension in configs, variables, parameters and figures:

    B  sequences in a batch               K  width of one head
    L  positions in a sequence            F  width of the feed-forward layer
    M  positions attended to              V  vocabulary of all languages together
    D  width of the residual stream       N  transformer blocks
    H  attention heads                    G  languages in the mixture
    W  ids in a window (L + 1)            U  vocabulary of one source, the largest of them
                                          P  pairs of parallel sequences
    E  members of a pack                  R  parameters of a block

Map of the package, in the order of its imports:

    config      every field of a run                 languages   what a language is: its id map
    data/       text -> tokens -> batches             model       the transformer; also attention,
                                                                objective
    sharding    the mesh and who holds what           step        one update of the TrainState
    distributed several processes as one run          storage     file systems and gs://
    evaluation/ loss, alignment, transfer             train       the loop; also cadence, and pack:
                                                                several runs as one program
    runs        the run directory                     checkpoint  save and restore
    tuning      what is fastest on which device       benchmarks/ what the command bench measures
    grid        what a study is made of               study_*     its directory, plan and runner
    analysis/   figures, laws, verdicts, pages        main, evaluate, study, report, ...: commands

The package `launch` beside this one sends a study's runs to clusters.

In a notebook, `imbalance_jax.load("runs/90_10")` gives a trained run's config, parameters
and forward function.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imbalance_jax.training.loading import load as load

__version__ = "0.1.0"


# Modules that study config files import from here, by the room that they are in.
_ROOMS = {
    "grid": "imbalance_jax.study.grid",
    "study_presets": "imbalance_jax.study.study_presets",
    "paper_presets": "imbalance_jax.reference.paper_presets",
}


def __getattr__(name: str) -> Any:
    # Loaded on first use: importing the package must stay cheap and free of jax.
    if name == "load":
        from imbalance_jax.training.loading import load

        return load
    if name in _ROOMS:
        return importlib.import_module(_ROOMS[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), "load"]
