"""The page of a run: complete, failed, just started, and safe to open anywhere."""

import json
import math
import pathlib
import re
import subprocess
import sys

import pytest
from helpers import read_plain_json
from made_runs import CLONES, make_config, make_run, page_of, provenance, structure_of, words_of

from imbalance_jax import config as config_lib
from imbalance_jax.drawing.numbers import format_significant
from imbalance_jax.report import comparison_page
from imbalance_jax.report.line_figures import draw_curve_figure
from imbalance_jax.report.record import Curve
from imbalance_jax.runs.run_directory import RunDirectory


def report(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "imbalance_jax.report", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def complete(tmp_path_factory) -> RunDirectory:
    return make_run(tmp_path_factory.mktemp("runs") / "90_10")


@pytest.fixture(scope="module")
def complete_page(complete) -> str:
    return page_of(complete)


def test_the_page_has_every_number_of_the_evaluation(complete, complete_page):
    results = complete.read_json("evaluation.json")["languages"]
    for result in results.values():
        for name in result.keys() - {"bytes"}:
            assert f'<data value="{result[name]:.12g}">' in complete_page
    words = words_of(complete_page)
    for result in results.values():
        assert f"{result['loss']:.3f} {result['ppl']:.1f} {result['bits_per_byte']:.3f}" in words


def test_the_headline_names_each_language_with_its_part_and_perplexity(complete, complete_page):
    languages = complete.read_json("evaluation.json")["languages"]
    ppl = {tag: f"{result['ppl']:.1f}" for tag, result in languages.items()}
    words = words_of(complete_page)
    assert (
        f"en2, 10 % of the sequences, ends at perplexity {ppl['en2']}; "
        f"en1, 90 %, at {ppl['en1']}." in words
    )


def test_the_headline_of_languages_of_different_text_does_not_compare_their_perplexity(tmp_path):
    run = make_run(tmp_path / "run")
    config = run.read_json("config.json")
    config["sources"]["fr"] = config["sources"]["en"]
    config["languages"]["en2"] |= {"source": "fr", "clone_of": ""}
    run.write_json("config.json", config)
    languages = run.read_json("evaluation.json")["languages"]
    bits = {tag: f"{result['bits_per_byte']:.3g}" for tag, result in languages.items()}
    words = words_of(page_of(run))
    headline = f"en2, 10 % of the sequences, ends at {bits['en2']} bits per byte; en1, 90 %, at "
    assert headline + f"{bits['en1']}. Languages of different text do not compare" in words
    assert "perplexity" not in words[: words.index("To see what en2 lost by being rare")]


def test_the_headline_splits_the_difference_between_clones(complete, complete_page):
    languages = complete.read_json("evaluation.json")["languages"]
    gap = {name: languages["en2"][name] - languages["en1"][name] for name in languages["en1"]}
    assert (
        f"costs {gap['loss']:.3f} nats per token more in en2 than in en1: "
        f"{gap['language_nats']:.3f} for telling the language and {gap['loss_own']:.3f} for "
        "predicting within it." in words_of(complete_page)
    )


def test_the_page_says_that_the_ratio_was_realised(complete_page):
    assert "Requested and realised sequences are equal for every language." in words_of(
        complete_page
    )


def test_the_page_names_the_largest_deviation_from_the_ratio(tmp_path):
    run = make_run(tmp_path / "run", steps=100, log_every=200)
    rows = run.read_csv("mixture.csv")
    rows[0]["realised_sequences"], rows[1]["realised_sequences"] = "1807", "193"
    run.write_csv("mixture.csv", rows)
    words = words_of(page_of(run))
    assert "are equal" not in words
    assert "The largest deviation is en1, +7 of 1,800 sequences (0.389 %)." in words


def test_a_run_that_ends_inside_a_block_is_exact_and_says_so(tmp_path):
    run = make_run(tmp_path / "run", steps=100, log_every=200)
    rows = run.read_csv("mixture.csv")
    rows[0]["requested_sequences"], rows[1]["requested_sequences"] = "1800.9", "200.1"
    rows[0]["realised_sequences"], rows[1]["realised_sequences"] = "1801", "200"
    run.write_csv("mixture.csv", rows)
    words = words_of(page_of(run))
    assert "equal in every whole block of 10; the last step lies inside one" in words


@pytest.mark.parametrize(
    ("deviation", "verdict"),
    [
        ((1e-12, -1e-12), "Exact Requested and realised sequences are equal for every language."),
        ((1.2, -1.2), "Exact Requested and realised sequences are equal in every whole block; "),
        ((3.0, -3.0), "Not exact The largest deviation is en1, +3 of"),
    ],
)
def test_stages_that_end_inside_a_block_are_exact_and_no_rounding_is_a_deviation(
    tmp_path, deviation, verdict
):
    run = make_run(tmp_path / "run", steps=100)
    values = config_lib.to_dict(run.config())
    # 20 sequences a step: 33 and 34 steps of 3:1 and 2:1 are whole blocks and not.
    values["mixture"]["stages"] = [[0, {"en1": 3, "en2": 1}], [33, {"en1": 2, "en2": 1}]]
    values["mixture"]["stages"] += [[67, {"en1": 3, "en2": 1}]]
    run.write_json("config.json", values)
    rows = run.read_csv("mixture.csv")
    for row, more in zip(rows, deviation, strict=True):
        row["requested_sequences"] = str(float(row["realised_sequences"]) - more)
    run.write_csv("mixture.csv", rows)
    assert verdict in words_of(page_of(run))


def test_every_figure_has_a_caption_and_a_description(complete_page):
    assert complete_page.count("<figure") == complete_page.count("<figcaption>") == 9
    drawings = re.findall(r"<svg[^>]*>", complete_page)
    assert len(drawings) == 10  # the first figure has a narrow version too
    for drawing in drawings:
        assert 'role="img"' in drawing and re.search(r'aria-label="[^"]{20,}"', drawing)


def test_a_language_is_told_by_its_line_style_and_its_tag_at_the_end(complete_page):
    drawing = re.search(r"<svg[^>]*Own loss.*?</svg>", complete_page, flags=re.S)[0]
    assert len(re.findall(r">en1</text>", drawing)) == len(re.findall(r">en2</text>", drawing)) == 1
    dashes = re.findall(r"stroke-dasharray[^;]*;[^\"]*var\(--language-(\d)\)", drawing)
    assert dashes and set(dashes) == {"1"}


def test_the_page_says_where_the_time_went(complete_page):
    words = words_of(complete_page)
    assert "training steps 61.0" in words and "compilation 8.2" in words
    # What the named parts do not account for is shown, not spread over them.
    assert "everything else 1.5" in words


def test_the_page_explains_mfu_and_the_fingerprint_of_docstrings(complete_page):
    words = words_of(complete_page)
    assert "145 GFLOP/s" in words and "measured: best float32 matmul" in words
    assert "Six FLOPs per parameter" in words
    assert "9c1f0b7e52d4a6388e1d" in words and "installed Python packages" in words


def test_the_page_says_what_of_a_text_is_lost_left_out_or_held_out_as_well(complete_page):
    words = words_of(complete_page)
    assert "bytes (2.50%), which are unknown to it or normalized away" in words
    assert "12 of" in words and "documents were left out: 12 that do not meet where." in words
    assert "which 2 of" in words and "held_out_duplicates=remove" in words


def test_the_page_loads_nothing(complete_page):
    structure = structure_of(complete_page)
    outside = [r for r in structure.references if not r.startswith(("#", "data:"))]
    assert not outside
    assert not structure.tags & {"script", "img", "iframe", "object", "embed"}
    assert not re.search(r"@import|https?:", complete_page)


def test_the_page_is_well_formed_and_its_ids_are_unique(complete_page):
    structure = structure_of(complete_page)
    assert not structure.wrong and not structure.open
    assert len(structure.ids) == len(set(structure.ids))
    local = {r[1:] for r in structure.references if r.startswith("#")}
    assert local <= set(structure.ids)


def test_the_same_run_gives_the_same_page(complete, complete_page):
    assert page_of(complete) == complete_page


def test_markup_in_the_files_of_a_run_stays_text(tmp_path):
    evil = '<img src="x">&$'
    run = make_run(tmp_path / "<b>run", {"en1": 3}, steps=100, until=50, log_every=200)
    run.fail(50, RuntimeError(evil))
    known = provenance()
    known["git"] = known["device"]["kind"] = known["flop_convention"] = evil
    known["peak_flops"]["source"] = evil
    known["packages"][evil] = evil
    known["sources"] = {evil: {"kind": evil, "fingerprint": evil}}
    run.write_json("provenance.json", known)
    run.log(60, {f"train/{evil}": math.nan})
    text = page_of(run)
    assert "<img" not in text and "<b>run" not in text and evil in words_of(text)
    assert not structure_of(text).wrong


def test_markup_in_results_of_other_commands_stays_text(tmp_path):
    evil = '<img src="x">&$'
    run = make_run(tmp_path / "<b>run", steps=100, log_every=200)
    tables = {evil: {"cosine": 0.5, "retrieval": {"forth": 0.25, "back": 0.75}}}
    found = {"pairs": {evil: tables}, "tokens": 7, "tokens_per_second": 3.0}
    run.write_json("word2vec.json", {evil: found})
    score = {"accuracy": 0.75, "majority": 0.5, "interval": [0.5, 1.0]}
    score |= {"over_seeds": None, "over_examples": [0.625, 0.875]}
    settings = {"batch_size": 8, "learning_rate": 1e-3, "length": 32}
    examples = {"train": 64, "test": {evil: 32}}
    task = {"languages": {"en1": score}, "settings": settings, "examples": examples}
    task |= {"step": 100, "updates": 8}
    run.write_json("transfer.json", {"intended": {evil: {evil: task}}})
    other = make_run(tmp_path / "other", steps=100, log_every=200)
    about = provenance()
    about["python"] = about["sources"]["en"]["fingerprint"] = evil
    other.write_json("provenance.json", about)
    compared = comparison_page.write_comparison_page([run, other]).read_text()
    for text in (page_of(run), compared):
        assert "<img" not in text and "<b>run" not in text and evil in words_of(text)
        assert not structure_of(text).wrong
    words = words_of(page_of(run))
    assert "50 %" in words and "0.750 0.500 to 1.000 – 0.625 to 0.875 0.500" in words


def test_markup_in_the_name_of_a_language_stays_text():
    tag = "<i>$x^2$"
    curves = {tag: Curve([1, 2], [3.0, 4.0])}
    figure = draw_curve_figure("name", "<i>", "", curves, [tag], y_label="loss")
    drawn = figure.svg
    assert "<i>" not in drawn and "&lt;i&gt;$x^2$</text>" in drawn


def test_a_finished_run_says_so(complete_page):
    assert "Done at step 1,000 of 1,000" in words_of(complete_page)


def test_a_failed_run_shows_its_message(tmp_path):
    run = make_run(tmp_path / "run", steps=200, until=110, log_every=200)
    run.fail(120, FloatingPointError("train/loss is nan. Lower config.optimizer.peak_lr."))
    words = words_of(page_of(run))
    assert "Failed at step 120 of 200 with FloatingPointError:" in words
    assert "train/loss is nan. Lower config.optimizer.peak_lr." in words


def test_an_unfinished_run_shows_its_newest_evaluation(tmp_path):
    run = make_run(tmp_path / "run", steps=200, until=110)
    words = words_of(page_of(run))
    assert "Unfinished at step 110 of 200" in words
    ppl = format_significant(run.series("eval/ppl/en2")[1][-1])
    assert f"en2, 10 % of the sequences, is at perplexity {ppl}" in words
    assert "on the validation split at step 100." in words


def test_a_run_that_has_just_started_has_a_page_that_says_what_is_missing(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.claim(make_config(CLONES, steps=500))
    text = page_of(run)
    words = words_of(text)
    assert "Unfinished before step 1 of 500" in words
    assert "No language has been evaluated yet." in words
    assert "mixture.csv is not there yet." in words
    assert not structure_of(text).wrong


@pytest.mark.parametrize("missing", ["provenance.json", "mixture.csv", "evaluation.json", "DONE"])
def test_any_one_file_may_be_missing_and_the_metrics_too(tmp_path, missing):
    run = make_run(tmp_path / "run", steps=100, log_every=200)
    (run.path / missing).unlink()
    words = words_of(page_of(run))
    assert "No loss has been logged yet." in words
    assert (missing in words) == (missing in ("provenance.json", "mixture.csv"))


def test_values_that_are_not_finite_are_named_and_left_out_of_the_figures(tmp_path):
    run = make_run(tmp_path / "run", steps=200, until=100)
    bad = {"eval/loss/en2": math.nan, "eval/ppl/en2": math.inf, "eval/language_nats/en1": 0.0}
    bad |= {"train/grad_norm": -math.inf, "perf/mfu": math.nan, "time/total": math.nan}
    # As earlier versions wrote them; null, which stands for all of them now, is read as nan.
    record = {"step": 110, "train/loss": math.nan, **bad}
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write(json.dumps(record) + "\n")
    text = page_of(run)
    words = words_of(text)
    assert "Not finite: train/loss in 1 record, first at step 110" in words
    assert "perplexity ∞" in words
    drawn = " ".join(re.findall(r'(?: d| x| y| points|transform)="[^"]*"', text))
    assert "nan" not in drawn and "inf" not in drawn


@pytest.mark.parametrize("spoilt", ["NaN", "null"])
def test_a_run_that_was_done_with_a_loss_that_is_not_finite_is_shown_as_failed(tmp_path, spoilt):
    run = make_run(tmp_path / "run", steps=100)
    run.log(100, {"train/skipped": 3})
    file = pathlib.Path(run.path / "evaluation.json")
    plain = json.dumps(read_plain_json(file))  # as earlier versions wrote it
    file.write_text(re.sub(r'("(?:loss|ppl|loss_own)": )[\d.]+', rf"\1{spoilt}", plain))
    words = words_of(page_of(run))
    assert "Failed at step 100 of 100" in words and "has diverged" in words
    assert "lower config.optimizer.peak_lr" in words
    assert "updates left out 3" in words


def test_a_run_without_a_finite_value_has_a_page(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.claim(make_config(CLONES, steps=500))
    names = ["train/loss", "train/loss/en1", "eval/loss/en1", "eval/ppl/en1", "eval/leak/en1"]
    names += ["train/grad_norm", "perf/tokens_per_second", "time/train", "train/tokens/en1"]
    run.log(10, dict.fromkeys(names, math.nan))
    assert "Not finite:" in words_of(page_of(run))


def test_the_page_of_a_long_run_of_ten_languages_stays_small(tmp_path):
    ratio = {f"en{i}": count for i, count in enumerate((30, 20, 15, 10, 8, 6, 5, 3, 2, 1), 1)}
    run = make_run(tmp_path / "run", ratio, steps=20_000, eval_every=40)
    text = page_of(run)
    assert len(text.encode()) < 600_000
    assert "Of 10 languages, en10, the rarest with 1 % of the sequences" in words_of(text)


def test_stages_count_in_what_was_requested(tmp_path):
    values = config_lib.to_dict(make_config(CLONES, steps=100))
    values["mixture"]["stages"] = [[0, {"en1": 9, "en2": 1}], [50, {"en1": 1, "en2": 1}]]
    run = RunDirectory(tmp_path / "run")
    run.claim(config_lib.resolve_config(values))
    run.log(100, {f"eval/{name}/{tag}": 3.0 for tag in CLONES for name in ("loss", "ppl")})
    assert "en2, 30 % of the sequences" in words_of(page_of(run))


def test_importing_the_command_loads_neither_jax_nor_flax():
    check = (
        "import sys, imbalance_jax.report; print({'jax', 'flax', 'matplotlib'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


def test_the_command_writes_the_page_and_says_where(complete):
    (complete.path / "report.html").unlink(missing_ok=True)
    done = report(f"--workdir={complete}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(complete.path / "report.html")
    assert (complete.path / "report.html").exists()


def test_the_command_refuses_what_is_not_a_run(tmp_path):
    (tmp_path / "notes.txt").write_text("not a run")
    done = report(f"--workdir={tmp_path}")
    assert done.returncode == 2 and "holds no run" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "report.html").exists()


def test_the_command_refuses_a_study_of_another_version(tmp_path):
    (tmp_path / "study.json").write_text(json.dumps({"runs": []}))
    done = report(f"--workdir={tmp_path}")
    assert done.returncode == 2 and "was not written by this version" in done.stderr


def test_a_hash_is_shown_and_is_no_value_that_is_not_finite(tmp_path):
    run = make_run(tmp_path / "run", steps=100)
    run.log(100, {"data/order": "0123456789abcdef"})
    words = words_of(page_of(run))
    assert "hash of the order up to step 100 0123456789abcdef" in words
    assert "Not finite" not in words
    # Of earlier code, whose hashes do not determine the tokens.
    assert "equal ones prove no equal tokens" in words and "Runs with equal hashes" not in words
    run.log(100, {"data/order": "v2:0123456789abcdef"})
    words = words_of(page_of(run))
    assert "v2:0123456789abcdef" in words and "Runs with equal hashes saw the same" in words


def test_nats_of_parallel_texts_and_the_least_loss_stand_beside_the_results(tmp_path):
    run = make_run(tmp_path / "run", steps=100)
    evaluation = run.read_json("evaluation.json")
    nats = {"en1": {"nats_per_pair": 1234.5}, "en2": {"nats_per_pair": 987.6}}
    evaluation["parallel"] = {"en_fr": {"pairs": 30, "languages": nats}}
    evaluation["entropy"] = {"en1": {"per_token": 1.2344, "least_loss": [1.2344, 1.25]}}
    run.write_json("evaluation.json", evaluation)
    words = words_of(page_of(run))
    assert "nats a pair, en_fr" in words and "1,234.5" in words and "987.6" in words
    assert "least loss there is" in words and "1.234" in words


def test_a_run_with_stages_shows_the_ratio_of_every_stretch_and_repeats_across_clones(tmp_path):
    run = make_run(tmp_path / "run", steps=100)
    values = config_lib.to_dict(run.config())
    values["mixture"]["stages"] = [[0, {"en1": 9, "en2": 1}], [0.5, {"en1": 1, "en2": 9}]]
    run.write_json("config.json", values)
    rows = run.read_csv("mixture.csv")
    stretches = []
    for first, parts in ((0, (90, 10)), (50, (10, 90))):
        for row, part in zip(rows, parts, strict=True):
            counts = {"requested_sequences": part, "realised_sequences": part}
            steps = {"first_step": first, "last_step": first + 50}
            stretches.append({**row, **counts, **steps, "cross_language_repeats": 5})
    run.write_csv("mixture.csv", stretches)
    text = page_of(run)
    words = words_of(text)
    assert "Part of the sequences over the run." in words
    assert "Requested and realised sequences are equal for every language." in words
    assert "20 sequences (10 %) had text that another language had before" in words
    assert not structure_of(text).wrong
    # A run of one ratio has no such figure, and one without repeats no such sentence.
    words = words_of(page_of(make_run(tmp_path / "plain", steps=100)))
    assert "over the run." not in words and "had text" not in words


# Runs side by side.


@pytest.fixture(scope="module")
def compared(tmp_path_factory) -> pathlib.Path:
    """The page of three runs: two that differ in their ratio, and one with another language."""
    folder = tmp_path_factory.mktemp("compared")
    made = [
        make_run(folder / "90_10"),
        make_run(folder / "50_50", {"en1": 50, "en2": 50}),
        make_run(folder / "three", {"en1": 80, "en2": 10, "en3": 10}, until=600),
    ]
    return pathlib.Path(comparison_page.write_comparison_page(made))


def row_of(page_text: str, *beginning: str) -> str:
    """Returns the words of the table row that begins so."""
    rows = [words_of(row) for row in re.findall(r"<tr>.*?</tr>", page_text, flags=re.S)]
    (found,) = [row for row in rows if row.startswith(" ".join(beginning))]
    return found


def test_runs_side_by_side_have_a_panel_for_each_language_with_a_curve_for_each_run(compared):
    text = compared.read_text()
    assert compared.name == "compared-90_10-50_50-three.html"
    panels = re.findall(r"<figure>.*?</figure>", text, flags=re.S)
    shown = [
        [name for name in ("90_10", "50_50", "three") if f">{name}</text>" in panel]
        for panel in panels
    ]
    assert shown == [["90_10", "50_50", "three"], ["90_10", "50_50", "three"], ["three"]]
    assert "Validation loss of en3." in words_of(panels[2])
    structure = structure_of(text)
    assert structure.wrong == [] and structure.open == []
    assert len(structure.ids) == len(set(structure.ids))
    assert all(ref.startswith(("#", "data:")) for ref in structure.references)


def test_what_differs_between_runs_is_listed_and_nothing_else(compared):
    text = compared.read_text()
    assert row_of(text, "config.mixture.ratio.en1") == "config.mixture.ratio.en1 90 50 80"
    assert row_of(text, "config.languages.en3").startswith("config.languages.en3 – – clone_of=en1")
    assert text.count("<code>config.") == 4  # and the ratio of en2 and en3


def test_results_side_by_side_have_a_difference_only_on_the_same_split(compared):
    text = compared.read_text()
    uneven, even = (
        RunDirectory(compared.parent / name).read_json("evaluation.json")["languages"]["en2"]
        for name in ("90_10", "50_50")
    )
    apart = {name: f"{even[name] - uneven[name]:+.3f}".replace("-", "−") for name in even}
    row = row_of(text, "en2, 50_50")
    assert f" {even['loss']:.3f} {apart['loss']} " in row
    assert f" {even['bits_per_byte']:.4f} {apart['bits_per_byte']} " in row
    assert "test, 1,000" in row_of(text, "en2, 90_10")
    assert "validation, 600" in row_of(text, "en2, three")
    assert row_of(text, "en2, three").count(" – ") == row_of(text, "en2, 90_10").count(" – ") == 2


def test_runs_on_other_text_are_said_not_to_compare(tmp_path):
    runs = [make_run(tmp_path / name, until=200) for name in ("one", "a_name_that_fits_no_figure")]
    about = provenance()
    about["sources"]["en"]["fingerprint"] = "0" * 20
    runs[1].write_json("provenance.json", about)
    text = comparison_page.write_comparison_page(runs).read_text()
    assert "Not the same test: en1: another text or tokenizer; en2: another" in words_of(text)
    assert row_of(text, "fingerprint of en").endswith("0" * 20)
    assert row_of(text, "en1, run 2").count(" – ") == 2
    assert row_of(text, "run 2").startswith("run 2 a_name_that_fits_no_figure unfinished 200")
    assert "The configs are equal." in text


def test_the_command_sets_runs_side_by_side(compared):
    folder = compared.parent
    done = report(f"--workdir={folder / '90_10'},{folder / '50_50'}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(folder / "compared-90_10-50_50.html")


def test_only_runs_and_each_once_are_set_side_by_side(complete, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing holds no run"):
        comparison_page.write_comparison_page([complete, RunDirectory(tmp_path / "nothing")])
    for runs in ([complete], [complete, RunDirectory(complete.path)]):
        with pytest.raises(ValueError, match="give two runs or more, each once"):
            comparison_page.write_comparison_page(runs)


def test_the_page_of_a_finished_run_says_where_its_metrics_end_too_early(tmp_path):
    run = make_run(tmp_path / "run")
    assert "metrics.jsonl ends at step" not in page_of(run)
    file = run.path / "metrics.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[: len(lines) // 2]))
    last = json.loads(lines[len(lines) // 2 - 1])["step"]
    assert f"metrics.jsonl ends at step {last:,}" in words_of(page_of(run))
