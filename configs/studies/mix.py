"""Languages of your own at several ratios: which ratio is best, and what will each loss be?

    python -m imbalance_jax.study run --config=configs/studies/mix.py:files=text --pack=3
    python -m imbalance_jax.study propose --workdir=studies/mix

files is a folder with the text of each language, as in configs/text.py, and languages their names
with _ between. Each of the ratios is run with each seed: six ratios are enough for every law over
the ratio, and three for the simplest. lengths and sizes are factors of steps and of the model with
+ between, such as 0.25+0.5+1: a law needs two of either to say anything of another, and three to
go beyond them. Objectives are stated for `propose`: the mean of all losses (`mean`; in bits per
byte, which compare across tokenizers, `mean_bits`), the largest in bits per byte (`minimax`), and
the least loss of each language with no other more than `worse` nats above its loss at equal parts
(`least_fr`). epochs is how often each text may be gone through, 0
without end. layout is disjoint, merged or joint. scale, seeds, steps, batch and test are as in
configs/studies/ratio.py; scale=demo trains within minutes.
"""

import ml_collections

from imbalance_jax import config as config_lib
from imbalance_jax.config import SourceConfig
from imbalance_jax.study import grid, study_presets


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    choice = study_presets.parse(
        arg,
        languages="en_fr",
        ratios="95:5+85:15+65:35+35:65+15:85+5:95",
        layout="merged",
        lengths="1",
        sizes="1",
        worse="0.02",
        epochs="0",
    )
    names = choice.languages.split("_")
    if len(set(names)) != len(names) or len(names) < 2:
        raise ValueError(
            f"languages={choice.languages}: write two different names or more, such as en_fr. A "
            "ratio is between languages."
        )
    sources = {name: config_lib.declared(SourceConfig) for name in names}
    for name, source in sources.items():
        source.update(
            study_presets.make_text_fields(name, choice.files or "text", otherwise="files")
        )

    def mix(ratio: str, length: float = 1.0, size: float = 1.0) -> ml_collections.ConfigDict:
        config = config_lib.spoken(sources, scale=choice.scale, ratio=ratio)
        config.vocabulary.layout = choice.layout
        config = study_presets.sized(study_presets.resized(config, size), choice)
        return study_presets.lengthened(config, length)

    ratios = study_presets.listed(choice.ratios)
    study = grid.Grid(f"{', '.join(names)} at several ratios.", unit=mix(ratios[0]))
    for size in study_presets.numbers("sizes", choice.sizes):
        for length in study_presets.numbers("lengths", choice.lengths):
            shape = "" if size == 1 else f"size{grid.percent(size)}_"
            shape += "" if length == 1 else f"length{grid.percent(length)}_"
            for ratio in ratios:
                cell = shape + study_presets.ratio_cell(ratio)
                study.add(cell, mix(ratio, length, size), seeds=choice.seeds)
    epochs = study_presets.number("epochs", choice.epochs)
    limits = {"most_epochs": dict.fromkeys(names, epochs)} if epochs else {}
    study.objective("mean", **limits)
    study.objective("mean_bits", unit="bits_per_byte", **limits)
    study.objective("minimax", kind="minimax", unit="bits_per_byte", **limits)
    worse = study_presets.number("worse", choice.worse)
    for name in names:
        than = dict.fromkeys(names, 1)
        study.objective(
            f"least_{name}", kind="least", language=name, worse=worse, than=than, **limits
        )
    return study.to_config()
