"""Proposes a ratio for an objective, with intervals, and the runs that would narrow them most."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from imbalance_jax import config as config_lib
from imbalance_jax.analysis.laws import Floats
from imbalance_jax.analysis.mixture_forms import count_apart
from imbalance_jax.analysis.mixture_resamples import ResampledMixtureLaws, take_interval
from imbalance_jax.analysis.next_runs import rank_next_runs
from imbalance_jax.analysis.ratio_search import (
    Target,
    allow_ratios,
    find_factors,
    find_target,
    find_weights,
    list_ratios,
    score_least,
    score_ratios,
)
from imbalance_jax.analysis.statistics import Interval
from imbalance_jax.study.objective import Objective

VERSION = 1
# Of a study that states no objective: all languages alike.
DEFAULT: Mapping[str, Objective] = {"mean": Objective()}
_TILES = 20  # of the draws of a predicted loss
_CURVE = 41  # shares along a curve
_NEXT = 3  # runs that are named
_CANDIDATES = 60  # ratios of each size and length that a next run is chosen from
_ALIKE = 0.03  # how far apart the shares of two ratios are whose runs say nearly the same
_TIE = 1e-9
_MOST_WHOLE = 1000  # parts that the ratio of a run is looked for in
_NARROWER = 0.97  # a further run that leaves more of the interval is not named


@dataclasses.dataclass(frozen=True)
class PredictedLoss:
    """What a language's loss will be at the proposed ratio, in nats per token."""

    value: float
    interval: Interval  # of the mean over all seeds that there could be
    same_seeds_interval: Interval  # of the mean over the study's seeds, once they are run
    run_interval: Interval  # of one run with another seed
    compared: float  # in the unit of the objective
    compared_interval: Interval  # of `interval`, in that unit


@dataclasses.dataclass(frozen=True)
class NextRun:
    """A condition that is worth running next, given those that stand before it."""

    ratio: Mapping[str, int]
    tokens: float
    parameters: float
    runs: int  # seeds, as many as the study's cells have
    width: float  # of the interval of the shares, relative to the present one
    again: bool = False  # whether the study has the condition: these are other seeds of it


@dataclasses.dataclass(frozen=True)
class Proposal:
    """The answer to an objective."""

    name: str
    objective: Objective
    ratio: Mapping[str, int]
    target: Target
    shares: Mapping[str, Interval]  # that draws of the runs would propose
    losses: Mapping[str, PredictedLoss]
    laws: Mapping[str, Mapping[str, Any]]
    runs: Sequence[str]  # that the laws are fitted to
    seeds: Sequence[int]  # of these runs
    left_out: Sequence[str]  # cells that differ in more than ratio, size and length
    repeated: bool  # whether the scatter is that of seeds; else that around the laws
    extrapolated: Sequence[str]
    next_runs: Sequence[NextRun]
    next_note: str  # why no more runs are named, or ""
    epochs: Mapping[str, float]  # of each language's text; nan where it is not known how long it is
    notes: Sequence[str]  # on what is compared
    # Of each language, along its share: share, loss, and the ends of the interval of the mean over
    # the study's seeds.
    curves: Mapping[str, Sequence[tuple[float, float, float, float]]]

    def to_dict(self) -> dict[str, Any]:
        """Returns it as proposals/NAME.json has it."""
        return {"version": VERSION, **config_lib.to_dict(self)}


def propose_ratio(name: str, objective: Objective, laws: ResampledMixtureLaws) -> Proposal:
    """Returns the ratio that is best for an objective by the laws of a study.

    Each draw of the runs has a best ratio of its own; the interval of a share is that of theirs.

    Raises:
      ValueError: the limits leave no ratio, or the study does not reach the size or length.
    """
    field, text = f"config.objectives.{name}", objective.text
    text_G = [
        text.get(tag, has) for tag, has in zip(laws.cells.languages, laws.cells.text_G, strict=True)
    ]
    cells = dataclasses.replace(laws.cells, text_G=np.array(text_G))
    laws = dataclasses.replace(laws, cells=cells)
    target = find_target(field, objective, cells)
    ratio_CG = list_ratios(len(cells.languages), objective.parts)
    share_CG = ratio_CG / ratio_CG.sum(axis=1, keepdims=True)
    allowed = allow_ratios(field, objective, cells, share_CG, target)
    ratio_CG, share_CG = ratio_CG[allowed], share_CG[allowed]
    score_RC = _score(field, objective, laws, share_CG, target)
    best = int(np.argmin(score_RC[0]))
    found_R = np.argmin(score_RC[1:], axis=1)[np.isfinite(score_RC[1:]).any(axis=1)]
    ratio = dict(zip(cells.languages, ratio_CG[best].tolist(), strict=True))
    shares = {
        tag: _find_interval(share_CG[found_R, g], float(share_CG[best, g]))
        for g, tag in enumerate(cells.languages)
    }
    next_runs, next_note = _choose_next_runs(laws, ratio_CG, best, found_R, target)
    return Proposal(
        name=name,
        objective=objective,
        ratio=config_lib.reduce_ratio(ratio),
        target=target,
        shares=shares,
        losses=_predict_losses(laws, share_CG[best], target, find_factors(objective, cells)),
        laws={tag: describe_law(laws, g) for g, tag in enumerate(cells.languages)},
        runs=cells.runs,
        seeds=sorted({seed for of_cell in cells.losses for seed in of_cell}),
        left_out=cells.left_out,
        repeated=laws.repeated,
        extrapolated=_list_extrapolations(laws, share_CG[best], target),
        next_runs=next_runs,
        next_note=next_note,
        epochs=_count_epochs(laws, share_CG[best], target),
        notes=_list_notes(objective, laws),
        curves=_make_curves(laws, share_CG[best], target),
    )


def _find_interval(share_R: Floats, share: float) -> Interval:
    """Returns the interval of draws that holds a share too; all shares where no draw has one."""
    if not len(share_R):
        return 0.0, 1.0
    low, high = take_interval(share_R)
    return min(low, share), max(high, share)


def _score(
    field: str,
    objective: Objective,
    laws: ResampledMixtureLaws,
    share_CG: Floats,
    target: Target,
) -> Floats:
    """Returns the score of each ratio: first of the laws as they are, then in each draw."""
    cells = laws.cells

    def predict(share_CG: Floats) -> Floats:
        mixtures = cells.make_mixtures(share_CG, target.tokens, target.parameters)
        return np.concatenate([laws.predict(mixtures)[None], laws.predict_draws(mixtures)])

    loss_RCG = predict(share_CG)
    # Of ratios that are equally good, the one with the least mean of all losses.
    tie_RC = _TIE * loss_RCG.mean(axis=2)
    if objective.kind != "least":
        return score_ratios(objective, cells, loss_RCG) + tie_RC
    than = np.array([float(objective.than[tag]) for tag in cells.languages])
    than_RG = predict((than / than.sum())[None])[:, 0]
    score_RC = score_least(objective, cells, loss_RCG, than_RG)
    if not np.isfinite(score_RC[0]).any():
        raise ValueError(
            f"{field}: no ratio within the limits keeps the others within {objective.worse:g} "
            f"{objective.unit} of their losses at {':'.join(map(str, objective.than.values()))}. "
            "Allow more in `worse`, more epochs, or more parts."
        )
    return score_RC + tie_RC


def _predict_losses(
    laws: ResampledMixtureLaws, share_G: Floats, target: Target, factor_G: Floats
) -> dict[str, PredictedLoss]:
    mixtures = laws.cells.make_mixtures(share_G[None], target.tokens, target.parameters)
    value_G = laws.predict(mixtures)[0]
    # Few seeds have long tails, which many draws are needed for.
    law_RG = np.tile(laws.predict_draws(mixtures, same_seeds=True)[:, 0], (_TILES, 1))
    rng, draws = np.random.Generator(np.random.Philox(key=1)), len(law_RG)
    law_RG += rng.normal(size=law_RG.shape) * laws.missed_G
    common_RG, new_RG = laws.scatter.draw_common(draws, rng)
    runs_C = np.array([laws.cells.runs_C.mean(), 1.0])
    own_RCG = laws.scatter.draw_own(runs_C, draws, rng)
    mean_RG, same_RG = law_RG + common_RG, law_RG + own_RCG[:, 0]
    run_RG = mean_RG + new_RG + own_RCG[:, 1]
    found = {}
    for g, tag in enumerate(laws.cells.languages):
        mean, same, run = (take_interval(each[:, g]) for each in (mean_RG, same_RG, run_RG))
        value, factor = float(value_G[g]), float(factor_G[g])
        compared = (factor * mean[0], factor * mean[1])
        found[tag] = PredictedLoss(value, mean, same, run, factor * value, compared)
    return found


def _make_curves(
    laws: ResampledMixtureLaws, share_G: Floats, target: Target
) -> dict[str, list[tuple[float, float, float, float]]]:
    """Returns the predicted loss of each language over the shares that the runs have."""
    cells, found = laws.cells, {}
    for g, tag in enumerate(cells.languages):
        has = cells.mixtures.share_CG[:, g]
        low, high = min(has[has > 0].min(), share_G[g]), max(has[has < 1].max(), share_G[g])
        shares = np.unique(np.round([*np.linspace(low, high, _CURVE), share_G[g]], 9))
        rest_G = np.where(np.arange(len(share_G)) == g, 0.0, share_G)
        share_CG = (1 - shares)[:, None] * rest_G / rest_G.sum()
        share_CG[:, g] = shares
        mixtures = cells.make_mixtures(share_CG, target.tokens, target.parameters)
        rng = np.random.Generator(np.random.Philox(key=2))
        draws_RC = np.tile(laws.predict_draws(mixtures, same_seeds=True)[:, :, g], (_TILES, 1))
        own_RCG = laws.scatter.draw_own(np.array([cells.runs_C.mean()]), len(draws_RC), rng)
        draws_RC += own_RCG[:, :, g] + rng.normal(size=(len(draws_RC), 1)) * laws.missed_G[g]
        losses = laws.predict(mixtures)[:, g].tolist()
        ends = [take_interval(draws_R) for draws_R in draws_RC.T]
        found[tag] = [
            (share, loss, *end)
            for share, loss, end in zip(shares.tolist(), losses, ends, strict=True)
        ]
    return found


def _count_epochs(laws: ResampledMixtureLaws, share_G: Floats, target: Target) -> dict[str, float]:
    cells = laws.cells
    epochs_G = cells.make_mixtures(share_G[None], target.tokens, target.parameters).epochs_CG[0]
    known_G = np.where(cells.text_G > 0, epochs_G, math.nan)
    return dict(zip(cells.languages, known_G.tolist(), strict=True))


def _list_notes(objective: Objective, laws: ResampledMixtureLaws) -> list[str]:
    compares = objective.kind == "minimax" or (
        objective.kind == "weights"
        and np.count_nonzero(find_weights(objective, laws.cells.languages)) > 1
    )
    if objective.unit == "nats" and compares and laws.cells.own_tokenizers:
        return [
            "The languages have tokenizers of their own, and their losses in nats per token do not "
            "compare: unit=bits_per_byte does."
        ]
    return []


def describe_law(laws: ResampledMixtureLaws, language: int) -> dict[str, Any]:
    """Returns the law of a language, and the left-out errors of all forms, as plain values."""
    choice = laws.choices[language]
    intervals = laws.parameter_intervals(language)
    centre = choice.law.form.centre
    tags = {f"t{place}": f"t_{tag}" for place, tag in enumerate(laws.cells.languages)}
    return {
        "form": choice.law.form.name,
        "formula": choice.law.form.formula,
        "source": choice.law.form.source,
        "parameters": {
            tags.get(name, name): {"value": value, "interval": list(intervals[name])}
            for name, value in choice.law.parameters.items()
        },
        "unit_parameters": centre.parameters,
        "unit_tokens": centre.tokens,
        "errors": {name: vars(error) for name, error in choice.errors.items()},
        "interpolation": vars(choice.interpolation),
    }


def _list_extrapolations(laws: ResampledMixtureLaws, share_G: Floats, target: Target) -> list[str]:
    """Returns a sentence on each quantity in which the proposal lies outside of the runs."""
    cells, found = laws.cells, []
    mixtures = cells.mixtures
    for value, has, name in (
        (target.parameters, mixtures.parameters_C, "parameters"),
        (target.tokens, mixtures.total_C, "tokens"),
    ):
        if not has.min() * 0.99 <= value <= has.max() * 1.01:
            found.append(
                f"{value:,.0f} {name} lie outside of the runs, which have {has.min():,.0f} to "
                f"{has.max():,.0f}."
                + " Two values do not say an exponent: one is assumed."
                * (count_apart(has) == 2)
            )
    for tag, share, has in zip(cells.languages, share_G, mixtures.share_CG.T, strict=True):
        if not has.min() - 1e-9 <= share <= has.max() + 1e-9:
            found.append(
                f"{share:.1%} of {tag} lie outside of the runs, which have {has.min():.1%} to "
                f"{has.max():.1%}."
            )
    return found


def _choose_next_runs(
    laws: ResampledMixtureLaws,
    ratio_CG: npt.NDArray[np.int_],
    best: int,
    found_R: npt.NDArray[np.int_],
    target: Target,
) -> tuple[list[NextRun], str]:
    """Returns the conditions that would narrow the best ratio most, and why there are no more.

    They are of the sizes and lengths of the study, or of the target, and of the same seeds. No two
    of one size and length have nearly the same ratio. One that the study has means other seeds.
    """
    cells, share_CG = laws.cells, ratio_CG / ratio_CG.sum(axis=1, keepdims=True)
    wanted_RG = share_CG[found_R]
    if len(found_R) < laws.draws:
        # Without a best ratio in every draw there is nothing that varies together.
        return [], (
            "which further runs would narrow the ratio is not known, as not every draw of the runs "
            "has a ratio within the limits"
        )
    if all(np.ptp(take_interval(share_R)) < 1e-9 for share_R in wanted_RG.T):
        parts = int(ratio_CG[0].sum())
        return [], (
            f"the interval of the ratio is within one of its {parts} parts, and more runs would "
            "not narrow it by a part"
        )
    seeds = max(1, round(float(cells.runs_C.mean())))
    step = math.ceil(len(ratio_CG) / _CANDIDATES)
    # Beyond the runs a law is its form alone.
    low, high = cells.mixtures.share_CG.min(axis=0), cells.mixtures.share_CG.max(axis=0)
    inside = np.all((share_CG >= low - 1e-9) & (share_CG <= high + 1e-9), axis=1)
    places = [place for place in range(step // 2, len(ratio_CG), step) if inside[place]]
    free_CG = share_CG[sorted({*places, best})]
    mixtures = cells.mixtures
    has_C = np.stack([mixtures.parameters_C, mixtures.total_C], axis=1)
    grounds = dict.fromkeys([*map(tuple, has_C.tolist()), (target.parameters, target.tokens)])
    measured, share_XG, condition_X = [], [], []
    for parameters, tokens in grounds:
        here_C = np.all(np.isclose(has_C, (parameters, tokens), 0.01), axis=1)
        run_CG = mixtures.share_CG[here_C & (mixtures.share_CG > 0).all(axis=1)]
        new_CG = free_CG[~_find_alike(free_CG, run_CG).any(axis=1)]
        tried_CG = np.concatenate([run_CG, new_CG])
        measured.append(
            laws.predict_draws(cells.make_mixtures(tried_CG, tokens, parameters), same_seeds=True)
        )
        share_XG.append(tried_CG)
        condition_X += [(parameters, tokens, place < len(run_CG)) for place in range(len(tried_CG))]
    shares = np.concatenate(share_XG)
    of_X = np.array([condition[:2] for condition in condition_X])
    alike_XX = _find_alike(shares, shares) & np.all(of_X[:, None] == of_X, axis=2)
    noise_GG = laws.scatter.covariance_GG / seeds
    losses = np.concatenate(measured, axis=1)
    chosen: list[NextRun] = []
    present = 1.0
    for place, left in rank_next_runs(wanted_RG, losses, noise_GG, _NEXT, alike_XX):
        width = math.sqrt(left)
        if width >= _NARROWER * present:
            return chosen, f"{'further' if chosen else 'more'} runs would hardly narrow the ratio"
        parameters, tokens, again = condition_X[place]
        ratio = _find_whole_ratio(cells.languages, shares[place], int(ratio_CG[0].sum()))
        chosen.append(NextRun(ratio, tokens, parameters, seeds, width, again))
        present = width
    return chosen, ""


def _find_alike(share_CG: Floats, other_CG: Floats) -> npt.NDArray[np.bool_]:
    return np.abs(share_CG[:, None] - other_CG).max(axis=2) < _ALIKE


def _find_whole_ratio(languages: Sequence[str], share_G: Floats, parts: int) -> dict[str, int]:
    """Returns the whole numbers of shares: those of a run may have other parts than a proposal."""
    for whole in (parts, *range(len(languages), _MOST_WHOLE)):
        counts_G = np.rint(share_G * whole).astype(int)
        # The tokens of a run that ends inside a block are not quite of its ratio.
        if np.abs(counts_G / whole - share_G).max() < 0.5 / _MOST_WHOLE:
            break
    return config_lib.reduce_ratio(dict(zip(languages, counts_G.tolist(), strict=True)))
