"""Damaged files of runs and studies: each is named, or what is read is what was written."""

import json
import os
import pathlib
import random
import re
import shutil
import zlib

import made_studies
import numpy as np
import pytest
from helpers import read_plain_json
from made_runs import make_run
from made_studies import small_grid

from imbalance_jax.analysis import study_table
from imbalance_jax.data.languages import Vocabulary
from imbalance_jax.report import comparison_page, run_page, study_page
from imbalance_jax.report.record import read_run_contents
from imbalance_jax.runs import damaged_files
from imbalance_jax.runs.damaged_files import DamagedFileError
from imbalance_jax.runs.run_directory import RunDirectory
from imbalance_jax.study import study_plan
from imbalance_jax.study.study_directory import StudyDirectory

TAGS = ("en1", "en2")
VOCABULARY = Vocabulary(TAGS, 900, np.arange(900, dtype=np.int32).reshape(2, 450), np.eye(2) > 0)
TASK = {"languages": {"en1": {"accuracy": 0.5}}}  # of a version without intervals: not shown
WRITTEN = {
    "FAILED.json": {"step": 3, "error": "OSError", "message": "The disk is full."},
    "word2vec.json": {"skipgram": {"settings": {}, "steps": 40}},
    "transfer.json": {"intended": {"en1": {"cola": TASK}}},
}
NEEDED = ("config.json", "metrics.jsonl")  # without which there is no page
ON_THE_PAGE = ("provenance.json", "evaluation.json", "mixture.csv", *WRITTEN, *NEEDED)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> pathlib.Path:
    run = make_run(tmp_path_factory.mktemp("made") / "run", steps=40, log_every=5)
    for name, value in WRITTEN.items():
        run.write_json(name, value)
    run.write_bytes("vocabulary.npz", VOCABULARY.to_bytes())
    return pathlib.Path(run.path)


@pytest.fixture
def copy(whole, tmp_path) -> RunDirectory:
    shutil.copytree(whole, tmp_path / "run")
    return RunDirectory(tmp_path / "run")


def flip_bit(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def change_first(path: pathlib.Path, *, drop: bool) -> None:
    """Takes the first key of a JSON file away, or gives it a value of another type."""
    first, *rest = path.read_text().split("\n") if path.suffix == ".jsonl" else [path.read_text()]
    plain = json.loads(first)
    key = next(iter(plain))
    plain = {k: [] if k == key else v for k, v in plain.items() if k != key or not drop}
    path.write_text("\n".join([json.dumps(plain), *rest]))


def become_directory(path: pathlib.Path) -> None:
    path.unlink()
    path.mkdir()


def become_pipe(path: pathlib.Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 - 1]),
    "empty": lambda path: path.write_bytes(b""),
    "binary": lambda path: path.write_bytes(random.Random(0).randbytes(300) + b"\n"),
    "a directory": become_directory,
    "a pipe": become_pipe,
    "lacks a key": lambda path: change_first(path, drop=True),
    "key of another type": lambda path: change_first(path, drop=False),
}
# A program that is killed leaves half a line, and nothing may have been logged yet.
FINE = {("metrics.jsonl", "truncated"), ("metrics.jsonl", "empty")}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", ON_THE_PAGE)
def test_a_page_names_the_damaged_file_and_the_way_out(copy, file, damage):
    path = pathlib.Path(copy.path) / file
    if path.suffix == ".csv" and "key" in damage:
        path.write_text(path.read_text().replace("realised_tokens", "realised", 1))
    else:
        DAMAGES[damage](path)
    if (file, damage) in FINE:
        read_run_contents(copy)
        return
    with pytest.raises(DamagedFileError) as raised:
        run_page.write_run_page(copy)
    message = str(raised.value)
    assert message.startswith(str(path)) and "\n" not in message
    assert re.search(r"\. (Delete it|Copy|Start the run again)", message), message


@pytest.mark.parametrize("file", ON_THE_PAGE)
def test_a_page_without_a_file_names_it_or_does_without(copy, file):
    (copy.path / file).unlink()
    if file == "config.json":
        with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
            run_page.write_run_page(copy)
    else:
        read_run_contents(copy)


def test_no_flipped_bit_in_json_changes_what_is_read(copy):
    """The CRC-32 is that of zlib; every byte is tried, in one bit each."""
    draw = random.Random(1)
    for name in ("config.json", "evaluation.json", *WRITTEN):
        path = pathlib.Path(copy.path) / name
        content, whole = path.read_bytes(), copy.read_json(name)
        found, named = 0, f'"crc32": "{zlib.crc32(content.rpartition(b",")[0]):08x}"'
        assert whole == read_plain_json(path) and named in content.decode()
        for byte in range(0, len(content), 1 + len(content) // 100):
            path.write_bytes(flip_bit(content, 8 * byte + draw.randrange(8)))
            try:
                # A flipped bit in the word crc32 itself is one more key.
                read = {k: v for k, v in copy.read_json(name).items() if k in whole}
                assert read == whole
            except DamagedFileError as error:
                assert str(error).startswith(str(path))
                found += 1
        assert found > 60
        path.write_bytes(content)


def test_no_flipped_bit_in_metrics_changes_what_is_read(copy):
    path = pathlib.Path(copy.path) / "metrics.jsonl"
    content, whole = path.read_bytes(), list(copy.metrics())
    known = {name for record in whole for name in record}
    for bit in random.Random(2).sample(range(8 * len(content)), 150):
        path.write_bytes(flip_bit(content, bit))
        try:
            read = [{k: r[k] for k in r if k in known} for r in copy.metrics()]
            assert read in (whole, whole[:-1])
        except DamagedFileError as error:
            assert re.match(rf"{re.escape(str(path))}, line \d+ ", str(error))


def test_no_flipped_bit_in_a_vocabulary_changes_what_is_read(copy):
    content = VOCABULARY.to_bytes()
    for bit in random.Random(3).sample(range(8 * len(content)), 800):
        try:
            read = Vocabulary.from_bytes(TAGS, flip_bit(content, bit))
            assert np.array_equal(read.map_GU, VOCABULARY.map_GU)
            assert np.array_equal(read.own_GV, VOCABULARY.own_GV)
        except DamagedFileError:
            pass


@pytest.mark.parametrize("file", ["provenance.json", "evaluation.json", "metrics.jsonl"])
def test_a_run_does_not_go_on_with_a_damaged_file(copy, file):
    config = copy.config()
    copy.check(config)
    with (copy.path / file).open("ab") as end:
        end.write(b"\xff\n")
    with pytest.raises(
        DamagedFileError, match=rf"{file}.* is not UTF-8 text .*\. (Delete|Copy|Start)"
    ):
        copy.check(config)


def test_cells_that_are_no_numbers_and_rows_that_are_cut_are_named_by_line():
    def parse(text):
        return damaged_files.parse_csv(text, "t.csv", "Way out.", required=("a",), words=("b",))

    assert parse("a,b\n1,x\n") == [{"a": "1", "b": "x"}]
    for text, problem in {
        "b\nx\n": "t.csv lacks the column a. Way out.",
        "a,b\n1,x\n2\n": "t.csv, line 3 has 1 cells, and the table has 2 columns. Way out.",
        "a,b\n1,x\n1q,x\n": "t.csv, line 3 has '1q' as a, not a number. Way out.",
        "a,b\n,x\n": "t.csv, line 2 has '' as a, not a number. Way out.",
    }.items():
        with pytest.raises(DamagedFileError, match=rf"^{re.escape(problem)}$"):
            parse(text)


def test_a_file_of_an_earlier_version_has_no_crc_and_is_read(copy):
    path = pathlib.Path(copy.path) / "config.json"
    before = copy.config()
    path.write_text(json.dumps(read_plain_json(path)))
    assert copy.config() == before
    changed = json.loads(damaged_files.format_checked_json(read_plain_json(path))) | {"steps": 7}
    path.write_text(json.dumps(changed))
    with pytest.raises(DamagedFileError, match=r"changed by hand.*delete the key crc32"):
        copy.config()


# Several runs


def test_a_comparison_names_a_damaged_run_and_shows_the_others(copy, tmp_path):
    runs = [copy, *(make_run(tmp_path / name, steps=40, log_every=5) for name in "ab")]
    (copy.path / "metrics.jsonl").write_text("{}\n")
    page = comparison_page.write_comparison_page(runs).read_text()
    assert "metrics.jsonl, line 1 lacks the key step" in page and "2 runs side by side" in page
    with pytest.raises(ValueError, match=r"1 can be read.*metrics\.jsonl, line 1 lacks"):
        comparison_page.write_comparison_page(runs[:2])


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> StudyDirectory:
    return made_studies.make(
        tmp_path_factory.mktemp("made") / "study", small_grid(seeds=1, fractions=(1,))
    )


@pytest.mark.parametrize(
    "file",
    ["config.json", "evaluation.json", "metrics.jsonl", "mixture.csv", "test_texts.csv",
     "provenance.json"],
)  # fmt: skip
def test_a_study_names_a_damaged_run_and_is_shown_without_it(study, file):
    name = "r90_10_s0"
    path = pathlib.Path(study.run(name).path) / file
    content = path.read_bytes()
    without = [row for row in study_table.read_study_table(study).observations if row.run != name]
    try:
        path.write_bytes(content[:-40] + b"\xff\n")
        table = study_table.read_study_table(study)
        assert table.observations == without
        [line] = study_table.describe_damaged_runs(table)
        assert line.startswith(f"Without {name}: {path}")
        states = study_plan.describe_states(study.study(), study)
        damaged = file not in ("mixture.csv", "test_texts.csv", "provenance.json")
        assert ("1 damaged" in states and str(path) in states) == damaged
    finally:
        path.write_bytes(content)


def test_the_page_of_a_study_names_a_damaged_run(tmp_path):
    made = made_studies.make(tmp_path / "study", small_grid(("50:50",), seeds=1, fractions=(1,)))
    path = pathlib.Path(made.run("r50_50_s0").path) / "evaluation.json"
    path.write_bytes(path.read_bytes().replace(b'"loss": ', b'"loss": 1', 1))
    table = study_table.read_study_table(made)
    page = study_page.write_study_page(table, made, resamples=2).read_text()
    assert "1 damaged" in page and "evaluation.json was damaged or changed by hand" in page


@pytest.mark.parametrize("damage", [name for name in DAMAGES if name != "a pipe"])
def test_a_damaged_study_file_is_named(study, damage):
    path = pathlib.Path(study.path) / "study.json"
    content = path.read_bytes()
    try:
        DAMAGES[damage](path)
        with pytest.raises(
            ValueError, match=rf"^{re.escape(str(path))} .*[uU]se another --workdir"
        ):
            study.study()
    finally:
        if path.is_dir():
            path.rmdir()
        path.write_bytes(content)
