"""Where the time of a program goes, by the named parts of the model.

The compiled program names the part that each of its operations belongs to (jax.named_scope, in
model.py, objective.py and step.py), and a trace of one call has how long each ran. A fusion belongs
to the part of its last operation. Operations outside every part, among them the copies of a scan
over layers, are `other`.
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
    parts = {}
    for line in program.splitlines():
        if instruction := _INSTRUCTION.match(line):
            op_name = _OP_NAME.search(line)
            # Scopes are nested, and the innermost one counts.
            scopes = _PART.findall(op_name[1]) if op_name else []
            parts[instruction[1]] = scopes[-1] if scopes else "other"
    return parts


def measure_part_seconds(
    compiled: jax.stages.Compiled, call: Callable[[], Any]
) -> dict[str, float]:
    """Returns the device's seconds in each part during one call; {} where a trace has none.

    `call` runs the compiled program once, and waits for it.
    """
    parts = find_operation_parts(compiled.as_text() or "")
    seconds: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            call()
        for event in _read_trace_events(folder):
            name = event.get("args", {}).get("hlo_op", event["name"])
            if name in parts:
                seconds[parts[name]] += event["dur"] * 1e-6
    return {part: seconds[part] for part in (*PARTS, "other") if seconds[part]}


def _read_trace_events(folder: str) -> Iterator[Mapping[str, Any]]:
    """Yields what ran on a device, or on the threads that stand for one."""
    for path in glob.glob(os.path.join(folder, "**", "*.trace.json.gz"), recursive=True):
        with gzip.open(path) as file:
            events = json.load(file)["traceEvents"]
        names = {  # of processes by (pid, None), and of their threads
            (event["pid"], event.get("tid") if event["name"] == "thread_name" else None): event[
                "args"
            ]["name"]
            for event in events
            if event.get("ph") == "M" and event["name"] in ("process_name", "thread_name")
        }
        on_device = any("/device:" in name for name in names.values())
        for event in events:
            if event.get("ph") != "X" or "dur" not in event:
                continue
            process = names.get((event["pid"], None), "")
            thread = names.get((event["pid"], event["tid"]), "")
            # Single operations are in the streams of a GPU and the ops of a TPU. Other lines of an
            # accelerator are whole programs and steps, which hold them.
            single = thread.startswith("Stream") or thread == "XLA Ops"
            if not on_device or ("/device:" in process and single):
                yield event
