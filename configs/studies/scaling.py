"""Whether a dominant clone helps more as the model and the run grow.

    python -m imbalance_jax.study plan --config=configs/studies/scaling.py
    python -m imbalance_jax.study run --config=configs/studies/scaling.py:sizes=0.5+1,lengths=1+2+4

50:50 and 90:10 at each size and length, with the language alone at each size: short runs up to
the longest length, and at each length runs of the same updates with a part of the batch.
sizes multiplies blocks, width and heads of the scale's model, lengths its steps. sweep tries
the learning rate of 50:50 and 90:10 at each size and the first length with these factors, one
seed; sweep=1 tries none. A trend over size means something only where the best learning rate
of every size lies inside.

scale, seeds, steps, batch and files are as in configs/studies/ratio.py.
"""

from collections.abc import Sequence

import ml_collections

from imbalance_jax.study import grid, study_presets

RATIOS = ("50:50", "90:10")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    choice = study_presets.parse(arg, sizes="0.5+1+2", lengths="1+2", sweep="0.5+2")
    sizes, lengths, factors = (
        study_presets.numbers(name, getattr(choice, name)) for name in ("sizes", "lengths", "sweep")
    )
    whole = study_presets.clones(choice, "50:50")
    study = grid.Grid("Two clones of English, by size of the model and length.", unit=whole)
    for size in sizes:
        prefix = f"size{grid.percent(size)}_"
        for ratio in RATIOS:
            base = study_presets.resized(study_presets.clones(choice, ratio), size)
            cell = prefix + study_presets.ratio_cell(ratio)
            for length in lengths:
                config = study_presets.lengthened(base, length)
                study.add(f"{cell}_{_length(length)}", config, seeds=choice.seeds)
            first = study_presets.lengthened(base, lengths[0])
            study.sweep(f"{cell}_{_length(lengths[0])}", first, factors=factors)
        model = study_presets.resized(whole, size)
        fractions = sorted({0.1, 0.25, 0.5, *lengths})
        study.baselines(
            model,
            "en1",
            fractions=fractions,
            seeds=choice.seeds,
            kinds=("monolingual",),
            prefix=prefix,
        )
        for length in lengths:
            study.baselines(
                study_presets.lengthened(model, length),
                "en1",
                fractions=(0.1, 0.5),
                seeds=choice.seeds,
                kinds=("matched",),
                prefix=f"{prefix}{_length(length)}_",
            )
    _claims(study, [f"size{grid.percent(size)}" for size in sorted(sizes)], sorted(lengths))
    return study.to_config()


def _claims(study: grid.Grid, sizes: Sequence[str], lengths: Sequence[float]) -> None:
    """States trends from the smallest to the largest, at the other's largest."""
    rare = {"language": "en2", "measure": "log_teff", "direction": "higher", "smallest": 0.05}
    longest = _length(lengths[-1])
    best = f"{sizes[-1]}_r90_10_{longest}"
    if len(sizes) > 1:
        study.claim(
            "grows_with_size",
            "The rare clone of 90:10 gains more in the largest model than in the smallest.",
            cell=best,
            against=f"{sizes[0]}_r90_10_{longest}",
            **rare,
        )
    if len(lengths) > 1:
        study.claim(
            "grows_with_length",
            "The rare clone of 90:10 gains more in the longest run than in the shortest.",
            cell=best,
            against=f"{sizes[-1]}_r90_10_{_length(lengths[0])}",
            **rare,
        )
    study.claim(
        "overtakes",
        "In the largest model and the longest run the rare clone of 90:10 has a lower loss than "
        "a clone of 50:50.",
        cell=best,
        against=f"{sizes[-1]}_r50_50_{longest}",
        language="en2",
    )


def _length(factor: float) -> str:
    return f"length{grid.percent(factor)}"
