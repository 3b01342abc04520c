"""Conditions that decide on the bits of a run besides its config, and how they changed.

The same config gives the same run on any machine, up to the rounding of fp32. It gives the same
bits only where XLA compiles the same program and shares its sums out alike.
"""

import os
from collections.abc import Mapping
from typing import Any

import jax

from imbalance_jax.compute import hardware

# Whose versions decide on a program.
_PACKAGES = ("jax", "jaxlib", "flax", "optax")
# Flags of XLA that change no program, or whose effect is counted otherwise.
_HARMLESS_FLAGS = ("--xla_dump", "--xla_force_host_platform_device_count")


def record_conditions(
    known: Mapping[str, Any],
    mesh: Mapping[str, int],
    computed: Mapping[str, Any],
    micro_batches: int,
) -> dict[str, Any]:
    """Returns what the bits of a run rest on, ready for JSON.

    Args:
      known: of `code_versions.get_code_versions`.
      mesh: its sizes.
      computed: how the model is computed, by field.
      micro_batches: of an update.
    """
    device = hardware.describe_devices()
    flags = os.environ.get("XLA_FLAGS", "").split()
    found = {
        "device": device["kind"],
        "devices": device["count"],
        "processes": device["processes"],
        "mesh": dict(mesh),
        "micro_batches": micro_batches,
        "computed": dict(computed),
        "code": known["git"].removesuffix("-dirty"),
        "packages": {name: known["packages"].get(name, "not known") for name in _PACKAGES},
        "xla_flags": sorted(flag for flag in flags if not flag.startswith(_HARMLESS_FLAGS)),
        "matmul_precision": jax.config.values["jax_default_matmul_precision"] or "default",
    }
    if device["platform"] == "cpu":  # elsewhere the host computes nothing of an update
        found |= {"cores": hardware.count_usable_cores(), "cpu": hardware.read_cpu_name()}
    return found


def describe_change(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Returns a line that names each condition of a resumed run that changed, or "".

    Args: as `list_changes`.
    """
    changes = list_changes(before, now)
    if not changes:
        return ""
    return (
        f"Goes on with {'; '.join(changes)}: from here on it need not have the bits of a run "
        "without this change."
    )


def list_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns each condition that changed, as in "1 core instead of 2 cores".

    Args:
      before: what `record_conditions` found; empty for a run of an earlier version.
      now: what it finds.
    """
    if not before:
        return []
    old, new = _describe_conditions(before), _describe_conditions(now)
    return [
        f"{new.get(name, 'none')} instead of {old.get(name, 'none')}"
        for name in dict.fromkeys((*new, *old))
        if new.get(name) != old.get(name)
    ]


def _describe_conditions(conditions: Mapping[str, Any]) -> dict[str, str]:
    """Returns each condition as a phrase that can be read alone."""

    def count(name: str, noun: str, several: str = "") -> str:
        number = conditions.get(name, 0)
        return f"{number} {noun if number == 1 else several or noun + 's'}"

    words = {
        "device": str(conditions.get("device")),
        "devices": count("devices", "device"),
        "processes": count("processes", "process", "processes"),
        "micro_batches": count("micro_batches", "micro-batch", "micro-batches"),
        "code": f"code {str(conditions.get('code'))[:10]}",
        "xla_flags": f"XLA_FLAGS={' '.join(conditions.get('xla_flags', ())) or 'none'}",
        "matmul_precision": f"matmul precision {conditions.get('matmul_precision')}",
    }
    for group in ("mesh", "computed", "packages"):
        for name, value in conditions.get(group, {}).items():
            joint = " " if group == "packages" else "="
            words[f"{group}.{name}"] = f"{name}{joint}{value}"
    if "cores" in conditions:
        words |= {"cores": count("cores", "core"), "cpu": str(conditions.get("cpu"))}
    if "members_at_once" in conditions:
        words["members_at_once"] = count("members_at_once", "member at once", "members at once")
    return words
