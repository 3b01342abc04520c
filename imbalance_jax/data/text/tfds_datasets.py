"""Datasets of TFDS on this machine: found, opened, prepared and read without TensorFlow.

A dataset lies in `<dataset_dir>/<name>/<config>/<version>`. A name without a config means TFDS's
default one, and without a version the newest that is there. TFDS downloads and prepares what is
not there. The code of most datasets needs TensorFlow for that, and that of some needs Apache
Beam. The extra `tfds` has both. (Earlier releases of TFDS could fetch prepared datasets from a
public bucket. Present ones have that switched off, `try_gcs` included.)
"""

import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import io
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from imbalance_jax.runs import storage

# Records that are read at once: about twice as fast as one by one.
_BATCH = 64
# The only format of which TFDS reads slices without TensorFlow.
_FORMAT = "array_record"
# Packages of TFDS with datasets of text. TFDS imports all its packages, but stops at the first
# that needs something which is not installed, before these (h5py, for vectors). So, without h5py,
# TFDS finds no wiki40b.
_PACKAGES = (
    *("text", "translate", "summarization", "text_simplification"),
    *("question_answering", "ranking", "recommendation", "structured"),
)
_LISTED = 60  # names of configs in a message
_NAME = re.compile(r"(?P<name>[a-z]\w*)(/(?P<config>[\w+.-]+))?(:(?P<version>\d+\.\d+\.\d+))?")


@dataclasses.dataclass(frozen=True)
class DatasetReference:
    """A dataset as a user names it."""

    dataset: str  # such as wiki40b, wiki40b/fr or wiki40b/fr:1.3.0
    directory: str  # where datasets lie; "" is TFDS's own choice
    field: str  # that names the dataset, for messages
    directory_field: str  # the field or flag that says where datasets lie, for messages

    def parse(self) -> tuple[str, str, str]:
        """Returns the name, the config or '', and the version or ''."""
        parsed = _NAME.fullmatch(self.dataset)
        if not parsed:
            raise ValueError(
                f"{self.field} is not the name of a TFDS dataset. Write <name>, <name>/<config> "
                "or <name>/<config>:<version>, such as wiki40b/fr:1.3.0."
            )
        return parsed["name"], parsed["config"] or "", parsed["version"] or ""


# Where a dataset lies


def find_dataset(reference: DatasetReference) -> str:
    """Returns the directory of a dataset's version if it is prepared, and else ''.

    Raises:
      ValueError: that is no name of a dataset, or it has several configs there, or they are in an
        object store.
    """
    directory = reference.directory
    storage.check_local_path(f"{reference.directory_field}={directory!r}", directory)
    name, config, version = reference.parse()
    root = os.path.join(_resolve_dataset_dir(directory), name)
    path = os.path.join(root, config or _find_default_config(reference, root))
    versions = [each for each in _list_versions(path) if version in ("", each)]
    return os.path.join(path, versions[-1]) if versions else ""


def _resolve_dataset_dir(directory: str) -> str:
    from tensorflow_datasets.core import constants

    return os.path.expanduser(directory or constants.DATA_DIR)


def _list_versions(directory: str) -> list[str]:
    """Returns the versions in a directory, the oldest first."""
    from tensorflow_datasets.core.utils import version as version_lib

    return list(map(str, version_lib.list_all_versions(directory)))


def _find_default_config(reference: DatasetReference, root: str) -> str:
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
        f"{reference.field} has several configs in {root}: {', '.join(configs)}. Write which one, "
        f"such as {os.path.basename(root)}/{configs[0]}."
    )


# Reading


def open_builder(reference: DatasetReference, path: str) -> Any:
    """Returns a tfds.core.DatasetBuilder that reads the dataset in the directory of a version.

    Raises:
      ValueError: it cannot be opened, or is in a format that only TensorFlow reads.
    """
    import tensorflow_datasets as tfds

    try:
        with _silence_tfds():
            builder = tfds.builder_from_directory(path)
            formats = sorted(each.value for each in builder.info.available_file_formats())
            if _FORMAT in formats:
                builder.info.set_file_format(_FORMAT, override=True, override_if_initialized=True)
    # Whatever TFDS raises for damaged files, and for features of its past or future.
    except Exception as error:
        raise ValueError(
            f"{reference.field}: {path} cannot be opened ({_summarize_error(error)}). Copy it "
            "again, or delete the directory and have it prepared again."
        ) from error
    if _FORMAT not in formats:
        raise ValueError(
            f"{reference.field}: {path} holds it as {' and '.join(formats)}, which takes "
            f"TensorFlow to read; as {_FORMAT} it does not. Install the extra, pip install -e "
            f"'.[tfds]', and convert it: tfds convert_format --dataset_version_dir={path} "
            f"--out_file_format={_FORMAT}; or set {reference.directory_field} to where it is "
            f"prepared as {_FORMAT}."
        )
    return builder


def flatten_features(features: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the features of a dataset by name, and those within others with dots."""
    import tensorflow_datasets as tfds

    flat: dict[str, Any] = {}
    for name, feature in features.items():
        is_group = isinstance(feature, tfds.features.FeaturesDict)
        inner = flatten_features(feature) if is_group else {}
        flat |= {f"{name}.{each}": value for each, value in inner.items()} or {name: feature}
    return flat


def read_records(
    builder: Any, split: str, first: int, end: int
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yields (index in the split, record) from the first one on.

    Raises:
      ValueError: a record cannot be read.
    """
    index = first
    try:
        records = builder.as_data_source(f"{split}[{first}:{end}]")
        for start in range(0, len(records), _BATCH):
            for record in records.__getitems__(range(start, min(start + _BATCH, len(records)))):
                yield index, record
                index += 1
    # Whatever TFDS and ArrayRecord raise for damaged files (they have no common class).
    except Exception as error:
        raise ValueError(
            f"{builder.data_path}: split {split} cannot be read from record {index} on "
            f"({_summarize_error(error)}). Copy the dataset again, or delete the directory and "
            "have it prepared again."
        ) from error


# Datasets with labels, for the tasks of tasks.py


def find_labelled_dataset(dataset: str, directory: str) -> str:
    """Returns where a dataset, such as glue/cola, lies prepared, and "" where it does not."""
    return find_dataset(DatasetReference(dataset, directory, dataset, "--tasks_dir"))


def _open_labelled_dataset(dataset: str, directory: str) -> Any:
    reference = DatasetReference(dataset, directory, dataset, "--tasks_dir")
    return open_builder(reference, find_dataset(reference))


def read_label_names(dataset: str, directory: str, field: str) -> tuple[str, ...]:
    """Returns the names of the classes of a feature of a prepared dataset; () if it has none."""
    features = flatten_features(_open_labelled_dataset(dataset, directory).info.features)
    return tuple(getattr(features.get(field), "names", None) or ())


def read_labelled_records(dataset: str, directory: str, split: str) -> Iterator[dict[str, Any]]:
    """Yields the records of a split: text as text, whole numbers, and classes by their names.

    Raises:
      ValueError: there is no such split, or it cannot be read.
    """
    builder = _open_labelled_dataset(dataset, directory)
    splits = builder.info.splits
    if split not in splits:
        raise ValueError(
            f"{dataset} in {builder.data_path} has no split {split}. It has: {', '.join(splits)}."
        )
    features = flatten_features(builder.info.features)
    names = {field: getattr(feature, "names", None) or [] for field, feature in features.items()}

    def convert_value(field: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {inner: convert_value(f"{field}.{inner}", value[inner]) for inner in value}
        if isinstance(value, bytes):
            return value.decode()
        # An answer that is kept secret is -1, which is no class.
        if names.get(field) and value >= 0:
            return names[field][value]
        return value.item() if isinstance(value, np.generic) else value

    for _, record in read_records(builder, split, 0, splits[split].num_examples):
        yield {field: convert_value(field, value) for field, value in record.items()}


# Preparing


def describe_dataset_download(dataset: str, directory: str) -> str:
    """Returns a sentence, without its full stop, on how to prepare a dataset and where."""
    place = _resolve_dataset_dir(directory)
    return (
        f"download {dataset} where there is a network and TensorFlow (pip install -e '.[tfds]'): "
        f"python -c \"import tensorflow_datasets as tfds; tfds.builder('{dataset}', "
        f"data_dir='{place}').download_and_prepare(file_format='{_FORMAT}')\", and copy what that "
        f"makes to {os.path.join(place, dataset.replace(':', '/'))} here"
    )


def prepare_dataset(reference: DatasetReference) -> str:
    """Has TFDS download and prepare a dataset, and returns its directory.

    Raises:
      ValueError: as `make_builder`, or the download fails.
    """
    builder = make_builder(reference)
    path = os.fspath(builder.data_path)
    print(f"Downloading and preparing {builder.info.full_name} with TFDS, in {path}", flush=True)
    with _explain_failure(reference), _silence_tfds(progress=sys.stderr.isatty()):
        builder.download_and_prepare(file_format=_FORMAT)
    return path


def make_builder(reference: DatasetReference) -> Any:
    """Returns TFDS's code of a dataset, ready to download and prepare it.

    Raises:
      ValueError: there is none, or not for this config or version; or what it needs is not
        installed. The message says how to prepare the dataset elsewhere.
    """
    import tensorflow_datasets as tfds

    name, config, version = reference.parse()
    with _explain_failure(reference), _silence_tfds():
        _import_packages()
        kind = tfds.builder_cls(name)
        configs = sorted(kind.builder_configs)
        if config and config not in configs:
            more = ", ..." * (len(configs) > _LISTED)
            raise LookupError(f"the configs of {name} are: {', '.join(configs[:_LISTED])}{more}")
        data_dir = _resolve_dataset_dir(reference.directory)
        builder = kind(config=config or None, version=version or None, data_dir=data_dir)
        _ = builder.info  # computed by the dataset's code, which may import what is missing
        missing = _list_missing_packages(kind)
        if missing:
            raise ImportError(f"it takes {', '.join(missing)}, not installed here")
    return builder


@functools.cache
def _import_packages() -> None:
    for package in _PACKAGES:
        with contextlib.suppress(ImportError):
            importlib.import_module(f"tensorflow_datasets.{package}")


def _list_missing_packages(kind: Any) -> list[str]:
    """Returns the packages that a dataset's code is seen to need and that are not installed."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.utils import lazy_imports_utils

    # TFDS's core imports TensorFlow as well, but not where it is not needed.
    modules = [sys.modules[c.__module__] for c in kind.__mro__ if ".core." not in c.__module__]
    values = [value for module in modules for value in vars(module).values()]
    needs = {
        # TFDS uses it, but does not depend on it.
        "importlib_resources": kind.__module__.startswith("tensorflow_datasets."),
        "tensorflow": any(value is lazy_imports_utils.tensorflow for value in values),
        "apache_beam": issubclass(kind, tfds.core.BeamBasedBuilder),
    }
    return [each for each, needed in needs.items() if needed and not importlib.util.find_spec(each)]


@contextlib.contextmanager
def _explain_failure(reference: DatasetReference) -> Iterator[None]:
    """Says how to get a dataset where its code or TFDS raises anything."""
    try:
        yield
    except Exception as error:
        dataset, directory = reference.dataset, reference.directory
        raise ValueError(
            f"{reference.field} is not prepared in {_resolve_dataset_dir(directory)}, and TFDS "
            f"cannot prepare it here ({_summarize_error(error)}). Correct the name if it is wrong; "
            f"or {describe_dataset_download(dataset, directory)}; or set "
            f"{reference.directory_field} to a directory that holds it."
        ) from error


def _summarize_error(error: Exception) -> str:
    """Returns the kind of an error, the first line of what it says and the name it suggests."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    suggested = [line for line in lines[1:] if line.startswith("Did you mean")]
    return ": ".join([type(error).__name__, *lines[:1], *suggested]).rstrip(".:")


@contextlib.contextmanager
def _silence_tfds(progress: bool = False) -> Iterator[None]:
    """Keeps TFDS from printing and logging; with progress it may show on stderr how far it is."""
    logged = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    errors = sys.stderr if progress else io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
            yield
    finally:
        logging.disable(logged)
