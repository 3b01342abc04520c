"""Behaviours of data/text.py, on files made here and on the standard library's docstrings."""

import dataclasses
import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
import textwrap
import tracemalloc

import pytest

from imbalance_jax.config import SourceConfig
from imbalance_jax.data import text


def files(train, **fields):
    return SourceConfig(kind="files", train=str(train), **fields)


def write_lines(path, rows):
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def read(source, name="en"):
    return list(text.documents(name, source))


def splits_by_id(source):
    return {document.id: split for split, document in read(source)}


# Files


def test_each_kind_of_file_yields_its_documents_in_order(tmp_path):
    (tmp_path / "b.txt").write_bytes("Zwei\r\nZeilen é\x00\u2028.".encode())
    (tmp_path / "a.txt").write_text("One.")
    write_lines(tmp_path / "c.jsonl", [{"id": "x", "text": "Three."}, {"text": "Four."}])
    write_lines(tmp_path / "d.jsonl.gz", [{"id": 7, "text": "Five."}])
    source = files(f"{tmp_path}/*.txt, {tmp_path}/c.*,{tmp_path}/d.jsonl.gz")
    assert [(d.id, d.text) for _, d in read(source)] == [
        ("a.txt", "One."),
        ("b.txt", "Zwei\r\nZeilen é\x00\u2028."),
        ("x", "Three."),
        ("c.jsonl:2", "Four."),
        ("7", "Five."),
    ]


def test_the_fields_of_text_and_id_are_those_of_the_config(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"id": 1, "url": "u", "text": "no", "body": "yes"}])
    [(_, document)] = read(files(path, field="body", id_field="url"))
    assert document == text.Document("u", "yes")


def test_documents_without_text_and_empty_lines_are_skipped_but_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": " \\n"}\n\n{"text": ""}\n{"text": "Kept."}\r\n')
    assert [d for _, d in read(files(path))] == [text.Document("a.jsonl:4", "Kept.")]


def test_a_byte_order_mark_is_not_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfText.")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "Text."}\n')
    assert [d.text for _, d in read(files(tmp_path / "*"))] == ["Text.", "Text."]


def test_half_a_surrogate_pair_becomes_text_that_can_be_encoded(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": "\\ud800", "text": "x \\udc00 \\ud83d\\ude00"}\n')
    [(_, document)] = read(files(path))
    assert document == text.Document("\ufffd", "x \ufffd \U0001f600")


def test_a_pattern_is_expanded_and_a_name_with_brackets_is_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "a.txt").write_text("One.")
    (tmp_path / "b[1].txt").write_text("Two.")
    source = files("~/**/a.txt, ~/b[1].txt, ~/deep/er/*.txt")
    assert [d.id for _, d in read(source)] == ["a.txt", "b[1].txt"]  # each file once


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz"])
def test_a_corpus_is_streamed(tmp_path, ending):
    rows = ({"text": "word " * 1000} for _ in range(2000))
    path = write_lines(tmp_path / f"a.{ending}", rows)
    tracemalloc.start()
    try:
        count = sum(len(document.text) for _, document in text.documents("en", files(path)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 10_000_000 and peak < 1_000_000


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz"])
def test_progress_rises_to_one_as_the_file_is_consumed(tmp_path, ending):
    # Digests do not compress, so a fraction of the lines is one of the compressed file too.
    rows = [{"text": hashlib.sha512(b"%d" % i).hexdigest()} for i in range(20_000)]
    write_lines(tmp_path / f"a.{ending}", rows[:15_000])
    write_lines(tmp_path / f"b.{ending}", rows[15_000:])
    seen, at = [], {}
    for index, _ in enumerate(text.documents("en", files(tmp_path / "*"), seen.append)):
        at[index] = seen[-1] if seen else 0.0
    assert seen == sorted(seen) and seen[-1] == 1.0 and 10 < len(seen) < 1000
    # Buffers are read ahead.
    assert at[5000] == pytest.approx(0.25, abs=0.1)
    assert at[17_500] == pytest.approx(0.875, abs=0.1)


# Splits


def test_files_of_a_split_are_in_that_split(tmp_path):
    for split in text.SPLITS:
        rows = [{"id": f"{split}{i}", "text": "Text."} for i in range(500)]
        write_lines(tmp_path / f"{split}.jsonl", rows)
    paths = {split: f"{tmp_path}/{split}.jsonl" for split in text.SPLITS}
    found = splits_by_id(SourceConfig(kind="files", **paths))
    assert len(found) == 1500
    assert all(document_id.startswith(split) for document_id, split in found.items())


def test_a_carved_split_gets_a_hundredth_of_the_documents(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"id": i, "text": "Text."} for i in range(20_000)])
    counts = {split: list(splits_by_id(files(path)).values()).count(split) for split in text.SPLITS}
    # 200 expected, with a standard deviation of 14.
    assert 140 < counts["validation"] < 260 and 140 < counts["test"] < 260
    assert sum(counts.values()) == 20_000


def test_documents_of_equal_id_share_a_split_whatever_their_source(tmp_path):
    ids = [f"page/{i}" for i in range(5000)]
    english = write_lines(tmp_path / "en.jsonl", [{"id": i, "text": "Text."} for i in ids])
    rows = [{"id": i, "text": "Autre texte."} for i in reversed(ids[::2])]
    french = write_lines(tmp_path / "fr.jsonl.gz", rows)
    in_english, in_french = splits_by_id(files(english)), splits_by_id(files(french))
    assert {in_english[i] == in_french[i] for i in in_french} == {True}
    assert set(in_french.values()) == set(text.SPLITS)


def test_which_documents_are_validation_does_not_depend_on_where_test_comes_from(tmp_path):
    rows = [{"id": i, "text": "Text."} for i in range(5000)]
    path = write_lines(tmp_path / "a.jsonl", rows)
    other = write_lines(tmp_path / "b.jsonl", [{"id": "b", "text": "Text."}])
    both, one = splits_by_id(files(path)), splits_by_id(files(path, test=str(other)))
    assert {i for i in both if both[i] == "validation"} == {
        i for i in one if one[i] == "validation"
    }
    assert [i for i in one if one[i] == "test"] == ["b"]


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
        return lambda: text.check("fr", files(train, **fields))

    check(good)()
    refused(check(tmp_path / "no*.txt"), field, "matches no file", tmp_path / "no*.txt")
    refused(check(f"{good}, missing.txt"), "missing.txt matches no file", os.getcwd())
    refused(check(" , "), field, "is empty")
    refused(check(tmp_path), field, "is a directory", tmp_path / "*.txt")
    refused(check(table), field, ".jsonl.gz", "b.csv does not end in")
    refused(check(empty), field, "empty.txt is empty (0 bytes)")
    refused(
        check(good, test=f"{tmp_path}/again.txt"),
        "config.sources.fr.test=",
        "again.txt is also in config.sources.fr.train",
    )


def test_what_check_refuses_is_refused_by_the_others_too(tmp_path):
    source = files(tmp_path / "missing.txt")
    refused(lambda: read(source, "fr"), "config.sources.fr.train=")
    refused(lambda: text.fingerprint("fr", source), "config.sources.fr.train=")


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


def test_bytes_that_are_not_utf8_are_named_in_a_text_file(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\ntwo\nthr\xffee\n")
    refused(lambda: read(files(tmp_path / "a.txt")), "a.txt, line 3", "not UTF-8", "offset 11")


def test_a_truncated_or_damaged_gzip_is_named_after_its_whole_lines_were_read(tmp_path):
    rows = [{"text": hashlib.sha512(b"%d" % i).hexdigest()} for i in range(5000)]
    path = write_lines(tmp_path / "a.jsonl.gz", rows)
    whole = path.read_bytes()
    wrong_checksum = whole[:-8] + bytes(4) + whole[-4:]
    for data in (whole[: len(whole) // 2], whole[:-1], wrong_checksum, b"not gzip at all"):
        path.write_bytes(data)
        stream, count = text.documents("en", files(path)), 0
        with pytest.raises(ValueError, match="truncated or corrupt") as caught:
            for _ in stream:
                count += 1
        assert f"{path}, after line {count}:" in str(caught.value)


# Fingerprints of files


def test_the_fingerprint_follows_the_content_and_not_the_place(tmp_path):
    prints = []
    for directory in ("here", "there"):
        (tmp_path / directory).mkdir()
        path = write_lines(tmp_path / directory / "a.jsonl", [{"text": "One."}])
        os.utime(path, (len(prints), len(prints)))
        prints.append(text.fingerprint("en", files(path)))
    assert prints[0] == prints[1] == text.fingerprint("other_name", files(path))
    # Whatever changes the documents or their splits changes it.
    other = write_lines(tmp_path / "b.jsonl", [{"text": "Two."}])
    changed = [
        files(other),
        files(path, field="body"),
        files(path, id_field="url"),
        files(path, test=str(other)),
        files(path, validation=str(other)),
        files(f"{path},{other}"),
        files(f"{other},{path}"),
    ]
    prints += [text.fingerprint("en", source) for source in changed]
    path.write_text('{"text": "Two."}\n')
    prints.append(text.fingerprint("en", files(path)))
    path.rename(tmp_path / "renamed.jsonl")
    prints.append(text.fingerprint("en", files(tmp_path / "renamed.jsonl")))
    assert len(set(prints[1:])) == len(prints[1:])


def test_a_cached_digest_saves_reading_the_file_until_it_changes(tmp_path, monkeypatch):
    hashed = []
    digest = hashlib.file_digest

    def recording(file, kind):
        hashed.append(os.path.basename(file.name))
        return digest(file, kind)

    monkeypatch.setattr(hashlib, "file_digest", recording)
    cache = tmp_path / "cache" / "digests.json"
    (tmp_path / "a.txt").write_text("One.")
    (tmp_path / "b.txt").write_text("Two.")
    source = files(tmp_path / "*.txt")
    first = text.fingerprint("en", source, cache)
    assert text.fingerprint("en", source, cache) == first == text.fingerprint("en", source)
    assert hashed == ["a.txt", "b.txt"] * 2  # the second time without a cache

    (tmp_path / "b.txt").write_text("Too.")
    os.utime(tmp_path / "b.txt", ns=(5, 5))
    assert text.fingerprint("en", source, cache) != first
    text.fingerprint("en", files(tmp_path / "a.txt"), cache)  # still known
    assert hashed[4:] == ["b.txt"]
    assert os.listdir(cache.parent) == ["digests.json"]


@pytest.mark.parametrize("content", ["{", "[]", '{"a": ', "\x00", "{}"])
def test_a_corrupt_cache_is_ignored_and_replaced(tmp_path, content):
    cache = tmp_path / "digests.json"
    cache.write_text(content)
    (tmp_path / "a.txt").write_text("One.")
    source = files(tmp_path / "a.txt")
    assert text.fingerprint("en", source, cache) == text.fingerprint("en", source)
    assert list(json.loads(cache.read_text()).values()) == [hashlib.sha256(b"One.").hexdigest()]


# Docstrings

SMALL = SourceConfig(packages=("json", "email", "asyncio"))


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Returns a function that writes a module of a package and returns a source of it.

    FILLER in the module becomes enough text for a document.
    """
    monkeypatch.syspath_prepend(str(tmp_path))
    root = tmp_path / "sample_package_of_text"

    def write(content, module="__init__"):
        path = root / f"{module}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(content).replace("FILLER", FILLER))
        return SourceConfig(packages=(root.name,))

    return write


FILLER = "\n\n".join(
    f"This is the {word} of the sentences that make the document long enough to be kept."
    for word in ("first", "second", "third")
)


def prose(docstring):
    """Returns the paragraphs that are left of one docstring."""
    return text._paragraphs(textwrap.dedent(docstring))


def test_a_module_is_a_document_of_its_docstrings_in_source_order(package):
    source = package('''
        """Says what the whole module is about.

        And says it in a second paragraph that is
        wrapped over two lines.
        """
        import something_that_does_not_exist
        if something_that_does_not_exist:
            class Thing:
                """Stands for one of the things there are."""
                attribute: int = 0
                """Counts how often the thing was asked for."""
                async def method(self):
                    """Answers the question that was asked."""
                    text = """Not a docstring of anything at all."""
        add_newdoc("numpy", "name", ("method", """Describes a compiled method of the thing."""))
        def filler():
            """FILLER"""
        ''')
    [(_, document)] = read(source)
    assert document.id == "sample_package_of_text"
    assert document.text.split("\n") == [
        "Says what the whole module is about.",
        "And says it in a second paragraph that is wrapped over two lines.",
        "Stands for one of the things there are.",
        "Counts how often the thing was asked for.",
        "Answers the question that was asked.",
        "Describes a compiled method of the thing.",
        *FILLER.split("\n\n"),
    ]


def test_no_module_is_imported(package, tmp_path):
    source = package(f'''
        """FILLER"""
        import pathlib
        pathlib.Path({str(tmp_path / "imported")!r}).touch()
        ''')
    package(f'"""{FILLER.replace("sentences", "phrases")}"""\n1 / 0\n', "deeper/module")
    package("", "deeper/__init__")
    deeper = dataclasses.replace(source, packages=("sample_package_of_text.deeper",))
    text.check("en", source)
    text.check("en", deeper)
    text.fingerprint("en", deeper)
    assert [d.id for _, d in read(source)] == [
        "sample_package_of_text",
        "sample_package_of_text.deeper.module",
    ]
    assert [d.id for _, d in read(deeper)] == ["sample_package_of_text.deeper.module"]
    assert not (tmp_path / "imported").exists()
    assert "sample_package_of_text" not in sys.modules


def test_code_tables_and_markup_are_dropped_and_their_prose_kept():
    assert prose("""
        Summary of the function that :func:`~a.b.foo` calls with ``x`` and *y*, see [1]_.

        Parameters
        ----------
        x : array_like of float
            The values to work on, which may be
            of any shape.
        *args, y : int
            More of them, and how many.

        For example::

            for line in the_file:
                print("this is not for the reader")

        It is used as in the following session of the interpreter:

        >>> foo(1)
        this is the output of the call
        and this is the rest of the output

        ```python
        this is code in a fence, in words
        ```

        ====== =====================================
        Name   Each of these has one of the meanings
        ====== =====================================
        this   is the first of the rows in the table
        ====== =====================================

        +-----+----------------------------------------------------------+
        | and | this is a cell of the other one of the tables that are   |
        |     | dropped, and it has a second line in the same cell       |
        +-----+----------------------------------------------------------+

        .. versionadded:: 1.2

        .. note::
           This note is kept as it is prose.

        .. code-block:: python
           :linenos:

           this is code of a directive, in words

        Args:
          first: The first of the arguments, which
            goes on in a second line.
          second (int): The second of them, as it were.

        - An item of a list that is
          wrapped as well.
        - Another item of the same list.

        :param str z: The last of the parameters.
        :rtype: the type of the result of this
        """) == [
        "Summary of the function that foo calls with x and y, see.",
        "x: The values to work on, which may be of any shape.",
        "*args, y: More of them, and how many.",
        "It is used as in the following session of the interpreter:",
        "This note is kept as it is prose.",
        "first: The first of the arguments, which goes on in a second line.",
        "second (int): The second of them, as it were.",
        "An item of a list that is wrapped as well.",
        "Another item of the same list.",
        "z: The last of the parameters.",
    ]


def test_code_without_any_markup_is_recognised():
    assert prose("""
        The following is what one writes to use it.

            import json, os, sys
            def function(argument_one, argument_two=None):
            value = function(argument_one)[0] + 1
            print(value, file=sys.stderr)

        x = the first of the values and the second
        """) == ["The following is what one writes to use it."]


def test_a_paragraph_occurs_once_in_the_whole_source(package):
    source = package(f'"""{FILLER}\n\nOnly the first module says this."""\n', "a")
    package(f'"""{FILLER}\n\n{FILLER.replace("sentences", "phrases")}"""\n', "b")
    package(f'"""{FILLER}\n\nToo short for a document of its own."""\n', "c")
    documents = {d.id.rpartition(".")[2]: d.text.split("\n") for _, d in read(source)}
    assert documents == {
        "a": [*FILLER.split("\n\n"), "Only the first module says this."],
        "b": FILLER.replace("sentences", "phrases").split("\n\n"),
    }


def test_tests_and_vendored_copies_are_not_read(package):
    package('"""FILLER"""\n', "kept")
    for module in ("tests/helpers", "_vendor/other", "test_a", "conftest", "not-a-module"):
        source = package(f'"""{FILLER.replace("sentences", module)}"""\n', module)
    assert [d.id for _, d in read(source)] == ["sample_package_of_text.kept"]


def test_a_file_that_does_not_parse_is_passed_over(package):
    package('"""FILLER"""\nprint "Python 2"\n', "old")
    source = package('"""FILLER"""\n', "new")
    assert [d.id for _, d in read(source)] == ["sample_package_of_text.new"]


def test_the_topics_of_pydoc_are_documents():
    documents = {d.id: d.text for _, d in read(SourceConfig(packages=("pydoc_data",)))}
    assert len(documents) > 50
    assert "assert" in documents["pydoc_data.topics.assert"]
    assert not re.search(r"^\s|\n\s|>>>|\*\*\*\*", "".join(documents.values()))


def test_docstrings_are_the_same_each_time_and_on_any_number_of_workers(monkeypatch):
    once = read(SMALL)
    assert len(once) > 30 and {split for split, _ in once} == set(text.SPLITS)
    assert read(SMALL) == once
    monkeypatch.setattr(text, "_MIN_PARALLEL", 1)
    monkeypatch.setattr(text, "_CHUNK", 7)
    for cores in (1, 2):
        monkeypatch.setattr(text, "cores", lambda cores=cores: cores)
        seen = []
        assert list(text.documents("en", SMALL, seen.append)) == once
        assert seen == sorted(seen) and seen[-1] == 1.0 and len(seen) > 5


def test_workers_do_not_run_a_main_module_without_a_guard_again(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        print("started", flush=True)
        from imbalance_jax.config import SourceConfig
        from imbalance_jax.data import text
        text._MIN_PARALLEL, text.cores = 1, lambda: 2
        print(len(list(text.documents("en", SourceConfig(packages=("json", "email"))))))
        """)
    )
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, *sys.path])}
    result = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, timeout=60
    )
    count = len(read(SourceConfig(packages=("json", "email"))))
    assert (result.stdout, result.stderr) == (f"started\n{count}\n", "")


def test_most_words_of_the_docstrings_are_words_of_english_prose():
    words = re.findall(r"\S+", " ".join(d.text for _, d in read(SMALL)).lower())
    common = {"the", "a", "of", "to", "is", "in", "and", "be", "if", "this", "for", "that", "it"}
    assert sum(word in common for word in words) > 0.2 * len(words)  # as in any English text


def test_a_package_that_is_not_installed_is_named_if_the_config_asks_for_it(monkeypatch):
    for missing in ("no_such_package", "json.missing", "no_such.module", "", "../etc", "_io"):
        source = SourceConfig(packages=("json", missing))
        for call in (text.check, text.fingerprint, lambda n, s: list(text.documents(n, s))):
            with pytest.raises(ValueError, match=r"config\.sources\.en\.packages") as caught:
                call("en", source)
            assert repr(missing) in str(caught.value)
    monkeypatch.setattr(text, "PACKAGES", ("json", "no_such_package"))
    text.check("en", SourceConfig())
    text.fingerprint("en", SourceConfig())
    assert read(SourceConfig()) == read(SourceConfig(packages=("json",)))


def test_the_standard_library_does_not_include_installed_packages():
    modules = [module for module, _ in text._modules(["stdlib"])]
    tops = {module.partition(".")[0] for module in modules}
    assert {"json", "os", "pydoc_data", "asyncio"} <= tops
    assert not {"pytest", "numpy", "site-packages", "test"} & tops


def test_the_fingerprint_of_docstrings_follows_versions_and_packages(package, monkeypatch):
    json_only, numpy = SourceConfig(packages=("json",)), SourceConfig(packages=("numpy",))
    first = text.fingerprint("en", json_only), text.fingerprint("en", numpy)
    assert first == (text.fingerprint("fr", json_only), text.fingerprint("en", numpy))
    assert first[0] != first[1]
    with monkeypatch.context() as patch:
        patch.setattr(text.importlib.metadata, "version", lambda name: "0.0.1")
        assert text.fingerprint("en", json_only) == first[0]
        assert text.fingerprint("en", numpy) != first[1]
    with monkeypatch.context() as patch:
        patch.setattr(sys, "version_info", (3, 99, 0, "final", 0))
        assert text.fingerprint("en", json_only) != first[0]
    # A package without metadata: by the sizes of its files.
    before = text.fingerprint("en", package('"""Short."""'))
    assert before == text.fingerprint("en", package('"""Short."""'))
    assert before != text.fingerprint("en", package('"""Longer."""'))


def test_the_size_of_a_source_counts_what_there_is_to_train_on(tmp_path):
    row = [{"text": "word " * 1000}]
    plain = write_lines(tmp_path / "a.jsonl", row)
    packed = write_lines(tmp_path / "b.jsonl.gz", row)
    expected = plain.stat().st_size + 3 * packed.stat().st_size
    assert text.size(files(tmp_path / "*", test="elsewhere")) == expected
    assert text.size(SMALL) == 0
