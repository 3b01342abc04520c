"""Measures how fast training is on this device.

    python -m imbalance_jax.bench                                        # a few sizes
    python -m imbalance_jax.bench --case=small:2:16 --case="small:2:16 model.attention=einsum"
    python -m imbalance_jax.bench --case=small:2:8 --compile-only        # memory only
    python -m imbalance_jax.bench --case=small:2 --topology=v5e:4x4 --compile-only
    python -m imbalance_jax.bench --config=90_10                         # the stream of batches
    python -m imbalance_jax.bench --alignment=runs/en_fr --pairs=500
    python -m imbalance_jax.bench --case=pico:2 --members=8              # a pack, and runs in turn
    python -m imbalance_jax.bench --case=pico:2 --meshes                 # each mesh, and one device

A case is scale:languages:batch, with fields of the config after it. Speeds are shares of the matmul
peak measured in the same process, and of the datasheet's. docs/performance.md has our numbers.
"""

import datetime
import os
import pathlib
import sys
import time
from collections.abc import Iterable
from typing import Any

from absl import flags

from imbalance_jax import cli
from imbalance_jax import config as config_lib
from imbalance_jax.bench import case as case_lib
from imbalance_jax.config import costs
from imbalance_jax.runs import children, storage
from imbalance_jax.runs.json_text import format_json

FLAGS = flags.FLAGS

# Variables of the environment that change how fast a step is.
_VARIABLES = ("GLIBC_TUNABLES", "JAX_PLATFORMS", "LIBTPU_INIT_ARGS", "OMP_NUM_THREADS", "XLA_FLAGS")

# What is timed where nothing is asked for.
_DEFAULT_CASES = {"cpu": ["demo:2", "pico:2", "mini:2:4"]}
_DEFAULT_CASES_ELSEWHERE = ["mini:2", "small:2"]


def define_flags() -> None:
    flags.DEFINE_multi_string(
        "case", [], "CASE: scale:languages:batch and fields, such as model.N=2."
    )
    cli.define_config_flag()
    flags.DEFINE_float("seconds", 5.0, "How long the steps of a case go on.", lower_bound=0)
    flags.DEFINE_bool("profile", True, "Split a step's time by the parts of the model.")
    flags.DEFINE_bool("start", False, "Time a first and a second start of each case too.")
    flags.DEFINE_string(
        "topology", None, "TPUs to compile the cases for, such as v5e:4x4; nothing runs."
    )
    flags.DEFINE_bool("compile_only", False, "Say what memory a step takes, and run nothing.")
    flags.DEFINE_alias("compile-only", "compile_only")
    flags.DEFINE_float("deadline", 0.0, "Seconds after which no further case begins; 0 is none.", 0)
    flags.DEFINE_string("out", None, "FILE: Write the figures there, as JSON.")
    flags.DEFINE_integer(
        "members", 0, "Runs of a pack to time, of each case or the config.", 0, 4096
    )
    flags.DEFINE_bool("meshes", False, "Time every mesh of the devices at hand.")
    flags.DEFINE_string("alignment", None, "RUN: Time the alignment of a run.")
    flags.DEFINE_integer("pairs", 512, "Sequences that --alignment is timed on.", lower_bound=8)
    flags.DEFINE_integer("compared", 5, "Those for the reference's way of it.", lower_bound=1)


# What each way of asking for a measurement takes beside --out; without one, cases are measured.
_TAKEN = {
    "alignment": {"pairs", "compared"},
    "config": {"members", "seconds"},
    "case": {
        *("seconds", "profile", "start", "topology", "compile_only", "deadline", "members"),
        "meshes",
    },
}


def _refuse_flags_without_use() -> None:
    """Raises ValueError on a flag that what is asked for would leave unread."""
    given = {name for name in set[str]().union(*_TAKEN.values()) if FLAGS[name].present}
    asked = [name for name in _TAKEN if FLAGS[name].present]
    if len(asked) > 1:
        raise ValueError(f"--{asked[0]} and --{asked[1]} are two measurements. Take one of them.")
    if FLAGS.members and FLAGS.meshes:
        raise ValueError("--members and --meshes are two measurements. Take one of them.")
    subject = asked[0] if asked else "case"
    for name in sorted(given - _TAKEN[subject]):
        takers = " or ".join(f"--{taker}" for taker, taken in _TAKEN.items() if name in taken)
        flag = name.replace("_", "-")
        raise ValueError(f"--{flag} is nothing to --{subject}. It is for {takers}; leave it out.")


def main() -> int:
    _refuse_flags_without_use()
    if FLAGS.out is not None:
        storage.check_file_writable("--out", FLAGS.out)
    if FLAGS.alignment:
        from imbalance_jax.bench import alignment

        figures = alignment.measure_alignment_speed(FLAGS.alignment, FLAGS.pairs, FLAGS.compared)
        _print_lines(alignment.describe_alignment_speed(figures))
        _write_figures(figures)
    elif FLAGS.config is not None and FLAGS.members:
        name = FLAGS["config"].config_filename  # type: ignore[attr-defined]
        packing = _measure_pack(name, cli.require_run_config())
        _write_figures(_make_report_header() | {"packing": packing})
    elif FLAGS.config is not None:
        from imbalance_jax.bench import stream, training

        config = cli.require_run_config()
        experiment = case_lib.build_experiment(config)
        figures = stream.measure_stream_speed(experiment, seconds=FLAGS.seconds)
        _print_lines(stream.describe_stream_speed(figures))
        _print_lines(training.describe_training_step("training", figures))
        _write_figures(figures)
    else:
        # All are read before the first one runs.
        cases = [case_lib.parse_case(text) for text in FLAGS.case or _list_default_cases()]
        return _measure_cases(cases)
    return cli.DONE


def _list_default_cases() -> list[str]:
    import jax

    return _DEFAULT_CASES.get(jax.default_backend(), _DEFAULT_CASES_ELSEWHERE)


def _measure_cases(cases: list[case_lib.BenchmarkCase]) -> int:
    """Measures each case in turn; one that fails does not keep the others from it.

    Returns:
      The exit code: that of a failure where a case failed.
    """
    import jax

    began = time.monotonic()
    header = _make_report_header()
    device, packages = header["device"], header["versions"]["packages"]
    print(
        f"{header['date']}: {device['count']} x {device['kind']} ({header['threads']} threads of "
        f"the host, {header['cpu']}), jax {packages['jax']}, Python {header['versions']['python']}",
        flush=True,
    )
    results: dict[str, Any] = {}
    for case in cases:
        if FLAGS.deadline and time.monotonic() - began > FLAGS.deadline:
            results[case.name] = {"skipped": f"--deadline={FLAGS.deadline:g} has passed"}
        else:
            try:
                results[case.name] = _measure_case(case)
            except (jax.errors.JaxRuntimeError, ValueError) as error:
                if len(cases) == 1:
                    raise
                results[case.name] = {"error": str(error).splitlines()[0]}
        for problem in ("skipped", "error"):
            if problem in results[case.name]:
                print(f"{case.name}: {problem}: {results[case.name][problem]}", flush=True)
        # After each case, should the rest be cut off.
        _write_figures(header | {"cases": results})
    return cli.FAILED if any("error" in figures for figures in results.values()) else cli.DONE


def _measure_case(case: case_lib.BenchmarkCase) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    if FLAGS.topology:
        from imbalance_jax.bench import topology

        figures["topology"] = topology.measure_step_on_topology(
            case.config, case.vocab_size, FLAGS.topology
        )
        _print_lines([case.name, *topology.describe_topology_step(figures["topology"])])
    elif FLAGS.compile_only:
        from imbalance_jax.compute import hardware

        experiment = case_lib.build_experiment(case.config)
        compiled = experiment.compile_step(experiment.abstract_state())
        figures["memory"] = hardware.count_program_memory(compiled.memory_analysis())
        parts = ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in figures["memory"].items())
        print(f"{case.name}: memory of a device, as XLA plans it: {parts}", flush=True)
    if FLAGS.start:
        from imbalance_jax.bench import start

        figures["start"] = start.measure_start_times(case.name)
        _print_lines([case.name, *start.describe_start_times(figures["start"])])
    if FLAGS.compile_only or FLAGS.topology:
        return figures
    if FLAGS.members:
        figures["packing"] = _measure_pack(case.name, case.config)
    elif FLAGS.meshes:
        from imbalance_jax.bench import meshes

        _print_lines([case.name, meshes.HEAD])
        figures["meshes"] = []
        for row in meshes.measure_meshes(case.config, seconds=FLAGS.seconds):
            figures["meshes"].append(row)
            print(meshes.describe_mesh_speed(row), flush=True)
    else:
        from imbalance_jax.bench import training

        figures["training"] = training.measure_training_step(
            case_lib.build_experiment(case.config), seconds=FLAGS.seconds, profiled=FLAGS.profile
        )
        _print_lines(training.describe_training_step(case.name, figures["training"]))
    return figures


def _measure_pack(name: str, config: config_lib.Config) -> dict[str, Any]:
    from imbalance_jax.bench import packing

    figures = packing.measure_packing(config, FLAGS.members, seconds=FLAGS.seconds)
    _print_lines(packing.describe_packing(name, figures))
    return figures


def _make_report_header() -> dict[str, Any]:
    """Returns what the figures of all cases have in common; times are seconds, sizes bytes."""
    from imbalance_jax.compute import hardware
    from imbalance_jax.runs.code_versions import get_code_versions

    return {
        "date": datetime.date.today().isoformat(),
        "command": sys.argv[1:],
        "device": hardware.describe_devices(),
        "cpu": hardware.read_cpu_name(),
        "threads": children.count_cores(),
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "versions": get_code_versions(),
        "flop_convention": costs.FLOP_CONVENTION,
        "datasheet_flops": hardware.find_datasheet_flops(),
    }


def _print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, flush=True)


def _write_figures(figures: dict[str, Any]) -> None:
    if FLAGS.out:
        pathlib.Path(FLAGS.out).write_text(format_json(figures, indent=2))


if __name__ == "__main__":
    define_flags()
    cli.run_command(main, computes=True)
