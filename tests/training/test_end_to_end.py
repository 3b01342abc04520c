"""The commands that users type, each in a process of its own, on a tiny model."""

import collections
import dataclasses
import json
import math
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from documented_names import find_undocumented, list_json_names
from helpers import ROOT, environment, run_main, write_jsonl

import imbalance_jax
from imbalance_jax import evaluate, generate
from imbalance_jax.data import inspect
from imbalance_jax.runs.run_directory import RunDirectory
from imbalance_jax.training import exporting, reopening

# A file in the manner of configs/: the tiny run of helpers.py.
TINY = """
from imbalance_jax import config as config_lib

def get_config(arg=""):
    choice = config_lib.parse_arg(arg, ratio="3:1")
    config = config_lib.cloned(scale="demo", ratio=choice.ratio)
    config.steps, config.batch_size, config.log_every = 20, 8, 5
    config.sources.en.packages = ("json", "email", "asyncio")
    config.sources.en.tokenizer.vocab_size = 384
    for name, value in {"L": 16, "D": 16, "H": 2, "K": 8, "F": 24, "N": 2}.items():
        config.model[name] = value
    config.evaluation.every, config.evaluation.max_windows = 10, 6
    # Where it is measured, whatever it takes: no clock decides what a test sees.
    config.evaluation.alignment.update(every=0, pairs=8, budget=1.0)
    config.checkpoint.every = 10
    return config
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, english, data_dir) -> list[str]:
    """The arguments of a tiny run whose text is prepared already."""
    file = tmp_path_factory.mktemp("configs") / "tiny.py"
    file.write_text(TINY)
    return [f"--config={file}", f"--config.data_dir={data_dir}"]


def parameters(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    return exporting.flatten_params(imbalance_jax.load(workdir).params)


def training_records(workdir: pathlib.Path) -> list[dict[str, float]]:
    """The records of training and evaluation, without what a clock says."""
    return [
        {name: value for name, value in record.items() if name[:5] not in ("time/", "perf/")}
        for record in RunDirectory(workdir).metrics()
        if any(name.startswith(("train/", "eval/")) for name in record)
    ]


def aligned_records(workdir: pathlib.Path) -> list[dict[str, float]]:
    """What was measured of alignment, without what a clock says."""
    return [
        {name: value for name, value in record.items() if name[:5] != "time/"}
        | {"align/share": 0.0}
        for record in RunDirectory(workdir).metrics()
        if "align/every" in record
    ]


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory) -> pathlib.Path:
    """A run that went from its first step to its report without a stop."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    align = "--config.evaluation.alignment.every=10"
    done = run_main(*tiny, align, f"--workdir={workdir}", JAX_LOG_COMPILES="1")
    assert done.returncode == 0, done.stderr
    (workdir.parent / "stderr").write_text(done.stderr)
    return workdir


def test_training_evaluation_and_alignment_compile_once_each(finished):
    log = (finished.parent / "stderr").read_text()
    compiled = collections.Counter(re.findall(r"Finished XLA compilation of jit\((\w+)\)", log))
    assert compiled["train_step"] == 1
    # Of all targets of a validation window, and of the last ones of a test window.
    assert compiled["_score_batch"] == 2
    # What measures alignment: of 10 and of 20 steps, with programs of the first time.
    records = [r for r in RunDirectory(finished).metrics() if "align/every" in r]
    assert records[0]["time/compile"] == pytest.approx(records[1]["time/compile"], abs=0.02)


def test_a_run_leaves_everything_that_its_directory_promises(finished):
    run = RunDirectory(finished)
    for name in ("config.json", "provenance.json", "metrics.jsonl", "mixture.csv", "DONE"):
        assert (finished / name).exists()
    assert "<svg" in (finished / "report.html").read_text()
    names = {name for record in run.metrics() for name in record}
    for tag in ("en1", "en2"):
        for metric in ("loss", "ppl", "bits_per_byte", "language_nats", "loss_own", "leak"):
            assert f"eval/{metric}/{tag}" in names
        assert {f"train/loss/{tag}", f"train/tokens/{tag}"} <= names
    assert {"train/loss", "train/grad_norm", "train/learning_rate"} <= names
    assert {"perf/tokens_per_second", "perf/mfu", "perf/data_wait_fraction"} <= names
    assert find_undocumented("metrics.jsonl", names) == []


def test_alignment_is_logged_at_its_cadence_with_what_it_cost(finished):
    records = [r for r in RunDirectory(finished).metrics() if "align/every" in r]
    assert [r["step"] for r in records] == [10, 20]
    for record in records:
        for name in ("embed_in", "embed_out", "embed_in_retrieval", "gradient"):
            assert math.isfinite(record[f"align/{name}/en1-en2"])
        for name in ("hidden", "hidden_shuffled", "hidden_centred", "cka", "retrieval"):
            layers = [key for key in record if key.startswith(f"align/{name}/en1-en2/")]
            assert layers == [f"align/{name}/en1-en2/{layer}" for layer in range(4)]
        shares = [record[f"align/gradient_share/{tag}"] for tag in ("en1", "en2")]
        assert sum(shares) == pytest.approx(1, abs=1e-4)
        assert record["align/every"] == 10
    # To compile is not to measure.
    assert 0 < records[-1]["align/share"] < 1
    assert records[-1]["time/align"] < records[-1]["time/compile"]


@pytest.fixture(scope="module")
def evaluated(finished, tmp_path_factory) -> pathlib.Path:
    """A run whose alignment was measured after its end, on one device."""
    copy = tmp_path_factory.mktemp("evaluated") / "run"
    shutil.copytree(finished, copy)
    done = run_main(f"--workdir={copy}", "--pairs=12", module="evaluate")
    assert done.returncode == 0, done.stderr
    assert "en1-en2, 12 sequences (clones)" in done.stdout
    return copy


def test_evaluate_writes_everything_down(finished, evaluated):
    copy = evaluated
    found = json.loads((copy / "evaluation.json").read_text())
    before = json.loads((finished / "evaluation.json").read_text())
    assert found["languages"] == before["languages"]
    pair = found["alignment"]["pairs"]["en1-en2"]
    assert len(pair["hidden"]["positions"]["cosine"]) == 4
    assert np.shape(pair["gradients"]["per_pair"]) == (16, 2)
    assert len(found["alignment"]["leak"]["en2"]["leak"]["by_position"]) == 16
    assert len(found["alignment"]["probe"]["accuracy"]) == 4
    assert set(pair["prefix"]) == {"en1 before en2", "en2 before en1"}
    assert find_undocumented("evaluation.json", list_json_names(found)) == []
    assert "Alignment" in (copy / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("devices", [8, 3])  # the batch of 8 cannot be cut in three
def test_evaluate_does_not_depend_on_devices(evaluated, monkeypatch, devices):
    copy = evaluated
    found = json.loads((copy / "evaluation.json").read_text())
    # Here, on several devices in place of one, and in other batches.
    here = jax.devices()[:devices]
    monkeypatch.setattr(jax, "devices", lambda: here)
    trainer, state = reopening.open_run(RunDirectory(copy), RunDirectory(copy).config())
    assert trainer.mesh.size == devices
    again = evaluate.evaluate_state(trainer, state, 12, losses=False)["alignment"]
    assert_close(again["pairs"], found["alignment"]["pairs"])
    assert_close(again["probe"], found["alignment"]["probe"])
    assert_close(again["leak"], found["alignment"]["leak"])


def assert_close(ours: object, theirs: object, where: str = "") -> None:
    """Compares two nests of plain values, numbers up to rounding."""
    if isinstance(ours, dict):
        assert isinstance(theirs, dict) and ours.keys() == theirs.keys(), where
        for name in ours:
            # Bare rounding has no cosine that two programs could agree on.
            if name not in ("per_pair", "mean_with_key_bias", "corrected", "corrected_mean"):
                assert_close(ours[name], theirs[name], f"{where}/{name}")
    elif isinstance(ours, list):
        assert isinstance(theirs, list) and len(ours) == len(theirs), where
        for i, (x, y) in enumerate(zip(ours, theirs, strict=True)):
            assert_close(x, y, f"{where}/{i}")
    elif isinstance(ours, float) and isinstance(theirs, float):
        assert ours == pytest.approx(theirs, abs=1e-3, nan_ok=True), where
    else:
        assert ours == theirs, where


@pytest.mark.slow
def test_evaluate_of_an_earlier_step_leaves_the_final_results_alone(finished, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    before = (copy / "evaluation.json").read_text()
    done = run_main(f"--workdir={copy}", "--pairs=8", "--step=10", module="evaluate")
    assert done.returncode == 0, done.stderr
    assert json.loads((copy / "evaluation-10.json").read_text())["step"] == 10
    assert (copy / "evaluation.json").read_text() == before


WRONG_EVALUATIONS = {
    "no run": (["--workdir=no/run"], "no/run holds no run"),
    "no such checkpoint": (["--step=7"], "has no checkpoint of step 7. It has: 10, 20."),
    "no such language": (["--languages=en1,de"], "--languages has 'de', and the run has en1, en2"),
    "one language": (["--languages=en1"], "alignment takes two"),
    "few pairs": (["--pairs=2"], "pairs"),
    "no losses to keep": (["--step=10", "--nolosses"], "there are none"),
}


@pytest.mark.parametrize("mistake", WRONG_EVALUATIONS)
def test_a_mistake_in_evaluate_is_one_message_and_changes_nothing(finished, mistake):
    args, expected = WRONG_EVALUATIONS[mistake]
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}
    done = run_main(f"--workdir={finished}", *args, module="evaluate")
    assert done.returncode == 2, done.stderr
    assert expected in done.stderr and "Traceback" not in done.stderr
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()} == before


def test_the_realised_ratio_is_the_requested_one_in_every_stretch_of_the_run(finished):
    rows = RunDirectory(finished).read_csv("mixture.csv")
    ends = [(0, 5), (5, 10), (10, 15), (15, 20)]
    assert [(int(r["first_step"]), int(r["last_step"])) for r in rows[::2]] == ends
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        assert (first["language"], second["language"]) == ("en1", "en2")
        assert first["requested_sequences"] == first["realised_sequences"] == "30"
        assert second["requested_sequences"] == second["realised_sequences"] == "10"
        assert second["realised_tokens"] == str(10 * 16)
        assert first["pool"] == second["pool"] == "en"
    assert float(rows[-1]["pool_epochs"]) == round(160 / int(rows[-1]["pool_windows"]), 6)


def test_the_loss_of_each_language_splits_exactly(finished):
    results = json.loads((finished / "evaluation.json").read_text())
    assert results["split"] == "test" and results["stride"] == 4
    for values in results["languages"].values():
        assert values["loss"] == pytest.approx(
            values["language_nats"] + values["loss_own"], abs=1e-5
        )
        assert values["ppl"] == pytest.approx(np.exp(values["loss"]))
    counts = [values["tokens"] for values in results["languages"].values()]
    assert counts[0] == counts[1] > 100


def test_a_finished_run_started_again_does_nothing_and_succeeds(finished, tiny):
    before = {p.name: p.stat().st_mtime_ns for p in finished.iterdir()}
    again = run_main(*tiny, f"--workdir={finished}")
    assert again.returncode == 0
    assert "is done" in again.stdout
    assert {p.name: p.stat().st_mtime_ns for p in finished.iterdir()} == before


def start_until(args: list[str], workdir: pathlib.Path, step: int) -> subprocess.Popen:
    """Returns a run that has logged a step and goes on."""
    command = [sys.executable, "-m", "imbalance_jax.main", *args, f"--workdir={workdir}"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if any(record["step"] >= step for record in RunDirectory(workdir).metrics()):
            return process
        time.sleep(0.02)
    raise AssertionError(process.communicate())


LONG = ["--config.steps=300", "--config.checkpoint.every=50", "--config.evaluation.every=100"]
LONG += ["--config.evaluation.alignment.every=100"]


@pytest.fixture(scope="module")
def uninterrupted(tiny, tmp_path_factory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("long") / "whole"
    assert run_main(*tiny, *LONG, f"--workdir={workdir}").returncode == 0
    return workdir


@pytest.mark.parametrize(
    ("how", "code"),
    [
        (signal.SIGKILL, -9),
        # Several processes (test_processes.py) and a store (test_cloud_storage.py) have it too.
        pytest.param(signal.SIGTERM, 75, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 75, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(tiny, uninterrupted, tmp_path, how, code):
    process = start_until([*tiny, *LONG], tmp_path / "run", step=60)
    process.send_signal(how)
    out, _ = process.communicate()
    assert process.returncode == code
    assert not (tmp_path / "run" / "DONE").exists()
    if code == 75:
        assert "To go on:" in out.decode()
        assert "imbalance_jax.main" in out.decode()
    assert run_main(*tiny, *LONG, f"--workdir={tmp_path / 'run'}").returncode == 0

    expected = parameters(uninterrupted)
    for name, array in parameters(tmp_path / "run").items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)
    evaluations = [
        [r for r in training_records(d) if "eval/loss/en1" in r]
        for d in (tmp_path / "run", uninterrupted)
    ]
    assert evaluations[0] == evaluations[1]
    alignments = [aligned_records(d) for d in (tmp_path / "run", uninterrupted)]
    assert alignments[0] == alignments[1] and len(alignments[0]) == 3
    steps = [r["step"] for r in training_records(tmp_path / "run") if "train/loss" in r]
    assert steps == sorted(set(steps))
    assert [(tmp_path / "run" / "mixture.csv").read_text()] == [
        (uninterrupted / "mixture.csv").read_text()
    ]


# Two clones of a toy language without end, one of which has its words shuffled.
PLACEBO = """
from imbalance_jax import config as config_lib
from imbalance_jax.config import SourceConfig
from imbalance_jax.study import grid

def get_config(arg=""):
    config = config_lib.cloned(scale="demo", ratio="3:1")
    config.sources.en = config_lib.declared(SourceConfig, kind="synthetic")
    config.sources.en.synthetic.update(lemmas=24, topics=4, depth=2)
    config.steps, config.batch_size, config.log_every = 3, 8, 1
    config.model.update(L=16, D=16, H=2, K=8, F=24, N=1)
    config.evaluation.every, config.evaluation.max_windows = 3, 6
    config.evaluation.max_test_windows = 8
    config.evaluation.alignment.every = 0
    return grid.placebo(config, "en1")
"""


@pytest.mark.slow
def test_a_placebo_of_text_without_end_trains_and_its_order_is_made_again(tmp_path):
    (tmp_path / "placebo.py").write_text(PLACEBO)
    args = [f"--config={tmp_path / 'placebo.py'}", f"--config.data_dir={tmp_path / 'data'}"]
    done = run_main(*args, f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert "words shuffled, least loss" in done.stdout
    run = RunDirectory(tmp_path / "run")
    known = json.loads((tmp_path / "run" / "evaluation.json").read_text())["entropy"]
    assert known["en2"]["least_loss"][1] < known["en1"]["least_loss"][0]
    losses = [record["train/loss"] for record in run.metrics() if "train/loss" in record]
    assert len(losses) == 3 and all(map(math.isfinite, losses))
    opened = inspect.TrainingData.of_run(str(run.path))
    assert inspect.check_run(run, opened) == []
    assert "en1" in inspect.describe_batch(opened, 2, 0)


def test_a_dry_run_forecasts_and_writes_no_run(tiny, tmp_path):
    done = run_main(*tiny, f"--workdir={tmp_path / 'run'}", "--dry_run")
    assert done.returncode == 0
    for word in ("parameters", "epochs", "MB", "s a step", "on disk, where"):
        assert word in done.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flag", ["--workdir", "--export", "--config.data_dir"])
def test_a_place_that_cannot_be_written_is_refused_before_any_text_is_read(tmp_path, flag):
    (tmp_path / "file").touch()
    args = {"--workdir": tmp_path / "run", "--config.data_dir": tmp_path / "data"}
    args[flag] = tmp_path / "file" / "below"
    done = run_main("--config=90_10", "--dry_run", *(f"{n}={place}" for n, place in args.items()))
    assert done.returncode == 2 and done.stdout == ""
    field = flag.removeprefix("--config.data_dir") and flag or "config.data_dir"
    assert done.stderr.startswith(f"error: {field}={args[flag]} cannot be written to. ")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_all_that_a_run_leaves_is_in_the_way_of_another(finished, tmp_path):
    for file in finished.iterdir():
        if file.name not in ("config.json", ".lock"):
            (tmp_path / file.name).mkdir()
            (tmp_path / file.name / file.name).touch()
            with pytest.raises(ValueError, match=f"{file.name} would be written over"):
                RunDirectory(tmp_path / file.name).check(RunDirectory(finished).config())


def test_a_run_can_be_extended_by_its_directory_alone_and_says_what_that_does(finished, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    # Without --config, overrides change the config that the run was started with.
    args = [f"--workdir={copy}", "--config.steps=30", "--config.evaluation.alignment.every=0"]
    refused = run_main(*args)
    assert refused.returncode == 2 and "--extend" in refused.stderr
    extended = run_main(*args, "--extend")
    assert extended.returncode == 0, extended.stderr
    assert "the learning rate goes from" in extended.stdout
    assert max(r["step"] for r in RunDirectory(copy).metrics()) == 30
    assert (copy / "DONE").exists()
    # What was measured of the shorter run is still there, under its step.
    assert "evaluation.json of step 20 is kept as evaluation-20.json" in extended.stdout
    for file, kept in {
        "evaluation.json": "evaluation-20.json",
        "test_texts.csv": "test_texts-20.csv",
    }.items():
        assert (copy / kept).read_text() == (finished / file).read_text()
    assert json.loads((copy / "evaluation.json").read_text())["step"] == 30


def test_a_loss_that_is_not_finite_fails_the_run_by_step_and_field(tiny, tmp_path):
    args = [*tiny, f"--workdir={tmp_path / 'run'}", "--config.optimizer.peak_lr=1e30"]
    failed = run_main(*args)
    assert failed.returncode == 1
    assert "config.optimizer.peak_lr" in failed.stderr
    assert "Traceback" not in failed.stderr
    details = json.loads((tmp_path / "run" / "FAILED.json").read_text())
    assert details["step"] >= 1 and details["error"] == "FloatingPointError"
    assert not (tmp_path / "run" / "DONE").exists()


@pytest.mark.slow
def test_a_run_follows_the_advice_to_accumulate(finished, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    for name in ("DONE", "evaluation.json"):
        (workdir / name).unlink()
    last = max((workdir / "checkpoints").iterdir(), key=lambda p: int(p.name))
    shutil.rmtree(last)
    config = json.loads((workdir / "config.json").read_text())
    config["evaluation"]["alignment"]["every"] = 0  # which takes most of the time to compile
    del config["crc32"]
    (workdir / "config.json").write_text(json.dumps(config))
    again = run_main(f"--workdir={workdir}", "--accumulate=2", "--remat=full")
    assert again.returncode == 0, again.stderr
    said = next(line for line in again.stdout.splitlines() if line.startswith("Goes on with"))
    assert "2 micro-batches instead of 1 micro-batch" in said and "remat=full" in said
    config = RunDirectory(workdir).config()
    assert (config.optimizer.accumulate, config.model.remat) == (2, "full")
    expected = parameters(finished)
    for name, array in parameters(workdir).items():
        # The same sums in another order; Adam moves a parameter without a gradient by rounding.
        if "b_k_HK" not in name:
            np.testing.assert_allclose(array, expected[name], atol=2e-4, err_msg=name)


WRONG = {
    "an unknown field": (
        ["--config.modle.D=3"],
        "config has no field 'modle'. Did you mean config.model",
    ),
    "an undeclared language": (["--config.mixture.ratio.fr=1"], "config.mixture.ratio.fr"),
    "a fractional ratio": (["--config.mixture.ratio.en2=0.5"], "config.mixture.ratio.en2=0.5"),
    "a negative ratio": (["--config.mixture.ratio.en2=-1"], "config.mixture.ratio.en2=-1"),
    "a batch that devices cannot share": (
        ["--config.batch_size=6", "--config.optimizer.accumulate=4"],
        "config.optimizer.accumulate=4",
    ),
    "a mesh of other size": (["--config.mesh.data=3"], "config.mesh.data=3"),
    "more pieces than the text has": (
        ["--config.sources.en.tokenizer.vocab_size=60000"],
        "config.sources.en.tokenizer.vocab_size=60000",
    ),
    "a source with no file": (["--config.sources.en.kind=files"], "config.sources.en.train"),
    "a file that the kind does not read": (
        ["--config.sources.en.train=text.txt"],
        "Leave it out, or set config.sources.en.kind",
    ),
    "a file that is not there": (
        ["--config.sources.en.kind=files", "--config.sources.en.train=no/such.txt"],
        "no/such.txt",
    ),
    "a language to align that is none": (
        ["--config.evaluation.alignment.languages=('en1', 'fr')"],
        "config.evaluation.alignment.languages has 'fr'",
    ),
    "no share of time": (
        ["--config.evaluation.alignment.budget=0.0"],
        "config.evaluation.alignment.budget=0.0",
    ),
    "a run to begin with that is none": (
        ["--config.init_from=no/run"],
        "config.init_from='no/run'",
    ),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_is_one_message_with_the_field_and_writes_nothing(tiny, tmp_path, mistake):
    args, expected = WRONG[mistake]
    done = run_main(*tiny, f"--workdir={tmp_path / 'run'}", *args)
    assert done.returncode == 2, done.stderr
    assert expected in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "run").exists()


def test_without_a_config_the_command_says_how_to_give_one():
    done = run_main()
    assert done.returncode == 2
    assert done.stderr.startswith("error: --config is missing. Give a file, such as --config=")


@pytest.mark.parametrize("content", [b"", b"caf\xe9 au lait\n" * 50])
def test_a_file_without_text_in_utf8_is_refused_by_name(tiny, tmp_path, content):
    file = tmp_path / "text.txt"
    file.write_bytes(content)
    args = ["--config.sources.en.kind=files", f"--config.sources.en.train={file}"]
    done = run_main(*tiny, f"--workdir={tmp_path / 'run'}", *args)
    assert done.returncode == 2
    assert "text.txt" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_directory_of_another_run_is_refused_and_left_as_it_was(finished, tiny):
    before = {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}
    done = run_main(*tiny, f"--workdir={finished}", "--config.model.D=24")
    assert done.returncode == 2
    assert "config.model.D=16" in done.stderr and "24" in done.stderr
    assert {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()} == before


def test_a_run_does_not_go_on_with_another_text(finished):
    run = RunDirectory(finished)
    run.check_text({"en": run.read_json("provenance.json")["sources"]["en"]["fingerprint"]}, 1)
    with pytest.raises(ValueError, match=r"another text or tokenizer of source en: .* --workdir"):
        run.check_text({"en": "0" * 16}, 1)
    with pytest.raises(ValueError, match="version 1 of the order"):
        run.check_text({}, 2)


def test_a_checkpoint_of_another_model_size_is_refused(finished, tiny, tmp_path):
    args = [f"--config.init_from={finished}", "--config.model.D=24"]
    done = run_main(*tiny, f"--workdir={tmp_path / 'run'}", *args)
    assert done.returncode == 2
    assert "config.model.D=16" in done.stderr and "config.model.D=24" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_can_go_on_from_another_in_one_language(finished, data_dir, tmp_path):
    choices = f"run={finished},language=en2,steps=10"
    args = [f"--config={ROOT}/configs/lm_transfer.py:{choices}", f"--config.data_dir={data_dir}"]
    done = run_main(*args, f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    run = RunDirectory(tmp_path / "run")
    evaluated = [r for r in run.metrics() if "eval/loss/en1" in r]
    last = [r for r in RunDirectory(finished).metrics() if "eval/loss/en1" in r][-1]
    assert [r["step"] for r in evaluated] == list(range(11))
    for name in ("eval/loss/en1", "eval/loss/en2"):
        # Other compilations of the same sums: fp32 rounding.
        assert evaluated[0][name] == pytest.approx(last[name], abs=1e-5)
    trained = collections.Counter()
    for row in run.read_csv("mixture.csv"):
        trained[row["language"]] += int(row["realised_sequences"])
    assert trained == {"en1": 0, "en2": 80}
    assert "What was gained and forgotten" in (run.path / "report.html").read_text()


def test_a_loaded_run_predicts_as_its_evaluation_says(finished, english):
    run = imbalance_jax.load(finished)
    text = "The function returns the value of the argument."
    for tag in ("en1", "en2"):
        ids = run.encode(text, tag)
        assert run.decode(ids, tag) == text
        assert run.forward(ids[None, :16]).shape == (1, min(16, len(ids)), 768)
    assert set(run.encode(text, "en1")).isdisjoint(run.encode(text, "en2"))
    # Held-out windows of en2, scored through logits and scipy-free NumPy.
    tokens = english.tokens("validation")
    L = run.config.model.L
    count = (len(tokens) - 1) // L
    starts = np.arange(6) * count // 6 * L
    windows = np.stack([tokens[s : s + L + 1] for s in starts]).astype(np.int64) + 384
    logits = np.asarray(run.forward(windows[:, :-1]), np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    loss = -np.take_along_axis(log_p, windows[:, 1:, None], -1).mean()
    last = [r for r in RunDirectory(finished).metrics() if "eval/loss/en2" in r][-1]
    assert last["eval/loss/en2"] == pytest.approx(loss, abs=1e-4)


def test_generated_text_stays_in_its_language(finished):
    run = imbalance_jax.load(finished)
    ids_BT = generate.generate_ids(run, "Returns", "en2", tokens=30, samples=2, temperature=1.0)
    prompt = run.encode("Returns", "en2")
    assert ids_BT.shape == (2, len(prompt) + 30)
    assert (ids_BT[:, : len(prompt)] == prompt).all()
    assert run.vocabulary.own_GV[1][ids_BT].all()
    done = run_main(f"--workdir={finished}", "--language=en2", "--tokens=5", module="generate")
    assert done.returncode == 0 and "--- en2 1" in done.stdout
    wrong = run_main(f"--workdir={finished}", "--language=fr", module="generate")
    assert wrong.returncode == 2 and "en1, en2" in wrong.stderr


def test_exported_parameters_give_the_same_logits(finished, tmp_path):
    from safetensors.numpy import load_file

    done = run_main(f"--workdir={finished}", f"--export={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    arrays = load_file(tmp_path / "out" / "model.safetensors")
    run = imbalance_jax.load(finished)
    blocks = jax.tree_util.tree_map_with_path(
        lambda path, leaf: np.stack(
            [arrays[".".join(["blocks", str(n), *(e.key for e in path)])] for n in range(2)]
        ),
        run.params["blocks"],
    )
    params = {name: arrays[name] for name in ("embed_VD", "position_LD", "head_VD")}
    norm = {name: arrays[f"final_norm.{name}"] for name in ("scale_D", "bias_D")}
    params |= {"blocks": blocks, "final_norm": norm}
    ids = run.encode("The value", "en1")[None]
    again = dataclasses.replace(run, params=params)
    np.testing.assert_array_equal(again.forward(ids), run.forward(ids))


@pytest.mark.slow
def test_clones_at_equal_parts_have_the_same_loss_and_at_nine_to_one_the_rare_one_is_worse(
    tmp_path,
):
    gaps = []
    for seed in range(3):
        workdir = tmp_path / f"50_{seed}"
        args = ["--config=configs/50_50.py", "--config.steps=500", f"--config.seed={seed}"]
        done = run_main(*args, f"--workdir={workdir}", f"--config.data_dir={tmp_path / 'data'}")
        assert done.returncode == 0, done.stderr
        results = json.loads((workdir / "evaluation.json").read_text())["languages"]
        gaps.append((results["en1"]["loss"], results["en2"]["loss"]))
    spread = np.std([loss for pair in gaps for loss in pair], ddof=1)
    assert abs(np.mean([a - b for a, b in gaps])) < 2 * spread
    args = ["--config=configs/90_10.py", "--config.steps=500", f"--workdir={tmp_path / '90'}"]
    assert run_main(*args, f"--config.data_dir={tmp_path / 'data'}").returncode == 0
    results = json.loads((tmp_path / "90" / "evaluation.json").read_text())["languages"]
    assert results["en2"]["loss"] - results["en1"]["loss"] > 10 * spread


# Tokenizers of every kind

KINDS = """
from imbalance_jax import config as config_lib
from imbalance_jax.config import LanguageConfig, SourceConfig, TokenizerConfig

def get_config(arg=""):
    kinds = {"a": dict(path="FOLDER"), "b": dict(model_type="bytes")}
    sources = {
        name: config_lib.declared(
            SourceConfig, kind="files", train="FOLDER/train.jsonl", test="FOLDER/test.jsonl",
            tokenizer=config_lib.declared(TokenizerConfig, **options),
        )
        for name, options in kinds.items()
    }
    config = config_lib.spoken(sources, scale="demo", ratio="2:1")
    for name, options in kinds.items():
        config.sources[name].tokenizer.update(options)
    config.vocabulary.layout = "merged"
    config.languages.b2 = config_lib.declared(LanguageConfig, clone_of="b")
    config.mixture.ratio.b2 = 1
    config.data_dir = "FOLDER/data"
    config.steps, config.batch_size, config.log_every = 4, 4, 4
    for name, value in {"L": 16, "D": 16, "H": 2, "K": 8, "F": 24, "N": 1}.items():
        config.model[name] = value
    config.evaluation.every = 0
    config.evaluation.alignment.every = 0
    config.checkpoint.every = 4
    return config
"""


@pytest.mark.slow
def test_a_run_has_a_tokenizer_json_and_bytes_of_the_same_text(tmp_path):
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    lines = [f"It was number {n} of the “quick” foxes.\nThey sat on <D> mats." for n in range(300)]
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    options = {"special_tokens": ["<|endoftext|>"], "show_progress": False}
    options["initial_alphabet"] = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=320, **options))
    made.save(str(tmp_path / "tokenizer.json"))
    write_jsonl(tmp_path / "train.jsonl", lines)
    write_jsonl(tmp_path / "test.jsonl", lines[:7])
    (tmp_path / "kinds.py").write_text(KINDS.replace("FOLDER", str(tmp_path)))

    args = f"--config={tmp_path / 'kinds.py'}", f"--workdir={tmp_path / 'run'}"
    begun = run_main(*args)
    assert begun.returncode == 0, begun.stderr
    extended = run_main(*args, "--config.steps=8", "--extend")
    assert extended.returncode == 0 and "from step 4" in extended.stdout, extended.stdout

    run = imbalance_jax.load(tmp_path / "run")
    results = json.loads((tmp_path / "run/evaluation.json").read_text())["languages"]
    L, stride = run.config.model.L, run.config.eval_stride
    for tag in ("a", "b", "b2"):
        tokenizer, tokens = run.tokenizers[run.config.source_of(tag)], results[tag]["tokens"]
        ids = [i for line in lines[:7] for i in (*tokenizer.encode(line), tokenizer.separator)]
        # The first window scores its last ids.
        scored = b"".join(tokenizer.written[i] for i in ids[1 + L - stride :][:tokens])
        assert scored in "".join(lines[:7]).encode() and len(ids) - tokens < L
        assert results[tag]["bytes"] == len(scored)
        bits = results[tag]["loss"] * tokens / np.log(2)
        assert results[tag]["bits_per_byte"] == pytest.approx(bits / len(scored))
        text = "the “quick” <D><|endoftext|> 日本"
        encoded = run.encode(text, tag)
        assert run.decode(encoded, tag) == text and run.separator(tag) not in encoded
    (written,) = generate.generate_ids(run, "It was", "a", tokens=5, samples=1)
    assert run.decode(written, "a").startswith("It was")
    assert {name: one.kind for name, one in run.tokenizers.items()} == {"a": "fast", "b": "bytes"}
    # Pieces that write the same have one id, and those of a clone are its own, but for padding.
    a, b, b2 = ({*row[row >= 0].tolist()} for row in run.vocabulary.map_GU)
    assert len(a & b) == 256 and b & b2 == {int(run.vocabulary.map_GU[1, 0])}
