"""The parameters, FLOPs and bytes of a run, as closed forms of its config."""

from collections.abc import Mapping

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
    weights = config.N * _count_block_weights(config) + config.D * vocab_size
    return 6.0 * weights + 6.0 * config.N * config.H * config.K * config.L


def compute_parameter_count(config: ModelConfig, vocab_size: int, languages: int = 1) -> int:
    """Returns the number of parameters of a model.

    The number of languages counts where each has positions of its own.
    """
    D, HK, JK, F = config.D, config.H * config.K, config.count_kv_heads() * config.K, config.F
    has_bias = config.settle("bias") == "on"
    gates = config.settle("feed_forward") == "swiglu"
    biases = has_bias * (HK + 2 * JK + D + (1 + gates) * F + D)
    norm = D * (2 if config.settle("norm") == "layer" and has_bias else 1)
    norms = norm * (4 if config.settle("norm_place") == "both" else 2)
    of_heads = 2 * config.K * (config.settle("qk_norm") == "on")
    positions = config.L * D * (config.settle("position") == "learned")
    positions *= languages if config.position_tables == "per_language" else 1
    tables = vocab_size * D * (1 if config.tied else 2) + positions
    block = _count_block_weights(config) + biases + norms + of_heads
    return config.N * block + tables + norm


def _count_block_weights(config: ModelConfig) -> int:
    """Returns the weights of a block's matrix products."""
    gates = config.settle("feed_forward") == "swiglu"
    attention = 2 * config.D * config.K * (config.H + config.count_kv_heads())
    return attention + (2 + gates) * config.D * config.F


def compute_vocab_size(config: Config) -> int:
    """Returns the number of ids of all languages; where pieces are merged, the most possible.

    A tokenizer that is given by its path counts as `tokenizer.vocab_size` of its source.
    """
    joint = config.vocabulary.tokenizer.size

    def pieces(tag: str) -> int:
        if config.vocabulary.layout == "joint":
            return joint
        source = config.sources[config.source_of(tag)]
        if source.kind == "synthetic":
            return source.synthetic.lemmas + len(config_lib.SPECIALS)
        return source.tokenizer.size

    own = [tag for tag in config.tags if config.languages[tag].source]
    clones = [tag for tag in config.tags if tag not in own]
    if config.vocabulary.layout == "joint":
        return joint * (1 + len(clones))
    return sum(pieces(tag) for tag in (*own, *clones))


def _compute_least_vocab_size(config: Config) -> int:
    """Returns a lower bound of the ids of all languages, whatever their text is."""
    sources = [config.sources[config.source_of(tag)] for tag in config.tags]
    tokenizers = [source.tokenizer for source in sources if source.kind != "synthetic"]
    if config.vocabulary.layout == "joint":
        tokenizers = [config.vocabulary.tokenizer]
    # Of an existing tokenizer the config does not say the size.
    return max((each.size for each in tokenizers if not each.path), default=1)


def estimate_least_bytes(config: Config, sizes: Mapping[str, int]) -> dict[str, int]:
    """Returns what each device holds at the very least in an update, by what it is.

    State: parameters in fp32 and the optimizer's means of each, cut as evenly as may be.
    Activations: the ids of the batch; what a micro-batch keeps for the backward pass however much
    is computed again, that is the input of each block in bf16; and the logits of a block of
    attention, where a path makes them all.

    Args:
      config: of the run.
      sizes: of the axes of the mesh.
    """
    model, tensor, fsdp = config.model, sizes["tensor"], sizes["fsdp"]
    vocab_size = _compute_least_vocab_size(config)
    batch = config.batch_size // (sizes["data"] * fsdp)
    rows = batch // config.optimizer.accumulate
    inputs = 2 * model.N * rows * model.L * model.D
    logits = {"einsum": 4, "blockwise": 1}.get(model.attention, 0) * rows * model.H * model.L**2
    return {
        "state": _count_state_bytes(config, vocab_size) // (fsdp * tensor),
        "activations": 2 * batch * (model.L + 1) + (inputs + logits) // tensor,
    }


def _count_state_bytes(config: Config, vocab_size: int) -> int:
    """Returns the bytes of all parameters and of the means of them that the optimizer keeps.

    Muon keeps one mean of the matrices of the blocks, and two of all others. Adafactor keeps the
    squares of what does not have two sides of 128.
    """
    model, means = config.model, {"adam": 2, "adamw": 2, "muon": 2, "adafactor": 0}
    G = len(config.languages)
    parameters = compute_parameter_count(model, vocab_size, G)
    kept = means.get(config.optimizer.name, 1) * parameters
    if config.optimizer.name == "muon":
        kept -= model.N * _count_block_weights(model)
    if config.optimizer.name == "adafactor" and max(model.H, model.K) < 128:
        # Squares of all, or of attention's matrices alone: the others have two sides of 128.
        attention = 2 * model.D * model.K * (model.H + model.count_kv_heads())
        kept = parameters if model.D < 128 else model.N * attention
    if config.optimizer.moments == "per_language":
        positions = G * model.L if model.position_tables == "per_language" else 0
        own = vocab_size * (1 if model.tied else 2) + positions
        kept += 2 * (G - 1) * (parameters - own * model.D)
    return 4 * (parameters + kept)


def count_language_tokens(config: Config) -> dict[str, float]:
    """Returns the tokens that a run is asked to train on, per language.

    A ratio that follows from the sizes of the texts is not known here: its languages count
    equally.
    """
    L = config.model.L
    if config.mixture.follows_text:
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
    """Returns the size of a run's checkpoints: fp32 parameters and the optimizer's means."""
    checkpoints = config.checkpoint.keep if config.checkpoint.every else 1
    return checkpoints * _count_state_bytes(config, compute_vocab_size(config))
