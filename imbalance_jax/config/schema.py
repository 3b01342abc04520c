"""Every field of a run: declared once, with type, default and unit.

A file in `configs/` makes an `ml_collections.ConfigDict`, starting from `default()`. The command
line may override its fields, and `resolve_config` turns it into the frozen dataclasses below, once.
From there on nothing writes to a config.

The type of a number has its bounds, which bounds.py declares and checks. A dataclass checks its own
fields, and checks.py what contradicts another group. Each check raises a ValueError that names the
field and what to set instead.
"""

import dataclasses
import re
import typing
from collections.abc import Mapping
from typing import Annotated, Literal

from imbalance_jax.config.bounds import (
    INT32,
    INT64,
    Bounds,
    Count,
    Decay,
    FieldGroup,
    Part,
    Rate,
    Ratio,
    Share,
    Size,
)
from imbalance_jax.config.model_presets import GPT2, PRESETS
from imbalance_jax.config.text_schema import ParallelConfig, SourceConfig, TokenizerConfig


@dataclasses.dataclass(frozen=True)
class LanguageConfig(FieldGroup):
    """What the model sees as one language: a source of its own, or a clone."""

    source: str = ""  # The name in config.sources of its text, or "" for a clone.
    clone_of: str = ""  # The tag of the language whose text it shares under other ids.
    anchors: Share = 0.0  # Clones: the share of ids that stay those of the parent, 0 to 1.
    anchor_measure: Literal["ids", "tokens"] = "ids"  # What anchors is a share of.
    # Which ids are anchors: drawn as the reference study draws them, the most frequent, the rarest.
    anchor_choice: Literal["reference", "frequent", "rare"] = "reference"
    # The order of the words, for text of any kind (data/word_order.py).
    words: Literal["as_written", "reversed", "permuted", "shuffled"] = "as_written"
    # reversed, permuted: words that change places with each other.
    words_block: Annotated[int, Bounds(2, INT32, "does not fit into 32 bits")] = 8
    # Clones: whether their rows of the embedding tables begin as copies of their parent's.
    rows: Literal["own", "copied"] = "own"


@dataclasses.dataclass(frozen=True)
class VocabularyConfig(FieldGroup, place="config.vocabulary"):
    """How the ids of all languages lie in one vocabulary."""

    # disjoint: each language has ids of its own. merged: equal pieces of different sources share
    # an id. joint: all sources have one tokenizer, trained on a mix of them.
    layout: Literal["disjoint", "merged", "joint"] = "disjoint"
    tokenizer: TokenizerConfig = TokenizerConfig()  # Used by layout joint only.
    # joint: source -> parts of the text that the tokenizer is trained on; {} is equal parts.
    mix: Mapping[str, Ratio] = dataclasses.field(default_factory=dict)
    # The separator of documents: as the layout gives it, one of its own for each language, or one.
    separator: Literal["layout", "own", "shared"] = "layout"
    # Whether a partial clone's separator and unknown piece are among the anchors: as the
    # reference study's shuffle has it, never, or always.
    anchor_specials: Literal["reference", "never", "always"] = "never"


def _check_ratio(field: str, ratio: Mapping[str, int]) -> None:
    for tag, count in ratio.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise ValueError(
                f"{field}.{tag}={count} must be a whole number of sequences, 0 or more. "
                "Write 95% to 5% as 19 and 1, or as 95 and 5."
            )


# (first step or fraction of all steps, ratio) of each stage.
_First = Annotated[int | float, Bounds(0, INT32, "does not fit into 32 bits")]
Schedule = tuple[tuple[_First, Mapping[str, Ratio]], ...]


def _check_stage_starts(field: str, schedule: Schedule) -> None:
    fractions_ = [isinstance(first, float) for first, _ in schedule if first]
    if any(fractions_) and not all(fractions_):
        raise ValueError(
            f"{field} mixes steps with fractions of all steps. Write all beginnings as "
            "whole numbers, or all of them as fractions."
        )
    for index, (first, ratio) in enumerate(schedule):
        _check_ratio(f"{field}[{index}]", ratio)
        before = schedule[index - 1][0] if index else -1
        if (index == 0 and first != 0) or not first > before:
            raise ValueError(
                f"{field}[{index}] begins at step {first}. The first "
                "stage must begin at step 0, and each later one after the one before it."
            )
        if isinstance(first, float) and first >= 1:
            raise ValueError(
                f"{field}[{index}] begins at {first} of all steps. Write a fraction "
                "below 1, or a step as a whole number."
            )


@dataclasses.dataclass(frozen=True)
class MixtureConfig(FieldGroup, place="config.mixture"):
    """What every block of the training stream is made of."""

    # Above 0, in place of ratio: in proportion to a source's tokens to the power 1/temperature.
    temperature: Rate = 0.0
    # Above 0, in place of ratio: as even as the texts allow, each gone through so often at most.
    max_epochs: Rate = 0.0
    # tag -> whole number of sequences in every block of their sum.
    ratio: Mapping[str, Ratio] = dataclasses.field(default_factory=dict)
    # (first step, ratio) of each stage, the first at step 0. () is ratio throughout. All first
    # steps are whole numbers, or all are fractions of config.steps: 0.5, rounded down to a step.
    stages: Schedule = ()
    # A schedule as in stages. The run is refused unless each language has its total.
    same_total_as: Schedule = ()
    # Weights of the languages' losses in what is trained on, beside their ratio; 1 for those that
    # are not named. Only their proportions count: the mean weight of a trained sequence is 1.
    loss_weights: Mapping[str, Rate] = dataclasses.field(default_factory=dict)
    # exact: every block holds its ratio. bernoulli: an independent draw for each sequence.
    sampler: Literal["exact", "bernoulli"] = "exact"
    # shuffled: windows, in a new order each epoch. sequential: each row reads a queue of documents.
    order: Literal["shuffled", "sequential"] = "shuffled"
    # The seed of the order of languages and windows. -1 takes config.seed.
    seed: Annotated[int, Bounds(-1, INT64, "does not fit into 64 bits")] = -1
    # Where clones of one text take turns: at each window, or each document belongs to one of them.
    switch: Literal["window", "document"] = "window"
    # disjoint: a document that several sources of ids=shared have goes to one of them.
    content: Literal["shared", "disjoint"] = "shared"
    text_share: Part = 1.0  # The share of each source's windows that is trained on, above 0 to 1.
    # Which languages may see a window again in a later epoch; forbid is none.
    reuse: Literal["same_language", "any", "forbid"] = "same_language"
    # Where a text would be used up: it is read again, the run ends there, or the run is refused.
    on_exhaustion: Literal["repeat", "stop", "error"] = "repeat"

    def __post_init__(self) -> None:
        _check_ratio("config.mixture.ratio", self.ratio)
        _check_stage_starts("config.mixture.stages", self.stages)
        _check_stage_starts("config.mixture.same_total_as", self.same_total_as)
        super().__post_init__()
        if self.reuse == "forbid" and self.on_exhaustion == "repeat":
            raise ValueError(
                "config.mixture.reuse='forbid' contradicts config.mixture.on_exhaustion="
                "'repeat'. Set config.mixture.on_exhaustion to 'stop' or 'error'."
            )
        if self.text_share < 1 and self.order == "sequential":
            raise ValueError(
                f"config.mixture.text_share={self.text_share} chooses windows, and "
                "config.mixture.order='sequential' reads queues of documents. Set "
                "config.mixture.order=shuffled."
            )
        if self.temperature and self.max_epochs:
            raise ValueError(
                f"config.mixture.temperature={self.temperature} and config.mixture.max_epochs="
                f"{self.max_epochs} both make the ratio from the sizes of the sources. Set one of "
                "the two only."
            )
        rule = "temperature" if self.temperature else "max_epochs"
        for name in ("stages", "same_total_as"):
            if self.follows_text and getattr(self, name):
                raise ValueError(
                    f"config.mixture.{rule}={getattr(self, rule)} makes the ratio of the whole "
                    f"run from the sizes of the sources, and config.mixture.{name} says another "
                    "one. Set one of the two only."
                )
        counted = {"sampler": "exact", "order": "shuffled", "switch": "window", "content": "shared"}
        for name, needed in counted.items():
            if self.max_epochs and getattr(self, name) != needed:
                raise ValueError(
                    f"config.mixture.max_epochs={self.max_epochs} counts the windows of whole "
                    f"texts, and config.mixture.{name}={getattr(self, name)!r} draws others. Set "
                    f"config.mixture.{name}={needed}, or max_epochs=0."
                )

    @property
    def follows_text(self) -> bool:
        """Whether the ratio follows from the sizes of the texts."""
        return bool(self.temperature or self.max_epochs)


Attention = Literal["auto", "einsum", "blockwise", "fused", "cudnn", "splash"]
Remat = Literal["auto", "none", "dots", "full"]
REMAT: tuple[str, ...] = typing.get_args(Remat)


@dataclasses.dataclass(frozen=True)
class ModelConfig(FieldGroup, place="config.model"):
    """The transformer. See the key of dimensions in `imbalance_jax/__init__.py`."""

    L: Size = 512  # Positions in a sequence.
    D: Size = 768  # Width of the residual stream.
    H: Size = 12  # Attention heads of a block.
    K: Size = 64  # Width of one head.
    F: Size = 3072  # Width of the feed-forward layer.
    N: Size = 12  # Transformer blocks.
    # The precision of matrix products; auto is float32 on a CPU and bfloat16 elsewhere. Parameters,
    # their gradients, normalisation, softmax and loss are in float32 in any case.
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    param_dtype: Literal["float32"] = "float32"  # The precision of the parameters.
    # How attention is computed. auto chooses by device, as compute/tuning.py lists.
    attention: Attention = "auto"
    # What the backward pass computes again: none, all but matrix products (dots), or all (full).
    remat: Remat = "auto"
    scan_layers: bool = True  # One compiled block runs N times; if false, N blocks are written out.
    tied: bool = False  # The output head is the input embedding.
    # The architecture, which sets those of the next seven fields that say "preset": GPT-2 as the
    # reference has it, Llama's block, or that with normed queries and keys.
    preset: Literal["gpt2", "llama", "modern"] = "gpt2"
    # How positions enter: a learned table, rotations of queries and keys, or not at all.
    position: Literal["preset", "learned", "rope", "none"] = "preset"
    norm: Literal["preset", "layer", "rms"] = "preset"  # LayerNorm or RMSNorm.
    # Where attention and the feed-forward layer are normalised: what enters them, what comes out
    # of them before it is added, or both. The final norm stands in any case.
    norm_place: Literal["preset", "before", "after", "both"] = "preset"
    feed_forward: Literal["preset", "gelu", "swiglu"] = "preset"  # swiglu has a third matrix.
    bias: Literal["preset", "on", "off"] = "preset"  # Biases of projections and of LayerNorm.
    # An RMSNorm over each head of queries and of keys.
    qk_norm: Literal["preset", "on", "off"] = "preset"
    # What token embeddings are multiplied by: sqrt(D), or none.
    embed_scale: Literal["preset", "sqrt", "none"] = "preset"
    # The base of the wavelengths of position=rope, in positions.
    rope_theta: Annotated[float, Bounds(1, 1e9, "is longer than any sequence")] = 10000.0
    kv_heads: Count = 0  # Heads of keys and values; 0 is H, and a divisor of H groups the queries.
    # The D that initialisation and learning rates are meant for; at another D they follow it by
    # muP (arXiv 2203.03466), so that one peak_lr serves all. 0 is off: they are the same at any D.
    base_width: Count = 0
    base_head_width: Count = 0  # The same of K, for models with wider heads; 0 is any K.
    loss_chunk: Count = 0  # Positions of a sequence whose logits exist at once; 0 chooses.
    # Ids whose logits exist at once in training, rounded to a divisor of the vocabulary; 0 chooses.
    loss_tile: Count = 0
    # What a position attends to: all before it in its window, or those of its own document.
    documents: Literal["joined", "apart"] = "joined"
    # position=learned: one table of positions for all languages, or one for each.
    position_tables: Literal["shared", "per_language"] = "shared"
    # In training, the share of elements that are set to zero: of the sum of
    # embeddings, and of what attention and the feed-forward layer add to it.
    dropout: Annotated[float, Bounds(0, 0.99, "leaves next to nothing to learn from")] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss_chunk and self.L % self.loss_chunk:
            raise ValueError(
                f"config.model.loss_chunk={self.loss_chunk} does not divide "
                f"config.model.L={self.L}. Set it to a divisor, or to 0."
            )
        if self.kv_heads and self.H % self.kv_heads:
            raise ValueError(
                f"config.model.kv_heads={self.kv_heads} does not divide config.model.H={self.H}. "
                "Set it to a divisor, or to 0."
            )
        if self.settle("position") == "rope" and self.K % 2:
            raise ValueError(
                f"config.model.K={self.K} is odd, and config.model.position=rope turns pairs of a "
                "head's dimensions. Set an even K, or another position."
            )
        if self.position_tables == "per_language" and self.settle("position") != "learned":
            raise ValueError(
                "config.model.position_tables=per_language needs tables of positions, and "
                f"config.model.position={self.settle('position')} has none. Set "
                "config.model.position=learned, or position_tables=shared."
            )
        if self.base_head_width and not self.base_width:
            raise ValueError(
                f"config.model.base_head_width={self.base_head_width} says where the scaling with "
                "width begins, and config.model.base_width=0 turns it off. Set "
                "config.model.base_width, or config.model.base_head_width=0."
            )

    def settle(self, dial: str) -> str:
        """Returns what a field of the architecture is, where it may be left to the preset."""
        chosen = getattr(self, dial)
        return PRESETS[self.preset][dial] if chosen == "preset" else chosen

    def settle_dials(self) -> dict[str, str]:
        """Returns what each field of the architecture is that may be left to the preset."""
        return {dial: self.settle(dial) for dial in GPT2}

    def list_dials(self) -> dict[str, str]:
        """Returns the fields of the architecture that are not GPT-2's, with their values."""
        dials = {dial: v for dial, v in self.settle_dials().items() if v != GPT2[dial]}
        if self.count_kv_heads() != self.H:
            dials["kv_heads"] = str(self.kv_heads)
        if self.position_tables != "shared":
            dials["position_tables"] = self.position_tables
        return dials

    def count_kv_heads(self) -> int:
        return self.kv_heads or self.H

    def compute_width_factor(self) -> float:
        """Returns how many times its base width the model has; 1 without one.

        The base shape has the F / D and H K / D of this one. So this is how many times more inputs
        than there each matrix of the blocks sums over.
        """
        return self.D / self.base_width if self.base_width else 1.0

    def compute_embedding_factor(self) -> float:
        """Returns what token embeddings are multiplied by."""
        return (self.base_width or self.D) ** 0.5 if self.settle("embed_scale") == "sqrt" else 1.0

    def compute_attention_factor(self) -> float:
        """Returns what products of queries and keys are multiplied by, beside 1 / sqrt(K)."""
        return (self.base_head_width / self.K) ** 0.5 if self.base_head_width else 1.0


@dataclasses.dataclass(frozen=True)
class GroupFactors(FieldGroup):
    """A factor for each group of parameters."""

    embedding: Rate = 1.0  # Input embeddings and positions.
    head: Rate = 1.0  # Output embeddings, where they are not tied.
    blocks: Rate = 1.0  # The blocks and the final norm.


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(FieldGroup, place="config.optimizer"):
    """The algorithm and the course of its learning rate."""

    # The algorithm. adam and adamw are one, as weight decay is decoupled. sgd has momentum b1. muon
    # takes the matrices of the blocks, and adam the rest. adafactor reads none of b1, b2 and eps.
    name: Literal["adam", "adamw", "sgd", "lion", "adafactor", "muon"] = "adam"
    peak_lr: Rate = 6e-4  # The learning rate after warm-up.
    final_lr: Rate = 6e-6  # The learning rate at the last update; constant does not use it.
    # The course after warm-up.
    schedule: Literal["cosine", "linear", "warmup_stable_decay", "constant"] = "cosine"
    # Below 1 a fraction of all updates, from 1 on a number of updates.
    warmup: Annotated[float, Bounds(0, INT32, "is more updates than a run has")] = 0.02
    decay: Part = 0.2  # warmup_stable_decay: the fraction of all updates that decay.
    b1: Decay = 0.9  # The decay of the mean of gradients: the momentum.
    b2: Decay = 0.95  # adam: the decay of the mean of squared gradients. lion: of its momentum.
    eps: Rate = 1e-8  # Adam's epsilon, which is added to the root of the second mean.
    # adam: whether all languages share the means of a parameter that they share, or each has its
    # own, and the update is the mean of theirs. Token embeddings and the head keep one.
    moments: Literal["shared", "per_language"] = "shared"
    weight_decay: Rate = 0.0  # Decoupled from the gradient; on matrices and embeddings only.
    rate_factors: GroupFactors = GroupFactors()  # Factors of the learning rate.
    decay_factors: GroupFactors = GroupFactors()  # Factors of weight_decay.
    clip_norm: Rate = 0.0  # The largest norm of the gradient of all parameters together; 0 is off.
    accumulate: Size = 1  # Micro-batches whose gradients are averaged into one update.
    # Updates in a row that may be left out because their loss or gradient is not finite; 0 is none.
    skip_nonfinite: Count = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.moments == "per_language" and self.name not in ("adam", "adamw"):
            raise ValueError(
                f"config.optimizer.moments=per_language are Adam's, and config.optimizer.name is "
                f"{self.name}. Set name=adam, or moments=shared."
            )


@dataclasses.dataclass(frozen=True)
class AlignmentConfig(FieldGroup, place="config.evaluation.alignment"):
    """How alike the model treats two languages, measured while it trains."""

    # Steps between measurements. The budget may multiply them; 0 measures nothing.
    every: Count = 250
    # Sequences in two languages that each measurement compares.
    pairs: Annotated[int, Bounds(8, INT32, "does not fit into 32 bits")] = 32
    languages: tuple[str, ...] = ()  # The languages whose pairs are measured. () is all of them.
    budget: Part = 0.02  # The share of the run's time that measuring may take; 1 is no limit.


@dataclasses.dataclass(frozen=True)
class EvaluationConfig(FieldGroup, place="config.evaluation"):
    """Held-out measurements per language, which never follow the training ratio."""

    every: Count = 250  # Steps between evaluations; 0 is only before the first step and at the end.
    max_windows: Count = 256  # Windows of the validation split per language; 0 takes all.
    stride: Count = 0  # Positions scored per window of the final test; 0 is L/4.
    max_test_windows: Count = 0  # Windows of the final test per language; 0 takes all.
    # Minimal pairs that the final test scores: own, files, or a folder with a file for each source.
    minimal_pairs: str = ""
    alignment: AlignmentConfig = AlignmentConfig()


@dataclasses.dataclass(frozen=True)
class CheckpointConfig(FieldGroup, place="config.checkpoint"):
    """What is saved of a run, to go on from and to evaluate."""

    every: Count = 500  # Steps between checkpoints; 0 saves only at the end.
    keep: Size = 2  # How many of the newest checkpoints are kept.


# 0 is refused too.
MeshSize = Annotated[int, Bounds(-1, INT32, "does not fit into 32 bits")]


@dataclasses.dataclass(frozen=True)
class MeshConfig(FieldGroup, place="config.mesh"):
    """Devices along each axis; -1 takes what the others leave."""

    # Runs of a pack that train beside each other; a run alone gives these devices to data.
    member: MeshSize = 1
    data: MeshSize = -1  # Whole copies of the model, each with a part of the batch.
    fsdp: MeshSize = 1  # Parts of the batch that share one copy of the parameters.
    tensor: MeshSize = 1  # Parts of every matrix product.

    def __post_init__(self) -> None:
        sizes = dataclasses.asdict(self)
        for name, size in sizes.items():
            if size != -1 and size < 1:
                raise ValueError(f"config.mesh.{name}={size} must be 1 or more, or -1.")
        rest = [f"config.mesh.{name}" for name, size in sizes.items() if size == -1]
        if len(rest) > 1:
            raise ValueError(f"{' and '.join(rest)} are -1. Give all sizes but one.")
        super().__post_init__()


# Parameters are drawn by the lower 32 bits alone, so a higher seed would repeat another one's run.
Seed = Annotated[int, Bounds(0, 2**32 - 1, "does not fit into the 32 bits of a seed")]


@dataclasses.dataclass(frozen=True)
class Config(FieldGroup, place="config"):
    """A run, whole."""

    seed: Seed = 0  # The seed of the parameters, and of the order of the data.
    steps: Size = 1000  # Optimizer updates.
    batch_size: Size = 32  # Sequences per update, over all hosts and micro-batches.
    data_dir: str = "data"  # The folder where prepared text is kept and looked for.
    # RUN or RUN@STEP: begin with the parameters of another run of these languages and tokenizers.
    # Or a folder of Hugging Face with GPT-2's architecture (docs/export.md).
    init_from: str = ""
    log_every: Size = 10  # Steps that a line of training metrics covers.
    mirrors: tuple[Literal["tensorboard", "wandb"], ...] = ()  # Where metrics go as well.
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
        super().__post_init__()
        for name in ("rate_factors", "decay_factors"):
            factor = getattr(self.optimizer, name).head
            if self.model.tied and factor != 1:
                raise ValueError(
                    f"config.optimizer.{name}.head={factor} is for a head of its own, and with "
                    "config.model.tied=True it is the input embedding. Set "
                    f"config.optimizer.{name}.embedding, or config.model.tied=False."
                )
        if self.batch_size % self.optimizer.accumulate:
            raise ValueError(
                f"config.batch_size={self.batch_size} cannot be cut into "
                f"config.optimizer.accumulate={self.optimizer.accumulate} micro-batches. "
                "Set one to a multiple of the other."
            )

    @property
    def tags(self) -> tuple[str, ...]:
        """The languages in their one order, whatever order a config declared them in.

        Sorted with numbers as numbers, so that en2 comes before en10.
        """
        # en2 and en02 have equal numbers; the tags themselves then decide.
        return tuple(sorted(self.languages, key=lambda tag: (make_natural_sort_key(tag), tag)))

    def source_of(self, tag: str) -> str:
        """Returns the name of the source whose text a language has: a clone has its parent's."""
        language = self.languages[tag]
        return language.source or self.languages[language.clone_of].source

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
