"""Minimal pairs: sentences of which one is good and the other, nearly the same, is not.

A file has one pair a line (JSON lines, also compressed), a row (tab-separated, with a header) or
in a Parquet table. Its layout is told by its fields:

    good, bad, phenomenon                               ours; the phenomenon may be left out
    sentence_good, sentence_bad, linguistics_term, UID  BLiMP
    sen, wrong_sen, phenomenon                          MultiBLiMP

`read_run_pairs` returns the pairs of each language of a run, in the ids of its source. A clone has
its parent's. own_pairs.py makes pairs from a run's own text.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from imbalance_jax.config import Config, hash_plain_values
from imbalance_jax.data.own_pairs import MinimalPair, make_own_pairs
from imbalance_jax.data.text import files, patterns

if TYPE_CHECKING:
    from imbalance_jax.data.order.corpora import AnySource

OWN = "own"
FIELD = "config.evaluation.minimal_pairs"
_EXAMPLE = '{"good": "It is an owl.", "bad": "It is a owl.", "phenomenon": "a_an"}'


class _Layout(NamedTuple):
    """The fields of a published format."""

    good: str
    bad: str
    phenomenon: str
    paradigm: str = ""  # a part of a phenomenon


_LAYOUTS = (
    _Layout("good", "bad", "phenomenon"),
    _Layout("sentence_good", "sentence_bad", "linguistics_term", "UID"),
    _Layout("sen", "wrong_sen", "phenomenon"),
)


@dataclasses.dataclass(frozen=True)
class PairSet:
    """The minimal pairs of a source, in its ids: those of each sentence, without a separator."""

    file: str  # as it was named; OWN for pairs of the run's own text
    pairs: Sequence[MinimalPair]
    good: Sequence[np.ndarray]
    bad: Sequence[np.ndarray]

    @functools.cached_property
    def digest(self) -> str:
        """Stands for the sentences and what they are called."""
        return hash_plain_values([dataclasses.astuple(pair) for pair in self.pairs])


def read_run_pairs(
    config: Config,
    sources: Mapping[str, "AnySource"],
    value: str,
    field: str,
    languages: Sequence[str] = (),
) -> dict[str, PairSet]:
    """Returns the minimal pairs of each language that has any.

    Args:
      value: OWN; files; or a folder with files that are named after the sources.
      field: by which errors name it.
      languages: whose pairs they are; by default all of the run.

    Raises:
      ValueError: there are none, or a file cannot be read.
    """
    paths = find_pair_files(config, value, field, languages)
    sets = {}
    for name, of_source in paths.items():
        if of_source is None:
            pairs = make_own_pairs(name, config.sources[name], sources[name])
        else:
            pairs = [pair for path in of_source for pair in read_pair_file(path)]
        if not pairs:
            raise ValueError(
                f"{field}={value} has no pair for config.sources.{name}: "
                + (
                    f"{', '.join(of_source)} is empty."
                    if of_source
                    else "its test split has no sentence of 5 to 40 words with spaces between them."
                )
            )
        tokenizer = sources[name].tokenizer
        good, bad = (
            tokenizer.encode_arrays([getattr(pair, side) for pair in pairs])
            for side in ("good", "bad")
        )
        sets[name] = PairSet(value, pairs, good, bad)
    chosen = _list_languages(config, languages)
    return {tag: sets[config.source_of(tag)] for tag in chosen if config.source_of(tag) in sets}


def find_pair_files(
    config: Config, value: str, field: str, languages: Sequence[str] = ()
) -> dict[str, list[str] | None]:
    """Returns the files of each source that has pairs; None for pairs of its own text.

    The arguments are those of `read_run_pairs`.

    Raises:
      ValueError: a file is missing, or nothing says whose sentences it has.
    """
    tags = _list_languages(config, languages)
    names = list(dict.fromkeys(config.source_of(tag) for tag in tags))
    if not names:
        raise ValueError(
            f"{field}={value} is for text as it is written, and all languages here have their "
            "words in another order (config.languages.*.words)."
        )
    if value == OWN:
        return dict.fromkeys(names)
    folder = os.path.expanduser(value)
    if os.path.isdir(folder):
        found: dict[str, list[str] | None] = {}
        for name in names:
            try:
                found[name] = patterns.find_paths(
                    patterns.find_language_files(folder, name)["train"]
                )
            except ValueError:
                continue  # another language's sentences are there
        if not found:
            raise ValueError(
                f"{field}={value} is a folder without a file named after "
                f"{' or '.join(names)}, such as {names[0]}.jsonl. For all files in it write "
                f"{field}='{value.rstrip('/')}/*.jsonl'."
            )
        return found
    paths = patterns.find_paths(value)
    for path in paths:
        if not os.path.isfile(path):
            raise ValueError(
                f"{field}={value}: there is no file {path}. Name files, a folder, or {OWN}."
            )
    if len(names) > 1:
        raise ValueError(
            f"{field}={value}: the languages here have several texts ({', '.join(names)}), and "
            "these sentences are of one. Give a folder with a file named after each source, such "
            f"as {names[0]}.jsonl; or evaluate --languages=TAG with the languages of one source."
        )
    return {names[0]: paths}


def _list_languages(config: Config, languages: Sequence[str]) -> list[str]:
    """Returns the languages that may have pairs: those whose text is as it was written."""
    return [tag for tag in languages or config.tags if config.languages[tag].words == "as_written"]


def read_pair_file(path: str) -> Iterator[MinimalPair]:
    """Yields the pairs of a file.

    Raises:
      ValueError: a pair lacks a sentence, naming file and line.
    """
    layout: _Layout | None = None
    for number, values in _read_rows(path):
        where = f"{path}, line {number}"
        layout = layout or next((one for one in _LAYOUTS if _has_fields(values, one)), None)
        if layout is None or not _has_fields(values, layout):
            raise ValueError(
                f"{where}: has the fields {', '.join(map(str, values))}, and none of the pairs "
                + " or ".join(f"{one.good}, {one.bad}" for one in _LAYOUTS)
                + f" with a text in each. Write one pair a line, such as {_EXAMPLE}."
            )
        stem = pathlib.Path(path).name.partition(".")[0]
        yield MinimalPair(
            str(values.get(layout.phenomenon) or stem),
            files.replace_lone_surrogates(values[layout.good]),
            files.replace_lone_surrogates(values[layout.bad]),
            paradigm=str(values.get(layout.paradigm) or ""),
        )


def _has_fields(values: Mapping[str, Any], layout: _Layout) -> bool:
    return all(
        isinstance(values.get(side), str) and values[side] for side in (layout.good, layout.bad)
    )


def _read_rows(path: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yields the line and the fields of each row of a file."""
    ending = pathlib.Path(path.removesuffix(".gz").removesuffix(".zst")).suffix
    if ending not in (".tsv", ".parquet"):
        for number, (_, line) in enumerate(files.read_file_lines(path), start=1):
            if line.strip():
                yield number, files.parse_json_object(line, path, number, _EXAMPLE)
        return
    import pyarrow
    import pyarrow.csv
    import pyarrow.parquet

    try:
        if ending == ".parquet":
            table = pyarrow.parquet.read_table(path)
        else:
            texts = {name: pyarrow.string() for layout in _LAYOUTS for name in layout if name}
            table = pyarrow.csv.read_csv(
                pyarrow.input_stream(path),
                parse_options=pyarrow.csv.ParseOptions(delimiter="\t"),
                convert_options=pyarrow.csv.ConvertOptions(column_types=texts),
            )
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} cannot be read as {ending[1:]}: {error}") from error
    yield from enumerate(table.to_pylist(), start=2 if ending == ".tsv" else 1)
