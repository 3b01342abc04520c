"""Whether a run that goes on computes what it computed before it stopped.

The metrics of an update describe the parameters before it, so those of the first update after a
save belong to the checkpoint. They are kept in first_updates.json, and the first update of a run
that goes on from that checkpoint has to give the same ones.
"""

import datetime
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from imbalance_jax.compute import conditions
from imbalance_jax.runs.run_directory import FIRST_UPDATES, RunDirectory


class FirstUpdates:
    """The first update after each checkpoint of a run; used by the process that writes.

    Args:
      run: whose provenance.json is of this start.
      tags: of its languages.
      start: the step that it goes on from, or 0.
      fingerprint: of the checkpoint of that step.
    """

    def __init__(
        self, run: RunDirectory, tags: Sequence[str], start: int, fingerprint: str
    ) -> None:
        self._run, self._tags, self._start = run, tags, start
        self._conditions = (run.read_json("provenance.json") or {}).get("conditions", {})
        self._fingerprints = {start: fingerprint} if start else {}
        self._unwritten: dict[int, dict[str, Any]] = {}

    def note_save(self, step: int, fingerprint: str) -> None:
        """Waits for the first update after a step that is being saved."""
        self._fingerprints[step] = fingerprint

    def read(self, done: int, values: Mapping[str, Any]) -> str:
        """Takes the metrics of an update; returns what they say of a resume, in a line, or "".

        Args:
          done: updates, with this one.
          values: its metrics, on the host.
        """
        step = done - 1
        if step not in self._fingerprints:
            return ""
        update = {
            "checkpoint": self._fingerprints.pop(step),
            "metrics": _select_metrics(values, self._tags),
            "conditions": self._conditions,
        }
        before = (self._run.read_json(FIRST_UPDATES) or {}).get(str(step), {})
        known = before.get("checkpoint") == update["checkpoint"]
        if not known:  # else the first one stands, of the start that saved it
            self._unwritten[step] = update
        if step != self._start:
            return ""
        self._start = 0
        return self._record_resume(step, compare_first_updates(before, update))

    def write(self, is_whole: Callable[[int], bool]) -> None:
        """Writes what was read down, for steps whose checkpoint is whole."""
        whole = {str(step): self._unwritten[step] for step in self._unwritten if is_whole(step)}
        if not whole:
            return
        kept, steps = self._run.read_json(FIRST_UPDATES) or {}, set(map(str, self._run.steps()))
        kept = {step: update for step, update in kept.items() if step in steps}
        self._run.write_json(FIRST_UPDATES, kept | whole)
        for step in whole:
            del self._unwritten[int(step)]

    def _record_resume(self, step: int, found: dict[str, Any]) -> str:
        """Adds a resume to provenance.json, and returns the line on it."""
        provenance = self._run.read_json("provenance.json") or {}
        line = f"Resumed at step {step:,}, {found['result']}"
        now = datetime.datetime.now(datetime.UTC).isoformat()
        resume = {"step": step, "time": now, **found, "line": line}
        provenance["resumes"] = [*provenance.get("resumes", []), resume]
        self._run.write_json("provenance.json", provenance)
        return line


def compare_first_updates(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Returns whether two updates of one state were the same, and what differs.

    Args:
      before: as first_updates.json has it; empty where there is none.
      now: the same of this start.
    """
    if not before:
        return {"verified": None, "result": "not verified: no update after it was recorded."}
    if before["checkpoint"] != now["checkpoint"]:
        return {
            "verified": None,
            "result": "not verified: what was recorded is of another checkpoint of this step.",
        }
    old, new = before["metrics"], now["metrics"]
    if not old or not new:
        return {"verified": None, "result": "not verified: the loss was not finite."}
    changed = conditions.list_changes(before["conditions"], now["conditions"])
    differences = {
        name: [old.get(name), value] for name, value in new.items() if old.get(name) != value
    }
    if not differences:
        return {
            "verified": True,
            "changed": changed,
            "result": "verified to the bit.",
        }
    name = max(differences, key=lambda name: _compute_relative_difference(*differences[name]))
    worst = _compute_relative_difference(*differences[name])
    why = f"with {'; '.join(changed)}" if changed else "and no condition that is recorded changed"
    return {
        "verified": False,
        "changed": changed,
        "differences": differences,
        "result": (
            f"not to the bit: {len(differences)} of {len(new)} metrics of the next update differ, "
            f"{name} most, by {worst:.1e} of its value, {why}."
        ),
    }


def _compute_relative_difference(before: float | None, now: float) -> float:
    if before is None:
        return math.inf
    return abs(now - before) / max(abs(now), abs(before), 1e-300)


def _select_metrics(values: Mapping[str, Any], tags: Sequence[str]) -> dict[str, float]:
    """Returns what two updates are compared by, exactly; {} if the loss is not finite."""
    found: dict[str, float] = {name: float(values[name]) for name in ("loss", "grad_norm")}
    for g, tag in enumerate(tags):
        found[f"loss_sum/{tag}"] = float(values["loss_G"][g])
        found[f"tokens/{tag}"] = int(values["tokens_G"][g])
    return found if all(map(math.isfinite, found.values())) else {}
