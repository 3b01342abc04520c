"""Every field of a run: declared once, with type, default and unit.

A file in `configs/` makes an `ml_collections.ConfigDict`, starting from `default()`. The
command line may then override its fields, and `resolve_config` turns it into the frozen
dataclasses below, once. From there on nothing writes to a config.

Checks that need no other part of the config stand in the dataclass of the field, the rest
in `Config`. Each raises a ValueError that names the field and what to set instead.
"""

import dataclasses
import difflib
import fractions
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


def _require_name(field: str, name: str, what: str) -> None:
    if not re.fullmatch(r"[a-z0-9_]+", name):
        raise ValueError(f"config.{field}: a {what} is made of a-z, 0-9 and _ only.")


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """The SentencePiece model of one source."""

    vocab_size: int = 16384  # pieces, with the 3 specials and 256 byte pieces
    model_type: str = "bpe"  # bpe | unigram
    # The share of the text whose characters, the most frequent ones, get pieces of their own,
    # above 0 to 1; others are written as bytes. Where the pieces are too few for 0.9995 it is
    # lowered, which preparation says.
    character_coverage: float = 0.9995
    path: str = ""  # an existing .model; then the fields above are not used


def _check_tokenizer(field: str, tokenizer: TokenizerConfig) -> None:
    _require_one_of(f"{field}.model_type", tokenizer.model_type, ("bpe", "unigram"))
    # The specials and byte pieces take the first 259 ids.
    _require_at_least(f"{field}.vocab_size", tokenizer.vocab_size, 260)
    if not 0 < tokenizer.character_coverage <= 1:
        raise ValueError(
            f"config.{field}.character_coverage={tokenizer.character_coverage} must lie above 0 "
            "and be 1 at most."
        )


@dataclasses.dataclass(frozen=True)
class SyntheticConfig:
    """A toy language. See `imbalance_jax/data/synthetic.py` for what the dials turn."""

    world: int = 0  # the seed of all that is said; languages of one world are translations
    language: int = 0  # which language of the world
    tokens: int = 0  # of training text; 0 is text without end, made where it is needed
    lemmas: int = 1024  # words of the language
    topics: int = 8  # a word's topic decides which words may depend on it; divides lemmas
    zipf: float = 1.0  # exponent of the frequencies of the lemmas of a topic
    depth: int = 3  # levels of a sentence's tree: 2**depth - 1 words
    overlap: float = 0.0  # the share of lemmas whose word is the same in every language
    shared_words: bool = False  # all languages choose from one set of words: false friends
    order: str = "head_first"  # head_first | head_middle | head_last


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """A corpus of one tokenizer. Every kind declares all fields and reads its own."""

    kind: str = "docstrings"  # docstrings | files | tfds | synthetic
    # files: glob patterns, several separated by commas; see data/patterns.py. Without
    # validation or test, 1 % of the documents of train each, chosen by a hash of their ids.
    # tfds: names or slices of splits, such as train[:10%]; where empty, the dataset's own.
    train: str = ""
    validation: str = ""
    test: str = ""
    # files, tfds: the field or feature that holds the text; with dots if it is nested.
    field: str = "text"
    id_field: str = "id"  # files, tfds: the one with the document's id, if there is one
    # own | shared: whether a document's id means it in this source only, or the same document
    # (a translation, say) in all sources whose ids are shared.
    ids: str = "own"
    packages: tuple[str, ...] = ()  # docstrings: top-level packages; () is the fixed list
    dataset: str = ""  # tfds: a dataset's name and config, such as wiki40b/fr
    dataset_dir: str = ""  # tfds: where datasets lie; where empty, TFDS's own choice
    markup: str = "none"  # files, tfds: none | wiki40b, what to take out of the text
    synthetic: SyntheticConfig = SyntheticConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()

    @property
    def names_ids(self) -> bool:
        """Whether the config relies on ids that the documents have."""
        read = self.kind in ("files", "tfds")
        return read and (self.id_field != SourceConfig.id_field or self.ids == "shared")


@dataclasses.dataclass(frozen=True)
class ParallelConfig:
    """Texts that say the same in two languages, to measure alignment on."""

    sources: tuple[str, ...] = ()  # the two sources that the languages belong to
    # .jsonl, also .gz or .zst: a pair a line; or two files of lines; none for synthetic sources.
    path: str = ""
    fields: tuple[str, ...] = ()  # of a line, in the order of `sources`; () is their names


@dataclasses.dataclass(frozen=True)
class LanguageConfig:
    """What the model sees as one language: a source of its own, or a clone."""

    source: str = ""  # a name in config.sources; or
    clone_of: str = ""  # the tag of the language whose text it shares under other ids
    anchors: float = 0.0  # clones: the share of ids that stay those of the parent, 0 to 1
    anchor_measure: str = "ids"  # ids | tokens: what anchors are a share of
    anchor_choice: str = "reference"  # reference | frequent | rare: which ids they are
    # as_written | reversed | permuted | shuffled: see data/views.py.
    words: str = "as_written"
    words_block: int = 8  # words that change places with each other: reversed, permuted
    # clones: own | copied, whether their rows of the tables begin as their parent's
    rows: str = "own"


@dataclasses.dataclass(frozen=True)
class VocabularyConfig:
    """How the ids of all languages lie in one vocabulary."""

    # disjoint: a slot for each language; merged: equal pieces of different sources share
    # an id; joint: all sources have one tokenizer, `tokenizer`, trained on a mix of them.
    layout: str = "disjoint"
    tokenizer: TokenizerConfig = TokenizerConfig()  # joint only
    # joint: source -> parts of the text that the tokenizer is trained on; {} is equal parts.
    mix: Mapping[str, int] = dataclasses.field(default_factory=dict)
    # own | shared | layout: whether languages tell their separators of documents apart.
    separator: str = "layout"
    # Whether a partial clone's separator and unknown piece are among the anchors:
    # as the reference's shuffle has it, never, or always.
    anchor_specials: str = "never"

    def __post_init__(self) -> None:
        _require_one_of("vocabulary.layout", self.layout, ("disjoint", "merged", "joint"))
        _require_one_of("vocabulary.separator", self.separator, ("layout", "own", "shared"))
        _check_tokenizer("vocabulary.tokenizer", self.tokenizer)
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


# Of the exact sampler: twice its square fits into the 64 bits that positions are counted in.
_LARGEST_BLOCK = 2**31 - 1


def _check_block(field: str, ratio: Mapping[str, int]) -> None:
    block = sum(reduce_ratio(ratio).values())
    if block > _LARGEST_BLOCK:
        raise ValueError(
            f"config.{field} makes blocks of {block:,} sequences, and the exact sampler has blocks "
            f"of {_LARGEST_BLOCK:,} at most. Write a ratio with a smaller sum, or set "
            "config.mixture.sampler=bernoulli."
        )


# (first step or fraction of all steps, ratio) of each stage.
Schedule = tuple[tuple[int | float, Mapping[str, int]], ...]


def _check_stage_starts(field: str, schedule: Schedule) -> None:
    fractions_ = [isinstance(first, float) for first, _ in schedule if first]
    if any(fractions_) and not all(fractions_):
        raise ValueError(
            f"config.{field} mixes steps with fractions of all steps. Write all beginnings as "
            "whole numbers, or all of them as fractions."
        )
    for index, (first, ratio) in enumerate(schedule):
        _check_ratio(f"{field}[{index}]", ratio)
        before = schedule[index - 1][0] if index else -1
        if (index == 0 and first != 0) or not first > before:
            raise ValueError(
                f"config.{field}[{index}] begins at step {first}. The first "
                "stage must begin at step 0, and each later one after the one before it."
            )
        if isinstance(first, float) and first >= 1:
            raise ValueError(
                f"config.{field}[{index}] begins at {first} of all steps. Write a fraction "
                "below 1, or a step as a whole number."
            )


@dataclasses.dataclass(frozen=True)
class MixtureConfig:
    """What every block of the training stream is made of."""

    # Above 0, in place of ratio: in proportion to a source's tokens to the power 1/temperature.
    temperature: float = 0.0
    ratio: Mapping[str, int] = dataclasses.field(default_factory=dict)  # tag -> sequences
    # (first step, ratio) of each stage, the first at step 0; () is `ratio` throughout. All
    # firsts are steps, or all are fractions of config.steps: 0.5, rounded down to a step.
    stages: Schedule = ()
    same_total_as: Schedule = ()  # refuse the run unless each language has this one's total
    sampler: str = "exact"  # exact | bernoulli (an independent draw per sequence)
    order: str = "shuffled"  # shuffled | sequential (a queue of documents for each row)
    seed: int = -1  # of the order of languages and windows; -1 takes config.seed
    switch: str = "window"  # window | document: where clones of one text take turns
    content: str = "shared"  # shared | disjoint: a document in several sources goes to one
    text_share: float = 1.0  # of the windows of each source that are trained on, above 0 to 1
    reuse: str = "same_language"  # same_language | any | forbid, once a source is used up
    on_exhaustion: str = "repeat"  # repeat | stop | error

    def __post_init__(self) -> None:
        _require_one_of("mixture.sampler", self.sampler, ("exact", "bernoulli"))
        _require_one_of("mixture.order", self.order, ("shuffled", "sequential"))
        _require_one_of("mixture.switch", self.switch, ("window", "document"))
        _require_one_of("mixture.content", self.content, ("shared", "disjoint"))
        _require_one_of("mixture.reuse", self.reuse, ("same_language", "any", "forbid"))
        _require_one_of("mixture.on_exhaustion", self.on_exhaustion, ("repeat", "stop", "error"))
        _require_at_least("mixture.seed", self.seed, -1)
        if self.reuse == "forbid" and self.on_exhaustion == "repeat":
            raise ValueError(
                "config.mixture.reuse='forbid' contradicts config.mixture.on_exhaustion="
                "'repeat'. Set config.mixture.on_exhaustion to 'stop' or 'error'."
            )
        if not 0 < self.text_share <= 1:
            raise ValueError(
                f"config.mixture.text_share={self.text_share} must lie above 0 and be 1 at most."
            )
        if self.text_share < 1 and self.order == "sequential":
            raise ValueError(
                f"config.mixture.text_share={self.text_share} chooses windows, and "
                "config.mixture.order='sequential' reads queues of documents. Set "
                "config.mixture.order=shuffled."
            )
        _check_ratio("mixture.ratio", self.ratio)
        _require_at_least("mixture.temperature", self.temperature, 0)
        for name in ("stages", "same_total_as"):
            if self.temperature and getattr(self, name):
                raise ValueError(
                    f"config.mixture.temperature={self.temperature} makes the ratio of the whole "
                    f"run from the sizes of the sources, and config.mixture.{name} says another "
                    "one. Set one of the two only."
                )
        _check_stage_starts("mixture.stages", self.stages)
        _check_stage_starts("mixture.same_total_as", self.same_total_as)


REMAT = ("auto", "none", "dots", "full")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The transformer. See the key of dimensions in `imbalance_jax/__init__.py`."""

    L: int = 512
    D: int = 768
    H: int = 12
    K: int = 64
    F: int = 3072
    N: int = 12
    # Of matrix products: auto | float32 | bfloat16. Parameters and their gradients, normalisation,
    # softmax and loss are in fp32 whatever it is; auto is bfloat16 but on a CPU.
    dtype: str = "auto"
    param_dtype: str = "float32"
    # What "auto" stands for on a kind of device is in imbalance_jax/tuning.py.
    attention: str = "auto"  # auto | einsum | blockwise | fused | cudnn | splash
    remat: str = "auto"  # auto | none | dots | full: what the backward pass computes again
    scan_layers: bool = True  # one compiled block run N times, or N blocks written out
    tied: bool = False  # the head is the input embedding
    loss_chunk: int = 0  # positions of a sequence whose logits exist at once; 0 chooses

    def __post_init__(self) -> None:
        for name in "LDHKFN":
            _require_at_least(f"model.{name}", getattr(self, name), 1)
        _require_one_of("model.dtype", self.dtype, ("auto", "float32", "bfloat16"))
        _require_one_of("model.param_dtype", self.param_dtype, ("float32",))
        paths = ("auto", "einsum", "blockwise", "fused", "cudnn", "splash")
        _require_one_of("model.attention", self.attention, paths)
        _require_one_of("model.remat", self.remat, REMAT)
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
class AlignmentConfig:
    """How alike the model treats two languages, measured while it trains."""

    every: int = 250  # steps, or a multiple of them that the budget allows; 0 not at all
    pairs: int = 32  # sequences in two languages that each measurement looks at
    languages: tuple[str, ...] = ()  # whose pairs are measured; () is all of them
    budget: float = 0.02  # the share of the run's time that measuring may take; 1 is no limit

    def __post_init__(self) -> None:
        _require_at_least("evaluation.alignment.every", self.every, 0)
        _require_at_least("evaluation.alignment.pairs", self.pairs, 8)
        if not 0 < self.budget <= 1:
            raise ValueError(
                f"config.evaluation.alignment.budget={self.budget} must lie above 0 and be 1 at "
                "most. Set config.evaluation.alignment.every=0 to measure nothing."
            )


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Held-out measurements per language, which never follow the training ratio."""

    every: int = 250  # steps; 0 only at the end
    max_windows: int = 256  # windows of the validation split per language; 0 takes all
    stride: int = 0  # positions scored per window of the final test; 0 is L/4
    max_test_windows: int = 0  # of the final test, per language; 0 takes all
    alignment: AlignmentConfig = AlignmentConfig()

    def __post_init__(self) -> None:
        for name in ("every", "max_windows", "stride", "max_test_windows"):
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

    # Runs of a pack that train beside each other; a run alone gives these devices to data.
    member: int = 1
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
    # RUN or RUN@STEP: begin with the parameters of another run of these languages and tokenizers
    init_from: str = ""
    log_every: int = 10  # steps that a line of training metrics covers
    mirrors: tuple[str, ...] = ()  # where metrics go as well: tensorboard, wandb
    sources: Mapping[str, SourceConfig] = dataclasses.field(default_factory=dict)
    languages: Mapping[str, LanguageConfig] = dataclasses.field(default_factory=dict)
    vocabulary: VocabularyConfig = VocabularyConfig()
    mixture: MixtureConfig = MixtureConfig()
    parallel: Mapping[str, ParallelConfig] = dataclasses.field(default_factory=dict)
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
        _check_alignment(self.evaluation.alignment, self.languages)
        _check_vocabulary(self.vocabulary, self.sources)
        _check_mixture(self.mixture, self.languages, self.steps)
        for name, parallel in self.parallel.items():
            _check_parallel(name, parallel, self.sources)
        _check_totals(self)

    @property
    def tags(self) -> tuple[str, ...]:
        """The languages in their one order, whatever order a config declared them in.

        Sorted with numbers as numbers, so that en2 comes before en10.
        """
        # en2 and en02 have equal numbers; the tags themselves then decide.
        return tuple(sorted(self.languages, key=lambda tag: (make_natural_sort_key(tag), tag)))

    @property
    def data_seed(self) -> int:
        """The seed of the order of languages and windows."""
        return self.seed if self.mixture.seed == -1 else self.mixture.seed

    @property
    def eval_stride(self) -> int:
        """Positions scored per window of the final test."""
        stride = self.evaluation.stride or max(1, self.model.L // 4)
        return min(stride, self.model.L)


def make_natural_sort_key(tag: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", tag)]


# Fields of a source that no other kind reads. Those that have a message of their own are not here,
# nor are packages: `--config.sources.en.kind=files` may be set for a config file that has some.
_FIELDS_OF_KINDS: Mapping[str, tuple[str, ...]] = {
    "field": ("files", "tfds"),
    "id_field": ("files", "tfds"),
    "dataset_dir": ("tfds",),
}


def _check_source(name: str, source: SourceConfig) -> None:
    field = f"sources.{name}"
    _require_name(field, name, "name")
    _require_one_of(f"{field}.kind", source.kind, ("docstrings", "files", "tfds", "synthetic"))
    _require_one_of(f"{field}.markup", source.markup, ("none", "wiki40b"))
    _require_one_of(f"{field}.ids", source.ids, ("own", "shared"))
    for name_, kinds in _FIELDS_OF_KINDS.items():
        value = getattr(source, name_)
        if source.kind not in kinds and value != getattr(SourceConfig, name_):
            raise ValueError(
                f"config.{field}.{name_}={value!r} is for text of kind {' or '.join(kinds)}, and "
                f"config.{field}.kind={source.kind!r} does not read it. Leave it out, or set "
                f"config.{field}.kind."
            )
    for split in ("train", "validation", "test"):
        if source.kind not in ("files", "tfds") and getattr(source, split):
            raise ValueError(
                f"config.{field}.{split} names a file, but config.{field}.kind="
                f"{source.kind!r} reads none. Set config.{field}.kind=files."
            )
    if source.kind == "files" and not source.train:
        raise ValueError(
            f"config.{field}.kind='files' needs config.{field}.train: a .txt, .jsonl or "
            ".parquet file (.txt and .jsonl also as .gz or .zst), or a pattern such as "
            "'text/*.txt'."
        )
    if source.kind == "tfds" and not source.dataset:
        raise ValueError(
            f"config.{field}.kind='tfds' needs config.{field}.dataset: a TFDS dataset with its "
            "config, such as wiki40b/fr."
        )
    if source.kind != "tfds" and source.dataset:
        raise ValueError(
            f"config.{field}.dataset={source.dataset!r} is a TFDS dataset, but config.{field}."
            f"kind={source.kind!r} reads none. Set config.{field}.kind=tfds, or dataset=''."
        )
    if source.kind not in ("files", "tfds") and source.markup != "none":
        raise ValueError(
            f"config.{field}.markup={source.markup!r} is for text of kind files or tfds, but "
            f"config.{field}.kind={source.kind!r}. Set config.{field}.markup=none."
        )
    _check_synthetic(f"{field}.synthetic", source.synthetic)
    _check_tokenizer(f"{field}.tokenizer", source.tokenizer)


_MOST_LEMMAS = 1 << 18  # their words and tokenizer are made at every start, in some seconds


def _check_synthetic(field: str, synthetic: SyntheticConfig) -> None:
    _require_one_of(f"{field}.order", synthetic.order, ("head_first", "head_middle", "head_last"))
    for name in ("world", "language", "tokens", "zipf"):
        _require_at_least(f"{field}.{name}", getattr(synthetic, name), 0)
    for name in ("lemmas", "topics", "depth"):
        _require_at_least(f"{field}.{name}", getattr(synthetic, name), 1)
    if synthetic.depth > 12:
        raise ValueError(
            f"config.{field}.depth={synthetic.depth} makes sentences of 2**{synthetic.depth} - 1 "
            "words. Set it to 12 or less."
        )
    if synthetic.lemmas > _MOST_LEMMAS:
        raise ValueError(
            f"config.{field}.lemmas={synthetic.lemmas} makes a vocabulary of as many words. Set it "
            f"to {_MOST_LEMMAS} or less."
        )
    if synthetic.lemmas % synthetic.topics:
        raise ValueError(
            f"config.{field}.topics={synthetic.topics} does not divide lemmas={synthetic.lemmas}. "
            "Set lemmas to a multiple of topics."
        )
    if not 0 <= synthetic.overlap <= 1:
        raise ValueError(f"config.{field}.overlap={synthetic.overlap} must lie in 0 to 1.")


def _check_languages(
    languages: Mapping[str, LanguageConfig], sources: Mapping[str, SourceConfig]
) -> None:
    if not languages:
        raise ValueError("config.languages is empty. Declare one, such as en with source='en'.")
    for tag, language in languages.items():
        field = f"languages.{tag}"
        _require_name(field, tag, "tag")
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
        _require_one_of(f"{field}.anchor_measure", language.anchor_measure, ("ids", "tokens"))
        _require_one_of(
            f"{field}.anchor_choice",
            language.anchor_choice,
            ("reference", "frequent", "rare"),
        )
        _require_one_of(
            f"{field}.words", language.words, ("as_written", "reversed", "permuted", "shuffled")
        )
        _require_at_least(f"{field}.words_block", language.words_block, 2)
        _require_one_of(f"{field}.rows", language.rows, ("own", "copied"))
        if language.rows == "copied" and not language.clone_of:
            raise ValueError(
                f"config.{field}.rows='copied' applies to clones only. Set config.{field}."
                "clone_of, or rows='own'."
            )
        origin = sources.get(language.source or languages[language.clone_of].source)
        if (
            language.words != "as_written"
            and origin
            and origin.kind == "synthetic"
            and not origin.synthetic.tokens
        ):
            raise ValueError(
                f"config.{field}.words={language.words!r} needs a text with an end. Set "
                "synthetic.tokens of its source, or synthetic.order for another word order."
            )


def _check_alignment(alignment: AlignmentConfig, languages: Mapping[str, LanguageConfig]) -> None:
    for tag in alignment.languages:
        if tag not in languages:
            raise ValueError(
                f"config.evaluation.alignment.languages has {tag!r}, which the run does not have. "
                f"config.languages has: {', '.join(languages)}."
            )
    if len(set(alignment.languages)) == 1 or len(set(alignment.languages)) < len(
        alignment.languages
    ):
        raise ValueError(
            f"config.evaluation.alignment.languages={alignment.languages!r} must name two or more "
            "different languages, or none for all pairs."
        )


def _check_vocabulary(vocabulary: VocabularyConfig, sources: Mapping[str, SourceConfig]) -> None:
    tokenizer_path = vocabulary.tokenizer.path
    for name, part in vocabulary.mix.items():
        if name not in sources:
            raise ValueError(
                f"config.vocabulary.mix.{name} is not a source. "
                f"config.sources has: {', '.join(sources)}."
            )
        _require_at_least(f"vocabulary.mix.{name}", part, 0)
    if vocabulary.mix and not any(vocabulary.mix.values()):
        raise ValueError("config.vocabulary.mix is zero for every source. Give one of them 1.")
    if vocabulary.layout != "joint":
        for name, value in (("mix", dict(vocabulary.mix)), ("tokenizer.path", tokenizer_path)):
            if value:
                raise ValueError(
                    f"config.vocabulary.{name}={value!r} is for a joint tokenizer, but config."
                    f"vocabulary.layout={vocabulary.layout!r}. Set config.vocabulary.layout=joint, "
                    f"or leave config.vocabulary.{name} empty."
                )
        return
    for name, source in sources.items():
        if source.kind == "synthetic":
            raise ValueError(
                f"config.vocabulary.layout='joint' trains a tokenizer, but config.sources.{name} "
                "is synthetic and made of words. Set config.vocabulary.layout=merged."
            )
        if source.tokenizer.path:
            raise ValueError(
                f"config.sources.{name}.tokenizer.path names a tokenizer of its own, but "
                "config.vocabulary.layout='joint' has one for all sources. Set "
                "config.vocabulary.tokenizer.path instead."
            )


def _check_parallel(
    name: str, parallel: ParallelConfig, sources: Mapping[str, SourceConfig]
) -> None:
    field = f"parallel.{name}"
    _require_name(field, name, "name")
    if len(parallel.sources) != 2 or len(set(parallel.sources)) != 2:
        raise ValueError(
            f"config.{field}.sources={parallel.sources!r} must name two sources, such as "
            "('en', 'fr')."
        )
    for source in parallel.sources:
        if source not in sources:
            raise ValueError(
                f"config.{field}.sources has {source!r}, which is not declared. "
                f"config.sources has: {', '.join(sources)}."
            )
    if parallel.fields and len(parallel.fields) != 2:
        raise ValueError(f"config.{field}.fields={parallel.fields!r} must be two, or ().")
    kinds = [sources[source].kind == "synthetic" for source in parallel.sources]
    if any(kinds):
        first, second = (sources[source].synthetic for source in parallel.sources)
        # What they say is the same where these are; how they say it may differ.
        names = ("world", "lemmas", "topics", "zipf", "depth")
        differ = [n for n in names if getattr(first, n) != getattr(second, n)]
        if not all(kinds) or differ or parallel.path:
            raise ValueError(
                f"config.{field}: synthetic sources are parallel to each other, where "
                f"{', '.join(names)} are equal and path is empty. Set them so for both sources, "
                f"or take config.{field} out."
            )
    elif not parallel.path:
        raise ValueError(
            f"config.{field}.path is empty. Name a .jsonl file with a pair of texts on each line."
        )


def _check_mixture(
    mixture: MixtureConfig, languages: Mapping[str, LanguageConfig], steps: int
) -> None:
    ratios = {} if mixture.temperature else {"mixture.ratio": mixture.ratio}
    for name in ("stages", "same_total_as"):
        schedule = getattr(mixture, name)
        ratios |= {f"mixture.{name}[{i}]": ratio for i, (_, ratio) in enumerate(schedule)}
        if schedule and _resolve_first_step(schedule[-1][0], steps) >= steps:
            raise ValueError(
                f"config.mixture.{name} begins its last stage at step {schedule[-1][0]}, but "
                f"the run has config.steps={steps}. Drop the stage, or set more steps."
            )
        steps_ = [_resolve_first_step(first, steps) for first, _ in schedule]
        if len(set(steps_)) < len(steps_):
            raise ValueError(
                f"config.mixture.{name} has two stages that begin at the same one of "
                f"config.steps={steps}. Use fewer stages, or more steps."
            )
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
        if mixture.sampler == "exact" and not field.startswith("mixture.same_total_as"):
            _check_block(field, ratio)


def _resolve_first_step(first: int | float, steps: int) -> int:
    """Returns the step at which a stage begins, written as a step or as a fraction of all."""
    if isinstance(first, float):
        # So that 0.7 is seven tenths exactly, and 1 / 3 a third.
        return int(fractions.Fraction(first).limit_denominator(1_000_000) * steps)
    return first


def _check_totals(config: "Config") -> None:
    mixture = config.mixture
    if not mixture.same_total_as or mixture.temperature:
        return
    ours, theirs = (
        compute_sequence_totals(config),
        compute_sequence_totals(config, mixture.same_total_as),
    )
    for tag in config.tags:
        # A stage begins with a step, so no schedule can be nearer to another than that.
        if abs(ours[tag] - theirs[tag]) >= config.batch_size:
            raise ValueError(
                f"config.mixture.same_total_as gives {tag} {float(theirs[tag]):,.10g} sequences in "
                f"all, but the run gives it {float(ours[tag]):,.10g}. Change the ratios or the "
                "lengths of config.mixture.stages, or set same_total_as=()."
            )


# What may differ when a run goes on in its directory: where, how often and with which
# devices, but not what is trained on what.
_NOT_IDENTITY = ("data_dir", "log_every", "mirrors", "evaluation", "checkpoint", "mesh", "parallel")
# Fields that earlier versions did not have. At their defaults they are left out, so that the
# hash of a run in a study.json of an earlier version is still its hash.
_NEWER: Mapping[type, tuple[str, ...]] = {TokenizerConfig: ("character_coverage",)}
# Of the model: ways to compute the same function.
_NOT_FUNCTION = ("attention", "remat", "scan_layers", "loss_chunk")


def build_run_identity(config: Config) -> dict[str, Any]:
    """Returns what makes a run the same run, as nested plain values."""
    plain = to_dict(config, leave_out=_NEWER)
    del plain["mixture"]["same_total_as"]  # a check, not what is trained on
    for source in plain["sources"].values():
        del source["ids"]
    # Ids of several sources are compared where documents are parted, and nowhere else. Earlier
    # versions took all for shared, and had no field that said so.
    own = sorted(name for name, source in config.sources.items() if source.ids == "own")
    if config.mixture.content == "disjoint" and own:
        plain["mixture"]["content"] = f"disjoint, with ids=own of {', '.join(own)}"
    for name in _NOT_FUNCTION:
        del plain["model"][name]
    # The same update in another number of parts. Set and not left out: earlier hashes have it.
    plain["optimizer"]["accumulate"] = OptimizerConfig.accumulate
    # Steps, however the config says where a stage begins; a longer run must not move them.
    if config.mixture.stages:
        plain["mixture"]["stages"] = to_dict(list_stages(config))
        if config.mixture.switch == "document" or config.mixture.content == "disjoint":
            # Documents are given out in proportion to these: more steps would do it anew.
            asked = {tag: str(total) for tag, total in compute_sequence_totals(config).items()}
            plain["mixture"]["sequences"] = asked
    if config.mixture.temperature:
        plain["mixture"]["ratio"] = "by temperature"
    return {name: plain[name] for name in plain if name not in _NOT_IDENTITY}


def hash_plain_values(value: Any) -> str:
    """Returns 16 hex digits that stand for a nest of plain values."""
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def find_differences(ours: Any, theirs: Any, field: str = "config") -> list[tuple[str, Any, Any]]:
    """Returns (field, ours, theirs) wherever two nests of plain values differ."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        found = []
        for name in [*ours, *(name for name in theirs if name not in ours)]:
            here = f"{field}.{name}"
            found += find_differences(ours.get(name, "absent"), theirs.get(name, "absent"), here)
        return found
    same = json.dumps(ours, sort_keys=True) == json.dumps(theirs, sort_keys=True)
    return [] if same else [(field, ours, theirs)]


def to_dict(
    config: Any, *, leave_out: Mapping[type, tuple[str, ...]] = types.MappingProxyType({})
) -> Any:
    """Returns a config as nested dicts, lists and plain values, ready for JSON.

    Args:
      config: a dataclass of this file, or a value of a field.
      leave_out: fields of each dataclass that are left out where they have their default.
    """
    if dataclasses.is_dataclass(config):
        optional = leave_out.get(type(config), ())
        return {
            field.name: to_dict(value, leave_out=leave_out)
            for field in dataclasses.fields(config)
            for value in [getattr(config, field.name)]
            if field.name not in optional or value != field.default
        }
    if isinstance(config, Mapping):
        return {name: to_dict(value, leave_out=leave_out) for name, value in config.items()}
    if isinstance(config, (tuple, list)):
        return [to_dict(value, leave_out=leave_out) for value in config]
    return config


def declared(kind: type, /, **changes: Any) -> ml_collections.ConfigDict:
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


def resolve_config(values: ml_collections.ConfigDict | Mapping[str, Any]) -> Config:
    """Returns the typed config of a ConfigDict, or of a config.json read back.

    Raises:
      ValueError: a field is unknown, of the wrong type, or contradicts another.
    """
    return parse_dataclass(Config, values)


def parse_dataclass(
    kind: type, values: ml_collections.ConfigDict | Mapping[str, Any], field: str = "config"
) -> Any:
    """Returns plain values as a dataclass of fields with declared types, as `resolve_config` does.

    Args:
      kind: the dataclass.
      values: of its fields.
      field: what errors call the whole.
    """
    if isinstance(values, ml_collections.ConfigDict):
        values = values.to_dict()
    return _parse_field_value(kind, values, field)


# The sequences of one language, in the ratio or in that of a stage.
_RATIO_FIELD = r"config\.mixture\.(ratio|(stages|same_total_as)\[\d+\]\[1\])\."


def _parse_field_value(kind: Any, value: Any, field: str) -> Any:
    """Returns a plain value as the type that its field declares."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:  # of plain types, such as int | float
        if not isinstance(value, args) or isinstance(value, bool):
            raise ValueError(f"{field}={value!r} must be a number.")
        return value
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise ValueError(f"{field}={value!r} must be a group of fields.")
        types_ = typing.get_type_hints(kind)
        for name in value:
            if name not in types_:
                raise ValueError(describe_unknown_field(field, name, types_))
        for declared_ in dataclasses.fields(kind):
            if declared_.name not in value and _is_required_field(declared_):
                raise ValueError(f"{field}.{declared_.name} is missing, and has no default.")
        return kind(
            **{n: _parse_field_value(types_[n], v, f"{field}.{n}") for n, v in value.items()}
        )
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise ValueError(f"{field}={value!r} must be a group of fields.")
        return types.MappingProxyType(
            {
                name: _parse_field_value(args[1], item, f"{field}.{name}")
                for name, item in value.items()
            }
        )
    if origin is tuple:
        if not isinstance(value, (tuple, list)):
            raise ValueError(f"{field}={value!r} must be a tuple.")
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(kinds) != len(value):
            raise ValueError(f"{field}={value!r} must have {len(kinds)} parts.")
        pairs = enumerate(zip(kinds, value, strict=True))
        return tuple(_parse_field_value(k, v, f"{field}[{i}]") for i, (k, v) in pairs)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is int and isinstance(value, float) and re.match(_RATIO_FIELD, field):
        # 90.0 is a whole number; others are left to _check_ratio, which says what to write.
        return int(value) if value.is_integer() else value
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{field}={value!r} must be of type {kind.__name__}.")
    return value


def _is_required_field(field: dataclasses.Field) -> bool:
    return field.default is field.default_factory is dataclasses.MISSING


def describe_unknown_field(group: str, name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
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
    """Returns the counts of a ratio such as `90:10`, or `1` for a single language.

    Raises:
      ValueError: a part is not a whole number, or a single part is another one than 1.
    """
    parts = text.split(":")
    # A single 90 is more likely a percentage than a language alone.
    if not all(part.isdecimal() for part in parts) or (len(parts) == 1 and text != "1"):
        raise ValueError(
            f"ratio={text}: write whole numbers of sequences per language with colons "
            "between them, such as 90:10; for 92.5% to 7.5% write 37:3, for one language 1."
        )
    return [int(part) for part in parts]


def list_stages(
    config: Config, schedule: Schedule | None = None
) -> tuple[tuple[int, Mapping[str, int]], ...]:
    """Returns (first step, ratio) of every stage; one where the config has none.

    Args:
      config: of the run.
      schedule: what to read in place of `config.mixture.stages`.
    """
    schedule = config.mixture.stages if schedule is None else schedule
    if not schedule:
        return ((0, config.mixture.ratio),)
    return tuple((_resolve_first_step(first, config.steps), ratio) for first, ratio in schedule)


def resolve_stage_steps(config: Config) -> Config:
    """Returns the config with the first step of each stage in place of a fraction of all steps."""
    mixture = config.mixture
    schedules: dict[str, Any] = {
        name: list_stages(config, getattr(mixture, name))
        for name in ("stages", "same_total_as")
        if getattr(mixture, name)
    }
    return dataclasses.replace(config, mixture=dataclasses.replace(mixture, **schedules))


def compute_sequence_totals(
    config: Config, schedule: Schedule | None = None, *, before: int | None = None
) -> dict[str, fractions.Fraction]:
    """Returns the sequences that a schedule asks for, per language.

    Args:
      config: of the run.
      schedule: what to read in place of `config.mixture.stages`.
      before: the step that it is counted up to; the end of the run where it is None.
    """
    found = list_stages(config, schedule)
    last = config.steps if before is None else before
    ends = [first for first, _ in found[1:]] + [last]
    total = dict.fromkeys(config.tags, fractions.Fraction(0))
    for (first, ratio), end in zip(found, ends, strict=True):
        sequences = max(0, min(end, last) - first) * config.batch_size
        for tag in config.tags:
            total[tag] += fractions.Fraction(sequences * ratio[tag], sum(ratio.values()))
    return total


def reduce_ratio(ratio: Mapping[str, int]) -> dict[str, int]:
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
    "evaluation.alignment.every": 1000,
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
        "evaluation.alignment.every": 100,
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
            # About as many ids as the sources' own tokenizers would have together.
            config.vocabulary.tokenizer.vocab_size = value * max(1, len(config.sources))
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


def continued(
    before: Config, init_from: str, language: str, steps: int
) -> ml_collections.ConfigDict:
    """Returns a run that goes on from another one's weights in a single language.

    The optimizer begins anew, at a tenth of the rate, and the text in another order; all
    languages are evaluated ten times.

    Args:
      before: the other run's config.
      init_from: RUN or RUN@STEP.
      language: all that is trained on.
      steps: updates.

    Raises:
      ValueError: the run has no such language.
    """
    if language not in before.tags:
        wrong = f"{language}: {init_from} has no such language." if language else " is missing."
        raise ValueError(f"language={wrong} {init_from} has: {', '.join(before.tags)}.")
    config = build_config_dict(before)
    config.init_from, config.steps = init_from, steps
    for name in ("peak_lr", "final_lr"):
        config.optimizer[name] /= 10
    config.mixture.update(stages=(), same_total_as=(), temperature=0.0, seed=before.data_seed + 1)
    config.mixture.ratio = {tag: int(tag == language) for tag in before.tags}
    config.evaluation.every = max(1, steps // 10)
    return config


def build_config_dict(config: Any) -> Any:
    """Returns what `resolve_config` made as a ConfigDict again."""
    if dataclasses.is_dataclass(config):
        fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
        return ml_collections.ConfigDict({name: build_config_dict(v) for name, v in fields.items()})
    if isinstance(config, Mapping):
        return ml_collections.ConfigDict({name: build_config_dict(v) for name, v in config.items()})
    return config


def joining_stages(text: str, ratio: Mapping[str, int]) -> Schedule:
    """Returns a schedule in which the last language joins the others later, at its ratio.

    Args:
      text: the fraction of the run after which it joins, such as 0.5.
      ratio: of all languages, from then on. Before, the last one has 0.

    Raises:
      ValueError: the text is no such fraction, or there are no others to join.
    """
    *others, last = ratio
    try:
        joins = float(text)
    except ValueError:
        joins = 0.0
    if not 0 < joins < 1:
        raise ValueError(
            f"joins={text}: write the fraction of the run after which {last} joins, above 0 and "
            "below 1, such as 0.5."
        )
    if not any(ratio[tag] for tag in others):
        raise ValueError(
            f"joins={text}: {last} is alone, with no language to join. Write a ratio such as 90:10."
        )
    return ((0, {**ratio, last: 0}), (joins, dict(ratio)))


def equal_stages(text: str, first: str, second: str) -> Schedule:
    """Returns a schedule of equally long stages, such as `0.1_0.9`.

    Stage i of m begins at step floor(i steps / m). The reference's begins at
    i floor(steps / m), which is the same or up to m - 1 steps before.

    Args:
      text: the share of `second` in each stage; `first` gets the rest.
      first: a language.
      second: another one.

    Raises:
      ValueError: a part is not a number from 0 to 1.
    """
    parts = text.split("_")
    try:
        shares = [fractions.Fraction(part) for part in parts]
    except (ValueError, ZeroDivisionError):
        shares = []
    if not shares or not all(0 <= share <= 1 for share in shares):
        raise ValueError(
            f"stages={text}: write the share of {second} in each stage, from 0 to 1, with _ "
            "between them, such as 0.1_0.9."
        )
    return tuple(
        # Fractions of all steps, but for the first stage where both are 0.
        (i / len(shares), {first: s.denominator - s.numerator, second: s.numerator})
        for i, s in enumerate(shares)
    )
