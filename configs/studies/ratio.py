"""How much of a clone helps the other, from equal parts to 95 to 5.

    python -m imbalance_jax.study run --config=configs/studies/ratio.py
    python -m imbalance_jax.study plan --config=configs/studies/ratio.py:extras=placebo,others=1

Two clones at four ratios, held against the language alone: short runs of the same tokens, and
runs of the same updates with a part of the batch. extras is all, none, or some of these with
+ between them:

    wide      the language alone with room for both clones in the vocabulary
    placebo   90:10, where the frequent clone's words are shuffled: its frequencies are left
    anchored  90:10, where both clones are one language: as much as transfer could bring
    copied    90:10, where the rare clone's rows begin as copies of the frequent one's
    schedule  50:50 in all, 90:10 in the first half of the run and 10:90 in the second
    anchors   50:50, where a twentieth of the ids are shared
    sweep     50:50 and 90:10 at half and twice the learning rate, one seed

fractions=8 adds the language alone on 75, 90 and 95 % of the tokens to 5, 10, 25, 50 and 100 %.
seeds is how many seeds each cell has; others=1 gives that many to all cells but the headline
ones: 50:50, 90:10, the placebo, and the language alone on a tenth and on half of the tokens.
scale is as in configs/90_10.py, steps and batch override it; test=1000 scores so many windows of
the test text; files=DIR reads the English of a folder (en.jsonl, or en.train.* and en.test.*, as
in configs/text.py) in place of the embedded text.
"""

import ml_collections

from imbalance_jax.study import grid, study_presets

RATIOS = ("50:50", "75:25", "90:10", "95:5")
EXTRAS = ("wide", "placebo", "anchored", "copied", "schedule", "anchors", "sweep")
FRACTIONS = {"5": (0.05, 0.1, 0.25, 0.5, 1), "8": (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 1)}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    choice = study_presets.parse(arg, extras="all", fractions="5", others="")
    extras = study_presets.chosen("extras", choice.extras, EXTRAS)
    if choice.fractions not in FRACTIONS:
        raise ValueError(f"fractions={choice.fractions}: choose {' or '.join(FRACTIONS)}.")
    seeds = choice.seeds
    others = grid.parse_seeds(choice.others) if choice.others else seeds
    even, uneven = (study_presets.clones(choice, ratio) for ratio in ("50:50", "90:10"))
    study = grid.Grid("Two clones of English at four ratios.", unit=even)
    for ratio in RATIOS:
        config = study_presets.clones(choice, ratio)
        headline = ratio in ("50:50", "90:10")
        study.add(study_presets.ratio_cell(ratio), config, seeds=seeds if headline else others)
    for fraction in FRACTIONS[choice.fractions]:
        mine = seeds if fraction in (0.1, 0.5) else others
        study.baselines(even, "en1", fractions=[fraction], seeds=mine)
    _claims(study)
    if "wide" in extras:
        study.baselines(even, "en1", fractions=(0.1, 0.5, 1), seeds=others, kinds=("wide",))
    if "placebo" in extras:
        study.add("placebo", grid.placebo(uneven, "en1"), seeds=seeds, kind="placebo")
        study.claim(
            "beats_placebo",
            "A dominant clone helps the rare one more than its shuffled words do.",
            cell="r90_10",
            against="placebo",
            language="en2",
        )
    if "anchored" in extras:
        study.add("anchored", grid.anchored(uneven, "en2"), seeds=others, kind="anchored")
    if "copied" in extras:
        study.add("copied", grid.copied(uneven, "en2"), seeds=others, kind="copied")
    if "schedule" in extras:
        study.add("s10_90", study_presets.scheduled(even, "0.1_0.9"), seeds=others)
    if "anchors" in extras:
        study.add("anchors_5", grid.anchored(even, "en2", 0.05), seeds=others)
    if "sweep" in extras:
        for cell, config in (("r50_50", even), ("r90_10", uneven)):
            study.sweep(cell, config, factors=(0.5, 2))
    return study.to_config()


def _claims(study: grid.Grid) -> None:
    for baseline, words in (
        ("monolingual", "trained for a tenth of the steps"),
        ("matched", "trained with as many updates"),
    ):
        study.claim(
            f"rare_gains_{baseline}",
            f"At 90:10 the rare clone needs fewer tokens than a monolingual model {words}.",
            measure="log_teff",
            cell="r90_10",
            language="en2",
            baseline=baseline,
            direction="higher",
            smallest=0.05,  # a TEff of 1.05
        )
    study.claim(
        "beats_matched",
        "At 90:10 the rare clone has a lower loss than a monolingual model with as many updates "
        "and tokens.",
        cell="r90_10",
        against="matched_en1_10",
        language="en2",
        against_language="en1",
    )
    study.claim(
        "aligns",
        "90:10 aligns the hidden states of the clones more than 50:50 does.",
        measure="alignment",
        cell="r90_10",
        against="r50_50",
        language="en1-en2",
        direction="higher",
        smallest=0.05,
    )
    study.claim(
        "clones_are_equal",
        "At 50:50 both clones have the same loss.",
        cell="r50_50",
        against="r50_50",
        language="en1",
        against_language="en2",
        direction="same",
        smallest=0.02,
    )
