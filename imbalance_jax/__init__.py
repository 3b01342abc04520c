"""Train multilingual language models at a chosen language ratio, and measure what it does.

The same letters name a dimension in configs, variables, parameters and figures:

    B  sequences in a batch               K  width of one head
    L  positions in a sequence            F  width of the feed-forward layer
    M  positions attended to              V  vocabulary of all languages together
    D  width of the residual stream       N  transformer blocks
    H  attention heads                    G  languages in the mixture
    J  heads of keys and values           U  vocabulary of one source, the largest of them
    W  ids in a window (L + 1)            P  pairs of parallel sequences
    E  members of a pack                  R  parameters of a block

The rooms of the package, in the order of their imports: each imports only from itself and from
those above it.

    config       every field of a run, its checks, and what follows from it without text
    runs         a run as files and as a process
    cli          what all commands share
    data         text -> tokens -> batches
    compute      all that knows a device: model, step, sharding, checkpoints
    evaluation   losses and alignment of a model's state
    training     a run: its setup, its loop, its records
    study        a grid of runs, its plan, and what trains it
    analysis     numbers of a study: laws, effects, verdicts
    drawing      how panels and pages are made
    reference    the reference study's results, and ours beside them
    report       report.html of runs and studies
    transfer, word2vec, bench, and the commands main, evaluate, generate

The package `launch` sends a study's runs to clusters. docs/internals.md names the main files of a
room, and says where a new measure, text source, figure or engine goes.

In a notebook, `imbalance_jax.load("runs/90_10")` gives a trained run's config, parameters
and forward function.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imbalance_jax.training.loading import load as load

__version__ = "0.1.0"


# Modules that study config files import from here -> where they are.
_MODULES = {
    "grid": "imbalance_jax.study.grid",
    "study_presets": "imbalance_jax.study.study_presets",
    "paper_presets": "imbalance_jax.reference.paper_presets",
}


def __getattr__(name: str) -> Any:
    # Loaded on first use: importing the package must stay cheap and free of jax.
    if name == "load":
        from imbalance_jax.training.loading import load

        return load
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), "load"]
