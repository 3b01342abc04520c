"""Panels are thinned, scaled and labelled so that all that matters is seen, and drawn as SVG."""

import math
import re

import pytest

from imbalance_jax.drawing.axes import format_tick, pick_log_ticks
from imbalance_jax.drawing.draw import draw_panels, spread_heights
from imbalance_jax.drawing.heat_maps import draw_heat_maps
from imbalance_jax.drawing.numbers import format_compact_tick, format_significant
from imbalance_jax.drawing.panel import (
    HeatMap,
    Line,
    Panel,
    Point,
    dodge_lines,
    make_points,
    thin_points,
)
from imbalance_jax.drawing.svg import FigureFiles, render_svg


def draw_axes(*lines, **panel):
    (axes,) = draw_panels([Panel("title", "x", tuple(lines), **panel)]).axes
    return axes


def test_a_long_line_is_thinned_and_keeps_every_spike():
    values = [1.0] * 10_000
    values[6_789] = 7.0
    thinned = thin_points(make_points(range(10_000), values))
    xs = [point.x for point in thinned]
    assert len(xs) <= 1000 and xs == sorted(xs)
    assert (6_789, 7.0) in [(point.x, point.y) for point in thinned]
    assert xs[0] == 0 and xs[-1] == 9_999


def test_what_an_axis_cannot_show_is_left_out():
    points = make_points([0, 1, 2, 3, math.nan], [1.0, math.inf, -1.0, 3.0, 4.0])
    (line,) = [each for each in draw_axes(Line("a", points)).lines if each.get_marker() == "o"]
    assert sorted(line.get_xdata()) == [0, 2, 3]
    axes = draw_axes(Line("a", points), x_scale="log", y_scale="log")
    (line,) = [each for each in axes.lines if each.get_marker() == "o"]
    assert list(line.get_xdata()) == [3]
    negative = draw_axes(Line("a", make_points([1, 2], [-1.0, -2.0])), y_scale="log")
    assert negative.get_yscale() == "linear"


def test_a_panel_without_a_value_says_so():
    axes = draw_axes(Line("a", make_points([1], [math.nan])))
    assert "no results" in {text.get_text() for text in axes.texts}


def test_the_frame_holds_intervals_and_runs_but_not_those_that_are_cut():
    points = [Point(x, 1.0, 0.8, 1.2, runs=(0.7,)) for x in range(5)]
    low, high = draw_axes(Line("a", tuple(points))).get_ylim()
    assert low < 0.7 and high > 1.2
    points.append(Point(5, 1.0, -90.0, 90.0))
    assert draw_axes(Line("a", tuple(points))).get_ylim()[1] > 90
    assert draw_axes(Line("a", tuple(points)), cut=True).get_ylim()[1] < 2


def test_an_interval_is_drawn_where_it_reaches_beyond_its_marker():
    points = (Point(0, 0.0, -1.0, 1.0), Point(1, 0.0, -0.001, 0.001), Point(2, 1.0))
    (bars,) = draw_axes(Line("a", points)).collections
    assert [segment[:, 0].tolist() for segment in bars.get_segments()] == [[0, 0]]


def test_a_pale_line_may_leave_the_frame_only_before_a_tenth_of_the_steps():
    steps = list(range(0, 101, 5))
    pale = Line("a", make_points(steps, [9.0 if step < 10 else 3.0 for step in steps]))
    axes = draw_axes(Line("a", make_points(steps, [2.0] * 21)), behind=(pale,), x_scale="steps")
    assert 3 < axes.get_ylim()[1] < 4


def test_labels_move_apart_and_stay_in_the_frame_and_in_order():
    moved = spread_heights([10, 10, 11, 80, 99], gap=14, low=0, high=100)
    assert all(b - a >= 14 - 1e-9 for a, b in zip(moved, moved[1:], strict=False))
    assert min(moved) >= 0 and max(moved) <= 100
    assert spread_heights([10, 40, 70], gap=14, low=0, high=100) == [10, 40, 70]


def test_a_name_that_a_pale_line_shares_stands_once():
    lines = [Line(name, make_points([1, 2], [1.0, 2.0])) for name in ("a", "b")]
    axes = draw_axes(lines[0], behind=tuple(lines))
    assert sorted(text.get_text() for text in axes.texts) == ["a", "b", "title"]


def test_lines_at_the_same_places_stand_side_by_side():
    lines = dodge_lines([Line(name, ()) for name in "abc"], 5)
    assert [line.dodge for line in lines] == [-5, 0, 5]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.8, 2.4, [1, 1.5, 2]),
        (0.93, 1.12, [0.95, 1, 1.05, 1.1]),
        (0.5, 12, [0.5, 1, 2, 5, 10]),
        (1, 1e5, [1, 10, 100, 1000, 1e4, 1e5]),
    ],
)
def test_ticks_of_a_logarithmic_axis_are_round(low, high, ticks):
    assert pick_log_ticks(low, high, most=6) == pytest.approx(ticks)


def test_ticks_drop_only_zeros_that_say_nothing():
    written = {409_600: "410 k", 40_000: "40 k", 1_024_000: "1.02 M", 1_500_000: "1.5 M"}
    for value, expected in written.items():
        assert format_compact_tick(value) == format_tick(value) == expected
    assert [format_tick(value) for value in (3e-4, -2.5, 0, 1500)] == ["3e−4", "−2.5", "0", "1500"]
    # Neighbours on an axis must not read alike.
    assert [format_tick(value) for value in (1.45e-4, 1.5e-4)] == ["1.45e−4", "1.5e−4"]


@pytest.mark.parametrize(
    ("value", "written"),
    [(93.14, "93.1"), (1234.5, "1,234"), (0.03051, "0.0305"), (9.996, "10.0"), (0, "0.00")],
)
def test_numbers_are_written_with_three_digits(value, written):
    assert format_significant(value) == written


def test_a_colour_of_a_heat_map_says_the_sign_and_the_size_and_ends_at_one():
    heat_map = HeatMap("", ("a", "b"), (1,), {("a", 1): -0.25, ("b", 1): 4.0})
    drawing = render_svg(draw_heat_maps([heat_map]), "map", "what")
    cells = re.findall(r"fill: var\(--(cold|warm)\)(?:; fill-opacity: ([\d.]+))?", drawing)
    scale = [(colour, size) for colour in ("cold", "warm") for size in ("", "0.75", "0.5", "0.25")]
    # One of full size has no opacity.
    assert cells[:2] == [("cold", "0.25"), ("warm", "")] and sorted(cells[2:]) == sorted(scale)
    assert "−0.25</text>" in drawing and "4.00</text>" in drawing


def test_an_element_of_a_page_takes_its_colours_and_a_file_stands_alone(tmp_path):
    drawing = draw_panels([Panel("t", "x", (Line("<en>", make_points([1, 2], [1, 2])),))])
    element = render_svg(drawing, "name", 'a "figure"')
    assert (
        "var(--language-0)" in element
        and "var(--ink)" in element
        and "#" not in re.sub(r'(?:href="|url\()#name-', "", element)
    )
    assert 'aria-label="a &quot;figure&quot;"' in element and "&lt;en&gt;</text>" in element
    files = FigureFiles("name", "t", "r", drawing, [{"x": 1, "y": 0.1}])
    png, svg, table = files.write(tmp_path)
    assert svg.read_text().startswith("<?xml") and "var(" not in svg.read_text()
    assert table.read_text() == "x,y\n1,0.1\n" and png.read_bytes().startswith(b"\x89PNG")
