"""The tokenizer that all sources of a run share in the joint layout."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from etils import epath

from imbalance_jax import config as config_lib
from imbalance_jax.config import Config
from imbalance_jax.data import prepared
from imbalance_jax.data.order import keyed_draws
from imbalance_jax.data.order.corpora import AnySource
from imbalance_jax.data.prepare import tokenizers
from imbalance_jax.data.tokenizer import (
    check_tokenizer_path,
    get_untrained_tokenizer,
    open_tokenizer,
)
from imbalance_jax.runs import damaged_files, storage


@dataclasses.dataclass(frozen=True)
class JointTokenizer:
    """A tokenizer that sources share: what stands for it, and how to get it."""

    key: str
    model: Callable[[], bytes]
    stated: Mapping[str, object]  # what the config says of it; see prepared.make_joint_statement


def make_joint_tokenizer(
    config: Config, names: Sequence[str], directories: Mapping[str, prepared.PreparedDirectory]
) -> JointTokenizer:
    """Returns the tokenizer of all sources, which is trained when it is first needed.

    Args:
      names: of the sources that the run's languages have.
      directories: the prepared texts of sources whose own text is not on this machine.

    Raises:
      ValueError: the tokenizer's path cannot be used, or no source of a language has a part of it.
    """
    tokenizer, mix = config.vocabulary.tokenizer, config.vocabulary.mix
    parts = prepared.resolve_joint_parts(config)
    stated = prepared.make_joint_statement(config) or {}

    def reuse_model(model: bytes) -> JointTokenizer:
        return JointTokenizer(hashlib.sha256(model).hexdigest(), lambda: model, stated)

    if directories.keys() >= set(names):
        path, remedy = directories[names[0]].path, "Copy it back, or delete its directory."
        return reuse_model(damaged_files.read_file(path / "tokenizer.model", remedy))
    check_tokenizer_path("config.vocabulary.tokenizer.path", tokenizer.path)
    untrained = get_untrained_tokenizer(tokenizer)
    if untrained is not None:
        return reuse_model(untrained)
    if not any(parts[name] for name in names):
        raise ValueError(
            f"config.vocabulary.mix={dict(mix)} has no source of a language. Give one of "
            f"{', '.join(names)} a part."
        )
    texts = [
        directories[name].made_of.get("text", "")
        if name in directories
        else prepared.fingerprint_text(name, config.sources[name], config.data_dir)
        for name, part in parts.items()
        if part
    ]
    key = config_lib.hash_plain_values(
        {"tokenizer": config_lib.to_dict(tokenizer), "parts": parts, "texts": texts}
    )
    path = storage.parse_path(config.data_dir) / f"tokenizer-{key}.model"
    return JointTokenizer(key, lambda: _load_or_train_model(path, config, parts), stated)


def _load_or_train_model(path: epath.Path, config: Config, parts: Mapping[str, int]) -> bytes:
    tokenizer = config.vocabulary.tokenizer
    if not path.exists():
        sample = _sample_joint_paragraphs(config, parts)
        print(f"Training the joint tokenizer: {tokenizer.vocab_size} pieces", flush=True)
        trained = tokenizers.train_tokenizer("config.vocabulary.tokenizer", tokenizer, sample)
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.write_file_atomically(path, trained)
    remedy = "Delete it; the next run trains it again."
    model = damaged_files.read_file(path, remedy)
    open_tokenizer(model, path, remedy)
    return model


def _sample_joint_paragraphs(config: Config, parts: Mapping[str, int]) -> list[str]:
    """Returns paragraphs of all sources, whose bytes are in proportion to their parts."""
    total = sum(parts.values())
    samples = {}
    for name, part in parts.items():
        if part:
            read = tokenizers.make_document_reader(name, config.sources[name])
            samples[name] = tokenizers.sample_paragraphs(name, config.sources[name], read)
            if not any(samples[name]):
                raise ValueError(f"config.sources.{name}: no text to train a tokenizer on.")
    sizes = {name: sum(len(p.encode()) for p in sample) for name, sample in samples.items()}
    # As much as the source that is shortest for its part allows.
    whole = min(tokenizers.SAMPLE_BYTES, *(sizes[name] * total / parts[name] for name in samples))
    chosen = []
    for name, paragraphs in samples.items():
        share = whole * parts[name] / total / max(1, sizes[name])
        key = keyed_draws.derive_key("joint tokenizer", name)
        drawn = keyed_draws.draw_bits(key, np.arange(len(paragraphs))).astype(np.float64)
        chosen += [paragraphs[i] for i in np.nonzero(drawn < share * 2.0**64)[0]]
    return chosen


def check_joint_tokenizer(run_sources: Mapping[str, AnySource], data_dir: str) -> None:
    """Raises ValueError if sources of a joint tokenizer were prepared with different ones."""
    models: dict[str, str] = {}
    for name, source in run_sources.items():
        models.setdefault(source.about["tokenizer"], name)
    if len(models) > 1:
        raise ValueError(
            f"config.vocabulary.layout='joint' has one tokenizer for all sources, and "
            f"{' and '.join(models.values())} were prepared with different ones in {data_dir}. "
            "Prepare them anew where their text is, and copy both."
        )
