"""A study on disk: what is done, what is left, and what was changed by hand."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import threading
import time

import made_studies
import pytest
from helpers import ROOT, list_parsed_json, read_plain_json
from made_studies import make, mixture, small_grid

from imbalance_jax import cli
from imbalance_jax.analysis import study_table
from imbalance_jax.runs import run_directory as runs
from imbalance_jax.runs.progress import format_duration
from imbalance_jax.study import grid, study_plan, study_runner
from imbalance_jax.study.study_directory import StudyDirectory

# Stands in for imbalance_jax.main: makes up the results of the members it is given.
FAKE = textwrap.dedent(
    """
    import signal, sys, time
    sys.path.insert(0, {tests!r})
    from made_studies import make_run
    from imbalance_jax.study.study_directory import StudyDirectory
    options = dict(arg.lstrip("-").split("=") for arg in sys.argv[1:])
    directory = StudyDirectory(options["study"])
    study = directory.study()
    for name in options["members"].split(","):
        run, spec = directory.run(name), study.runs[name]
        if name.startswith({fails!r}):
            run.claim(spec.config)
            run.fail(3, FloatingPointError("The loss of step 3 is nan."))
            sys.exit(1)
        if {slow!r}:
            run.claim(spec.config)
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
            time.sleep(60)
        make_run(directory, name, spec, gain=0.0, unit_tokens=study.unit_tokens)
    """
)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_runner, "_POLL_SECONDS", 0.1)


def fake(tmp_path: pathlib.Path, *, fails: str = "-", slow: bool = False) -> tuple[str, str]:
    script = tmp_path / "fake_main.py"
    tests = str(ROOT / "tests")
    script.write_text(FAKE.format(tests=tests, fails=fails, slow=slow))
    return sys.executable, str(script)


def begin(tmp_path: pathlib.Path, **options) -> tuple[StudyDirectory, grid.StudyConfig]:
    study = grid.resolve_study(small_grid(seeds=1, fractions=(1,), **options))
    directory = StudyDirectory(tmp_path / "study")
    directory.claim(study)
    return directory, study


def train(directory, study, command, *, jobs=2, pack=0, retry=False) -> tuple[int, list[str]]:
    runner = study_runner.StudyRunner(directory, study, command=command)
    left = runner.left(retry=retry)
    return runner.run(study_runner.group_into_packs(study, left, pack), jobs=jobs), left


def test_a_study_trains_what_is_left_and_a_larger_one_only_what_is_new(tmp_path):
    directory, study = begin(tmp_path)
    code, left = train(directory, study, fake(tmp_path))
    assert code == cli.DONE and left == list(study.runs)
    larger = grid.resolve_study(small_grid(seeds=1, fractions=(0.5, 1)))
    directory.check(larger)
    _, left = train(directory, larger, fake(tmp_path))
    assert left == ["mono_en1_50_s0", "matched_en1_50_s0"]


def test_a_run_that_fails_fails_alone_and_is_tried_again_only_when_asked(tmp_path, capsys):
    directory, study = begin(tmp_path)
    code, _ = train(directory, study, fake(tmp_path, fails="r90"))
    states = directory.states(study)
    assert code == cli.FAILED
    assert [name for name, found in states.items() if found.state != "done"] == ["r90_10_s0"]
    assert "FAILED  r90_10_s0 at step 3: The loss of step 3 is nan." in capsys.readouterr().out
    assert train(directory, study, fake(tmp_path))[1] == []
    assert train(directory, study, fake(tmp_path), retry=True)[1] == ["r90_10_s0"]


def test_a_run_that_a_signal_ended_is_reported_by_it(tmp_path, capsys):
    directory, study = begin(tmp_path)
    abort = ("bash", "-c", "ulimit -c 0; kill -ABRT $$")
    assert train(directory, study, abort)[0] == cli.FAILED
    assert "at step 0: ended by SIGABRT, as a library does that" in capsys.readouterr().out


@pytest.mark.parametrize(("given", "seen"), [(None, "glibc.malloc.hugetlb=1"), ("own", "own")])
def test_a_run_has_huge_pages_unless_its_user_set_how_memory_is_had(
    tmp_path, monkeypatch, given, seen
):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if given:
        monkeypatch.setenv("GLIBC_TUNABLES", given)
    directory, study = begin(tmp_path)
    script = f'echo "$GLIBC_TUNABLES" >> {tmp_path}/seen'
    train(directory, study, ("bash", "-c", script))
    assert set((tmp_path / "seen").read_text().split()) == {seen}


def test_an_interruption_reaches_every_process_and_the_study_goes_on_later(tmp_path, capsys):
    directory, study = begin(tmp_path)

    def stop_when_begun() -> None:
        while not (directory.run("r90_10_s0").path / "config.json").exists():
            time.sleep(0.1)
        time.sleep(0.5)  # until the last of the stand-ins listens
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_when_begun, daemon=True).start()
    began = time.monotonic()
    code, _ = train(directory, study, fake(tmp_path, slow=True))
    assert code == cli.PREEMPTED and time.monotonic() - began < 55  # the stand-ins sleep for 60
    assert "saved   r50_50_s0" in capsys.readouterr().out
    code, left = train(directory, study, fake(tmp_path))
    assert code == cli.DONE and left == list(study.runs)


def test_runs_that_another_process_trains_are_waited_for_and_not_called_failed(tmp_path, capsys):
    """As after SIGKILL of `study run`: its pack goes on until it has saved."""
    directory, study = begin(tmp_path)
    [pack] = [
        p for p in study_runner.group_into_packs(study, list(study.runs), 4) if "r50_50_s0" in p
    ]
    other = directory.run("r50_50_s0")
    other.claim(study.runs["r50_50_s0"].config)
    held_at: list[str] = []
    ended = threading.Event()

    def let_go() -> None:
        while "waiting" not in (said := capsys.readouterr().out) and not ended.is_set():
            held_at.append(said)
            time.sleep(0.05)
        held_at.append(said)
        time.sleep(0.5)
        held_at.append(capsys.readouterr().out)
        other.release()

    thread = threading.Thread(target=let_go, daemon=True)
    thread.start()
    code, _ = train(directory, study, fake(tmp_path), jobs=1, pack=4)
    ended.set()
    thread.join()
    before = "".join(held_at)
    assert "waiting r50_50_s0: another process is training it" in before
    # One job's worth of work was going on already, so no other began beside it.
    assert "begun" not in before and len(pack) > 1
    after = capsys.readouterr().out
    assert code == cli.DONE and "FAILED" not in after and "done    r50_50_s0" in after


def test_a_run_that_is_held_is_told_from_one_that_is_not(tmp_path):
    directory, study = begin(tmp_path)
    run = directory.run("r50_50_s0")
    assert not runs.is_directory_locked(run.path)
    run.claim(study.runs["r50_50_s0"].config)
    assert runs.is_directory_locked(run.path) and runs.is_directory_locked(run.path)
    run.release()
    assert not runs.is_directory_locked(run.path)


def test_runs_that_differ_in_ratio_seed_and_rate_are_packed_and_others_are_not():
    study = grid.resolve_study(small_grid(seeds=2, fractions=(0.5, 1)))
    found = study_runner.group_into_packs(study, list(study.runs), 8)
    assert ("r50_50_s0", "r90_10_s0", "placebo90_10_s0", "r50_50_s1", "r90_10_s1",
            "placebo90_10_s1") in found  # fmt: skip
    assert ("mono_en1_50_s0", "mono_en1_50_s1") in found
    assert sorted(name for pack in found for name in pack) == sorted(study.runs)
    assert max(map(len, study_runner.group_into_packs(study, list(study.runs), 2))) == 2


def test_the_directory_of_another_grid_is_refused_with_the_field(tmp_path):
    directory, _ = begin(tmp_path)
    changed = small_grid(seeds=1, fractions=(1,))
    changed.runs.r90_10_s0.config.optimizer.peak_lr = 0.5
    with pytest.raises(ValueError, match=r"run r90_10_s0 has config\.optimizer\.peak_lr=0\.003"):
        directory.check(grid.resolve_study(changed))
    fewer = grid.resolve_study(small_grid(ratios=("50:50",), seeds=1, fractions=(1,)))
    with pytest.raises(ValueError, match="study of another grid: it has a run"):
        directory.check(fewer)


def test_a_directory_with_something_else_in_it_is_refused(tmp_path):
    (tmp_path / "slurm-1.out").write_text("of a job that trains the study")
    StudyDirectory(tmp_path).check(grid.resolve_study(small_grid()))
    (tmp_path / "table.csv").write_text("mine")
    with pytest.raises(ValueError, match=r"table\.csv would be written over.* --workdir"):
        StudyDirectory(tmp_path).check(grid.resolve_study(small_grid()))
    with pytest.raises(FileNotFoundError, match=r"has no study\.json"):
        StudyDirectory(tmp_path).study()


def edit(path: pathlib.Path, change) -> None:
    plain = read_plain_json(path)  # as of earlier versions
    change(plain)
    path.write_text(json.dumps(plain))


@pytest.mark.parametrize(
    "file, change, message",
    [
        ("config.json", lambda c: c.update(steps=7), r"changed by hand.*config\.steps=7"),
        ("evaluation.json", lambda e: e["languages"].pop("en2"), "done and has nothing of en2"),
        ("evaluation.json", lambda e: e["languages"]["en2"].update(loss=1.0), "do not add up"),
    ],
)
def test_a_run_changed_by_hand_is_found(tmp_path, file, change, message):
    directory = make(tmp_path / "study", small_grid(seeds=1))
    edit(pathlib.Path(directory.run("r90_10_s0").path) / file, change)
    with pytest.raises(ValueError, match=message):
        study_table.read_study_table(directory)


def test_a_study_file_changed_by_hand_is_found(tmp_path):
    directory, _ = begin(tmp_path)
    edit(
        pathlib.Path(directory.path) / "study.json",
        lambda s: s["runs"]["r90_10_s0"]["config"].update(steps=7),
    )
    with pytest.raises(ValueError, match="run r90_10_s0 does not have the hash"):
        directory.study()


def test_a_study_of_more_micro_batches_is_the_study_that_was_begun(tmp_path):
    directory, study = begin(tmp_path)
    changed = small_grid(seeds=1, fractions=(1,))
    changed.runs.r90_10_s0.config.optimizer.accumulate = 2
    directory.check(grid.resolve_study(changed))
    directory.claim(grid.resolve_study(changed))
    assert directory.study().runs["r90_10_s0"].config.optimizer.accumulate == 2
    # As versions wrote it that took micro-batches for a part of a run.
    spec = directory.study().runs["r90_10_s0"]
    edit(
        pathlib.Path(directory.path) / "study.json",
        lambda s: s["runs"]["r90_10_s0"].update(hash=spec.earlier_hash),
    )
    assert directory.study().runs["r90_10_s0"].hash == study.runs["r90_10_s0"].hash


def test_a_study_serves_another_that_reuses_it_and_is_read_once_for_all_runs(tmp_path, monkeypatch):
    make(tmp_path / "first", small_grid(seeds=1, fractions=(1,)))
    config = small_grid(seeds=2, fractions=(1,))
    config.reuse = (str(tmp_path / "first"),)
    study = grid.resolve_study(config)
    directory = StudyDirectory(tmp_path / "second")
    directory.claim(study)
    opened, open_study = [], StudyDirectory.study
    monkeypatch.setattr(
        StudyDirectory, "study", lambda self: (opened.append(self.name), open_study(self))[1]
    )
    left = study_runner.StudyRunner(directory, study).left(retry=False)
    assert left == [name for name in study.runs if name.endswith("_s1")]
    assert opened == ["first"]
    assert {row.seed for row in study_table.read_study_table(directory).observations} == {0}


def test_how_far_a_run_is_and_how_fast_are_read_from_the_end_of_its_log(tmp_path, monkeypatch):
    directory, study = begin(tmp_path)
    name, (run, steps) = "r90_10_s0", (directory.run("r90_10_s0"), range(1, 900))
    run.claim(study.runs[name].config)
    for step in steps:
        run.log(step, {"train/loss": 1 / step, "perf/tokens_per_second": step, "time/total": step})
    parsed = list_parsed_json(monkeypatch)
    state = directory.state(name, study)
    assert (state.state, state.step) == ("begun", steps[-1])
    assert "loss 0.0011   899 tokens/s" in study_plan.describe_states(study, directory)
    assert len(parsed) <= 2 * len(study.runs) + 6


def test_the_table_has_a_row_for_each_trained_language_of_a_finished_run(tmp_path):
    directory = make(tmp_path / "study", small_grid(seeds=2))
    table = study_table.read_study_table(directory)
    rows = {(row.run, row.language): row for row in table.observations}
    rare = rows["r90_10_s1", "en2"]
    assert (rare.tokens, rare.share, rare.source) == (0.1 * table.unit_tokens, 0.1, "en")
    assert rare.epochs == pytest.approx(0.5)
    assert rare.loss == pytest.approx(rare.language_nats + rare.loss_own)
    hidden = [row for row in table.alignments if row.run == "r50_50_s0" and row.measure == "hidden"]
    assert [row.layer for row in hidden] == [0, 1, 2, 3]
    assert hidden[0].excess == pytest.approx(0.05, abs=0.05)
    written = [pathlib.Path(path).name for path in study_table.write_study_table(table, directory)]
    stems = ("table", "alignment", "curves")
    assert written == [f"{stem}.{kind}" for stem in stems for kind in ("csv", "parquet")]
    lines = (tmp_path / "study" / "table.csv").read_text().splitlines()
    assert len(lines) == 1 + len(table.observations) and "ppl" in lines[0]


def test_a_plan_counts_tokens_and_hours_of_what_is_left(tmp_path):
    directory = make(tmp_path / "study", small_grid(seeds=1))
    larger = grid.resolve_study(small_grid(seeds=2))
    speeds = study_plan.read_measured_speeds(directory, larger)
    states = directory.states(larger)
    text = study_plan.describe_study_plan("study", larger, states, speeds, pack=8)
    left = [spec for name, spec in larger.runs.items() if name.endswith("_s1")]
    tokens = sum(spec.tokens for spec in left)
    assert f"left: {len(left)} runs, {tokens:,} tokens" in text
    # A made run takes 0.01 s a step.
    steps = sum(spec.config.steps for spec in left)
    assert f"time: {format_duration(0.01 * steps)} one after another" in text


def test_a_plan_says_before_training_that_nothing_could_be_proposed(tmp_path):
    def plan():
        study = grid.resolve_study(made.to_config())
        states = StudyDirectory(tmp_path / "x").states(study)
        return study_plan.describe_study_plan("x", study, states, {}, 0)

    made = grid.Grid("Clones.", unit=made_studies.mixture("50:50"))
    for ratio in ("50:50", "25:75", "100:0"):
        made.add(made_studies.cell_of(ratio), made_studies.mixture(ratio), seeds=[0])
    made.objective("long", tokens=10**9)
    text = plan()
    assert "needs 3 ratios in which every language has a part, and the study has 2. Add" in text
    assert "config.objectives.long.tokens=1000000000, and all mixtures have 320000 tokens" in text
    made.add("r90_10", made_studies.mixture("90:10"), seeds=[0])
    made.objective("long")
    assert "propose" not in plan()


def test_what_a_plan_tries_is_computed_as_the_study_would_be(monkeypatch):
    study, asked = grid.resolve_study(small_grid(ratios=("50:50",), seeds=1)), []

    def note(command, **options):
        asked.append(command)
        return subprocess.CompletedProcess(command, 0, "2.5 s a step (measured over 3 steps): ", "")

    monkeypatch.setattr(study_plan.subprocess, "run", note)
    name = next(iter(study.runs))
    size = study_plan.make_size_key(study.runs[name].config)
    found = study_plan.measure_trial_speeds(study, [size], ["--accumulate=2"])
    assert found[size].source == "measured over 3 steps"
    assert asked[0][-3:] == [f"--members={name}", "--dry_run", "--accumulate=2"]


def test_the_commands_refuse_what_they_cannot_do(tmp_path):
    def refused(*args: str) -> str:
        command = [sys.executable, "-m", "imbalance_jax.study", *args]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == cli.REFUSED, done.stderr
        return done.stderr

    assert "Give one command of plan, run, status" in refused("--workdir=x")
    assert "has no study.json" in refused("status", "--workdir=x")
    config = ROOT / "configs" / "90_10.py"
    assert "no field `runs`" in refused("plan", f"--config={config}")
    made_studies.make(tmp_path / "two", small_grid(fractions=(), seeds=1), alignment=False)
    assert "--workdir is missing. Give the directory of a study, such as" in refused("propose")
    assert "holds no study: it has no study.json. Did you mean" in refused(
        "status", "--workdir=twi"
    )
    study = f"--config={ROOT / 'configs/studies/mix.py'}:files=txet,ratios=1:1"
    assert "txet/en.train.jsonl.gz matches no file" in refused("plan", study)
    error = refused("propose", "--workdir=two")
    assert "2 ratios are done, and the simplest needs 3. Add ratios" in error
    assert len(error.strip().splitlines()) == 1 and not (tmp_path / "two" / "proposals").exists()


def test_a_study_keeps_which_text_its_runs_open(tmp_path):
    study, directory = grid.resolve_study(small_grid(seeds=2)), StudyDirectory(tmp_path / "s")
    directory.claim(study)
    assert directory.texts() == {}
    first, second, *_ = study.runs
    directory.claim(study, {first: {"en": "a"}})
    directory.claim(study, {second: {"en": "b"}})
    assert directory.texts() == {first: {"en": "a"}, second: {"en": "b"}}
    assert directory.binding_texts() == {}  # until a run has begun with it
    directory.run(first).claim(study.runs[first].config)
    assert directory.binding_texts() == directory.texts()
    directory.check(study)  # what it says of text makes a run no other
    assert directory.study().runs[first].hash == study.runs[first].hash


def test_a_plan_names_batch_sizes_that_every_language_divides(tmp_path):
    def planned(batch: int) -> str:
        def sized(ratio: str):
            config = mixture(ratio)
            config.batch_size = batch
            return config

        made = grid.Grid("Parts of a batch.", unit=sized("90:10"))
        made.add("r90_10", sized("90:10"), seeds=(0,))
        made.baselines(sized("90:10"), "en1", fractions=(0.1, 0.5, 1), seeds=(0,))
        study = grid.resolve_study(made.to_config())
        states = StudyDirectory(tmp_path / "none").states(study)
        return study_plan.describe_study_plan("study", study, states, {}, pack=0)

    text = planned(32)
    assert "batch 32: 3 sequences a step stand for the 3.2 of r90_10 en2 in a matched" in text
    assert "(-6.2 % of its tokens)" in text
    assert "config.batch_size=30 or 40 would divide." in text
    assert "batch 40:" not in planned(40)
