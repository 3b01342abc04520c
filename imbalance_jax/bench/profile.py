"""Where the time of a program goes, by the named parts of the model.

The compiled program says which part each of its operations belongs to (jax.named_scope, in
model.py, objective.py and step.py), and a trace of one call how long each ran. A fusion counts
as what its last operation belongs to. Operations outside every part, among them the copies of a
scan over layers, are `other`.
"""

import collections
import glob
import gzip
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

PARTS = ("embedding", "norm", "attention", "feed_forward", "head", "optimizer")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = ")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_PART = re.compile(rf"(?<![\w])({'|'.join(PARTS)})(?![\w])")


def find_operation_parts(program: str) -> dict[str, str]:
    """Returns the part that each operation of a compiled program's text belongs to."""
    found = {}
    for line in program.splitlines():
        instruction = _INSTRUCTION.match(line)
        if not instruction:
            continue
        op_name = _OP_NAME.search(line)
        # Scopes are nested: the innermost one says what it is.
        scopes = _PART.findall(op_name.group(1)) if op_name else []
        found[instruction.group(1)] = scopes[-1] if scopes else "other"
    return found


def measure_part_seconds(
    compiled: jax.stages.Compiled, call: Callable[[], Any]
) -> dict[str, float]:
    """Returns the device's seconds in each part during one call; {} where a trace has none.

    Args:
      compiled: the program.
      call: runs it once, and waits for it.
    """
    text = compiled.as_text()
    parts = find_operation_parts(text or "")
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            call()
        events = list(_read_trace_events(folder))
    seconds: collections.Counter[str] = collections.Counter()
    for event in events:
        name = event.get("args", {}).get("hlo_op", event["name"])
        if name in parts:
            seconds[parts[name]] += event["dur"] * 1e-6
    return {part: seconds[part] for part in (*PARTS, "other") if seconds[part]}


def _read_trace_events(folder: str) -> Iterator[Mapping[str, Any]]:
    """Yields what ran on a device, or on the threads that stand for one."""
    for path in glob.glob(os.path.join(folder, "**", "*.trace.json.gz"), recursive=True):
        with gzip.open(path) as file:
            events = json.load(file)["traceEvents"]
        processes = _collect_trace_names(events, "process_name", "pid")
        threads = _collect_trace_names(events, "thread_name", "pid", "tid")
        on_device = any("/device:" in name for name in processes.values())
        for event in events:
            if event.get("ph") != "X" or "dur" not in event:
                continue
            process = processes.get((event["pid"],), "")
            thread = threads.get((event["pid"], event["tid"]), "")
            # An accelerator has lines for whole programs and steps too, which hold the others.
            if not on_device or ("/device:" in process and _shows_single_operations(thread)):
                yield event


def _shows_single_operations(thread: str) -> bool:
    """Whether a line of a device shows single operations: streams of a GPU, ops of a TPU."""
    return thread.startswith("Stream") or thread == "XLA Ops"


def _collect_trace_names(events: list[dict[str, Any]], kind: str, *keys: str) -> dict[tuple, str]:
    return {
        tuple(event[key] for key in keys): event["args"]["name"]
        for event in events
        if event.get("ph") == "M" and event.get("name") == kind
    }
