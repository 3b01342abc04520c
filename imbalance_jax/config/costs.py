"""What a run costs, from its config alone: parameters, FLOPs and bytes. Closed forms, no jax."""

from imbalance_jax import config as config_lib
from imbalance_jax.config import Config, ModelConfig

FLOP_CONVENTION = (
    "FLOPs per trained token = 6 x (weights of all matrix products, head included, input "
    "embedding excluded) + 6 N H K L; causal attention counted once."
)


def compute_flops_per_token(config: ModelConfig, vocab_size: int) -> float:
    """Returns the FLOPs of one trained token, forward and backward.

    6 x the weights of all matrix products, head included and input embedding excluded, plus
    6 N H K L for attention, whose causal half is counted once.
    """
    per_block = 4 * config.D * config.H * config.K + 2 * config.D * config.F
    weights = config.N * per_block + config.D * vocab_size
    return 6.0 * weights + 6.0 * config.N * config.H * config.K * config.L


def compute_parameter_count(config: ModelConfig, vocab_size: int) -> int:
    """Returns the number of parameters of a model."""
    D, HK, F = config.D, config.H * config.K, config.F
    attention = 4 * D * HK + 3 * HK + D
    feed_forward = 2 * D * F + F + D
    norms = 4 * D
    tables = vocab_size * D * (1 if config.tied else 2) + config.L * D
    return config.N * (attention + feed_forward + norms) + tables + 2 * D


def compute_vocab_size(config: Config) -> int:
    """Returns the ids of all languages; the most that there can be where pieces are merged.

    A tokenizer that is given by its path counts as `tokenizer.vocab_size` of its source.
    """
    joint = config.vocabulary.tokenizer.vocab_size

    def pieces(tag: str) -> int:
        if config.vocabulary.layout == "joint":
            return joint
        source = config.sources[config.source_of(tag)]
        if source.kind == "synthetic":
            return source.synthetic.lemmas + len(config_lib.SPECIALS)
        return source.tokenizer.vocab_size

    own = [tag for tag in config.tags if config.languages[tag].source]
    clones = [tag for tag in config.tags if tag not in own]
    if config.vocabulary.layout == "joint":
        return joint * (1 + len(clones))
    return sum(pieces(tag) for tag in (*own, *clones))


def count_language_tokens(config: Config) -> dict[str, float]:
    """Returns the tokens that a run is asked to train on, per language, by its ratio.

    A ratio by temperature is not known before the text is: its languages count equally.
    """
    L = config.model.L
    if config.mixture.temperature:
        each = config.steps * config.batch_size * L / len(config.tags)
        return dict.fromkeys(config.tags, each)
    return {tag: float(n * L) for tag, n in config_lib.compute_sequence_totals(config).items()}


def count_training_tokens(config: Config) -> int:
    return config.steps * config.batch_size * config.model.L


def compute_training_flops(config: Config) -> float:
    return count_training_tokens(config) * compute_flops_per_token(
        config.model, compute_vocab_size(config)
    )


def estimate_checkpoint_bytes(config: Config) -> int:
    """Returns about what the checkpoints of a run take: fp32 parameters and two moments."""
    kept = 1 if not config.checkpoint.every else config.checkpoint.keep
    return kept * 12 * compute_parameter_count(config.model, compute_vocab_size(config))
