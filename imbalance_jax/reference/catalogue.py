"""The figures of the reference study by name: what they are, and their panels as rows.

panels.py fills the panels; here they are listed, laid over what was reported, and
turned into the rows of a CSV of exactly what is shown.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

from imbalance_jax.drawing.panel import HeatMap, Panel
from imbalance_jax.reference import panels as paper_panels
from imbalance_jax.reference.panels import Panels, ResultMap
from imbalance_jax.reference.reported import PaperResult


@dataclasses.dataclass(frozen=True)
class PaperFigure:
    """A figure of the reference study."""

    title: str
    reading: str  # a sentence that says what it shows as it was reported
    panels: Callable[[Sequence[PaperResult]], Panels]
    columns: int = 1  # of panels


FIGURES: Mapping[str, PaperFigure] = {
    "Figure 1 left": PaperFigure(
        "Cloned English: perplexity against the ratio",
        "A rare clone does far better than the same data alone would let it (dashed: MLPE, from "
        "the law), a frequent one about as well; in equal parts both do slightly worse.",
        paper_panels.make_clone_ratio_panels,
    ),
    "Figure 1 right": PaperFigure(
        "Cloned English: GLUE accuracy against the ratio",
        "After fine-tuning in EN1 alone, EN2 is solved only where it was rare in pretraining.",
        paper_panels.make_glue_ratio_panels,
    ),
    "Figure 2": PaperFigure(
        "Cloned English: more data and larger models",
        "With more tokens and with size the rare clone of 90/10 meets and then beats the clones "
        "of 50/50.",
        paper_panels.bind_scaling_panels("Figure 2"),
        columns=2,
    ),
    "Figure 3": PaperFigure(
        "English and French: the ratio, with and without shared pieces",
        "Either language gains while it is rare and loses in between; pieces in common help.",
        paper_panels.make_language_ratio_panels,
        columns=2,
    ),
    "Figure 4": PaperFigure(
        "English and French, anchored: more data and larger models",
        "Unlike among clones, what French gains at 90/10 shrinks as the data grow.",
        paper_panels.bind_scaling_panels("Figure 4"),
        columns=2,
    ),
    "Figure 5": PaperFigure(
        "Monolingual scaling laws",
        "Each size and language has a law of its own, 1/PPL = c − a x^(−b), x in units of 1x, from "
        "which MLPE and MLTE follow.",
        paper_panels.make_law_panels,
        columns=3,
    ),
    "Figure 6": PaperFigure(
        "Cosine of clones' embeddings against the ratio",
        "Input embeddings of clones are alike where one clone is rare; word2vec, which sees no "
        "more than neighbouring pieces, does not align them.",
        paper_panels.make_embedding_ratio_panels,
        columns=2,
    ),
    "Figure 7": PaperFigure(
        "Cosine of clones' input embeddings by frequency",
        "Frequent pieces are aligned first, and the more the rarer the second clone is.",
        paper_panels.make_frequency_panels,
    ),
    "Figure 8": PaperFigure(
        "Cloned English, 50/50, with anchors",
        "One piece in twenty in common takes most of the loss away; dotted: a model of EN1 "
        "alone on a part of the data.",
        paper_panels.make_anchor_panels,
    ),
    "Figure 9": PaperFigure(
        "Cloned English: all sizes",
        "Perplexity, the monolingual tokens that it is worth, and their ratio to the tokens of "
        "that language; on the diagonal a language is worth all tokens of both.",
        paper_panels.bind_all_sizes_panels("Figure 9"),
        columns=3,
    ),
    "Figure 10": PaperFigure(
        "English and French, anchored: all sizes",
        "As Figure 9, for two real languages with shared pieces.",
        paper_panels.bind_all_sizes_panels("Figure 10"),
        columns=3,
    ),
    "Figure 11": PaperFigure(
        "Cosine of gradients of clones",
        "Blue below 0, red above. With 90/10 the gradients of the two clones point the same way "
        "in almost all parameters. The framed row is rounding noise.",
        paper_panels.bind_gradient_maps("Figure 11"),
        columns=2,
    ),
    "Figure 12": PaperFigure(
        "Cosine of gradients of English and French, disjoint",
        "Blue below 0, red above. The ratio changes almost nothing. The framed row is rounding "
        "noise.",
        paper_panels.bind_gradient_maps("Figure 12"),
        columns=2,
    ),
    "Figure 13": PaperFigure(
        "Cosine of gradients of English and French, anchored",
        "Blue below 0, red above. Shared pieces raise the cosines; the ratio does not. The "
        "framed row is rounding noise.",
        paper_panels.bind_gradient_maps("Figure 13"),
        columns=2,
    ),
}


def make_figure_panels(
    name: str, results: Sequence[PaperResult], reference: Sequence[PaperResult] = ()
) -> Panels:
    """Returns the panels of a figure, empty where no result belongs to it.

    Args:
      name: one of `FIGURES`.
      results: of a study, or what was reported; those of other figures are passed over.
      reference: what was reported, to be shown behind the results.
    """
    figure = FIGURES[name]
    panels = figure.panels(results)
    if not any(_has_content(panel) for panel in panels):
        return []
    return _overlay_reported(panels, figure.panels(reference)) if reference else panels


def _has_content(panel: Panel | HeatMap) -> bool:
    return bool(panel.cells if isinstance(panel, HeatMap) else panel.lines)


def _overlay_reported(panels: Panels, reported: Panels) -> list[Panel | ResultMap]:
    """Returns the panels with what was reported for the same lines; heat maps side by side."""
    lines = {panel.title: panel.lines for panel in reported if isinstance(panel, Panel)}
    overlaid: list[Panel | ResultMap] = []
    for panel in panels:
        if isinstance(panel, Panel):
            names = {line.name for line in panel.lines}
            behind = [
                dataclasses.replace(
                    line, kind="points", colour="muted", fill="none", size=7, labelled=False
                )
                for line in lines.get(panel.title, ())
                if line.kind in ("line", "points") and line.name in names
            ]
            panel = dataclasses.replace(panel, behind=tuple(behind))
        overlaid.append(panel)
    maps = [panel for panel in reported if isinstance(panel, ResultMap)]
    titled = [dataclasses.replace(each, title=f"reported: {each.title}") for each in maps]
    return overlaid + titled


def list_shown_rows(panels: Panels) -> list[dict[str, object]]:
    """Returns a row for each point, curve vertex, cell and number that the panels show."""
    rows = []
    for panel in panels:
        if isinstance(panel, ResultMap):
            for (parameter, layer), result in panel.results.items():
                rows.append(
                    _make_shown_row(panel.title, parameter, "cell", layer, result.value, result)
                )
            if panel.mean:
                mean = panel.mean
                rows.append(
                    _make_shown_row(panel.title, "mean", "title", math.nan, mean.value, mean)
                )
            continue
        for prefix, lines in (("", panel.lines), ("reported ", panel.behind)):
            for line in lines:
                kind = "point" if line.kind in ("line", "points") else line.kind
                for point in line.points:
                    shown = getattr(point, "result", None)
                    rows.append(
                        _make_shown_row(
                            panel.title, line.name, prefix + kind, point.x, point.y, shown
                        )
                    )
    return rows


def _make_shown_row(
    panel: str, series: str, how: str, x: float, y: float, result: PaperResult | None
) -> dict[str, object]:
    # The interval and the seeds are in the metric's own unit, as `value` is.
    return {
        "panel": panel,
        "series": series,
        "shown_as": how,
        "x": "" if math.isnan(x) else x,
        "y": y,
        "metric": result.metric if result else "",
        "value": result.value if result else "",
        "low": "" if result is None or math.isnan(result.low) else result.low,
        "high": "" if result is None or math.isnan(result.high) else result.high,
        "seeds": " ".join(map(repr, result.values)) if result else "",
        "setting": "; ".join(f"{k}={v}" for k, v in result.setting.items()) if result else "",
        "source": result.source if result else "law",
    }
