"""Behaviours of data/text/docstrings.py and prose.py, on packages made here and on stdlib."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import textwrap
import types

import pytest
from helpers import ROOT

from imbalance_jax.config import SourceConfig
from imbalance_jax.data.text import docstrings
from imbalance_jax.data.text import reading as text
from imbalance_jax.data.text.documents import SPLITS
from imbalance_jax.data.text.prose import extract_prose


def read(source, name="en"):
    return list(text.read_documents(name, source))


SMALL = SourceConfig(packages=("json", "email", "asyncio"))


@pytest.fixture(scope="module")
def small():
    """Returns the documents of SMALL."""
    return read(SMALL)


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
    return extract_prose(textwrap.dedent(docstring))


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
    text.check_source_text("en", source)
    text.check_source_text("en", deeper)
    text.compute_text_fingerprint("en", deeper)
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


def test_docstrings_are_the_same_each_time_and_on_any_number_of_workers(small, monkeypatch):
    once = small
    assert len(once) > 30 and {split for split, _ in once} == set(SPLITS)
    assert read(SMALL) == once
    monkeypatch.setattr(docstrings, "_MIN_PARALLEL", 1)
    monkeypatch.setattr(docstrings, "_CHUNK", 7)
    for cores in (1, 2):
        monkeypatch.setattr(docstrings, "count_cores", lambda cores=cores: cores)
        seen = []
        assert list(text.read_documents("en", SMALL, seen.append)) == once
        assert seen == sorted(seen) and seen[-1] == 1.0 and len(seen) > 5


def test_a_worker_that_is_killed_is_reported_by_its_signal(monkeypatch):
    monkeypatch.setattr(docstrings, "count_cores", lambda: 2)
    monkeypatch.setattr(docstrings, "_extract_paragraphs", signal.raise_signal)
    with pytest.raises(ValueError, match=r"ended by SIGKILL, .*fewer cores"):
        list(docstrings._extract_chunks([signal.SIGKILL, signal.SIGKILL], 10**6))


def test_each_held_out_split_gets_a_fiftieth_of_the_modules(package, monkeypatch):
    monkeypatch.setattr(docstrings, "_MIN_PARALLEL", 10_000)
    for index in range(1500):
        source = package(
            f'"""{FILLER.replace("sentences", f"sentences ({index})")}"""\n', f"m{index}"
        )
    splits = [split for split, _ in read(source)]
    # 30 expected, with a standard deviation of 5.4.
    assert len(splits) == 1500
    assert 12 < splits.count("validation") < 48 and 12 < splits.count("test") < 48


def test_workers_do_not_run_a_main_module_without_a_guard_again(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        print("started", flush=True)
        from imbalance_jax.config import SourceConfig
        from imbalance_jax.data.text import docstrings
        from imbalance_jax.data.text import reading as text
        docstrings._MIN_PARALLEL, docstrings.count_cores = 1, lambda: 2
        print(len(list(text.read_documents("en", SourceConfig(packages=("json", "email"))))))
        """)
    )
    root = str(ROOT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, *sys.path])}
    result = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, timeout=60
    )
    count = len(read(SourceConfig(packages=("json", "email"))))
    assert (result.stdout, result.stderr) == (f"started\n{count}\n", "")


def test_most_words_of_the_docstrings_are_words_of_english_prose(small):
    words = re.findall(r"\S+", " ".join(d.text for _, d in small).lower())
    common = {"the", "a", "of", "to", "is", "in", "and", "be", "if", "this", "for", "that", "it"}
    assert sum(word in common for word in words) > 0.2 * len(words)  # as in any English text


def test_a_package_that_is_not_installed_is_named_if_the_config_asks_for_it(monkeypatch):
    for missing in ("no_such_package", "json.missing", "no_such.module", "", "../etc", "_io"):
        source = SourceConfig(packages=("json", missing))
        for call in (
            text.check_source_text,
            text.compute_text_fingerprint,
            lambda n, s: list(text.read_documents(n, s)),
        ):
            with pytest.raises(ValueError, match=r"config\.sources\.en\.packages") as caught:
                call("en", source)
            assert repr(missing) in str(caught.value)
    monkeypatch.setattr(docstrings, "PACKAGES", ("json", "no_such_package"))
    text.check_source_text("en", SourceConfig())
    text.compute_text_fingerprint("en", SourceConfig())
    assert read(SourceConfig()) == read(SourceConfig(packages=("json",)))


def test_the_standard_library_does_not_include_installed_packages():
    modules = [module for module, _ in docstrings._list_modules(["stdlib"])]
    tops = {module.partition(".")[0] for module in modules}
    assert {"json", "os", "pydoc_data", "asyncio"} <= tops
    assert not {"pytest", "numpy", "site-packages", "test"} & tops


def test_the_fingerprint_of_docstrings_follows_versions_and_packages(package, monkeypatch):
    json_only, numpy = SourceConfig(packages=("json",)), SourceConfig(packages=("numpy",))
    first = (
        text.compute_text_fingerprint("en", json_only),
        text.compute_text_fingerprint("en", numpy),
    )
    assert first[0] == text.compute_text_fingerprint("fr", json_only) != first[1]
    with monkeypatch.context() as patch:
        patch.setattr(docstrings.importlib.metadata, "version", lambda name: "0.0.1")
        assert text.compute_text_fingerprint("en", json_only) == first[0]
        assert text.compute_text_fingerprint("en", numpy) != first[1]
    with monkeypatch.context() as patch:
        patch.setattr(sys, "version_info", (3, 99, 0, "final", 0))
        assert text.compute_text_fingerprint("en", json_only) != first[0]
    # A package without metadata: by the sizes of its files.
    before = text.compute_text_fingerprint("en", package('"""Short."""'))
    assert before == text.compute_text_fingerprint("en", package('"""Short."""'))
    assert before != text.compute_text_fingerprint("en", package('"""Other."""'))  # of equal length


def test_a_package_that_is_edited_where_it_lies_has_another_fingerprint_at_one_version(
    package, monkeypatch
):
    distribution = types.SimpleNamespace(read_text=lambda name: '{"dir_info": {"editable": true}}')
    metadata = docstrings.importlib.metadata
    monkeypatch.setattr(
        metadata, "packages_distributions", lambda: {"sample_package_of_text": ["sample"]}
    )
    monkeypatch.setattr(metadata, "version", lambda name: "1.0")
    monkeypatch.setattr(metadata, "distribution", lambda name: distribution)
    before = text.compute_text_fingerprint("en", package('"""Short."""'))
    assert before != text.compute_text_fingerprint("en", package('"""Other."""'))
    distribution.read_text = lambda name: None  # an installation, which keeps to its version
    before = text.compute_text_fingerprint("en", package('"""Short."""'))
    assert before == text.compute_text_fingerprint("en", package('"""Other."""'))


def test_the_size_of_the_embedded_text_is_not_known_before_it_is_read():
    assert text.estimate_text_bytes(SMALL) == 0
