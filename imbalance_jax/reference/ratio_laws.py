"""Laws over the ratio on the sweeps that the reference study reported, beside interpolation."""

import csv
import dataclasses
import io
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from imbalance_jax import config as config_lib
from imbalance_jax.analysis.mixture_choice import MixtureLawChoice, choose_mixture_law
from imbalance_jax.analysis.mixture_forms import FORMS, Mixtures
from imbalance_jax.config import costs
from imbalance_jax.drawing.numbers import ABSENT
from imbalance_jax.drawing.pages import Table
from imbalance_jax.reference.reported import UNIT_TOKENS, PaperResult, select_figure_results

_KINDS = ("ratios", "ends", "sizes", "largest")


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Reported perplexities of two languages at several ratios."""

    name: str
    figures: tuple[str, ...]
    vocabulary: str  # how the setting's begins
    vocab_size: int
    languages: tuple[str, str]


SWEEPS = (
    Sweep("clones", ("Figure 1 left",), "cloned", 32768, ("EN1", "EN2")),
    Sweep("English and French, disjoint", ("Figure 3",), "disjoint", 32768, ("EN", "FR")),
    Sweep("English and French, anchored", ("Figure 3",), "anchored", 29040, ("EN", "FR")),
    Sweep(
        "English and French, anchored, all sizes and lengths",
        ("Figure 3", "Figure 10"),
        "anchored",
        29040,
        ("EN", "FR"),
    ),
)


def fit_sweep(
    sweep: Sweep, results: Iterable[PaperResult], place: int
) -> tuple[MixtureLawChoice, int]:
    """Returns the laws of a language over a sweep, by its place, and how many runs they are of."""
    losses = _collect_losses(sweep, results, sweep.languages[place])
    size, tokens, share = map(np.array, zip(*losses, strict=True))
    parameters = {scale: _count_parameters(scale, sweep.vocab_size) for scale in set(size.tolist())}
    tokens_CG = np.stack([1 - share, share], axis=1) * tokens[:, None] * UNIT_TOKENS
    parameters_C = np.array([parameters[scale] for scale in size.tolist()])
    # No text came twice: the reference's corpora are larger than its runs.
    mixtures = Mixtures(parameters_C, tokens_CG, np.zeros_like(tokens_CG))
    loss_C = np.array([*losses.values()])
    return choose_mixture_law(mixtures, place, loss_C, np.ones(len(loss_C))), len(loss_C)


def _collect_losses(
    sweep: Sweep, results: Iterable[PaperResult], language: str
) -> dict[tuple[str, float, float], float]:
    """Returns (size, tokens in units of 1x, share of the second language) -> nats per token."""
    rows = [row for figure in sweep.figures for row in select_figure_results(results, figure)]
    losses: dict[tuple[str, float, float], float] = {}
    for row in rows:
        setting = row.setting
        if row.metric == f"ppl_{language}" and setting["vocab"].startswith(sweep.vocabulary):
            parts = [float(part) for part in setting["split"].split("/")]
            key = (setting["model"], round(row.tokens, 3), round(parts[1] / sum(parts), 6))
            losses.setdefault(key, math.log(row.value))
    return losses


def _count_parameters(scale: str, vocab_size: int) -> float:
    model = config_lib.parse_dataclass(
        config_lib.ModelConfig, config_lib.cloned(scale=scale, ratio="50:50").model
    )
    return float(costs.compute_parameter_count(model, vocab_size))


def list_errors(results: Sequence[PaperResult]) -> list[dict[str, str | float]]:
    """Returns a row for each form, and for interpolation, of each language of each sweep."""
    rows: list[dict[str, str | float]] = []
    for sweep in SWEEPS:
        for place, language in enumerate(sweep.languages):
            choice, runs = fit_sweep(sweep, results, place)
            for form in (*choice.errors, "interpolation"):
                error = choice.errors.get(form, choice.interpolation)
                chosen = "yes" if form == choice.law.form.name else ""
                row: dict[str, str | float] = {"sweep": sweep.name, "runs": runs}
                row |= {"language": language, "form": form, "chosen": chosen}
                rows.append(row | {kind: getattr(error, kind) for kind in _KINDS})
    return rows


def render_errors_csv(rows: Sequence[Mapping[str, str | float]]) -> str:
    written = io.StringIO()
    writer = csv.DictWriter(written, [*rows[0]], lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {n: "" if isinstance(v, float) and math.isnan(v) else v for n, v in row.items()}
        for row in rows
    )
    return written.getvalue()


def make_error_table(rows: Sequence[Mapping[str, str | float]]) -> Table:
    """Returns the left-out errors of ratios as a row for each language of each sweep."""
    names = [*(form.name for form in FORMS), "interpolation"]
    groups: dict[tuple[str, str, str], dict[str, Mapping[str, str | float]]] = {}
    for row in rows:
        key = (str(row["sweep"]), str(row["runs"]), str(row["language"]))
        groups.setdefault(key, {})[str(row["form"])] = row
    shown = []
    for key, by_form in groups.items():
        cells = [_format_error(by_form[name]) if name in by_form else ABSENT for name in names]
        shown.append([*key, *cells])
    caption = (
        "Root mean square error in nats of the language’s loss at a ratio that was left out, the "
        "two ends of the sweep excepted; behind the stroke at a size that was left out. * is "
        "chosen. One seed, read off plots in part."
    )
    return Table(["sweep", "runs", "language", *names], shown, caption)


def _format_error(row: Mapping[str, str | float]) -> str:
    ratios, sizes = float(row["ratios"]), float(row["sizes"])
    text = f"{ratios:.4f}" + (f" / {sizes:.4f}" if math.isfinite(sizes) else "")
    return text + (" *" if row["chosen"] else "")
