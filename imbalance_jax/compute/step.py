"""One update: the TrainState, and the jitted step between two states.

A pack's step updates several states of the same shapes, stacked in a first dimension E.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from imbalance_jax.compute import model as model_lib
from imbalance_jax.compute import objective, sharding, tuning
from imbalance_jax.compute.optimizer import build_optimizer, chain_optimizer, learning_rate
from imbalance_jax.config import (
    Config,
    ModelConfig,
)

Metrics = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Windows of base ids, each in one language. Inputs are the first L, targets the last."""

    ids_BW: Any  # an array on the host or on devices, or the shape of one
    language_B: Any


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
    params = model_lib.init_params(config.model, vocab_size, key)
    wider = config.model.compute_width_factor()
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=build_optimizer(config.optimizer, config.steps, wider=wider).init(params),
        sequences_G=jnp.zeros(len(config.languages), jnp.int32),
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

    batch: Batch
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
    """Returns parameters whose input embeddings every device of a member has whole."""
    whole_VD = jax.lax.with_sharding_constraint(params["embed_VD"], PartitionSpec(None, None))
    return {**params, "embed_VD": whole_VD}


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

    loss_and_gradient = jax.value_and_grad(mean_loss, has_aux=True)
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

    with jax.named_scope("optimizer"):
        wider = config.model.compute_width_factor()
        tx = chain_optimizer(config.optimizer, lambda count: rate, wider=wider)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params, norm = optax.apply_updates(state.params, updates), optax.tree.norm(grads)
    sequences_G = jnp.bincount(batch.language_B, length=len(config.languages)).astype(jnp.int32)
    new = TrainState(
        step=state.step + 1,
        params=params,
        opt_state=opt_state,
        sequences_G=state.sequences_G + sequences_G,
    )
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
    """Returns the mean loss of all positions, and its sum per language."""
    ids_BW = map_to_model_ids(batch, map_GU)
    hidden_BLD = model_lib.compute_last_hidden_state(params, config, ids_BW[:, :-1])
    target_BL = ids_BW[:, 1:]
    total, loss_BL = objective.cross_entropy(
        hidden_BLD,
        model_lib.get_output_embeddings(params, config),
        target_BL,
        jnp.ones(target_BL.shape, jnp.float32),
        chunk=config.loss_chunk,
    )
    loss_G = jax.ops.segment_sum(jnp.sum(loss_BL, axis=1), batch.language_B, map_GU.shape[0])
    return total / target_BL.size, loss_G


def map_to_model_ids(batch: Batch, map_GU: jax.Array) -> jax.Array:
    """Returns the model's ids for a batch's base ids: each row through its language's map."""
    return map_GU[batch.language_B[:, None], batch.ids_BW.astype(jnp.int32)]


def make_step_input_shardings(mesh: Mesh) -> StepInput:
    """Returns the shardings of a pack's step inputs."""
    rows, whole = sharding.make_batch_sharding(mesh), sharding.make_replicated_sharding(mesh)
    return sharding.stack_shardings(StepInput(Batch(rows, rows), whole, whole))


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
    inputs: Batch | StepInput = Batch(rows, rows)
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
    model = tuning.resolve_auto_on_mesh(mesh, config.model, rows, vocab_size)
    return dataclasses.replace(config, model=model)
