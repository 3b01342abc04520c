"""What a program left on disk is read by the readers of runs/damaged_files.py alone."""

import ast

import pytest
from helpers import ROOT

PARSERS = {
    *("json.load", "json.loads", "np.load", "numpy.load", "csv.reader", "csv.DictReader"),
    *("sentencepiece.SentencePieceProcessor", "zipfile.ZipFile", "pickle.load", "pickle.loads"),
}
# What these parse was not left there by an earlier command.
OTHERS = {
    "imbalance_jax/runs/damaged_files.py": "the readers",
    "imbalance_jax/data/sentencepiece_tokenizer.py": "the reader of SentencePiece models",
    "imbalance_jax/data/text/files.py": "lines of the user's text, with errors of their own",
    "imbalance_jax/data/text/docstrings.py": "what pip wrote of a package",
    "imbalance_jax/reference/reported.py": "a file of this package",
    "imbalance_jax/report/study/alignment_panels.py": "text that it has written itself",
    "imbalance_jax/bench/start.py": "the output of a process",
    "imbalance_jax/bench/profile.py": "a trace of the profiler, from the same process",
}


def find_parsers(path) -> list[str]:
    calls = [
        node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
    ]
    return [name for call in calls if (name := ast.unparse(call)) in PARSERS]


def test_files_are_parsed_by_their_readers_alone():
    paths = [
        path for room in ("imbalance_jax", "launch") for path in sorted((ROOT / room).rglob("*.py"))
    ]
    found = {path.relative_to(ROOT).as_posix(): find_parsers(path) for path in paths}
    assert {name for name, parsers in found.items() if parsers} == set(OTHERS)


@pytest.mark.parametrize("call", sorted(PARSERS))
def test_a_parser_is_found(tmp_path, call):
    (tmp_path / "module.py").write_text(f"def read(path):\n    return {call}(path)\n")
    assert find_parsers(tmp_path / "module.py") == [call]
