"""What config files are made of: the scales, the kinds of run, and the choices of the colon."""

import types
from collections.abc import Mapping
from typing import Any

import ml_collections

from imbalance_jax.config.nearest import suggest_nearest_name
from imbalance_jax.config.resolve import build_config_dict, declared, default
from imbalance_jax.config.schema import Config, LanguageConfig
from imbalance_jax.config.text_schema import SourceConfig


def parse_arg(arg: str, **defaults: str) -> types.SimpleNamespace:
    """Returns the choices behind the colon of `--config=FILE:scale=small,ratio=95:5`.

    Raises:
      ValueError: the file does not offer a choice, or a choice has no value.
    """
    choices = dict(defaults)
    for part in filter(None, arg.split(",")):
        name, equals, value = part.partition("=")
        if name not in defaults:
            raise ValueError(
                f"--config=...:{arg}: this file has no choice {name!r}. "
                f"It offers: {', '.join(f'{n}={v}' for n, v in defaults.items())}. "
                f"{suggest_nearest_name(name, defaults)}".strip()
            )
        if not equals or not value:
            raise ValueError(f"--config=...:{arg}: write {name}=VALUE.")
        choices[name] = value
    return types.SimpleNamespace(**choices)


def parse_ratio(text: str) -> list[int]:
    """Returns the counts of a ratio such as `90:10`, or `1` for a single language.

    Raises:
      ValueError: a part is not a whole number, all are 0, or a single part is not 1.
    """
    parts = text.split(":")
    # A single 90 is more likely a percentage than a language alone.
    if not all(part.isdecimal() for part in parts) or (len(parts) == 1 and text != "1"):
        raise ValueError(
            f"ratio={text}: write whole numbers of sequences per language with colons "
            "between them, such as 90:10; for 92.5% to 7.5% write 37:3, for one language 1."
        )
    counts = [int(part) for part in parts]
    if not any(counts):
        problem = "config.mixture.ratio is zero for every language. Give one of them 1."
        raise ValueError(f"ratio={text}: {problem}")
    return counts


# Sizes of a whole run: model, length and text. mini, small and medium are those of the
# reference study, whose optimizer warms up for 200 updates whatever the length of the run.
_REFERENCE: dict[str, Any] = {
    "steps": 18265,
    "batch_size": 128,
    "log_every": 20,
    "optimizer.warmup": 200.0,
    "evaluation.every": 1000,
    "evaluation.alignment.every": 1000,
    "checkpoint.every": 1000,
    "tokenizer.vocab_size": 16384,
    "model.L": 512,
}
SCALES: Mapping[str, Mapping[str, Any]] = {
    # Minutes on two CPU cores.
    "demo": {
        "steps": 1500,
        "batch_size": 32,
        "optimizer.peak_lr": 3e-3,
        "optimizer.final_lr": 3e-5,
        "evaluation.every": 100,
        "evaluation.alignment.every": 100,
        "evaluation.max_windows": 128,
        "checkpoint.every": 250,
        "tokenizer.vocab_size": 1024,
        **{"model.L": 64, "model.D": 64, "model.H": 2, "model.K": 32, "model.F": 256},
        "model.N": 2,
    },
    # Studies on a CPU: 8.2 million tokens.
    "pico": {
        "steps": 2000,
        "batch_size": 32,
        "optimizer.peak_lr": 2e-3,
        "optimizer.final_lr": 2e-5,
        "tokenizer.vocab_size": 2048,
        **{"model.L": 128, "model.D": 128, "model.H": 4, "model.K": 32, "model.F": 512},
        "model.N": 4,
        "model.scan_layers": False,
    },
    "mini": {
        **_REFERENCE,
        **{"model.D": 512, "model.H": 8, "model.K": 32, "model.F": 2048, "model.N": 4},
    },
    "small": {
        **_REFERENCE,
        **{"model.D": 768, "model.H": 12, "model.K": 64, "model.F": 3072, "model.N": 12},
    },
    "medium": {
        **_REFERENCE,
        **{"steps": 9132, "batch_size": 256},
        **{"model.D": 1024, "model.H": 16, "model.K": 64, "model.F": 4096, "model.N": 24},
    },
}


def scaled(config: ml_collections.ConfigDict, scale: str) -> ml_collections.ConfigDict:
    """Sets the size of a run, and the vocabulary of each source that it has, in place.

    Raises:
      ValueError: there is no such scale.
    """
    if scale not in SCALES:
        nearest = suggest_nearest_name(scale, SCALES)
        choose = f"Choose {', '.join(SCALES)}."
        raise ValueError(f"scale={scale}: there is no such scale. {nearest or choose}")
    for name, value in SCALES[scale].items():
        if name == "tokenizer.vocab_size":
            for source in config.sources.values():
                source.tokenizer.vocab_size = value
            # About as many ids as the sources' own tokenizers would have together.
            config.vocabulary.tokenizer.vocab_size = value * max(1, len(config.sources))
        else:
            group, _, field = name.rpartition(".")
            target = config[group] if group else config
            target[field] = value
    return config


def cloned(*, scale: str, ratio: str) -> ml_collections.ConfigDict:
    """Returns a run on English and its clones: en1, en2, ..., one for each part of a ratio."""
    config = default()
    config.sources.en = declared(SourceConfig)
    for index, count in enumerate(parse_ratio(ratio)):
        tag = f"en{index + 1}"
        origin = {"clone_of": "en1"} if index else {"source": "en"}
        config.languages[tag] = declared(LanguageConfig, **origin)
        config.mixture.ratio[tag] = count
    return scaled(config, scale)


def spoken(
    sources: Mapping[str, ml_collections.ConfigDict], *, scale: str, ratio: str
) -> ml_collections.ConfigDict:
    """Returns a run on one language for each source, of the same name.

    Raises:
      ValueError: the ratio has not one part for each source.
    """
    parts = parse_ratio(ratio)
    if len(parts) != len(sources):
        count = f"{len(sources)} part" + "s" * (len(sources) > 1)
        raise ValueError(f"ratio={ratio}: write {count}, for {', '.join(sources)}.")
    config = default()
    for (name, source), part in zip(sources.items(), parts, strict=True):
        config.sources[name] = source
        config.languages[name] = declared(LanguageConfig, source=name)
        config.mixture.ratio[name] = part
    return scaled(config, scale)


# A toy language whose grammar a small model finds within minutes on two CPU cores: the choices of
# configs/grammar.py and of the studies of it, each of which may change some.
GRAMMAR: Mapping[str, str] = {
    "ratio": "90:10",
    "world": "0",
    "lemmas": "256",
    "topics": "16",
    "depth": "2",
    "rules": "0",
    "zipf": "0.5",
    "L": "32",
    "D": "64",
    "N": "2",
    "batch": "40",  # a tenth of it is whole, so that a baseline has exactly a mixture's tokens
    "steps": "1500",
    "lr": "0.003",
}


def grammatical(choice: types.SimpleNamespace) -> ml_collections.ConfigDict:
    """Returns a run on a toy language and its clones: one for each part of a ratio.

    Args:
      choice: has a text for each name of GRAMMAR, as `parse_arg` returns it.

    Raises:
      ValueError: a choice is not a number.
    """
    config = default()
    config.sources.toy = declared(SourceConfig, kind="synthetic")
    synthetic = config.sources.toy.synthetic
    for name in ("world", "lemmas", "topics", "depth", "rules"):
        synthetic[name] = _parse_choice(choice, name, int)
    synthetic.zipf = _parse_choice(choice, "zipf", float)
    for index, part in enumerate(parse_ratio(choice.ratio)):
        tag = f"toy{index + 1}"
        origin = {"clone_of": "toy1"} if index else {"source": "toy"}
        config.languages[tag] = declared(LanguageConfig, **origin)
        config.mixture.ratio[tag] = part
    scaled(config, "demo")
    model, optimizer = config.model, config.optimizer
    for name in "LDN":
        model[name] = _parse_choice(choice, name, int)
    model.K = max(1, min(32, model.D))  # a width of 0 is refused with the whole config
    model.H, model.F = max(1, model.D // model.K), 4 * model.D
    config.batch_size = _parse_choice(choice, "batch", int)
    config.steps = _parse_choice(choice, "steps", int)
    optimizer.peak_lr = _parse_choice(choice, "lr", float)
    optimizer.final_lr = optimizer.peak_lr / 100
    evaluation = config.evaluation
    evaluation.every = evaluation.alignment.every = max(1, config.steps // 30)
    # A test of 16,384 ids: the entropy is known, so that no more text is needed to rank losses.
    evaluation.stride = model.L
    evaluation.max_test_windows = max(1, 16_384 // max(1, model.L))
    return config


def _parse_choice(choice: types.SimpleNamespace, name: str, kind: type) -> Any:
    text = getattr(choice, name)
    try:
        return kind(text)
    except ValueError:
        written = "a whole number" if kind is int else "a number"
        raise ValueError(f"{name}={text}: write {written}, such as {GRAMMAR[name]}.") from None


def continued(
    before: Config, init_from: str, language: str, steps: int
) -> ml_collections.ConfigDict:
    """Returns a run that goes on from another run's weights in a single language.

    The optimizer begins anew at a tenth of the rate, the text comes in another order, and all
    languages are evaluated ten times.

    Args:
      before: the other run's config.
      init_from: the other run, RUN or RUN@STEP.
      language: the only one that is trained on.
      steps: updates.

    Raises:
      ValueError: the run has no such language.
    """
    if language not in before.tags:
        problem = f"{language}: {init_from} has no such language." if language else " is missing."
        raise ValueError(f"language={problem} {init_from} has: {', '.join(before.tags)}.")
    config = build_config_dict(before)
    config.init_from, config.steps = init_from, steps
    for name in ("peak_lr", "final_lr"):
        config.optimizer[name] /= 10
    config.mixture.update(
        stages=(), same_total_as=(), temperature=0.0, max_epochs=0.0, seed=before.data_seed + 1
    )
    config.mixture.ratio = {tag: int(tag == language) for tag in before.tags}
    config.evaluation.every = max(1, steps // 10)
    return config
