"""docs/metrics.md documents every name that the files of a run and of a study hold.

Tests that train, evaluate and fine-tune hold what they leave against the page as well.
"""

import csv
import dataclasses
import json
import re

import pytest
from documented_names import (
    find_undocumented,
    list_json_names,
    list_metric_names,
    read_documented_names,
    read_placeholders,
)
from helpers import ROOT
from made_runs import make_run

from imbalance_jax.analysis import study_table

FILES = (
    *("metrics.jsonl", "evaluation.json", "test_texts.csv", "mixture.csv", "transfer.json"),
    *("table.csv", "alignment.csv", "curves.csv"),
)
EARLIER = ROOT / "tests" / "earlier_runs"


def names_in(path):
    if path.suffix == ".jsonl":
        return list_metric_names(map(json.loads, path.read_text().splitlines()))
    if path.suffix == ".json":
        return list_json_names(json.loads(path.read_text()))
    return next(csv.reader(path.read_text().splitlines()))


def test_every_name_of_runs_and_studies_is_documented(tmp_path):
    make_run(tmp_path / "run")
    paths = [p for d in (tmp_path, EARLIER) for p in sorted(d.rglob("*")) if p.name in FILES]
    assert {path.name for path in paths} >= {"metrics.jsonl", "evaluation.json", "mixture.csv"}
    missing = {str(path): find_undocumented(path.name, names_in(path)) for path in paths}
    assert not {path: names for path, names in missing.items() if names}


@pytest.mark.parametrize(
    "file, kind",
    [
        ("table.csv", study_table.Observation),
        ("alignment.csv", study_table.AlignmentObservation),
        ("curves.csv", study_table.CurveObservation),
    ],
)
def test_the_columns_of_a_studys_tables_are_documented_in_their_order(file, kind):
    columns = [field.name for field in dataclasses.fields(kind)]
    columns += [name for name, value in vars(kind).items() if isinstance(value, property)]
    assert list(read_documented_names(file)) == columns


def test_the_page_has_no_word_that_the_code_does_not_have():
    source = "\n".join(path.read_text() for path in (ROOT / "imbalance_jax").rglob("*.py"))
    words = set(re.findall(r"[A-Za-z0-9]+", source))
    names = [name for file in FILES for name in read_documented_names(file)]
    documented = {w for n in names for w in re.findall(r"[A-Za-z0-9]+", re.sub(r"<\w+>", " ", n))}
    assert documented - words == set()


def test_every_name_has_a_unit_and_a_meaning_and_every_placeholder_is_explained():
    page = (ROOT / "docs" / "metrics.md").read_text()
    for line in page.splitlines():
        if line.startswith("| `") and "` | " in line:
            assert all(cell.strip() for cell in line.strip("|").split(" | ")), line
    names = [name for file in FILES for name in read_documented_names(file)]
    used = {placeholder for name in names for placeholder in re.findall(r"<\w+>", name)}
    assert used == set(read_placeholders()) and "(?:)" not in read_placeholders().values()


@pytest.mark.parametrize(
    "file, name",
    [
        ("metrics.jsonl", "eval/losses/en1"),
        ("metrics.jsonl", "align/hidden/en1-en2/last"),
        ("evaluation.json", "alignment.pairs.en1-en2.hidden.middle.cosine"),
        ("evaluation.json", "languages.en1.entropy"),
        ("transfer.json", "other.en1.cola.cut"),
    ],
)
def test_the_check_finds_a_name_that_is_not_documented(file, name):
    assert find_undocumented(file, [name]) == [name]
