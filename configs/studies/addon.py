"""What another language adds to a rare one whose own tokens stay the same.

    python -m imbalance_jax.study run --config=configs/studies/addon.py
    python -m imbalance_jax.study plan --config=configs/studies/addon.py:files=DIR,pair=en_fr

Each language in turn is the rare one. It has a tenth of the scale's tokens, and the other is
added with 0, 1, 3 and 9 times as many, so that the run grows with it to the scale's steps. A
fixed total would take from the one what it gives to the other. Held against the language alone
on its tokens: a short run (0 times), and one of the same updates with a part of the batch.
pair=clones is en1 and en2, whose directions must agree; pair=en_fr is English and French, from
files=DIR as in configs/en_fr.py or else wiki40b.

times is what is added; scale, seeds, steps and batch are as in configs/studies/ratio.py.
"""

import types

import ml_collections

from imbalance_jax.study import grid, study_presets

RARE = 0.1  # of the scale's tokens


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    choice = study_presets.parse(arg, pair="clones", times="0+1+3+9", layout="merged")
    if choice.pair not in ("clones", "en_fr"):
        raise ValueError(f"pair={choice.pair}: choose clones or en_fr.")
    times = sorted(study_presets.numbers("times", choice.times))
    if any(number != int(number) for number in times):
        raise ValueError(f"times={choice.times}: write whole numbers.")
    even = _pair(choice)
    study = grid.Grid("A rare language, and more and more of another.", unit=even)
    first, second = even.languages
    for rare, added in ((second, first), (first, second)):
        _direction(study, even, rare, added, [int(number) for number in times], choice.seeds)
    return study.to_config()


def _pair(choice: types.SimpleNamespace) -> ml_collections.ConfigDict:
    if choice.pair == "clones":
        return study_presets.clones(choice, "50:50")
    return study_presets.spoken(choice, "50:50", layout=choice.layout)


def _direction(
    study: grid.Grid,
    even: ml_collections.ConfigDict,
    rare: str,
    added: str,
    times: list[int],
    seeds: range,
) -> None:
    """Adds one direction: the rare language alone, and with another."""
    alone = even.languages[rare].clone_of or rare
    # Longer runs too, so that what is gained can be said in tokens.
    fractions = (RARE / 2, RARE, 2 * RARE, 4 * RARE, 1)
    study.baselines(even, rare, fractions=fractions, seeds=seeds, kinds=("monolingual",))
    for number in filter(None, times):  # 0 is the language alone
        config = ml_collections.ConfigDict(even.to_dict())
        # A tenth rounded down, and that so many times: equal tokens of the rare language.
        config.steps = int(RARE * even.steps) * (1 + number)
        config.mixture.ratio = {rare: 1, added: number}
        # One to one is the same run in both directions.
        cell = "equal" if number == 1 else f"{rare}_with_{number}_{added}"
        study.add(cell, study_presets.measured(config), seeds=seeds)
        part = 1 / (1 + number)
        [matched] = study.baselines(
            config,
            rare,
            fractions=[part],
            seeds=seeds,
            kinds=("matched",),
            prefix=f"times{number}_",
        )
        if number != max(times):
            continue
        short = f"mono_{alone}_{grid.percent(RARE)}"
        for against, words in ((short, "a short run"), (matched, "as many updates")):
            study.claim(
                f"{added}_helps_{rare}_{against}",
                f"{number} times as much {added} lowers the loss of {rare} below that of the "
                f"language alone, with the same tokens and {words}.",
                cell=cell,
                against=against,
                language=rare,
                against_language=alone,
            )
