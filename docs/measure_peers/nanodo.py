"""Times a training step of NanoDO, Google DeepMind's small transformer in JAX and flax.

    git clone https://github.com/google-deepmind/nanodo
    pip install jax flax optax ml-collections absl-py
    python nanodo.py --code=nanodo < case.json

Config, model, loss, optimizer, state and the jitted step of its Trainer are imported from the
checkout. `compare.py` beside this file has the protocol.
"""

import argparse
import importlib
import json
import os
import sys
import time
from typing import Any, NoReturn
from unittest import mock

DTYPES = ("float32", "bfloat16", "float16")

# What its modules import to read text and to write logs and a step never touches. Some of it
# needs TensorFlow; a stand-in takes its place, so that none of it has to be installed.
NOT_OF_THE_STEP = ("clu", "grain", "grain.python", "sentencepiece", "tensorflow_datasets")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--code", required=True, help="checkout of google-deepmind/nanodo")
    parser.add_argument("--dtype", choices=DTYPES, help="its model.dtype; the case's by default")
    args = parser.parse_args()
    case = json.load(sys.stdin)
    if not os.path.exists(os.path.join(args.code, "nanodo", "train.py")):
        exit_with_message(
            f"--code={args.code} is no checkout of NanoDO: "
            "git clone https://github.com/google-deepmind/nanodo"
        )
    if case["D"] % case["K"]:
        exit_with_message(
            f"D={case['D']} is not a multiple of K={case['K']}, which NanoDO's heads need."
        )
    # In front: this file has the same name as the package.
    sys.path.insert(0, os.path.abspath(args.code))
    try:
        report = time_train_step(case, args.dtype or case["dtype"])
    except ModuleNotFoundError as error:
        exit_with_message(
            f"{error.name} is missing: pip install jax flax optax ml-collections absl-py"
        )
    print(json.dumps(report))


def exit_with_message(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(2)


def time_train_step(case: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Returns what the protocol asks for."""
    import flax
    import jax
    import numpy as np
    import optax

    B, L, V, steps = case["B"], case["L"], case["V"], case["steps"]
    warm_up = 2
    device = jax.devices()[0]
    trainer, H = build_trainer(case, dtype, device)

    # A batch for each step, because its step donates the one that it is given. No id is 0,
    # which is its padding and has no loss.
    rng = np.random.default_rng(0)
    ids = rng.integers(1, V, (warm_up + steps, B, L), dtype=np.int32)
    batches = [jax.device_put(ids_BL, device) for ids_BL in ids]
    jax.block_until_ready((trainer.state, batches))

    seconds, metrics = [], {}
    for index, ids_BL in enumerate(batches):
        began = time.perf_counter()
        metrics = trainer.do_step(index, ids_BL)
        jax.block_until_ready((trainer.state, metrics))
        if index >= warm_up:
            seconds.append(time.perf_counter() - began)

    leaves = jax.tree_util.tree_leaves_with_path(trainer.state.params)
    size = {jax.tree_util.keystr(path): leaf.size for path, leaf in leaves}
    # The embedding counts once, as the head; looking up is no product.
    products = [name for name in size if "kernel" in name or "['embed']" in name]
    weights = sum(size[name] for name in products)
    return {
        "program": "nanodo",
        "versions": {module.__name__: module.__version__ for module in (jax, flax, optax)},
        "device": device.device_kind,
        "threads": os.cpu_count(),
        "dtype": dtype,
        "seconds_per_step": seconds,
        "flops_per_token": 6.0 * (weights + case["N"] * case["D"] * L),
        "parameters": sum(size.values()),
        "loss": float(metrics["train_loss"]),
        "peak_bytes": (device.memory_stats() or {}).get("peak_bytes_in_use"),
        "notes": list_step_notes(case, dtype, H, device.platform),
    }


def build_trainer(case: dict[str, Any], dtype: str, device: Any) -> tuple[Any, int]:
    """Returns its Trainer, which holds the state and the jitted step, and its heads."""
    # Before the stand-ins: whatever these look for must be real.
    import jax
    import ml_collections  # noqa: F401
    import numpy as np
    import orbax.checkpoint  # noqa: F401

    for name in NOT_OF_THE_STEP:
        sys.modules[name] = mock.MagicMock()
    default = importlib.import_module("nanodo.configs.default")
    model_factory = importlib.import_module("nanodo.model_factory")
    train = importlib.import_module("nanodo.train")

    # Its heads are always as wide as D together.
    H = case["D"] // case["K"]
    c = default.get_config()
    c.model.update({name: case[name] for name in "DLNF"} | {"H": H, "dtype": dtype})
    c.batch_size = case["B"]
    c.log_internal_metrics = False

    mesh = jax.sharding.Mesh(np.array([device]), ("data",))
    model, get_loss_fn = model_factory.get_model_and_loss(c, case["V"])
    rng = jax.random.PRNGKey(c.seed)
    shardings, state = train._init_train_state(c, model, rng=rng, mesh=mesh)
    return train.Trainer(c, state, mesh, shardings, get_loss_fn), H


def list_step_notes(case: dict[str, Any], dtype: str, H: int, platform: str) -> list[str]:
    notes = [
        "each step also computes its norms of gradients, parameters and updates",
        "one device, and ids that wait there instead of arriving from the host",
        "the last position of a sequence has no loss, and is computed all the same",
    ]
    if case["H"] != H:
        notes.append(f"H={H} instead of {case['H']}: its heads are as wide as D together")
    if not case["tied"]:
        notes.append("its head is its input embedding, though one of its own was asked for")
    if dtype != "float32":
        notes.append("embedding, residual stream and head stay in float32, as it has them")
    elif platform == "gpu":
        notes.append("float32 products may use TensorFloat-32: JAX's default")
    return notes


if __name__ == "__main__":
    main()
