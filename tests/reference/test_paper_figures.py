"""Every figure of the reference study is drawn from what was reported, and from a study."""

import csv
import dataclasses
import html.parser
import math
import pathlib
import xml.etree.ElementTree

import pytest

from imbalance_jax.reference import (
    catalogue as paper_catalogue,
)
from imbalance_jax.reference import (
    panels as paper_panels,
)
from imbalance_jax.reference import (
    paper_figures,
    paper_lines,
    paper_page,
    paper_tables,
)
from imbalance_jax.reference import (
    reported as reference,
)
from imbalance_jax.reference.catalogue import FIGURES
from imbalance_jax.reference.panels import HeatMap
from imbalance_jax.reference.reported import PaperResult

UNIT = 1_000_000


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of what was reported, with all of its files beside it; drawing takes seconds."""
    written = paper_page.write_reference_page(tmp_path_factory.mktemp("reports") / "reference")
    return pathlib.Path(written)


def read_csv(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def studied(rows, spread=0.02):
    """Returns the rows as a study's: three seeds, an interval, other values."""
    found = []
    for row in rows:
        values = tuple(1.1 * row.value * (1 + spread * k) for k in (-1, 0, 1))
        low, high = sorted((values[0], values[-1]))
        found.append(dataclasses.replace(row, value=values[1], low=low, high=high, values=values))
    return found


def test_all_fourteen_figures_and_four_tables_are_written(page):
    stems = {path.stem for path in page.parent.iterdir() if path.suffix == ".csv"}
    names = (*FIGURES, *paper_tables.TABLES, "ratio laws")  # the last is ours
    assert stems == {paper_figures.make_file_stem(name) for name in names}
    assert len(FIGURES) == 14 and len(paper_tables.TABLES) == 4
    assert paper_figures.list_left_out_figures(reference.read_reference_results()) == []
    for name in FIGURES:
        stem = page.parent / paper_figures.make_file_stem(name)
        assert stem.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
        xml.etree.ElementTree.parse(stem.with_suffix(".svg"))


def test_every_reported_row_of_a_figure_is_in_its_csv(page):
    shown = set()
    for name in FIGURES:
        for row in read_csv(page.parent / f"{paper_figures.make_file_stem(name)}.csv"):
            if row["metric"]:
                shown.add((name, row["setting"], row["metric"], float(row["value"])))
    for row in reference.read_reference_results():
        if row.figure.startswith("Figure"):
            setting = "; ".join(f"{key}={value}" for key, value in row.setting.items())
            assert any(
                (name, setting, row.metric, row.value) in shown
                for name in reference.split_figure_names(row.figure)
            )


def test_the_page_shows_each_of_them_once_and_is_well_formed(page):
    text = page.read_text(encoding="utf-8")
    open_tags: list[str] = []

    class Parser(html.parser.HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "link", "br"):
                open_tags.append(tag)

        def handle_endtag(self, tag):
            assert open_tags.pop() == tag

    parser = Parser()
    parser.feed(text)
    parser.close()
    assert not open_tags
    assert text.count("<figure>") == 14 and text.count("<table>") == 5
    for name in FIGURES:
        assert text.count(f"<h2>{name}. ") == 1
    assert "{{" not in text and "nan" not in text.lower().replace("dominant", "")


@pytest.mark.parametrize("name", FIGURES)
def test_points_lie_where_the_results_are(name):
    panels = FIGURES[name].panels(reference.read_reference_results())
    for panel in panels:
        if isinstance(panel, HeatMap):
            assert len(panel.cells) == 192
            continue
        assert panel.lines
        for line in panel.lines:
            for point in line.points:
                if point.result is None:
                    continue
                unit = reference.UNIT_TOKENS if "MLTE" in panel.title else 1
                assert point.y == pytest.approx(point.result.value / unit)


def test_panels_are_those_of_the_original():
    titles = {
        name: [panel.title for panel in FIGURES[name].panels(reference.read_reference_results())]
        for name in FIGURES
    }
    assert titles["Figure 2"] == [
        "perplexity, small",
        "token efficiency, small",
        "perplexity at 1x",
        "token efficiency at 1x",
    ]
    assert [title.partition(":")[0] for title in titles["Figure 9"][::3]] == [
        "mini",
        "small",
        "medium",
    ]
    assert len(titles["Figure 5"]) == 6
    assert titles["Figure 11"] == ["50/50", "90/10"]
    assert FIGURES["Figure 6"].panels(reference.read_reference_results())[0].y_range == (0, 1)


def test_the_mlpe_curve_goes_through_what_was_given_for_single_ratios():
    panel = FIGURES["Figure 1 left"].panels(reference.read_reference_results())[0]
    curve = next(line for line in panel.lines if line.name == "MLPE EN2")
    given = [point for point in curve.points if point.result]
    assert len(given) == 6 and len(curve.points) > 20
    law = paper_lines.collect_laws(reference.read_reference_results())["EN", "small"]
    for point in given:
        assert paper_lines.compute_law_perplexity(law, point.x) == pytest.approx(point.y, abs=0.01)


def test_a_curve_joins_the_given_values_where_the_law_is_another():
    rows = [
        dataclasses.replace(row, value=1.3 * row.value) if row.metric == "mlpe_EN2" else row
        for row in reference.read_reference_results()
    ]
    panel = FIGURES["Figure 1 left"].panels(rows)[0]
    points = {line.name: len(line.points) for line in panel.lines if line.kind == "curve"}
    assert points["MLPE EN2"] == 6 and points["MLPE EN1"] > 20


def test_dotted_levels_of_figure_8_are_named_by_their_part_of_the_data():
    panel = FIGURES["Figure 8"].panels(reference.read_reference_results())[0]
    levels = [line.name.partition(",")[0] for line in panel.lines if line.kind == "level"]
    assert levels == [f"{percent} % of the data" for percent in (50, 60, 70, 80, 90)]


# A study.


def test_a_study_shows_its_seeds_intervals_and_what_was_reported():
    rows = reference.select_figure_results(reference.read_reference_results(), "Figure 1 left")
    study = studied(rows, spread=0.1)
    drawn = paper_figures.draw_paper_figure(
        "Figure 1 left", study, reference.read_reference_results()
    ).drawing
    axes = drawn.axes[0]
    dots = [line for line in axes.lines if line.get_marker() == "."]
    assert sum(len(line.get_xdata()) for line in dots) == 3 * 12
    assert len(axes.collections) == 2  # bars of either language
    rings = [
        line
        for line in axes.lines
        if line.get_markerfacecolor() == "none" and line.get_linestyle() == "None"
    ]
    reported = sorted(row.value for row in rows if row.metric.startswith("ppl_"))
    assert sorted(y for line in rings for y in line.get_ydata()) == reported
    legend = [text.get_text() for text in drawn.legends[0].get_texts()]
    assert legend == ["one seed", "interval of the mean", "reported"]
    low, high = axes.get_ylim()
    assert all(low < value < high for row in study for value in row.values if "ppl" in row.metric)


def test_a_study_of_other_sizes_ratios_and_layers_has_panels_of_its_own():
    rows = []
    for model, tokens in (("8x64", "0.5x"), ("2x32", "0.5x"), ("2x32", "1.5x")):
        for split in ("50/50", "75/25"):
            setting = {"languages": "EN1+EN2", "split": split, "model": model, "tokens": tokens}
            setting |= {"unit_tokens": str(UNIT)}
            for metric, value in (("ppl", 30.0), ("mlte", 4e5), ("teff", 0.9)):
                rows.append(PaperResult("Figure 2/Figure 9", setting, f"{metric}_EN1", value))
                rows.append(PaperResult("Figure 2/Figure 9", setting, f"{metric}_EN2", value))
    panels = FIGURES["Figure 9"].panels(rows)
    assert [panel.title for panel in panels[::3]] == ["2x32: perplexity", "8x64: perplexity"]
    # Of clones in equal parts the first stands for both.
    assert [line.name for line in panels[0].lines] == ["50/50", "75/25 EN1", "75/25 EN2"]
    assert panels[1].lines[0].points[0].y == pytest.approx(0.4)
    sizes = FIGURES["Figure 2"].panels(rows)[2]
    assert sizes.title == "perplexity at 0.5x" and sizes.names == ("2x32", "8x64")
    assert paper_figures.draw_paper_figure("Figure 9", rows) is not None


def test_a_language_that_diverged_leaves_the_others_in_the_figure():
    rows = reference.select_figure_results(reference.read_reference_results(), "Figure 1 left")
    rows = [
        dataclasses.replace(row, value=math.inf) if row.metric.endswith("EN2") else row
        for row in rows
    ]
    drawn = paper_figures.draw_paper_figure("Figure 1 left", rows)
    labels = {text.get_text() for text in drawn.drawing.axes[0].texts}
    assert "EN1" in labels and "EN2" not in labels


def test_heat_maps_of_a_study_stand_beside_the_reported_ones():
    rows = [
        PaperResult(
            "Figure 11",
            {"split": split, "model": "3x24", "param": parameter, "layer": str(layer)},
            "gradient_cossim",
            value,
            values=(value, value, value),
        )
        for split, value in (("60/40", -0.5), ("80/20", math.nan))
        for parameter in (paper_panels.KEYS_BIAS, "ln1.bias")
        for layer in (1, 2, 3)
    ]
    panels = paper_catalogue.make_figure_panels(
        "Figure 11", rows, reference.read_reference_results()
    )
    assert [panel.title for panel in panels] == [
        "60/40",
        "80/20",
        "reported: 50/50",
        "reported: 90/10",
    ]
    assert panels[0].columns == (1, 2, 3)
    assert (
        paper_figures.draw_paper_figure("Figure 11", rows, reference.read_reference_results())
        is not None
    )


def test_figures_without_results_are_left_out_and_named(tmp_path):
    rows = studied(reference.select_figure_results(reference.read_reference_results(), "Figure 8"))
    rows += studied(reference.select_figure_results(reference.read_reference_results(), "Table 2"))
    written = paper_figures.write_figures_and_tables(
        rows, tmp_path, reference.read_reference_results()
    )
    names = ["figure_8.png", "figure_8.svg", "figure_8.csv", "table_2.csv"]
    assert [path.name for path in written] == names
    left_out = paper_figures.list_left_out_figures(rows)
    assert len(left_out) == 16 and "Figure 8" not in left_out and "Table 1" in left_out
    assert paper_figures.draw_paper_figure("Figure 1 right", rows) is None
    kinds = {row["shown_as"] for row in read_csv(tmp_path / "figure_8.csv")}
    assert kinds == {"point", "level", "reported point"}
    assert all(len(r["seeds"].split()) == 3 for r in read_csv(tmp_path / "figure_8.csv")[:8])


def test_the_same_results_give_the_same_files(tmp_path):
    rows = reference.select_figure_results(reference.read_reference_results(), "Figure 8")
    for name in ("first", "second"):
        paper_figures.write_figures_and_tables(rows, tmp_path / name)
    for file in ("figure_8.svg", "figure_8.csv"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()
