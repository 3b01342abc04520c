"""Text in datasets of TFDS: which of their records and features a source reads.

The fields train, validation and test name splits, slices and sums of them, as TFDS writes them.
An empty one means the dataset's own split of that name. tfds_datasets.py says where a dataset
lies. A dataset that is not there is prepared when its text or its fingerprint is first asked for.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from imbalance_jax.config import SourceConfig
from imbalance_jax.data.text import fields as fields_lib
from imbalance_jax.data.text import files, tfds_datasets
from imbalance_jax.data.text.conditions import Condition, parse_conditions
from imbalance_jax.data.text.documents import SPLITS, DigestFiles, Document, RawDocuments
from imbalance_jax.data.text.selection import Selection


def read_raw_documents(
    name: str, source: SourceConfig, report: Callable[[float], None], selection: Selection
) -> RawDocuments:
    """Returns a document for every record, those of train first.

    A document's id is the record's feature `id_field` if there is one, and else
    `<dataset>:<split>:<index>`, the same in whatever slice the record is read.

    Raises:
      ValueError: as `check_source`; the dataset cannot be prepared; and from the documents: a
        record cannot be read.
    """
    dataset = _open_or_prepare_dataset(name, source)
    carved = [split for split in SPLITS if not dataset.parts[split]]
    selection.opened += dataset.list_files()
    documents = _read_dataset_documents(dataset, source, report, selection)
    return RawDocuments(documents, carved)


def check_source(name: str, source: SourceConfig) -> None:
    """Finds what is wrong with a source without reading its text, or downloading it.

    Raises:
      ValueError: there is no such dataset; it is not prepared, and what that takes is not
        installed; it is in a format that only TensorFlow reads, or a file of it is missing; or
        it does not have the feature or a split, or a record is in two splits.
    """
    reference = _reference_dataset(name, source)
    path = tfds_datasets.find_dataset(reference)
    conditions = parse_conditions(name, source.where)
    if path:
        dataset = _open_dataset(name, source, path)
        if conditions:
            _check_first_record(dataset, conditions)
        return
    _find_id_feature(name, source, tfds_datasets.make_builder(reference).info)
    for split in SPLITS:
        _parse_split(name, source, split)


def _check_first_record(dataset: "_Dataset", conditions: Sequence[Condition]) -> None:
    """Raises ValueError if a field of a condition is not there, or cannot be compared with it."""
    part = dataset.parts["train"][0]
    records = tfds_datasets.read_records(dataset.builder, part.split, part.start, part.start + 1)
    for index, record in records:
        _make_document(dataset, part.split, index, record, conditions)


def list_fingerprint_parts(
    name: str, source: SourceConfig, digest_files: DigestFiles
) -> list[object]:
    """Returns what the text follows from: the records and the bytes of their files.

    Raises:
      ValueError: as `check_source`; or the dataset cannot be prepared.
    """
    dataset = _open_or_prepare_dataset(name, source)
    paths = dataset.list_files()
    digests = digest_files(paths)
    return [
        dataset.builder.info.full_name,
        dataset.field,
        dataset.id_field,
        *([split, part.split, part.start, part.end] for split, part in dataset.list_parts()),
        *([os.path.basename(path), digests[path]] for path in paths),
    ]


def estimate_source_bytes(source: SourceConfig) -> int:
    """Returns about how many bytes of text there are to train on; 0 before it is prepared."""
    path = tfds_datasets.find_dataset(_reference_dataset("*", source))
    if not path:
        return 0
    dataset = _open_dataset("*", source, path)
    splits = dataset.builder.info.splits
    return sum(
        int(splits[part.split].num_bytes) * len(part) // splits[part.split].num_examples
        for part in dataset.parts["train"]
    )


def is_source_here(name: str, source: SourceConfig) -> bool:
    """Whether a dataset lies prepared in its dataset_dir; one that TFDS could download does not."""
    return bool(tfds_datasets.find_dataset(_reference_dataset(name, source)))


@dataclasses.dataclass(frozen=True)
class _RecordRange:
    """Records of one of the dataset's splits."""

    split: str
    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start


@dataclasses.dataclass(frozen=True)
class _Dataset:
    """A dataset that is prepared, and what is read of it."""

    source_name: str  # in config.sources
    builder: Any  # tfds.core.DatasetBuilder
    parts: Mapping[str, Sequence[_RecordRange]]  # by split of the source; () where it is carved
    field: str
    id_field: str | None

    def list_parts(self) -> list[tuple[str, _RecordRange]]:
        return [(split, part) for split in SPLITS for part in self.parts[split]]

    def list_files(self) -> list[str]:
        """Returns the paths of the files that hold the records, in the order of reading."""
        specs = [f"{part.split}[{part.start}:{part.end}]" for _, part in self.list_parts()]
        shards = [
            shard for spec in specs for shard in self.builder.info.splits[spec].file_instructions
        ]
        return list(dict.fromkeys(shard.filename for shard in shards))


def _reference_dataset(name: str, source: SourceConfig) -> tfds_datasets.DatasetReference:
    return tfds_datasets.DatasetReference(
        source.dataset,
        source.dataset_dir,
        f"config.sources.{name}.dataset={source.dataset!r}",
        f"config.sources.{name}.dataset_dir",
    )


def _open_or_prepare_dataset(name: str, source: SourceConfig) -> _Dataset:
    reference = _reference_dataset(name, source)
    path = tfds_datasets.find_dataset(reference) or tfds_datasets.prepare_dataset(reference)
    return _open_dataset(name, source, path)


def _open_dataset(name: str, source: SourceConfig, path: str) -> _Dataset:
    """Returns the dataset in a directory; raises ValueError for what `check_source` says of it."""
    reference = _reference_dataset(name, source)
    builder = tfds_datasets.open_builder(reference, path)
    id_field = _find_id_feature(name, source, builder.info)
    splits = builder.info.splits
    parts = {split: _resolve_record_ranges(name, source, split, splits) for split in SPLITS}
    dataset = _Dataset(name, builder, parts, source.field, id_field)
    _check_overlap(name, source, dataset.list_parts())
    for file in dataset.list_files():
        if not os.path.exists(file):
            raise ValueError(
                f"{reference.field}: {file} is missing. Copy the dataset again, or delete {path} "
                "and have it prepared again."
            )
    return dataset


# Documents


def _read_dataset_documents(
    dataset: _Dataset,
    source: SourceConfig,
    report: Callable[[float], None],
    selection: Selection,
) -> Iterator[tuple[str, Document]]:
    total = sum(len(part) for _, part in dataset.list_parts())
    conditions = parse_conditions(dataset.source_name, source.where)
    done = 0
    for split, part in dataset.list_parts():
        if split in selection.ended:
            continue
        for index, record in tfds_datasets.read_records(
            dataset.builder, part.split, part.start, part.end
        ):
            done += 1
            report(done / total)
            try:
                document = _make_document(dataset, part.split, index, record, conditions)
            except ValueError as error:
                if source.on_bad_line == "error":
                    raise
                selection.leave_out(error)
                continue
            selection.readable += 1
            if document:
                yield split, document
            else:
                selection.left_out["where"] += 1
            if split in selection.ended:
                break


def _make_document(
    dataset: _Dataset,
    split: str,
    index: int,
    record: Mapping[str, Any],
    conditions: Sequence[Condition],
) -> Document | None:
    """Returns a record as a document; None if it does not meet the conditions."""
    where = f"{dataset.builder.data_path}: record {index} of split {split}"
    if conditions:
        values = _convert_value(record)
        if not all([condition.is_met(values, where) for condition in conditions]):
            return None
    text = fields_lib.find_field_value(record, dataset.field)
    if text is None:
        raise ValueError(
            f"{where} has nothing in its feature {dataset.field!r}. Copy the dataset again if it "
            f"should have, or set config.sources.{dataset.source_name}.field to another one."
        )
    text = _decode_feature(text, where)
    id_field = dataset.id_field
    document_id = fields_lib.find_field_value(record, id_field) if id_field else None
    if document_id in fields_lib.NO_IDS:
        name = dataset.builder.info.full_name.rpartition("/")[0]  # without the version
        return Document(f"{name}:{split}:{index}", text, named_by=dataset.source_name)
    return Document(_decode_feature(document_id, where), text)


def _convert_value(value: Any) -> Any:
    """Returns what TFDS reads as plain values, which conditions compare."""
    if isinstance(value, Mapping):
        return {name: _convert_value(each) for name, each in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list):
        return [_convert_value(each) for each in value]
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _decode_feature(value: bytes | int, where: str) -> str:
    try:
        return value.decode() if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError as error:
        problem = files.describe_utf8_error(error, "value")
        raise ValueError(f"{where} {problem}. Prepare the dataset again, in UTF-8.") from error


# Features and splits


def _find_id_feature(name: str, source: SourceConfig, info: Any) -> str | None:
    """Returns the feature with the ids, or None if the config names none and there is none.

    Raises:
      ValueError: there is no such feature of ids, or none of the text.
    """
    features = tfds_datasets.flatten_features(info.features)
    texts = sorted(feature for feature in features if _is_scalar(features[feature], "OSU"))
    if source.field not in texts:
        is_not = "is not text" if source.field in features else "is not there"
        fix = "field to one of these" if texts else "dataset to one of text"
        raise ValueError(
            f"config.sources.{name}.field={source.field!r}: this feature of {info.full_name} "
            f"{is_not}; its features of text are: {', '.join(texts) or 'none'}. Set "
            f"config.sources.{name}.{fix}."
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


def _is_scalar(feature: Any, kinds: str) -> bool:
    """Returns whether a feature is a single value, of one of numpy's kinds."""
    import tensorflow_datasets as tfds

    is_single = isinstance(feature, tfds.features.Tensor) and feature.shape == ()
    return is_single and np.dtype(feature.np_dtype).kind in kinds


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
    sizes = {each: splits[each].num_examples for each in splits}
    if not value and split != "train" and not sizes.get(split):
        return []
    instruction = _parse_split(name, source, split)
    try:
        ranges = [
            _RecordRange(s.splitname, s.from_ or 0, sizes[s.splitname] if s.to is None else s.to)
            for s in instruction.to_absolute(splits)
        ]
        problem = "there is no record in it"
    except ValueError as error:
        ranges, problem = [], str(error).partition(" Should be")[0].rstrip(".")
    parts = [part for part in ranges if part.start < part.end]
    if parts:
        return parts
    has = ", ".join(f"{each} ({size:,} records)" for each, size in sizes.items())
    raise ValueError(
        f"config.sources.{name}.{split}={value!r} cannot be read: {problem}. The "
        f"splits of {source.dataset} are: {has or 'none'}. Set config.sources.{name}.{split} to "
        "one of these, or a slice of one."
    )


def _check_overlap(
    name: str, source: SourceConfig, parts: Sequence[tuple[str, _RecordRange]]
) -> None:
    for index, (split, part) in enumerate(parts):
        for other_split, other in parts[:index]:
            start, end = max(part.start, other.start), min(part.end, other.end)
            if part.split == other.split and start < end:
                raise ValueError(
                    f"config.sources.{name}.{split}={getattr(source, split)!r}: records {start} to "
                    f"{end - 1} of {part.split} are also in config.sources.{name}.{other_split}="
                    f"{getattr(source, other_split)!r}. A record can be in one split only, and "
                    "once: set them to slices that do not overlap."
                )
