"""The optimizer of a config, from optax's parts; its state has the names of the parameters."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

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
    config: OptimizerConfig, steps: int, *, languages: int = 1, wider: float = 1.0
) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer with the config's learning rate, clipping and weight decay.

    Args: languages and wider are as `chain_optimizer`'s.
    """
    return chain_optimizer(config, learning_rate(config, steps), languages=languages, wider=wider)


def chain_optimizer(
    config: OptimizerConfig, rate: optax.Schedule, *, languages: int = 1, wider: float = 1.0
) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer with a learning rate: clipping, direction, weight decay, rate.

    Args:
      config: of the optimizer.
      rate: the learning rate.
      languages: how many there are, for `moments=per_language`; `update` then takes what
        `scale_by_language_adam` does.
      wider: how many times its base width the model has, as `ModelConfig.compute_width_factor`.

    Raises:
      ValueError: it is Muon, and optax is too old for it.
    """
    parts = []
    if config.clip_norm:
        parts.append(optax.clip_by_global_norm(config.clip_norm))
    parts += _list_directions(config, languages)
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


def _list_directions(config: OptimizerConfig, languages: int) -> list[optax.GradientTransformation]:
    """Returns what makes a direction of a gradient."""
    if config.moments == "per_language":
        return [scale_by_language_adam(config, languages)]
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


# Adam with means of each language's own


class LanguageAdamState(NamedTuple):
    """The means; those of shared parameters have a dimension of languages in front."""

    done: jax.Array  # updates so far
    mu: Any
    nu: Any


def select_shared_params(params: Any) -> Any:
    """Returns the parameters that every language's windows train: all but tables of their own."""
    own = ("embed_VD", "head_VD", "position_GLD")
    return {name: leaf for name, leaf in params.items() if name not in own}


def scale_by_language_adam(
    config: OptimizerConfig, languages: int
) -> optax.GradientTransformationExtraArgs:
    """Returns Adam with means of each language's own of the parameters that languages share.

    With m and v the means of language l's gradient and of its square, bias-corrected as Adam's,
    the direction of a shared parameter is the mean of m_l / (sqrt(v_l) + eps) over the languages
    that were trained on so far. With one language it is Adam's. The rows of the token
    tables, which most vocabularies give to one language each, have Adam's own means.

    `update` also takes

        language_grads  the parameters of `select_shared_params`, each with what the languages have
                        in its gradient: (G, ...). They are clipped as the whole gradient is.
        is_trained_G    whether a language was trained on so far.
    """

    def init(params: Any) -> LanguageAdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        each = jax.tree.map(
            lambda leaf: jnp.zeros((languages, *leaf.shape), leaf.dtype),
            select_shared_params(params),
        )
        # Arrays of their own, as the step takes over the memory of each.
        return LanguageAdamState(
            jnp.zeros((), jnp.int32), zeros | each, jax.tree.map(jnp.copy, zeros | each)
        )

    def update(
        updates: Any,
        state: LanguageAdamState,
        params: Any = None,
        *,
        language_grads: Any,
        is_trained_G: jax.Array,
        **_: Any,
    ) -> tuple[Any, LanguageAdamState]:
        clipped = updates | language_grads
        if config.clip_norm:
            whole = jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), language_grads)
            before = optax.tree.norm(whole)
            after = optax.tree.norm(select_shared_params(updates))
            factor = jnp.where(before > 0, after / before, 1.0)
            clipped = updates | jax.tree.map(lambda leaf: leaf * factor, language_grads)
        mu = optax.tree.update_moment(clipped, state.mu, config.b1, 1)
        nu = optax.tree.update_moment(clipped, state.nu, config.b2, 2)
        done = optax.safe_increment(state.done)
        direction = jax.tree.map(
            lambda m, v: m / (jnp.sqrt(v) + config.eps),
            optax.tree.bias_correction(mu, config.b1, done),
            optax.tree.bias_correction(nu, config.b2, done),
        )
        weight_G = is_trained_G / jnp.sum(is_trained_G)
        shared = jax.tree.map(
            lambda leaf: jnp.tensordot(weight_G.astype(leaf.dtype), leaf, axes=1),
            select_shared_params(direction),
        )
        return direction | shared, LanguageAdamState(done, mu, nu)

    return optax.GradientTransformationExtraArgs(init, update)


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
    tables = ("embed_VD", "position_LD", "position_GLD")
    groups = dict.fromkeys(tables, "embedding") | {"head_VD": "head"}
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
