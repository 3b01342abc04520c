"""Behaviours of data/text/patterns.py, on files made here."""

import os

import pytest

from imbalance_jax.data.text import patterns


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def make(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text("x")

    return make


@pytest.mark.parametrize(
    "name", ["a,b.txt", "a{b,c}.txt", "a[1].txt", "a,{b}, c,d*.txt", "x y/a,b.txt", "{0..3}.txt"]
)
def test_what_exists_as_it_is_written_is_that_file(here, name):
    here(name, "other.txt")
    assert patterns.find_paths(name) == [name]
    assert patterns.find_paths(f"other.txt, {name},other.txt") == ["other.txt", name, "other.txt"]


@pytest.mark.parametrize(
    "pattern, words",
    [
        ("a{b,c}d", "abd acd"),
        ("{a,b}{1..3}", "a1 a2 a3 b1 b2 b3"),
        ("{08..11}", "08 09 10 11"),
        ("{2..0}", "2 1 0"),
        ("{a,{b,c}d}", "a bd cd"),
        ("x{,.gz}", "x x.gz"),
        ("{a}{b,c}", "{a}b {a}c"),
        ("{a{1,2}", "{a1 {a2"),
        ("{x} {y", "{x} {y"),
    ],
)
def test_braces_are_what_a_shell_makes_of_them(pattern, words):
    """`bash -c "echo PATTERN"` prints these words."""
    found = [alternative for alternative, _ in patterns.match_pattern(pattern)]
    assert " ".join(found) == words


def test_a_comma_parts_two_patterns_but_in_braces_and_in_brackets_of_its_own(here):
    here("en/1.txt", "en/2.txt", "fr/1.txt", "a,b1.txt")
    assert patterns.split_patterns(" {en,fr}/*.txt, a[,]b*.txt ,,") == [
        "{en,fr}/*.txt",
        "a[,]b*.txt",
    ]
    assert patterns.find_paths("{fr,en}/*.txt,a[,]b*.txt") == [
        *("fr/1.txt", "en/1.txt", "en/2.txt", "a,b1.txt")
    ]
    assert patterns.find_paths("{a[,]b,fr/}1.txt") == ["a,b1.txt", "fr/1.txt"]


def test_each_alternative_is_missed_where_it_is_missing(here):
    here("en.txt")
    assert list(patterns.match_pattern("{en,fr}.txt")) == [("en.txt", ["en.txt"]), ("fr.txt", [])]
    assert patterns.find_paths("{en,fr}.txt, x*") == ["en.txt", "fr.txt", "x*"]


@pytest.mark.parametrize(
    "pattern, relative",
    [
        ("{}/en/train.txt", ["train.txt"]),
        ("{}/*/train.txt", ["en/train.txt", "fr/train.txt"]),
        ("{}/**/tr*.txt", ["en/train.txt", "fr/train.txt"]),
        ("{}/{{en,fr}}/*.txt", ["en/train.txt", "fr/train.txt"]),
        ("{}/e?/*.txt", ["en/train.txt"]),
    ],
)
def test_a_relative_path_begins_where_the_pattern_is_not_fixed(here, tmp_path, pattern, relative):
    here("en/train.txt", "fr/train.txt")
    for root in (tmp_path, os.curdir, os.path.join(os.curdir, "en", os.pardir)):
        written = pattern.format(root)
        paths = patterns.find_paths(written)
        assert [patterns.strip_fixed_directories(written, path) for path in paths] == relative


def test_the_place_of_a_file_is_the_same_in_every_locale():
    path = "text/caf\udcc3\udca9.txt"  # as a job without a locale reads a name in UTF-8
    assert patterns.strip_fixed_directories("text/*.txt", path) == "caf\xe9.txt"
    latin = os.fsdecode(b"text/caf\xe9.txt")
    assert patterns.strip_fixed_directories("text/*.txt", latin) == "caf\udce9.txt"
