"""How fast the parts of a run are, against what each is measured by.

    python -m imbalance_jax.bench                                        # this device
    python -m imbalance_jax.bench --case=small:2:16 --case="small:2:16 model.attention=einsum"
    python -m imbalance_jax.bench --case=mini:2:4 --against="python PROGRAM" --rounds=3
    python -m imbalance_jax.bench --case=small:2:8 --compile-only         # its memory
    python -m imbalance_jax.bench --case=small:2 --topology=v5e:4x4 --compile-only
    python -m imbalance_jax.bench --config=configs/90_10.py              # the stream
    python -m imbalance_jax.bench --alignment=runs/en_fr --pairs=500
    python -m imbalance_jax.bench --case=pico:2 --members=8              # packed against in turn
    python -m imbalance_jax.bench --case=pico:2 --meshes                 # each against one device

A case is scale:languages:batch, with fields of the config after it. Its speed is that of the
real step on made-up text, as shares of the matmul peak measured in the same process and of the
device's datasheet; its time is split by the parts of the model. --against starts other programs
in turn with ours. --topology compiles for TPUs that are not there (extra `tpu`). With a config,
the host's stream of batches is timed against its training; with a run, its alignment against
the reference study's way of it (extra `bench`). --members times a pack of so many runs, of a case
or a config, against the same runs in turn, in each way in which a device can take them. --meshes
times every mesh of the devices at hand against one of them.

docs/performance.md has what was measured so far.
"""

import datetime
import json
import sys
import time
from collections.abc import Iterable
from typing import Any

from absl import flags

from imbalance_jax import cli
from imbalance_jax import config as config_lib
from imbalance_jax.bench import case as case_lib
from imbalance_jax.config import costs
from imbalance_jax.data.text import reading as text

FLAGS = flags.FLAGS

# What is timed where nothing is asked for.
_DEFAULT_CASES = {"cpu": ["demo:2", "pico:2", "mini:2:4"]}
_DEFAULT_CASES_ELSEWHERE = ["mini:2", "small:2"]


def define_flags() -> None:
    cli.define_config()
    flags.DEFINE_multi_string("case", [], "scale:languages:batch, and fields such as model.N=2.")
    flags.DEFINE_float("seconds", 5.0, "How long the steps of a case go on.", lower_bound=0)
    flags.DEFINE_bool("profile", True, "Split a step's time by the parts of the model.")
    flags.DEFINE_bool("start", False, "Time a first and a second start of each case too.")
    flags.DEFINE_multi_string("against", [], "A command to time in turn with ours.")
    flags.DEFINE_integer("rounds", 3, "Turns of --against.", lower_bound=1)
    flags.DEFINE_integer("steps", 5, "Steps of a turn of --against.", lower_bound=1)
    flags.DEFINE_string("topology", None, "TPUs to compile the cases for, such as v5e:4x4.")
    flags.DEFINE_bool("compile_only", False, "Say what memory a step takes, and run nothing.")
    flags.DEFINE_alias("compile-only", "compile_only")
    flags.DEFINE_float("deadline", 0.0, "Seconds after which no further case begins; 0 is none.")
    flags.DEFINE_string("out", None, "A JSON file to write the figures to.")
    flags.DEFINE_integer("members", 0, "Runs of a pack to time, of each case or the config.")
    flags.DEFINE_bool("meshes", False, "Time every mesh of the devices at hand.")
    flags.DEFINE_string("alignment", None, "A run whose alignment is timed.")
    flags.DEFINE_integer("pairs", 512, "Sequences that --alignment is timed on.", lower_bound=8)
    flags.DEFINE_integer("compared", 5, "Those for the reference's way of it.", lower_bound=1)


def main() -> int:
    if FLAGS.alignment:
        from imbalance_jax.bench import alignment

        found = alignment.measure(FLAGS.alignment, FLAGS.pairs, FLAGS.compared)
        _print(alignment.describe(found))
        _write(found)
    elif FLAGS.config is not None and FLAGS.members:
        name = FLAGS["config"].config_filename  # type: ignore[attr-defined]
        _write(_header() | {"packing": _measure_pack(name, config_lib.resolve(FLAGS.config))})
    elif FLAGS.config is not None:
        from imbalance_jax.bench import stream, training

        config = config_lib.resolve(FLAGS.config)
        found = stream.measure(_trainer(config))
        _print(stream.describe(found))
        _print(training.describe("training", found))
        _write(found)
    else:
        # All are read before the first one runs.
        cases = [case_lib.parse(text) for text in FLAGS.case or _default_cases()]
        _write(_measure_cases(cases))
    return cli.DONE


def _default_cases() -> list[str]:
    import jax

    return _DEFAULT_CASES.get(jax.default_backend(), _DEFAULT_CASES_ELSEWHERE)


def _measure_cases(cases: list[case_lib.Case]) -> dict[str, Any]:
    """Measures each case in turn; one that fails does not keep the others from it."""
    import jax

    began = time.monotonic()
    results: dict[str, Any] = {}
    header = _header()
    device, packages = header["device"], header["versions"]["packages"]
    print(
        f"{header['date']}: {device['count']} x {device['kind']} ({header['threads']} threads of "
        f"the host), jax {packages['jax']}, Python {header['versions']['python']}",
        flush=True,
    )
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
        _write(header | {"cases": results})  # what is there counts, should the rest be cut off
    return header | {"cases": results}


def _measure_case(case: case_lib.Case) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if FLAGS.topology:
        from imbalance_jax.bench import topology

        found["topology"] = topology.measure(case.config, case.vocab_size, FLAGS.topology)
        _print([case.name, *topology.describe(found["topology"])])
    elif FLAGS.compile_only:
        found["memory"] = _memory(case)
        parts = ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in found["memory"].items())
        print(f"{case.name}: memory of a device, as XLA plans it: {parts}", flush=True)
    if FLAGS.start:
        from imbalance_jax.bench import start

        found["start"] = start.measure(case.name)
        _print([case.name, *start.describe(found["start"])])
    if FLAGS.compile_only:
        return found
    if FLAGS.against:
        from imbalance_jax.bench import compare

        found["against"] = compare.measure(
            case, case.vocab_size, FLAGS.against, rounds=FLAGS.rounds, steps=FLAGS.steps
        )
        _print(compare.describe(found["against"]))
        return found
    if FLAGS.members:
        found["packing"] = _measure_pack(case.name, case.config)
        return found
    if FLAGS.meshes:
        from imbalance_jax.bench import meshes

        _print([case.name, meshes.HEAD])
        found["meshes"] = []
        for row in meshes.measure(case.config, seconds=FLAGS.seconds):
            found["meshes"].append(row)
            print(meshes.describe(row), flush=True)
        return found
    from imbalance_jax.bench import training

    found["training"] = training.measure(
        _trainer(case.config), seconds=FLAGS.seconds, profiled=FLAGS.profile
    )
    _print(training.describe(case.name, found["training"]))
    return found


def _measure_pack(name: str, config: config_lib.Config) -> dict[str, Any]:
    from imbalance_jax.bench import packing

    found = packing.measure(config, FLAGS.members, seconds=FLAGS.seconds)
    _print(packing.describe(name, found))
    return found


def _header() -> dict[str, Any]:
    """Returns what the figures of all cases have in common; times are seconds, sizes bytes."""
    from imbalance_jax.compute import hardware
    from imbalance_jax.runs.run_directory import versions

    return {
        "date": datetime.date.today().isoformat(),
        "command": sys.argv[1:],
        "device": hardware.describe(),
        "threads": text.cores(),
        "versions": versions(),
        "flop_convention": costs.FLOP_CONVENTION,
        "datasheet_flops": hardware.datasheet_flops(),
    }


def _memory(case: case_lib.Case) -> dict[str, int]:
    """Returns the memory of a case's step on the devices at hand, which need not have it."""
    from imbalance_jax.bench import training

    trainer = _trainer(case.config)
    found = training.memory(trainer.compile_step(trainer.abstract_state()))
    return {name: size for name, size in found.items() if name != "allocator_peak"}


def _trainer(config: config_lib.Config) -> Any:
    import jax

    from imbalance_jax.compute import sharding
    from imbalance_jax.data import prepare
    from imbalance_jax.training.train import Trainer

    mesh = sharding.make_mesh(config.mesh, jax.devices())
    return Trainer.make(config, prepare.prepare_all(config), mesh)


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, flush=True)


def _write(found: dict[str, Any]) -> None:
    if FLAGS.out:
        with open(FLAGS.out, "w") as file:
            json.dump(found, file, indent=2)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
