"""Every field of a run: declared once, with type, default and unit.

A file in `configs/` makes an `ml_collections.ConfigDict`, starting from `default()`. The
command line may then override its fields, and `resolve` turns it into the frozen
dataclasses below, once. From there on nothing writes to a config.

Checks that need no other part of the config stand in the dataclass of the field, the rest
in `Config`. Each raises a ValueError that names the field and what to set instead.
"""

import dataclasses
import difflib
import hashlib
import json
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

SPECIALS = ("<pad>", "<unk>", "<D>")  # ids 0, 1 and 2 of every tokenizer that we train


def _require_one_of(field: str, value: Any, allowed: Sequence[Any]) -> None:
    if value not in allowed:
        listed = ", ".join(repr(choice) for choice in allowed)
        raise ValueError(f"config.{field}={value!r} is not one of {listed}.")


def _require_at_least(field: str, value: float, minimum: float) -> None:
    if not value >= minimum:  # also catches nan
        raise ValueError(f"config.{field}={value} must be {minimum} or more.")


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """The SentencePiece model of one source."""

    vocab_size: int = 16384  # pieces, with the 3 specials and 256 byte pieces
    model_type: str = "bpe"  # bpe | unigram
    path: str = ""  # an existing .model; then the fields above are not used


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """A corpus of one tokenizer. Every kind declares all fields and reads its own."""

    kind: str = "docstrings"  # docstrings | files
    # files: glob patterns, several separated by commas. Without validation or test,
    # 1 % of the documents of train each, chosen by a hash of the document's id.
    train: str = ""
    validation: str = ""
    test: str = ""
    field: str = "text"  # files: the field of a JSON line that holds the text
    id_field: str = "id"  # files: the field with the document's id, if lines have one
    packages: tuple[str, ...] = ()  # docstrings: top-level packages; () is the fixed list
    tokenizer: TokenizerConfig = TokenizerConfig()


@dataclasses.dataclass(frozen=True)
class LanguageConfig:
    """What the model sees as one language: a source of its own, or a clone."""

    source: str = ""  # a name in config.sources; or
    clone_of: str = ""  # the tag of the language whose text it shares under other ids
    anchors: float = 0.0  # clones: the share of ids that stay those of the parent, 0 to 1


@dataclasses.dataclass(frozen=True)
class VocabularyConfig:
    """How the ids of all languages lie in one vocabulary."""

    layout: str = "disjoint"
    # Whether a partial clone's separator and unknown piece are among the anchors:
    # as the reference's shuffle has it, never, or always.
    anchor_specials: str = "never"

    def __post_init__(self) -> None:
        _require_one_of("vocabulary.layout", self.layout, ("disjoint",))
        _require_one_of(
            "vocabulary.anchor_specials", self.anchor_specials, ("reference", "never", "always")
        )


def _check_ratio(field: str, ratio: Mapping[str, int]) -> None:
    for tag, count in ratio.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise ValueError(
                f"config.{field}.{tag}={count} must be a whole number of sequences, 0 or more. "
                "Write 95% to 5% as 19 and 1, or as 95 and 5."
            )


@dataclasses.dataclass(frozen=True)
class MixtureConfig:
    """What every block of the training stream is made of."""

    ratio: Mapping[str, int] = dataclasses.field(default_factory=dict)  # tag -> sequences
    # (first step, ratio) of each stage, the first at step 0; () is `ratio` throughout.
    stages: tuple[tuple[int, Mapping[str, int]], ...] = ()
    sampler: str = "exact"  # exact | bernoulli (an independent draw per sequence)
    order: str = "shuffled"
    seed: int = -1  # of the order of languages and windows; -1 takes config.seed
    reuse: str = "same_language"  # same_language | any | forbid, once a source is used up
    on_exhaustion: str = "repeat"  # repeat | stop | error

    def __post_init__(self) -> None:
        _require_one_of("mixture.sampler", self.sampler, ("exact", "bernoulli"))
        _require_one_of("mixture.order", self.order, ("shuffled",))
        _require_one_of("mixture.reuse", self.reuse, ("same_language", "any", "forbid"))
        _require_one_of("mixture.on_exhaustion", self.on_exhaustion, ("repeat", "stop", "error"))
        _require_at_least("mixture.seed", self.seed, -1)
        if self.reuse == "forbid" and self.on_exhaustion == "repeat":
            raise ValueError(
                "config.mixture.reuse='forbid' contradicts config.mixture.on_exhaustion="
                "'repeat'. Set config.mixture.on_exhaustion to 'stop' or 'error'."
            )
        _check_ratio("mixture.ratio", self.ratio)
        for index, (first_step, ratio) in enumerate(self.stages):
            _check_ratio(f"mixture.stages[{index}]", ratio)
            before = self.stages[index - 1][0] if index else -1
            if (index == 0 and first_step != 0) or first_step <= before:
                raise ValueError(
                    f"config.mixture.stages[{index}] begins at step {first_step}. The first "
                    "stage must begin at step 0, and each later one after the one before it."
                )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The transformer. See the key of dimensions in `imbalance_jax/__init__.py`."""

    L: int = 512
    D: int = 768
    H: int = 12
    K: int = 64
    F: int = 3072
    N: int = 12
    dtype: str = "float32"  # of matrix products: float32 | bfloat16
    param_dtype: str = "float32"
    attention: str = "auto"  # auto | einsum | blockwise | fused
    remat: str = "none"  # none | dots | full: what the backward pass computes again
    scan_layers: bool = True  # one compiled block run N times, or N blocks written out
    tied: bool = False  # the head is the input embedding
    loss_chunk: int = 0  # positions of a sequence whose logits exist at once; 0 chooses

    def __post_init__(self) -> None:
        for name in "LDHKFN":
            _require_at_least(f"model.{name}", getattr(self, name), 1)
        _require_one_of("model.dtype", self.dtype, ("float32", "bfloat16"))
        _require_one_of("model.param_dtype", self.param_dtype, ("float32",))
        _require_one_of("model.attention", self.attention, ("auto", "einsum", "blockwise", "fused"))
        _require_one_of("model.remat", self.remat, ("none", "dots", "full"))
        if self.loss_chunk and (self.loss_chunk < 0 or self.L % self.loss_chunk):
            raise ValueError(
                f"config.model.loss_chunk={self.loss_chunk} does not divide "
                f"config.model.L={self.L}. Set it to a divisor, or to 0."
            )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Adam and the course of its learning rate."""

    name: str = "adam"
    peak_lr: float = 6e-4
    final_lr: float = 6e-6
    schedule: str = "cosine"  # cosine | warmup_stable_decay | constant
    warmup: float = 0.02  # below 1 a fraction of all updates, from 1 on a number of updates
    decay: float = 0.2  # warmup_stable_decay: the fraction of updates that decay
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0  # decoupled, on matrices and embeddings only
    clip_norm: float = 0.0  # of the gradient of all parameters together; 0 is off
    accumulate: int = 1  # micro-batches whose gradients are averaged into one update

    def __post_init__(self) -> None:
        _require_one_of("optimizer.name", self.name, ("adam",))
        _require_one_of(
            "optimizer.schedule", self.schedule, ("cosine", "warmup_stable_decay", "constant")
        )
        for name in ("peak_lr", "final_lr", "warmup", "weight_decay", "clip_norm", "eps"):
            _require_at_least(f"optimizer.{name}", getattr(self, name), 0)
        _require_at_least("optimizer.accumulate", self.accumulate, 1)
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"config.optimizer.{name}={getattr(self, name)} must lie in [0, 1)."
                )
        if not 0 < self.decay <= 1:
            raise ValueError(f"config.optimizer.decay={self.decay} must lie in (0, 1].")


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Held-out measurements per language, which never follow the training ratio."""

    every: int = 250  # steps; 0 only at the end
    max_windows: int = 256  # windows of the validation split per language; 0 takes all
    stride: int = 0  # positions scored per window of the final test; 0 is L/4

    def __post_init__(self) -> None:
        for name in ("every", "max_windows", "stride"):
            _require_at_least(f"evaluation.{name}", getattr(self, name), 0)


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    every: int = 500  # steps; 0 only at the end
    keep: int = 2  # newest checkpoints kept

    def __post_init__(self) -> None:
        _require_at_least("checkpoint.every", self.every, 0)
        _require_at_least("checkpoint.keep", self.keep, 1)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; -1 takes what the others leave."""

    data: int = -1  # whole copies of the model, each with a part of the batch
    fsdp: int = 1  # parts of the batch that share one copy of the parameters
    tensor: int = 1  # parts of every matrix product

    def __post_init__(self) -> None:
        sizes = dataclasses.asdict(self)
        for name, size in sizes.items():
            if size != -1 and size < 1:
                raise ValueError(f"config.mesh.{name}={size} must be 1 or more, or -1.")
        if list(sizes.values()).count(-1) > 1:
            raise ValueError("config.mesh has more than one -1. Give all sizes but one.")


@dataclasses.dataclass(frozen=True)
class Config:
    """A run, whole."""

    seed: int = 0
    steps: int = 1000  # optimizer updates
    batch_size: int = 32  # sequences per update, over all hosts and micro-batches
    data_dir: str = "data"  # where prepared text is kept and looked for
    init_from: str = ""  # RUN or RUN@STEP: begin with the parameters of another run
    log_every: int = 10  # steps that a line of training metrics covers
    mirrors: tuple[str, ...] = ()  # where metrics go as well: tensorboard, wandb
    sources: Mapping[str, SourceConfig] = dataclasses.field(default_factory=dict)
    languages: Mapping[str, LanguageConfig] = dataclasses.field(default_factory=dict)
    vocabulary: VocabularyConfig = VocabularyConfig()
    mixture: MixtureConfig = MixtureConfig()
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self) -> None:
        _require_at_least("seed", self.seed, 0)
        for name in ("steps", "batch_size", "log_every"):
            _require_at_least(name, getattr(self, name), 1)
        for mirror in self.mirrors:
            _require_one_of("mirrors", mirror, ("tensorboard", "wandb"))
        if self.batch_size % self.optimizer.accumulate:
            raise ValueError(
                f"config.batch_size={self.batch_size} cannot be cut into "
                f"config.optimizer.accumulate={self.optimizer.accumulate} micro-batches. "
                "Set one to a multiple of the other."
            )
        for name, source in self.sources.items():
            _check_source(name, source)
        _check_languages(self.languages, self.sources)
        _check_mixture(self.mixture, self.languages, self.steps)

    @property
    def tags(self) -> tuple[str, ...]:
        """The languages in their one order, whatever order a config declared them in.

        Sorted with numbers as numbers, so that en2 comes before en10.
        """
        # en2 and en02 have equal numbers; the tags themselves then decide.
        return tuple(sorted(self.languages, key=lambda tag: (_natural(tag), tag)))

    @property
    def data_seed(self) -> int:
        """The seed of the order of languages and windows."""
        return self.seed if self.mixture.seed == -1 else self.mixture.seed

    @property
    def eval_stride(self) -> int:
        """Positions scored per window of the final test."""
        stride = self.evaluation.stride or max(1, self.model.L // 4)
        return min(stride, self.model.L)


def _natural(tag: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", tag)]


def _check_source(name: str, source: SourceConfig) -> None:
    field = f"sources.{name}"
    if not re.fullmatch(r"[a-z0-9_]+", name):
        raise ValueError(f"config.{field}: a name is made of a-z, 0-9 and _ only.")
    _require_one_of(f"{field}.kind", source.kind, ("docstrings", "files"))
    for split in ("train", "validation", "test"):
        if source.kind != "files" and getattr(source, split):
            raise ValueError(
                f"config.{field}.{split} names a file, but config.{field}.kind="
                f"{source.kind!r} reads none. Set config.{field}.kind=files."
            )
    if source.kind == "files" and not source.train:
        raise ValueError(
            f"config.{field}.kind='files' needs config.{field}.train: a .txt, .jsonl or "
            ".jsonl.gz file, or a pattern such as 'text/*.txt'."
        )
    _require_one_of(
        f"{field}.tokenizer.model_type", source.tokenizer.model_type, ("bpe", "unigram")
    )
    # The specials and byte pieces take the first 259 ids.
    _require_at_least(f"{field}.tokenizer.vocab_size", source.tokenizer.vocab_size, 260)


def _check_languages(
    languages: Mapping[str, LanguageConfig], sources: Mapping[str, SourceConfig]
) -> None:
    if not languages:
        raise ValueError("config.languages is empty. Declare one, such as en with source='en'.")
    for tag, language in languages.items():
        field = f"languages.{tag}"
        if not re.fullmatch(r"[a-z0-9_]+", tag):
            raise ValueError(f"config.{field}: a tag is made of a-z, 0-9 and _ only.")
        if bool(language.source) == bool(language.clone_of):
            raise ValueError(
                f"config.{field} needs one of source (its own text) and clone_of (another "
                f"language's text), and has source={language.source!r}, "
                f"clone_of={language.clone_of!r}."
            )
        if language.source and language.source not in sources:
            raise ValueError(
                f"config.{field}.source={language.source!r} is not declared. "
                f"config.sources has: {', '.join(sources) or 'nothing'}."
            )
        if language.clone_of:
            parent = languages.get(language.clone_of)
            if parent is None or not parent.source:
                originals = [t for t, other in languages.items() if other.source]
                raise ValueError(
                    f"config.{field}.clone_of={language.clone_of!r} is not a language with a "
                    f"source of its own. Those are: {', '.join(originals) or 'none'}."
                )
        if not 0 <= language.anchors <= 1:
            raise ValueError(f"config.{field}.anchors={language.anchors} must lie in 0 to 1.")
        if language.anchors and not language.clone_of:
            raise ValueError(
                f"config.{field}.anchors={language.anchors} applies to clones only. "
                f"Set config.{field}.clone_of, or anchors=0."
            )


def _check_mixture(
    mixture: MixtureConfig, languages: Mapping[str, LanguageConfig], steps: int
) -> None:
    ratios = {"mixture.ratio": mixture.ratio}
    ratios |= {f"mixture.stages[{i}]": ratio for i, (_, ratio) in enumerate(mixture.stages)}
    for field, ratio in ratios.items():
        for tag in ratio:
            if tag not in languages:
                raise ValueError(
                    f"config.{field}.{tag} is the ratio of a language that is not declared. "
                    f"config.languages has: {', '.join(languages)}."
                )
        for tag in languages:
            if tag not in ratio:
                raise ValueError(
                    f"config.{field} says nothing of the language {tag}. "
                    f"Set config.{field}.{tag}; 0 trains without it and still evaluates it."
                )
        if not any(ratio.values()):
            raise ValueError(f"config.{field} is zero for every language. Give one of them 1.")
    if mixture.stages and mixture.stages[-1][0] >= steps:
        raise ValueError(
            f"config.mixture.stages begins its last stage at step {mixture.stages[-1][0]}, but "
            f"the run has config.steps={steps}. Drop the stage, or set more steps."
        )


# What may differ when a run goes on in its directory: where, how often and with which
# devices, but not what is trained on what.
_NOT_IDENTITY = ("data_dir", "log_every", "mirrors", "evaluation", "checkpoint", "mesh")


def identity(config: Config) -> dict[str, Any]:
    """Returns what makes a run the same run, as nested plain values."""
    plain = to_dict(config)
    return {name: plain[name] for name in plain if name not in _NOT_IDENTITY}


def digest(value: Any) -> str:
    """Returns 16 hex digits that stand for a nest of plain values."""
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(ours: Any, theirs: Any, field: str = "config") -> list[tuple[str, Any, Any]]:
    """Returns (field, ours, theirs) wherever two nests of plain values differ."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        found = []
        for name in [*ours, *(name for name in theirs if name not in ours)]:
            here = f"{field}.{name}"
            found += differences(ours.get(name, "absent"), theirs.get(name, "absent"), here)
        return found
    same = json.dumps(ours, sort_keys=True) == json.dumps(theirs, sort_keys=True)
    return [] if same else [(field, ours, theirs)]


def to_dict(config: Any) -> Any:
    """Returns a config as nested dicts, lists and plain values, ready for JSON."""
    if dataclasses.is_dataclass(config):
        return {
            field.name: to_dict(getattr(config, field.name)) for field in dataclasses.fields(config)
        }
    if isinstance(config, Mapping):
        return {name: to_dict(value) for name, value in config.items()}
    if isinstance(config, (tuple, list)):
        return [to_dict(value) for value in config]
    return config


def declared(kind: type, **changes: Any) -> ml_collections.ConfigDict:
    """Returns a dataclass of this file as a ConfigDict of its defaults, with changes.

    A config file adds a source with `config.sources.en = declared(SourceConfig)`.
    """
    result = ml_collections.ConfigDict()
    for field in dataclasses.fields(kind):
        # Groups of named things, such as sources, begin empty.
        value = {} if field.default is dataclasses.MISSING else field.default
        nested = dataclasses.is_dataclass(value)
        result[field.name] = declared(type(value)) if nested else value
    result.update(changes)
    return result


def default() -> ml_collections.ConfigDict:
    """Returns every field of a run at its default, with no source and no language."""
    return declared(Config)


def resolve(values: ml_collections.ConfigDict | Mapping[str, Any]) -> Config:
    """Returns the typed config of a ConfigDict, or of a config.json read back.

    Raises:
      ValueError: a field is unknown, of the wrong type, or contradicts another.
    """
    if isinstance(values, ml_collections.ConfigDict):
        values = values.to_dict()
    return _typed(Config, values, "config")


# The sequences of one language, in the ratio or in that of a stage.
_RATIO_FIELD = r"config\.mixture\.(ratio|stages\[\d+\]\[1\])\."


def _typed(kind: Any, value: Any, field: str) -> Any:
    """Returns a plain value as the type that its field declares."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise ValueError(f"{field}={value!r} must be a group of fields.")
        types_ = typing.get_type_hints(kind)
        for name in value:
            if name not in types_:
                raise ValueError(unknown_field(field, name, types_))
        return kind(**{n: _typed(types_[n], v, f"{field}.{n}") for n, v in value.items()})
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise ValueError(f"{field}={value!r} must be a group of fields.")
        return types.MappingProxyType(
            {name: _typed(args[1], item, f"{field}.{name}") for name, item in value.items()}
        )
    if origin is tuple:
        if not isinstance(value, (tuple, list)):
            raise ValueError(f"{field}={value!r} must be a tuple.")
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(kinds) != len(value):
            raise ValueError(f"{field}={value!r} must have {len(kinds)} parts.")
        pairs = enumerate(zip(kinds, value, strict=True))
        return tuple(_typed(k, v, f"{field}[{i}]") for i, (k, v) in pairs)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is int and isinstance(value, float) and re.match(_RATIO_FIELD, field):
        # 90.0 is a whole number; others are left to _check_ratio, which says what to write.
        return int(value) if value.is_integer() else value
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{field}={value!r} must be of type {kind.__name__}.")
    return value


def unknown_field(group: str, name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    """Returns the message for a field that a group of fields does not have."""
    close = difflib.get_close_matches(name, known, n=1)
    fix = f"Did you mean {group}.{close[0]}?" if close else f"It has: {', '.join(known)}."
    return f"{group} has no field {name!r}. {fix}"


def parse_arg(arg: str, **defaults: str) -> types.SimpleNamespace:
    """Returns the choices behind the colon of `--config=FILE:scale=small,ratio=95:5`.

    Raises:
      ValueError: a choice that the file does not offer, or one without a value.
    """
    choices = dict(defaults)
    for part in filter(None, arg.split(",")):
        name, equals, value = part.partition("=")
        if name not in defaults:
            raise ValueError(
                f"--config=...:{arg}: this file has no choice {name!r}. "
                f"It offers: {', '.join(f'{n}={v}' for n, v in defaults.items())}."
            )
        if not equals or not value:
            raise ValueError(f"--config=...:{arg}: write {name}=VALUE.")
        choices[name] = value
    return types.SimpleNamespace(**choices)


def parse_ratio(text: str) -> list[int]:
    """Returns the counts of a ratio such as `90:10`.

    Raises:
      ValueError: a part is not a whole number, or there are fewer than two.
    """
    parts = text.split(":")
    if len(parts) < 2 or not all(part.isdecimal() for part in parts):
        raise ValueError(
            f"ratio={text}: write whole numbers of sequences per language with colons "
            "between them, such as 90:10; for 92.5% to 7.5% write 37:3."
        )
    return [int(part) for part in parts]


def stages(mixture: MixtureConfig) -> tuple[tuple[int, Mapping[str, int]], ...]:
    """Returns (first step, ratio) of every stage; one where the config has none."""
    return mixture.stages or ((0, mixture.ratio),)


def reduced(ratio: Mapping[str, int]) -> dict[str, int]:
    """Returns a ratio divided by its greatest common divisor: the counts of one block."""
    divisor = math.gcd(*ratio.values())
    return {tag: count // divisor for tag, count in ratio.items()}


# Sizes of a whole run: model, length and text. mini, small and medium are those of the
# reference study, whose optimizer warms up for 200 updates whatever the length of the run.
_REFERENCE: dict[str, Any] = {
    "steps": 18265,
    "batch_size": 128,
    "log_every": 20,
    "optimizer.warmup": 200.0,
    "evaluation.every": 1000,
    "checkpoint.every": 1000,
    "tokenizer.vocab_size": 16384,
    "model.L": 512,
}
SCALES: Mapping[str, Mapping[str, Any]] = {
    # Minutes on two CPU cores. Few blocks are faster written out than scanned there.
    "demo": {
        "steps": 1500,
        "batch_size": 32,
        "optimizer.peak_lr": 3e-3,
        "optimizer.final_lr": 3e-5,
        "evaluation.every": 100,
        "evaluation.max_windows": 128,
        "checkpoint.every": 250,
        "tokenizer.vocab_size": 1024,
        **{"model.L": 64, "model.D": 64, "model.H": 2, "model.K": 32, "model.F": 256},
        "model.N": 2,
        "model.scan_layers": False,
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
        raise ValueError(f"scale={scale}: there is no such scale. Choose {', '.join(SCALES)}.")
    for name, value in SCALES[scale].items():
        if name == "tokenizer.vocab_size":
            for source in config.sources.values():
                source.tokenizer.vocab_size = value
        else:
            group, _, field = name.rpartition(".")
            target = config[group] if group else config
            target[field] = value
    return config


def cloned(*, scale: str, ratio: str) -> ml_collections.ConfigDict:
    """Returns a run on English and clones of it, en1, en2, ..., one for each part of a ratio."""
    config = default()
    config.sources.en = declared(SourceConfig)
    for index, count in enumerate(parse_ratio(ratio)):
        tag = f"en{index + 1}"
        origin = {"clone_of": "en1"} if index else {"source": "en"}
        config.languages[tag] = declared(LanguageConfig, **origin)
        config.mixture.ratio[tag] = count
    return scaled(config, scale)
