"""The house: imports go down one list of rooms, and what must stay light loads no jax.

docs/internals.md says what each room is for. These tests read the source and import nothing of it,
but for the one that asks Python what a room loads.
"""

import ast
import graphlib
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from helpers import ROOT

PACKAGE = ROOT / "imbalance_jax"
# A module imports from its own room and from those before it. Commands come last: what a user
# starts, which is each __main__.py and the modules at the top.
ORDER = (
    "config", "runs", "cli", "data", "compute", "evaluation", "training", "study", "analysis",
    "drawing", "reference", "report", "transfer", "word2vec", "bench", "commands",
)  # fmt: skip
LIGHT = ("config", "runs", "cli", "data", "study", "analysis", "drawing", "reference", "report")


def module_of(path: pathlib.Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


TREES = {module_of(path): ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}


def room_of(module: str) -> str:
    names = module.split(".")
    if names[-1] == "__main__" or (len(names) < 3 and names[-1] not in ORDER):
        return "commands"
    return names[1]


def imports_of(module: str, *, at_load: bool = False) -> Iterator[tuple[str, str]]:
    """Yields (module of the package, name taken from it or "") for what a module imports.

    Args:
      at_load: only those that are imported when the module is.
    """
    tree = TREES[module]
    late = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if at_load and node in late:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("imbalance_jax"):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield (whole, "") if whole in TREES else (str(node.module), alias.name)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name in TREES)


def test_imports_go_down_the_list_of_rooms():
    wrong = [
        f"{module} imports {imported}"
        for module in TREES
        for imported, _ in imports_of(module)
        if ORDER.index(room_of(imported)) > ORDER.index(room_of(module))
    ]
    assert not wrong


def test_no_module_imports_itself_by_a_detour():
    # What a function imports when it runs counts too: it would hide a circle, not break it.
    graph = {
        module: {imported for imported, _ in imports_of(module)} - {module} for module in TREES
    }
    del graph["imbalance_jax"]  # whose `load` is found where the rest of the package is
    assert list(graphlib.TopologicalSorter(graph).static_order())


def test_every_module_is_in_a_room_of_the_list():
    assert {room_of(module) for module in TREES} == set(ORDER)


@pytest.mark.parametrize("room", LIGHT)
def test_light_rooms_load_neither_jax_nor_flax(room):
    names = [name for name in TREES if room_of(name) == room]
    code = f"import sys, {', '.join(names)}; print({{'jax', 'flax'}} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def test_names_with_an_underscore_stay_in_their_file():
    wrong = []
    for module, tree in TREES.items():
        bound = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("imbalance_jax"):
                for alias in node.names:
                    bound[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                    if alias.name.startswith("_") and not alias.name.endswith("__"):
                        wrong.append(f"{module} imports {node.module}.{alias.name}")
        wrong += [
            f"{module} uses {bound[node.value.id]}.{node.attr}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and bound.get(node.value.id) in TREES
            and node.attr.startswith("_")
            and not node.attr.endswith("__")
        ]
    assert not wrong


def test_json_is_written_by_the_function_that_writes_null_for_what_is_not_finite():
    # The last two write no file: the text that an identity is a hash of, and a field's value.
    allowed = {"runs/json_text.py", "config/identity.py", "config/fields.py"}
    files = [*PACKAGE.rglob("*.py"), *(ROOT / "launch").rglob("*.py")]
    around = [
        str(file)
        for file in files
        if re.search(r"\bjson\.dumps?\b|\bimport dumps?\b|JSONEncoder", file.read_text())
    ]
    assert {file.removeprefix(f"{PACKAGE}/") for file in around} == allowed


def test_few_files_stand_at_the_top():
    assert len(list(PACKAGE.glob("*.py"))) <= 8


def test_modules_are_short_enough_to_be_read_at_once():
    lines = {path: len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert not {str(path): count for path, count in lines.items() if count > 500}
    assert sum(count <= 300 for count in lines.values()) > 0.8 * len(lines)


def test_module_functions_are_called_by_a_verb_and_its_object():
    names = [
        node.name.strip("_")
        for tree in TREES.values()
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
    ]
    assert sum("_" not in name for name in names) < 0.1 * len(names)
