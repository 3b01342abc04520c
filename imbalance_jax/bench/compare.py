"""Other programs in turn with ours, each in a process of its own: A B A B.

A program is any command that reads a case as JSON from its input and prints a JSON object as
its last line; comparisons/__init__.py has the fields. Taking turns, all meet the same machine,
whose speed may change meanwhile: a ratio is taken within each round.
"""

import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from imbalance_jax.bench.case import BenchmarkCase
from imbalance_jax.compute import tuning
from imbalance_jax.runs import children

OURS = [sys.executable, "-m", "imbalance_jax.bench.comparisons.ours"]
_LONGEST = 3600.0  # seconds that one process may take


def describe_case(case: BenchmarkCase, vocab_size: int, dtype: str, steps: int) -> dict[str, Any]:
    """Returns what a comparison program reads."""
    model = case.config.model
    return {
        "case": case.name,
        "B": case.config.batch_size,
        **{name: getattr(model, name) for name in "LDHKFN"},
        "V": vocab_size,
        "tied": model.tied,
        "dtype": dtype,
        "steps": steps,
        "threads": children.count_cores(),
    }


def compare_programs(
    case: BenchmarkCase,
    vocab_size: int,
    commands: Sequence[str],
    *,
    rounds: int,
    steps: int,
    note: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Returns what ours and each other program say, and the ratios between them, for JSON.

    Args:
      case: what is timed.
      vocab_size: of the case.
      commands: to start other programs, as one types them.
      rounds: how often each program is started.
      steps: how many each times.
      note: told of each process that has ended.

    Raises:
      ValueError: a program failed, or printed something else.
    """
    import jax

    dtype = tuning.resolve_auto_fields(case.config.model, jax.devices()[0]).dtype
    asked = describe_case(case, vocab_size, dtype, steps)
    programs = [OURS, *(shlex.split(command) for command in commands)]
    found: list[list[dict[str, Any]]] = [[] for _ in programs]
    for round_ in range(rounds):
        for results, command in zip(found, programs, strict=True):
            results.append(_run_program(command, asked))
            seconds = statistics.median(results[-1]["seconds_per_step"])
            note(f"round {round_ + 1} of {rounds}: {results[-1]['program']} {seconds:.3f} s a step")
    return {
        "case": asked,
        "rounds": rounds,
        "programs": [_summarise_program(r, found[0]) for r in found],
    }


def _run_program(command: Sequence[str], asked: dict[str, Any]) -> dict[str, Any]:
    said = shlex.join(command)
    try:
        done = subprocess.run(
            command, input=json.dumps(asked), capture_output=True, text=True, timeout=_LONGEST
        )
    except FileNotFoundError:
        raise ValueError(f"--against: there is no program {command[0]}.") from None
    except subprocess.TimeoutExpired:
        raise ValueError(f"--against: {said} took longer than {_LONGEST:,.0f} s.") from None
    lines = done.stdout.strip().splitlines()
    try:
        found = json.loads(lines[-1])
        found["seconds_per_step"][0]
    except (IndexError, KeyError, TypeError, ValueError):
        why = (done.stderr.strip() or "nothing").splitlines()[-1]
        raise ValueError(
            f"--against: {said} ended with {done.returncode} and without a result. It said: {why}"
        ) from None
    return found


def _summarise_program(
    results: Sequence[dict[str, Any]], ours: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Returns the newest result of a program, with its times and ratios of all rounds."""
    seconds = [statistics.median(result["seconds_per_step"]) for result in results]
    us = [statistics.median(result["seconds_per_step"]) for result in ours]
    ratios = [theirs / mine for theirs, mine in zip(seconds, us, strict=True)]
    peaks = [result["matmul_peak"]["median"] for result in results if "matmul_peak" in result]
    return (
        results[-1]
        | {
            "seconds_per_step": [result["seconds_per_step"] for result in results],
            "seconds": statistics.median(seconds),
            # How many times as long it takes as ours, in each round.
            "ratio": statistics.median(ratios),
            "ratio_least": min(ratios),
            "ratio_most": max(ratios),
        }
        | ({"matmul_peaks": peaks} if peaks else {})
    )


def describe_comparison(found: dict[str, Any]) -> Iterable[str]:
    """Yields a table."""
    case, programs = found["case"], found["programs"]
    tokens = case["B"] * case["L"]
    yield (
        f"{case['case']}: {case['B']} x {case['L']}, vocabulary {case['V']:,}, {case['threads']} "
        f"threads, {found['rounds']} rounds of {case['steps']} steps in turn"
    )
    ours = programs[0]
    peak = statistics.median(ours["matmul_peaks"])
    for program in programs:
        flops = program["flops_per_token"] * tokens / program["seconds"]
        line = (
            f"  {program['program']:36} {program['dtype']:9} {program['seconds']:8.3f} s a step "
            f"{tokens / program['seconds']:10,.0f} tokens/s {flops / 1e9:9,.1f} GFLOP/s "
            f"{flops / peak:5.0%} of the matmul peak"
        )
        if program is not ours:
            line += (
                f"; ours is {program['ratio']:.2f} times as fast ({program['ratio_least']:.2f} "
                f"to {program['ratio_most']:.2f})"
            )
        yield line
    yield (
        f"  matmul peak: {peak / 1e9:,.0f} GFLOP/s, the median between our steps; the best was "
        f"{ours['matmul_peak']['best'] / 1e9:,.0f}"
    )
