"""What jobs read that only this machine has is refused, or said, before anything is sent."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from helpers import write_jsonl
from made_plans import PROFILES, workdir

from imbalance_jax import cli
from imbalance_jax import config as config_lib
from imbalance_jax.config import LanguageConfig, ParallelConfig, SourceConfig
from imbalance_jax.data import parallel, prepare
from imbalance_jax.data.order.stream import Stream
from imbalance_jax.runs import storage
from imbalance_jax.study import grid
from launch import inputs, plan, profile

ROOT = pathlib.Path(__file__).parents[2]
BY_NAME = {path.stem: profile.read_profile(str(path)) for path in PROFILES}
WORDS = ("the quick brown fox", "jumps over a lazy dog", "while it rains")


def make_grid(raw: pathlib.Path, **changes: object) -> dict:
    config = config_lib.default()
    for name in ("en", "fr"):
        config.sources[name] = config_lib.declared(
            SourceConfig, kind="files", train=f"{raw}/{name}.jsonl"
        )
        config.sources[name].tokenizer.vocab_size = 300
        config.languages[name] = config_lib.declared(LanguageConfig, source=name)
        config.mixture.ratio[name] = 1
    config.parallel.en_fr = config_lib.declared(
        ParallelConfig, sources=("en", "fr"), path=f"{raw}/pairs.jsonl"
    )
    config.model.update(L=64, D=16, H=2, K=8, F=24, N=1)
    config.steps, config.batch_size = 4, 64
    config.evaluation.every, config.evaluation.alignment.every = 4, 0
    for name, value in changes.items():
        config[name] = value
    made = grid.Grid("Text of one's own.", unit=config)
    made.add("even", config, seeds=(0,))
    return made.to_config().to_dict()


def write_text(raw: pathlib.Path) -> None:
    raw.mkdir()
    for name in ("en", "fr"):
        lines = [f"{name} {n}: {WORDS[n % 3]}, {n * 7919 % 1000}." for n in range(500)]
        write_jsonl(raw / f"{name}.jsonl", lines)
    pairs = [{"en": f"en {n}: {WORDS[n % 3]}", "fr": f"fr {n}: {WORDS[n % 3]}"} for n in range(40)]
    (raw / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A directory with text in raw and what is prepared of it in data."""
    home = tmp_path_factory.mktemp("home")
    write_text(home / "raw")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        config = grid.resolve_study(make_grid(pathlib.Path("raw"))).runs["even_s0"].config
        parallel.prepare_all_parallel_sets(config, prepare.prepare_run_sources(config))
    return home


def look(
    where: str, raw: str = "raw", *, data_dir: str = "", reach: bool = False, **changes: object
) -> inputs.InputReport:
    study = grid.resolve_study(make_grid(pathlib.Path(raw), **changes))
    to = BY_NAME[where]
    to = dataclasses.replace(to, data_dir=data_dir or to.data_dir)
    made = plan.make_plan(study, to, workdir=workdir(to.engine))
    return inputs.check_inputs(study, made, to, recorded={}, reach=reach)


@pytest.mark.parametrize("where", ["local", "slurm-gpu"])
@pytest.mark.parametrize("gone", [False, True])
def test_the_text_that_jobs_open_is_known_though_its_files_are_gone(
    home, tmp_path, monkeypatch, where, gone
):
    monkeypatch.chdir(home)
    known = {name: f.fingerprint for name, f in opened(home).items()}
    if gone:
        monkeypatch.chdir(tmp_path)
    found = look(where, data_dir=str(home / "data"))
    assert (found.notes, dict(found.texts)) == ((), {"even_s0": known})


def opened(home: pathlib.Path) -> dict:
    config = grid.resolve_study(make_grid(pathlib.Path("raw"))).runs["even_s0"].config
    return prepare.prepare_run_sources(dataclasses.replace(config, data_dir=str(home / "data")))


@pytest.mark.parametrize(
    ("where", "raw", "refused"),
    [
        # A path that is wrong, one that jobs of SLURM do not have, and one that nobody has.
        ("local", "elsewhere", r"config\.sources\.en is not here, and .* has no en-\*"),
        ("slurm-gpu", "raw", r"is made of raw/en\.jsonl, which jobs do not have.*, and copy data"),
        ("slurm-gpu", "/elsewhere", r"config\.sources\.en is not here"),
    ],
)
def test_text_that_no_job_could_open_is_refused(home, tmp_path, monkeypatch, where, raw, refused):
    monkeypatch.chdir(home)
    with pytest.raises(ValueError, match=f"Run even_s0: .*{refused}"):
        look(where, raw, data_dir=str(tmp_path))


@pytest.mark.parametrize("where", ["slurm-gpu", "gke-v6e"])
def test_the_length_of_each_text_and_its_epochs_are_those_of_the_run(home, monkeypatch, where):
    """Held against the stream that such a run reads."""
    monkeypatch.chdir(home)
    texts, raw = opened(home), str(home / "raw")
    data_dir = str(home / "data") if where == "slurm-gpu" else ""
    config = grid.resolve_study(make_grid(pathlib.Path(raw), steps=50)).runs["even_s0"].config
    epochs = Stream(config, texts).epochs()
    found = look(where, "raw", data_dir=data_dir, steps=50).sources
    assert {source.name for source in found} == {"en", "fr"}
    for source in found:
        assert source.found.tokens == texts[source.name].count("train")
        assert source.epochs == pytest.approx(epochs[source.name]) and source.epochs > 1
        assert f"{source.found.tokens:,} tokens; even_s0 takes 102,400, " in source.describe()
        assert f"{epochs[source.name]:.3g} epochs" in source.describe()
    place = "gs://my-bucket/data (not looked at; this is the length of data/en-"
    assert (place in found[0].describe()) == (where == "gke-v6e")


def test_a_text_that_is_not_prepared_anywhere_has_no_length_yet(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (source, _) = look("slurm-gpu", str(home / "raw"), data_dir="/not/here").sources
    assert source.describe() == (
        "  en: /not/here (not looked at), of unknown length until it is prepared here; even_s0 "
        "takes 8,192 tokens"
    )
    mixture = {"ratio": {"en": 1, "fr": 1}, "on_exhaustion": "stop"}
    monkeypatch.chdir(home)
    (source, _) = look("local", data_dir=str(home / "data"), steps=50, mixture=mixture).sources
    assert source.describe().endswith("on_exhaustion=stop: the run ends after one")


def test_a_parallel_set_is_missed_like_a_source(home, tmp_path, monkeypatch):
    where = tmp_path / "data"
    shutil.copytree(home / "data", where, ignore=shutil.ignore_patterns("parallel-*"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"config\.parallel\.en_fr is not here"):
        look("local", data_dir=str(where))


def test_what_cannot_be_seen_from_here_is_said_and_a_store_is_not_looked_into(home, monkeypatch):
    monkeypatch.chdir(home)
    monkeypatch.setenv("IMBALANCE_JAX_CACHE", "/scratch")
    store, cache = look("gke-v6e").notes
    assert store.startswith("gs://my-bucket/data is looked at by `submit --execute` only")
    assert "config.sources.en, config.sources.fr, config.parallel.en_fr" in store
    assert cache.startswith("IMBALANCE_JAX_CACHE of this shell does not reach jobs")
    monkeypatch.delenv("IMBALANCE_JAX_CACHE")
    _, key = look("gke-v6e", mirrors=("wandb",)).notes
    assert key.endswith("jobs have no WANDB_API_KEY.")
    (unseen,) = look("slurm-gpu", data_dir="/not/here").notes
    assert unseen.startswith("/not/here cannot be looked at from here")


def test_a_store_is_looked_into_when_jobs_are_sent(home, tmp_path, monkeypatch):
    """A directory stands in for the bucket: what is read of both is the same."""
    monkeypatch.chdir(tmp_path)
    known = {name: source.fingerprint for name, source in opened(home).items()}
    path_of = storage.parse_path
    bucket = {"gs://full/data": home / "data", "gs://empty/data": tmp_path}
    monkeypatch.setattr(storage, "parse_path", lambda path: path_of(bucket.get(path, path)))
    found = look("gke-v6e", data_dir="gs://full/data", reach=True)
    assert (found.notes, dict(found.texts)) == ((), {"even_s0": known})
    with pytest.raises(ValueError, match=r"made of raw/en\.jsonl, .* copy data to gs://empty/data"):
        look("gke-v6e", data_dir="gs://empty/data", reach=True)


def test_weights_to_begin_with_are_where_a_job_looks(home, tmp_path, monkeypatch):
    monkeypatch.chdir(home)
    data_dir = str(home / "data")
    for where, init_from, refused in (
        ("local", "runs/none@100", "holds no run"),
        ("slurm-gpu", "runs/none", "Write the whole path"),
        ("gke-v6e", str(tmp_path), "jobs of the engine gke run on others"),
    ):
        with pytest.raises(ValueError, match=rf"config\.init_from='{init_from}'.*{refused}"):
            look(where, str(home / "raw"), data_dir=data_dir, init_from=init_from)
    # A run of the same study is trained before.
    inside = f"{workdir('slurm')}/runs/other_s0"
    assert look("slurm-gpu", str(home / "raw"), data_dir=data_dir, init_from=inside).texts


def test_minimal_pairs_that_jobs_do_not_have_are_refused(home, monkeypatch):
    monkeypatch.chdir(home)
    pairs = {"every": 4, "minimal_pairs": str(home / "pairs")}
    with pytest.raises(ValueError, match=r"evaluation\.minimal_pairs=.*jobs do not have .*pairs"):
        look("gke-v6e", evaluation=pairs)


@pytest.mark.slow
def test_a_study_trains_on_prepared_text_when_its_files_are_gone(tmp_path):
    """Prepared and planned as a user does it; then only data_dir is left for the job."""
    write_text(tmp_path / "raw")
    (tmp_path / "study.py").write_text(
        "import ml_collections\n"
        f"def get_config(arg=''):\n    return ml_collections.ConfigDict({make_grid('raw')!r})\n"
    )
    (tmp_path / "one.toml").write_text("engine = 'local'\n[local]\ndevices_per_process = 1\n")

    def call(*args: str) -> subprocess.CompletedProcess:
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
        command = [sys.executable, "-m", *args]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)

    done = call("imbalance_jax.data.prepare", "--config=study.py")
    assert done.returncode == cli.DONE and "parallel-en_fr" in done.stdout, done.stderr
    (tmp_path / "raw").rename(tmp_path / "moved")
    flags = ("--study=study.py", "--workdir=s", "--profile=one.toml")
    done = call("launch", "submit", *flags, "--execute")
    log = (tmp_path / "s/logs/even_s0.0.log").read_text()
    assert done.returncode == cli.DONE and (tmp_path / "s/runs/even_s0/DONE").exists(), log
    study = json.loads((tmp_path / "s/study.json").read_text())
    provenance = json.loads((tmp_path / "s/runs/even_s0/provenance.json").read_text())
    assert study["runs"]["even_s0"]["text"] == {
        name: about["fingerprint"] for name, about in provenance["sources"].items()
    }
    assert "en_fr" in provenance["parallel"]
    # Text that is put back as another one is refused: the study is about the one it recorded.
    (tmp_path / "s/runs").rename(tmp_path / "before")
    (tmp_path / "moved").rename(tmp_path / "raw")
    with open(tmp_path / "raw/en.jsonl", "a") as file:
        file.write(json.dumps({"text": "one more"}) + "\n")
    done = call("imbalance_jax.main", "--study=s", "--members=even_s0")
    assert done.returncode == cli.REFUSED and "the study was begun with" in done.stderr
