"""The page of a study: finished, unfinished, and safe to open anywhere."""

import csv
import dataclasses
import html.parser
import re
import shutil
import subprocess
import sys
import types

import made_studies
import pytest
from made_studies import CLAIMS, GAIN, lower

from imbalance_jax.analysis import proposal_files, study_table
from imbalance_jax.analysis.mixture_cells import collect_mixture_cells
from imbalance_jax.analysis.mixture_resamples import resample_mixture_laws
from imbalance_jax.analysis.proposals import propose_ratio
from imbalance_jax.analysis.statistics import Estimate
from imbalance_jax.report import study_page
from imbalance_jax.report.study import alignments, claims, proposal_figures, proposals
from imbalance_jax.study import grid
from imbalance_jax.study.objective import Objective
from imbalance_jax.study.study_directory import StudyDirectory


def page_of(directory):
    table = study_table.read_study_table(directory)
    study_table.write_study_table(table, directory)
    path = study_page.write_study_page(table, directory, resamples=20)
    return path.read_text()


def words_of(text):
    """Returns what a reader sees, with single spaces."""
    found = re.sub(r"<(style|svg).*?</\1>", " ", text, flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", found))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    config = made_studies.small_grid(**CLAIMS)
    config.description = "Two <clones> & more."
    config.claims.gains.statement = "A <b>rare</b> clone gains."
    path = tmp_path_factory.mktemp("finished") / "study"
    directory = made_studies.make(path, config, rare_gain=GAIN)
    return directory, page_of(directory)


def test_the_page_opens_with_a_verdict_for_each_claim(finished):
    _, page = finished
    words = words_of(page)
    assert f"Of {len(CLAIMS)} claims made before the runs" in words
    assert page.count('<div class="claim">') == len(CLAIMS)
    assert page.index("What was claimed") < page.index("Loss against the ratio")
    gains = words[words.index("A &lt;b&gt;rare") :]
    assert re.search(r"TEff 1\.\d+ , interval 1\.\d+ to \d\.\d+ \(\d\d\.?\d* %; 3 seeds; ", gains)
    assert (
        "The interval leaves out a TEff of 1, and the estimate is a factor of 1.05 or more" in gains
    )
    assert "held against a TEff of 1 by the law of the monolingual baselines" in gains


def test_the_page_is_one_file_that_needs_no_network(finished):
    directory, page = finished
    links = re.findall(r'(?:href|src)="([^"]*)"', page)
    assert all(
        link.startswith(("data:", "#")) or (directory.path / link).exists() for link in links
    )
    assert "figures/loss_by_ratio.csv" in links and "table.csv" in links
    assert "http" not in page and "<script" not in page and "@import" not in page


def test_text_of_a_study_is_not_read_as_markup(finished):
    _, page = finished
    assert "Two &lt;clones&gt; &amp; more." in page and "<clones>" not in page
    assert "A &lt;b&gt;rare&lt;/b&gt; clone gains." in page


def test_the_page_is_well_formed(finished):
    class Parser(html.parser.HTMLParser):
        stack: list[str] = []

        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "link", "br"):
                self.stack.append(tag)

        def handle_endtag(self, tag):
            assert self.stack.pop() == tag

        def handle_startendtag(self, tag, attrs):
            pass

    parser = Parser()
    parser.feed(finished[1])
    assert not parser.stack
    ids = re.findall(r'\bid="([^"]*)"', finished[1])
    assert len(ids) == len(set(ids))


def test_what_was_not_claimed_is_exploratory(finished):
    _, page = finished
    for title in ("What a language’s loss is worth", "All cells", "Alignment of the languages"):
        section = page[page.index(f"<h2>{title}</h2>") :]
        assert "Exploratory" in section[: section.index("</section>")]


def test_every_figure_is_a_file_of_three_kinds(finished):
    directory, _ = finished
    names = {path.name for path in (directory.path / "figures").iterdir()}
    for stem in ("loss_by_ratio", "efficiency_by_ratio", "alignment_by_ratio"):
        assert {f"{stem}.png", f"{stem}.svg", f"{stem}.csv"} <= names
    rows = list(csv.DictReader((directory.path / "figures" / "loss_by_ratio.csv").open()))
    series = {row["series"] for row in rows}
    assert series == {"mixture", "placebo", "monolingual law", "matched law"}
    [rare] = [row for row in rows if row["name"] == "r90_10 en2"]
    assert float(rare["x"]) == pytest.approx(10) and len(rare["runs"].split()) == 3
    assert float(rare["low"]) < float(rare["y"]) < float(rare["high"])
    # Baselines are at their own part of the mixture's tokens.
    runs = {row["name"]: float(row["x"]) for row in rows if row["shown_as"] == "run"}
    assert runs["mono_en1_25_s1"] == pytest.approx(25)


def test_sentences_of_alignment_name_what_is_alike_and_follow_from_the_intervals():
    def aligned(cell, value, se):
        excess = Estimate(value, se, 2, 3) if se else Estimate.unrepeated(value, 1)
        return types.SimpleNamespace(
            cell=cell, pair="en1-en2", measure="hidden", kind="mixture", excess=excess
        )

    cells = [aligned("up", 0.1, 0.01), aligned("down", -0.1, 0.01), aligned("wide", 0.1, 0.1)]
    cells.append(aligned("once", 0.1, 0))
    words = alignments.describe_excess(cells)
    assert "more alike than those of shuffled pairs in up (en1-en2)." in words
    assert "less alike than those of shuffled pairs in down (en1-en2)." in words
    assert "is not decided in wide (en1-en2): the 95 % interval" in words
    assert "With one seed there is no interval of hidden states in once (en1-en2)." in words


@pytest.mark.parametrize(
    ("effect", "factor", "written"),
    [
        (0.1234, False, "+0.123"),
        (0.0004, False, "+0.0004"),  # not 0
        (0.00961, False, "+0.0096"),  # less than 0.01
        (-0.0, False, "0.000"),
        (0.0004, True, "1.0004"),
        (0.5, True, "1.65"),
    ],
)
def test_a_number_has_digits_enough_to_show_its_side_of_nothing_and_of_what_matters(
    effect, factor, written
):
    assert claims.format_effect(effect, 0.01, factor) == written


def test_validity_and_how_to_do_it_again_are_on_the_page(finished):
    _, page = finished
    words = words_of(page)
    for name in ("Ratio, realised", "Epochs", "Law error", "Extrapolation", "Learning rate"):
        assert name in words
    assert "python -m imbalance_jax.study run --workdir=study" in words


def test_a_study_before_its_first_run_has_a_page(tmp_path):
    directory = StudyDirectory(tmp_path / "study")
    directory.claim(grid.resolve_study(made_studies.small_grid(**CLAIMS)))
    words = words_of(page_of(directory))
    assert "0 of 36 runs are done; 36 not begun" in words
    assert f"Of {len(CLAIMS)} claims made before the runs: {len(CLAIMS)} not measured." in words
    assert "No run is done yet." in words and not (tmp_path / "study" / "figures").exists()


def test_a_study_of_one_seed_says_what_that_means(tmp_path):
    config = made_studies.small_grid(seeds=1, **CLAIMS)
    words = words_of(page_of(made_studies.make(tmp_path / "study", config, rare_gain=GAIN)))
    assert f"{len(CLAIMS)} undecided" in words
    assert "Every cell has one seed." in words
    assert "(1 seed: with one seed nothing is known of the scatter)" in words


def test_mixtures_without_baselines_are_shown_with_what_they_lack(tmp_path):
    config = made_studies.small_grid(fractions=())
    words = words_of(page_of(made_studies.make(tmp_path / "study", config)))
    assert "There are no monolingual baselines: the study has none" in words
    assert "monolingual: no baseline of this kind is done" in words
    assert "a law needs baselines at three numbers of tokens" in words
    assert "FLOPs" in words


def test_baselines_alone_are_shown_with_their_law(tmp_path):
    directory = made_studies.make(tmp_path / "study", made_studies.small_grid(seeds=2))
    for run in (tmp_path / "study" / "runs").iterdir():
        if run.name.startswith(("r", "placebo")):
            shutil.rmtree(run)
    words = words_of(page_of(directory))
    assert "No mixture is done yet." in words and "Only baselines are done yet" in words
    assert "matched, en, 2x16, 1,000 steps" in words


def test_a_perplexity_outside_of_the_law_is_a_limit_with_its_reason(tmp_path):
    config = made_studies.small_grid(gains=CLAIMS["gains"])
    directory = made_studies.make(tmp_path / "study", config, noise=0.0005)
    for seed in range(3):
        lower(directory, f"r90_10_s{seed}", "en2", 1.0)
        lower(directory, f"r50_50_s{seed}", "en2", 800.0)
    words = words_of(page_of(directory))
    assert re.search(r"r90_10 en2 against monolingual baselines: TEff &gt; 10, as its", words)
    assert "is far below that of the longest baseline" in words


def test_a_study_over_lengths_and_sizes_shows_both(tmp_path):
    study = grid.Grid("Lengths and sizes.", unit=made_studies.mixture("50:50"))
    for depth in (2, 3):
        for steps in (500, 1000):
            config = made_studies.mixture("90:10", steps)
            config.model.N = depth
            prefix = f"n{depth}_{steps}_"
            study.add(f"{prefix}r90_10", config, seeds=[0])
            kinds = ("monolingual", "matched") if steps == 1000 else ("matched",)
            study.baselines(
                config, "en1", fractions=(0.1, 0.5), seeds=[0], kinds=kinds, prefix=prefix
            )
    directory = made_studies.make(tmp_path / "study", study.to_config())
    page = page_of(directory)
    assert "The same ratios with more tokens." in page
    assert "The same ratios in larger models." in page
    rows = list(csv.DictReader((directory.path / "figures" / "scaling_by_size.csv").open()))
    assert {row["series"] for row in rows} == {"90:10 en1", "90:10 en2", "90:10"}


def test_what_a_ratio_does_not_describe_has_a_row_for_each_cell(tmp_path):
    even = made_studies.mixture("50:50")
    study = grid.Grid("With anchors.", unit=even)
    study.add("r50_50", even, seeds=range(2))
    study.add("anchors_5", grid.anchored(even, "en2", 0.05), seeds=range(2))
    study.baselines(even, "en1", fractions=(0.25, 0.5, 1), seeds=range(2))
    directory = made_studies.make(tmp_path / "study", study.to_config())
    assert "Every mixture, schedules and anchors included." in page_of(directory)
    rows = list(csv.DictReader((directory.path / "figures" / "cells.csv").open()))
    assert {row["name"] for row in rows} >= {"anchors_5 en1", "anchors_5 en2", "r50_50 en1"}
    by_ratio = (directory.path / "figures" / "loss_by_ratio.csv").read_text()
    assert "anchors_5" not in by_ratio and "r50_50 en2" in by_ratio


def test_runs_of_a_figure_of_the_reference_are_shown_as_it_was(tmp_path):
    study = grid.Grid("A figure.", unit=made_studies.mixture("50:50"))
    for ratio, share in (("50:50", "0.5"), ("90:10", "0.1")):
        setting = {
            "languages": "EN1+EN2",
            "split": ratio.replace(":", "/"),
            "model": "small",
            "tokens": "1x",
            "p_EN2": share,
        }
        study.add(
            made_studies.cell_of(ratio),
            made_studies.mixture(ratio),
            seeds=range(2),
            figures=("Figure 1 left",),
            reference=setting,
        )
    directory = made_studies.make(tmp_path / "study", study.to_config())
    page = page_of(directory)
    assert "Figure 1 left. Cloned English" in page
    assert (directory.path / "figures" / "figure_1_left.csv").exists()


def test_the_report_command_writes_the_page_of_a_study(tmp_path):
    directory = StudyDirectory(tmp_path / "study")
    directory.claim(grid.resolve_study(made_studies.small_grid(seeds=1)))
    command = [sys.executable, "-m", "imbalance_jax.report", f"--workdir={directory}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "study" / "report.html")
    assert (tmp_path / "study" / "report.html").exists()


def test_a_proposed_ratio_is_shown_and_held_against_the_run_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(proposals, "_DRAWS", 19)
    made = grid.Grid("Clones.", unit=made_studies.mixture("50:50"))
    for ratio in ("95:5", "70:30", "30:70", "5:95"):
        made.add(made_studies.cell_of(ratio), made_studies.mixture(ratio), seeds=range(2))
    directory = made_studies.make(tmp_path / "study", made.to_config())
    table = study_table.read_study_table(directory)
    laws = resample_mixture_laws(collect_mixture_cells(table), draws=19)
    proposal = propose_ratio("mean", Objective(most_epochs={"en2": 0.9}), laws)
    share = proposal.ratio["en1"] / sum(proposal.ratio.values())
    proposal = dataclasses.replace(proposal, ratio={"en1": 16, "en2": 9})
    proposal_files.write_proposal(directory, proposal, table)
    (shown,) = proposals.list_proposals(table, directory)
    assert shown["outcomes"] is None
    (figure,) = proposal_figures.draw_proposals(table, directory)
    assert {row["series"] for row in figure.rows} == {"law", "runs"}
    assert "since" not in figure.reading
    drawn = [row for row in figure.rows if row["series"] == "law" and row["panel"][:3] == "en1"]
    (there,) = [row for row in drawn if row["x"] == pytest.approx(100 * share)]
    assert there["y"] == pytest.approx(proposal.losses["en1"].value)
    # The same interval as that of the prediction, but for its draws.
    same = proposal.losses["en1"].same_seeds_interval
    assert (there["low"], there["high"]) == pytest.approx(same, abs=0.1 * (same[1] - same[0]))
    made.add("proposed", made_studies.mixture("64:36"), seeds=[0, 1])
    words = words_of(page_of(made_studies.make(directory.path, made.to_config())))
    assert "Laws over the ratio" in words and "interpolation" in words
    assert "mean: en1:en2 = 16:9" in words and "No run of this proposal" not in words
    assert "So that the mean of the losses is least; most epochs: en2 0.9; for 320 k" in words
    (figure,) = proposal_figures.draw_proposals(study_table.read_study_table(directory), directory)
    assert [row["x"] for row in figure.rows if row["series"] == "outcome"] == [64, 36]
    assert (directory.path / "figures" / "proposal_mean.png").exists()
    predicted = proposal.losses["en1"]
    ends = " to ".join(f"{end:.4f}" for end in predicted.same_seeds_interval)
    found = re.search(r"proposed en1 0, 1 (\S+) (\S+ to \S+) (\S+) (\w+)", words)
    assert found and found[1] == f"{predicted.value:.4f}" and found[2] == ends
    low, high = predicted.same_seeds_interval
    assert found[4].lower() == ("inside" if low <= float(found[3]) <= high else "outside")
