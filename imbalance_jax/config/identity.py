"""What makes a run the same run, and where two configs differ."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from imbalance_jax.config.resolve import to_dict
from imbalance_jax.config.schedule import compute_sequence_totals, list_stages
from imbalance_jax.config.schema import Config, OptimizerConfig, TokenizerConfig

# What may differ when a run goes on in its directory: where, how often and with which
# devices, but not what is trained on what.
_NOT_IDENTITY = ("data_dir", "log_every", "mirrors", "evaluation", "checkpoint", "mesh", "parallel")
# Fields that earlier versions did not have. At their defaults they are left out, so that the
# hash of a run in a study.json of an earlier version is still its hash.
_NEWER: Mapping[type, tuple[str, ...]] = {TokenizerConfig: ("character_coverage",)}
# Of the model: ways to compute the same function.
_NOT_FUNCTION = ("attention", "remat", "scan_layers", "loss_chunk")


def build_run_identity(config: Config) -> dict[str, Any]:
    """Returns what makes a run the same run, as nested plain values."""
    plain = to_dict(config, leave_out=_NEWER)
    del plain["mixture"]["same_total_as"]  # a check, not what is trained on
    for source in plain["sources"].values():
        del source["ids"]
    # Ids of several sources are compared where documents are parted, and nowhere else. Earlier
    # versions took all for shared, and had no field that said so.
    own = sorted(name for name, source in config.sources.items() if source.ids == "own")
    if config.mixture.content == "disjoint" and own:
        plain["mixture"]["content"] = f"disjoint, with ids=own of {', '.join(own)}"
    for name in _NOT_FUNCTION:
        del plain["model"][name]
    # The same update in another number of parts. Set and not left out: earlier hashes have it.
    plain["optimizer"]["accumulate"] = OptimizerConfig.accumulate
    # Steps, however the config says where a stage begins; a longer run must not move them.
    if config.mixture.stages:
        plain["mixture"]["stages"] = to_dict(list_stages(config))
        if config.mixture.switch == "document" or config.mixture.content == "disjoint":
            # Documents are given out in proportion to these: more steps would do it anew.
            asked = {tag: str(total) for tag, total in compute_sequence_totals(config).items()}
            plain["mixture"]["sequences"] = asked
    if config.mixture.temperature:
        plain["mixture"]["ratio"] = "by temperature"
    return {name: plain[name] for name in plain if name not in _NOT_IDENTITY}


def hash_plain_values(value: Any) -> str:
    """Returns 16 hex digits that stand for a nest of plain values."""
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def find_differences(ours: Any, theirs: Any, field: str = "config") -> list[tuple[str, Any, Any]]:
    """Returns (field, ours, theirs) wherever two nests of plain values differ."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        found = []
        for name in [*ours, *(name for name in theirs if name not in ours)]:
            here = f"{field}.{name}"
            found += find_differences(ours.get(name, "absent"), theirs.get(name, "absent"), here)
        return found
    same = json.dumps(ours, sort_keys=True) == json.dumps(theirs, sort_keys=True)
    return [] if same else [(field, ours, theirs)]
