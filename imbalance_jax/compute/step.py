"""One update: the TrainState, and the jitted step between two states.

A pack's step updates several states of the same shapes, stacked in a first dimension E.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec

from imbalance_jax import config as config_lib
from imbalance_jax.compute import model as model_lib
from imbalance_jax.compute import objective, sharding, tuning
from imbalance_jax.compute.context import Context, find_separators
from imbalance_jax.compute.optimizer import (
    chain_optimizer,
    learning_rate,
    select_shared_params,
)
from imbalance_jax.config import (
    Config,
    ModelConfig,
)
from imbalance_jax.data.languages import Vocabulary

Metrics = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Windows of base ids, each in one language. Inputs are the first L, targets the last."""

    ids_BW: Any  # an array on the host or on devices, or the shape of one
    language_B: Any
    weight_B: Any = None  # of each window's loss, where `mixture.loss_weights` has any
    separator_B: Any = None  # the model's id that separates documents, where these are apart
    key_B: Any = None  # uint32 (B, 2), with dropout

    @property
    def context(self) -> Context:
        separator_BS = None if self.separator_B is None else self.separator_B[:, None]
        return Context(self.language_B, separator_BS, self.key_B)


def label_windows(
    model: ModelConfig, vocabulary: Vocabulary, ids_BW: np.ndarray, language_B: np.ndarray
) -> Batch:
    """Returns windows of base ids with what the model reads of them besides, on the host."""
    separator_G = find_separators(model, vocabulary)
    separator_B = None if separator_G is None else separator_G[language_B]
    return Batch(ids_BW, language_B, separator_B=separator_B)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a training step reads and writes, and all that a checkpoint holds."""

    step: jax.Array  # updates done so far
    params: model_lib.Params
    opt_state: optax.OptState
    sequences_G: jax.Array  # trained so far, counted where they are trained


def init_state(config: Config, vocab_size: int, mesh: Mesh) -> TrainState:
    """Returns the state before the first update, made where it will lie."""
    return jit_init_state(config, vocab_size, mesh)(jax.random.key(config.seed))


def jit_init_state(config: Config, vocab_size: int, mesh: Mesh) -> jax.stages.Wrapped:
    """Returns the function that makes the first state of a run from the key of its seed.

    Runs that differ in what a pack allows have one such function, compiled once.
    """
    make = functools.partial(_init_state_from_key, config, vocab_size)
    shardings = sharding.make_state_shardings(mesh, jax.eval_shape(make, jax.random.key(0)))
    return jax.jit(make, out_shardings=shardings)


def make_abstract_state(config: Config, vocab_size: int, mesh: Mesh) -> TrainState:
    """Returns the shapes and shardings of a state, without making it."""
    make = functools.partial(_init_state_from_key, config, vocab_size)
    shapes = jax.eval_shape(make, jax.random.key(config.seed))
    return jax.tree.map(
        lambda leaf, sharding_: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding_),
        shapes,
        sharding.make_state_shardings(mesh, shapes),
    )


def _init_state_from_key(config: Config, vocab_size: int, key: jax.Array) -> TrainState:
    params = model_lib.init_params(config.model, vocab_size, key, len(config.languages))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=_chain_optimizer(config, jnp.zeros(())).init(params),
        sequences_G=jnp.zeros(len(config.languages), jnp.int32),
    )


def _chain_optimizer(config: Config, rate: jax.Array) -> optax.GradientTransformationExtraArgs:
    return chain_optimizer(
        config.optimizer,
        lambda count: rate,
        languages=len(config.languages),
        wider=config.model.compute_width_factor(),
    )


def train_step(
    config: Config, steps: int, state: TrainState, batch: Batch, map_GU: jax.Array
) -> tuple[TrainState, Metrics]:
    """One update. The metrics describe the parameters before it.

    Losses and tokens are sums per language, `loss_G` and `tokens_G`: a batch holds few
    sequences of a rare language, so means are taken over many batches, by the host.
    `trained_G` counts the sequences of all updates so far.
    """
    rate = learning_rate(config.optimizer, steps)(state.step)
    return _update_state(config, rate, state, batch, map_GU)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepInput:
    """The host's input of an update, of one member of a stack or of all."""

    batch: Any  # a Batch, or the sharding of one
    rate: Any  # the learning rate
    alive: Any  # bool; otherwise the state is kept as it is


def train_packed_step(
    config: Config,
    mesh: Mesh,
    way: str,
    state_E: TrainState,
    given_E: StepInput,
    map_EGU: jax.Array,
) -> tuple[TrainState, Metrics]:
    """One update, as `train_step`, of every member of a pack that is alive.

    Args:
      config: of a member; its seed, mixture and learning rate are not read.
      mesh: of the pack. No communication crosses its axis of members.
      way: scan, which takes the members on a device in turn, or vmap, all at once.
      state_E: the members' states, stacked as everything else is.
      given_E: what the host gives them for this update.
      map_EGU: their id maps.

    Returns:
      The new states, and the metrics of each member; all zero for one that is not alive.
    """

    # XLA's partitioner aborts where ids are looked up, beside members, in a table that is cut
    # both ways.
    cut_up = min(mesh.shape[axis] for axis in ("member", "fsdp", "tensor")) > 1
    view = _replicate_embedding_table if cut_up else _keep_params

    def member(args: tuple[TrainState, StepInput, jax.Array]) -> tuple[TrainState, Metrics]:
        state, given, map_GU = args

        def update(state: TrainState) -> tuple[TrainState, Metrics]:
            return _update_state(config, given.rate, state, given.batch, map_GU, view)

        def keep(state: TrainState) -> tuple[TrainState, Metrics]:
            shapes = jax.eval_shape(update, state)[1]
            return state, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

        return jax.lax.cond(given.alive, update, keep, state)

    def on_device(*args: Any) -> tuple[TrainState, Metrics]:
        if len(args[1].alive) == 1:  # as the run alone
            updated = member(jax.tree.map(lambda x: x[0], args))
            return jax.tree.map(lambda x: x[None], updated)
        return jax.lax.map(member, args) if way == "scan" else jax.vmap(member)(args)

    if mesh.shape["member"] > 1:
        each = PartitionSpec("member")
        # check_vma: the values that scans in a member begin with, such as zeros, vary over no axis.
        on_device = jax.shard_map(
            on_device,
            mesh=mesh,
            in_specs=each,
            out_specs=each,
            axis_names={"member"},
            check_vma=False,
        )
    return on_device(state_E, given_E, map_EGU)


def _keep_params(params: model_lib.Params) -> model_lib.Params:
    return params


def _replicate_embedding_table(params: model_lib.Params) -> model_lib.Params:
    """Returns parameters whose tables that are looked up every device of a member has whole."""
    tables = {name: params[name] for name in ("embed_VD", "position_GLD") if name in params}
    whole = jax.tree.map(
        lambda table: jax.lax.with_sharding_constraint(table, PartitionSpec()), tables
    )
    return {**params, **whole}


def _update_state(
    config: Config,
    rate: jax.Array,
    state: TrainState,
    batch: Batch,
    map_GU: jax.Array,
    view: Callable[[model_lib.Params], model_lib.Params] = _keep_params,
) -> tuple[TrainState, Metrics]:
    """One update at a learning rate; the loss is computed with `view(params)`.

    With `skip_nonfinite`, an update whose loss or gradient is not finite changes the step alone.
    """

    def mean_loss(params: model_lib.Params, *rest: Any) -> tuple[jax.Array, jax.Array]:
        return _compute_mean_loss(view(params), *rest)

    loss_and_gradient: Callable[..., Any] = jax.value_and_grad(mean_loss, has_aux=True)
    per_language = config.optimizer.moments == "per_language"
    if per_language:
        loss_and_gradient = functools.partial(_compute_language_gradients, view)
    micro = config.optimizer.accumulate
    if micro == 1:
        (loss, loss_G), grads = loss_and_gradient(state.params, config.model, batch, map_GU)
    else:
        # Rows r, r + micro, ...: every device keeps the rows that it has.
        parts = jax.tree.map(lambda x: x.reshape(-1, micro, *x.shape[1:]).swapaxes(0, 1), batch)

        def add(total: Any, part: Batch) -> tuple[Any, None]:
            sums = loss_and_gradient(state.params, config.model, part, map_GU)
            return jax.tree.map(jnp.add, total, sums), None

        first = jax.tree.map(lambda x: x[0], parts)
        shapes = jax.eval_shape(
            lambda part: loss_and_gradient(state.params, config.model, part, map_GU), first
        )
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        ((loss, loss_G), grads), _ = jax.lax.scan(add, zeros, parts)
        loss, grads = jax.tree.map(lambda x: x / micro, (loss, grads))

    sequences_G = jnp.bincount(batch.language_B, length=len(config.languages)).astype(jnp.int32)
    trained_G = state.sequences_G + sequences_G
    with jax.named_scope("optimizer"):
        optimizer = _chain_optimizer(config, rate)
        of_languages = {}
        if per_language:
            grads, grads_G = grads
            of_languages = {"language_grads": grads_G, "is_trained_G": trained_G > 0}
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params, **of_languages)
        params, norm = optax.apply_updates(state.params, updates), optax.tree.norm(grads)
    new = TrainState(step=state.step + 1, params=params, opt_state=opt_state, sequences_G=trained_G)
    if config.optimizer.skip_nonfinite:
        # Not optax.apply_if_finite: the learning rate follows the step, also past an update that
        # is left out, and the state stays what it is without the field.
        skipped = dataclasses.replace(state, step=new.step)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        # A jnp.where would be compiled into what computes the update, and round differently.
        new = jax.lax.cond(finite, lambda new, _: new, lambda _, old: old, new, skipped)
    metrics = {
        "loss": loss,
        "loss_G": loss_G,
        "tokens_G": sequences_G * config.model.L,
        "trained_G": new.sequences_G,
        "grad_norm": norm,
        "learning_rate": rate,
    }
    return new, metrics


def _compute_mean_loss(
    params: model_lib.Params, config: ModelConfig, batch: Batch, map_GU: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the mean loss of all positions, weighted, and its sum per language, unweighted."""
    ids_BW = map_to_model_ids(batch, map_GU)
    hidden_BLD = model_lib.compute_last_hidden_state(params, config, ids_BW[:, :-1], batch.context)
    return _compute_head_loss(hidden_BLD, params, config, batch, map_GU)


def _compute_head_loss(
    hidden_BLD: jax.Array,
    params: model_lib.Params,
    config: ModelConfig,
    batch: Batch,
    map_GU: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Returns what `_compute_mean_loss` does, from the last hidden state."""
    target_BL = map_to_model_ids(batch, map_GU)[:, 1:]
    weight_BL = jnp.ones(target_BL.shape, jnp.float32)
    if batch.weight_B is not None:
        weight_BL = weight_BL * batch.weight_B[:, None]
    total, loss_BL = objective.cross_entropy(
        hidden_BLD,
        model_lib.get_output_embeddings(params, config),
        target_BL,
        weight_BL,
        chunk=config.loss_chunk,
        tile=config.loss_tile,
    )
    loss_G = jax.ops.segment_sum(jnp.sum(loss_BL, axis=1), batch.language_B, map_GU.shape[0])
    return total / target_BL.size, loss_G


def _compute_language_gradients(
    view: Callable[[model_lib.Params], model_lib.Params],
    params: model_lib.Params,
    config: ModelConfig,
    batch: Batch,
    map_GU: jax.Array,
) -> tuple[tuple[jax.Array, jax.Array], tuple[model_lib.Params, model_lib.Params]]:
    """Returns the losses, as `_compute_mean_loss` of `view(params)`, and two trees of gradients.

    The first is that of the mean loss. The second has, of the parameters that all languages share,
    what each language's windows have in it: (G, ...). They take one forward pass, and a backward
    pass of the blocks for each language.
    """

    def hidden_state(params: model_lib.Params) -> jax.Array:
        ids_BL = map_to_model_ids(batch, map_GU)[:, :-1]
        return model_lib.compute_last_hidden_state(view(params), config, ids_BL, batch.context)

    def head_loss(hidden_BLD: jax.Array, params: model_lib.Params) -> Any:
        return _compute_head_loss(hidden_BLD, view(params), config, batch, map_GU)

    hidden_BLD, pull_back = jax.vjp(hidden_state, params)
    losses, (dhidden_BLD, head_grads) = jax.value_and_grad(head_loss, (0, 1), has_aux=True)(
        hidden_BLD, params
    )

    def add(total: model_lib.Params, language: jax.Array) -> tuple[Any, model_lib.Params]:
        mine_B11 = (batch.language_B == language)[:, None, None]
        (grads,) = pull_back(jnp.where(mine_B11, dhidden_BLD, 0))
        return jax.tree.map(jnp.add, total, grads), select_shared_params(grads)

    return losses, jax.lax.scan(add, head_grads, jnp.arange(map_GU.shape[0]))


def weigh_losses(config: Config, language_B: np.ndarray, steps: int | None = None) -> Any:
    """Returns the weight of each window's loss, (B,), or None where all have the same.

    Args: steps is as `compute_loss_weights` has it.
    """
    if not config.mixture.loss_weights:
        return None
    return np.asarray(config_lib.compute_loss_weights(config, steps), np.float32)[language_B]


def map_to_model_ids(batch: Batch, map_GU: jax.Array) -> jax.Array:
    """Returns the model's ids for a batch's base ids: each row through its language's map."""
    return map_GU[batch.language_B[:, None], batch.ids_BW.astype(jnp.int32)]


def make_step_input_shardings(mesh: Mesh) -> StepInput:
    """Returns the shardings of a pack's step inputs; one is that of all arrays of a batch."""
    rows, whole = sharding.make_batch_sharding(mesh), sharding.make_replicated_sharding(mesh)
    return sharding.stack_shardings(StepInput(rows, whole, whole))


def jit_step(
    config: Config, steps: int, mesh: Mesh, state: TrainState, way: str = ""
) -> jax.stages.Wrapped:
    """Returns the jitted step: `train_step`, or `train_packed_step` where `way` is given.

    It takes the state's memory over and compiles once. Without pinned output shardings the
    second call would see other ones than the first, and compile again.

    Args:
      config: of the run, or of any member of the pack.
      steps: of the run; a pack is given its learning rates.
      mesh: of the devices.
      state: a state, or the shapes of one; stacked where `way` is given.
      way: scan or vmap, for the members of a pack that share a device.
    """
    one = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape[bool(way) :], leaf.dtype), state
    )
    states = sharding.make_state_shardings(mesh, one)
    rows, whole = sharding.make_batch_sharding(mesh), sharding.make_replicated_sharding(mesh)
    settled = resolve_auto_in_config(config, mesh, one.params["embed_VD"].shape[0])
    inputs: Any = rows
    maps = metrics = whole
    step = sharding.bind_mesh_context(mesh, train_step, settled, steps)
    if way:
        states, inputs = sharding.stack_shardings(states), make_step_input_shardings(mesh)
        maps = sharding.stack_shardings(whole)
        # What the host reads must be on its own devices.
        metrics = maps if jax.process_count() == 1 else whole
        step = sharding.bind_mesh_context(mesh, train_packed_step, settled, mesh, way)
    return jax.jit(
        step,
        in_shardings=(states, inputs, maps),
        out_shardings=(states, metrics),
        donate_argnums=0,
        compiler_options=dict(tuning.COMPILER_OPTIONS[mesh.devices.flat[0].platform]),
    )


def resolve_auto_in_config(config: Config, mesh: Mesh, vocab_size: int) -> Config:
    """Returns a config whose model says how it is computed on the devices of a mesh."""
    rows = config.batch_size // config.optimizer.accumulate
    tuning.check_attention_on_device(config.model, mesh.devices.flat[0])
    model = tuning.resolve_auto_on_mesh(mesh, config.model, rows, vocab_size)
    return dataclasses.replace(config, model=model)
