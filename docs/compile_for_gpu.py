"""Compiles the training step for an H200 on a machine without a GPU, and counts what it would do.

    pip install jax-cuda13-plugin jax-cuda13-pjrt nvidia-cuda-nvcc nvidia-nvvm nvidia-nvjitlink nvidia-cudnn-cu13
    python docs/compile_for_gpu.py "small:2:128" "small:2:128 model.scan_layers=False"

For each case of the bench it prints the kernels of one step by kind, and the bytes that they read
and write, from the text of the compiled program; loops count as often as they run. What a cache
saves is not known, and nothing is run: these are counts, and no speeds. Products are not tuned.
"""  # noqa: E501

import argparse
import collections
import math
import os
import re
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_gpu_autotune_level=0 " + os.environ.get("XLA_FLAGS", "")

import jax
from jax.experimental import topologies

from imbalance_jax.bench import case as case_lib
from imbalance_jax.bench import topology
from imbalance_jax.compute import sharding

H200 = """
gpu_device_info {
  cuda_compute_capability { major: 9 } core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472 registers_per_core_limit: 65536 registers_per_block_limit: 65536
  memory_bandwidth: 4800000000000 l2_cache_size: 52428800 device_memory_size: 151397597184
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 12 } runtime_version { major: 13 }
device_description_str: "NVIDIA H200"
"""
FREE = ("parameter", "constant", "bitcast", "tuple", "get-tuple-element")


def count_bytes(shape: str) -> int:
    found = re.findall(r"\b(?:pred|[a-z]+(\d+))\[([\d,]*)\]", shape)
    return sum(int(d or 8) // 8 * math.prod(int(n) for n in s.split(",") if n) for d, s in found)


def parse_program(text: str) -> dict[str, list[tuple]]:
    """Returns the instructions of each computation: name, shape, operation, arguments, line."""
    computations: dict[str, list[tuple]] = {}
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            found = computations.setdefault("ENTRY" if head[1] else head[2], [])
        elif part := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)", line):
            args = re.findall(r"%([\w.\-]+)", part[4].split("), ")[0])
            found.append((*part.groups()[:3], args, line))
    return computations


def count_fusion_bytes(instructions: list[tuple], shape: str) -> int:
    """A fusion reads of a slice, and writes of an update in place, only the part."""
    of = {name: (operation, count_bytes(shape)) for name, shape, operation, *_ in instructions}
    alias: dict[str, str] = {}
    used = collections.defaultdict(set)
    total = count_bytes(shape)
    for name, _, operation, args, _ in instructions:
        if operation == "bitcast":
            alias[name] = alias.get(args[0], args[0])
            continue
        for place, arg in enumerate(args):
            used[alias.get(arg, arg)].add((operation if place == 0 else "", of[name][1]))
        if operation == "dynamic-update-slice":
            total += of[args[1]][1] - of[name][1]
    for name, (operation, size) in of.items():
        if operation == "parameter" and {how for how, _ in used[name]} != {"dynamic-update-slice"}:
            parts = all(how in ("dynamic-slice", "gather", "slice") for how, _ in used[name])
            total += min(size, sum(part for _, part in used[name])) if parts else size
    return total


def add_counts(program: dict, name: str, times: int, found: dict[str, list[int]]) -> None:
    shapes = {instruction[0]: instruction[1] for instruction in program[name]}
    for label, shape, operation, args, line in program[name]:
        called = re.findall(r"(?:body|calls|to_apply)=%([\w.\-]+)", line)
        if operation in FREE:
            continue
        if operation == "while":
            trips = int(re.search(r'known_trip_count":\{"n":"(\d+)"', line)[1])
            add_counts(program, called[0], times * trips, found)
            continue
        if operation == "fusion":
            inside = program[called[0]]
            size, does = count_fusion_bytes(inside, shape), {part[2] for part in inside}
            kinds = ("transpose", "copy", "dynamic_update_slice", "dynamic_slice", "reduce")
            kind = next((k for k in kinds if k in label), "elementwise" if args else "fill")
            kind = "product" if "dot" in does or "gemm" in label else kind
        else:
            size = count_bytes(shape) + sum(count_bytes(shapes.get(arg, "")) for arg in args)
            kind = "cudnn" if "cudnn" in line else "product" if "gemm" in line else operation
        for key in (kind, "all"):
            found[key][0] += times
            found[key][1] += times * size


def find_chip() -> topologies.TopologyDescription:
    """Returns an H200 to compile for; without its compiler, ends with what to install."""
    try:
        return topologies.get_topology_desc("h200", "cuda", topology="1x1x1", target_config=H200)
    except NotImplementedError as error:
        install = next(line.strip() for line in __doc__.splitlines() if "pip install" in line)
        print(
            f"Compiling for a GPU needs its plugin ({error}): {install}. The first two must be of "
            f"jax's version, {jax.__version__}.",
            file=sys.stderr,
        )
        sys.exit(2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", nargs="+", help="as the bench takes it")
    texts = parser.parse_args().case
    try:
        cases = [case_lib.parse_case(text) for text in texts]  # all, before the first is compiled
    except ValueError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    chip = find_chip()
    for case in cases:
        mesh = sharding.make_mesh(case.config.mesh, chip.devices)
        compiled = topology.trace_step(case.config, case.vocab_size, mesh).lower().compile()
        counts: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
        add_counts(parse_program(compiled.as_text()), "ENTRY", 1, counts)
        print(
            f"{case.name}: {compiled.memory_analysis().temp_size_in_bytes / 1e9:.1f} GB temporary"
        )
        for kind, (kernels, size) in sorted(counts.items(), key=lambda item: -item[1][1]):
            print(f"  {kind:<22} {kernels:>6} kernels {size / 1e9:>8.1f} GB")


if __name__ == "__main__":
    main()
