"""How the losses of a study fell: its figures, and which runs passed a bar."""

import csv
import json

import made_studies
import numpy as np
import pytest
from made_runs import words_of
from made_studies import log_curves

from imbalance_jax.analysis import effects, study_table
from imbalance_jax.report import study_page
from imbalance_jax.report.study import learning_panels
from imbalance_jax.study import grid

CLAIMS = {
    "falls": {
        "measure": "steps_to",
        "bar": 4.0,
        "cell": "r90_10",
        "language": "en2",
        "against": "matched_en1_10",
        "against_language": "en1",
        "smallest": 50.0,
    },
    "meets": {
        "measure": "steps_to",
        "bar": 0.3,
        "cell": "r90_10",
        "language": "en1-en2",
        "against": "r50_50",
        "smallest": 50.0,
    },
}
LOSSES = np.array([9.0, 6.0, 5.5, 5.0, 3.0, 2.5, 2.4, 2.3, 2.2, 2.1])
EXCESS = [0.0] * 5 + [0.4] * 5


def page_of(directory):
    table = study_table.read_study_table(directory)
    return study_page.write_study_page(table, directory, resamples=10).read_text()


def rows_of(directory, stem):
    return list(csv.DictReader((directory.path / "figures" / f"{stem}.csv").open()))


@pytest.fixture(scope="module")
def fallen(tmp_path_factory):
    config = made_studies.small_grid(fractions=(0.1, 0.5, 1), **CLAIMS)
    directory = made_studies.make(tmp_path_factory.mktemp("learning") / "study", config)
    for name in study_table.read_study_table(directory).runs:
        cell, seed = name.rsplit("_s", 1)
        losses = LOSSES + 0.1 * int(seed)
        if cell == "matched_en1_10":
            losses = losses + 3.0 * (int(seed) > 0)
        curves = {"en1": losses.tolist()}
        if cell.startswith(("r", "placebo")):
            curves |= {"en2": losses.tolist(), "en1-en2": EXCESS}
        log_curves(directory, name, curves)
        results = directory.run(name).read_json("evaluation.json")
        results["entropy"] = {tag: {"least_loss": [1.9, 2.0]} for tag in ("en1", "en2")}
        (directory.run(name).path / "evaluation.json").write_text(json.dumps(results))
    return directory, page_of(directory)


def test_a_line_is_the_mean_of_a_cells_seeds_and_each_seed_is_behind_it(fallen):
    rows = rows_of(fallen[0], "learning")
    wanted = {"panel": "en2: held-out loss, nats per token", "series": "r90_10"}
    mean = [row for row in rows if wanted.items() <= row.items() and row["shown_as"] == "mean"]
    assert [float(row["x"]) for row in mean] == list(range(100, 1001, 100))
    assert [float(row["y"]) for row in mean] == pytest.approx(LOSSES + 0.1)
    seeds = [row for row in rows if wanted.items() <= row.items() and row["shown_as"] == "run"]
    last = {row["name"]: float(row["y"]) for row in seeds}
    assert last == {f"r90_10_s{n}": pytest.approx(2.1 + 0.1 * n) for n in range(3)}


def test_a_baseline_stands_with_the_language_that_has_as_many_tokens(fallen):
    series: dict[str, set[str]] = {}
    for row in rows_of(fallen[0], "learning"):
        series.setdefault(row["panel"][:3], set()).add(row["series"])
    # That of the half is that of either clone of 50:50. A shuffled language has a loss of its own.
    assert series["en1"] == {"r50_50", "r90_10", "matched_en1_50"}
    assert series["en2"] == {
        *("r50_50", "r90_10", "placebo90_10", "matched_en1_10", "matched_en1_50")
    }


def test_short_baselines_stand_in_where_no_run_has_as_many_updates(tmp_path):
    study = grid.Grid("Short.", unit=made_studies.mixture("50:50"))
    study.add("r90_10", made_studies.mixture("90:10"), seeds=[0])
    kinds = {"kinds": ("monolingual",), "fractions": (0.1, 0.5), "seeds": [0]}
    study.baselines(made_studies.mixture("90:10"), "en2", **kinds)
    directory = made_studies.make(tmp_path / "study", study.to_config())
    log_curves(directory, "r90_10_s0", {"en1": [5.0, 4.0, 3.0], "en2": [5.0, 4.5, 4.0]})
    log_curves(directory, "mono_en1_10_s0", {"en1": [5.0, 4.9]}, spacing=50)
    page_of(directory)
    rows = rows_of(directory, "learning")
    series = {(row["panel"][:3], row["series"]) for row in rows}
    assert series == {("en1", "r90_10"), ("en2", "r90_10"), ("en2", "mono_en1_10")}
    assert {row["shown_as"] for row in rows} == {"mean"}  # one seed is its own mean


def test_bars_and_the_least_loss_are_levels(fallen):
    directory, _ = fallen
    table = study_table.read_study_table(directory)
    measured = effects.measure_effects(table, resamples=10)
    losses, alignments = learning_panels.make_learning_panels(table, measured)
    levels = {
        panel.title.partition(":")[0]: {
            line.name: line.points[0].y for line in panel.lines if line.kind == "level"
        }
        for panel in losses
    }
    assert levels == {"en1": {"least loss": 1.9}, "en2": {"bar 4": 4.0, "least loss": 1.9}}
    assert [line.name for line in alignments[1].lines if line.kind == "level"] == ["bar 0.3", ""]
    styles = {line.name: line.style for panel in losses + alignments for line in panel.lines}
    for panel in losses + alignments:
        assert all(styles[line.name] == line.style for line in (*panel.lines, *panel.behind))


def test_cells_of_languages_that_differ_in_their_least_loss_have_no_level_of_it(tmp_path):
    config = made_studies.small_grid(seeds=1, fractions=())
    directory = made_studies.make(tmp_path / "study", config)
    for cell, least in {"r50_50": 1.9, "r90_10": 1.5}.items():
        run = directory.run(f"{cell}_s0")
        log_curves(directory, f"{cell}_s0", {"en1": [5.0, 4.0, 3.0], "en2": [5.0, 4.0, 3.0]})
        results = run.read_json("evaluation.json")
        results["entropy"] = {"en1": {"least_loss": [1.9, 2]}, "en2": {"least_loss": [least, 2]}}
        (run.path / "evaluation.json").write_text(json.dumps(results))
    table = study_table.read_study_table(directory)
    losses, _ = learning_panels.make_learning_panels(
        table, effects.measure_effects(table, resamples=10)
    )
    levels = {
        panel.title[:3]: [line.points[0].y for line in panel.lines if line.kind == "level"]
        for panel in losses
    }
    assert levels == {"en1": [1.9], "en2": []}


def test_a_run_measured_early_and_at_its_end_alone_is_drawn(tmp_path):
    config = made_studies.small_grid(ratios=("50:50",), seeds=1, fractions=())
    directory = made_studies.make(tmp_path / "study", config)
    log_curves(directory, "r50_50_s0", {"en1": [6.0, *[float("nan")] * 19, 2.0]}, spacing=10)
    page_of(directory)
    drawn = [(float(row["x"]), float(row["y"])) for row in rows_of(directory, "learning")]
    assert drawn == [(10, 6), (210, 2)]


def test_losses_of_an_untrained_model_leave_the_frame(fallen):
    table = study_table.read_study_table(fallen[0])
    losses, _ = learning_panels.make_learning_panels(
        table, effects.measure_effects(table, resamples=10)
    )
    [frame] = {panel.y_range for panel in losses if panel.title.startswith("en1")}
    low, high = 1.9, 6.2  # from the least loss to that of a seed at step 200 of 1,000
    margin = 0.06 * (high - low)
    assert frame == pytest.approx((low - margin, high + margin))


def test_alignment_is_shown_beside_shuffled_pairs_and_above_them(fallen):
    rows = [r for r in rows_of(fallen[0], "learning_alignment") if r["shown_as"] != "run"]
    drawn = {
        (row["panel"].partition(": ")[2][:12], row["series"]): float(row["y"])
        for row in rows
        if row["x"] in ("1000", "1000.0")
    }
    # Blocks 1 and 2 have 0.1 and 0.2 where nothing is shared.
    assert drawn["cosine of hi", "r90_10"] == pytest.approx(0.15 + 0.4)
    assert drawn["cosine of hi", "r90_10 shuffled"] == pytest.approx(0.15)
    assert drawn["cosine above", "r90_10"] == pytest.approx(0.4)
    assert {series for _, series in drawn if "shuffled" not in series} == {
        *("r50_50", "r90_10", "placebo90_10")
    }


def test_runs_measured_at_other_steps_are_averaged_on_the_lines_between(tmp_path):
    config = made_studies.small_grid(ratios=("50:50",), seeds=2, fractions=())
    directory = made_studies.make(tmp_path / "study", config)
    log_curves(directory, "r50_50_s0", {"en1": [6.0, 4.0, 2.0]}, spacing=100)
    log_curves(directory, "r50_50_s1", {"en1": [5.0, 3.0]}, spacing=150)
    page_of(directory)
    mean = [r for r in rows_of(directory, "learning") if r["shown_as"] == "mean"]
    assert [(float(r["x"]), float(r["y"])) for r in mean] == [
        (150, pytest.approx((5 + 5) / 2)),
        (200, pytest.approx((4 + 5 - 2 / 3) / 2)),
        (300, pytest.approx((2 + 3) / 2)),
    ]


def test_the_page_counts_the_runs_that_passed_a_bar(fallen):
    words = words_of(fallen[1])
    section = words[words.index("How the losses fell") : words.index("Loss against the ratio")]
    # Wilson's interval of 3 of 3: from 1 / (1 + z^2 / 3) to 1.
    assert " r90_10 en2 4 nats 3 of 3 43.9 % to 100 % 455 " in section
    assert " matched_en1_10 en1 4 nats 1 of 3 6.15 % to 79.2 % not reached " in section
    assert " r50_50 en1-en2 excess of 0.3 3 of 3 " in section
    assert "One that has not by its last step is censored" in section
    assert words.index("What was claimed") < words.index("How the losses fell")


def test_the_part_of_runs_that_passed_rises_by_one_run_at_each_step_of_passing(fallen):
    directory, _ = fallen
    rows = [row for row in rows_of(directory, "passing") if row["panel"].startswith("en2: part")]
    alone = [(float(r["x"]), float(r["y"])) for r in rows if r["name"] == "matched_en1_10 en1"]
    # Of its seeds only the first falls from 5 to 3 nats, between steps 400 and 500.
    seeds = len({int(name.rsplit("_s", 1)[1]) for name in directory.study().runs})
    assert alone == [
        (0.0, 0.0),
        (pytest.approx(450), 0.0),
        (pytest.approx(450), pytest.approx(100 / seeds)),
        (1000.0, pytest.approx(100 / seeds)),
    ]
    mixture = [float(r["y"]) for r in rows if r["name"] == "r90_10 en2"]
    assert mixture[-1] == pytest.approx(100) and mixture == sorted(mixture)


def test_a_claim_names_the_cells_that_many_are_chosen_from(tmp_path):
    study = grid.Grid("Many.", unit=made_studies.mixture("50:50"))
    ratios = [f"{10 * n}:{100 - 10 * n}" for n in range(1, 10)] + ["95:5"]
    for ratio in ratios:
        study.add(made_studies.cell_of(ratio), made_studies.mixture(ratio), seeds=[0])
    side = {"cell": "r90_10", "language": "en2", "against": "r95_5", "bar": 3.0, "smallest": 9.0}
    study.claim("x", "X.", measure="steps_to", **side)
    directory = made_studies.make(tmp_path / "study", study.to_config())
    for ratio in ratios:
        log_curves(directory, f"{made_studies.cell_of(ratio)}_s0", {"en1": [5, 4], "en2": [5, 4]})
    page_of(directory)
    drawn = list(dict.fromkeys(row["series"] for row in rows_of(directory, "learning")))
    assert len(drawn) == 8 and drawn[:2] == ["r90_10", "r95_5"]


def test_a_study_that_measured_nothing_while_it_trained_says_so(tmp_path):
    config = made_studies.small_grid(seeds=1, fractions=())
    words = words_of(page_of(made_studies.make(tmp_path / "study", config)))
    assert "No mixture that is done has logged its held-out loss at two steps or more." in words
