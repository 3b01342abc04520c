"""The embedded text: English documentation that every installation has.

It is in the docstrings of the standard library and of the packages this project depends on,
which are found in the syntax trees of the sources; nothing is imported.
"""

import ast
import concurrent.futures
import contextlib
import gc
import importlib.machinery
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import pathlib
import signal
import sys
import sysconfig
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.process import BaseProcess

from imbalance_jax.config import SourceConfig
from imbalance_jax.data.text.documents import SPLITS, DigestFiles, Document, RawDocuments
from imbalance_jax.data.text.prose import extract_prose
from imbalance_jax.data.text.selection import Selection
from imbalance_jax.runs import children
from imbalance_jax.runs.children import count_cores

# Without an argument of its own, the docstrings source reads these, in this order; one that
# is not installed is left out. All belong to the dependencies of this project.
PACKAGES = (
    "stdlib", "numpy", "scipy", "matplotlib", "mpl_toolkits", "jax", "jaxlib", "flax", "optax",
    "orbax", "tensorflow_datasets", "etils", "absl", "ml_collections", "rich", "pyarrow",
    "PIL", "fsspec", "treescope", "requests", "urllib3", "fontTools", "google", "pygments",
    "pyparsing", "packaging", "simple_parsing", "dateutil", "psutil", "attr", "wrapt",
    "prometheus_client", "opt_einsum", "einops", "tqdm", "markdown_it", "contourpy",
    "charset_normalizer", "humanize", "idna", "yaml",
)  # fmt: skip


# The share of documents of train that validation and test get each. Docstrings are few and
# small: a hundredth of them, as of files, would be too little text to measure a loss on.
_SHARE = 0.02


def read_raw_documents(
    name: str, source: SourceConfig, report: Callable[[float], None], selection: Selection
) -> RawDocuments:
    """Returns a document for every module, and for every topic of pydoc."""
    check_source(name, source)
    return RawDocuments(_read_docstring_documents(source, report), carved=SPLITS[1:], share=_SHARE)


def check_source(name: str, source: SourceConfig) -> None:
    """Raises ValueError if a package is not installed."""
    for package in source.packages:
        if not _locate_package(package):
            raise ValueError(
                f"config.sources.{name}.packages has {package!r}, but there is no such package "
                f"with Python sources here. Install it, or take it out; () takes all of "
                "the fixed list that is installed."
            )


def list_fingerprint_parts(
    name: str, source: SourceConfig, digest_files: DigestFiles
) -> list[object]:
    """Returns what the text follows from: the versions of Python and of the packages.

    Of the standard library, and of packages that no installation stands behind or that are
    edited where they lie, a version says nothing: their files' digests take its place.
    """
    check_source(name, source)
    return [list(sys.version_info), *_list_package_versions(source, digest_files)]


def estimate_source_bytes(source: SourceConfig) -> int:
    """Returns 0: there is little text, and nothing is known of it before it is read."""
    return 0


def is_source_here(name: str, source: SourceConfig) -> bool:
    """Whether every package that a source names is installed."""
    return all(_locate_package(package) for package in source.packages)


# Which files


_SKIPPED = frozenset(
    ("test", "tests", "testing", "testdata", "test_data", "conftest")
    + ("_vendor", "vendor", "externals", "lib2to3", "__pycache__", "__main__")
)
_TOPICS = "pydoc_data.topics"


def _locate_package(package: str) -> list[str]:
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
    paths = list(spec.submodule_search_locations or [spec.origin or ""])
    for part in rest:
        below = [os.path.join(directory, part) for directory in paths]
        paths = [path for path in below if os.path.isdir(path)] or [f"{path}.py" for path in below]
    return [p for p in paths if os.path.isdir(p) or (p.endswith(".py") and os.path.isfile(p))]


def _list_modules(packages: Iterable[str]) -> list[tuple[str, str]]:
    """Returns (dotted module name, path) of every module, each file once."""
    modules: dict[str, str] = {}  # by path
    for package in packages:
        for location in _locate_package(package):
            if os.path.isfile(location):
                modules.setdefault(location, package)
                continue
            prefix = [] if package == "stdlib" else [package]
            for path in sorted(_find_source_files(location)):
                parts = os.path.relpath(path, location).removesuffix(".py").split(os.sep)
                if parts[-1] == "__init__":
                    parts.pop()
                modules.setdefault(path, ".".join(prefix + parts))
    return [(module, path) for path, module in modules.items()]


def _find_source_files(directory: str) -> Iterator[str]:
    for folder, subdirectories, files in os.walk(directory):
        # Python packages only: this also keeps site-packages out of the standard library.
        subdirectories[:] = [d for d in subdirectories if d.isidentifier() and d not in _SKIPPED]
        for file in files:
            stem, ending = os.path.splitext(file)
            tests = stem.startswith("test_") or stem.endswith("_test") or stem in _SKIPPED
            if ending == ".py" and stem.isidentifier() and not tests:
                yield os.path.join(folder, file)


def _list_package_versions(source: SourceConfig, digest_files: DigestFiles) -> list[object]:
    """Returns what tells the text of the packages from that of other versions of them."""
    distributions = importlib.metadata.packages_distributions()
    versions: list[object] = []
    for package in source.packages or PACKAGES:
        names = sorted(set(distributions.get(package.partition(".")[0], ())))
        version: list[object] = [[name, importlib.metadata.version(name)] for name in names]
        # The standard library as well: some systems ship it in parts, or mended.
        if not names or any(map(_is_editable, names)):
            modules = _list_modules([package])
            digests = digest_files([path for _, path in modules])
            version += [[module, digests[path]] for module, path in modules]
        if version:
            versions.append([package, version])
    return versions


def _is_editable(distribution: str) -> bool:
    """Whether a distribution is installed by a link to where its sources are edited."""
    origin = importlib.metadata.distribution(distribution).read_text("direct_url.json")
    return bool(json.loads(origin or "{}").get("dir_info", {}).get("editable"))


# From modules to documents


_CHUNK = 32  # files that a worker reads at a time
_MIN_PARALLEL = 200  # files; for fewer, starting workers takes longer than reading
_MIN_DOCUMENT = 200  # characters


def _read_docstring_documents(
    source: SourceConfig, report: Callable[[float], None]
) -> Iterator[tuple[str, Document]]:
    modules = _list_modules(source.packages or PACKAGES)
    chunks = [modules[start : start + _CHUNK] for start in range(0, len(modules), _CHUNK)]
    seen: set[str] = set()
    for index, extracted in enumerate(_extract_chunks(chunks, len(modules))):
        for document_id, paragraphs in extracted:
            # Inherited and copied docstrings would otherwise repeat, and leak into held-out
            # text. dict.fromkeys removes repetitions within the document.
            fresh = [p for p in dict.fromkeys(paragraphs) if p not in seen]
            seen.update(fresh)
            text = "\n".join(fresh)
            if len(text) >= _MIN_DOCUMENT:
                yield "train", Document(document_id, text)
        report(min(1.0, (index + 1) * _CHUNK / len(modules)))


def _extract_chunks(
    chunks: Sequence[Sequence[tuple[str, str]]], num_modules: int
) -> Iterator[list[tuple[str, list[str]]]]:
    """Yields `_extract_paragraphs` of every chunk in order, from several processes if that pays."""
    workers = min(count_cores(), len(chunks))
    if workers < 2 or num_modules < _MIN_PARALLEL:
        yield from map(_extract_paragraphs, chunks)
        return
    # Not fork: jax may be loaded, and its threads do not survive one.
    executor = concurrent.futures.ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=children.end_worker_with_parent,
    )
    started = list[BaseProcess]()
    try:
        with _hide_main_module():
            results = executor.map(_extract_paragraphs, chunks)  # submits all: starts every worker
        started = multiprocessing.active_children()
        yield from results
    except concurrent.futures.process.BrokenProcessPool as error:
        executor.shutdown()  # which ends the others by SIGTERM
        codes = [worker.exitcode for worker in started if worker.exitcode]
        code = next((code for code in codes if code != -signal.SIGTERM), -signal.SIGTERM)
        raise ValueError(
            "A process that reads the packages' documentation was "
            f"{children.describe_exit(code)}. Start it again, with fewer cores (taskset) if "
            "memory is short."
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _hide_main_module() -> Iterator[None]:
    """Keeps processes that are started meanwhile from running the main module again.

    They need nothing from it. It may import jax, or be a script without a guard.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _extract_paragraphs(modules: Sequence[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    """Returns (document id, paragraphs) of the modules that have any."""
    documents = []
    collecting = gc.isenabled()
    # Syntax trees are many objects without cycles; the collector would only walk them.
    gc.disable()
    try:
        for module, path in modules:
            for document_id, docstrings in _read_module_docstrings(module, path):
                paragraphs = [p for docstring in docstrings for p in extract_prose(docstring)]
                if paragraphs:
                    documents.append((document_id, paragraphs))
    finally:
        if collecting:
            gc.enable()
    return documents


def _read_module_docstrings(module: str, path: str) -> Iterator[tuple[str, list[str]]]:
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
        yield from _find_pydoc_topics(tree)
    else:
        yield module, list(_find_docstrings(tree.body))


def _find_pydoc_topics(tree: ast.Module) -> Iterator[tuple[str, list[str]]]:
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict):
            for topic, text in ast.literal_eval(statement.value).items():
                yield f"{_TOPICS}.{topic}", [text]


def _find_docstrings(body: Iterable[ast.stmt]) -> Iterator[str]:
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
                yield from _find_docstrings(statement.body)
            case ast.If() | ast.Try():
                yield from _find_docstrings(statement.body)
                for handler in getattr(statement, "handlers", ()):
                    yield from _find_docstrings(handler.body)
                yield from _find_docstrings(statement.orelse)
                yield from _find_docstrings(getattr(statement, "finalbody", ()))
