"""Behaviours of data/text/own_files.py, columns.py and files.py, on files made here."""

import contextlib
import errno
import gzip
import hashlib
import io
import json
import os
import random
import socket
import subprocess
import sys
import textwrap
import time

import pyarrow
import pytest
from helpers import ROOT, read_plain_json
from pyarrow import parquet

from imbalance_jax.config import SourceConfig
from imbalance_jax.data.text import files as files_lib
from imbalance_jax.data.text import reading as text
from imbalance_jax.data.text.documents import Document
from imbalance_jax.runs import storage


def files(train, **fields):
    return SourceConfig(kind="files", train=str(train), **fields)


def write_lines(path, rows):
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(COMPRESS.get(path.suffix, bytes)(data))
    return path


def zstd(data):
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


COMPRESS = {".gz": gzip.compress, ".zst": zstd}


def write_table(path, **columns):
    """Writes a Parquet file with the columns, in groups of as many rows as there are."""
    parquet.write_table(pyarrow.table(columns), path)
    return path


def write(path, rows):
    """Writes texts in the format that the path's ending says."""
    if path.suffix == ".parquet":
        return write_table(path, **{key: [row[key] for row in rows] for key in rows[0]})
    return write_lines(path, rows)


def read(source, name="en"):
    return list(text.read_documents(name, source))


def test_each_kind_of_file_yields_its_documents_in_order(tmp_path):
    (tmp_path / "b.txt").write_bytes("Zwei\r\nZeilen é\x01\u2028.".encode())
    (tmp_path / "a.txt").write_text("One.")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"Two\nlines."))
    (tmp_path / "a.txt.zst").write_bytes(zstd("Zwei\r\nZeilen é.".encode()))
    write_lines(tmp_path / "c.jsonl", [{"id": "x", "text": "Three."}, {"text": "Four."}])
    write_lines(tmp_path / "d.jsonl.gz", [{"id": 7, "text": "Five."}])
    write_lines(tmp_path / "e.jsonl.zst", [{"id": 8, "text": "Six."}, {"text": "Sept é."}])
    write_table(tmp_path / "f.parquet", id=["y", None], text=["Eight.", "Nine\né."])
    source = files(f"{tmp_path}/*.txt, {tmp_path}/a.txt.*, {tmp_path}/c.*,{tmp_path}/[def].*")
    assert [(d.id, d.text) for _, d in read(source)] == [
        ("a.txt", "One."),
        ("b.txt", "Zwei\nZeilen é\x01\u2028."),
        ("a.txt.gz//train2", "Two\nlines."),
        ("a.txt.zst//train2", "Zwei\nZeilen é."),
        ("x", "Three."),
        ("c.jsonl//train3:2", "Four."),
        ("7", "Five."),
        ("8", "Six."),
        ("e.jsonl.zst//train4:2", "Sept é."),
        ("y", "Eight."),
        ("f.parquet//train4:2", "Nine\né."),
    ]


def test_the_fields_of_text_and_id_are_those_of_the_config(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"id": 1, "url": "u", "text": "no", "body": "yes"}])
    table = write_table(tmp_path / "b.parquet", id=[1], url=["v"], text=["no"], body=["yes"])
    for source, document_id in ((path, "u"), (table, "v")):
        [(_, document)] = read(files(source, field="body", id_field="url"))
        assert document == Document(document_id, "yes")


def test_documents_without_text_and_empty_lines_are_skipped_but_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": " \\n"}\n\n{"text": ""}\n{"text": "Kept."}\r\n')
    assert [d for _, d in read(files(path))] == [Document("a.jsonl:4", "Kept.")]
    table = write_table(tmp_path / "b.parquet", text=["", " \n", "Kept."])
    assert [d for _, d in read(files(table))] == [Document("b.parquet:3", "Kept.")]


@pytest.mark.parametrize(
    "kind", [pyarrow.string(), pyarrow.large_string(), pyarrow.dictionary("int32", "string")]
)
@pytest.mark.parametrize("ids", [pyarrow.int64(), pyarrow.uint8(), pyarrow.null()])
def test_columns_of_any_type_of_strings_are_text_and_of_integers_ids(tmp_path, kind, ids):
    texts = pyarrow.array(["Un.", "Deux.", "Un."]).cast(kind)
    values = pyarrow.array([None, None, None] if ids == pyarrow.null() else [0, 6, None], ids)
    path = write_table(tmp_path / "a.parquet", text=texts, id=values)
    found = [(d.id, d.text) for _, d in read(files(path))]
    first = ["a.parquet:1", "a.parquet:2"] if ids == pyarrow.null() else ["0", "6"]
    assert found == list(zip([*first, "a.parquet:3"], ["Un.", "Deux.", "Un."], strict=True))


def test_rows_keep_their_order_across_batches_and_groups_of_rows(tmp_path):
    rows = [f"Row {i}." for i in range(1000)]
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": rows}), path, row_group_size=150)
    assert [d for _, d in read(files(path))] == [
        Document(f"a.parquet:{number}", row) for number, row in enumerate(rows, start=1)
    ]


def test_a_byte_order_mark_is_not_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfText.")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "Text."}\n')
    assert [d.text for _, d in read(files(tmp_path / "*"))] == ["Text.", "Text."]


def test_half_a_surrogate_pair_becomes_text_that_can_be_encoded(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": "\\ud800", "text": "x \\udc00 \\ud83d\\ude00"}\n')
    [(_, document)] = read(files(path))
    assert document == Document("\ufffd", "x \ufffd \U0001f600")


def test_a_pattern_is_expanded_and_a_name_with_brackets_is_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "a.txt").write_text("One.")
    (tmp_path / "b[1].txt").write_text("Two.")
    source = files("~/**/a.txt, ~/b[1].txt, ~/deep/er/*.txt")
    # Each file once, and named after its path within the pattern.
    assert [d.id for _, d in read(source)] == ["deep/er/a.txt", "b[1].txt//train2"]


def test_a_corpus_is_streamed(tmp_path):
    # Of digits that hardly compress; in Parquet twenty pages, all in one group of rows.
    noise = random.Random(0)
    rows = [{"text": noise.randbytes(1000).hex()} for _ in range(10_000)]
    paths = [
        write(tmp_path / f"a.{e}", rows) for e in ("jsonl", "jsonl.gz", "jsonl.zst", "parquet")
    ]
    script = f"""
        import tracemalloc
        import pyarrow
        from imbalance_jax.config import SourceConfig
        from imbalance_jax.data.text import reading as text
        for path in {list(map(str, paths))!r}:
            source = SourceConfig(kind="files", train=path)
            next(text.read_documents("en", source))
            tracemalloc.start()
            print(sum(len(document.text) for _, document in text.read_documents("en", source)))
            print(tracemalloc.get_traced_memory()[1], pyarrow.default_memory_pool().max_memory())
            tracemalloc.stop()
    """
    root = str(ROOT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, *sys.path])}
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=environment,
        stdout=subprocess.PIPE,
        timeout=60,
        check=True,
    )
    numbers = list(map(int, result.stdout.split()))
    assert numbers[::3] == [20_000_000] * len(paths)
    assert max(numbers[1::3]) < 1_000_000 and max(numbers[2::3]) < 10_000_000


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet"])
def test_progress_rises_to_one_as_the_file_is_consumed(tmp_path, ending):
    # Digests do not compress, so a fraction of the lines is one of the compressed file too.
    rows = [{"text": hashlib.sha512(b"%d" % i).hexdigest()} for i in range(16_000)]
    write(tmp_path / f"a.{ending}", rows[:12_000])
    write(tmp_path / f"b.{ending}", rows[12_000:])
    seen, at = [], {}
    for index, _ in enumerate(text.read_documents("en", files(tmp_path / "*"), seen.append)):
        at[index] = seen[-1] if seen else 0.0
    assert seen == sorted(seen) and seen[-1] == 1.0 and 10 < len(seen) < 1000
    # Buffers are read ahead.
    assert at[4_000] == pytest.approx(0.25, abs=0.1)
    assert at[14_000] == pytest.approx(0.875, abs=0.1)


# Ids


def test_documents_without_ids_are_named_after_their_place_wherever_the_corpus_lies(tmp_path):
    """Files of one name in several directories, and two patterns with the same paths below them."""
    found = []
    for corpus in (tmp_path / "here", tmp_path / "else" / "where"):
        for tree in ("one", "two"):
            for folder in "abc":
                (corpus / tree / folder).mkdir(parents=True)
                (corpus / tree / folder / "text.txt").write_text(f"{tree} {folder}")
        source = files(f"{corpus}/one/*/text.txt, {corpus}/two/{{b,c}}/*.txt")
        found.append([d.id for _, d in read(source)])
        assert text.compute_text_fingerprint("en", source) == text.compute_text_fingerprint(
            "en", source
        )
    assert found[0] == found[1]
    assert len(set(found[0])) == len(found[0]) == 5
    assert found[0][0] == "a/text.txt"


def test_many_files_of_one_name_are_held_out_one_by_one(tmp_path):
    for i in range(600):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / "text.txt").write_text("Text.")
    splits = [split for split, _ in read(files(f"{tmp_path}/*/text.txt"))]
    # 6 expected of each, with a standard deviation of 2.4.
    assert 0 < splits.count("validation") < 18 and 0 < splits.count("test") < 18


def test_an_id_that_is_made_up_is_that_of_no_other_source(tmp_path):
    for name in ("en", "fr"):
        (tmp_path / name).mkdir()
        write_lines(tmp_path / name / "train.jsonl", [{"text": name}, {"id": "x", "text": name}])
    found = {n: [d for _, d in read(files(tmp_path / n / "train.jsonl"), n)] for n in ("en", "fr")}
    assert [d.id for d in found["en"]] == [d.id for d in found["fr"]] == ["train.jsonl:1", "x"]
    first, second = ([d.identity for d in found[n]] for n in ("en", "fr"))
    assert first[0] != second[0] and first[1] == second[1] == "x"


def test_a_file_that_is_listed_twice_is_read_once(tmp_path):
    (tmp_path / "a.txt").write_text("One.")
    os.symlink(tmp_path / "a.txt", tmp_path / "b.txt")
    assert [d.id for _, d in read(files(f"{tmp_path}/*.txt,{tmp_path}/a.txt"))] == ["a.txt"]


@pytest.mark.parametrize("fields", [{"id_field": "nonsense"}, {"ids": "shared"}])
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_field_of_ids_that_no_document_has_is_refused_with_those_there_are(
    tmp_path, ending, fields
):
    path = write(tmp_path / f"a.{ending}", [{"text": "Text.", "url": "u"}])
    stated = "id_field='nonsense'" if "id_field" in fields else "ids='shared'"
    for call in (text.check_source_text, lambda name, source: read(source, name)):
        refused(
            lambda call=call: call("fr", files(path, **fields)),
            f"config.sources.fr.{stated}",
            "the first has: text, url.",
        )
    text.check_source_text("fr", files(path))


@pytest.mark.parametrize("field", [{"field": "body"}, {"id_field": "url"}, {"ids": "shared"}])
def test_a_field_is_refused_where_all_files_are_plain_text(tmp_path, field):
    (tmp_path / "a.txt").write_text("Text.")
    [(name, value)] = field.items()
    for call in (text.check_source_text, lambda name, source: read(source, name)):
        refused(
            lambda call=call: call("fr", files(tmp_path / "a.txt", **field)),
            f"config.sources.fr.{name}={value!r}: the files of the source are .txt",
        )
    write_lines(tmp_path / "b.jsonl", [{"body": "Text.", "text": "Text.", "url": "u", "id": "i"}])
    assert len(read(files(f"{tmp_path}/*", **field))) == 2


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_an_empty_id_is_none(tmp_path, ending):
    path = write(tmp_path / f"a.{ending}", [{"id": "", "text": "x"}, {"id": "", "text": "y"}])
    assert [d.id for _, d in read(files(path))] == [f"{path.name}:1", f"{path.name}:2"]
    with pytest.raises(ValueError, match="id"):
        read(files(path, ids="shared"))


def test_how_many_documents_lack_an_id_is_said_once(tmp_path, capsys):
    rows = [{"url": f"u{i}", "text": "Text."} for i in range(3)]
    path = write_lines(tmp_path / "a.jsonl", [{"text": "Text."}, *rows, {"text": "x", "url": None}])
    source = files(path, id_field="url")
    for _ in range(2):
        assert [d.id for _, d in read(source, "lacks")] == [
            "a.jsonl:1",
            "u0",
            "u1",
            "u2",
            "a.jsonl:5",
        ]
    said = capsys.readouterr().out
    assert said.count("config.sources.lacks.id_field='url': 2 of 5 documents have no id") == 1


# Nested fields


def test_dots_lead_to_a_field_within_another_unless_a_name_has_them(tmp_path):
    warc = {"warc-record-id": "urn:1", "warc.date": "d"}
    row = {"warc_headers": warc, "translation": {"fr": "Un."}, "translation.en": "One."}
    path = write_lines(tmp_path / "a.jsonl", [{**row, "translation": {"fr": "Un.", "en": "no"}}])
    table = write_table(tmp_path / "a.parquet", **{key: [value] for key, value in row.items()})
    for each in (path, table):
        for field, expected in (("translation.fr", "Un."), ("translation.en", "One.")):
            source = files(each, field=field, id_field="warc_headers.warc-record-id")
            assert [(d.id, d.text) for _, d in read(source)] == [("urn:1", expected)]
        [(_, document)] = read(
            files(each, field="translation.fr", id_field="warc_headers.warc.date")
        )
        assert document.id == "d"
        refused(
            lambda each=each: read(files(each, field="translation.de")),
            "'translation.de'; it has: warc_headers.warc-record-id, warc_headers.warc.date, "
            "translation.fr, translation.en",
        )
    assert text.estimate_text_bytes(files(table, field="translation.fr")) > 0


def test_a_field_within_one_that_is_null_is_absent(tmp_path):
    rows = [{"text": "x", "about": None}, {"text": "y", "about": {"id": "k"}}]
    for path in (write_lines(tmp_path / "a.jsonl", rows), write(tmp_path / "a.parquet", rows)):
        found = [d.id for _, d in read(files(path, id_field="about.id"))]
        assert found == [f"{path.name}:1", "k"]


# Text


def test_line_ends_of_a_text_file_are_line_feeds_and_those_of_json_are_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"One\r\ntwo\rthree\n\r\nfour")
    path = write_lines(tmp_path / "b.jsonl", [{"text": "One\r\ntwo\u2028three"}])
    path.write_bytes(
        path.read_bytes().replace(b"\n", b"\r\n").replace(b"\\u2028", "\u2028".encode())
    )
    assert [d.text for _, d in read(files(tmp_path / "*"))] == [
        "One\ntwo\nthree\n\nfour",
        "One\r\ntwo\u2028three",
    ]


def test_a_byte_order_mark_where_json_files_were_joined_is_not_text(tmp_path):
    part = b'\xef\xbb\xbf{"text": "Text."}\n'
    (tmp_path / "a.jsonl").write_bytes(part * 3)
    assert [d.text for _, d in read(files(tmp_path / "a.jsonl"))] == ["Text."] * 3
    (tmp_path / "a.jsonl").write_bytes(part.strip() + part)
    refused(lambda: read(files(tmp_path / "a.jsonl")), "line 1: is not valid", "byte order mark")


# What is wrong with files


def refused(call, *parts):
    with pytest.raises(ValueError) as caught:
        call()
    for part in parts:
        assert str(part) in str(caught.value)


def test_check_names_the_field_of_what_it_finds(tmp_path):
    good, empty, table = (tmp_path / name for name in ("a.txt", "empty.txt", "b.csv"))
    good.write_text("Text.")
    empty.touch()
    table.write_text("a,b")
    os.symlink(good, tmp_path / "again.txt")
    field = "config.sources.fr.train="

    def check(train, **fields):
        return lambda: text.check_source_text("fr", files(train, **fields))

    check(good)()
    refused(check(tmp_path / "no*.txt"), field, "matches no file", tmp_path / "no*.txt")
    refused(check(f"{good}, missing.txt"), "missing.txt matches no file", os.getcwd())
    refused(check(" , "), field, "is empty")
    refused(check(tmp_path), field, "is a directory", tmp_path / "*.txt")
    refused(check(table), field, ".txt, .jsonl, ", ".parquet, .arrow", "b.csv does not end in")
    refused(check(empty), field, "empty.txt is empty (0 bytes)")
    refused(
        check(good, test=f"{tmp_path}/again.txt"),
        "config.sources.fr.test=",
        "again.txt is also in config.sources.fr.train",
    )


def test_what_check_refuses_is_refused_by_the_others_too(tmp_path):
    source = files(tmp_path / "missing.txt")
    refused(lambda: read(source, "fr"), "config.sources.fr.train=")
    refused(lambda: text.compute_text_fingerprint("fr", source), "config.sources.fr.train=")


def test_a_line_that_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "a.jsonl"

    def reading(line):
        path.write_bytes(b'{"text": "Fine."}\n' + line + b"\n")
        return lambda: read(files(path))

    where = f"{path}, line 2"
    refused(reading(b'{"text": "half'), where, "is not valid JSON")
    refused(reading(b'["text"]'), where, "JSON array, not an object")
    refused(
        reading(b'{"body": "x", "url": 1}'),
        where,
        "no field 'text'; it has: body, url",
        "config.sources.en.field",
    )
    refused(reading(b'{"text": 3}'), where, "'text' is a JSON number", "config.sources.en.field")
    refused(reading(b'{"text": null}'), where, "'text' is a JSON null")
    refused(
        reading(b'{"text": "x", "id": [1]}'),
        where,
        "'id' is a JSON array",
        "config.sources.en.id_field",
    )
    refused(reading(b'{"text": "caf\xe9"}'), where, "is not UTF-8 text", "0xe9, at offset 13")
    refused(reading(b"[" * 100_000), where, "is not valid JSON")


def test_a_field_that_the_first_line_lacks_is_found_by_check(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"body": "x"}])
    refused(
        lambda: text.check_source_text("fr", files(path)), f"{path}, line 1: has no field 'text'"
    )


def test_bytes_that_are_not_utf8_are_named_in_a_text_file(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\ntwo\nthr\xffee\n")
    refused(lambda: read(files(tmp_path / "a.txt")), "a.txt, line 3", "not UTF-8", "offset 11")


def test_a_nul_byte_in_a_text_file_is_named_and_found_by_check_near_its_beginning(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("one\ntwo".encode("utf-16-le"))
    for call in (text.check_source_text, lambda name, source: read(source, name)):
        refused(lambda call=call: call("fr", files(path)), "a.txt, line 1", "NUL byte", "offset 1")
    path.write_bytes(b"line\n" * 50_000 + b"\0")
    text.check_source_text("fr", files(path))
    refused(lambda: read(files(path)), "a.txt, line 50001", "NUL byte")


def test_what_is_no_file_is_refused_and_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "zero.jsonl").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as end, contextlib.chdir(tmp_path):
        end.bind("end.parquet")
    for name, kind in {"pipe.txt": "pipe", "zero.jsonl": "device", "end.parquet": "socket"}.items():
        source = files(tmp_path / name)
        for call in (text.check_source_text, text.compute_text_fingerprint):
            refused(lambda c=call, s=source: c("fr", s), "fr.train", name, f"is a {kind}")


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_truncated_or_damaged_compressed_data_is_named_after_what_could_be_read(tmp_path, ending):
    kind = {".gz": "gzip", ".zst": "zstd"}[ending]
    rows = [{"text": hashlib.sha512(b"%d" % i).hexdigest()} for i in range(5000)]
    path = write_lines(tmp_path / f"a.jsonl{ending}", rows)
    whole = path.read_bytes()
    cut = [whole[: len(whole) // 2], whole[:-1]]
    wrong_checksum = [whole[:-8] + bytes(4) + whole[-4:]] if ending == ".gz" else []
    counts = []
    for data in (*cut, *wrong_checksum, b"not compressed at all"):
        path.write_bytes(data)
        stream, count = text.read_documents("en", files(path)), 0
        with pytest.raises(ValueError, match=f"the {kind} data is truncated or corrupt") as caught:
            for _ in stream:
                count += 1
        assert f"{path}, after line {count}:" in str(caught.value)
        counts.append(count)
    assert 0 < counts[0] < counts[1] <= 5000 and counts[-1] == 0

    (tmp_path / f"a.txt{ending}").write_bytes(whole[: len(whole) // 2])
    refused(lambda: read(files(tmp_path / f"a.txt{ending}")), "a.txt", f"the {kind} data is")


def test_frames_of_zstandard_that_follow_each_other_are_one_file(tmp_path):
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(zstd(b'{"text": "One."}\n') + zstd(b'{"text": "Two."}\n'))
    assert [d.text for _, d in read(files(path))] == ["One.", "Two."]


def test_an_error_of_the_disk_is_not_taken_for_damaged_data(tmp_path, monkeypatch):
    class Failing(io.BytesIO):
        def __next__(self):
            line = self.readline()
            if not line:
                raise OSError(errno.EIO, "Input/output error")
            return line

    def failing(file, path):
        return Failing(b'{"text": "One."}')

    source = files(write_lines(tmp_path / "a.jsonl.gz", [{"text": "One."}]))
    monkeypatch.setattr(files_lib, "_decompress_file", failing)
    with pytest.raises(OSError, match="Input/output error"):
        read(source)


# What is wrong with a Parquet file


def test_a_parquet_file_without_the_column_is_refused_before_it_is_read(tmp_path):
    path = write_table(tmp_path / "a.parquet", body=["x"], url=["u"])
    for call in (text.check_source_text, lambda name, source: read(source, name)):
        refused(
            lambda call=call: call("fr", files(path)),
            f"{path}: has no column 'text'; it has: body, url",
            "config.sources.fr.field",
        )
    text.check_source_text("fr", files(path, field="body"))


def test_two_parquet_columns_of_one_name_are_refused(tmp_path):
    columns = [pyarrow.array([word]) for word in ("x", "y", "z")]
    table = pyarrow.Table.from_arrays(columns, names=["text", "text", "url"])
    parquet.write_table(table, tmp_path / "a.parquet")
    for call in (text.check_source_text, lambda name, source: read(source, name)):
        refused(lambda call=call: call("fr", files(tmp_path / "a.parquet")), "2 columns of the")
    assert [d.text for _, d in read(files(tmp_path / "a.parquet", field="url"))] == ["z"]


def test_a_value_of_parquet_that_is_not_a_string_is_named_by_its_row(tmp_path):
    def reading(**columns):
        return lambda: read(files(write_table(tmp_path / "a.parquet", **columns)))

    path, field = tmp_path / "a.parquet", "config.sources.en.field"
    texts = ["Text."] * 100
    refused(
        reading(text=[*texts, None, "x"]), f"{path}, row 101:", "'text' is a Parquet null", field
    )
    refused(reading(text=[1, 2]), f"{path}, row 1:", "'text' is a Parquet int64", field)
    refused(reading(text=[b"x"]), f"{path}, row 1:", "'text' is a Parquet binary", field)
    refused(reading(text=[["x"]]), f"{path}, row 1:", "'text' is a Parquet list", field)
    refused(
        reading(text=["x"], id=[1.5]),
        f"{path}, row 1:",
        "'id' is a Parquet double, not a string",
        "config.sources.en.id_field",
    )
    refused(reading(text=["x"], id=[True]), f"{path}, row 1:", "'id' is a Parquet bool")
    reading(text=["x"], id=[None], other=[1.5])()


def test_what_a_parquet_file_has_instead_of_strings_is_found_by_check(tmp_path):
    path = write_table(tmp_path / "a.parquet", text=[1, 2])
    refused(lambda: text.check_source_text("en", files(path)), f"{path}, row 1:", "Parquet int64")


def test_bytes_of_parquet_that_are_not_utf8_are_named_by_their_row(tmp_path):
    values = pyarrow.array([b"fine"] * 70 + [b"thr\xffee"])
    offsets, data = values.buffers()[1:]
    strings = pyarrow.StringArray.from_buffers(len(values), offsets, data)
    path = write_table(tmp_path / "a.parquet", text=strings)
    refused(lambda: read(files(path)), f"{path}, row 71: is not UTF-8 text (byte 0xff, at offset 3")


def test_a_truncated_or_damaged_parquet_file_is_named(tmp_path):
    noise = random.Random(0)
    texts = [noise.randbytes(500).hex() for _ in range(2000)]
    path = tmp_path / "a.parquet"
    # Checksums of pages are off by default, so the damage must be where it cannot be text.
    parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=500)
    whole = path.read_bytes()
    message = "the Parquet data is truncated or corrupt"
    for data in (whole[: len(whole) // 2], whole[:-1], b"not Parquet at all"):
        path.write_bytes(data)
        for call in (
            text.check_source_text,
            text.estimate_text_bytes,
            lambda name, source: read(source, name),
        ):
            arguments = (files(path),) if call is text.estimate_text_bytes else ("en", files(path))
            refused(
                lambda call=call, arguments=arguments: call(*arguments),
                f"{path}, at its end: {message}",
            )
    half = len(whole) // 2
    path.write_bytes(whole[:half] + bytes(len(whole) // 4) + whole[half + len(whole) // 4 :])
    text.check_source_text("en", files(path))
    stream, count = text.read_documents("en", files(path)), 0
    with pytest.raises(ValueError, match=message) as caught:
        for _ in stream:
            count += 1
    assert f"{path}, after row {count}:" in str(caught.value) and 900 <= count < 1500


# Fingerprints of files


def test_the_fingerprint_follows_the_content_and_not_the_place(tmp_path):
    prints = []
    for directory in ("here", "there"):
        (tmp_path / directory).mkdir()
        path = write_lines(tmp_path / directory / "a.jsonl", [{"text": "One."}])
        os.utime(path, (len(prints), len(prints)))
        prints.append(text.compute_text_fingerprint("en", files(path)))
    assert prints[0] == prints[1] == text.compute_text_fingerprint("other_name", files(path))
    # Whatever changes the documents or their splits changes it.
    other = write_lines(tmp_path / "b.jsonl", [{"text": "Two."}])
    changed = [
        files(other),
        files(path, field="body"),
        files(path, test=str(other)),
        files(path, validation=str(other)),
        files(f"{path},{other}"),
        files(f"{other},{path}"),
    ]
    prints += [text.compute_text_fingerprint("en", source) for source in changed]
    path.write_text('{"text": "Two."}\n')
    prints.append(text.compute_text_fingerprint("en", files(path)))
    path.rename(tmp_path / "renamed.jsonl")
    prints.append(text.compute_text_fingerprint("en", files(tmp_path / "renamed.jsonl")))
    assert len(set(prints[1:])) == len(prints[1:])


def test_a_cached_digest_saves_reading_the_file_until_it_changes(tmp_path, monkeypatch):
    hashed = []
    digest = hashlib.file_digest

    def recording(file, kind):
        hashed.append(os.path.basename(file.name))
        return digest(file, kind)

    monkeypatch.setattr(hashlib, "file_digest", recording)
    monkeypatch.setattr(files_lib, "_CLOCK", 0)
    cache = tmp_path / "cache" / "digests.json"
    (tmp_path / "a.txt").write_text("One.")
    (tmp_path / "b.txt").write_text("Two.")
    source = files(tmp_path / "*.txt")
    first = text.compute_text_fingerprint("en", source, cache)
    assert (
        text.compute_text_fingerprint("en", source, cache)
        == first
        == text.compute_text_fingerprint("en", source)
    )
    assert hashed == ["a.txt", "b.txt"] * 2  # the second time without a cache

    (tmp_path / "b.txt").write_text("Too.")
    os.utime(tmp_path / "b.txt", ns=(5, 5))
    assert text.compute_text_fingerprint("en", source, cache) != first
    text.compute_text_fingerprint("en", files(tmp_path / "a.txt"), cache)  # still known
    assert hashed[4:] == ["b.txt"]
    assert os.listdir(cache.parent) == ["digests.json"]


@pytest.mark.parametrize("keep", ["in place", "another file"])
def test_another_text_of_equal_size_and_time_has_another_digest(tmp_path, monkeypatch, keep):
    monkeypatch.setattr(files_lib, "_CLOCK", 0)
    path, cache = tmp_path / "x.txt", tmp_path / "digests.json"
    path.write_text("One." + "x" * 100_000)
    os.utime(path, ns=(5, 5))
    first = files_lib.compute_file_digests([str(path)], cache)
    assert files_lib.compute_file_digests([str(path)], cache) == first
    time.sleep(0.02)  # a clock of file systems may tick a hundred times a second
    if keep == "in place":
        path.write_text("Two." + "x" * 100_000)
    else:
        (tmp_path / "y.txt").write_text("Two." + "x" * 100_000)
        (tmp_path / "y.txt").replace(path)
    os.utime(path, ns=(5, 5))
    second = files_lib.compute_file_digests([str(path)], cache)
    assert second == {str(path): hashlib.sha256(path.read_bytes()).hexdigest()} != first


def test_a_file_that_has_just_changed_is_hashed_and_not_remembered(tmp_path):
    path, cache = tmp_path / "x.txt", tmp_path / "digests.json"
    path.write_text("One.")
    files_lib.compute_file_digests([str(path)], cache)
    assert not cache.exists()


def test_what_the_times_do_not_show_a_sample_of_the_bytes_may(tmp_path, monkeypatch):
    """As on a file system that keeps no time of change of its own."""
    monkeypatch.setattr(files_lib, "_CLOCK", 0)
    monkeypatch.setattr(storage, "format_file_status", lambda status: f"{status.st_size}")
    path, cache = tmp_path / "x.txt", tmp_path / "digests.json"
    found = []
    for place in (0, 50_000, 99_999):
        path.write_bytes(b"a" * place + b"b" + b"a" * (99_999 - place))
        found += files_lib.compute_file_digests([str(path)], cache).values()
    assert len(set(found)) == 3


@pytest.mark.parametrize("content", ["{", "[]", '{"a": ', "\x00", "{}"])
def test_a_corrupt_cache_is_ignored_and_replaced(tmp_path, content, monkeypatch):
    monkeypatch.setattr(files_lib, "_CLOCK", 0)
    cache = tmp_path / "digests.json"
    cache.write_text(content)
    (tmp_path / "a.txt").write_text("One.")
    source = files(tmp_path / "a.txt")
    assert text.compute_text_fingerprint("en", source, cache) == text.compute_text_fingerprint(
        "en", source
    )
    assert list(read_plain_json(cache).values()) == [hashlib.sha256(b"One.").hexdigest()]


def test_the_size_of_a_source_counts_what_there_is_to_train_on(tmp_path):
    row = [{"text": "word " * 1000}]
    plain = write_lines(tmp_path / "a.jsonl", row)
    packed = write_lines(tmp_path / "b.jsonl.gz", row)
    packed_more = write_lines(tmp_path / "c.jsonl.zst", row)
    expected = plain.stat().st_size + 3 * (packed.stat().st_size + packed_more.stat().st_size)
    assert text.estimate_text_bytes(files(tmp_path / "*", test="elsewhere")) == expected


def test_the_size_of_a_parquet_file_is_that_of_its_text(tmp_path):
    noise = random.Random(0)
    texts = [noise.randbytes(1000).hex() for _ in range(300)]
    others = [noise.randbytes(1000).hex() for _ in range(300)]
    path = write_table(tmp_path / "a.parquet", id=list(range(300)), text=texts, other=others)
    # Lengths, and what Parquet says of each page, are little beside the text.
    assert text.estimate_text_bytes(files(path)) == pytest.approx(600_000, rel=0.05)
