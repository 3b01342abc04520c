"""What each language was worth to each other one: transfer coefficients of ordered pairs."""

import dataclasses
import itertools
import math
from collections.abc import Mapping

import numpy as np
from scipy.cluster import hierarchy
from scipy.spatial import distance

from imbalance_jax.analysis.effects import Effects, LanguageCondition
from imbalance_jax.analysis.laws import Floats
from imbalance_jax.analysis.statistics import Interval

_KINDS = ("matched", "epochs", "monolingual", "wide")  # of baselines, the fairest first
_FEWEST = 3  # languages of a matrix


@dataclasses.dataclass(frozen=True)
class TransferCoefficient:
    """What a token of one language was worth to another, in tokens of its own."""

    target: str
    helper: str
    cell: str
    value: float  # the exchange rate; nan where the law does not reach the loss
    interval: Interval
    limit: str  # "above" or "below" where the loss is outside of the law
    extrapolated: bool


@dataclasses.dataclass(frozen=True)
class TransferMatrix:
    """The coefficients of all ordered pairs of languages that were trained together."""

    kind: str  # of the baselines
    languages: tuple[str, ...]  # those that help each other stand together
    coefficients: Mapping[tuple[str, str], TransferCoefficient]  # by target and helper
    merges: tuple[tuple[tuple[str, ...], float], ...]  # languages, and the mean of both ways


def measure_transfer_matrix(effects: Effects) -> TransferMatrix | None:
    """Returns the matrix of a study; None where fewer than three languages are in pairs.

    A coefficient is the exchange rate, (MLTE - own tokens) / tokens of the other, in a mixture of
    two languages. Of several ratios the one that is most equal counts. Languages are grouped by
    the mean of both ways, with average linkage, as far as all pairs are known.
    """
    pairs: dict[tuple[str, str], LanguageCondition] = {}
    for condition in effects.conditions:
        others = [tag for tag in condition.config.tags if tag != condition.language]
        plain = condition.kind == "mixture" and not condition.config.mixture.stages
        if plain and len(others) == 1 and condition.first.other_tokens:
            key = (condition.language, others[0])
            if key not in pairs or _measure_inequality(condition) < _measure_inequality(pairs[key]):
                pairs[key] = condition
    languages = tuple(dict.fromkeys(tag for key in pairs for tag in key))
    kinds = [k for k in _KINDS if any((k, "loss") in c.worths for c in pairs.values())]
    if len(languages) < _FEWEST or not kinds:
        return None
    found = {}
    for (target, helper), condition in pairs.items():
        worth = condition.worths.get((kinds[0], "loss"))
        if worth is None:
            continue
        value = math.nan if worth.limit else worth.efficiency.exchange
        found[target, helper] = TransferCoefficient(
            target,
            helper,
            condition.cell,
            value,
            worth.exchange,
            worth.limit,
            worth.efficiency.extrapolated,
        )
    order, merges = _group_languages(languages, found)
    return TransferMatrix(kinds[0], order, found, merges)


def _measure_inequality(condition: LanguageCondition) -> float:
    return abs(condition.first.share - 0.5)


def _group_languages(
    languages: tuple[str, ...], found: Mapping[tuple[str, str], TransferCoefficient]
) -> tuple[tuple[str, ...], tuple[tuple[tuple[str, ...], float], ...]]:
    """Returns the languages in the order of their clusters, and what was merged; as given else."""
    mean_GG = np.zeros((len(languages),) * 2)
    for (i, a), (j, b) in itertools.combinations(enumerate(languages), 2):
        both = [found[key].value for key in ((a, b), (b, a)) if key in found]
        mean_GG[i, j] = mean_GG[j, i] = np.mean(both) if len(both) == 2 else math.nan
    if not np.all(np.isfinite(mean_GG)):
        return languages, ()
    highest = float(mean_GG[~np.eye(len(languages), dtype=bool)].max())
    far_GG: Floats = highest - mean_GG
    np.fill_diagonal(far_GG, 0.0)
    near = distance.squareform(far_GG, checks=False)
    tree = hierarchy.linkage(near, "average", optimal_ordering=True)
    groups: list[tuple[str, ...]] = [(tag,) for tag in languages]
    merges = []
    for first, second, far, _ in tree:
        groups.append((*groups[int(first)], *groups[int(second)]))
        merges.append((groups[-1], float(highest - far)))
    return tuple(languages[place] for place in hierarchy.leaves_list(tree)), tuple(merges)
