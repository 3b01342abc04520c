"""Two languages of your own at several ratios: what does the rare one lose, and is it helped?

    python -m imbalance_jax.study run --config=configs/studies/text.py:files=text --pack=3
    python -m imbalance_jax.study plan --config=configs/studies/text.py:languages=en_sw,ratios=70:30

files is a folder with the text of each language, as in configs/text.py, and languages their names.
At each of the ratios, of the first language to the second, and at 50:50, the runs stand beside the
rarer language alone with as many tokens and updates (`matched`), and beside the mixture with the
words of the frequent language shuffled (`placebo`). extras=none leaves the placebo out. Two claims
are made of each ratio: the rarer language has a lower loss than alone, and a higher one than at
50:50. layout is disjoint, merged or joint. scale, seeds, steps, batch and test are as in
configs/studies/ratio.py; scale=demo trains within minutes.
"""

import fractions

import ml_collections

from imbalance_jax import config as config_lib
from imbalance_jax.config import SourceConfig
from imbalance_jax.study import grid, study_presets


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    choice = study_presets.parse(
        arg, languages="en_fr", ratios="90:10+70:30", layout="merged", extras="all"
    )
    extras = study_presets.chosen("extras", choice.extras, ("placebo",))
    names = choice.languages.split("_")
    if len(names) != 2:
        raise ValueError(f"languages={choice.languages}: write two names, such as en_sw.")
    sources = {name: config_lib.declared(SourceConfig) for name in names}
    for name, source in sources.items():
        source.update(
            study_presets.make_text_fields(name, choice.files or "text", otherwise="files")
        )

    def mix(ratio: str) -> ml_collections.ConfigDict:
        config = config_lib.spoken(sources, scale=choice.scale, ratio=ratio)
        config.vocabulary.layout = choice.layout
        return study_presets.sized(config, choice)

    study = grid.Grid(f"{' and '.join(names)} at several ratios.", unit=mix("50:50"))
    study.add("r50_50", mix("50:50"), seeds=choice.seeds)
    for ratio in study_presets.listed(choice.ratios):
        mixture = mix(ratio)
        parts = mixture.mixture.ratio
        rare, frequent = sorted(names, key=lambda name: parts[name])
        if parts[rare] == parts[frequent]:
            continue
        cell = study_presets.ratio_cell(ratio)
        study.add(cell, mixture, seeds=choice.seeds)
        share = fractions.Fraction(parts[rare], sum(parts.values()))
        (alone,) = study.baselines(
            mixture, rare, fractions=(float(share),), seeds=choice.seeds, kinds=("matched",)
        )
        study.claim(
            f"{rare}_gains_at_{cell}",
            f"At {ratio} {rare} has a lower loss than alone with as many updates and tokens.",
            cell=cell,
            against=alone,
            language=rare,
            smallest=0.05,
        )
        study.claim(
            f"{rare}_loses_at_{cell}",
            f"At {ratio} {rare} has a higher loss than at 50:50.",
            cell=cell,
            against="r50_50",
            language=rare,
            direction="higher",
            smallest=0.05,
        )
        if "placebo" in extras:
            placebo = grid.placebo(mixture, frequent)
            study.add(f"placebo_{cell}", placebo, seeds=choice.seeds, kind="placebo")
    return study.to_config()
