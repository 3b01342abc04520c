"""Imbalance that changes during the run, and is balanced over all of it.

    python -m imbalance_jax.study run --config=configs/studies/schedules.py
    python -m imbalance_jax.study plan --config=configs/studies/schedules.py:periods=2+8+32

parts is all, none, or some of these with + between them, all beside 50:50 throughout:

    order    0.1_0.9, 0.0_1.0 and both the other way round; a number is the share of en2
    period   10 and 90 % taking turns in as many equally long stages as periods says
    weight   shares weighted by the learning rate

An update counts for more while the learning rate is high, so a schedule whose tokens are
balanced is not balanced in what the updates add up to: in 0.1_0.9 en1 has most of it. weight
moves the boundary of 0.1_0.9 and of 0.9_0.1 to the step before which half of all learning rate
is spent. Then the weighted shares are 50:50 and the tokens are not, and a steady ratio with
those tokens is added. If 0.1_0.9 is uneven for what en1 got early, its weighted twin is not.

scale, seeds, steps, batch and files are as in configs/studies/ratio.py.
"""

import itertools

import ml_collections

from imbalance_jax.study import grid, study_presets

PARTS = ("order", "period", "weight")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    choice = study_presets.parse(arg, parts="all", periods="2+4+8+16")
    parts = study_presets.chosen("parts", choice.parts, PARTS)
    even = study_presets.clones(choice, "50:50")
    study = grid.Grid("Two clones of English under schedules of their ratio.", unit=even)
    seeds = choice.seeds
    study.add("r50_50", even, seeds=seeds)
    if "order" in parts:
        for shares in ("0.1_0.9", "0.9_0.1", "0.0_1.0", "1.0_0.0"):
            study.add(
                study_presets.schedule_cell(shares),
                study_presets.scheduled(even, shares),
                seeds=seeds,
            )
        for language, other in (("en1", "en2"), ("en2", "en1")):
            study.claim(
                f"order_is_symmetric_{language}",
                f"{language} of 0.1_0.9 has the loss of {other} of 0.9_0.1.",
                cell=study_presets.schedule_cell("0.1_0.9"),
                language=language,
                against=study_presets.schedule_cell("0.9_0.1"),
                against_language=other,
                direction="same",
                smallest=0.02,
            )
            study.claim(
                f"schedule_helps_{language}",
                f"0.1_0.9 gives {language} a lower loss than 50:50.",
                cell=study_presets.schedule_cell("0.1_0.9"),
                against="r50_50",
                language=language,
            )
    if "period" in parts:
        for stages in study_presets.listed(choice.periods):
            count = study_presets.whole("periods", stages)
            if count % 2:
                raise ValueError(f"periods={choice.periods}: write even numbers of stages.")
            if count > 2:  # two stages are 0.1_0.9 itself
                study.add(f"alternating_{count}", _alternating(even, count), seeds=seeds)
            else:
                study.add("s10_90", study_presets.scheduled(even, "0.1_0.9"), seeds=seeds)
    if "weight" in parts:
        _weighted(study, even, seeds)
    study.baselines(even, "en1", fractions=(0.1, 0.25, 0.5, 1), seeds=seeds, kinds=("monolingual",))
    study.baselines(even, "en1", fractions=(0.5,), seeds=seeds, kinds=("matched",))
    return study.to_config()


def _alternating(even: ml_collections.ConfigDict, count: int) -> ml_collections.ConfigDict:
    """Returns a run whose stages have 10 and 90 % of en2 in turn, with the totals of 50:50.

    Stages of 62.5 steps have 62 or 63. Which of two neighbours is the longer one is chosen so
    that neither language is ahead by more than that step.
    """
    changed = ml_collections.ConfigDict(even.to_dict())
    edges = [pair * even.steps // (count // 2) for pair in range(count // 2 + 1)]
    stages, ahead = [], 0  # steps that en2 was frequent in more than en1
    for first, last in itertools.pairwise(edges):
        half, odd = divmod(last - first, 2)
        middle = first + half + (odd if ahead > 0 else 0)
        ahead += (last - middle) - (middle - first)
        stages += [(first, {"en1": 9, "en2": 1}), (middle, {"en1": 1, "en2": 9})]
    changed.mixture.stages = tuple(stages)
    changed.mixture.same_total_as = ((0, even.mixture.ratio.to_dict()),)
    return changed


def _weighted(study: grid.Grid, even: ml_collections.ConfigDict, seeds: range) -> None:
    """Adds both orders with 50:50 of the learning rate, and a steady twin of their tokens."""
    boundary = study_presets.half_learning_rate(even)
    for shares in ("0.1_0.9", "0.9_0.1"):
        config = study_presets.scheduled(even, shares, boundary=boundary)
        study.add(f"weighted_{study_presets.schedule_cell(shares)}", config, seeds=seeds)
    steady = ml_collections.ConfigDict(even.to_dict())
    # Sequences in tenths of a batch: exactly those of 0.1_0.9 with the boundary moved.
    first, rest = boundary, even.steps - boundary
    steady.mixture.ratio = {"en1": 9 * first + rest, "en2": first + 9 * rest}
    study.add("weighted_steady", steady, seeds=seeds)
    for against, words in (
        ("r50_50", "50:50, whose share of the learning rate is the same"),
        ("weighted_steady", "a steady ratio, whose tokens are the same"),
    ):
        study.claim(
            f"weighted_beats_{against}",
            f"0.1_0.9 with equal shares of the learning rate gives en1 a lower loss than {words}.",
            cell=f"weighted_{study_presets.schedule_cell('0.1_0.9')}",
            against=against,
            language="en1",
        )
