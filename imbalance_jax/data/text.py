"""Documents of a source, as they are before any tokenizer sees them.

`documents` yields them one by one, each with its split; `check` finds what is wrong with a
source before a byte of it is read, and `fingerprint` stands for all that would be yielded.

A source is either files of one's own, or the English documentation that every installation
has: the docstrings of the standard library and of the packages this project depends on. Those
are found in the syntax trees of the sources; nothing is imported.
"""

import ast
import concurrent.futures
import contextlib
import dataclasses
import gc
import glob
import gzip
import hashlib
import importlib.machinery
import importlib.metadata
import importlib.util
import inspect
import json
import multiprocessing
import os
import pathlib
import re
import sys
import sysconfig
import tempfile
import types
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO

from imbalance_jax.config import SourceConfig

SPLITS = ("train", "validation", "test")
ENDINGS = (".txt", ".jsonl", ".jsonl.gz")

# Without an argument of its own, the docstrings source reads these, in this order; one that
# is not installed is left out. All belong to the dependencies of this project.
PACKAGES = (
    "stdlib",
    "numpy",
    "scipy",
    "matplotlib",
    "mpl_toolkits",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax",
    "tensorflow_datasets",
    "etils",
    "absl",
    "ml_collections",
    "rich",
    "pyarrow",
    "PIL",
    "fsspec",
    "treescope",
    "requests",
    "urllib3",
    "fontTools",
    "google",
    "pygments",
    "pyparsing",
    "packaging",
    "simple_parsing",
    "dateutil",
    "psutil",
    "attr",
    "wrapt",
    "prometheus_client",
    "opt_einsum",
    "einops",
    "tqdm",
    "markdown_it",
    "contourpy",
    "charset_normalizer",
    "humanize",
    "idna",
    "yaml",
)

# Part of every fingerprint: raise it when the same input begins to yield other text.
_VERSION = 1
# The share of documents that a split carved out of train gets. Docstrings are few and small:
# a hundredth of them would be too little text to measure a loss on.
_FILES_SHARE = 0.01
_DOCSTRINGS_SHARE = 0.02


@dataclasses.dataclass(frozen=True)
class Document:
    """One text; a line of it is a paragraph."""

    id: str  # decides the split, and pairs a document with its versions in other languages
    text: str


def documents(
    name: str, source: SourceConfig, progress: Callable[[float], None] | None = None
) -> Iterator[tuple[str, Document]]:
    """Yields (split, document) in an order that depends on the text alone.

    A split without files of its own gets documents of train, chosen by a hash of their ids
    and nothing else: documents of equal id are in the same split, whatever their source.

    Args:
      name: of the source in config.sources, for messages.
      source: where the text is.
      progress: called now and then with how much of the input is read, from 0 to 1.

    Raises:
      ValueError: a file cannot be read as what its ending says, naming file and line; or
        whatever `check` raises.
    """
    report = progress or (lambda fraction: None)
    if source.kind == "files":
        yield from _file_documents(name, source, report)
    else:
        yield from _docstring_documents(name, source, report)
    report(1.0)


def check(name: str, source: SourceConfig) -> None:
    """Finds what is wrong with a source without reading its text.

    Raises:
      ValueError: a pattern matches nothing that could be read, a file is in two splits, or a
        package is not installed.
    """
    if source.kind == "files":
        _split_files(name, source)
        return
    for package in source.packages:
        if not _locations(package):
            raise ValueError(
                f"config.sources.{name}.packages has {package!r}, but there is no such package "
                f"with Python sources here. Install it, or take it out; () takes all of "
                "the fixed list that is installed."
            )


def fingerprint(name: str, source: SourceConfig, cache: pathlib.Path | None = None) -> str:
    """Returns hex digits that stand for the text which `documents` would yield.

    For files they follow from the bytes, not from where or how old a file is. For docstrings
    they follow from the versions of Python and of the packages, so they differ between
    environments, as the text does.

    Args:
      name: of the source in config.sources, for messages.
      source: where the text is.
      cache: a JSON file to remember the digests of files in, by path, size and time of
        change. With it, a corpus that stays as it is is read once.

    Raises:
      ValueError: as `check`.
    """
    if source.kind == "files":
        files = _split_files(name, source)
        digests = _digests([path for _, path in files], cache)
        key: list[object] = [source.field, source.id_field]
        key += [[split, os.path.basename(path), digests[path]] for split, path in files]
    else:
        check(name, source)
        key = [list(sys.version_info), *_package_versions(source)]
    return hashlib.sha256(json.dumps([_VERSION, source.kind, key]).encode()).hexdigest()


def size(source: SourceConfig) -> int:
    """Returns about how many bytes of text there are to train on; 0 for docstrings."""
    if source.kind != "files":
        return 0
    # Prose is about a third of its size when compressed.
    paths = [path for pattern in _patterns(source.train) for path in _matches(pattern)]
    return sum(os.path.getsize(path) * (3 if path.endswith(".gz") else 1) for path in paths)


def _carved_split(document_id: str, splits: Sequence[str], share: float) -> str:
    """Returns which of the splits, of `share` each, a document of train goes to, if any."""
    digest = hashlib.blake2b(
        document_id.encode("utf-8", "surrogatepass"), digest_size=8, key=b"imbalance_jax split"
    ).digest()
    place = int.from_bytes(digest, "big") / 2**64
    # Each split has a range of its own, so it does not matter which others are carved.
    for index, split in enumerate(SPLITS[1:]):
        if split in splits and index * share <= place < (index + 1) * share:
            return split
    return "train"


# Files


def _file_documents(
    name: str, source: SourceConfig, report: Callable[[float], None]
) -> Iterator[tuple[str, Document]]:
    files = _split_files(name, source)
    carved = [split for split in SPLITS if not _patterns(getattr(source, split))]
    total = sum(os.path.getsize(path) for _, path in files)
    before = 0
    reported = 0.0
    for split, path in files:
        for consumed, document in _read(name, source, path):
            fraction = (before + consumed) / total
            if fraction >= reported + 0.002:
                reported = fraction
                report(min(1.0, fraction))
            if document.text.strip():
                into = _carved_split(document.id, carved, _FILES_SHARE)
                yield (into if split == "train" else split), document
        before += os.path.getsize(path)


def _patterns(field: str) -> list[str]:
    return [pattern.strip() for pattern in field.split(",") if pattern.strip()]


def _matches(pattern: str) -> list[str]:
    path = os.path.expanduser(pattern)
    # A file whose name has brackets in it is a file all the same.
    return [path] if os.path.exists(path) else sorted(glob.glob(path, recursive=True))


def _split_files(name: str, source: SourceConfig) -> list[tuple[str, str]]:
    """Returns (split, path) of every file, in the order in which they are read."""
    files: dict[str, tuple[str, str]] = {}  # by real path
    for split in SPLITS:
        value = getattr(source, split)
        field = f"config.sources.{name}.{split}={value!r}"
        if split == "train" and not _patterns(value):
            raise ValueError(f"{field} is empty. Set it to a {', '.join(ENDINGS)} file or pattern.")
        for pattern in _patterns(value):
            paths = _matches(pattern)
            if not paths:
                where = os.path.abspath(os.path.expanduser(pattern))
                raise ValueError(
                    f"{field}: {pattern} matches no file (looked for {where}). "
                    "Correct the path; ** matches any number of directories."
                )
            for path in paths:
                _check_file(field, path)
                real = os.path.realpath(path)
                other, _ = files.setdefault(real, (split, path))
                if other != split:
                    raise ValueError(
                        f"{field}: {path} is also in config.sources.{name}.{other}. A file "
                        "can be in one split only: narrow one of the two patterns."
                    )
    return list(files.values())


def _check_file(field: str, path: str) -> None:
    if os.path.isdir(path):
        raise ValueError(
            f"{field}: {path} is a directory. Write which of its files to read, such as "
            f"{os.path.join(path, '*.txt')}."
        )
    if not path.endswith(ENDINGS):
        raise ValueError(
            f"{field}: {path} does not end in one of {', '.join(ENDINGS)}. Convert it to one "
            "of these, or narrow the pattern."
        )
    if not os.path.getsize(path):
        raise ValueError(f"{field}: {path} is empty (0 bytes). Remove it, or write it again.")


def _read(name: str, source: SourceConfig, path: str) -> Iterator[tuple[int, Document]]:
    """Yields (bytes of the file consumed so far, document)."""
    basename = os.path.basename(path)
    with open(path, "rb") as file:
        if path.endswith(".txt"):
            text = _decode(file.read(), path)
            yield file.tell(), Document(basename, text)
            return
        for number, line in enumerate(_lines(file, path), start=1):
            if line.strip():
                document = _parse(name, source, line, path, number)
                yield file.tell(), document


def _lines(file: BinaryIO, path: str) -> Iterator[bytes]:
    if not path.endswith(".gz"):
        yield from file
        return
    number = 0
    try:
        for number, line in enumerate(gzip.GzipFile(fileobj=file), start=1):  # noqa: B007
            yield line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(
            f"{path}, after line {number}: the gzip data is truncated or corrupt ({error}). "
            "Copy or compress the file again."
        ) from error


def _decode(data: bytes, path: str, line: int = 1) -> str:
    """Returns text from UTF-8, without the byte order mark that may begin a file."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        raise ValueError(
            f"{path}, line {line}: is not UTF-8 text (byte 0x{data[error.start]:02x}, at offset "
            f"{error.start} of the {'file' if path.endswith('.txt') else 'line'}). Convert the "
            "file to UTF-8."
        ) from error
    return text.removeprefix("\ufeff") if line == 1 else text


def _parse(name: str, source: SourceConfig, data: bytes, path: str, number: int) -> Document:
    where = f"{path}, line {number}"
    text = _decode(data, path, number)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{where}: is not valid JSON ({error}). Write one JSON object a line."
        ) from error
    if not isinstance(values, dict):
        raise ValueError(
            f"{where}: is a JSON {_json_type(values)}, not an object. Write one JSON object a "
            f'line, such as {{"{source.field}": "..."}}.'
        )
    if source.field not in values:
        raise ValueError(
            f"{where}: has no field {source.field!r}; it has: "
            f"{', '.join(values) or 'none'}. Set config.sources.{name}.field."
        )
    for field, kinds in (("field", str), ("id_field", str | int | None)):
        value = values.get(getattr(source, field))
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise ValueError(
                f"{where}: its field {getattr(source, field)!r} is a JSON {_json_type(value)}, "
                f"not a string. Set config.sources.{name}.{field}."
            )
    document_id = values.get(source.id_field)
    if document_id is None:
        document_id = f"{os.path.basename(path)}:{number}"
    return Document(_whole_characters(str(document_id)), _whole_characters(values[source.field]))


def _whole_characters(text: str) -> str:
    r"""Replaces halves of surrogate pairs: JSON can spell them as \ud800, UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _json_type(value: object) -> str:
    names = {str: "string", list: "array", dict: "object", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def _digests(paths: Iterable[str], cache: pathlib.Path | None) -> dict[str, str]:
    """Returns the sha256 of each file; what the cache knows is not read."""
    known = _load_cache(cache)
    digests, fresh = {}, {}
    for path in paths:
        status = os.stat(path)
        key = f"{os.path.abspath(path)}:{status.st_size}:{status.st_mtime_ns}"
        if key not in known:
            with open(path, "rb") as file:
                fresh[key] = known[key] = hashlib.file_digest(file, "sha256").hexdigest()
        digests[path] = known[key]
    if cache is not None and fresh:
        # Hashing may have taken long, and other runs add to the same file.
        _save_cache(cache, _load_cache(cache) | fresh)
    return digests


def _load_cache(cache: pathlib.Path | None) -> dict[str, str]:
    if cache is None:
        return {}
    try:
        known = json.loads(cache.read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(known, dict):
        return {}
    return {key: value for key, value in known.items() if isinstance(value, str)}


def _save_cache(cache: pathlib.Path, known: dict[str, str]) -> None:
    # Only a shortcut: where it cannot be written, the next run hashes again.
    with contextlib.suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        descriptor, unfinished = tempfile.mkstemp(dir=cache.parent, prefix=f".{cache.name}.")
        try:
            with open(descriptor, "w") as file:
                json.dump(known, file, indent=1)
            os.replace(unfinished, cache)
        except BaseException:
            os.unlink(unfinished)
            raise


# Docstrings: which files


_SKIPPED = frozenset(
    ("test", "tests", "testing", "testdata", "test_data", "conftest")
    + ("_vendor", "vendor", "externals", "lib2to3", "__pycache__", "__main__")
)
_TOPICS = "pydoc_data.topics"


def _locations(package: str) -> list[str]:
    """Returns the directories or the file of a package, without importing it; [] if absent."""
    if package == "stdlib":
        return [sysconfig.get_path("stdlib")]
    top, *rest = package.split(".")
    if not all(part.isidentifier() for part in [top, *rest]):
        return []
    # Not importlib.util.find_spec, which answers from what is already imported, and gives
    # frozen modules of the standard library no file. It is the way to editable installs.
    spec = importlib.machinery.PathFinder.find_spec(top)
    if spec is None:
        with contextlib.suppress(ImportError, ValueError):
            spec = importlib.util.find_spec(top)
    if spec is None:
        return []
    found = list(spec.submodule_search_locations or [spec.origin or ""])
    for part in rest:
        below = [os.path.join(directory, part) for directory in found]
        found = [path for path in below if os.path.isdir(path)] or [f"{path}.py" for path in below]
    return [path for path in found if os.path.isdir(path) or _is_source_file(path)]


def _is_source_file(path: str) -> bool:
    return path.endswith(".py") and os.path.isfile(path)


def _modules(packages: Iterable[str]) -> list[tuple[str, str]]:
    """Returns (dotted module name, path) of every module, each file once."""
    modules: dict[str, str] = {}  # by path
    for package in packages:
        for location in _locations(package):
            if os.path.isfile(location):
                modules.setdefault(location, package)
                continue
            prefix = [] if package == "stdlib" else [package]
            for path in sorted(_sources_below(location)):
                parts = os.path.relpath(path, location).removesuffix(".py").split(os.sep)
                if parts[-1] == "__init__":
                    parts.pop()
                modules.setdefault(path, ".".join(prefix + parts))
    return [(module, path) for path, module in modules.items()]


def _sources_below(directory: str) -> Iterator[str]:
    for here, subdirectories, files in os.walk(directory):
        # Python packages only: this also keeps site-packages out of the standard library.
        subdirectories[:] = [d for d in subdirectories if d.isidentifier() and d not in _SKIPPED]
        for file in files:
            stem, ending = os.path.splitext(file)
            tests = stem.startswith("test_") or stem.endswith("_test") or stem in _SKIPPED
            if ending == ".py" and stem.isidentifier() and not tests:
                yield os.path.join(here, file)


def _package_versions(source: SourceConfig) -> list[object]:
    """Returns what tells the text of the packages from that of other versions of them."""
    distributions = importlib.metadata.packages_distributions()
    versions: list[object] = []
    for package in source.packages or PACKAGES:
        found = sorted(set(distributions.get(package.partition(".")[0], ())))
        version: object = [[d, importlib.metadata.version(d)] for d in found]
        # The standard library as well: some systems ship it in parts.
        if not found:
            version = [[m, os.path.getsize(path)] for m, path in _modules([package])]
        if version:
            versions.append([package, version])
    return versions


# Docstrings: from modules to documents


_CHUNK = 32  # files that a worker reads at a time
_MIN_PARALLEL = 200  # files; for fewer, starting workers takes longer than reading
_MIN_PARAGRAPH = 20  # characters
_MIN_DOCUMENT = 200  # characters


def _docstring_documents(
    name: str, source: SourceConfig, report: Callable[[float], None]
) -> Iterator[tuple[str, Document]]:
    check(name, source)
    modules = _modules(source.packages or PACKAGES)
    chunks = [modules[start : start + _CHUNK] for start in range(0, len(modules), _CHUNK)]
    seen: set[str] = set()
    for index, extracted in enumerate(_map(chunks, len(modules))):
        for document_id, paragraphs in extracted:
            # Inherited and copied docstrings would otherwise repeat, and leak into held-out
            # text. dict.fromkeys removes repetitions within the document.
            fresh = [p for p in dict.fromkeys(paragraphs) if p not in seen]
            seen.update(fresh)
            text = "\n".join(fresh)
            if len(text) >= _MIN_DOCUMENT:
                split = _carved_split(document_id, SPLITS[1:], _DOCSTRINGS_SHARE)
                yield split, Document(document_id, text)
        report(min(1.0, (index + 1) * _CHUNK / len(modules)))


def _map(
    chunks: Sequence[Sequence[tuple[str, str]]], num_modules: int
) -> Iterator[list[tuple[str, list[str]]]]:
    """Yields `_extract` of every chunk in order, from several processes if that pays."""
    workers = min(cores(), len(chunks))
    if workers < 2 or num_modules < _MIN_PARALLEL:
        yield from map(_extract, chunks)
        return
    # Not fork: jax may be loaded, and its threads do not survive one.
    executor = concurrent.futures.ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn")
    )
    try:
        with _anonymous_main():
            results = executor.map(_extract, chunks)  # submits all: starts every worker
        yield from results
    finally:
        executor.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _anonymous_main() -> Iterator[None]:
    """Keeps processes that are started meanwhile from running the main module again.

    They need nothing from it. It may import jax, or be a script without a guard.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _extract(modules: Sequence[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    """Returns (document id, paragraphs) of the modules that have any."""
    found = []
    collecting = gc.isenabled()
    # Syntax trees are many objects without cycles; the collector would only walk them.
    gc.disable()
    try:
        for module, path in modules:
            for document_id, docstrings in _docstrings(module, path):
                paragraphs = [p for docstring in docstrings for p in _paragraphs(docstring)]
                if paragraphs:
                    found.append((document_id, paragraphs))
    finally:
        if collecting:
            gc.enable()
    return found


def _docstrings(module: str, path: str) -> Iterator[tuple[str, list[str]]]:
    """Yields (document id, docstrings): a module is one document, a topic of pydoc too."""
    try:
        source = pathlib.Path(path).read_bytes()
        if module != _TOPICS and b'"""' not in source and b"'''" not in source:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what others write in their sources
            tree = ast.parse(source)
    # A file that this Python cannot read has no documentation; packages ship a few.
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return
    if module == _TOPICS:
        yield from _topics(tree)
    else:
        yield module, list(_strings(tree.body))


def _topics(tree: ast.Module) -> Iterator[tuple[str, list[str]]]:
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict):
            for topic, text in ast.literal_eval(statement.value).items():
                yield f"{_TOPICS}.{topic}", [text]


def _strings(body: Iterable[ast.stmt]) -> Iterator[str]:
    """Yields the docstrings of a body and of what it defines, in the order of the source."""
    for statement in body:
        match statement:
            # Also below an assignment, where it documents the attribute.
            case ast.Expr(value=ast.Constant(value=str(text))):
                yield text
            # numpy and scipy document what they compile in calls of add_newdoc.
            case ast.Expr(value=ast.Call(func=function, args=arguments)):
                if getattr(function, "id", getattr(function, "attr", "")) == "add_newdoc":
                    for node in arguments:
                        for part in ast.walk(node):
                            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                                yield part.value
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                docstring = ast.get_docstring(statement, clean=False)
                if docstring:
                    yield docstring
            case ast.ClassDef() | ast.With():
                yield from _strings(statement.body)
            case ast.If() | ast.Try():
                yield from _strings(statement.body)
                for handler in getattr(statement, "handlers", ()):
                    yield from _strings(handler.body)
                yield from _strings(statement.orelse)
                yield from _strings(getattr(statement, "finalbody", ()))


# Docstrings: from markup to prose


_FENCE = re.compile(r"(```+|~~~+)")
_PROMPT = re.compile(r">>>|In \[\d*\]:|\.\.\. ")
_SHELL = re.compile(r"[$%] \S")
_GRID = re.compile(r"[+|]([-=]{2,}\+)+$|\|.*\|$")
_BORDER = re.compile(r"[=-]{2,}( +[=-]{2,})+$")
_UNDERLINE = re.compile(r"([^\w\s])\1{2,}$")
_DIRECTIVE = re.compile(r"\.\.\s+([\w:-]+?)\s?::\s*(.*)")
_ADMONITIONS = frozenset(
    ("note", "warning", "tip", "hint", "important", "attention", "caution", "danger", "error")
    + ("admonition", "seealso", "rubric", "topic")
    + ("versionadded", "versionchanged", "deprecated")
)
_FIELD = re.compile(r":(\w[^:`]*):(?:\s+(.*)|$)")
_ITEM = re.compile(r"([-*+\u2022]|\d{1,2}[.)]|\(\w\)|#\.)\s+(?=\S)")
# "name: description", "name (type): description", "name -- description", "name : type" or
# "name, name : type".
_NAMES = r"[*\\`]*\w[\w.]*`*(?:\s?\([^()]*\))?(?:, [*\\`]*\w[\w.]*`*)*"
_ENTRY = re.compile(rf"({_NAMES})(:| :| --?)\s+\S")


@dataclasses.dataclass(frozen=True)
class _Line:
    indent: int
    text: str


def _paragraphs(docstring: str) -> list[str]:
    """Returns the prose of a docstring, a line per paragraph: no code, tables or markup."""
    lines = [
        _Line(len(line) - len(line.lstrip()), line.strip())
        for line in inspect.cleandoc(docstring).split("\n")
    ]
    paragraphs = (_plain(paragraph) for paragraph in _joined(_without_blocks(lines)))
    return [paragraph for paragraph in paragraphs if _is_prose(paragraph)]


def _without_blocks(lines: Sequence[_Line]) -> Iterator[_Line]:
    """Drops code, tables, directives and section underlines, and leaves empty lines there."""
    at = 0
    while at < len(lines):
        line = lines[at]
        text = line.text
        at += 1
        if fence := _FENCE.match(text):
            while at < len(lines) and not lines[at].text.startswith(fence[1]):
                at += 1
            at += 1
        elif _PROMPT.match(text):
            while at < len(lines) and lines[at].text:  # the output
                at += 1
        elif _BORDER.match(text):
            at = _end_of_table(lines, at)
        elif _SHELL.match(text) or _GRID.match(text) or _UNDERLINE.match(text):
            pass
        elif text.startswith(".. ") or text == "..":
            directive = _DIRECTIVE.match(text)
            if directive and directive[1] in _ADMONITIONS:
                yield _Line(0, "")
                while at < len(lines) and re.match(r":\w+:", lines[at].text):
                    at += 1
                argument = directive[2]
                if directive[1] in ("versionadded", "versionchanged", "deprecated"):
                    argument = re.sub(r"^v?\d[\w.]*\s*", "", argument)
                # Continues on the lines below, which stand deeper than the directive.
                deeper = at < len(lines) and lines[at].text and lines[at].indent > line.indent
                yield _Line(lines[at].indent if deeper else line.indent, argument)
                continue
            at = _end_of_block(lines, at, line.indent)
        elif field := _FIELD.match(text):
            yield _Line(0, "")
            kind, _, named = field[1].partition(" ")
            if kind in ("type", "rtype", "vartype"):
                at = _end_of_block(lines, at, line.indent)
            else:
                name = named.split()[-1] if named else ""
                yield _Line(line.indent, f"{name}: {field[2] or ''}" if name else field[2] or "")
            continue
        elif text.endswith("::"):
            yield _Line(line.indent, text.removesuffix("::").rstrip() + ":" * (text != "::"))
            at = _end_of_block(lines, at, line.indent)
        else:
            yield line
            continue
        yield _Line(0, "")


def _end_of_block(lines: Sequence[_Line], at: int, indent: int) -> int:
    while at < len(lines) and (not lines[at].text or lines[at].indent > indent):
        at += 1
    return at


def _end_of_table(lines: Sequence[_Line], at: int) -> int:
    """Returns where a simple table ends: with the border that an empty line follows."""
    for end in range(at, len(lines)):
        last = end + 1 == len(lines) or not lines[end + 1].text
        if last and _BORDER.match(lines[end].text):
            return end + 1
    return at


def _joined(lines: Iterable[_Line]) -> Iterator[str]:
    """Puts the wrapped lines of each paragraph, list item and definition on one line."""
    parts: list[str] = []
    start = body = 0  # indent of the first line and of those that continue it
    is_item = False
    for line in lines:
        text, indent = line.text, line.indent
        item = _ITEM.match(text)
        if parts and text and not item:
            term = _term(parts[0]) if len(parts) == 1 and indent > start else None
            if term:
                parts, body = [term, text], indent
                continue
            if indent > body and _continues(parts, text, is_item):
                body = indent
            # An entry right below another one is the next of a list of arguments.
            next_entry = indent == start and _ENTRY.match(text) and _ENTRY.match(parts[0])
            if indent == body and not next_entry:
                parts.append(text)
                continue
        if parts:
            yield " ".join(parts)
        parts = []
        if text:
            is_item = item is not None
            start = body = indent
            if item:
                # Wrapped lines of an item stand below its text or, at times, its marker.
                body = indent + item.end()
                text = text if item[1][0].isdigit() else text[item.end() :]
            parts = [text]
    if parts:
        yield " ".join(parts)


def _term(line: str) -> str | None:
    """Returns the term of a line that an indented definition follows, or None."""
    entry = _ENTRY.match(line)
    if entry:  # of numpydoc: its type is little text, and much the same everywhere
        return f"{entry[1]}:" if entry[2] == " :" else None
    heading = re.fullmatch(r"[A-Z]\w*:", line)
    if re.fullmatch(rf"{_NAMES}:?", line) and not heading:
        return line.removesuffix(":") + ":"
    return None


def _continues(parts: Sequence[str], text: str, is_item: bool) -> bool:
    """Returns whether a line that stands deeper than those above goes on with them."""
    if len(parts) == 1 and (is_item or _ENTRY.match(parts[0])):
        return True
    unfinished = parts[-1][-1].isalnum() or parts[-1][-1] == ","
    return unfinished and text[0].islower() and len(parts[-1].split()) > 4


_MARKUP = (
    (re.compile(r":(?:\w+:)?[\w+-]+:`~(?:[\w.]*\.)?(\w+)(?:\(\))?`"), r"\1"),
    (re.compile(r":(?:\w+:)?[\w+-]+:`!?([^`<]*?)\s*(?:<[^`>]*>)?`"), r"\1"),
    (re.compile(r"``([^`]+)``"), r"\1"),
    (re.compile(r"`([^`<]+?)\s*<[^`>]*>`__?"), r"\1"),
    (re.compile(r"`~?([^`]+)`_{0,2}"), r"\1"),
    (re.compile(r"!?\[([^\]\[]+)\]\(https?:[^)\s]*\)"), r"\1"),
    (re.compile(r"\s*\[[#\w*-]+\]_"), ""),
    (re.compile(r"(?<![\w*])\*\*(?=\S)([^*]+?)(?<=\S)\*\*(?![\w*])"), r"\1"),
    (re.compile(r"(?<![\w*])\*(?=[^\s*])([^*]+?)(?<=\S)\*(?![\w*])"), r"\1"),
    (re.compile(r"\\([*_`|\\])"), r"\1"),
    (re.compile(r"^(" + _NAMES + r") : "), r"\1: "),
    (re.compile(r"\s+"), " "),
)


def _plain(paragraph: str) -> str:
    for pattern, replacement in _MARKUP:
        paragraph = pattern.sub(replacement, paragraph)
    return paragraph.strip()


_WORD = re.compile(r"[\"'(]*[A-Za-z]+(?:['\u2019/-][A-Za-z]+)*[.,;:!?)\"']*")
_COMMON = re.compile(
    r"\b(?:the|a|an|of|to|in|is|are|be|and|or|for|if|this|that|with|by|on|as|it|not|from|at|"
    r"when|which|will|can|should|must|return|returns|no|all|each)\b",
    re.IGNORECASE,
)
_CODE = re.compile(
    r"import [\w.]+(?: as | from |,| import |$)|from [\w.]+ import |def |class \w+[(:]|@\w|#|//|"
    r"[{}<]|[\w.\[\]]+(?:, \w+)* [-+*/]?= \S"
)
_LEGAL = re.compile(r"copyright|\blicen[sc]ed? |all rights reserved|warranty", re.IGNORECASE)


def _is_prose(paragraph: str) -> bool:
    words = paragraph.split()
    plain = sum(_WORD.fullmatch(word) is not None for word in words)
    if len(paragraph) < _MIN_PARAGRAPH or plain < 3 or plain < 0.6 * len(words):
        return False
    letters = sum(map(str.isalpha, paragraph))
    if letters < 0.8 * sum(map(len, words)) and plain < 0.75 * len(words):
        return False
    # A short sentence may do without any of the common words, a long one hardly can.
    if len(paragraph) > 60 and not _COMMON.search(paragraph):
        return False
    return not _CODE.match(paragraph) and not _LEGAL.search(paragraph)
