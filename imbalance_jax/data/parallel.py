"""Texts that say the same in two languages, packed into rows that lie side by side.

`prepare_parallel_set` makes a `ParallelSet` of the pairs of two sources, each side in the ids of
its own source's tokenizer, and keeps it on disk like a prepared source. `find_aligned_sequences`
finds for any two languages of a run the sequences that say the same in both.

Pairs of texts are packed as the reference study packs Europarl: whole pairs in their order,
so that both sides of a row say the same, though seldom at the same positions. Other than there,
pairs with an empty side are left out, since the other side would say something alone.
"""

import array
import dataclasses
import hashlib
import io
import itertools
import json
import os
import pathlib
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from etils import epath

from imbalance_jax import config as config_lib
from imbalance_jax.config import Config, LanguageConfig, ParallelConfig, SourceConfig
from imbalance_jax.data import prepared
from imbalance_jax.data import sources as sources_lib
from imbalance_jax.data import word_order as views
from imbalance_jax.data.order.corpora import AnySource
from imbalance_jax.data.text import fields as fields_lib
from imbalance_jax.data.text import files as files_lib
from imbalance_jax.data.text import patterns, synthetic
from imbalance_jax.runs import storage
from imbalance_jax.runs.progress import Progress

ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.zst")
_MARKER = "about.json"  # what a set's directory has when it is whole
SYNTHETIC_PAIRS = 2048  # sentences that two synthetic sources are compared on

# Part of every fingerprint: raise it when the same input begins to give other rows.
_VERSION = 2
# Characters encoded in one call, on all cores.
_BATCH_CHARACTERS = 4_000_000


# Packing


@dataclasses.dataclass(frozen=True)
class PackedPairs:
    """Pairs of id sequences, joined into P rows of two sides.

    `counts` are of pairs: read, and of those too_long, packed, and dropped with a row that
    was too short. `row_n` says of each pair that was read which row it is in; -1 is none.
    """

    ids: tuple[np.ndarray, np.ndarray]  # each (P, L), 0 after the end of a row
    lengths: tuple[np.ndarray, np.ndarray]  # each (P,), in ids
    pairs_P: np.ndarray
    row_n: np.ndarray
    counts: Mapping[str, int]


def pack_pairs(
    pairs: Iterable[tuple[Sequence[int] | np.ndarray, Sequence[int] | np.ndarray]],
    L: int,
    dtype: npt.DTypeLike = np.int32,
) -> PackedPairs:
    """Joins pairs in their order, with nothing between them, into rows of at most L ids a side.

    A pair with a side above L ids is skipped. A pair that does not fit on both sides begins
    the next row, and the row before it is dropped if its shorter side has less than L // 4
    ids. The last row is kept however short it is, as the reference study does.
    """
    counts = dict.fromkeys(("read", "too_long", "packed", "dropped"), 0)
    rows: list[tuple[np.ndarray, np.ndarray]] = []
    held: list[int] = []  # pairs in each row
    first: list[int] = []
    second: list[int] = []
    row_n: list[int] = []
    here: list[int] = []  # the pairs in the row that first and second are

    def keep() -> None:
        for pair in here:
            row_n[pair] = len(rows)
        rows.append((np.array(first, dtype), np.array(second, dtype)))
        held.append(len(here))
        counts["packed"] += len(here)

    for number, (one, other) in enumerate(pairs):
        counts["read"] += 1
        row_n.append(-1)
        if len(one) > L or len(other) > L:
            counts["too_long"] += 1
            continue
        if len(first) + len(one) > L or len(second) + len(other) > L:
            if min(len(first), len(second)) < L // 4:
                counts["dropped"] += len(here)
            else:
                keep()
            first, second, here = [], [], []
        first.extend(one)
        second.extend(other)
        here.append(number)
    if here:
        keep()

    ids = (np.zeros((len(rows), L), dtype), np.zeros((len(rows), L), dtype))
    lengths = (np.zeros(len(rows), np.int32), np.zeros(len(rows), np.int32))
    for p, row in enumerate(rows):
        for side_PL, length_P, side in zip(ids, lengths, row, strict=True):
            side_PL[p, : len(side)] = side
            length_P[p] = len(side)
    return PackedPairs(ids, lengths, np.array(held, np.int32), np.array(row_n, np.int64), counts)


# A prepared set


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

    Args:
      config: of the run.
      sources: the prepared sources by name.
      recorded: set -> the fingerprint that a run was begun with.

    Raises:
      ValueError: as `prepare_parallel_set`; all sets are checked before the first one is worked on.
    """
    used = [n for n in sorted(config.parallel) if set(config.parallel[n].sources) <= set(sources)]
    for name in used:
        check_parallel_set(name, config.parallel[name], config.data_dir)
    return {
        name: prepare_parallel_set(
            name,
            config.parallel[name],
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
    for name, parallel in config.parallel.items():
        # A set that no two languages of the run are in is not opened.
        if are_files_here(parallel) or used.issuperset(parallel.sources):
            check_parallel_set(name, parallel, config.data_dir)


def check_parallel_set(name: str, parallel: ParallelConfig, data_dir: str = "") -> None:
    """Finds what is wrong with the files of a set without reading them.

    Where none of them is on this machine, its prepared form has to be in data_dir.

    Raises:
      ValueError: a file is missing, empty, named twice or of an unknown ending, or both
        sides are one field, or one of them is not there.
    """
    if not are_files_here(parallel) and data_dir:
        if any(matches_config(found, parallel) for found in list_sets(name, data_dir)):
            return
        try:
            _check_files(name, parallel)
        except ValueError as error:
            advice = prepared.advise_preparing(
                f"config.parallel.{name}", f"parallel-{name}", data_dir
            )
            raise ValueError(f"{error} {advice}") from error
    _check_files(name, parallel)


def _check_files(name: str, parallel: ParallelConfig) -> None:
    fields = _resolve_fields(parallel)
    if len(set(fields)) != 2:
        raise ValueError(
            f"config.parallel.{name}.fields={fields!r} are one and the same. Name the fields of "
            f"{' and '.join(parallel.sources)}."
        )
    paths = patterns.find_paths(parallel.path)
    field = f"config.parallel.{name}.path={parallel.path!r}"
    if parallel.fields and len(paths) != 1:
        what = "two files of lines have" if paths else "synthetic sources have"
        raise ValueError(
            f"config.parallel.{name}.fields={fields!r} are of a {ENDINGS[0]} file, and {what} "
            "none. Leave fields out."
        )
    if parallel.path and len(paths) not in (1, 2):
        raise ValueError(
            f"{field} names {len(paths)} files. Name one {ENDINGS[0]} file, or two files of lines."
        )
    for path in paths:
        storage.check_local_path(field, path)
        if not os.path.exists(path):
            raise ValueError(
                f"{field}: there is no file {path} (looked for {os.path.abspath(path)}). "
                "Correct the path."
            )
        if os.path.isdir(path):
            raise ValueError(f"{field}: {path} is a directory. Name the file in it to read.")
        if not os.path.getsize(path):
            raise ValueError(f"{field}: {path} is empty (0 bytes). Write it again.")
        if len(paths) == 2 and path.endswith(ENDINGS):
            raise ValueError(
                f"{field}: {path} has both sides of a pair on each line. Name it alone, or two "
                "files of plain lines."
            )
    if len(paths) == 1 and not paths[0].endswith(ENDINGS):
        raise ValueError(
            f"{field}: {paths[0]} does not end in one of {', '.join(ENDINGS)}. Convert it to one "
            "of these, or name two files of lines with a comma between them, such as 'a.en,a.fr'."
        )
    if len({os.path.realpath(path) for path in paths}) < len(paths):
        raise ValueError(
            f"{field} names one file twice. Name that of {' and that of '.join(parallel.sources)}."
        )
    if len(paths) == 1:
        next(_read_json_texts(name, parallel, paths[0]), None)


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

    Where their files are not on this machine, the set that was made of them is opened.

    Args:
      name: of the set in config.parallel.
      parallel: where the pairs are; without a path both sources are synthetic.
      sources: the prepared sources by name.
      configs: config.sources, of which the synthetic ones are read.
      L: ids in a row.
      data_dir: where the set is kept.
      recorded: the fingerprint of the set that a run was begun with; "" if none.

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
        found = _read_set(path)
        prepared.add_statement(path, _MARKER, _describe_set(parallel, pair))
        return found
    _build_set(name, parallel, pair, configs, L, path, fingerprint)
    return _read_set(path)


def are_files_here(parallel: ParallelConfig) -> bool:
    """Whether any file of a set is on this machine; synthetic pairs need none."""
    return not parallel.path or any(
        os.path.exists(path) for path in patterns.find_paths(parallel.path)
    )


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


def matches_config(found: prepared.PreparedDirectory, parallel: ParallelConfig) -> bool:
    """Whether a prepared set was made of what the config says."""
    return _build_statement(parallel) in found.stated


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
    of = [source.fingerprint for source in pair]
    found = [
        each
        for each in list_sets(name, data_dir)
        if matches_config(each, parallel)
        and each.made_of["sources"] == of
        and each.about["L"] == L
        and recorded in ("", each.fingerprint)
    ]
    chosen = prepared.choose_prepared_directory(field, found, data_dir)
    if chosen is None:
        advice = prepared.advise_preparing(field, f"parallel-{name}", data_dir)
        raise ValueError(
            f"{field}: none of its files is on this machine (path={parallel.path!r}), and no set "
            f"in {data_dir} was made of them for this run's text, tokenizers and config.model.L="
            f"{L}. {advice}"
        )
    print(prepared.describe_prepared_text(field, chosen, data_dir), flush=True)
    return _read_set(chosen.path)


def _describe_pairs(
    parallel: ParallelConfig, configs: Mapping[str, SourceConfig], cache: pathlib.Path
) -> object:
    """Returns plain values that stand for all pairs of texts, in their order."""
    paths = patterns.find_paths(parallel.path)
    if not paths:
        dials = [config_lib.to_dict(configs[source].synthetic) for source in parallel.sources]
        return ["synthetic", SYNTHETIC_PAIRS, dials]
    known = files_lib.compute_file_digests(paths, cache / "digests.json")
    fields = _resolve_fields(parallel) if len(paths) == 1 else ()
    return ["files", *(known[path] for path in paths), *fields]


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
    counts, sizes = {"empty": 0}, (array.array("q"), array.array("q"))
    if parallel.path:
        with Progress(f"Packing {name}", 1) as progress:
            texts = _read_texts(name, parallel, progress.show)
            packed = pack_pairs(_encode_pairs(pair, texts, counts, sizes), L, dtype)
    else:
        first, second = (configs[source].synthetic for source in parallel.sources)
        said = synthetic.generate_parallel_sentences(first, second, SYNTHETIC_PAIRS)
        for side_source, side, sizes_n in zip(pair, said, sizes, strict=True):
            sizes_n.extend(int(side_source.pieces.bytes_U[ids].sum()) for ids in side)
        packed = pack_pairs(zip(*said, strict=True), L, dtype)
    counts = {**packed.counts, **counts, "read": packed.counts["read"] + counts["empty"]}
    if not len(packed.pairs_P):
        # A row that is too short is dropped for the next one only, so that is never the reason.
        field = f"config.parallel.{name}" + f".path={parallel.path!r}" * bool(parallel.path)
        raise ValueError(
            f"{field}: no pair is left of {counts['read']:,}. {counts['empty']:,} have an empty "
            f"side, and {counts['too_long']:,} have a side of more than config.model.L={L} ids. "
            "Use shorter texts, such as sentences, or a larger L."
        )
    arrays = {"pairs.npy": packed.pairs_P}
    for source, ids_PL, length_P in zip(parallel.sources, packed.ids, packed.lengths, strict=True):
        arrays |= {f"{source}.ids.npy": ids_PL, f"{source}.lengths.npy": length_P}
    inside_n, P = packed.row_n >= 0, len(packed.pairs_P)
    for source, sizes_n in zip(parallel.sources, sizes, strict=True):
        bytes_P = np.zeros(P, np.int64)
        np.add.at(bytes_P, packed.row_n[inside_n], np.array(sizes_n)[inside_n])
        arrays[f"{source}.bytes.npy"] = bytes_P
    about = {
        "name": name,
        "fingerprint": fingerprint,
        "sources": list(parallel.sources),
        "L": L,
        "rows": len(packed.pairs_P),
        "counts": counts,
        "made_of": _describe_set(parallel, pair),
    }
    _write_set(path, about, arrays)
    print(
        f"Prepared {path}: {counts['packed']:,} of {counts['read']:,} pairs in "
        f"{about['rows']:,} rows",
        flush=True,
    )


def _write_set(path: epath.Path, about: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Writes the directory of a set, whole or not at all."""
    with storage.make_directory_atomically(path, _MARKER) as made:
        digests = {}
        for name, array in arrays.items():
            file = io.BytesIO()
            np.save(file, array)
            digests[name] = hashlib.sha256(file.getvalue()).hexdigest()
            (made / name).write_bytes(file.getvalue())
        about = {**about, "digests": digests}
        (made / _MARKER).write_text(json.dumps(about, indent=2) + "\n")


def _read_set(path: epath.Path) -> ParallelSet:
    path = storage.find_complete_directory(path, _MARKER) or path
    try:
        about = json.loads((path / _MARKER).read_text())
        arrays = {}
        for name, digest in about["digests"].items():
            content = (path / name).read_bytes()
            if hashlib.sha256(content).hexdigest() != digest:
                raise ValueError(f"{name} is not what was written")
            arrays[name] = np.load(io.BytesIO(content))
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
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged or incomplete ({error}). Delete the directory; the next run "
            "prepares it again."
        ) from error


def _encode_pairs(
    pair: tuple[AnySource, AnySource],
    texts: Iterable[tuple[str, str]],
    counts: dict[str, int],
    sizes: tuple["array.array[int]", "array.array[int]"],
) -> Iterator[tuple[list[int], list[int]]]:
    """Yields pairs of ids, and adds the UTF-8 bytes of their texts to `sizes`.

    Pairs with an empty side are left out, and added to counts["empty"]: an empty side says
    nothing, so a row with the other side in it would not say the same.
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


# Files


def _resolve_fields(parallel: ParallelConfig) -> tuple[str, ...]:
    return parallel.fields or parallel.sources


def _read_texts(
    name: str, parallel: ParallelConfig, report: Callable[[float], None]
) -> Iterator[tuple[str, str]]:
    """Yields every pair of texts in the order of the lines.

    Raises:
      ValueError: a file cannot be read as what it should be, naming file and line.
    """
    paths = patterns.find_paths(parallel.path)
    if len(paths) == 1:
        read = _read_json_texts(name, parallel, paths[0])
    else:
        read = _read_line_texts(name, paths[0], paths[1])
    size, reported = os.path.getsize(paths[0]), 0.0
    for consumed, texts in read:
        if consumed / size >= reported + 0.002:
            reported = consumed / size
            report(reported)
        yield texts
    report(1.0)


def _read_json_texts(
    name: str, parallel: ParallelConfig, path: str
) -> Iterator[tuple[int, tuple[str, str]]]:
    """Yields (bytes of the file consumed so far, texts)."""
    for number, (consumed, line) in enumerate(files_lib.read_file_lines(path), start=1):
        if line.strip():
            first, second = _parse_json_line(name, parallel, line, path, number)
            yield consumed, (first, second)


def _read_line_texts(
    name: str, path: str, other_path: str
) -> Iterator[tuple[int, tuple[str, str]]]:
    """Yields (bytes of the first file consumed so far, texts)."""
    lines, other_lines = files_lib.read_file_lines(path), files_lib.read_file_lines(other_path)
    for number, (line, other) in enumerate(itertools.zip_longest(lines, other_lines), start=1):
        if line is None or other is None:
            count = number - (line is None) + sum(1 for _ in lines)
            other_count = number - (other is None) + sum(1 for _ in other_lines)
            raise ValueError(
                f"config.parallel.{name}.path: {path} has {count:,} lines and {other_path} has "
                f"{other_count:,}. A line of one must stand for a line of the other, so the two "
                "must be of equal length."
            )
        yield (
            line[0],
            (_decode_line(line[1], path, number), _decode_line(other[1], other_path, number)),
        )


def _decode_line(data: bytes, path: str, number: int) -> str:
    return files_lib.decode_utf8(data.removesuffix(b"\n").removesuffix(b"\r"), path, number)


def _parse_json_line(
    name: str, parallel: ParallelConfig, data: bytes, path: str, number: int
) -> list[str]:
    """Returns the two texts of one line."""
    where = f"{path}, line {number}"
    fields = _resolve_fields(parallel)
    example = f'{{"{fields[0]}": "...", "{fields[1]}": "..."}}'
    values = files_lib.parse_json_object(data, path, number, example)
    texts = []
    for field in fields:
        text = fields_lib.find_field_value(values, field)
        if text is fields_lib.ABSENT:
            raise ValueError(
                f"{where}: has no field {field!r}; it has: "
                f"{fields_lib.format_field_names(values)}. "
                f"Set config.parallel.{name}.fields."
            )
        if not isinstance(text, str):
            raise ValueError(
                f"{where}: its field {field!r} is {json.dumps(text)[:40]}, not a string. "
                f"Set config.parallel.{name}.fields."
            )
        texts.append(files_lib.replace_lone_surrogates(text))
    return texts


# Languages


@dataclasses.dataclass(frozen=True)
class AlignedSequences:
    """P sequences in each of two languages; those of one row say the same."""

    ids: tuple[np.ndarray, np.ndarray]  # each (P, L), base ids, 0 after the end of a row
    lengths: tuple[np.ndarray, np.ndarray]  # each (P,), in ids
    set: str = ""  # the name in config.parallel; "" for two languages of one source
    # Whether the ids are the same too, position by position: two languages of one source
    # whose words are in one order.
    positions: bool = False


def list_aligned_pairs(config: Config) -> list[tuple[str, str]]:
    """Returns the pairs of languages that have aligned text, in the order of config.tags."""
    return [
        (a, b)
        for a, b in itertools.combinations(config.tags, 2)
        if config.source_of(a) == config.source_of(b) or _find_set_name(config, a, b) is not None
    ]


def find_aligned_sequences(
    config: Config,
    sources: Mapping[str, AnySource],
    sets: Mapping[str, ParallelSet],
    a: str,
    b: str,
    most: int,
    split: str = "test",
) -> AlignedSequences | None:
    """Returns what says the same in languages a and b, in this order; None if nothing does.

    For languages of one source these are windows of a held-out split, spread over the text,
    each in its language's order of words. For others they are the first rows of the set of
    their two sources, as in the reference study; if there are several such sets, of the
    first by name. Rows are in the order of words of their texts, so there are none for a
    language that has another.

    Args:
      config: of the run.
      sources: the prepared sources by name.
      sets: the prepared sets by name.
      a: a language's tag.
      b: another's.
      most: rows to return at most; 0 takes all.
      split: of the text of one source, validation or test.
    """
    source_a, source_b = config.source_of(a), config.source_of(b)
    if source_a == source_b:
        both = [
            _load_held_out_tokens(sources[source_a], split, config.languages[tag]) for tag in (a, b)
        ]
        if not len(both[0]):
            return None
        first, second = config.languages[a], config.languages[b]
        return dataclasses.replace(
            _cut_aligned_windows(both[0], both[1], config.model.L, most),
            positions=(first.words, first.words_block) == (second.words, second.words_block)
            or first.words == second.words == "as_written",
        )
    name = _find_set_name(config, a, b)
    if name is None:
        return None
    found, rows = sets[name], slice(most or None)
    return AlignedSequences(
        (found.ids[source_a][rows], found.ids[source_b][rows]),
        (found.lengths[source_a][rows], found.lengths[source_b][rows]),
        set=name,
    )


def _find_set_name(config: Config, a: str, b: str) -> str | None:
    """Returns the name of the set of two languages' sources, in whichever order it has them."""
    if {config.languages[tag].words for tag in (a, b)} != {"as_written"}:
        return None
    wanted = {config.source_of(tag) for tag in (a, b)}
    for name in sorted(config.parallel):
        if set(config.parallel[name].sources) == wanted:
            return name
    return None


def _load_held_out_tokens(source: AnySource, split: str, language: LanguageConfig) -> np.ndarray:
    if isinstance(source, sources_lib.Source):
        return views.load_language_tokens(source, split, language)
    tokens = source.tokens(split)
    assert isinstance(tokens, np.ndarray), "a held-out split has an end"
    return tokens


def _cut_aligned_windows(a: np.ndarray, b: np.ndarray, L: int, most: int) -> AlignedSequences:
    """Returns windows of L ids of two texts of one length; one if that is shorter than L."""
    count = max(1, len(a) // L)
    rows = min(most or count, count)
    starts_P = np.arange(rows) * count // rows * L
    length = min(L, len(a))
    places_PM = starts_P[:, None] + np.arange(length)  # M ids of a window are text
    padding = ((0, 0), (0, L - length))
    length_P = np.full(rows, length, np.int32)
    return AlignedSequences(
        (np.pad(a[places_PM], padding), np.pad(b[places_PM], padding)), (length_P, length_P)
    )
