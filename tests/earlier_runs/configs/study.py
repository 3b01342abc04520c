"""Two toy languages at two ratios, and one of them alone."""

from imbalance_jax import config as config_lib
from imbalance_jax import grid
from imbalance_jax.config import SourceConfig


def mixture(ratio):
    sources = {}
    for index, name in enumerate(("toy0", "toy1")):
        source = config_lib.declared(SourceConfig, kind="synthetic")
        source.synthetic.update(language=index, lemmas=32, topics=4, depth=2)
        sources[name] = source
    config = config_lib.spoken(sources, scale="demo", ratio=ratio)
    config.vocabulary.layout = "merged"
    config.steps, config.batch_size, config.log_every = 12, 8, 1
    config.model.update(L=16, D=4, H=2, K=2, F=8, N=1)
    config.evaluation.update(every=6, max_windows=8, stride=16, max_test_windows=16)
    config.evaluation.alignment.every = 0
    config.checkpoint.update(every=6, keep=1)
    return config


def get_config(arg=""):
    study = grid.Grid("Two toy languages at two ratios.", unit=mixture("1:1"))
    study.add("even", mixture("1:1"), seeds=range(1))
    study.add("uneven", mixture("3:1"), seeds=range(1))
    study.baselines(
        mixture("1:1"), "toy0", fractions=(0.5,), seeds=range(1), kinds=("monolingual",)
    )
    study.claim(
        "rare_is_worse",
        "At 3:1 the rare language has a higher loss than at 1:1.",
        cell="uneven",
        against="even",
        language="toy1",
        direction="higher",
    )
    return study.to_config()
