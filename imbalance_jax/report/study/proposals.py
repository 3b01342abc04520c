"""Laws over the ratio, proposed ratios, and what was run of them."""

from collections.abc import Mapping
from typing import Any

from imbalance_jax.analysis import proposal_files
from imbalance_jax.analysis.mixture_cells import collect_mixture_cells
from imbalance_jax.analysis.mixture_resamples import resample_mixture_laws
from imbalance_jax.analysis.proposals import describe_law
from imbalance_jax.analysis.study_table import StudyTable
from imbalance_jax.drawing.numbers import format_compact, format_percent, format_significant
from imbalance_jax.drawing.pages import Table, get_pieces, render_number
from imbalance_jax.report.study.intervals import format_interval, render_with_interval
from imbalance_jax.report.study.proposal_figures import get_figure_name
from imbalance_jax.study.study_directory import StudyDirectory

_DRAWS = 99


def make_ratio_law_table(table: StudyTable) -> Table | None:
    """Returns the law of each language over the ratio; None where there are too few ratios."""
    try:
        laws = resample_mixture_laws(collect_mixture_cells(table), draws=_DRAWS)
    except ValueError:
        return None
    rows = []
    for place, tag in enumerate(laws.cells.languages):
        law = describe_law(laws, place)
        for name, error in law["errors"].items():
            chosen = name == law["form"]
            rows.append([tag, name, *_render_errors(error), _render_parameters(law) * chosen])
        rows.append([tag, "interpolation", *_render_errors(law["interpolation"]), ""])
    header = ["language", "form", "left-out ratios", "left-out ends", "left-out sizes"]
    header += ["left-out largest size"]
    caption = (
        f"Root mean square errors in nats, of {', '.join(laws.cells.names)}. The parameters of the "
        "form that is chosen have 95 % intervals of resampled runs."
    )
    return Table([*header, "parameters, where it is chosen"], rows, caption)


def _render_errors(error: Mapping[str, float | None]) -> list[str]:
    return [
        proposal_files.format_error(error[kind]) for kind in ("ratios", "ends", "sizes", "largest")
    ]


def _render_parameters(law: Mapping[str, Any]) -> str:
    parts = [
        f"{name} = {format_significant(each['value'])} "
        f"({format_interval(tuple(each['interval']), format_significant)})"
        for name, each in law["parameters"].items()
    ]
    units = (
        f"N in {format_compact(law['unit_parameters'])} parameters, "
        f"D in {format_compact(law['unit_tokens'])} tokens"
    )
    return f"{law['formula']}, {units}: {', '.join(parts)}"


def list_proposals(table: StudyTable, directory: StudyDirectory) -> list[dict[str, Any]]:
    """Returns what the page says of each proposal of a study."""
    shown = []
    for proposal in proposal_files.read_proposals(directory):
        outcomes = proposal_files.list_outcomes(proposal, table)
        rests = proposal_files.describe_rest(proposal)
        target = proposal["target"]
        shown.append(
            {
                "name": proposal["name"] + ", an earlier proposal" * ("-" in proposal["name"]),
                "ratio": proposal_files.format_ratio(proposal["ratio"]),
                "objective": proposal_files.describe_objective(proposal["objective"]),
                "target": f"{format_compact(target['tokens'])} tokens, "
                f"{format_compact(target['parameters'])} parameters",
                "rests": rests[:1].upper() + rests[1:],
                "extrapolated": proposal["extrapolated"],
                "notes": proposal.get("notes", ()),
                "figure": get_figure_name(proposal),
                "losses": _make_loss_tables(proposal),
                "next_runs": _make_next_table(proposal),
                "next_note": proposal.get("next_note", ""),
                "outcomes": _make_outcome_table(outcomes),
            }
        )
    return shown


def _make_loss_tables(proposal: Mapping[str, Any]) -> list[Table]:
    """Returns what is predicted of each language, and the law that says so."""
    whole, epochs = sum(proposal["ratio"].values()), proposal.get("epochs", {})
    in_bits = proposal["objective"]["unit"] == "bits_per_byte"
    rows, laws = [], []
    for tag, loss in proposal["losses"].items():
        row: list[Any] = [
            tag,
            render_with_interval(
                proposal["ratio"][tag] / whole, tuple(proposal["shares"][tag]), format_percent
            ),
            render_number(epochs.get(tag), format_significant),
            render_with_interval(loss["value"], tuple(loss["interval"]), _format_loss),
            format_interval(tuple(loss["same_seeds_interval"]), _format_loss),
            format_interval(tuple(loss["run_interval"]), _format_loss),
        ]
        if in_bits and "compared" in loss:
            ends = tuple(loss["compared_interval"])
            row.append(render_with_interval(loss["compared"], ends, _format_loss))
        rows.append(row)
        law = proposal["laws"][tag]
        laws.append([tag, law["form"], proposal_files.describe_errors(law)])
    header = ["language", "share", "epochs", "predicted loss", "of the same seeds"]
    header += ["of one other run", *["bits per byte"] * (len(rows[0]) - 6)]
    caption = (
        "95 % intervals; losses in nats per token: of the mean over all seeds, over the study’s "
        "seeds once they are run, and of one run with another seed. Epochs are how often each text "
        "is gone through." + " Bits per byte are what was compared." * (len(rows[0]) > 6)
    )
    about = "What predicts the loss of each language."
    return [Table(header, rows, caption), Table(["language", "law", "its errors"], laws, about)]


def _make_next_table(proposal: Mapping[str, Any]) -> Table | None:
    rows = [
        [
            proposal_files.format_next_ratio(run),
            run["runs"],
            render_number(run["tokens"], format_compact),
            render_number(run["parameters"], format_compact),
            format_percent(run["width"]),
        ]
        for run in proposal["next_runs"]
    ]
    header = ["ratio", "seeds", "tokens", "parameters", "width of the ratio’s interval then"]
    caption = (
        "Runs that would narrow the ratio most, each beside those before it. The width is of the "
        "present interval."
    )
    return Table(header, rows, caption) if rows else None


def _make_outcome_table(outcomes: list[proposal_files.Outcome]) -> Table | None:
    marks = {True: ("done", "inside"), False: ("failed", "outside")}
    rows = [
        [
            outcome.cell,
            outcome.language,
            ", ".join(map(str, outcome.seeds)),
            render_with_interval(outcome.predicted, outcome.interval, _format_loss),
            render_number(outcome.loss, _format_loss),
            get_pieces().marked(*marks[outcome.inside]),
        ]
        for outcome in outcomes
    ]
    header = ["cell", "language", "seeds", "predicted loss", "mean loss", "interval"]
    caption = (
        "Runs of this proposal that came after it, in nats per token. The interval is of the mean "
        "over the study’s seeds, or of one run with another seed."
    )
    return Table(header, rows, caption) if rows else None


def _format_loss(loss: float) -> str:
    return f"{loss:.4f}"
