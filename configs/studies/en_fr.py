"""English and French at any ratio: what is left of the clones' effect between real languages.

    python -m imbalance_jax.study run --config=configs/studies/en_fr.py:files=DIR
    python -m imbalance_jax.study plan --config=configs/studies/en_fr.py:layout=disjoint,extras=none

Ratios of English to French from 90:10 to 10:90, held against each language alone: short runs
of the same tokens, and runs of the same updates with a part of the batch. ratios is some of
them with + between, extras is all, none, or some of

    placebo   the dominant language's words are shuffled, at 90:10 and 10:90
    wide      each language alone with room for both in the vocabulary
    schedule  50:50 in all, French in a tenth of the first half and in nine tenths of the second

layout and content are as in configs/en_fr.py. The text is wiki40b, or with files=DIR that of
DIR/{en,fr}.{train,test}.jsonl.gz, with DIR/parallel.jsonl.gz to measure alignment on; without
it alignment is not measured. scale, seeds, steps and batch are as in configs/studies/ratio.py.
"""

import types

import ml_collections

from imbalance_jax.study import grid, study_presets

EXTRAS = ("placebo", "wide", "schedule")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    choice = study_presets.parse(
        arg, ratios="90:10+50:50+10:90", extras="all", layout="merged", content="shared"
    )
    extras = study_presets.chosen("extras", choice.extras, EXTRAS)
    ratios = study_presets.listed(choice.ratios)
    even = _spoken(choice, "50:50")
    study = grid.Grid("English and French at several ratios.", unit=even)
    for ratio in ratios:
        cell = study_presets.ratio_cell(ratio)
        study.add(cell, _spoken(choice, ratio), seeds=choice.seeds)
    for language in ("en", "fr"):
        fractions = (0.05, 0.1, 0.25, 0.5, 1)
        study.baselines(even, language, fractions=fractions, seeds=choice.seeds)
        if "wide" in extras:
            study.baselines(
                even, language, fractions=(0.1, 0.5, 1), seeds=choice.seeds, kinds=("wide",)
            )
    if "schedule" in extras:
        study.add("s10_90", study_presets.scheduled(even, "0.1_0.9"), seeds=choice.seeds)
    for ratio, rare, frequent in (("90:10", "fr", "en"), ("10:90", "en", "fr")):
        if ratio not in ratios:
            continue
        cell = study_presets.ratio_cell(ratio)
        _claims(study, cell, rare)
        if "placebo" in extras:
            placebo = grid.placebo(_spoken(choice, ratio), frequent)
            study.add(f"placebo_{cell}", placebo, seeds=choice.seeds, kind="placebo")
            study.claim(
                f"{rare}_beats_placebo",
                f"{frequent} helps {rare} more than its shuffled words do.",
                cell=cell,
                against=f"placebo_{cell}",
                language=rare,
            )
    return study.to_config()


def _spoken(choice: types.SimpleNamespace, ratio: str) -> ml_collections.ConfigDict:
    config = study_presets.spoken(choice, ratio, layout=choice.layout)
    config.mixture.content = choice.content
    if choice.content == "disjoint":
        for name in config.sources:
            config.sources[name].ids = "shared"
    return config


def _claims(study: grid.Grid, cell: str, rare: str) -> None:
    for baseline in ("monolingual", "matched"):
        study.claim(
            f"{rare}_gains_{baseline}",
            f"With a tenth of the tokens {rare} needs fewer of them than a {baseline} model.",
            measure="log_teff",
            cell=cell,
            language=rare,
            baseline=baseline,
            direction="higher",
            smallest=0.05,  # a TEff of 1.05
        )
