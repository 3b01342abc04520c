"""Times a training step of the reference study's code, which is PyTorch on one device.

    git clone https://github.com/antonschafer/xling-imbalance
    pip install torch munch psutil sentencepiece
    python xling_imbalance.py --code=xling-imbalance [--compile] [--flash] < case.json

Model, learning rates and config are imported from the checkout. The step does what its trainer's
does between two batches, logging aside. `compare.py` beside this file has the protocol.
"""

import argparse
import importlib
import json
import os
import sys
import time
from typing import Any, NoReturn

DTYPES = ("float32", "bfloat16", "float16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--code", required=True, help="checkout of antonschafer/xling-imbalance")
    parser.add_argument("--compile", action="store_true", help="as its main.py does by default")
    parser.add_argument("--flash", action="store_true", help="its use_flash: fused attention")
    parser.add_argument("--dtype", choices=DTYPES, help="of autocast; the case's by default")
    args = parser.parse_args()
    case = json.load(sys.stdin)
    project = os.path.join(args.code, "languini", "projects", "gpt")
    if not os.path.exists(os.path.join(project, "model.py")):
        exit_with_message(
            f"--code={args.code} is no checkout of the reference study: "
            "git clone https://github.com/antonschafer/xling-imbalance"
        )
    # Its scripts import both `languini` and the modules that lie beside them.
    sys.path[:0] = [os.path.abspath(project), os.path.abspath(args.code)]
    try:
        report = time_train_step(case, args.dtype or case["dtype"], args.compile, args.flash)
    except ModuleNotFoundError as error:
        exit_with_message(f"{error.name} is missing: pip install torch munch psutil sentencepiece")
    print(json.dumps(report))


def exit_with_message(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(2)


def time_train_step(
    case: dict[str, Any], dtype: str, compiled: bool, flash: bool
) -> dict[str, Any]:
    """Returns what the protocol asks for."""
    import torch

    torch.set_num_threads(case["threads"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    step, model = build_step(case, dtype, compiled, flash, device)

    seconds, loss = [], float("nan")
    warm_up = 3 if compiled else 2
    for index in range(warm_up + case["steps"]):
        if on_gpu:
            torch.cuda.synchronize()
        began = time.perf_counter()
        loss = step()
        if on_gpu:
            torch.cuda.synchronize()
        if index >= warm_up:
            seconds.append(time.perf_counter() - began)

    products = [part for part in model.modules() if isinstance(part, torch.nn.Linear)]
    weights = sum(product.weight.numel() for product in products)
    return {
        "program": f"xling-imbalance, PyTorch {'compiled' if compiled else 'eager'}"
        f"{', flash' if flash else ''}",
        "versions": {"torch": torch.__version__},
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
        "threads": torch.get_num_threads(),
        "dtype": dtype,
        "seconds_per_step": seconds,
        "flops_per_token": 6.0 * (weights + case["N"] * case["H"] * case["K"] * case["L"]),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "loss": loss,
        "peak_bytes": torch.cuda.max_memory_allocated(device) if on_gpu else None,
        "notes": list_step_notes(case, dtype, on_gpu),
    }


def build_step(
    case: dict[str, Any], dtype: str, compiled: bool, flash: bool, device: Any
) -> tuple[Any, Any]:
    """Returns a function that does one update and returns its loss, and the model."""
    import torch

    # By name: this repository has a `configs` too, which a type checker would take for theirs.
    configs = importlib.import_module("configs")
    schedules = importlib.import_module("languini.train_lib.lr_schedules")
    Model = importlib.import_module("model").Model

    B, L, V = case["B"], case["L"], case["V"]
    c = configs.load_config()
    c.update(device=device, train_batch_size=B, seq_len=L, vocab_size=V, use_flash=flash)
    c.update(n_layers=case["N"], h_dim=case["D"], mlp_dim=case["F"])
    c.update(n_heads=case["H"], head_dim=case["K"])

    torch.manual_seed(0)
    model = Model(config=c)
    run = (torch.compile(model, mode="default") if compiled else model).to(device)
    optimizer = torch.optim.Adam(model.parameters(), c.max_lr, betas=(0.9, 0.95))  # eps: 1e-8
    schedule = schedules.CosineLR(
        optimizer, 200, c.max_lr, c.min_lr, max_steps=c.decay_steps, decay_after=False
    )
    # Where it is off, its methods still do what the optimizer's would.
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == "float16")
    window = torch.randint(V, (B, L + 1)).to(device)
    ids_BL, target_BL = window[:, :-1].contiguous(), window[:, 1:].contiguous()

    def step() -> float:
        run.train()
        with torch.autocast(device.type, getattr(torch, dtype), enabled=dtype != "float32"):
            logits_BLV, _ = run(ids_BL, None, log=None)
            loss = torch.nn.functional.cross_entropy(logits_BLV.reshape(-1, V), target_BL.flatten())
        scaler.scale(loss).backward()
        # Its trainer fetches every step's loss here, before the update.
        value = loss.item()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        schedule.step()
        return value

    return step, model


def list_step_notes(case: dict[str, Any], dtype: str, on_gpu: bool) -> list[str]:
    notes = ["one process, without the DistributedDataParallel that its main.py always wraps"]
    if case["tied"]:
        notes.append("its head is a matrix of its own, though a tied one was asked for")
    if on_gpu and dtype == "float32":
        notes.append("float32 products are without TensorFloat-32: PyTorch's default")
    if dtype != ("float16" if on_gpu else "float32"):
        usual = "float16 on a GPU" if on_gpu else "float32 on a CPU"
        notes.append(f"its trainer always takes {usual}; --dtype sets another")
    return notes


if __name__ == "__main__":
    main()
