"""Times the training steps of other programs in turn with ours, on a size that all of them get.

    python docs/measure_peers/compare.py --case=mini:2:4 --rounds=3 --steps=5 \
        --against="TORCH_PYTHON docs/measure_peers/xling_imbalance.py --code=CHECKOUT" \
        --against="JAX_PYTHON docs/measure_peers/nanodo.py --code=CHECKOUT"

This script needs imbalance_jax, and starts `ours.py` for it. The others run in environments of
their own, which need not have this package; each drives the code of a checkout that lies elsewhere
and holds none of that code itself. Every program is a process of its own, and they take turns,
A B A B: the speed of a machine changes meanwhile, so a ratio is taken within each round.

A program is any command that speaks this protocol. Its stdin is one JSON object, the case:

    case                     as python -m imbalance_jax.bench takes it, for ours
    B, L, D, H, K, F, N, V   sizes; imbalance_jax/__init__.py has the key
    tied                     whether one matrix is both input embedding and head
    dtype                    of matrix products: float32, bfloat16, float16; --dtype goes first
    steps                    how many are timed
    threads                  for the programs that are told how many

The ids are random (seed 0) and wait on the device. Two steps go unmeasured, or three of a
program that compiles itself while it runs. A step's clock stops when its loss has been computed
and the weights have been updated. What the program does in its own steps belongs to the step:
its optimizer, learning rate, masks, precision and metrics stay as they are.

The last line of its stdout is one JSON object:

    program, versions, device, threads, dtype
    seconds_per_step         of each timed step
    flops_per_token          6 x (weights of all matrix products, head included, input embedding
                             excluded) + 6 N H K L, of the model that really ran
    parameters, loss         the latter of the last step
    peak_bytes               of the device; null on a CPU
    notes                    where the step is not the one that was asked for, or not quite theirs

With a package or the checkout missing, one sentence on stderr says what to do, and the exit status
is 2.
"""

import argparse
import json
import pathlib
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from imbalance_jax.bench.case import BenchmarkCase, parse_case
from imbalance_jax.compute import tuning
from imbalance_jax.runs import children

OURS = [sys.executable, str(pathlib.Path(__file__).with_name("ours.py"))]
_LONGEST = 3600.0  # seconds that one process may take


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", action="append", required=True, help="as the bench takes it")
    parser.add_argument("--against", action="append", required=True, help="a program's command")
    parser.add_argument("--rounds", type=int, default=3, help="starts of each program")
    parser.add_argument("--steps", type=int, default=5, help="steps that each start times")
    parser.add_argument("--out", help="a JSON file to write the figures to")
    args = parser.parse_args(arguments)
    results: dict[str, Any] = {"command": sys.argv[1:], "cases": {}}
    try:
        cases = [parse_case(text) for text in args.case]  # all, before the first one runs
        for case in cases:
            results["cases"][case.name] = compare_programs(
                case, args.against, rounds=args.rounds, steps=args.steps
            )
            print("\n".join(describe_comparison(results["cases"][case.name])), flush=True)
            if args.out:
                pathlib.Path(args.out).write_text(json.dumps(results, indent=2))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def describe_case(case: BenchmarkCase, dtype: str, steps: int) -> dict[str, Any]:
    """Returns what a program reads."""
    model = case.config.model
    return {
        "case": case.name,
        "B": case.config.batch_size,
        **{name: getattr(model, name) for name in "LDHKFN"},
        "V": case.vocab_size,
        "tied": model.tied,
        "dtype": dtype,
        "steps": steps,
        "threads": children.count_cores(),
    }


def compare_programs(
    case: BenchmarkCase,
    commands: Sequence[str],
    *,
    rounds: int,
    steps: int,
    note: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Returns what ours and each other program report, and the ratios between them, for JSON.

    Args:
      case: what is timed.
      commands: to start other programs, as one types them.
      rounds: how often each program is started.
      steps: how many each times.
      note: told of each process that has ended.

    Raises:
      ValueError: a program failed, or printed something else.
    """
    dtype = tuning.resolve_auto_fields(case.config.model, jax.devices()[0]).dtype
    request = describe_case(case, dtype, steps)
    programs = [OURS, *(shlex.split(command) for command in commands)]
    reports: list[list[dict[str, Any]]] = [[] for _ in programs]
    for round_ in range(rounds):
        for rounds_of_one, command in zip(reports, programs, strict=True):
            report = run_program(command, request)
            rounds_of_one.append(report)
            seconds = statistics.median(report["seconds_per_step"])
            note(f"round {round_ + 1} of {rounds}: {report['program']} {seconds:.3f} s a step")
    return {
        "case": request,
        "rounds": rounds,
        "programs": [_summarise_program(of_one, reports[0]) for of_one in reports],
    }


def run_program(command: Sequence[str], request: dict[str, Any]) -> dict[str, Any]:
    """Returns the report of one start of a program."""
    text = shlex.join(command)
    try:
        done = subprocess.run(
            command, input=json.dumps(request), capture_output=True, text=True, timeout=_LONGEST
        )
    except FileNotFoundError:
        raise ValueError(f"--against: there is no program {command[0]}.") from None
    except subprocess.TimeoutExpired:
        raise ValueError(f"--against: {text} took longer than {_LONGEST:,.0f} s.") from None
    lines = done.stdout.strip().splitlines()
    try:
        report = json.loads(lines[-1])
        report["seconds_per_step"][0]
    except (IndexError, KeyError, TypeError, ValueError):
        why = (done.stderr.strip() or "nothing").splitlines()[-1]
        raise ValueError(
            f"--against: {text} ended with {done.returncode} and without a result. It said: {why}"
        ) from None
    return report


def _summarise_program(
    reports: Sequence[dict[str, Any]], ours: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Returns the newest report of a program, with its times and ratios of all rounds."""
    seconds = [statistics.median(report["seconds_per_step"]) for report in reports]
    our_seconds = [statistics.median(report["seconds_per_step"]) for report in ours]
    ratios = [one / our for one, our in zip(seconds, our_seconds, strict=True)]
    peaks = [report["matmul_peak"]["median"] for report in reports if "matmul_peak" in report]
    summary = {
        "seconds_per_step": [report["seconds_per_step"] for report in reports],
        "seconds": statistics.median(seconds),
        # How many times as long it takes as ours, in each round.
        "ratio": statistics.median(ratios),
        "ratio_least": min(ratios),
        "ratio_most": max(ratios),
    }
    return reports[-1] | summary | ({"matmul_peaks": peaks} if peaks else {})


def describe_comparison(comparison: dict[str, Any]) -> Iterator[str]:
    """Yields a table."""
    case, programs = comparison["case"], comparison["programs"]
    tokens = case["B"] * case["L"]
    yield (
        f"{case['case']}: {case['B']} x {case['L']}, vocabulary {case['V']:,}, {case['threads']} "
        f"threads, {comparison['rounds']} rounds of {case['steps']} steps in turn"
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


if __name__ == "__main__":
    sys.exit(main())
