"""Finds prepared text in data_dir where the text that it was made of is not on this machine.

Preparation writes `made_of` beside a text: what the config states of the text and of its tokenizer,
and what stands for the text's bytes. Where the bytes are here they decide; where they are not, the
statement does, or the fingerprint that a run or its study has recorded. So text that is prepared on
one machine is opened on another that has data_dir alone.

Paths are part of a statement as they are written in the config, and mean nothing else here.
"""

import contextlib
import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from imbalance_jax import config as config_lib
from imbalance_jax.config import Config, SourceConfig, SyntheticConfig, TokenizerConfig
from imbalance_jax.data import sources
from imbalance_jax.data.text import reading as text
from imbalance_jax.data.text import synthetic
from imbalance_jax.data.tokenizer import check_tokenizer_path, read_tokenizer_file
from imbalance_jax.runs import damaged_files, storage

# What a source's text is, and what its tokenizer is made with, is always written out. Other fields
# are left out at their defaults, so that those of later versions do not change a statement.
_STATED: Mapping[type, tuple[str, ...]] = {
    SourceConfig: ("kind",),
    TokenizerConfig: ("vocab_size", "model_type"),
}
_LEFT_OUT: Mapping[type, tuple[str, ...]] = {
    kind: tuple(
        field.name for field in dataclasses.fields(kind) if field.name not in _STATED.get(kind, ())
    )
    for kind in (SourceConfig, SyntheticConfig, TokenizerConfig)
}


# Of source.json, or of a parallel set's about.json.
_SHAPE = {"fingerprint?": str, "made_of?": {"text?": str, "stated?": list}}


@dataclasses.dataclass(frozen=True)
class PreparedDirectory:
    """A directory of prepared text, not opened yet."""

    path: epath.Path  # where its files lie
    about: Mapping[str, Any]  # its source.json, or a parallel set's about.json

    @property
    def fingerprint(self) -> str:
        return self.about.get("fingerprint", "")

    @property
    def made_of(self) -> Mapping[str, Any]:
        """What it was made of; {} if it is from before that was written."""
        return self.about.get("made_of", {})

    @property
    def stated(self) -> Sequence[Mapping[str, Any]]:
        """What configs said that it is, of which there may be several for the same text."""
        return self.made_of.get("stated", ())


@dataclasses.dataclass(frozen=True)
class SourceCriteria:
    """What a prepared source has to match; "" matches anything."""

    stated: Mapping[str, Any]
    text: str = ""  # the fingerprint of its text, where that is here
    tokenizer: str = ""  # the sha256 of the file that its tokenizer is, where that is here
    fingerprint: str = ""  # what a run or a study recorded, which then decides alone

    def fits(self, prepared: PreparedDirectory) -> bool:
        if self.fingerprint:
            return prepared.fingerprint == self.fingerprint
        # What is here may have been prepared under another path: its bytes say what it is.
        if self.text and prepared.made_of.get("text") != self.text:
            return False
        if self.tokenizer and prepared.about.get("tokenizer") != self.tokenizer:
            return False
        unseen = {
            part: stated
            for part, stated in self.stated.items()
            if not (self.text if part == "text" else self.tokenizer)
        }
        return any(unseen.items() <= each.items() for each in prepared.stated)


# Statements


def make_source_statement(
    source: SourceConfig, joint: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Returns what a config says that a source is, as plain values.

    Where all sources of the run share a tokenizer, `joint` is of `make_joint_statement`.
    """
    return {
        "text": _make_text_statement(source),
        "tokenizer": joint or _make_tokenizer_statement(source.tokenizer),
    }


def make_joint_statement(config: Config) -> dict[str, Any] | None:
    """Returns what a config says of the tokenizer of its sources; None if each has its own."""
    if config.vocabulary.layout != "joint":
        return None
    stated = _make_tokenizer_statement(config.vocabulary.tokenizer)
    parts = resolve_joint_parts(config)
    if parts:
        stated["of"] = {
            name: [part, _make_text_statement(config.sources[name])]
            for name, part in parts.items()
            if part
        }
    return stated


def resolve_joint_parts(config: Config) -> dict[str, int]:
    """Returns the part of each source in the text of a joint tokenizer; {} if it is not trained.

    Sources without a language count too, so that a language alone has the tokenizer of the mixture
    that it is compared with.
    """
    vocabulary = config.vocabulary
    if not vocabulary.tokenizer.is_trained:
        return {}
    mix = vocabulary.mix
    return {name: mix.get(name, 0) if mix else 1 for name in sorted(config.sources)}


def _make_tokenizer_statement(tokenizer: TokenizerConfig) -> dict[str, Any]:
    if tokenizer.path:
        return {"path": tokenizer.path}
    if not tokenizer.is_trained:
        return {"model_type": tokenizer.model_type}
    return config_lib.to_dict(tokenizer, leave_out=_LEFT_OUT)


def _make_text_statement(source: SourceConfig) -> dict[str, Any]:
    stated = config_lib.to_dict(source, leave_out=_LEFT_OUT)
    stated.pop("dataset_dir", None)  # says where a dataset lies, not which it is
    stated.pop("tokenizer", None)
    return stated


def describe_source_origin(
    source: SourceConfig, text_fingerprint: str, joint: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Returns `made_of`, to be written beside what is prepared of a source."""
    return {"text": text_fingerprint, "stated": [make_source_statement(source, joint)]}


def add_statement(path: epath.Path, marker: str, made_of: Mapping[str, Any]) -> None:
    """Writes beside prepared text what another config says that it is.

    The file `marker` describes the directory. `made_of` has the single statement of that config.
    """
    directory = storage.find_complete_directory(path, marker)
    # Where nothing can be written, or read, nothing is lost for a run that has the text.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        assert directory is not None, f"{path} is prepared"
        about = damaged_files.read_json(directory / marker, "")
        stated = about.get("made_of", {}).get("stated", [])
        if made_of["stated"][0] not in stated:
            about["made_of"] = {**made_of, "stated": [*stated, *made_of["stated"]]}
            content = damaged_files.format_checked_json(about)
            storage.write_file_atomically(directory / marker, content.encode())


# Looking for one


def list_prepared_directories(
    data_dir: epath.PathLike, prefix: str, marker: str
) -> list[PreparedDirectory]:
    """Returns the whole directories `<prefix>-*` of data_dir, in the order of their names.

    A directory is whole when it has the file `marker`, which describes it.
    """
    directories = []
    for directory in sorted(storage.parse_path(data_dir).glob(f"{prefix}-*")):
        path = storage.find_complete_directory(directory, marker)
        # One that is damaged is named where it would have been opened.
        with contextlib.suppress(FileNotFoundError, ValueError):
            if path is not None:
                about = damaged_files.read_json(path / marker, "", _SHAPE)
                directories.append(PreparedDirectory(path, about))
    return directories


def _describe_damaged_directories(name: str, data_dir: str) -> str:
    """Returns a sentence on the directories `<name>-*` of data_dir that cannot be opened."""
    problems = []
    for directory in sorted(storage.parse_path(data_dir).glob(f"{name}-*")):
        marker = "about.json" if name.startswith("parallel-") else sources.MARKER
        path = storage.find_complete_directory(directory, marker) or directory
        try:
            damaged_files.read_json(path / marker, "", _SHAPE)
        except (OSError, ValueError) as error:
            problems.append(str(error).rstrip("."))
    return f" ({'; '.join(problems)}.)" if problems else ""


def is_text_here(name: str, source: SourceConfig) -> bool:
    """Whether this machine has any of the text that a source is made of."""
    return source.kind == "synthetic" or text.is_any_text_here(name, source)


def resolve_tokenizer_path(source: SourceConfig, joint: Mapping[str, Any] | None) -> str:
    """Returns the file that the tokenizer of a source is; "" where it is trained."""
    return joint.get("path", "") if joint else source.tokenizer.path


def is_file_here(path: str) -> bool:
    """Whether a tokenizer's path, if there is one, leads to something."""
    return not path or storage.parse_path(path).exists()


def find_prepared_source(
    name: str,
    source: SourceConfig,
    data_dir: str,
    joint: Mapping[str, Any] | None = None,
    recorded: str = "",
) -> PreparedDirectory | None:
    """Returns the prepared text of a source whose text or tokenizer is not on this machine.

    The embedded text differs between machines, and is always there: it is looked for where
    `recorded` says which one is meant.

    Args:
      joint: of `make_joint_statement`, where all sources share a tokenizer.
      recorded: the fingerprint of the text that a run was begun with, or its study; "" if none.

    Returns:
      None where everything is here, or can be downloaded.

    Raises:
      ValueError: there are several, or there is none and the text cannot be read here.
    """
    if source.kind == "synthetic":
        return None
    field = f"config.sources.{name}"
    path = resolve_tokenizer_path(source, joint)
    text_here = is_text_here(name, source)
    all_here = text_here and is_file_here(path)
    if all_here and not (recorded and source.kind == "docstrings"):
        return None
    criteria = SourceCriteria(make_source_statement(source, joint), fingerprint=recorded)
    if not recorded:
        criteria = make_source_criteria(name, source, data_dir, joint)
    directories = find_matching_directories(name, data_dir, criteria)
    directory = choose_prepared_directory(field, directories, data_dir)
    if directory and all_here:
        same = directory.made_of.get("text") == fingerprint_text(name, source, data_dir)
        return None if same else directory
    if directory or all_here:
        return directory
    if recorded:
        raise ValueError(
            f"{field}: its {'tokenizer' if text_here else 'text'} is not on this "
            f"machine, and {data_dir} has no prepared text of fingerprint {recorded}, which this "
            f"run was begun with. Copy its directory {name}-... from where that was to {data_dir}."
            f"{_describe_damaged_directories(name, data_dir)}"
        )
    try:
        check_source_inputs(name, source)
        check_tokenizer_path("config.vocabulary.tokenizer.path", path)
    except ValueError as error:
        raise ValueError(f"{error} {advise_preparing(field, name, data_dir)}") from error
    return None


def check_source_inputs(name: str, source: SourceConfig) -> None:
    """Raises ValueError for whatever can be seen to be wrong without reading the text."""
    if source.kind != "synthetic":
        text.check_source_text(name, source)
        check_tokenizer_path(f"config.sources.{name}.tokenizer.path", source.tokenizer.path)


def make_source_criteria(
    name: str, source: SourceConfig, data_dir: str, joint: Mapping[str, Any] | None = None
) -> SourceCriteria:
    """Returns all that is known of a source's prepared text before it is found."""
    path = resolve_tokenizer_path(source, joint)
    text_here = is_text_here(name, source)
    return SourceCriteria(
        make_source_statement(source, joint),
        text=fingerprint_text(name, source, data_dir) if text_here else "",
        tokenizer=_hash_file_content(path) if path and is_file_here(path) else "",
    )


def find_matching_directories(
    name: str, data_dir: str, wanted: SourceCriteria
) -> list[PreparedDirectory]:
    """Returns the prepared texts of a source in data_dir that are what is wanted."""
    directories = list_prepared_directories(data_dir, name, sources.MARKER)
    return [directory for directory in directories if wanted.fits(directory)]


def choose_prepared_directory(
    field: str, directories: Sequence[PreparedDirectory], data_dir: str
) -> PreparedDirectory | None:
    """Returns the only one, or None where there is none.

    Raises:
      ValueError: there are several, of which none is recorded.
    """
    if len({each.fingerprint for each in directories}) > 1:
        names = ", ".join(each.path.name for each in directories)
        raise ValueError(
            f"{field} is not on this machine, and {data_dir} has prepared text of "
            f"{len(directories)} versions of it: {names}. Keep the one that is meant there, and "
            "move the others elsewhere."
        )
    return directories[0] if directories else None


def advise_preparing(field: str, name: str, data_dir: str) -> str:
    """Returns what to do where neither a text nor its prepared form, data_dir/name-*, is here."""
    return (
        f"Nor does {data_dir} have {field} prepared. Where the text is, run python -m "
        f"imbalance_jax.data.prepare with the same --config, and copy {name}-* of its data_dir to "
        f"{data_dir}.{_describe_damaged_directories(name, data_dir)}"
    )


def describe_prepared_text(field: str, directory: PreparedDirectory, data_dir: str) -> str:
    """Returns a line that says what is opened in place of a text."""
    return (
        f"{field}: the text is not read here; prepared text {directory.fingerprint} from "
        f"{data_dir} is."
    )


def fingerprint_text(name: str, source: SourceConfig, data_dir: str) -> str:
    """Returns what stands for the text of a source.

    Digests of files are kept beside data_dir, so that files are not read again unchanged.
    """
    if source.kind == "synthetic":
        return synthetic.SyntheticSource(name, source.synthetic).fingerprint
    return text.compute_text_fingerprint(
        name, source, sources.resolve_data_cache_dir(data_dir) / "digests.json"
    )


def _hash_file_content(path: str) -> str:
    return hashlib.sha256(read_tokenizer_file(path)).hexdigest()
