"""What a run was made from: the text of its sources, and the code and machine it ran on."""

from typing import Any

from imbalance_jax.data.text.selection import describe_left_out
from imbalance_jax.drawing.numbers import ABSENT, format_count
from imbalance_jax.drawing.pages import render_number
from imbalance_jax.report.record import RunContents

_SPLITS = ("train", "validation", "test")


def describe_sources(run: RunContents) -> dict[str, Any] | None:
    """Returns the values of the section on sources; None before they are known."""
    sources = run.provenance.get("sources") or {}
    if not sources:
        return None
    rows, fingerprints = [], []
    for name, source in sources.items():
        for split in _SPLITS:
            documents, tokens, size = (
                (source.get(kind) or {}).get(split) for kind in ("documents", "tokens", "bytes")
            )
            rows.append(
                [
                    f"{name}, {split}",
                    *(render_number(count, format_count) for count in (documents, tokens, size)),
                    render_number(size / tokens if size and tokens else None, ".2f"),
                ]
            )
        ids = f", {source['vocab_size']:,} ids" if source.get("vocab_size") else ""
        label = f"fingerprint of {name} ({source.get('kind')}{ids})"
        fingerprints.append((label, source.get("fingerprint", "none")))
    hashes = [(r["step"], r["data/order"]) for r in run.records if "data/order" in r]
    step, order = hashes[-1] if hashes else (0, "")
    if order:
        fingerprints.append((f"hash of the order up to step {step:,}", order))
    sizes = {
        name: [sum((source.get(of) or {}).values()) for of in ("lost_bytes", "bytes")]
        for name, source in sources.items()
    }
    return {
        "rows": rows,
        "fingerprints": fingerprints,
        "order": order,
        "kinds": {source.get("kind") for source in sources.values()},
        "left_out": [
            line
            for name, source in sources.items()
            if source.get("documents")
            for line in describe_left_out(f"config.sources.{name}", source)
        ],
        "lossy": [(name, lost, whole) for name, (lost, whole) in sizes.items() if lost and whole],
    }


def list_provenance(run: RunContents) -> dict[str, Any]:
    """Returns the facts of provenance.json that the page shows; empty before it is there."""
    if not run.provenance:
        return {}
    return {
        **list_environment(run),
        "mesh": ", ".join(
            f"{axis}={size}" for axis, size in (run.provenance.get("mesh") or {}).items()
        ),
        "order of the data": f"version {run.provenance.get('order_version', ABSENT)}",
        "seed": run.config.seed,
        **{
            f"resume {number}": resume["line"]
            for number, resume in enumerate(run.provenance.get("resumes") or (), 1)
        },
    }


def list_environment(run: RunContents) -> dict[str, Any]:
    """Returns the code and the device that a run rests on, as provenance.json has them."""
    device = run.provenance.get("device") or {}
    return {
        "git revision": run.provenance.get("git"),
        "Python": run.provenance.get("python"),
        **(run.provenance.get("packages") or {}),
        "device": ", ".join(f"{name} {value}" for name, value in device.items()),
    }
