"""Turns text into a prepared source: trains its tokenizer, writes its ids.

    python -m imbalance_jax.data.prepare --config=configs/90_10.py
    python -m imbalance_jax.data.prepare --config=configs/studies/ratio.py:scale=small
    python -m imbalance_jax.data.prepare --study=studies/ratio

A run prepares what it needs by itself; this command does it ahead of time, for a run or for all
runs of a study, parallel sets included. What is already there, keyed by the text and the
tokenizer, costs nothing. A copy of data_dir is all that a run needs on another machine, where the
text is not: see prepared.py.
"""

import hashlib
import types
from collections.abc import Iterable, Mapping

from etils import epath

from imbalance_jax import config as config_lib
from imbalance_jax.config import Config, SourceConfig
from imbalance_jax.data import languages, prepared, sources
from imbalance_jax.data.order.corpora import AnySource
from imbalance_jax.data.prepare import joint as joint_lib
from imbalance_jax.data.prepare import writing
from imbalance_jax.data.prepare.joint import JointTokenizer
from imbalance_jax.data.prepare.tokenizers import train_tokenizer
from imbalance_jax.data.text import reading as text_lib
from imbalance_jax.data.text import synthetic
from imbalance_jax.data.tokenizer import (
    get_untrained_tokenizer,
    parse_tokenizer,
    read_tokenizer_file,
)
from imbalance_jax.runs import storage

__all__ = [
    "check_inputs_of_runs",
    "check_recorded_texts",
    "collect_fingerprints",
    "find_all_prepared_sources",
    "list_language_sources",
    "prepare_run_sources",
    "prepare_runs",
    "prepare_source",
    "train_tokenizer",
]


# The sources of a run


def prepare_run_sources(
    config: Config, recorded: Mapping[str, str] = types.MappingProxyType({})
) -> dict[str, AnySource]:
    """Returns the prepared source of every language of a run, making what is missing.

    `recorded` has, by source, the fingerprint of the text that the run or its study began with.

    Raises:
      ValueError: a text or tokenizer cannot be used, or neither it nor its prepared form is here.
    """
    # All sources are checked before the first one is worked on.
    names = list_language_sources(config)
    directories = _check_inputs(config, recorded)
    for name in set(names) - set(directories):
        there = prepared.list_prepared_directories(config.data_dir, name, sources.MARKER)
        if not there and not _is_endless(config.sources[name]):
            _check_places_of_text(config.data_dir)  # before the text is read for its fingerprint
    if config.vocabulary.layout == "merged":
        languages.check_sources_can_merge(
            {name: _writes_surfaces(config.sources[name]) for name in names}
        )
    joint = None
    if config.vocabulary.layout == "joint":
        joint = joint_lib.make_joint_tokenizer(config, names, directories)
    run_sources = {
        name: prepare_source(
            name, config.sources[name], config.data_dir, joint, recorded.get(name, "")
        )
        for name in names
    }
    if joint:
        joint_lib.check_joint_tokenizer(run_sources, config.data_dir)
    return run_sources


def list_language_sources(config: Config) -> list[str]:
    """Returns the names of the sources that the languages of a run have."""
    return sorted({language.source for language in config.languages.values() if language.source})


def _writes_surfaces(source: SourceConfig) -> bool:
    """Whether the pieces of a source's tokenizer can be merged, as far as can be seen here."""
    path = source.tokenizer.path
    if source.kind == "synthetic" or not path or not prepared.is_file_here(path):
        return True
    return parse_tokenizer(read_tokenizer_file(path)).has_surfaces


def _check_inputs(
    config: Config, recorded: Mapping[str, str]
) -> dict[str, prepared.PreparedDirectory]:
    """Returns `find_all_prepared_sources`, after looking at the text that has to be read."""
    directories = find_all_prepared_sources(config, recorded)
    for name in _list_required_sources(config, directories):
        if name not in directories:
            prepared.check_source_inputs(name, config.sources[name])
    return directories


def check_inputs_of_runs(
    configs: Mapping[str, Config],
    recorded: Mapping[str, Mapping[str, str]] = types.MappingProxyType({}),
) -> None:
    """Raises ValueError for what can be seen to be wrong with the text of runs without reading it.

    Takes what `prepare_runs` takes, and prepares nothing. Runs on text that is downloaded are not
    looked at.
    """
    seen = set()
    for run, config in configs.items():
        texts = recorded.get(run, {})
        key = repr((config.data_dir, config.sources, config.languages, config.vocabulary, texts))
        downloaded = any(source.kind == "tfds" for source in config.sources.values())
        if key not in seen and not downloaded:
            seen.add(key)
            _check_inputs(config, texts)


def _list_required_sources(config: Config, directories: Iterable[str]) -> list[str]:
    """Returns the sources that a run opens, and those that its joint tokenizer is trained on.

    If all languages have prepared text in directories, no tokenizer is trained.
    """
    used = list_language_sources(config)
    if config.vocabulary.layout != "joint" or set(directories) >= set(used):
        return used
    parts = prepared.resolve_joint_parts(config)
    return [*used, *(name for name, part in parts.items() if part and name not in used)]


def find_all_prepared_sources(
    config: Config, recorded: Mapping[str, str] = types.MappingProxyType({})
) -> dict[str, prepared.PreparedDirectory]:
    """Returns the prepared text of each source of a run whose own text is not on this machine.

    Raises:
      ValueError: neither a text nor its prepared form is here, or the latter in several versions.
    """
    joint = prepared.make_joint_statement(config)
    directories: dict[str, prepared.PreparedDirectory] = {}

    def find_sources(names: Iterable[str]) -> None:
        for name in names:
            directory = prepared.find_prepared_source(
                name, config.sources[name], config.data_dir, joint, recorded.get(name, "")
            )
            if directory:
                directories[name] = directory

    used = list_language_sources(config)
    find_sources(used)
    find_sources(name for name in _list_required_sources(config, directories) if name not in used)
    return directories


# One source


def prepare_source(
    name: str,
    source: SourceConfig,
    data_dir: str,
    tokenizer: JointTokenizer | None = None,
    recorded: str = "",
) -> AnySource:
    """Returns a prepared source, from disk if its text and tokenizer are there already.

    Where the text is not on this machine, what is prepared of it in data_dir is opened.

    Args:
      name: of the source in config.sources.
      source: what its text and, without a shared one, its tokenizer are.
      data_dir: where prepared sources are kept.
      tokenizer: one that it shares with other sources, in place of its own.
      recorded: the fingerprint of the text that a run was begun with; "" if none.

    Raises:
      ValueError: the text or the tokenizer cannot be used; nothing is left half made.
    """
    if _is_endless(source):
        return synthetic.SyntheticSource(name, source.synthetic)
    joint = tokenizer.stated if tokenizer else None
    cache = sources.resolve_data_cache_dir(data_dir)
    directory = prepared.find_prepared_source(name, source, data_dir, joint, recorded)
    if directory:
        line = prepared.describe_prepared_text(f"config.sources.{name}", directory, data_dir)
        print(line, flush=True)
        return sources.open_source(name, directory.path, cache)
    text_key = prepared.fingerprint_text(name, source, data_dir)
    # Of what is asked for; the fingerprint follows from what is made.
    key = config_lib.hash_plain_values(
        {
            "format": sources.FORMAT,
            "text": text_key,
            "tokenizer": tokenizer.key if tokenizer else _make_tokenizer_key(source),
        }
    )
    path = storage.parse_path(data_dir) / f"{name}-{key}"
    made_of = prepared.describe_source_origin(source, text_key, joint)
    if sources.is_prepared(path):
        prepared.add_statement(path, sources.MARKER, made_of)
    else:
        _check_places_of_text(data_dir)
        _warn_of_full_disk(name, source, data_dir)
        writing.write_prepared_source(name, source, path, text_key, key, tokenizer, made_of)
    return sources.open_source(name, path, cache)


def _is_endless(source: SourceConfig) -> bool:
    """Whether a source is made as it is read, and nothing of it is written."""
    return source.kind == "synthetic" and not source.synthetic.tokens


def _check_places_of_text(data_dir: str) -> None:
    """Raises ValueError if text cannot be written to data_dir, or its ids to their cache."""
    storage.check_directory_writable("config.data_dir", data_dir)
    sources.check_cache_writable(sources.resolve_data_cache_dir(data_dir))


def _warn_of_full_disk(name: str, source: SourceConfig, data_dir: str) -> None:
    """Warns if the ids of a text will hardly fit, which take 2 bytes for 5 of it, or more."""
    least = 0 if source.kind == "synthetic" else 2 * text_lib.estimate_text_bytes(source) // 5
    for place in (data_dir, sources.resolve_data_cache_dir(data_dir)):
        free = storage.count_free_bytes(place)
        if free is not None and free < least:
            print(
                f"Warning: the ids of config.sources.{name} take {least / 1e6:,.1f} MB or more in "
                f"{place}, where {free / 1e6:,.1f} MB are free.",
                flush=True,
            )


def _make_tokenizer_key(source: SourceConfig) -> object:
    if source.kind == "synthetic":
        return "words"
    untrained = get_untrained_tokenizer(source.tokenizer)
    if untrained is not None:
        return hashlib.sha256(untrained).hexdigest()
    return config_lib.to_dict(source.tokenizer)


# Several runs


def prepare_runs(
    configs: Mapping[str, Config],
    recorded: Mapping[str, Mapping[str, str]] = types.MappingProxyType({}),
) -> dict[str, dict[str, AnySource]]:
    """Prepares the text and the parallel sets of several runs, each once.

    Takes, for each run, its config and `recorded` of `prepare_run_sources`; returns its sources.

    Raises:
      ValueError: as `prepare_run_sources`, or the text is not the recorded one.
    """
    from imbalance_jax.data import parallel

    distinct: dict[str, dict[str, AnySource]] = {}
    by_run = {}
    for run, config in configs.items():
        texts = recorded.get(run, {})
        parts = (config.sources, config.languages, config.vocabulary, config.parallel)
        key = repr((config.data_dir, parts, config.model.L, dict(texts)))
        if key not in distinct:
            run_sources = prepare_run_sources(config, texts)
            check_recorded_texts(run_sources, texts, config.data_dir)
            parallel.prepare_all_parallel_sets(config, run_sources)
            distinct[key] = run_sources
        by_run[run] = distinct[key]
    return by_run


def check_recorded_texts(
    run_sources: Mapping[str, AnySource], recorded: Mapping[str, str], data_dir: str
) -> None:
    """Raises ValueError if a study that was begun with one text would go on with another."""
    for name, source in run_sources.items():
        begun_with = recorded.get(name, source.fingerprint)
        if begun_with != source.fingerprint:
            raise ValueError(
                f"config.sources.{name}: the study was begun with the text of fingerprint "
                f"{begun_with} and this machine's has {source.fingerprint}. Copy {name}-... of "
                f"that fingerprint to {data_dir}, or put the text and its tokenizer back as they "
                "were, or use another --workdir for the study."
            )


def collect_fingerprints(
    by_run: Mapping[str, Mapping[str, AnySource]],
) -> dict[str, dict[str, str]]:
    """Returns source -> fingerprint for each run, of what `prepare_runs` returns."""
    return {
        run: {name: source.fingerprint for name, source in run_sources.items()}
        for run, run_sources in by_run.items()
    }
