"""The optimizer of a config, from optax's parts; its state has the names of the parameters."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from imbalance_jax.config import OptimizerConfig, compute_learning_rate, dimensions

# Muon's updates of a matrix have this root mean square, which is about that of Adam's: so one
# learning rate serves both (arXiv 2502.16982).
_MUON_RMS = 0.2
# How many dimensions in front a product sums over, by the name of a matrix: heads are two.
_INPUTS = {"w_o_HKD": 2}


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Returns the learning rate of the update after `count` updates, as an optax schedule."""

    def rate(count: jax.typing.ArrayLike) -> jax.Array:
        t = jnp.asarray(count, jnp.float32) + 1
        return compute_learning_rate(config, steps, t, jnp)

    return rate


def build_optimizer(
    config: OptimizerConfig, steps: int, *, wider: float = 1.0
) -> optax.GradientTransformation:
    """Returns the optimizer with the config's learning rate, clipping and weight decay.

    Args: wider is as `chain_optimizer`'s.
    """
    return chain_optimizer(config, learning_rate(config, steps), wider=wider)


def chain_optimizer(
    config: OptimizerConfig, rate: optax.Schedule, *, wider: float = 1.0
) -> optax.GradientTransformation:
    """Returns the optimizer with a learning rate: clipping, direction, weight decay, rate.

    Args:
      wider: how many times its base width the model has, as `ModelConfig.compute_width_factor`.

    Raises:
      ValueError: it is Muon, and optax is too old for it.
    """
    parts = []
    if config.clip_norm:
        parts.append(optax.clip_by_global_norm(config.clip_norm))
    parts += _list_directions(config)
    if wider != 1:
        parts.append(_scale_by_width(config, wider))
    parts += _list_decays(config)  # after it: what a parameter loses is the same at every width
    parts.append(optax.scale_by_learning_rate(rate))
    factors = {group: getattr(config.rate_factors, group) for group in GROUPS}
    if set(factors.values()) != {1.0}:
        parts.append(
            optax.stateless(
                lambda updates, params: jax.tree_util.tree_map_with_path(
                    lambda path, leaf: leaf * factors[find_group(path)], updates
                )
            )
        )
    return optax.chain(*parts)


def _list_directions(config: OptimizerConfig) -> list[optax.GradientTransformation]:
    """Returns what makes a direction of a gradient."""
    adam = optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)
    if config.name in ("adam", "adamw"):
        return [adam]
    if config.name == "sgd":
        return [optax.trace(config.b1)]
    if config.name == "lion":
        return [optax.scale_by_lion(b1=config.b1, b2=config.b2)]
    if config.name == "adafactor":
        return [optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)]
    return [optax.partition({"muon": _scale_by_muon(config), "adam": adam}, _label_muon)]


# How a direction is scaled at m times the base width, for the model to learn alike: m to the power
# of the first number for matrices of the blocks, of the second for all others (arXiv 2203.03466,
# table 8; its multiplier of the logits is in the model). Directions of Adam's size have entries of
# one size at every width, and a matrix adds up m times more of them. Muon's are orthogonal matrices
# times the root of a side, whose products grow with that root. SGD's are the gradients: those of
# matrices have the size that they need, and all others are m times too small.
_WIDTH_POWERS = {"muon": (-0.5, 0.0), "sgd": (0.0, 1.0)}
_WIDTH_POWERS_OF_ADAM = (-1.0, 0.0)


def _scale_by_width(config: OptimizerConfig, wider: float) -> optax.GradientTransformation:
    powers = _WIDTH_POWERS.get(config.name, _WIDTH_POWERS_OF_ADAM)
    of_matrices, of_others = (wider**power for power in powers)
    return optax.stateless(
        lambda updates, _: jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf * (of_matrices if _is_block_matrix(path) else of_others),
            updates,
        )
    )


# Groups of parameters.
GROUPS = ("embedding", "head", "blocks")


def find_group(path: tuple) -> str:
    """Returns the group of a parameter: embedding, head, or blocks with the final norm."""
    groups = {"embed_VD": "embedding", "position_LD": "embedding", "head_VD": "head"}
    return groups.get(path[0].key, "blocks")


def _list_decays(config: OptimizerConfig) -> list[optax.GradientTransformation]:
    """Returns the weight decay: of all groups at once where they share it."""
    if not config.weight_decay:
        return []
    factors = {group: getattr(config.decay_factors, group) for group in GROUPS}
    if set(factors.values()) == {1.0}:
        return [optax.add_decayed_weights(config.weight_decay, mask=_mark_decayed_params)]
    return [
        optax.add_decayed_weights(config.weight_decay * factor, mask=_mark_decayed_group(group))
        for group, factor in factors.items()
        if factor
    ]


def _mark_decayed_group(group: str) -> Callable[[Any], Any]:
    return lambda params: jax.tree_util.tree_map_with_path(
        lambda path, decayed: decayed and find_group(path) == group, _mark_decayed_params(params)
    )


def _mark_decayed_params(params: Any) -> Any:
    """Marks the parameters that decay: those with an input and an output dimension."""
    return jax.tree_util.tree_map_with_path(lambda path, _: _is_matrix(path[-1].key), params)


def _is_block_matrix(path: tuple) -> bool:
    return path[0].key == "blocks" and _is_matrix(path[-1].key)


def _is_matrix(name: str) -> bool:
    return len(dimensions.parse_dimensions(name)) > 1 and not name.startswith("b_")


# Muon


def _label_muon(params: Any) -> Any:
    """Gives the matrices of the blocks to Muon, and all others to Adam."""

    def label(path: tuple, _: jax.Array) -> str:
        return "muon" if _is_block_matrix(path) else "adam"

    return jax.tree_util.tree_map_with_path(label, params)


def _scale_by_muon(config: OptimizerConfig) -> optax.GradientTransformation:
    """Returns Muon for stacked matrices, each with its heads together, scaled as Adam's updates."""
    try:
        from optax.contrib import MuonDimensionNumbers, scale_by_muon
    except ImportError:
        raise ValueError(
            f"config.optimizer.name='muon' needs optax 0.2.6 or newer; this is {optax.__version__}."
        ) from None

    def describe(params: Any) -> Any:
        def of(path: tuple, leaf: jax.Array) -> Any:
            inputs = 1 + _INPUTS.get(path[-1].key, 1)  # N is in front
            return MuonDimensionNumbers(tuple(range(1, inputs)), tuple(range(inputs, leaf.ndim)))

        return jax.tree_util.tree_map_with_path(of, params)

    def scale(updates: Any, _: Any) -> Any:
        def of(path: tuple, leaf: jax.Array) -> jax.Array:
            inputs = 1 + _INPUTS.get(path[-1].key, 1)
            sides = (leaf.shape[1:inputs], leaf.shape[inputs:])
            widest = max(map(math.prod, sides))
            return leaf * (_MUON_RMS * widest**0.5)

        return jax.tree_util.tree_map_with_path(of, updates)

    muon = scale_by_muon(beta=config.b1, eps=config.eps, weight_dimension_numbers=describe)
    return optax.chain(muon, optax.stateless(scale))
