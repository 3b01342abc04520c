"""What each figure of the reference study shows, as data: panels of lines, and heat maps.

A figure here has the panels, axes and series of the original, filled from any rows of the
form of reported.py: what was reported, or a study with other sizes, ratios and layers.
paper_figures.py draws the panels, and catalogue.py has the rows of their CSV from the same points.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

from imbalance_jax.drawing.panel import HeatMap, Line, Panel
from imbalance_jax.reference.paper_lines import (
    ResultPoint,
    collect_laws,
    compute_law_perplexity,
    find_share_key,
    list_distinct,
    list_models,
    make_lines,
    make_mlpe_lines,
    make_result_point,
    space_values_evenly,
)
from imbalance_jax.reference.reported import (
    PaperResult,
    get_base_language,
    parse_leading_number,
    select_figure_results,
)

KEYS_BIAS = "attn.linear_K.bias"  # its gradient is 0 but for rounding: nothing to compare


@dataclasses.dataclass(frozen=True)
class ResultMap(HeatMap):
    """A heat map with the results that its cells show."""

    results: Mapping[tuple[str, int], PaperResult] = dataclasses.field(default_factory=dict)
    mean: PaperResult | None = None  # over all cells


Panels = Sequence[Panel | ResultMap]


def make_clone_ratio_panels(rows: Sequence[PaperResult]) -> list[Panel]:
    """Figure 1 left: perplexity over the share of the second clone."""
    every, rows = rows, select_figure_results(rows, "Figure 1 left")
    key = find_share_key(rows)
    rows = [row for row in rows if key in row.setting]
    share = lambda row: float(row.setting[key])
    lines = make_lines(rows, "ppl", share, lambda row: row.language) if key else ()
    # The reference prints these of two ratios; its figure shows perplexities alone.
    others = [
        dataclasses.replace(line, kind="listed")
        for metric in ("teff", "mlte")
        for line in make_lines(rows, metric, share, lambda row: row.metric)
    ]
    if not lines:
        return []
    lines += (*make_mlpe_lines(rows, every, key), *others)
    return [Panel("perplexity", _format_share_label(key), lines)]


def _format_share_label(key: str) -> str:
    return f"share of {key.removeprefix('p_')} in the training data"


def make_glue_ratio_panels(rows: Sequence[PaperResult]) -> list[Panel]:
    """Figure 1 right: accuracy over the share of the second clone."""
    rows = select_figure_results(rows, "Figure 1 right")
    key = find_share_key(rows)
    share = lambda row: float(row.setting[key])
    titles = {
        "glue_acc": lambda row: "mean GLUE accuracy, trained on EN1 alone",
        "transfer_acc": lambda row: f"mean accuracy of {row.setting['tasks']}",
    }
    panels = []
    for metric, make_title in titles.items():
        of_metric = [row for row in rows if row.metric.startswith(metric)]
        for title in list_distinct([make_title(row) for row in of_metric]):
            shown = [row for row in of_metric if make_title(row) == title]
            lines = make_lines(shown, metric, share, lambda row: row.language)
            panels.append(Panel(title, _format_share_label(key), lines))
    return panels


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

    def make_panels(rows: Sequence[PaperResult]) -> list[Panel]:
        rows = _drop_equal_clones(select_figure_results(rows, figure))
        rows = [row for row in rows if math.isfinite(row.tokens)]
        if not rows:
            return []
        styles = list_distinct([_format_split_name(row) for row in rows])
        models = list_models(rows)
        lengths = {m: {r.tokens for r in rows if r.setting.get("model", "") == m} for m in models}
        longest = max(models, key=lambda model: len(lengths[model]))
        common = max(
            sorted({row.tokens for row in rows}), key=lambda x: sum(x in lengths[m] for m in models)
        )
        of_model = [row for row in rows if row.setting.get("model", "") == longest]
        of_length = [row for row in rows if row.tokens == common]
        sizes = [model for model in models if common in lengths[model]]
        place = lambda row: float(sizes.index(row.setting.get("model", "")))
        panels = []
        for metric, title in (("ppl", "perplexity"), ("teff", "token efficiency")):
            lines = make_lines(of_model, metric, lambda row: row.tokens, _format_split_name, styles)
            panels.append(Panel(f"{title}, {longest}", _TOTAL, lines, ticks=_list_ticks(lines)))
        for metric, title in (("ppl", "perplexity"), ("teff", "token efficiency")):
            lines = make_lines(of_length, metric, place, _format_split_name, styles)
            title = f"{title} at {common:g}x"
            panels.append(Panel(title, "size of the model", lines, names=tuple(sizes)))
        return [panel for panel in panels if panel.lines]

    return make_panels


def bind_all_sizes_panels(figure: str) -> Callable[[Sequence[PaperResult]], list[Panel]]:
    """Figures 9 and 10: a row for each size, with perplexity, MLTE and TEff over tokens."""

    def make_panels(rows: Sequence[PaperResult]) -> list[Panel]:
        rows = _drop_equal_clones(select_figure_results(rows, figure))
        rows = [row for row in rows if math.isfinite(row.tokens)]
        styles = list_distinct([_format_split_name(row) for row in rows])
        tokens = lambda row: row.tokens
        panels = []
        for model in list_models(rows):
            of_model = [row for row in rows if row.setting.get("model", "") == model]
            for metric, measure in (
                ("ppl", "perplexity"),
                ("mlte", "MLTE, in units of 1x"),
                ("teff", "token efficiency"),
            ):
                mlte = metric == "mlte"
                lines = make_lines(
                    of_model, metric, tokens, _format_split_name, styles, in_units=mlte
                )
                title, ticks = f"{model}: {measure}", _list_ticks(lines)
                # An empty panel too, so that each column keeps its measure.
                panels.append(Panel(title, _TOTAL, lines, ticks=ticks, diagonal=mlte))
        return panels if any(panel.lines for panel in panels) else []

    return make_panels


def _list_ticks(lines: Sequence[Line]) -> tuple[float, ...]:
    return tuple(sorted({point.x for line in lines for point in line.points}))


def make_language_ratio_panels(rows: Sequence[PaperResult]) -> list[Panel]:
    """Figure 3: perplexity and TEff over the share of French, for each vocabulary."""
    every, rows = rows, select_figure_results(rows, "Figure 3")
    key = find_share_key(rows)
    rows = [row for row in rows if key in row.setting]
    if not rows:
        return []
    languages = list_distinct([row.language for row in rows if row.metric.startswith("ppl_")])
    name = lambda row: f"{row.language} {_get_vocabulary_name(row)}"
    share = lambda row: float(row.setting[key])

    def styled(metric: str) -> tuple[Line, ...]:
        lines = []
        for line in make_lines(rows, metric, share, name):
            language, _, vocabulary = line.name.partition(" ")
            lines.append(
                dataclasses.replace(
                    line,
                    style=languages.index(language),
                    # The original's: French a circle, and grey within where pieces are anchored.
                    marker="o" if key == f"p_{language}" else "D",
                    fill="grey" if vocabulary == "anchored" else "none",
                )
            )
        return tuple(lines)

    expected = make_mlpe_lines(rows, every, key)
    panels = [Panel("perplexity", _format_share_label(key), (*styled("ppl"), *expected))]
    if lines := styled("teff"):
        panels.append(Panel("token efficiency", _format_share_label(key), lines))
    return panels


def _get_vocabulary_name(row: PaperResult) -> str:
    """Returns the first word of a vocabulary: disjoint, anchored, cloned."""
    return row.setting.get("vocab", "").replace("/", " ").partition(" ")[0]


def make_law_panels(rows: Sequence[PaperResult]) -> list[Panel]:
    """Figure 5: perplexity of monolingual models over tokens, a row for each language."""
    rows = select_figure_results(rows, "Figure 5")
    laws = collect_laws(rows)
    measured = [row for row in rows if row.metric.startswith("ppl_")]
    languages = list_distinct([get_base_language(row.language) for row in measured])
    panels = []
    for index, language in enumerate(languages):
        for model in list_models(measured):
            of_model = [
                row
                for row in measured
                if get_base_language(row.language) == language and row.setting.get("model") == model
            ]
            lines = make_lines(of_model, "ppl", lambda row: row.tokens, lambda _: "runs", ["runs"])
            law = laws.get((language, model))
            lines = tuple(
                dataclasses.replace(line, style=index, kind="points" if law else "line")
                for line in lines
            )
            if law and lines:
                lines += _make_law_lines(law, lines[0], index, rows, (language, model))
            title = f"{language}, {model}: perplexity"
            label = "training tokens, in units of 1x"
            panels.append(Panel(title, label, lines, x_scale="log", y_scale="log"))
    return panels


def _make_law_lines(
    law: tuple[float, float, float],
    measured: Line,
    style: int,
    rows: Sequence[PaperResult],
    of_law: tuple[str, str],
) -> tuple[Line, Line]:
    """Returns the curve of a law and its parameters."""
    low, high = measured.points[0].x, measured.points[-1].x
    xs = [math.exp(x) for x in space_values_evenly(math.log(low), math.log(high))]
    points = tuple(ResultPoint(x, compute_law_perplexity(law, x)) for x in xs)
    curve = Line("law", points, "curve", style)
    a, b, c = law
    parameters = tuple(
        make_result_point(math.nan, row)
        for row in rows
        if row.metric.startswith("law_")
        and (row.setting["languages"], row.setting["model"]) == of_law
    )
    text = f"a = {a:.4g}\nb = {b:.4g}\nc = {c:.4g}"
    return curve, Line("law", parameters, "text", style, text=text)


def make_embedding_ratio_panels(rows: Sequence[PaperResult]) -> list[Panel]:
    """Figure 6: cosines of clones' embeddings over the share of the second clone."""
    rows = select_figure_results(rows, "Figure 6")
    key = find_share_key(rows)
    name = lambda row: f"{row.setting['embedding']}, {row.setting['pairs']}"
    share = lambda row: float(row.setting[key])
    styles = list_distinct([name(row) for row in rows])
    panels = []
    for model in list_distinct([row.setting.get("model", "") for row in rows]):
        of_model = [row for row in rows if row.setting.get("model", "") == model]
        lines = make_lines(of_model, "embedding_cossim", share, name, styles)
        title = f"cosine of embeddings, {model}"
        panels.append(Panel(title, _format_share_label(key), lines, y_range=(0, 1)))
    return panels


def make_frequency_panels(rows: Sequence[PaperResult]) -> list[Panel]:
    """Figure 7: cosine of clones' input embeddings over how often a piece occurs."""
    rows = select_figure_results(rows, "Figure 7")
    key = find_share_key(rows)
    name = lambda row: f"p({key.removeprefix('p_')}) = {float(row.setting[key]):g}"
    lines = make_lines(rows, "clone_cossim_input", _compute_bin_centre, name)
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
    languages = list_distinct([row.language for row in points])
    # The original shows the first clone alone.
    points = [row for row in points if row.language == languages[0]]
    anchored = lambda row: float(row.setting["anchor_fraction"])
    lines = make_lines(points, "ppl", anchored, lambda row: row.language)
    if not lines:
        return []
    total = max(row.tokens for row in points)
    levels = tuple(
        Line(
            f"{100 * row.tokens / total:.3g} % of the data, alone",
            (make_result_point(math.nan, row),),
            "level",
        )
        for row in sorted(rows, key=lambda row: -row.value)
        if "anchor_fraction" not in row.setting and row.metric.startswith("ppl_")
    )
    return [Panel("perplexity", "share of the vocabulary in common", lines + levels)]


def bind_gradient_maps(figure: str) -> Callable[[Sequence[PaperResult]], list[ResultMap]]:
    """Figures 11 to 13: cosine of gradients, for each parameter and layer."""

    def make_maps(rows: Sequence[PaperResult]) -> list[ResultMap]:
        rows = select_figure_results(rows, figure)
        keys = ("split", "model") if len(list_models(rows)) > 1 else ("split",)
        name = lambda row: ", ".join(row.setting[key] for key in keys)
        maps = []
        for title in list_distinct([name(row) for row in rows]):
            of_map = [row for row in rows if name(row) == title]
            results = {
                (row.setting["param"], int(row.setting["layer"])): row
                for row in of_map
                if row.metric == "gradient_cossim"
            }
            maps.append(
                ResultMap(
                    title,
                    tuple(sorted({parameter for parameter, _ in results})),
                    tuple(sorted({layer for _, layer in results})),
                    {place: row.value for place, row in results.items()},
                    framed=KEYS_BIAS,
                    results=results,
                    mean=next((r for r in of_map if r.metric == "gradient_cossim_mean"), None),
                )
            )
        return maps

    return make_maps
