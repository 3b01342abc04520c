"""Decoder-only transformer over the vocabulary of all languages.

`init_params` makes the parameters and `compute_last_hidden_state` uses them; both are pure, and
nothing outside this file knows that flax stands behind them. Parameters are a nest of plain dicts
of arrays. Their names end in their dimensions, and sharding.py reads them from there; those
of the blocks have N in front, however the blocks are run.

At its defaults the model is GPT-2 with learned positions, normalisation before each layer, biases,
an untied head without one, and token embeddings scaled by sqrt(D). Dials of `config.model` change
these; blocks.py has the parts.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from imbalance_jax.compute import tuning
from imbalance_jax.compute.attention import SAVED, is_cudnn_attention
from imbalance_jax.compute.blocks import Block, init_normal_param
from imbalance_jax.compute.context import (
    NO_CONTEXT,
    Context,
    check_context,
    drop_out,
    fold_in_keys,
    number_documents,
)
from imbalance_jax.compute.norms import make_norm
from imbalance_jax.compute.products import PRODUCT
from imbalance_jax.config import ModelConfig

Params = dict[str, Any]


class Transformer(nnx.Module):
    """The whole model; `blocks` is one block whose parameters have N in front."""

    def __init__(
        self, config: ModelConfig, vocab_size: int, key: jax.Array, languages: int = 1
    ) -> None:
        D, dtype = config.D, config.param_dtype
        ends_key, blocks_key = jax.random.split(key)
        rngs = nnx.Rngs(params=ends_key)
        self.dtype, self.remat, self.scan_layers = config.dtype, config.remat, config.scan_layers
        self.N, self.dropout = config.N, config.dropout
        self.embed_VD = init_normal_param(rngs, (vocab_size, D), dtype)
        self.has_positions = config.settle("position") == "learned"
        self.embed_factor = config.compute_embedding_factor()
        self.own_positions = config.position_tables == "per_language"
        if self.own_positions:
            self.position_GLD = init_normal_param(rngs, (languages, config.L, D), dtype)
        elif self.has_positions:
            self.position_LD = init_normal_param(rngs, (config.L, D), dtype)
        self.blocks = jax.vmap(lambda key: Block(config, rngs=nnx.Rngs(params=key)))(
            jax.random.split(blocks_key, config.N)
        )
        self.final_norm = make_norm(config)
        if not config.tied:
            self.head_VD = init_normal_param(rngs, (vocab_size, D), dtype)

    def embed(self, ids_BL: jax.Array, context: Context = NO_CONTEXT) -> jax.Array:
        L = ids_BL.shape[1]
        x_BLD = self.embed_VD[ids_BL] * self.embed_factor
        if self.own_positions:
            x_BLD = x_BLD + self.position_GLD[:, :L][context.language_B]
        elif self.has_positions:
            x_BLD = x_BLD + self.position_LD[:L][None]
        # The blocks have the numbers below N.
        key_B = fold_in_keys(context.key_B, self.N)
        return drop_out(x_BLD.astype(self.dtype), self.dropout, key_B)

    def run_blocks(
        self,
        x_BLD: jax.Array,
        document_BL: jax.Array | None = None,
        key_B: jax.Array | None = None,
        *,
        keep: bool,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Returns the last block's output and, to keep, that of each one: (N, B, L, D)."""

        def run_block(
            x_BLD: jax.Array, block: tuple[Block, Any]
        ) -> tuple[jax.Array, jax.Array | None]:
            module, number = block
            x_BLD = module(x_BLD, document_BL, fold_in_keys(key_B, number))
            return x_BLD, x_BLD if keep else None

        if self.remat != "none":
            policies = jax.checkpoint_policies
            # Matrix products, and of attention its result, without the weights.
            dots = policies.save_from_both_policies(
                policies.save_only_these_names(SAVED, PRODUCT), is_cudnn_attention
            )
            if self.dtype == "float32":  # or a product would be kept before it is rounded
                dots = policies.save_from_both_policies(
                    policies.dots_with_no_batch_dims_saveable, dots
                )
            run_block = jax.checkpoint(run_block, policy={"dots": dots, "full": None}[self.remat])
        # A module is a pytree of its parameters, so jax scans over it and cuts it up.
        if self.scan_layers:
            numbers_N = None if key_B is None else jnp.arange(self.N)
            return jax.lax.scan(run_block, x_BLD, (self.blocks, numbers_N))
        outputs: list[Any] = []
        for number, block in enumerate(_unstack_blocks(self.blocks, self.N)):
            x_BLD, output_BLD = run_block(x_BLD, (block, number))
            outputs.append(output_BLD)
        return x_BLD, jnp.stack(outputs) if keep else None


def _unstack_blocks(blocks: Block, N: int) -> list[Block]:
    """Returns each block by itself; gradients come back through one concatenation."""
    leaves, tree = jax.tree.flatten(blocks)
    parts = [jax.lax.split(leaf, (1,) * N, axis=0) for leaf in leaves]
    return [jax.tree.unflatten(tree, [part[n][0] for part in parts]) for n in range(N)]


def init_params(config: ModelConfig, vocab_size: int, key: jax.Array, languages: int = 1) -> Params:
    """Returns new parameters: a nest of dicts, with those of all blocks stacked.

    The number of languages counts where each has positions of its own.
    """
    _, state = nnx.split(Transformer(config, vocab_size, key, languages))
    return nnx.to_pure_dict(state)


@functools.lru_cache
def _make_graph(config: ModelConfig, vocab_size: int) -> nnx.GraphDef:
    """Returns what a model is besides its parameters' values."""
    return nnx.graphdef(jax.eval_shape(lambda: Transformer(config, vocab_size, jax.random.key(0))))


def _build_model(params: Params, config: ModelConfig) -> Transformer:
    """Returns the model with these parameters, computed as suits the first device."""
    config = tuning.resolve_auto_fields(config, jax.devices()[0])
    return nnx.merge(_make_graph(config, params["embed_VD"].shape[0]), params)


def compute_last_hidden_state(
    params: Params, config: ModelConfig, ids_BL: jax.Array, context: Context = NO_CONTEXT
) -> jax.Array:
    """Returns the output of the final norm at every position: (B, L, D).

    Raises:
      ValueError: the sequences are longer than the model has positions, or the context lacks what
        the model reads.
    """
    return _run_forward_pass(params, config, ids_BL, context, keep=False)[0]


def compute_hidden_states(
    params: Params, config: ModelConfig, ids_BL: jax.Array, context: Context = NO_CONTEXT
) -> jax.Array:
    """Returns the state of every position between all layers: (N + 2, B, L, D).

    First the input of the first block, then the residual stream after each block, and last the
    output of the final norm, which `compute_last_hidden_state` returns.

    Raises: as `compute_last_hidden_state`.
    """
    last_BLD, first_BLD, blocks_NBLD = _run_forward_pass(params, config, ids_BL, context, keep=True)
    return jnp.concatenate([first_BLD[None], blocks_NBLD, last_BLD[None]])


def _run_forward_pass(
    params: Params, config: ModelConfig, ids_BL: jax.Array, context: Context, *, keep: bool
) -> tuple[jax.Array, jax.Array, Any]:
    """Returns the final norm's output, the first block's input and, to keep, each one's output."""
    if ids_BL.shape[1] > config.L:
        raise ValueError(f"Sequences of {ids_BL.shape[1]} exceed config.model.L={config.L}.")
    check_context(config, context)
    model, document_BL = _build_model(params, config), None
    with jax.named_scope("embedding"):
        first_BLD = model.embed(ids_BL, context)
        if config.documents == "apart":
            document_BL = number_documents(ids_BL, context.separator_BS)
    x_BLD, blocks_NBLD = model.run_blocks(first_BLD, document_BL, context.key_B, keep=keep)
    return model.final_norm(x_BLD), first_BLD, blocks_NBLD


def gather_embedding_rows(params: Params, row_V: np.ndarray) -> Params:
    """Returns parameters whose tables have, for every id, the row of another id in them."""
    tables = {name: params[name] for name in ("embed_VD", "head_VD") if name in params}
    shardings = jax.tree.map(lambda table: table.sharding, tables)
    take = jax.jit(lambda tables: jax.tree.map(lambda t: t[row_V], tables), out_shardings=shardings)
    return {**params, **take(tables)}


def get_output_embeddings(params: Params, config: ModelConfig) -> jax.Array:
    """Returns the output embeddings, (V, D), as logits have them.

    They are those of the input where they are tied. At m times the base width logits sum over m
    times more products, and are divided by m.
    """
    head_VD = params["head_VD"] if "head_VD" in params else params["embed_VD"]
    wider = config.compute_width_factor()
    return head_VD if wider == 1 else head_VD / wider


def compute_next_token_logits(
    params: Params, config: ModelConfig, ids_BL: jax.Array, context: Context = NO_CONTEXT
) -> jax.Array:
    """Returns fp32 logits of the next id at every position, whole: (B, L, V).

    For notebooks, generation and tests; objective.py never holds them all.
    """
    hidden_BLD = compute_last_hidden_state(params, config, ids_BL, context)
    head_VD = get_output_embeddings(params, config).astype(hidden_BLD.dtype)
    return jnp.einsum("BLD,VD->BLV", hidden_BLD, head_VD, preferred_element_type=jnp.float32)


def count_parameters(config: ModelConfig, vocab_size: int, languages: int = 1) -> int:
    """Returns the number of parameters, without making them. Args: as `init_params`."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(lambda key: init_params(config, vocab_size, key, languages), key)
    return sum(leaf.size for leaf in jax.tree.leaves(params))
