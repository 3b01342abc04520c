"""Behaviours of data/text/selection.py and of what readers leave out, held against plain loops."""

import json
import os
import random

import pyarrow
import pytest
from pyarrow import parquet

from imbalance_jax.config import SourceConfig
from imbalance_jax.data.text import files as files_lib
from imbalance_jax.data.text import reading as text
from imbalance_jax.data.text import selection as selection_lib
from imbalance_jax.data.text.selection import Selection


def files(train, **fields):
    return SourceConfig(kind="files", train=str(train), **fields)


def read(source):
    """Returns the texts of each split, and what was left out."""
    selection = Selection()
    found = {"train": [], "validation": [], "test": []}
    for split, document in text.read_documents("en", source, None, selection):
        found[split].append(document.text)
    return found, +selection.left_out


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_rows(count, name="page"):
    draw = random.Random(name)
    return [
        {
            "id": f"{name} {number}",
            "text": f"{name} {number} " + "words of a text " * draw.randrange(1, 9),
            "language_score": None if number % 50 == 7 else draw.random(),
            "doc_scores": [draw.uniform(0, 10), 1.5],
            "language": draw.choice(["fra", "oci"]),
        }
        for number in range(count)
    ]


# Caps


def test_a_capped_text_is_the_beginning_of_the_text(tmp_path):
    write_rows(tmp_path / "a.jsonl", make_rows(600, "a"))
    write_rows(tmp_path / "b.jsonl", make_rows(600, "b"))
    whole, _ = read(files(tmp_path / "*.jsonl"))
    order = list(text.read_documents("en", files(tmp_path / "*.jsonl")))
    for cap in (1, 100, 700):
        taken, _ = read(files(tmp_path / "*.jsonl", max_documents=cap))
        assert taken["train"] == whole["train"][:cap]
        # Held out are those that stand before the last one to train on.
        [end] = [i for i, (_, d) in enumerate(order) if d.text == whole["train"][cap - 1]]
        for split in ("validation", "test"):
            assert taken[split] == [d.text for s, d in order[:end] if s == split]
    assert read(files(tmp_path / "*.jsonl", max_documents=10**9))[0] == whole


def test_held_out_text_of_its_own_is_the_same_under_every_cap(tmp_path, monkeypatch):
    write_rows(tmp_path / "a.jsonl", make_rows(50, "a"))
    rows = make_rows(50, "held")
    write_rows(tmp_path / "t.jsonl", rows)
    source = files(tmp_path / "a.jsonl", test=str(tmp_path / "t.jsonl"), max_documents=3)
    assert read(source)[0]["test"] == [row["text"] for row in rows]
    monkeypatch.setattr(selection_lib, "HELD_OUT_BYTES", 1000)
    taken = [read(files(**{**vars_of(source), "max_documents": cap}))[0] for cap in (3, 20)]
    assert [len(each["train"]) for each in taken] == [3, 20]
    sizes = [len(each.encode()) for each in taken[0]["test"]]
    assert taken[0]["test"] == taken[1]["test"]
    assert sum(sizes) >= 1000 > sum(sizes[:-1])


def vars_of(source):
    return {"train": source.train, "test": source.test}


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_no_file_is_opened_after_the_cap(tmp_path, ending):
    for name in "abc":
        rows = make_rows(20, name)
        if ending == "parquet":
            parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
        else:
            write_rows(tmp_path / f"{name}.jsonl", rows)
    selection = Selection()
    source = files(tmp_path / f"*.{ending}", max_documents=25)
    assert len(list(text.read_documents("en", source, None, selection))) >= 25
    assert [os.path.basename(path)[0] for path in selection.opened] == ["a", "b"]


def test_the_fingerprint_of_a_capped_text_follows_from_what_is_read_and_is_remembered(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(files_lib, "_CLOCK", 0)
    cache = tmp_path / "cache" / "digests.json"
    rows = make_rows(100)
    path = write_rows(tmp_path / "a.jsonl", rows)
    write_rows(tmp_path / "b.jsonl", make_rows(5, "b"))
    calls = []
    hash_documents = text._hash_documents
    monkeypatch.setattr(
        text, "_hash_documents", lambda *args: calls.append(args) or hash_documents(*args)
    )

    def compute(pattern=tmp_path / "*.jsonl", **fields):
        return text.compute_text_fingerprint("en", files(pattern, **fields), cache)

    first = compute(max_documents=10)
    # What is read is the same from anywhere, and is not read again.
    assert compute(max_documents=10) == first and len(calls) == 1
    prints = [first, compute(max_documents=11), compute(max_tokens=10), compute()]
    assert len(set(prints)) == 4
    # A document beyond the cap is none of it, one before it is.
    write_rows(path, [*rows[:50], {"text": "Another."}, *rows[51:]])
    assert compute(max_documents=10) == first and len(calls) == 4
    # In the middle of the file, where a sample of it would not show it.
    changed = json.dumps(rows[5]).replace("words", "sword")
    path.write_text(path.read_text().replace(json.dumps(rows[5]), changed))
    assert compute(max_documents=10) != first
    write_rows(path, rows)
    assert compute(max_documents=10) == first
    # Another file in front is read first.
    write_rows(tmp_path / "0.jsonl", make_rows(30, "0"))
    assert compute(max_documents=10) != first


# Conditions


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_documents_that_do_not_meet_where_are_left_out_and_counted(tmp_path, ending):
    rows = make_rows(1000)
    path = tmp_path / f"a.{ending}"
    if ending == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        write_rows(path, rows)
    where = "language_score >= 0.4, doc_scores.0 > 5, language == 'fra'"
    expected = [
        row["text"]
        for row in rows
        if row["language_score"] is not None
        and row["language_score"] >= 0.4
        and row["doc_scores"][0] > 5
        and row["language"] == "fra"
    ]
    found, left_out = read(files(path, where=where))
    assert sorted(sum(found.values(), [])) == sorted(expected) and 50 < len(expected) < 300
    assert left_out == {"where": 1000 - len(expected)}
    # They are held out by their ids, as without a condition.
    whole, _ = read(files(path))
    assert all(set(found[split]) <= set(whole[split]) for split in whole)
    taken, _ = read(files(path, where=where, max_documents=20))
    assert taken["train"] == found["train"][:20]


def test_of_a_parquet_file_only_the_columns_that_are_asked_for_are_read(tmp_path, monkeypatch):
    parquet.write_table(pyarrow.Table.from_pylist(make_rows(10)), tmp_path / "a.parquet")
    read_columns = []
    iter_batches = parquet.ParquetFile.iter_batches

    def recording(table, *args, columns, **options):
        read_columns.append(columns)
        return iter_batches(table, *args, columns=columns, **options)

    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", recording)
    read(files(tmp_path / "a.parquet", where="doc_scores.0 > 5, doc_scores.1 > 1"))
    assert read_columns == [["text", "id", "doc_scores"]]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("where", "problem"),
    [
        ("langauge_score >= 0.9", "langauge_score'; it has: .*language_score"),
        ("language >= 0.9", "'language' is a text"),
        ("doc_scores >= 0.9", "'doc_scores' is a list"),
        ("language_score > 0.9, text", "'text' is no condition"),
    ],
)
def test_check_finds_what_is_wrong_with_where(tmp_path, ending, where, problem):
    rows, path = make_rows(3), tmp_path / f"a.{ending}"
    if ending == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        write_rows(path, rows)
    with pytest.raises(ValueError, match=problem) as refused:
        text.check_source_text("en", files(path, where=where))
    assert "config.sources.en.where" in str(refused.value)


def test_a_score_in_a_table_of_tabs_is_a_number_and_plain_text_has_none(tmp_path):
    lines = [f"{number / 10}\tSentence {number}." for number in range(10)]
    (tmp_path / "a.tsv").write_text("\n".join(lines))
    found, left_out = read(files(tmp_path / "a.tsv", field="2", where="1 >= 0.7"))
    assert sum(found.values(), []) == ["Sentence 7.", "Sentence 8.", "Sentence 9."]
    assert left_out == {"where": 7}
    (tmp_path / "a.txt").write_text("Text.")
    with pytest.raises(ValueError, match=r"config\.sources\.en\.where.*plain text"):
        text.check_source_text("en", files(tmp_path / "a.txt", where="1 >= 0.7"))


# Bad lines


def test_bad_lines_are_left_out_and_counted_on_request(tmp_path):
    good = [json.dumps(row).encode() for row in make_rows(200)]
    bad = [b'{"text": "x', b'{"text": 3}', b'{"txt": "x"}', b"[1]", b'{"text": "\xff"}', b"{"]
    lines = [*good[:50], *bad, *good[50:], b'{"text": null}', b"", b'{"text": " "}']
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(ValueError, match="line 51"):
        read(files(path))
    found, left_out = read(files(path, on_bad_line="skip"))
    assert sum(map(len, found.values())) == 200
    assert left_out == {"bad_lines": len(bad) + 1, "empty": 1}
    # A first line that is bad ends nothing, also where what is checked first is read.
    path.write_bytes(b"\n".join([*bad, *good]))
    text.check_source_text("en", files(path, on_bad_line="skip", id_field="id", ids="shared"))
    with pytest.raises(ValueError, match="line 1: is not valid JSON"):
        text.check_source_text("en", files(path))


def test_rows_of_parquet_that_are_no_text_are_left_out_on_request(tmp_path):
    texts = [b"one", b"tw\xff", None, b"four", b" "]
    column = pyarrow.array(texts, pyarrow.binary()).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    source = files(tmp_path / "a.parquet", on_bad_line="skip")
    found, left_out = read(source)
    assert sum(found.values(), []) == ["one", "four"]
    assert left_out == {"bad_lines": 2, "empty": 1}


@pytest.mark.parametrize("count", [3, 2000])
def test_a_text_of_bad_lines_alone_is_refused_by_the_first(tmp_path, count):
    path = write_rows(tmp_path / "a.jsonl", [{"txt": "x"}] * count)
    source = files(path, on_bad_line="skip")
    with pytest.raises(ValueError, match="line 1: has no field 'text'"):
        read(source)
    if count > 1000:
        with pytest.raises(ValueError, match="line 1: has no field 'text'"):
            text.check_source_text("en", source)


def test_truncated_data_is_no_bad_line(tmp_path):
    import gzip

    data = gzip.compress("".join(json.dumps(row) + "\n" for row in make_rows(500)).encode())
    (tmp_path / "a.jsonl.gz").write_bytes(data[:-100])
    with pytest.raises(ValueError, match="truncated"):
        read(files(tmp_path / "a.jsonl.gz", on_bad_line="skip"))


# Sizes


def test_the_size_of_a_part_is_about_what_it_has(tmp_path):
    rows = make_rows(4000)
    path = write_rows(tmp_path / "a.jsonl", rows)
    size = sum(len(row["text"]) for row in rows)
    kept = sum(len(row["text"]) for row in rows if row["doc_scores"][0] > 8)
    assert text.estimate_text_bytes(files(path, max_documents=100)) == pytest.approx(
        size / 40, rel=0.1
    )
    assert text.estimate_text_bytes(files(path, max_tokens=100)) == 400
    estimate = text.estimate_text_bytes(files(path, where="doc_scores.0 > 8"))
    assert estimate == pytest.approx(kept, rel=0.2)
