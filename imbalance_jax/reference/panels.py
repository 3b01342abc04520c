"""What each figure of the reference study shows, as data: panels of lines, and heat maps.

A figure here has the panels, axes and series of the original, filled from any rows of the
form of reference.py: what was reported, or a study with other sizes, ratios and layers.
paper_figures.py draws the panels and writes them down as CSV, both from the same points.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from imbalance_jax import config as config_lib
from imbalance_jax.reference.reported import (
    PaperResult,
    get_base_language,
    parse_leading_number,
    select_figure_results,
)

KEYS_BIAS = "attn.linear_K.bias"  # its gradient is 0 but for rounding: nothing to compare
_CURVE_POINTS = 60


@dataclasses.dataclass(frozen=True)
class Point:
    """A result in a panel, or a place on a curve that is computed from other results."""

    x: float
    y: float
    result: PaperResult | None


@dataclasses.dataclass(frozen=True)
class Line:
    """A series of a panel.

    Its kind is "line" (points, joined), "curve" (computed, without markers), "level" (dotted,
    across the panel), "text" (written in the panel) or "listed" (in the CSV alone).
    """

    name: str
    points: tuple[Point, ...]
    kind: str = "line"
    style: int = 0  # its place among colours, markers and line styles
    marker: str = ""  # in place of the style's
    fill: str = "own"  # of the marker: its own colour, "none" or "grey"
    text: str = ""  # of the kind "text"
    joined: bool = True  # whether a line goes from point to point


@dataclasses.dataclass(frozen=True)
class Panel:
    """One pair of axes.

    The x axis counts in "linear" or "log" fashion, or has a place for each of `names`.
    """

    title: str
    x_label: str
    lines: tuple[Line, ...]
    reported: tuple[Line, ...] = ()  # of the reference, to be drawn behind
    x_scale: str = "linear"
    y_scale: str = "linear"
    y_range: tuple[float, float] | None = None
    names: tuple[str, ...] = ()
    ticks: tuple[float, ...] = ()
    diagonal: bool = False  # a line of equal x and y


@dataclasses.dataclass(frozen=True)
class HeatMap:
    """A value for each parameter and layer."""

    title: str
    rows: tuple[str, ...]
    columns: tuple[int, ...]
    cells: Mapping[tuple[str, int], PaperResult]
    mean: PaperResult | None = None  # over all cells


Panels = Sequence[Panel | HeatMap]


# Lines of results.


def _make_lines(
    rows: Sequence[PaperResult],
    metric: str,
    x: Callable[[PaperResult], float],
    name: Callable[[PaperResult], str],
    styles: Sequence[str] = (),
) -> tuple[Line, ...]:
    """Returns a line for each name among the rows of a metric, its points in ascending x.

    Args:
      metric: what the metrics' names begin with, such as ppl.
      styles: all names of the figure; a line's style is its place among them.
    """
    found: dict[str, list[Point]] = {}
    for row in rows:
        if row.metric == metric or row.metric.startswith(f"{metric}_"):
            found.setdefault(name(row), []).append(Point(x(row), row.value, row))
    names = list(styles) or list(found)
    return tuple(
        Line(key, tuple(sorted(points, key=lambda p: p.x)), style=names.index(key))
        for key, points in found.items()
    )


def _list_distinct(values: Sequence[str]) -> list[str]:
    """Returns the distinct values in the order in which they are first seen."""
    return list(dict.fromkeys(values))


def _estimate_model_size(model: str) -> float:
    """Returns about how many parameters the blocks of a model have: N D^2.

    Of a scale of the config, or a size written as NxD; infinite for others, which come last.
    """
    if model in config_lib.SCALES:
        scale = config_lib.SCALES[model]
        return scale["model.N"] * scale["model.D"] ** 2
    depth, _, width = model.partition("x")
    return float(depth) * float(width) ** 2 if depth.isdigit() and width.isdigit() else math.inf


def _list_models(rows: Sequence[PaperResult]) -> list[str]:
    """Returns the models, the smallest first."""
    return sorted(
        _list_distinct([row.setting.get("model", "") for row in rows]), key=_estimate_model_size
    )


# Laws, and what a monolingual model would reach.


def collect_laws(rows: Sequence[PaperResult]) -> dict[tuple[str, str], tuple[float, float, float]]:
    """Returns a, b and c of 1/PPL = c - a x^-b for each (language, model) that has them."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        if row.metric in ("law_a", "law_b", "law_c"):
            key = (row.setting["languages"], row.setting["model"])
            found.setdefault(key, {})[row.metric[-1]] = row.value
    return {key: (law["a"], law["b"], law["c"]) for key, law in found.items() if len(law) == 3}


def compute_law_perplexity(law: tuple[float, float, float], x: float) -> float:
    """Returns 1 / (c - a x^-b); NaN where the law has none."""
    a, b, c = law
    inverse = c - a * x**-b if x > 0 else math.nan
    return 1 / inverse if inverse > 0 else math.nan


def _space_values_evenly(low: float, high: float) -> list[float]:
    return [low + (high - low) * k / (_CURVE_POINTS - 1) for k in range(_CURVE_POINTS)]


def _make_mlpe_lines(
    rows: Sequence[PaperResult], every: Sequence[PaperResult], key: str
) -> tuple[Line, ...]:
    """Returns the MLPE of each language over the share of the one that the key names.

    The curve of the law where there is one, with what was given for single ratios.
    """
    found = []
    languages = _list_distinct([row.language for row in rows if row.metric.startswith("ppl_")])
    known = collect_laws(every)
    for index, language in enumerate(languages):
        own = [row for row in rows if row.metric == f"ppl_{language}"]
        given = [row for row in rows if row.metric == f"mlpe_{language}"]
        points = [Point(float(row.setting[key]), row.value, row) for row in given]
        model = own[0].setting.get("model", "")
        law = known.get((get_base_language(language), model))
        drawn = []
        if law:
            shares = [float(row.setting[key]) for row in own]
            for share in _space_values_evenly(min(shares), max(shares)):
                mine = share if key == f"p_{language}" else 1 - share
                drawn.append(Point(share, compute_law_perplexity(law, own[0].tokens * mine), None))
        # A law that is not the one behind the given values must not bend their curve.
        if all(_passes_near_point(drawn, point) for point in points):
            points += drawn
        if points:
            points.sort(key=lambda point: point.x)
            found.append(Line(f"MLPE {language}", tuple(points), "curve", index))
    return tuple(found)


def _passes_near_point(curve: Sequence[Point], point: Point) -> bool:
    """Returns whether a curve passes a point within a hundredth, between its vertices."""
    if not curve:
        return False
    xs, ys = [vertex.x for vertex in curve], [vertex.y for vertex in curve]
    return math.isclose(float(np.interp(point.x, xs, ys)), point.y, rel_tol=0.01)


def _find_share_key(rows: Sequence[PaperResult]) -> str:
    """Returns the setting that says how much of a language a mixture has, such as p_EN2."""
    return next((key for row in rows for key in row.setting if key.startswith("p_")), "")


# The figures.


def make_clone_ratio_panels(rows: Sequence[PaperResult]) -> list[Panel]:
    """Figure 1 left: perplexity over the share of the second clone."""
    every, rows = rows, select_figure_results(rows, "Figure 1 left")
    key = _find_share_key(rows)
    rows = [row for row in rows if key in row.setting]
    share = lambda row: float(row.setting[key])
    lines = _make_lines(rows, "ppl", share, lambda row: row.language) if key else ()
    # The reference prints these of two ratios; its figure shows perplexities alone.
    others = [
        dataclasses.replace(line, kind="listed")
        for metric in ("teff", "mlte")
        for line in _make_lines(rows, metric, share, lambda row: row.metric)
    ]
    if not lines:
        return []
    lines += (*_make_mlpe_lines(rows, every, key), *others)
    return [Panel("perplexity", _format_share_label(key), lines)]


def _format_share_label(key: str) -> str:
    return f"share of {key.removeprefix('p_')} in the training data"


def make_glue_ratio_panels(rows: Sequence[PaperResult]) -> list[Panel]:
    """Figure 1 right: accuracy over the share of the second clone."""
    rows = select_figure_results(rows, "Figure 1 right")
    key = _find_share_key(rows)
    share = lambda row: float(row.setting[key])
    titles = {
        "glue_acc": lambda row: "mean GLUE accuracy, trained on EN1 alone",
        "transfer_acc": lambda row: f"mean accuracy of {row.setting['tasks']}",
    }
    found = []
    for metric, title in titles.items():
        mine = [row for row in rows if row.metric.startswith(metric)]
        for name in _list_distinct([title(row) for row in mine]):
            here = [row for row in mine if title(row) == name]
            lines = _make_lines(here, metric, share, lambda row: row.language)
            found.append(Panel(name, _format_share_label(key), lines))
    return found


def _format_split_name(row: PaperResult) -> str:
    """Returns such as "90/10 EN2", or "50/50" of clones, which are all alike there."""
    split = row.setting["split"]
    return split if _has_equal_clones(row) else f"{split} {row.language}"


def _has_equal_clones(row: PaperResult) -> bool:
    languages = row.setting["languages"].split("+")
    parts = row.setting["split"].split("/")
    return (
        len(languages) > 1
        and len(set(parts)) == 1
        and len({get_base_language(language) for language in languages}) == 1
    )


def _drop_equal_clones(rows: Sequence[PaperResult]) -> list[PaperResult]:
    """Leaves out all but the first of clones in equal parts, as the reference does."""
    return [
        row
        for row in rows
        if not _has_equal_clones(row) or row.setting["languages"].startswith(f"{row.language}+")
    ]


_TOTAL = "all training tokens, in units of 1x"


def bind_scaling_panels(figure: str) -> Callable[[Sequence[PaperResult]], list[Panel]]:
    """Figures 2 and 4: perplexity and TEff over tokens, then over size at about equal tokens."""

    def panels(rows: Sequence[PaperResult]) -> list[Panel]:
        rows = _drop_equal_clones(select_figure_results(rows, figure))
        rows = [row for row in rows if math.isfinite(row.tokens)]
        if not rows:
            return []
        styles = _list_distinct([_format_split_name(row) for row in rows])
        models = _list_models(rows)
        lengths = {m: {r.tokens for r in rows if r.setting.get("model", "") == m} for m in models}
        longest = max(models, key=lambda model: len(lengths[model]))
        common = max(
            sorted({row.tokens for row in rows}), key=lambda x: sum(x in lengths[m] for m in models)
        )
        of_model = [row for row in rows if row.setting.get("model", "") == longest]
        of_length = [row for row in rows if row.tokens == common]
        sizes = [model for model in models if common in lengths[model]]
        place = lambda row: float(sizes.index(row.setting.get("model", "")))
        found = []
        for metric, title in (("ppl", "perplexity"), ("teff", "token efficiency")):
            drawn = _make_lines(
                of_model, metric, lambda row: row.tokens, _format_split_name, styles
            )
            found.append(Panel(f"{title}, {longest}", _TOTAL, drawn, ticks=_list_ticks(drawn)))
        for metric, title in (("ppl", "perplexity"), ("teff", "token efficiency")):
            drawn = _make_lines(of_length, metric, place, _format_split_name, styles)
            panel = Panel(f"{title} at {common:g}x", "size of the model", drawn, names=tuple(sizes))
            found.append(panel)
        return [panel for panel in found if panel.lines]

    return panels


def bind_all_sizes_panels(figure: str) -> Callable[[Sequence[PaperResult]], list[Panel]]:
    """Figures 9 and 10: a row for each size, with perplexity, MLTE and TEff over tokens."""

    def panels(rows: Sequence[PaperResult]) -> list[Panel]:
        rows = _drop_equal_clones(select_figure_results(rows, figure))
        rows = [row for row in rows if math.isfinite(row.tokens)]
        styles = _list_distinct([_format_split_name(row) for row in rows])
        found = []
        for model in _list_models(rows):
            mine = [row for row in rows if row.setting.get("model", "") == model]
            for metric, title in (
                ("ppl", "perplexity"),
                ("mlte", "MLTE, in units of 1x"),
                ("teff", "token efficiency"),
            ):
                drawn = _make_lines(
                    mine, metric, lambda row: row.tokens, _format_split_name, styles
                )
                if metric == "mlte":
                    drawn = tuple(map(_scale_line_to_units, drawn))
                # An empty panel too, so that each column keeps its measure.
                found.append(
                    Panel(
                        f"{model}: {title}",
                        _TOTAL,
                        drawn,
                        ticks=_list_ticks(drawn),
                        diagonal=metric == "mlte",
                    )
                )
        return found if any(panel.lines for panel in found) else []

    return panels


def _scale_line_to_units(line: Line) -> Line:
    points = tuple(
        dataclasses.replace(point, y=point.y / point.result.unit_tokens)
        for point in line.points
        if point.result
    )
    return dataclasses.replace(line, points=points)


def _list_ticks(lines: Sequence[Line]) -> tuple[float, ...]:
    return tuple(sorted({point.x for line in lines for point in line.points}))


def make_language_ratio_panels(rows: Sequence[PaperResult]) -> list[Panel]:
    """Figure 3: perplexity and TEff over the share of French, for each vocabulary."""
    every, rows = rows, select_figure_results(rows, "Figure 3")
    key = _find_share_key(rows)
    rows = [row for row in rows if key in row.setting]
    if not rows:
        return []
    languages = _list_distinct([row.language for row in rows if row.metric.startswith("ppl_")])
    name = lambda row: f"{row.language} {_get_vocabulary_name(row)}"
    share = lambda row: float(row.setting[key])

    def styled(metric: str) -> tuple[Line, ...]:
        found = []
        for line in _make_lines(rows, metric, share, name):
            language, _, vocabulary = line.name.partition(" ")
            found.append(
                dataclasses.replace(
                    line,
                    style=languages.index(language),
                    # The original's: French a circle, and grey within where pieces are anchored.
                    marker="o" if key == f"p_{language}" else "D",
                    fill="grey" if vocabulary == "anchored" else "none",
                )
            )
        return tuple(found)

    expected = _make_mlpe_lines(rows, every, key)
    found = [Panel("perplexity", _format_share_label(key), (*styled("ppl"), *expected))]
    if lines := styled("teff"):
        found.append(Panel("token efficiency", _format_share_label(key), lines))
    return found


def _get_vocabulary_name(row: PaperResult) -> str:
    """Returns the first word of a vocabulary: disjoint, anchored, cloned."""
    return row.setting.get("vocab", "").replace("/", " ").partition(" ")[0]


def make_law_panels(rows: Sequence[PaperResult]) -> list[Panel]:
    """Figure 5: perplexity of monolingual models over tokens, a row for each language."""
    rows = select_figure_results(rows, "Figure 5")
    known = collect_laws(rows)
    measured = [row for row in rows if row.metric.startswith("ppl_")]
    languages = _list_distinct([get_base_language(row.language) for row in measured])
    found = []
    for index, language in enumerate(languages):
        for model in _list_models(measured):
            mine = [
                row
                for row in measured
                if get_base_language(row.language) == language and row.setting.get("model") == model
            ]
            lines = _make_lines(mine, "ppl", lambda row: row.tokens, lambda _: "runs", ["runs"])
            law = known.get((language, model))
            lines = tuple(
                dataclasses.replace(line, style=index, joined=law is None) for line in lines
            )
            if law and lines:
                lines += _make_law_lines(law, lines[0], index, rows, (language, model))
            title = f"{language}, {model}: perplexity"
            label = "training tokens, in units of 1x"
            found.append(Panel(title, label, lines, x_scale="log", y_scale="log"))
    return found


def _make_law_lines(
    law: tuple[float, float, float],
    measured: Line,
    style: int,
    rows: Sequence[PaperResult],
    of_law: tuple[str, str],
) -> tuple[Line, Line]:
    """Returns the curve of a law and its parameters."""
    low, high = measured.points[0].x, measured.points[-1].x
    xs = [math.exp(x) for x in _space_values_evenly(math.log(low), math.log(high))]
    curve = Line(
        "law", tuple(Point(x, compute_law_perplexity(law, x), None) for x in xs), "curve", style
    )
    a, b, c = law
    given = [
        row
        for row in rows
        if row.metric.startswith("law_")
        and (row.setting["languages"], row.setting["model"]) == of_law
    ]
    points = tuple(Point(math.nan, row.value, row) for row in given)
    text = f"a = {a:.4g}\nb = {b:.4g}\nc = {c:.4g}"
    return curve, Line("law", points, "text", style, text=text)


def make_embedding_ratio_panels(rows: Sequence[PaperResult]) -> list[Panel]:
    """Figure 6: cosines of clones' embeddings over the share of the second clone."""
    rows = select_figure_results(rows, "Figure 6")
    key = _find_share_key(rows)
    name = lambda row: f"{row.setting['embedding']}, {row.setting['pairs']}"
    styles = _list_distinct([name(row) for row in rows])
    found = []
    for model in _list_distinct([row.setting.get("model", "") for row in rows]):
        mine = [row for row in rows if row.setting.get("model", "") == model]
        lines = _make_lines(mine, "embedding_cossim", lambda r: float(r.setting[key]), name, styles)
        title = f"cosine of embeddings, {model}"
        found.append(Panel(title, _format_share_label(key), lines, y_range=(0, 1)))
    return found


def make_frequency_panels(rows: Sequence[PaperResult]) -> list[Panel]:
    """Figure 7: cosine of clones' input embeddings over how often a piece occurs."""
    rows = select_figure_results(rows, "Figure 7")
    key = _find_share_key(rows)
    name = lambda row: f"p({key.removeprefix('p_')}) = {float(row.setting[key]):g}"
    lines = _make_lines(rows, "clone_cossim_input", _compute_bin_centre, name)
    title = "cosine of clones' input embeddings"
    return [Panel(title, "occurrences of the piece in the training text", lines, x_scale="log")]


def _compute_bin_centre(row: PaperResult) -> float:
    """Returns the geometric centre of a bin with edges such as 10^0.25."""
    low, high = (
        10 ** parse_leading_number(edge.removeprefix("10^"))
        if edge.startswith("10^")
        else float(edge)
        for edge in (row.setting["freq_lo"], row.setting["freq_hi"])
    )
    return math.sqrt(low * high)


def make_anchor_panels(rows: Sequence[PaperResult]) -> list[Panel]:
    """Figure 8: perplexity over the share of pieces that the clones have in common."""
    rows = select_figure_results(rows, "Figure 8")
    points = [row for row in rows if "anchor_fraction" in row.setting]
    languages = _list_distinct([row.language for row in points])
    # The original shows the first clone alone.
    points = [row for row in points if row.language == languages[0]]
    anchored = lambda row: float(row.setting["anchor_fraction"])
    lines = _make_lines(points, "ppl", anchored, lambda row: row.language)
    if not lines:
        return []
    total = max(row.tokens for row in points)
    levels = tuple(
        Line(
            f"{100 * row.tokens / total:.3g} % of the data, alone",
            (Point(math.nan, row.value, row),),
            "level",
        )
        for row in sorted(rows, key=lambda row: -row.value)
        if "anchor_fraction" not in row.setting and row.metric.startswith("ppl_")
    )
    return [Panel("perplexity", "share of the vocabulary in common", lines + levels)]


def bind_gradient_maps(figure: str) -> Callable[[Sequence[PaperResult]], list[HeatMap]]:
    """Figures 11 to 13: cosine of gradients, for each parameter and layer."""

    def maps(rows: Sequence[PaperResult]) -> list[HeatMap]:
        rows = select_figure_results(rows, figure)
        name = lambda row: ", ".join(
            row.setting[key]
            for key in ("split", "model")
            if key == "split" or len(_list_models(rows)) > 1
        )
        found = []
        for title in _list_distinct([name(row) for row in rows]):
            mine = [row for row in rows if name(row) == title]
            cells = {
                (row.setting["param"], int(row.setting["layer"])): row
                for row in mine
                if row.metric == "gradient_cossim"
            }
            mean = next((row for row in mine if row.metric == "gradient_cossim_mean"), None)
            parameters = tuple(sorted({parameter for parameter, _ in cells}))
            layers = tuple(sorted({layer for _, layer in cells}))
            found.append(HeatMap(title, parameters, layers, cells, mean))
        return found

    return maps
