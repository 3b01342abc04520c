"""Runs and text in an object store: Google Cloud Storage, as an emulator on this machine has it."""

import contextlib
import dataclasses
import logging
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from helpers import ROOT, tiny_config, write_jsonl
from made_studies import small_grid

from imbalance_jax.compute.checkpoint import Checkpoints
from imbalance_jax.compute.step import TrainState
from imbalance_jax.config import SourceConfig, TokenizerConfig
from imbalance_jax.data import prepare, sources
from imbalance_jax.data.prepare import writing
from imbalance_jax.data.text import own_files
from imbalance_jax.runs import storage
from imbalance_jax.runs.metrics_log import MetricsFile, MetricsSegments
from imbalance_jax.runs.run_directory import RunDirectory
from imbalance_jax.study import grid
from imbalance_jax.study.study_directory import StudyDirectory

# Metrics in segments. A local directory does for the objects: they are only written whole.


class Time:
    """A clock that is set by hand."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


def records(*steps):
    return [{"step": step, "train/loss": 7.0 - step / 100} for step in steps]


def log(directory, steps, **options):
    made = MetricsSegments(epath.Path(directory), **options)
    for record in records(*steps):
        made.append(record)
    return made


def names(directory):
    return sorted(file.name for file in directory.iterdir())


def test_what_was_logged_is_read_at_once_and_by_others_when_it_is_flushed(tmp_path):
    ours = log(tmp_path, (1, 2), now=Time())
    others = MetricsSegments(epath.Path(tmp_path))
    assert list(ours.read()) == records(1, 2)
    assert list(others.read()) == []
    ours.flush()
    assert list(others.read()) == list(ours.read()) == records(1, 2)


def test_an_open_segment_is_written_anew_when_seconds_have_passed(tmp_path):
    now = Time()
    made = log(tmp_path, (1, 2), seconds=10, now=now)
    assert names(tmp_path) == []
    for step, seconds, seen in ((3, 9.9, 0), (4, 10.0, 4), (5, 19.9, 4), (6, 20.0, 6)):
        now.seconds = seconds
        made.append(*records(step))
        written = list(MetricsSegments(epath.Path(tmp_path)).read())
        assert written == records(*range(1, seen + 1))
    assert names(tmp_path) == ["metrics-00000.jsonl"]


def test_a_full_segment_is_closed_and_never_written_again(tmp_path):
    made = log(tmp_path, range(1, 8), size=130, now=Time())  # a line has 54 characters
    made.flush()
    assert names(tmp_path) == [f"metrics-{n:05}.jsonl" for n in range(3)]
    before = (tmp_path / "metrics-00000.jsonl").stat().st_mtime_ns
    made.append(*records(8))
    made.flush()
    assert (tmp_path / "metrics-00000.jsonl").stat().st_mtime_ns == before
    assert list(made.read()) == records(*range(1, 9))


@pytest.mark.parametrize("step", [0, 1, 4, 5, 8])
def test_a_log_that_was_cut_off_goes_on_from_there(tmp_path, step):
    log(tmp_path, range(1, 9), size=80, now=Time()).flush()
    resumed = MetricsSegments(epath.Path(tmp_path), now=Time())
    resumed.truncate(step)
    assert list(MetricsSegments(epath.Path(tmp_path)).read()) == records(*range(1, step + 1))
    resumed.append(*records(step + 1))
    resumed.flush()
    assert list(MetricsSegments(epath.Path(tmp_path)).read()) == records(*range(1, step + 2))


def test_a_log_that_was_copied_from_a_file_system_or_to_one_goes_on(tmp_path):
    """Each form reads the other, and what it adds comes behind it."""
    MetricsFile(epath.Path(tmp_path)).append(*records(1))
    in_store = log(tmp_path, (2, 3), now=Time())
    in_store.flush()
    assert list(in_store.read()) == records(1, 2, 3)
    local = MetricsFile(epath.Path(tmp_path))
    local.truncate(2)
    local.append(*records(3))
    assert names(tmp_path) == ["metrics.jsonl"]
    assert list(local.read()) == records(1, 2, 3)


def test_other_stores_and_text_in_one_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"gs:///runs names no bucket\. Write gs://BUCKET/runs\."):
        storage.parse_path("gs:///runs")
    with pytest.raises(ValueError, match="s3:// paths cannot be used"):
        RunDirectory("s3://bucket/runs/one")
    source = SourceConfig(kind="files", train="gs://bucket/*.jsonl")
    with pytest.raises(ValueError, match=r"config\.sources\.en\.train='gs://.*mount the bucket"):
        own_files.check_source("en", source)


# Against the emulator.


@pytest.fixture(scope="module")
def bucket():
    """The gs:// path of an empty bucket, which this process and its children reach."""
    pytest.importorskip("gcsfs", reason="pip install -e '.[test]'")
    pytest.importorskip("gcp_storage_emulator", reason="pip install -e '.[test]'")
    from gcp_storage_emulator import server
    from gcp_storage_emulator.handlers import objects

    plain = objects.download

    def download(request, response, storage_, *args, **kwargs):
        # Cloud Storage says which generation it sends, tensorstore asks for it, and the emulator
        # leaves it out.
        with contextlib.suppress(LookupError, objects.NotFound):
            params = request.params
            found = storage_.get_file_obj(params["bucket_name"], params["object_id"])
            response["x-goog-generation"] = found["generation"]
        return plain(request, response, storage_, *args, **kwargs)

    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    url = f"http://localhost:{port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objects, "download", download)
        # No search for credentials, and none for what kind of bucket it is.
        for name, value in {
            "STORAGE_EMULATOR_HOST": url,
            "TENSORSTORE_GCS_HTTP_URL": url,
            "NO_GCE_CHECK": "true",
            "GCE_METADATA_ROOT": "localhost:1",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }.items():
            patch.setenv(name, value)
        with server.create_server("localhost", port, in_memory=True, default_bucket="bucket"):
            yield "gs://bucket"


def test_two_processes_that_prepare_the_same_text_leave_one_that_is_whole(
    bucket, english, tmp_path, monkeypatch
):
    monkeypatch.setenv("IMBALANCE_JAX_CACHE", str(tmp_path))
    path = storage.parse_path(bucket) / "twice" / "en"

    def documents(rows):
        yield "train", "a", np.arange(rows), 3
        if rows == 7:  # the other process comes when this one has found nothing and works
            write(5)
        yield "validation", "b", np.arange(4), 3

    def write(rows):
        sources.write_source(
            path, name="en", text="f", tokenizer=english.model, documents=documents(rows)
        )

    write(7)
    source = sources.open_source("en", path, tmp_path)
    assert source.tokens("train").tolist() in (list(range(5)), list(range(7)))
    assert source.tokens("validation").tolist() == [0, 1, 2, 3]
    assert source.model == english.model
    assert source.count("test") == 0


def test_what_was_prepared_here_and_copied_to_a_store_is_found_there(
    bucket, english, tmp_path, monkeypatch
):
    monkeypatch.setenv("IMBALANCE_JAX_CACHE", str(tmp_path))
    monkeypatch.setattr(writing, "write_prepared_source", None)
    storage.upload_directory(
        english.path, storage.parse_path(bucket) / "copied" / english.path.name
    )
    config = tiny_config(pathlib.Path("unused"))
    there = prepare.prepare_source("en", config.sources["en"], f"{bucket}/copied")
    assert there.path == epath.Path(bucket) / "copied" / english.path.name
    for split in ("train", "test"):
        np.testing.assert_array_equal(there.tokens(split), english.tokens(split))
        np.testing.assert_array_equal(there.documents(split), english.documents(split))
    assert not [path for path in tmp_path.rglob("*.array_record*")]  # what was copied is gone


def test_text_opens_from_a_store_alone_by_its_statement_and_by_its_fingerprint(
    bucket, english, tmp_path, monkeypatch
):
    monkeypatch.setenv("IMBALANCE_JAX_CACHE", str(tmp_path / "cache"))
    write_jsonl(tmp_path / "en.jsonl", [f"Text {n} says {n % 7}." for n in range(300)])
    source = SourceConfig(
        kind="files",
        train=str(tmp_path / "en.jsonl"),
        tokenizer=TokenizerConfig(path=str(tmp_path / "en.model")),
    )
    (tmp_path / "en.model").write_bytes(english.model)
    there = f"{bucket}/alone"
    before = prepare.prepare_source(
        "en", source, there
    )  # written to the store, where it has a name more
    (tmp_path / "en.jsonl").unlink()
    (tmp_path / "en.model").unlink()
    opened = prepare.prepare_source("en", source, there)
    assert opened.fingerprint == before.fingerprint
    np.testing.assert_array_equal(opened.tokens("test"), before.tokens("test"))
    other = dataclasses.replace(source, field="body")
    with pytest.raises(ValueError, match="Nor does gs://bucket/alone have config.sources.en"):
        prepare.prepare_source("en", other, there)
    assert (
        prepare.prepare_source("en", other, there, recorded=before.fingerprint).path == opened.path
    )


def test_a_study_is_claimed_and_found_in_a_store(bucket):
    study, directory = grid.resolve_study(small_grid()), StudyDirectory(f"{bucket}/studies/one")
    directory.check(study)
    directory.claim(study)
    again = StudyDirectory(f"{bucket}/studies/one/")
    assert again.name == "one"
    assert again.study().runs.keys() == study.runs.keys()
    assert {state.state for state in again.states(study).values()} == {"absent"}


def test_a_checkpoint_that_was_not_saved_whole_does_not_count_and_is_saved_again(bucket):
    run = RunDirectory(f"{bucket}/killed")
    checkpoints = Checkpoints(run.checkpoints)

    def save(value):
        state = TrainState(jnp.int32(3), {"w_DF": jnp.full((2, 3), value)}, (), jnp.zeros(2))
        checkpoints.save(state)
        checkpoints.wait()
        return state

    save(1.0)
    assert run.newest_checkpoint() == 3 and checkpoints.steps() == [3]
    checkpoints.close()
    (run.checkpoints / "3" / "commit_success.txt").unlink()
    assert run.newest_checkpoint() == 0
    checkpoints = Checkpoints(run.checkpoints)
    assert checkpoints.steps() == []
    state = save(2.0)
    assert run.newest_checkpoint() == 3
    restored = checkpoints.restore(3, state)
    np.testing.assert_array_equal(restored.params["w_DF"], state.params["w_DF"])
    checkpoints.close()


FAST = "--xla_backend_optimization_level=0"  # to compile
RUN = """
from imbalance_jax import config as config_lib

def get_config(arg=""):
    config = config_lib.cloned(scale="demo", ratio="3:1")
    config.steps, config.batch_size, config.log_every = 120, 8, 5
    config.sources.en.packages = ("json", "email", "asyncio")
    config.sources.en.tokenizer.vocab_size = 384
    config.model.update(L=16, D=16, H=2, K=8, F=24, N=1)
    config.evaluation.update(every=60, max_windows=6, stride=16, max_test_windows=50)
    config.evaluation.alignment.every = 0
    config.checkpoint.every = 40
    return config
"""


def start(config, *args, **env):
    env = os.environ | {"XLA_FLAGS": FAST, "JAX_PLATFORMS": "cpu", "JAX_LOG_COMPILES": "1"} | env
    command = [sys.executable, "-m", "imbalance_jax.main", f"--config={config}", *args]
    return subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ended(process, code):
    """Returns what a process printed, once it has ended with an exit code."""
    out, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors[-3000:]
    return out, errors


def losses(run, resumed):
    """All losses in their order, but for those of the first record after a run was resumed."""
    return [
        (record["step"], name, value)
        for record in run.metrics()
        for name, value in record.items()
        if name.startswith(("train/loss", "eval/")) and record["step"] != resumed
    ]


@pytest.mark.slow
def test_a_run_in_a_store_is_stopped_and_goes_on_to_the_results_of_one_on_disk(
    bucket, english, data_dir, tmp_path
):
    config = tmp_path / "tiny.py"
    config.write_text(RUN)
    cache = {"IMBALANCE_JAX_CACHE": str(tmp_path / "cache")}
    cache |= {"JAX_COMPILATION_CACHE_DIR": f"{bucket}/compiled"}
    in_store = [f"--config.data_dir={bucket}/data", f"--workdir={bucket}/run"]
    run, local = RunDirectory(f"{bucket}/run"), RunDirectory(tmp_path / "run")

    storage.upload_directory(english.path, run.path.parent / "data" / english.path.name)
    stopped = start(config, *in_store, **cache)
    while not (run.checkpoints / "40" / "commit_success.txt").exists():
        assert stopped.poll() is None, stopped.communicate()
        time.sleep(0.1)
    stopped.send_signal(signal.SIGTERM)
    said, _ = ended(stopped, 75)
    assert f"in {bucket}/run. To go on:" in said
    step = run.newest_checkpoint()
    assert 40 <= step < 120 and not run.done
    assert max(record["step"] for record in run.metrics()) == step // 5 * 5

    on_disk = start(config, f"--config.data_dir={data_dir}", f"--workdir={local}", **cache)
    said, errors = ended(start(config, *in_store, **cache), 0)
    ended(on_disk, 0)
    assert f"Going on from step {step}" in said
    found = re.findall(r"Persistent compilation cache hit for 'jit_(\w+)'", errors)
    assert {"train_step", "_score_batch"} <= set(found)
    assert run.done and run.newest_checkpoint() == 120
    assert len(list(run.checkpoints.iterdir())) == 2  # as many as config.checkpoint.keep
    resumed = step // 5 * 5 + 5
    assert losses(run, resumed) == losses(local, resumed)
    assert run.read_json("evaluation.json") == local.read_json("evaluation.json")
    assert run.read_csv("mixture.csv") == local.read_csv("mixture.csv")


def test_a_request_that_fails_leaves_no_traceback_of_the_library(caplog):
    pytest.importorskip("gcsfs")
    storage.parse_path("gs://bucket/runs")
    try:
        raise OSError("Cannot connect to host storage.googleapis.com")
    except OSError:
        # As gcsfs.retry does before it raises the error.
        logging.getLogger("gcsfs").exception("_request out of retries")
    assert not caplog.records
