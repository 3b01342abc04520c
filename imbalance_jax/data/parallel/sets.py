"""The pairs of two sources as a prepared set on disk, made once and opened by every run."""

import array
import dataclasses
import hashlib
import io
import pathlib
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from imbalance_jax import config as config_lib
from imbalance_jax.config import Config, ParallelConfig, SourceConfig
from imbalance_jax.data import prepared
from imbalance_jax.data import sources as sources_lib
from imbalance_jax.data.order.corpora import AnySource
from imbalance_jax.data.parallel.packing import pack_pairs
from imbalance_jax.data.parallel.pairs import (
    are_files_here,
    check_files,
    find_format,
    find_paths,
    list_fields,
    read_pairs,
)
from imbalance_jax.data.text import files as files_lib
from imbalance_jax.data.text import synthetic
from imbalance_jax.runs import damaged_files, storage
from imbalance_jax.runs.damaged_files import DamagedFileError
from imbalance_jax.runs.progress import Progress

SYNTHETIC_PAIRS = 2048  # sentences that two synthetic sources are compared on
_MARKER = "about.json"  # what a set's directory has when it is whole
_REMEDY = "Delete the directory; the next run prepares it again."
_SHAPE = {"name": str, "fingerprint": str, "sources": list, "L": int, "digests": {"*": str}}
# Part of every fingerprint: raise it when the same input begins to give other rows.
_VERSION = 2
# Texts of a pair whose bytes differ by more, measured against the usual difference, are uneven.
_UNEVEN = 3
_FEW_UNEVEN = 3  # pairs that may be
# Characters encoded in one call, on all cores.
_BATCH_CHARACTERS = 4_000_000


@dataclasses.dataclass(frozen=True)
class ParallelSet:
    """P rows of texts that say the same in two sources, each in its source's base ids."""

    name: str  # in config.parallel
    sources: tuple[str, str]
    L: int
    ids: Mapping[str, np.ndarray]  # source -> (P, L), 0 after the end of a row
    lengths: Mapping[str, np.ndarray]  # source -> (P,), in ids
    bytes: Mapping[str, np.ndarray]  # source -> (P,), UTF-8, of the texts of a row
    pairs_P: np.ndarray  # pairs that a row is made of
    # about.json: fingerprint, and `counts` of pairs: read, and of those empty, too_long,
    # packed, and dropped with a row that was too short.
    about: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """Stands for the pairs, both tokenizers and L together."""
        return self.about["fingerprint"]

    def windows(self, source: str, separator_id: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns windows (P, L + 1) that score every id of a source's texts, and no other.

        The separator stands before each row, as before a document in training, so that its
        first id is a target like the others. The weights (P, L) of the targets are bool.
        """
        ids_PL = self.ids[source]
        before_P1 = np.full((len(ids_PL), 1), separator_id, ids_PL.dtype)
        weight_PL = np.arange(self.L) < self.lengths[source][:, None]
        return np.concatenate([before_P1, ids_PL], axis=1), weight_PL


def prepare_all_parallel_sets(
    config: Config,
    sources: Mapping[str, AnySource],
    recorded: Mapping[str, str] = types.MappingProxyType({}),
) -> dict[str, ParallelSet]:
    """Returns the sets of a run by name: those of whose sources both are prepared.

    `recorded` has the fingerprint of each set that the run was begun with.

    Raises:
      ValueError: as `prepare_parallel_set`; all sets are checked before the first one is worked on.
    """
    pairs = config_lib.list_pair_sets(config.parallel)
    used = [name for name in sorted(pairs) if set(pairs[name].sources) <= set(sources)]
    for name in used:
        check_parallel_set(name, pairs[name], config.data_dir)
    return {
        name: prepare_parallel_set(
            name,
            pairs[name],
            sources,
            config.sources,
            config.model.L,
            config.data_dir,
            recorded.get(name, ""),
        )
        for name in used
    }


def check_all_parallel_sets(config: Config) -> None:
    """Finds what is wrong with the files of the sets of a run without reading them.

    Raises:
      ValueError: as `check_parallel_set`.
    """
    used = {language.source for language in config.languages.values()}
    for name, parallel in config_lib.list_pair_sets(config.parallel).items():
        # A set that no two languages of the run are in is not opened.
        if are_files_here(parallel) or used.issuperset(parallel.sources):
            check_parallel_set(name, parallel, config.data_dir)


def check_parallel_set(name: str, parallel: ParallelConfig, data_dir: str = "") -> None:
    """Finds what is wrong with the files of a set without reading them.

    Where none of them is on this machine, its prepared form has to be in data_dir.

    Raises:
      ValueError: as `check_files`.
    """
    absent = not are_files_here(parallel) and data_dir
    if absent and any(matches_config(each, parallel) for each in list_sets(name, data_dir)):
        return
    try:
        check_files(name, parallel)
    except ValueError as error:
        if not absent:
            raise
        raise ValueError(f"{error} {_advise_preparing(name, data_dir)}") from error


def prepare_parallel_set(
    name: str,
    parallel: ParallelConfig,
    sources: Mapping[str, AnySource],
    configs: Mapping[str, SourceConfig],
    L: int,
    data_dir: str,
    recorded: str = "",
) -> ParallelSet:
    """Returns the packed pairs of two sources, from disk if they are there already.

    Where their files are not on this machine, the set that was made of them is opened: the one
    whose fingerprint a run recorded, if it did. Without a path both sources are synthetic, and
    their configs say what the pairs are.

    Raises:
      ValueError: the files cannot be used, or no pair is left, and nothing is left half
        made; or what is on disk is damaged.
    """
    check_parallel_set(name, parallel, data_dir)
    pair = (sources[parallel.sources[0]], sources[parallel.sources[1]])
    if not are_files_here(parallel):
        return _open_prepared_set(name, parallel, pair, L, data_dir, recorded)
    fingerprint = config_lib.hash_plain_values(
        {
            "version": _VERSION,
            "pairs": _describe_pairs(
                parallel, configs, sources_lib.resolve_data_cache_dir(data_dir)
            ),
            "sources": [source.fingerprint for source in pair],
            "L": L,
        }
    )
    path = storage.parse_path(data_dir) / f"parallel-{name}-{fingerprint}"
    there = (
        storage.find_complete_directory(path, _MARKER) if storage.is_store(path) else path.exists()
    )
    if there:
        parallel_set = _read_set(path)
        prepared.add_statement(path, _MARKER, _describe_set(parallel, pair))
        return parallel_set
    _build_set(name, parallel, pair, configs, L, path, fingerprint)
    return _read_set(path)


def _describe_pairs(
    parallel: ParallelConfig, configs: Mapping[str, SourceConfig], cache: pathlib.Path
) -> object:
    """Returns plain values that stand for all pairs of texts, in their order."""
    paths = find_paths(parallel)
    if not paths:
        dials = [
            config_lib.to_dict(configs[source].synthetic, leave_out=config_lib.NEWER)
            for source in parallel.sources
        ]
        return ["synthetic", SYNTHETIC_PAIRS, dials]
    digests = files_lib.compute_file_digests(paths, cache / "digests.json")
    of_two = len(paths) == 2
    lines = of_two and find_format(parallel, paths[0], of_two=True) == "text"
    fields = () if lines else list_fields(parallel, of_two=of_two)
    newer = [
        [field, value]
        for field, value in (("join", parallel.join), ("format", parallel.format))
        if value != getattr(ParallelConfig, field)
    ]
    return ["files", *(digests[path] for path in paths), *fields, *newer]


# Sets that were made of files which are not on this machine.


def _build_statement(parallel: ParallelConfig) -> dict[str, Any]:
    """Returns what the config says that a set is, as plain values; see prepared.py."""
    defaults = tuple(field.name for field in dataclasses.fields(ParallelConfig))
    return config_lib.to_dict(parallel, leave_out={ParallelConfig: defaults})


def _describe_set(parallel: ParallelConfig, pair: tuple[AnySource, AnySource]) -> dict[str, Any]:
    sources = [source.fingerprint for source in pair]
    return {"sources": sources, "stated": [_build_statement(parallel)]}


def list_sets(name: str, data_dir: str) -> list[prepared.PreparedDirectory]:
    """Returns the prepared sets of a name in data_dir, whatever they were made of."""
    return prepared.list_prepared_directories(data_dir, f"parallel-{name}", _MARKER)


def matches_config(directory: prepared.PreparedDirectory, parallel: ParallelConfig) -> bool:
    """Whether a prepared set was made of what the config says."""
    return _build_statement(parallel) in directory.stated


def _advise_preparing(name: str, data_dir: str) -> str:
    return prepared.advise_preparing(f"config.parallel.{name}", f"parallel-{name}", data_dir)


def _open_prepared_set(
    name: str,
    parallel: ParallelConfig,
    pair: tuple[AnySource, AnySource],
    L: int,
    data_dir: str,
    recorded: str,
) -> ParallelSet:
    """Returns the set that was made of files which are not on this machine.

    Raises:
      ValueError: there is none for this text, these tokenizers and this L, or there are several.
    """
    field = f"config.parallel.{name}"
    fingerprints = [source.fingerprint for source in pair]
    suitable = [
        directory
        for directory in list_sets(name, data_dir)
        if matches_config(directory, parallel)
        and directory.made_of["sources"] == fingerprints
        and directory.about["L"] == L
        and recorded in ("", directory.fingerprint)
    ]
    chosen = prepared.choose_prepared_directory(field, suitable, data_dir)
    if chosen is None:
        raise ValueError(
            f"{field}: none of its files is on this machine (path={parallel.path!r}), and no set "
            f"in {data_dir} was made of them for this run's text, tokenizers and config.model.L="
            f"{L}. {_advise_preparing(name, data_dir)}"
        )
    print(prepared.describe_prepared_text(field, chosen, data_dir), flush=True)
    return _read_set(chosen.path)


# Making, writing and reading a set.


def _build_set(
    name: str,
    parallel: ParallelConfig,
    pair: tuple[AnySource, AnySource],
    configs: Mapping[str, SourceConfig],
    L: int,
    path: epath.Path,
    fingerprint: str,
) -> None:
    dtype = np.uint16 if max(source.pieces.size for source in pair) <= 1 << 16 else np.uint32
    empty, sizes = {"empty": 0}, (array.array("q"), array.array("q"))
    unjoined: dict[str, int] = {}
    if parallel.path:
        with Progress(f"Packing {name}", 1) as progress:
            texts = read_pairs(name, parallel, progress.show, unjoined)
            packed = pack_pairs(_encode_pairs(pair, texts, empty, sizes), L, dtype)
    else:
        first, second = (configs[source].synthetic for source in parallel.sources)
        sentences = synthetic.generate_parallel_sentences(first, second, SYNTHETIC_PAIRS)
        for side_source, side, sizes_n in zip(pair, sentences, sizes, strict=True):
            sizes_n.extend(int(side_source.pieces.bytes_U[ids].sum()) for ids in side)
        packed = pack_pairs(zip(*sentences, strict=True), L, dtype)
    counts = {**packed.counts, **empty, "read": packed.counts["read"] + empty["empty"], **unjoined}
    P = len(packed.pairs_P)
    if not P:
        # A row that is too short is dropped for the next one only, so that is never the reason.
        field = f"config.parallel.{name}" + f".path={parallel.path!r}" * bool(parallel.path)
        raise ValueError(
            f"{field}: no pair is left of {counts['read']:,}. {counts['empty']:,} have an empty "
            f"side, and {counts['too_long']:,} have a side of more than config.model.L={L} ids. "
            "Use shorter texts, such as sentences, or a larger L."
        )
    inside_n = packed.row_n >= 0
    arrays = {"pairs.npy": packed.pairs_P}
    for source, ids_PL, length_P, sizes_n in zip(
        parallel.sources, packed.ids, packed.lengths, sizes, strict=True
    ):
        bytes_P = np.zeros(P, np.int64)
        np.add.at(bytes_P, packed.row_n[inside_n], np.array(sizes_n)[inside_n])
        arrays[f"{source}.ids.npy"] = ids_PL
        arrays[f"{source}.lengths.npy"] = length_P
        arrays[f"{source}.bytes.npy"] = bytes_P
    about = {
        "name": name,
        "fingerprint": fingerprint,
        "sources": list(parallel.sources),
        "L": L,
        "rows": P,
        "counts": counts,
        "made_of": _describe_set(parallel, pair),
    }
    _write_set(path, about, arrays)
    print(
        f"Prepared {path}: {counts['packed']:,} of {counts['read']:,} pairs in {P:,} rows",
        flush=True,
    )
    for line in _describe_losses(f"config.parallel.{name}", parallel, counts, sizes):
        print(line, flush=True)


def _describe_losses(
    field: str,
    parallel: ParallelConfig,
    counts: Mapping[str, int],
    sizes: tuple["array.array[int]", "array.array[int]"],
) -> Iterator[str]:
    """Yields lines on what is left out of a set, and on pairs that may not say the same."""
    if counts["empty"]:
        yield (
            f"{field}: {counts['empty']:,} of {counts['read']:,} pairs have an empty side and are "
            "left out."
        )
    if counts.get("unjoined"):
        yield (
            f"{field}: {counts['unjoined']:,} texts have an id in {parallel.join!r} that the other "
            "file lacks, and are left out."
        )
    if parallel.path:
        first_n, second_n = (np.array(sizes_n, np.float64) for sizes_n in sizes)
        ratio_n = np.log(np.maximum(first_n, 1) / np.maximum(second_n, 1))
        uneven = int((np.abs(ratio_n - np.median(ratio_n)) > np.log(_UNEVEN)).sum())
        if uneven > max(_FEW_UNEVEN, len(ratio_n) // 20):
            yield (
                f"{field}: in {uneven:,} of {len(ratio_n):,} pairs one side is more than {_UNEVEN} "
                "times as long as its other side would usually be. Look whether the lines are "
                "shifted against each other."
            )


def _encode_pairs(
    pair: tuple[AnySource, AnySource],
    texts: Iterable[tuple[str, str]],
    counts: dict[str, int],
    sizes: tuple["array.array[int]", "array.array[int]"],
) -> Iterator[tuple[list[int], list[int]]]:
    """Yields pairs of ids, and adds the UTF-8 bytes of their texts to `sizes`.

    Pairs with an empty side are left out, other than in the reference study, and added to
    counts["empty"]: a row with their other side in it would not say the same.
    """
    for batch in _batch_text_pairs(texts):
        # Without a number of threads SentencePiece takes every core that it may use.
        first, second = (
            source.tokenizer.encode_all(side)
            for source, side in zip(pair, zip(*batch, strict=True), strict=True)
        )
        for side_texts, one, other in zip(batch, first, second, strict=True):
            # A tokenizer that is not ours may make nothing of a text.
            if all(text.strip() for text in side_texts) and one and other:
                for sizes_n, text in zip(sizes, side_texts, strict=True):
                    sizes_n.append(len(text.encode()))
                yield one, other
            else:
                counts["empty"] += 1


def _batch_text_pairs(texts: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    batch, characters = [], 0
    for pair in texts:
        batch.append(pair)
        characters += len(pair[0]) + len(pair[1])
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _write_set(path: epath.Path, about: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Writes the directory of a set, whole or not at all."""
    with storage.make_directory_atomically(path, _MARKER) as directory:
        digests = {}
        for name, values in arrays.items():
            file = io.BytesIO()
            np.save(file, values)
            digests[name] = hashlib.sha256(file.getvalue()).hexdigest()
            (directory / name).write_bytes(file.getvalue())
        about = {**about, "digests": digests}
        (directory / _MARKER).write_text(damaged_files.format_checked_json(about))


def _read_set(path: epath.Path) -> ParallelSet:
    path = storage.find_complete_directory(path, _MARKER) or path
    about = damaged_files.read_json(path / _MARKER, _REMEDY, _SHAPE)
    arrays = {}
    for name, digest in about["digests"].items():
        content = damaged_files.read_file(path / name, _REMEDY)
        if hashlib.sha256(content).hexdigest() != digest:
            raise DamagedFileError(path / name, "is not what was written", _REMEDY)
        arrays[name] = damaged_files.parse_array(content, path / name, _REMEDY)
    try:
        first, second = about["sources"]
        return ParallelSet(
            name=about["name"],
            sources=(first, second),
            L=about["L"],
            ids={source: arrays[f"{source}.ids.npy"] for source in (first, second)},
            lengths={source: arrays[f"{source}.lengths.npy"] for source in (first, second)},
            bytes={source: arrays[f"{source}.bytes.npy"] for source in (first, second)},
            pairs_P=arrays["pairs.npy"],
            about=about,
        )
    except (ValueError, LookupError) as error:
        problem = f"does not name two sources and their arrays ({error})"
        raise DamagedFileError(path / _MARKER, problem, _REMEDY) from error
