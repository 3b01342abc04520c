"""Text in datasets of TFDS, read without TensorFlow.

A dataset is read where it lies prepared: in `<dataset_dir>/<name>/<config>/<version>`. A name
without a config means TFDS's default one, and without a version the newest that is there.
Which records are read follows from the fields train, validation and test: names of splits,
slices and sums of them, as TFDS writes them. An empty one is the dataset's own split of that
name.

What is not there is downloaded and prepared by TFDS, when its text or its fingerprint is first
asked for. The code of most datasets needs TensorFlow for that, and of some Apache Beam; both
come with the extra `tfds`. (TFDS used to fetch prepared datasets from a public bucket instead,
as TFRecord. Its present releases have that switched off, `try_gcs` included.)
"""

import contextlib
import dataclasses
import difflib
import functools
import importlib
import importlib.util
import io
import logging
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from imbalance_jax.config import SourceConfig
from imbalance_jax.data.text import fields as fields_lib
from imbalance_jax.data.text import files
from imbalance_jax.data.text.documents import SPLITS, Document, RawDocuments
from imbalance_jax.runs import storage

# The share of documents that a split carved out of train gets.
_SHARE = 0.01
# Records that are read at once: about twice as fast as one by one.
_BATCH = 64
# The only format of which TFDS reads slices without TensorFlow.
_FORMAT = "array_record"
# Packages of TFDS with datasets of text. TFDS imports all it has, but stops at the first that
# needs something which is not installed, before these (h5py, for vectors). So, without it,
# TFDS finds no wiki40b.
_PACKAGES = (
    *("text", "translate", "summarization", "text_simplification"),
    *("question_answering", "ranking", "recommendation", "structured"),
)
_EXTRA = ("importlib_resources", "tensorflow", "apache_beam", "mwparserfromhell")
_NAME = re.compile(r"(?P<name>[a-z]\w*)(/(?P<config>[\w+.-]+))?(:(?P<version>\d+\.\d+\.\d+))?")
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_LISTED = 60  # names of configs in a message


def read_raw_documents(
    name: str, source: SourceConfig, report: Callable[[float], None]
) -> RawDocuments:
    """Returns the documents: one for every record, those of train first.

    A document's id is the record's feature `id_field` if there is one, and else
    `<dataset>:<split>:<index>`, the same in whatever slice the record is read.

    Args:
      name: of the source in config.sources, for messages.
      source: the dataset, its splits, and the features of text and id.
      report: called now and then with the share of the records that are read, from 0 to 1.

    Raises:
      ValueError: as `check_source`; the dataset cannot be prepared; and from the documents: a
        record cannot be read.
    """
    dataset = _open_or_prepare_dataset(name, source)
    carved = [split for split in SPLITS if not dataset.parts[split]]
    return RawDocuments(_read_dataset_documents(dataset, report), carved, _SHARE)


def check_source(name: str, source: SourceConfig) -> None:
    """Finds what is wrong with a source without reading its text, or downloading it.

    Raises:
      ValueError: there is no such dataset; it is not prepared, and what that takes is not
        installed; it is in a format that only TensorFlow reads, or a file of it is missing; or
        it does not have the feature or a split, or a record is in two splits.
    """
    path = _find_dataset(name, source)
    if path:
        _open_dataset(name, source, path)
        return
    builder = _make_builder(name, source)
    _check_features(name, source, builder.info)
    for split in SPLITS:
        _parse_split(name, source, split)


def list_fingerprint_parts(
    name: str, source: SourceConfig, cache: pathlib.Path | None
) -> list[object]:
    """Returns what the text follows from: the records and the bytes of their files.

    Args:
      name: of the source in config.sources, for messages.
      source: which records they are.
      cache: as of `files.digests`.

    Raises:
      ValueError: as `check_source`; or the dataset cannot be prepared.
    """
    dataset = _open_or_prepare_dataset(name, source)
    paths = dataset.files()
    known = files.compute_file_digests(paths, cache)
    return [
        dataset.info.full_name,
        dataset.field,
        dataset.id_field,
        *([split, part.split, part.start, part.end] for split, part in dataset.all_parts()),
        *([os.path.basename(path), known[path]] for path in paths),
    ]


def estimate_source_bytes(source: SourceConfig) -> int:
    """Returns about how many bytes of text there are to train on; 0 before it is prepared."""
    path = _find_dataset("*", source)
    if not path:
        return 0
    dataset = _open_dataset("*", source, path)
    splits = dataset.info.splits
    return sum(
        int(splits[part.split].num_bytes) * len(part) // splits[part.split].num_examples
        for part in dataset.parts["train"]
    )


def is_source_here(name: str, source: SourceConfig) -> bool:
    """Whether a dataset lies prepared in its dataset_dir; one that TFDS could download does not."""
    return bool(_find_dataset(name, source))


# Datasets with labels, for the tasks of tasks.py


def find_labelled_dataset(dataset: str, directory: str) -> str:
    """Returns where a dataset lies prepared, and "" where it does not.

    Args:
      dataset: its name and config, such as glue/cola.
      directory: where datasets lie; "" is TFDS's own choice.
    """
    return _find_dataset("tasks", SourceConfig(kind="tfds", dataset=dataset, dataset_dir=directory))


def read_label_names(dataset: str, directory: str, field: str) -> tuple[str, ...]:
    """Returns the names of the classes of a feature of a prepared dataset; () if it has none."""
    features = _flatten_features(_open_labelled_builder(dataset, directory).info.features)
    return tuple(getattr(features.get(field), "names", None) or ())


def read_labelled_records(dataset: str, directory: str, split: str) -> Iterator[dict[str, Any]]:
    """Yields the records of a split: text as text, whole numbers, and classes by their names.

    Raises:
      ValueError: there is no such split, or it cannot be read.
    """
    builder = _open_labelled_builder(dataset, directory)
    if split not in builder.info.splits:
        raise ValueError(
            f"{dataset} in {builder.data_path} has no split {split}. It has: "
            f"{', '.join(builder.info.splits)}."
        )
    features = _flatten_features(builder.info.features)
    names = {field: getattr(feature, "names", None) or [] for field, feature in features.items()}
    part = _RecordRange(split, 0, builder.info.splits[split].num_examples)
    whole = _Dataset("tasks", os.fspath(builder.data_path), builder, {}, "", None)

    def plain(field: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {inner: plain(f"{field}.{inner}", each) for inner, each in value.items()}
        if isinstance(value, bytes):
            return value.decode()
        # An answer that is kept secret is -1, which is no class.
        if names.get(field) and value >= 0:
            return names[field][value]
        return value.item() if isinstance(value, np.generic) else value

    for _, record in _read_records(whole, part):
        yield {field: plain(field, value) for field, value in record.items()}


def describe_dataset_download(dataset: str, directory: str) -> str:
    """Returns a sentence, without its full stop, on how to prepare a dataset and where."""
    from tensorflow_datasets.core import constants

    place = os.path.expanduser(directory or constants.DATA_DIR)
    return (
        f"download {dataset} where there is a network and TensorFlow (pip install -e '.[tfds]'): "
        f"python -c \"import tensorflow_datasets as tfds; tfds.builder('{dataset}', "
        f"data_dir='{place}').download_and_prepare(file_format='{_FORMAT}')\", and copy what that "
        f"makes to {os.path.join(place, dataset)} here"
    )


def _open_labelled_builder(dataset: str, directory: str) -> Any:
    return _open_builder(dataset, find_labelled_dataset(dataset, directory), "--tasks_dir")


@dataclasses.dataclass(frozen=True)
class _RecordRange:
    """A range of the records of one of the dataset's splits."""

    split: str
    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start

    def meets(self, other: "_RecordRange") -> bool:
        return self.split == other.split and self.start < other.end and other.start < self.end


@dataclasses.dataclass(frozen=True)
class _Dataset:
    """A dataset that is prepared, and what is read of it."""

    source_name: str  # in config.sources
    path: str
    builder: Any  # tfds.core.DatasetBuilder
    parts: Mapping[str, Sequence[_RecordRange]]  # by split of the source; () where it is carved
    field: str
    id_field: str | None

    @property
    def info(self) -> Any:
        return self.builder.info

    def all_parts(self) -> Iterator[tuple[str, _RecordRange]]:
        for split in SPLITS:
            for part in self.parts[split]:
                yield split, part

    def files(self) -> list[str]:
        """Returns the paths of the files that hold the records, in the order of reading."""
        paths: dict[str, None] = {}
        for _, part in self.all_parts():
            split, start = self.info.splits[part.split], 0
            for path, records in zip(split.filepaths, split.shard_lengths, strict=True):
                if _RecordRange(part.split, start, start + records).meets(part):
                    paths[os.fspath(path)] = None
                start += records
        return list(paths)


def _read_dataset_documents(
    dataset: _Dataset, report: Callable[[float], None]
) -> Iterator[tuple[str, Document]]:
    total = sum(len(part) for _, part in dataset.all_parts())
    done = 0
    for split, part in dataset.all_parts():
        for index, record in _read_records(dataset, part):
            done += 1
            report(done / total)
            yield split, _make_document(dataset, part.split, index, record)


def _read_records(dataset: _Dataset, part: _RecordRange) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yields (index in its split, record)."""
    index = part.start
    try:
        records = dataset.builder.as_data_source(f"{part.split}[{part.start}:{part.end}]")
        for start in range(0, len(part), _BATCH):
            for record in records.__getitems__(range(start, min(start + _BATCH, len(part)))):
                yield index, record
                index += 1
    # Whatever TFDS and ArrayRecord raise for damaged files (they have no common class).
    except Exception as error:
        raise ValueError(
            f"{dataset.path}: split {part.split} cannot be read from record {index} on "
            f"({_summarize_error(error)}). Copy the dataset again, or delete the directory and "
            "have it "
            "prepared again."
        ) from error


def _make_document(
    dataset: _Dataset, split: str, index: int, record: Mapping[str, Any]
) -> Document:
    where = f"{dataset.path}: record {index} of split {split}"
    text = fields_lib.find_field_value(record, dataset.field)
    if text is None:
        raise ValueError(
            f"{where} has nothing in its feature {dataset.field!r}. Copy the dataset again if it "
            f"should have, or set config.sources.{dataset.source_name}.field to another one."
        )
    text = _decode_feature(text, where)
    document_id = (
        fields_lib.find_field_value(record, dataset.id_field) if dataset.id_field else None
    )
    if document_id in fields_lib.NO_IDS:
        name = dataset.info.full_name.rpartition("/")[0]  # without the version
        return Document(f"{name}:{split}:{index}", text, named_by=dataset.source_name)
    return Document(_decode_feature(document_id, where), text)


def _decode_feature(value: bytes | int, where: str) -> str:
    try:
        return value.decode() if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where} is not UTF-8 text (byte 0x{error.object[error.start]:02x}, at offset "
            f"{error.start} of the value). Prepare the dataset again, in UTF-8."
        ) from error


# Where it is


def _open_or_prepare_dataset(name: str, source: SourceConfig) -> _Dataset:
    """Returns the dataset, and has it prepared before if it is not."""
    storage.check_local_path(f"config.sources.{name}.dataset_dir", source.dataset_dir)
    return _open_dataset(
        name, source, _find_dataset(name, source) or _prepare_dataset(name, source)
    )


def _format_dataset_field(name: str, source: SourceConfig) -> str:
    return f"config.sources.{name}.dataset={source.dataset!r}"


def _parse_dataset_name(name: str, source: SourceConfig) -> tuple[str, str, str]:
    """Returns the name, the config or '', and the version or ''."""
    parsed = _NAME.fullmatch(source.dataset)
    if not parsed:
        raise ValueError(
            f"{_format_dataset_field(name, source)} is not the name of a TFDS dataset. Write "
            "<name>, "
            "<name>/<config> or <name>/<config>:<version>, such as wiki40b/fr:1.3.0."
        )
    return parsed["name"], parsed["config"] or "", parsed["version"] or ""


def _resolve_dataset_dir(source: SourceConfig) -> str:
    """Returns where datasets lie, and where they are prepared."""
    from tensorflow_datasets.core import constants

    return os.path.expanduser(source.dataset_dir or constants.DATA_DIR)


def _find_dataset(name: str, source: SourceConfig) -> str:
    """Returns the directory of the dataset's version if it is prepared, and else ''."""
    if "://" in source.dataset_dir:
        raise ValueError(
            f"config.sources.{name}.dataset_dir={source.dataset_dir!r} is not a directory of this "
            "machine. Copy or mount it, and set the field to where it is then."
        )
    dataset, config, version = _parse_dataset_name(name, source)
    root = os.path.join(_resolve_dataset_dir(source), dataset)
    directory = os.path.join(root, config or _find_default_config(name, source, root))
    versions = [each for each in _list_versions(directory) if version in ("", each)]
    if not versions:
        return ""
    path = os.path.join(directory, versions[-1])
    for file in ("dataset_info.json", "features.json"):
        if not os.path.exists(os.path.join(path, file)):
            raise ValueError(
                f"{_format_dataset_field(name, source)}: {path} has no {file}, so it is not a "
                "whole dataset. "
                "Copy it again, or delete the directory and have it prepared again."
            )
    return path


def _list_versions(directory: str) -> list[str]:
    """Returns the versions in a directory, the oldest first."""
    if not os.path.isdir(directory):
        return []
    found = [entry for entry in os.listdir(directory) if _VERSION.fullmatch(entry)]
    return sorted(found, key=lambda version: [int(part) for part in version.split(".")])


def _find_default_config(name: str, source: SourceConfig, root: str) -> str:
    """Returns the config of a dataset that is named without one; '' if it has none there."""
    from etils import epath
    from tensorflow_datasets.core import dataset_builder

    if not os.path.isdir(root) or _list_versions(root):
        return ""
    default = dataset_builder.load_default_config_name(epath.Path(root))
    configs = [entry for entry in sorted(os.listdir(root)) if _list_versions(f"{root}/{entry}")]
    if default or len(configs) < 2:
        return default or "".join(configs)
    raise ValueError(
        f"{_format_dataset_field(name, source)} has several configs in {root}: "
        f"{_format_name_list(configs)}. Write which "
        f"one, such as {os.path.basename(root)}/{configs[0]}."
    )


# What is read of it


def _open_dataset(name: str, source: SourceConfig, path: str) -> _Dataset:
    """Returns the dataset in a directory.

    Raises:
      ValueError: it is in a format that only TensorFlow reads, or a file of it is missing; or
        it does not have the feature or a split, or a record is in two splits.
    """
    builder = _open_builder(
        _format_dataset_field(name, source), path, f"config.sources.{name}.dataset_dir"
    )
    info = builder.info
    id_field = _check_features(name, source, info)
    parts = {split: _resolve_record_ranges(name, source, split, info.splits) for split in SPLITS}
    _check_overlap(name, source, parts)
    dataset = _Dataset(name, path, builder, parts, source.field, id_field)
    for file in dataset.files():
        if not os.path.exists(file):
            raise ValueError(
                f"{_format_dataset_field(name, source)}: {file} is missing. Copy the dataset "
                "again, or delete "
                f"{path} and have it prepared again."
            )
    return dataset


def _open_builder(what: str, path: str, place: str) -> Any:
    """Returns a tfds.core.DatasetBuilder that reads the dataset in a directory.

    Args:
      what: names the dataset, for messages.
      path: of its version.
      place: the field or flag that says where datasets lie.

    Raises:
      ValueError: it cannot be opened, or is in a format that only TensorFlow reads.
    """
    import tensorflow_datasets as tfds

    try:
        with _silence_tfds():
            builder = tfds.builder_from_directory(path)
            info = builder.info
            formats = sorted(each.value for each in info.available_file_formats())
            if _FORMAT in formats:
                info.set_file_format(_FORMAT, override=True, override_if_initialized=True)
    # Whatever TFDS raises for damaged files, and for features of its past or future.
    except Exception as error:
        raise ValueError(
            f"{what}: {path} cannot be opened ({_summarize_error(error)}). Copy it again, "
            "or delete the directory and have it prepared again."
        ) from error
    if _FORMAT not in formats:
        raise ValueError(
            f"{what}: {path} holds it as {' and '.join(formats)}, which takes "
            f"TensorFlow to read; as {_FORMAT} it does not. Install the extra, pip install -e "
            f"'.[tfds]', and convert it: tfds convert_format --dataset_version_dir={path} "
            f"--out_file_format={_FORMAT}; or set {place} to where it is "
            f"prepared as {_FORMAT}."
        )
    return builder


def _check_features(name: str, source: SourceConfig, info: Any) -> str | None:
    """Returns the feature with the ids, or None if the config names none and there is none.

    Raises:
      ValueError: there is no such feature of text, or of ids.
    """
    features = _flatten_features(info.features)
    texts = sorted(feature for feature in features if _is_scalar(features[feature], "OSU"))
    if source.field not in texts:
        field = f"config.sources.{name}.field={source.field!r}"
        is_not = "is not text" if source.field in features else "is not there"
        fix = "field to one of these" if texts else "dataset to one of text"
        raise ValueError(
            f"{field}: this feature of {info.full_name} {is_not}; its features of text are: "
            f"{', '.join(texts) or 'none'}. Set config.sources.{name}.{fix}."
        )
    ids = sorted(feature for feature in features if _is_scalar(features[feature], "OSUiu"))
    if source.id_field in ids:
        return source.id_field
    if source.names_ids:
        raise ValueError(
            f"config.sources.{name}.id_field={source.id_field!r}: {info.full_name} has no such "
            f"feature of text or whole numbers; it has: {', '.join(ids) or 'none'}. Set "
            f"config.sources.{name}.id_field to one of these, or leave id_field and ids out."
        )
    return None


def _flatten_features(features: Any) -> dict[str, Any]:
    """Returns the features of a dataset by name, and those within others with dots."""
    import tensorflow_datasets as tfds

    if not isinstance(features, tfds.features.FeaturesDict):
        return {}
    found: dict[str, Any] = {}
    for name, feature in features.items():
        inner = _flatten_features(feature)
        found |= {f"{name}.{each}": value for each, value in inner.items()} or {name: feature}
    return found


def _is_scalar(feature: Any, kinds: str) -> bool:
    """Returns whether a feature is a single value, of one of numpy's kinds."""
    import tensorflow_datasets as tfds

    return (
        isinstance(feature, tfds.features.Tensor)
        and feature.shape == ()
        and np.dtype(feature.np_dtype).kind in kinds
    )


def _parse_split(name: str, source: SourceConfig, split: str) -> Any:
    """Returns a tfds.core.ReadInstruction, or a sum of them."""
    import tensorflow_datasets as tfds

    value = getattr(source, split)
    try:
        return tfds.core.ReadInstruction.from_spec(value or split)
    # The second is what TFDS raises for a slice of `all`, which it knows, but cannot cut.
    except (ValueError, NotImplementedError) as error:
        raise ValueError(
            f"config.sources.{name}.{split}={value!r} is not a split or a slice of one "
            f"({str(error).splitlines()[-1]}). Write it like train, train[:10%], train[5000:] or "
            "train+test."
        ) from error


def _resolve_record_ranges(
    name: str, source: SourceConfig, split: str, splits: Mapping[str, Any]
) -> list[_RecordRange]:
    """Returns what a split of the source is made of; [] if it is to be carved out of train."""
    value = getattr(source, split)
    if not value and split != "train" and not (split in splits and splits[split].num_examples):
        return []
    instruction = _parse_split(name, source, split)
    try:
        ranges = [
            _RecordRange(part.splitname, part.from_ or 0, _resolve_range_end(part, splits))
            for part in instruction.to_absolute(splits)
        ]
        problem = "there is no record in it"
    except ValueError as error:
        ranges, problem = [], str(error).partition(" Should be")[0]
    parts = [part for part in ranges if part.start < part.end]
    if parts:
        return parts
    has = ", ".join(f"{each} ({splits[each].num_examples:,} records)" for each in splits)
    raise ValueError(
        f"config.sources.{name}.{split}={value!r} cannot be read: {problem.rstrip('.')}. The "
        f"splits of {source.dataset} are: {has or 'none'}. Set config.sources.{name}.{split} to "
        "one of these, or a slice of one."
    )


def _resolve_range_end(part: Any, splits: Mapping[str, Any]) -> int:
    return splits[part.splitname].num_examples if part.to is None else part.to


def _check_overlap(
    name: str, source: SourceConfig, parts: Mapping[str, Sequence[_RecordRange]]
) -> None:
    flat = [(split, part) for split in SPLITS for part in parts[split]]
    for index, (split, part) in enumerate(flat):
        for other, earlier in flat[:index]:
            if part.meets(earlier):
                start, end = max(part.start, earlier.start), min(part.end, earlier.end)
                raise ValueError(
                    f"config.sources.{name}.{split}={getattr(source, split)!r}: records {start} to "
                    f"{end - 1} of {part.split} are also in config.sources.{name}.{other}="
                    f"{getattr(source, other)!r}. A record can be in one split only, and once: "
                    "set them to slices that do not overlap."
                )


# How it is prepared


def _prepare_dataset(name: str, source: SourceConfig) -> str:
    """Has TFDS download and prepare a dataset, and returns its directory."""
    builder = _make_builder(name, source)
    path = os.fspath(builder.data_path)
    print(f"Downloading and preparing {builder.info.full_name} with TFDS, in {path}", flush=True)
    try:
        with _silence_tfds(progress=sys.stderr.isatty()):
            builder.download_and_prepare(file_format=_FORMAT)
    except ImportError as error:
        raise _make_missing_package_error(
            name, source, type(builder), [_find_missing_module(error)]
        ) from error
    # Whatever the code of a dataset raises, and the libraries that it downloads with.
    except Exception as error:
        raise ValueError(
            f"{_format_dataset_field(name, source)}: TFDS could not download and prepare it "
            f"({_summarize_error(error)}). "
            "Try it again where there is a network, or "
            f"{_advise_copying_dataset(name, source, type(builder))}"
        ) from error
    return path


def _make_builder(name: str, source: SourceConfig) -> Any:
    """Returns the code that makes a dataset, ready to do so.

    Raises:
      ValueError: there is none, or not for this config or version; or what it needs is not
        installed.
    """
    dataset, config, version = _parse_dataset_name(name, source)
    kind = None
    try:
        with _silence_tfds():
            kind = _find_builder_class(dataset)
    except ImportError as error:
        raise _make_missing_package_error(
            name, source, kind, [_find_missing_module(error)]
        ) from error
    if kind is None:
        raise _make_unknown_dataset_error(name, source, dataset)
    if config and config not in kind.builder_configs:
        raise _make_unknown_config_error(name, source, kind)
    try:
        with _silence_tfds():
            builder = kind(
                config=config or None,
                version=version or None,
                data_dir=_resolve_dataset_dir(source),
            )
            _ = builder.info  # computed by the dataset's code, which may import what is missing
            missing = [
                package for package in _list_required_packages(kind) if not _is_installed(package)
            ]
    except ImportError as error:
        raise _make_missing_package_error(
            name, source, kind, [_find_missing_module(error)]
        ) from error
    # Whatever the code of a dataset raises, for a version that it does not make above all.
    except Exception as error:
        raise ValueError(
            f"{_format_dataset_field(name, source)} is not prepared in "
            f"{_resolve_dataset_dir(source)}, and TFDS cannot do "
            f"so ({_summarize_error(error)}). Correct the version, or "
            f"{_advise_copying_dataset(name, source, kind)}"
        ) from error
    if missing:
        raise _make_missing_package_error(name, source, kind, missing)
    return builder


def _find_builder_class(dataset: str) -> Any:
    """Returns the class of a dataset's code, or None if there is none.

    Unlike tfds.builder it neither looks for one on the network, nor stops at a package with
    something missing.
    """
    from tensorflow_datasets.core import registered

    with contextlib.suppress(registered.DatasetNotFoundError):
        return registered.imported_builder_cls(dataset)
    _import_packages()
    with contextlib.suppress(registered.DatasetNotFoundError):
        return registered.imported_builder_cls(dataset)
    return None


@functools.cache
def _import_packages() -> None:
    for package in _PACKAGES:
        with contextlib.suppress(ImportError):
            importlib.import_module(f"tensorflow_datasets.{package}")


def _list_required_packages(kind: Any) -> Iterable[str]:
    """Yields the packages that it takes to prepare a dataset, as far as its code shows them."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.utils import lazy_imports_utils

    modules = [sys.modules[base.__module__] for base in kind.__mro__]
    # TFDS itself imports TensorFlow, but not where it is not needed.
    own = [module for module in modules if ".core." not in module.__name__]
    if kind.__module__.startswith("tensorflow_datasets."):
        yield "importlib_resources"  # which TFDS uses, but does not depend on
    if any(value is lazy_imports_utils.tensorflow for m in own for value in vars(m).values()):
        yield "tensorflow"
    if issubclass(kind, tfds.core.BeamBasedBuilder):
        yield "apache_beam"


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


# What went wrong


def _make_unknown_dataset_error(name: str, source: SourceConfig, dataset: str) -> ValueError:
    from tensorflow_datasets.core import registered

    close = difflib.get_close_matches(dataset, set(registered.list_imported_builders()))
    similar = f" (it has {', '.join(sorted(close))})" if close else ""
    return ValueError(
        f"{_format_dataset_field(name, source)}: TFDS has no dataset {dataset}{similar}, and "
        "none is prepared in "
        f"{_resolve_dataset_dir(source)}. Correct the name, or set "
        f"config.sources.{name}.dataset_dir to a "
        f"directory that holds it as {_format_dataset_path(source, None)}."
    )


def _make_unknown_config_error(name: str, source: SourceConfig, kind: Any) -> ValueError:
    configs = _format_name_list(kind.builder_configs)
    fix = f"Write one of its configs: {configs}" if configs else "It has none: write it without"
    return ValueError(
        f"{_format_dataset_field(name, source)}: there is no such config of {kind.name} in TFDS. "
        f"{fix}; or set "
        f"config.sources.{name}.dataset_dir to where it is prepared."
    )


def _make_missing_package_error(
    name: str, source: SourceConfig, kind: Any, packages: Sequence[str]
) -> ValueError:
    others = [package for package in packages if package.partition(".")[0] not in _EXTRA]
    fix = f"Install it, pip install {' '.join(others)}"
    if not others:
        fix = "Install the extra, pip install -e '.[tfds]'"
    return ValueError(
        f"{_format_dataset_field(name, source)} is not prepared in "
        f"{_resolve_dataset_dir(source)}, and to prepare it takes "
        f"{', '.join(packages)}, not installed here. {fix}; or "
        f"{_advise_copying_dataset(name, source, kind)}"
    )


def _advise_copying_dataset(name: str, source: SourceConfig, kind: Any) -> str:
    layout = _format_dataset_path(source, kind)
    return (
        f"prepare it on another machine with file_format='{_FORMAT}' and copy it to "
        f"{os.path.join(_resolve_dataset_dir(source), layout)}, or set "
        f"config.sources.{name}.dataset_dir to "
        f"a directory that holds it as {layout}."
    )


def _format_dataset_path(source: SourceConfig, kind: Any) -> str:
    """Returns where a dataset lies in dataset_dir."""
    name, _, version = source.dataset.partition(":")
    if kind and not version:
        config = kind.builder_configs.get(name.partition("/")[2], kind.default_builder_config)
        name = f"{kind.name}/{config.name}" if config else kind.name
        version = str(config and config.version or kind.VERSION)
    return f"{name}/{version or '<version>'}"


def _format_name_list(names: Iterable[str]) -> str:
    listed = sorted(names)
    more = len(listed) - _LISTED
    return ", ".join(listed[:_LISTED]) + (f" and {more} more" if more > 0 else "")


def _find_missing_module(error: ImportError) -> str:
    """Returns what could not be imported."""
    named = re.search(r"No module named '([\w.]+)'", str(error))
    return error.name or (named[1] if named else _summarize_error(error))


def _summarize_error(error: Exception) -> str:
    """Returns the kind of an error and the first line of what it says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ": ".join([type(error).__name__, *lines[:1]]).rstrip(".:")


@contextlib.contextmanager
def _silence_tfds(progress: bool = False) -> Iterator[None]:
    """Keeps TFDS from printing and logging, which it does of much that is handled here.

    Args:
      progress: whether it may show how far it is, on stderr.
    """
    import tensorflow_datasets as tfds

    logged = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    nowhere = io.StringIO()
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            if not progress:
                tfds.disable_progress_bar()
                stack.callback(tfds.enable_progress_bar)
                stack.enter_context(contextlib.redirect_stderr(nowhere))
            yield
    finally:
        logging.disable(logged)
