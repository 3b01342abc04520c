"""What a compiled program reads and writes, with every loop as often as it runs.

`cost_analysis` counts what is in a loop once, and memories that are no bottleneck; this reads
the program's text instead, which has one line an instruction:

    %fusion.1 = bf16[32,512]{1,0:T(8,128)S(1)} fusion(%a, %b), kind=kLoop, calls=%computation

S(1) and so on are memories other than HBM, which are left out. Of a slice only the slice counts.
"""

import dataclasses
import math
import re
from collections.abc import Iterator


@dataclasses.dataclass(frozen=True)
class _Array:
    bytes: int
    hbm: bool


@dataclasses.dataclass(frozen=True)
class _Instruction:
    kind: str
    arrays: tuple[_Array, ...]  # of the result
    operands: tuple[str, ...]
    inside: str  # what stands between the parentheses
    rest: str  # the attributes


@dataclasses.dataclass(frozen=True)
class _Computation:
    instructions: dict[str, _Instruction]
    root: str


@dataclasses.dataclass
class Traffic:
    """What a program moves on one device, with every loop as often as it runs."""

    bytes: float = 0.0  # read from HBM and written to it
    # By kind, such as all-reduce: how many run, and the larger of their operands and results.
    collectives: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    kernels: float = 0.0  # calls of Pallas kernels


_COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "ragged-all-to-all",
)
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("partition-id", "replica-id", "opt-barrier", "add-dependency", "domain"),
}
_FREE_CALL = re.compile(r'custom_call_target="(AllocateBuffer|ConcatBitcast|Sharding)"')
_SLICES = ("dynamic-slice", "slice", "gather")


def read_program(text: str) -> Traffic:
    """Returns the traffic of a compiled program, from its text."""
    computations, entry = _parse_program(text)
    traffic = Traffic()
    _add_computation_traffic(traffic, computations, computations[entry], times=1.0)
    return traffic


def _parse_program(text: str) -> tuple[dict[str, _Computation], str]:
    computations: dict[str, _Computation] = {}
    entry, name = "", ""
    instructions: dict[str, _Instruction] = {}
    root = ""
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line):
            name, instructions, root = head[2], {}, ""
            entry = name if head[1] else entry
        elif line.startswith("}"):
            computations[name] = _Computation(instructions, root)
        elif found := re.match(r"\s+(ROOT )?%?([\w.\-]+) = (.*)", line):
            instructions[found[2]] = _parse_instruction(found[3])
            root = found[2] if found[1] else root
    return computations, entry


def _parse_instruction(text: str) -> _Instruction:
    end = _find_closing_parenthesis(text, 0) + 1 if text.startswith("(") else text.index(" ")
    result, text = text[:end], text[end:].lstrip()
    opening = text.index("(")
    closing = _find_closing_parenthesis(text, opening)
    inside = text[opening + 1 : closing]
    return _Instruction(
        kind=text[:opening],
        arrays=tuple(_parse_arrays(result)),
        operands=tuple(re.findall(r"%([\w.\-]+)", inside)),
        inside=inside,
        rest=text[closing + 1 :],
    )


def _find_closing_parenthesis(text: str, opening: int) -> int:
    depth = 0
    for index in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if not depth:
            return index
    raise ValueError(f"unbalanced: {text[:80]}")


def _parse_arrays(result: str) -> Iterator[_Array]:
    for dtype, dims, layout in re.findall(r"([a-z]+\w*)\[([\d,]*)\](\{[^}]*\})?", result):
        bits = 8 if dtype == "pred" else int((re.search(r"\d+", dtype) or ["0"])[0])
        size = math.prod(int(dim) for dim in dims.split(",") if dim)
        yield _Array(size * bits // 8, not re.search(r"S\([1-9]", layout))


def _add_computation_traffic(
    traffic: Traffic,
    computations: dict[str, _Computation],
    computation: _Computation,
    times: float,
) -> None:
    """Adds what a computation moves when it runs some times."""
    for instruction in computation.instructions.values():
        kind = instruction.kind
        if kind == "while":
            body = computations[_find_called_computation(instruction, "body")]
            _add_computation_traffic(
                traffic, computations, body, times * _count_loop_trips(computations, instruction)
            )
        elif kind in ("call", "async-start"):
            called = _find_called_computation(
                instruction, "to_apply" if kind == "call" else "calls"
            )
            _add_computation_traffic(traffic, computations, computations[called], times)
        elif kind == "conditional":
            for called in _list_branches(instruction):
                _add_computation_traffic(traffic, computations, computations[called], times)
        else:
            for place, part in _expand_fusion(computations, computation, instruction):
                _count_collective_or_kernel(traffic, place, part, times)
            traffic.bytes += times * _count_moved_bytes(computations, computation, instruction)


def _count_collective_or_kernel(
    traffic: Traffic, computation: _Computation, instruction: _Instruction, times: float
) -> None:
    """Notes a collective or a kernel."""
    kind = instruction.kind.removesuffix("-start")
    if instruction.kind == "custom-call" and '"tpu_custom_call"' in instruction.rest:
        traffic.kernels += times
    if kind not in _COLLECTIVES:
        return
    given = sum(
        array.bytes
        for name in instruction.operands
        for array in _get_instruction(computation, name).arrays
    )
    made = sum(array.bytes for array in instruction.arrays)
    if instruction.kind.endswith("-start") and kind != "all-reduce":
        made -= given  # their results hold the operands as well
    entry = traffic.collectives.setdefault(kind, {"count": 0.0, "bytes": 0.0})
    entry["count"] += times
    entry["bytes"] += times * max(given, made)


def _expand_fusion(
    computations: dict[str, _Computation], computation: _Computation, instruction: _Instruction
) -> Iterator[tuple[_Computation, _Instruction]]:
    """Yields an instruction and where it stands, and in place of a fusion those within."""
    if instruction.kind != "fusion":
        yield computation, instruction
        return
    fused = computations[_find_called_computation(instruction, "calls")]
    for inner in fused.instructions.values():
        yield from _expand_fusion(computations, fused, inner)


def _get_instruction(computation: _Computation, name: str) -> _Instruction:
    return computation.instructions.get(name) or _Instruction("", (), (), "", "")


def _find_called_computation(instruction: _Instruction, attribute: str) -> str:
    found = re.search(rf"\b{attribute}=%?([\w.\-]+)", instruction.rest)
    assert found, f"{instruction.kind} has no {attribute}"
    return found[1]


def _list_branches(instruction: _Instruction) -> list[str]:
    found = re.search(r"branch_computations=\{([^}]*)\}", instruction.rest)
    if found:
        return re.findall(r"%([\w.\-]+)", found[1])
    return re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", instruction.rest)


def _count_loop_trips(computations: dict[str, _Computation], loop: _Instruction) -> int:
    """Returns how often a loop runs: said beside it, or the number its counter is held to."""
    if said := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest):
        return int(said[1])
    condition = computations[_find_called_computation(loop, "condition")]
    numbers = {
        int(instruction.inside)
        for instruction in condition.instructions.values()
        if instruction.kind == "constant" and instruction.inside.isdecimal()
    }
    if len(numbers) != 1:
        raise ValueError("a loop of the compiled program does not say how often it runs.")
    return numbers.pop()


def _count_moved_bytes(
    computations: dict[str, _Computation], computation: _Computation, instruction: _Instruction
) -> int:
    """Returns the bytes of HBM that one instruction reads and writes."""
    kind = instruction.kind
    free_call = kind == "custom-call" and _FREE_CALL.search(instruction.rest)
    if kind in _FREE or kind.endswith(("-done", "-update")) or free_call:
        return 0
    if kind == "fusion":
        return _count_fusion_bytes(computations, computation, instruction)
    if kind == "copy-start":  # its result holds both sides
        return sum(array.bytes for array in instruction.arrays if array.hbm)
    result = sum(array.bytes for array in instruction.arrays if array.hbm)
    sources = [_get_instruction(computation, name).arrays for name in instruction.operands]
    if kind == "slice-start":  # (source), slice, context
        source, part = instruction.arrays[0], instruction.arrays[1]
        return part.bytes * (source.hbm + part.hbm)
    if kind in _SLICES:
        size = sum(array.bytes for array in instruction.arrays)
        return result + size * any(array.hbm for array in sources[0])
    if kind == "dynamic-update-slice":
        update = sum(array.bytes for array in sources[1])
        read = sum(array.bytes for array in sources[1] if array.hbm)
        return read + update * any(array.hbm for array in instruction.arrays)
    return result + sum(array.bytes for source in sources for array in source if array.hbm)


def _count_fusion_bytes(
    computations: dict[str, _Computation], computation: _Computation, instruction: _Instruction
) -> int:
    fused = computations[_find_called_computation(instruction, "calls")]
    written = _count_written_bytes(computations, fused)
    # Where the two disagree on how many results there are, all are written whole.
    if len(written) != len(instruction.arrays):
        written = [array.bytes for array in instruction.arrays]
    total = sum(size for size, at in zip(written, instruction.arrays, strict=True) if at.hbm)
    for index, name in enumerate(instruction.operands):
        if any(array.hbm for array in _get_instruction(computation, name).arrays):
            total += _count_read_bytes(computations, fused, index)
    return total


def _find_parameter(computation: _Computation, index: int) -> str:
    for name, instruction in computation.instructions.items():
        if instruction.kind == "parameter" and instruction.inside == str(index):
            return name
    raise AssertionError(f"no parameter {index}")


def _count_read_bytes(
    computations: dict[str, _Computation], fused: _Computation, index: int
) -> int:
    """Returns the bytes of a parameter that a fusion reads: of slices, only those."""
    name = _find_parameter(fused, index)
    whole = sum(array.bytes for array in fused.instructions[name].arrays)
    return min(whole, _count_read_of_name(computations, fused, name, whole))


def _count_read_of_name(
    computations: dict[str, _Computation], fused: _Computation, name: str, whole: int
) -> int:
    total = 0
    for user_name, user in fused.instructions.items():
        if name not in user.operands:
            continue
        first = user.operands[0] == name and user.operands.count(name) == 1
        if user.kind in _SLICES and first:
            total += sum(array.bytes for array in user.arrays)
        elif user.kind == "dynamic-update-slice" and first:
            pass  # overwritten in place
        elif user.kind == "bitcast":
            total += _count_read_of_name(computations, fused, user_name, whole)
        elif user.kind == "fusion":
            inner = computations[_find_called_computation(user, "calls")]
            for index, operand in enumerate(user.operands):
                total += _count_read_bytes(computations, inner, index) * (operand == name)
        elif user.kind != "tuple":
            return whole
    return total


def _count_written_bytes(computations: dict[str, _Computation], fused: _Computation) -> list[int]:
    """Returns the bytes that a fusion writes to each of its results: of updates, only those."""
    root = fused.instructions[fused.root]
    names = root.operands if root.kind == "tuple" else (fused.root,)
    sizes: list[int] = []
    for name in names:
        made = fused.instructions[name]
        while made.kind == "bitcast":
            made = fused.instructions[made.operands[0]]
        if made.kind == "dynamic-update-slice":
            update = fused.instructions[made.operands[1]]
            sizes.append(sum(array.bytes for array in update.arrays))
        elif made.kind == "fusion":
            sizes += _count_written_bytes(
                computations, computations[_find_called_computation(made, "calls")]
            )
        else:
            sizes += [array.bytes for array in made.arrays]
    return sizes
