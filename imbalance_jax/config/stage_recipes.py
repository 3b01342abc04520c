"""Schedules of ratios by rule: a language that joins, equal stages, and a gradual change."""

import fractions
import math
from collections.abc import Mapping

from imbalance_jax.config.schema import Schedule

# A rule's share is rounded to so many parts, so that its blocks are short.
_PARTS = 100


def joining_stages(text: str, ratio: Mapping[str, int]) -> Schedule:
    """Returns a schedule in which the last language joins the others later, at its ratio.

    Args:
      text: the fraction of the run after which it joins, such as 0.5.
      ratio: of all languages, from then on. Before, the last one has 0.

    Raises:
      ValueError: the text is not a fraction between 0 and 1, or there is no other language.
    """
    *others, last = ratio
    try:
        joins = float(text)
    except ValueError:
        joins = 0.0
    if not 0 < joins < 1:
        raise ValueError(
            f"joins={text}: write the fraction of the run after which {last} joins, above 0 and "
            "below 1, such as 0.5."
        )
    if not any(ratio[tag] for tag in others):
        raise ValueError(
            f"joins={text}: {last} is alone, with no language to join. Write a ratio such as 90:10."
        )
    return ((0, {**ratio, last: 0}), (joins, dict(ratio)))


def equal_stages(text: str, first: str, second: str) -> Schedule:
    """Returns a schedule of equally long stages, such as `0.1_0.9`.

    Stage i of m begins at step floor(i steps / m). The reference's begins at
    i floor(steps / m), which is the same step or up to m - 1 steps earlier.

    Args:
      text: the share of the second language in each stage; the first one gets the rest.

    Raises:
      ValueError: a part is not a number from 0 to 1.
    """
    shares = _parse_shares(text, second)
    return tuple(
        (i / len(shares), {first: s.denominator - s.numerator, second: s.numerator})
        for i, s in enumerate(shares)
    )


def changing_stages(rule: str, text: str, first: str, second: str, *, count: int = 20) -> Schedule:
    """Returns a schedule of equally long stages between two shares, as a rule has it.

    Stage i of n has the share at its middle, u = (i + 1/2) / n of the way, to whole percent:

        linear   a + (b - a) u
        cosine   a + (b - a) (1 - cos(pi u)) / 2

    Args:
      rule: linear or cosine.
      text: the shares a and b of the second language, such as 0.1_0.9; the first gets the rest.
      count: n.

    Raises:
      ValueError: there is no such rule, or the text has not two shares.
    """
    rules = {"linear": lambda u: u, "cosine": lambda u: (1 - math.cos(math.pi * u)) / 2}
    if rule not in rules:
        raise ValueError(f"rule={rule} is not one of {', '.join(rules)}.")
    shares = _parse_shares(text, second)
    if len(shares) != 2 or count < 2:
        raise ValueError(
            f"stages={text}: a change by rule={rule} is from one share to another, in 2 stages or "
            "more. Write two shares, such as 0.1_0.9."
        )
    begin, end = map(float, shares)
    stages = []
    for i in range(count):
        exact = _PARTS * (begin + (end - begin) * rules[rule]((i + 0.5) / count))
        # A half is a half, not a little less: else a change from 0.1 to 0.9 is not balanced.
        part = round(round(exact, 9))
        stages.append((i / count, {first: _PARTS - part, second: part}))
    return tuple(stages)


def _parse_shares(text: str, second: str) -> list[fractions.Fraction]:
    try:
        shares = [fractions.Fraction(part) for part in text.split("_")]
    except (ValueError, ZeroDivisionError):
        shares = []
    if not shares or not all(0 <= share <= 1 for share in shares):
        raise ValueError(
            f"stages={text}: write the share of {second} in each stage, from 0 to 1, with _ "
            "between them, such as 0.1_0.9."
        )
    return shares
