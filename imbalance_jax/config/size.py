"""A model and its optimizer in a few words: what makes runs comparable."""

import dataclasses
from typing import Literal

from imbalance_jax.config.schema import Config, ModelConfig


def describe_size(config: Config) -> str:
    """Returns the size of a model, N x D, with the dials that are not the reference's.

    Runs are held against each other where it is equal. `position_tables` and `moments` of each
    language, and weights of losses, are left out: they change nothing of a language alone.
    """
    model, optimizer, usual = config.model, config.optimizer, ModelConfig()
    presets: tuple[Literal["llama", "modern"], ...] = ("llama", "modern")
    dials = model.settle_dials()
    parts: list[str] = [
        preset
        for preset in presets
        if dataclasses.replace(usual, preset=preset).settle_dials() == dials
    ]
    listed = {d: v for d, v in model.list_dials().items() if d != "position_tables"}
    parts += [f"{d}={v}" for d, v in listed.items() if not (parts and d in dials)]
    for name in ("tied", "documents", "dropout", "base_width", "base_head_width"):
        if (value := getattr(model, name)) != getattr(usual, name):
            parts.append(f"{name}={value}")
    if dials["position"] == "rope" and model.rope_theta != usual.rope_theta:
        parts.append(f"rope_theta={model.rope_theta:g}")
    if optimizer.name not in ("adam", "adamw"):
        parts.append(optimizer.name)
    for name in ("rate_factors", "decay_factors"):
        factors = dataclasses.asdict(getattr(optimizer, name))
        parts += [f"{name}.{group}={factor:g}" for group, factor in factors.items() if factor != 1]
    return ", ".join([f"{model.N}x{model.D}", *parts])
