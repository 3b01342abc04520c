"""Times the training steps of other programs in turn with ours, on a size that all of them get.

    python docs/measure_peers/compare.py --case=mini:2:4 --rounds=3 --steps=5 \
        --against="TORCH_PYTHON docs/measure_peers/xling_imbalance.py --code=CHECKOUT" \
        --against="JAX_PYTHON docs/measure_peers/nanodo.py --code=CHECKOUT"

This script needs imbalance_jax, and starts `ours.py` for it. The others run in environments of
their own, which need not have this package; each drives the code of a checkout that lies elsewhere
and holds none of that code itself. Every program is a process of its own, and they take turns,
A B A B: the speed of a machine changes meanwhile, so a ratio is taken within each round. Ours is
the last of a round, so that a program that fails does so before ours was timed.

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

    program, device, dtype   texts
    versions, threads        an object and a whole number
    seconds_per_step         of each timed step, none of them zero
    flops_per_token          6 x (weights of all matrix products, head included, input embedding
                             excluded) + 6 N H K L, of the model that really ran
    parameters, loss         the latter of the last step
    peak_bytes               of the device; null on a CPU
    notes                    where the step is not the one that was asked for, or not quite theirs

No key may be missing. With a package or the checkout missing, one sentence on stderr says what to
do, and the exit status is 2.
"""

import argparse
import datetime
import json
import math
import pathlib
import shlex
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from imbalance_jax.bench.case import BenchmarkCase, parse_case
from imbalance_jax.compute import hardware, tuning
from imbalance_jax.runs import children, storage
from imbalance_jax.runs.code_versions import get_code_versions
from imbalance_jax.runs.json_text import format_json

OURS = [sys.executable, str(pathlib.Path(__file__).with_name("ours.py"))]
_LONGEST = 3600.0  # seconds that one process may take, unless --timeout says otherwise


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", action="append", required=True, help="as the bench takes it")
    parser.add_argument("--against", action="append", required=True, help="a program's command")
    parser.add_argument("--rounds", type=parse_count, default=3, help="starts of each program")
    parser.add_argument("--steps", type=parse_count, default=5, help="steps that each start times")
    parser.add_argument(
        "--timeout", type=parse_seconds, default=_LONGEST, help="seconds that one start may take"
    )
    parser.add_argument("--out", help="a JSON file to write the figures to")
    args = parser.parse_args(arguments)
    try:
        cases = [parse_case(text) for text in args.case]  # all, before the first one runs
        if args.out is not None:
            storage.check_file_writable("--out", args.out)
        results = make_header()
        for case in cases:
            results["cases"][case.name] = compare_programs(
                case, args.against, rounds=args.rounds, steps=args.steps, timeout=args.timeout
            )
            print("\n".join(describe_comparison(results["cases"][case.name])), flush=True)
            if args.out is not None:
                pathlib.Path(args.out).write_text(format_json(results, indent=2))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def parse_count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text} is no whole number from 1")
    return int(text)


def parse_seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 1e6:  # the system waits for no more than 24 days
        raise argparse.ArgumentTypeError(f"{text} is no number above 0, up to 1,000,000")
    return seconds


def make_header() -> dict[str, Any]:
    """Returns what all cases have in common; each program's answer has its own device."""
    return {
        "date": datetime.date.today().isoformat(),
        "command": sys.argv[1:],
        "cpu": hardware.read_cpu_name(),
        "versions": get_code_versions(),
        "cases": {},
    }


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
    timeout: float = _LONGEST,
    note: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Returns what ours and each other program report, and the ratios between them, for JSON.

    Args:
      case: what is timed.
      commands: to start other programs, as one types them.
      rounds: how often each program is started.
      steps: how many each times.
      timeout: seconds that each start may take.
      note: told of each process that has ended.

    Raises:
      ValueError: a program is not there, failed, took too long or printed something else.
    """
    programs = [OURS, *(split_command(command) for command in commands)]
    dtype = tuning.resolve_auto_fields(case.config.model, jax.devices()[0]).dtype
    request = describe_case(case, dtype, steps)
    reports: list[list[dict[str, Any]]] = [[] for _ in programs]
    for round_ in range(rounds):
        for turn in (*range(1, len(programs)), 0):  # ours is last
            report = run_program(programs[turn], request, timeout)
            reports[turn].append(report)
            seconds = statistics.median(report["seconds_per_step"])
            note(f"round {round_ + 1} of {rounds}: {report['program']} {seconds:.3f} s a step")
    return {
        "case": request,
        "rounds": rounds,
        "programs": [_summarise_program(of_one, reports[0]) for of_one in reports],
    }


def split_command(text: str) -> list[str]:
    """Returns the words of a program's command.

    Raises:
      ValueError: it has none, or the program is not there.
    """
    try:
        command = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"--against={text} cannot be read: {error}.") from None
    if not command:
        raise ValueError("--against is empty. Write the command that starts a program.")
    if shutil.which(command[0]) is None:
        raise ValueError(f"--against: there is no program {command[0]} that can be started.")
    return command


def run_program(
    command: Sequence[str], request: dict[str, Any], timeout: float = _LONGEST
) -> dict[str, Any]:
    """Returns the report of one start of a program."""
    name = shlex.join(command) if command == OURS else f"--against: {shlex.join(command)}"
    try:
        done = subprocess.run(
            command,
            input=json.dumps(request),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
        )
    except OSError as error:
        raise ValueError(f"{name} cannot be started: {error.strerror}.") from None
    except subprocess.TimeoutExpired:
        raise ValueError(f"{name} took longer than --timeout={timeout:g} seconds.") from None
    try:
        report = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        report = None
    if not isinstance(report, dict):
        why = (done.stderr.strip() or "nothing").splitlines()[-1]
        raise ValueError(
            f"{name} ended with {done.returncode} and without a result. It said: {why}"
        )
    faults = list(list_report_faults(report, request["steps"]))
    if faults:
        raise ValueError(
            f"{name} printed another result than the protocol asks for: {'; '.join(faults)}."
        )
    return report


def list_report_faults(report: dict[str, Any], steps: int) -> Iterator[str]:
    """Yields what a program's report lacks, or has of another kind than the protocol says."""
    missing = [name for name in _KINDS if name not in report and name != "matmul_peak"]
    if missing:
        yield f"it lacks {', '.join(missing)}"
    for name, (kind, is_kind) in _KINDS.items():
        if name in report and not is_kind(report[name]):
            yield f"{name} is {json.dumps(report[name])[:40]} and not {kind}"
        elif name == "seconds_per_step" and name in report and len(report[name]) != steps:
            yield f"{name} has {len(report[name])} steps and not {steps}"


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or _is_whole(value)


def _is_positive(value: Any) -> bool:
    return _is_number(value) and 0 < value < math.inf


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


# What each key of a report must hold. The last one is of ours, and not asked of others.
_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "program": ("a text", _is_text),
    "versions": ("an object", lambda value: isinstance(value, dict)),
    "device": ("a text", _is_text),
    "threads": ("a whole number", _is_whole),
    "dtype": ("a text", _is_text),
    "seconds_per_step": (
        "a list of numbers above 0",
        lambda value: isinstance(value, list) and all(map(_is_positive, value)),
    ),
    "flops_per_token": ("a number above 0", _is_positive),
    "parameters": ("a whole number", _is_whole),
    "loss": ("a number", _is_number),
    "peak_bytes": ("a whole number or null", lambda value: value is None or _is_whole(value)),
    "notes": (
        "a list of texts",
        lambda value: isinstance(value, list) and all(map(_is_text, value)),
    ),
    "matmul_peak": (
        "an object with best and median above 0",
        lambda value: (
            isinstance(value, dict) and all(_is_positive(value.get(n)) for n in ("best", "median"))
        ),
    ),
}


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
