"""What makes a run the same run, and where two configs differ."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from imbalance_jax.config.resolve import to_dict
from imbalance_jax.config.schedule import compute_sequence_totals, list_stages
from imbalance_jax.config.schema import (
    Config,
    EvaluationConfig,
    MixtureConfig,
    ModelConfig,
    OptimizerConfig,
)
from imbalance_jax.config.text_schema import (
    ParallelConfig,
    SourceConfig,
    SyntheticConfig,
    TokenizerConfig,
)

# Fields that may differ when a run goes on in its directory: they say where, how often and with
# which devices, but not what is trained on what.
_NOT_IDENTITY = ("data_dir", "log_every", "mirrors", "evaluation", "checkpoint", "mesh", "parallel")
# Fields that earlier versions did not have. At their defaults they are left out, so that the
# hash of a run in a study.json of an earlier version is still its hash.
NEWER: Mapping[type, tuple[str, ...]] = {
    TokenizerConfig: ("character_coverage",),
    SyntheticConfig: ("rules",),
    SourceConfig: (
        *("format", "documents"),
        *("max_documents", "max_tokens", "where", "on_bad_line", "held_out_duplicates"),
    ),
    ParallelConfig: ("join", "format"),
    EvaluationConfig: ("minimal_pairs",),
    ModelConfig: (
        "preset",
        "position",
        "norm",
        "norm_place",
        "feed_forward",
        "bias",
        "qk_norm",
        "embed_scale",
        "rope_theta",
        "kv_heads",
        "documents",
        "position_tables",
        "dropout",
        "base_width",
        "base_head_width",
    ),
    MixtureConfig: ("loss_weights", "max_epochs"),
    OptimizerConfig: ("moments", "rate_factors", "decay_factors"),
}
# Fields of the model that choose among ways to compute the same function.
_NOT_FUNCTION = ("attention", "remat", "scan_layers", "loss_chunk", "loss_tile")


def build_run_identity(config: Config) -> dict[str, Any]:
    """Returns what makes a run the same run, as nested plain values."""
    plain = to_dict(config, leave_out=NEWER)
    del plain["mixture"]["same_total_as"]  # a check, not what is trained on
    for source in plain["sources"].values():
        del source["ids"]
    # Only content=disjoint compares the ids of several sources. Earlier versions took all ids for
    # shared, and had no field for it.
    own = sorted(name for name, source in config.sources.items() if source.ids == "own")
    if config.mixture.content == "disjoint" and own:
        plain["mixture"]["content"] = f"disjoint, with ids=own of {', '.join(own)}"
    for name in _NOT_FUNCTION:
        del plain["model"][name]
    # The number of micro-batches does not change the update. The field stays, as earlier hashes
    # have it.
    plain["optimizer"]["accumulate"] = OptimizerConfig.accumulate
    # It decides whether a run fails at an update, and nothing before. So a run that has failed may
    # go on with more of it.
    del plain["optimizer"]["skip_nonfinite"]
    # A stage that begins at a fraction of all steps counts by its step, which a longer run would
    # move.
    if config.mixture.stages:
        plain["mixture"]["stages"] = to_dict(list_stages(config))
        divided = config.mixture.switch == "document" or config.mixture.content == "disjoint"
        if divided or config.mixture.loss_weights:
            # Documents are divided, and losses weighted, in proportion to these totals, so more
            # steps would change whose documents they are, and the weights.
            totals = compute_sequence_totals(config)
            plain["mixture"]["sequences"] = {tag: str(total) for tag, total in totals.items()}
    if config.mixture.follows_text:
        rule = "temperature" if config.mixture.temperature else "max_epochs"
        plain["mixture"]["ratio"] = f"by {rule}"
    return {name: plain[name] for name in plain if name not in _NOT_IDENTITY}


def hash_plain_values(value: Any) -> str:
    """Returns a hash of nested plain values, 16 hex digits."""
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def find_differences(ours: Any, theirs: Any, field: str = "config") -> list[tuple[str, Any, Any]]:
    """Returns (field, ours, theirs) wherever two nested plain values differ."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return [
            difference
            for name in ours | theirs
            for difference in find_differences(
                ours.get(name, "absent"), theirs.get(name, "absent"), f"{field}.{name}"
            )
        ]
    same = json.dumps(ours, sort_keys=True) == json.dumps(theirs, sort_keys=True)
    return [] if same else [(field, ours, theirs)]
