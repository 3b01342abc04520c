"""Every language beside every other one: which helps which, and how much?

    python -m imbalance_jax.study run --config=configs/studies/matrix.py:files=text --pack=3
    python -m imbalance_jax.study plan --config=configs/studies/matrix.py:languages=en_fr_sw_yo

files is a folder with the text of each language, as in configs/text.py, and languages three or more
of their names with _ between. Each two are trained together at ratio, and each alone on fractions
of the tokens: with all updates and a part of the batch (`matched`), or of the steps with
kinds=monolingual. The study's page has a matrix of transfer coefficients: what a token of one
language was worth to another, in tokens of its own. parallel is text that says the same in all
languages, to measure alignment on: a file for each language with {source} in place of its name,
such as flores/{source}.txt, or one table with a field for each; join=id matches lines of files by
their ids. layout is disjoint or merged. scale, seeds, steps, batch and test are as in
configs/studies/ratio.py.
"""

import itertools

import ml_collections

from imbalance_jax import config as config_lib
from imbalance_jax.config import ParallelConfig, SourceConfig
from imbalance_jax.study import grid, study_presets


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    choice = study_presets.parse(
        arg,
        languages="en_fr_sw",
        ratio="50:50",
        fractions="0.1+0.25+0.5+1",
        kinds="matched",
        layout="merged",
        parallel="",
        join="line",
    )
    names = choice.languages.split("_")
    if len(set(names)) != len(names) or len(names) < 3:
        raise ValueError(
            f"languages={choice.languages}: write three names or more, such as en_fr_sw. For two, "
            "configs/studies/text.py is enough."
        )
    texts = {
        name: study_presets.make_text_fields(name, choice.files or "text", otherwise="files")
        for name in names
    }

    def pair(*two: str) -> ml_collections.ConfigDict:
        sources = {name: config_lib.declared(SourceConfig, **texts[name]) for name in two}
        config = config_lib.spoken(sources, scale=choice.scale, ratio=choice.ratio)
        config.vocabulary.layout = choice.layout
        if choice.parallel:
            config.parallel.all = config_lib.declared(
                ParallelConfig, sources=two, path=choice.parallel, join=choice.join
            )
        return study_presets.sized(config, choice)

    fractions = study_presets.numbers("fractions", choice.fractions)
    study = grid.Grid(f"{', '.join(names)}: each beside each.", unit=pair(*names[:2]))
    for two in itertools.combinations(names, 2):
        config = pair(*two)
        study.add("_".join(two), config, seeds=choice.seeds)
        for name in two:
            study.baselines(
                config,
                name,
                fractions=fractions,
                seeds=choice.seeds,
                kinds=study_presets.listed(choice.kinds),
            )
    return study.to_config()
