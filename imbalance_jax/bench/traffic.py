"""What a compiled program computes and moves on one device, read from its text.

XLA's `cost_analysis` has each loop once, and a TPU's own memory (VMEM) among its bytes. Here a loop
counts as often as it runs, and only HBM does. An instruction is a line such as

    %fusion.1 = bf16[32,512]{1,0:T(8,128)S(1)} fusion(%a, %b), kind=kLoop, calls=%computation

whose layout names tiles, which an array fills in memory, and a memory: S(1) and so on are not HBM.
An instruction reads its operands and writes its result. Of a slice only the slice counts, and of a
scatter only the rows that it changes. A conditional costs the most FLOPs and the most bytes of any
of its branches.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator


@dataclasses.dataclass(frozen=True)
class _Array:
    dtype: str
    dims: tuple[int, ...]
    bytes: int  # with what its tiles are filled up by
    hbm: int  # the same, or 0 where it lies in another memory


@dataclasses.dataclass(frozen=True)
class Instruction:
    kind: str
    arrays: tuple[_Array, ...]  # of the result
    operands: tuple[str, ...]
    inside: str  # what stands between the parentheses
    rest: str  # the attributes

    @property
    def bytes(self) -> int:
        return sum(array.bytes for array in self.arrays)

    @property
    def hbm(self) -> int:
        return sum(array.hbm for array in self.arrays)

    def find(self, pattern: str, default: str = "") -> str:
        """Returns the group of a pattern in the attributes."""
        found = re.search(pattern, self.rest)
        return found[1] if found else default


@dataclasses.dataclass(frozen=True)
class _Computation:
    instructions: dict[str, Instruction]
    root: str

    def skip_bitcasts(self, name: str, *others: str) -> Instruction:
        """Returns the instruction of a name or, of a bitcast, the one whose result it shows."""
        while self.instructions[name].kind in ("bitcast", *others):
            name = self.instructions[name].operands[0]
        return self.instructions[name]

    def get_element(self, name: str) -> int | None:
        """Returns which element of the computation's only parameter a name stands for, if any."""
        made = self.skip_bitcasts(name, *_COPIES)
        if made.kind != "get-tuple-element":
            return None
        whole = self.instructions[made.operands[0]]
        return int(made.find(r"index=(\d+)")) if whole.kind == "parameter" else None

    def get_whole_number(self, name: str) -> int | None:
        """Returns the value of a name that stands for a whole number of 0 or more, if it does."""
        made = self.skip_bitcasts(name, *_COPIES)
        # A float is written like an integer where it is one.
        if made.kind != "constant" or not re.match(r"[su]\d", made.arrays[0].dtype):
            return None
        return int(made.inside) if made.inside.isdecimal() else None

    def list_rows(self, scatter: Instruction) -> list[int]:
        """Returns the bytes that a scatter changes in each of its arrays."""
        updates = scatter.operands[len(scatter.arrays) + 1 :]
        return [
            min(self.instructions[name].bytes, array.bytes)
            for name, array in zip(updates, scatter.arrays, strict=True)
        ]

    def list_results(self) -> list[Instruction]:
        """Returns the instructions whose results a fusion of this computation has."""
        root = self.instructions[self.root]
        names = root.operands if root.kind == "tuple" else (self.root,)
        return [self.skip_bitcasts(name) for name in names]


# What moves nothing. Of the two halves of an asynchronous instruction the first one counts.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota"),
    *("partition-id", "replica-id", "opt-barrier", "add-dependency", "domain", "async-update"),
}
_FREE_CALLS = ("AllocateBuffer", "ConcatBitcast", "Sharding")
_COPIES = ("copy", "copy-start", "copy-done")
_SLICES = ("dynamic-slice", "slice", "gather")
_CALLED = {
    "while": "body",
    "call": "to_apply",
    "call-start": "to_apply",
    "async-start": "calls",
    "conditional": "(?:true|false)_computation|branch_computations",
}


@dataclasses.dataclass(frozen=True)
class Cost:
    """What an instruction costs in all its runs."""

    instruction: Instruction
    runs: int
    flops: float  # of matrix products; those within a Pallas kernel are not known
    bytes: int  # of HBM

    @property
    def is_kernel(self) -> bool:
        return self.instruction.find('custom_call_target="(tpu_custom_call)"') != ""

    @property
    def is_asynchronous(self) -> bool:
        return self.instruction.kind.endswith("-start")


class Program:
    """A compiled program, parsed."""

    def __init__(self, text: str) -> None:
        self._computations: dict[str, _Computation] = {}
        # Without numbers of operands, and the lines that the metadata of a Pallas kernel begins.
        text = re.sub(r'/\*.*?\*/|\n(?="|\}\})', "", text)
        for entry, name, body in re.findall(
            r"^(ENTRY )?%?([\w.\-]+) .*\{$((?:\n .*)*)", text, re.MULTILINE
        ):
            lines = re.findall(r"^ +(ROOT )?%?([\w.\-]+) = (.*)$", body, re.MULTILINE)
            root = next((name for root, name, _ in lines if root), "")
            instructions = {name: _parse_instruction(line) for _, name, line in lines}
            self._computations[name] = _Computation(instructions, root)
            if entry:
                self._entry = self._computations[name]

    def list_costs(self) -> list[Cost]:
        """Returns what each instruction that runs costs."""
        return self._list_costs(self._entry, 1)

    def _list_costs(self, computation: _Computation, times: int) -> list[Cost]:
        costs: list[Cost] = []
        for each in computation.instructions.values():
            if called := self._list_called(each):
                runs = times * self._count_trips(computation, each)
                branches = [self._list_costs(branch, runs) for branch in called]
                costs += _choose_branch(each, runs, branches)
            else:
                flops = self._count_flops(computation, each)
                moved = self._count_bytes(computation, each)
                costs.append(Cost(each, times, times * flops, times * moved))
        return costs

    def _list_called(self, each: Instruction) -> list[_Computation]:
        """Returns the bodies of a loop, a call or a condition; a fusion is one instruction."""
        if each.kind not in _CALLED:
            return []
        named = re.findall(rf"(?:{_CALLED[each.kind]})=(\{{.*?\}}|%?[\w.\-]+)", each.rest)
        return [self._computations[name] for name in re.findall(r"[\w.\-]+", " ".join(named))]

    def _get_fused(self, fusion: Instruction) -> _Computation:
        return self._computations[fusion.find(r"\bcalls=%?([\w.\-]+)")]

    def _count_trips(self, computation: _Computation, each: Instruction) -> int:
        """Returns how often a loop runs: said beside it, or read from its counter.

        The counter is an integer that begins at 0 and grows by 1 while it is less than a constant.

        Raises:
          ValueError: neither says it.
        """
        if each.kind != "while":
            return 1
        if known := each.find(r'"known_trip_count":\{"n":"(\d+)"'):
            return int(known)
        condition = self._computations[each.find(r"condition=%?([\w.\-]+)")]
        body = self._computations[each.find(r"body=%?([\w.\-]+)")]
        test, begin = condition.instructions[condition.root], computation.instructions
        starts, ends = begin[each.operands[0]], body.instructions[body.root]
        if (
            (test.kind, test.find(r"direction=(\w+)")) == ("compare", "LT")
            and (counter := condition.get_element(test.operands[0])) is not None
            and (limit := condition.get_whole_number(test.operands[1])) is not None
            and starts.kind == ends.kind == "tuple"
            and computation.get_whole_number(starts.operands[counter]) == 0
        ):
            grown = body.skip_bitcasts(ends.operands[counter], *_COPIES)
            terms = grown.operands
            if grown.kind == "add" and any(
                body.get_element(term) == counter and body.get_whole_number(other) == 1
                for term, other in (terms, reversed(terms))
            ):
                return limit
        raise ValueError("a loop of the compiled program does not say how often it runs.")

    def _count_flops(self, computation: _Computation, each: Instruction) -> float:
        if each.kind == "fusion":
            fused = self._get_fused(each)
            return sum(self._count_flops(fused, part) for part in fused.instructions.values())
        if each.kind not in ("dot", "convolution"):
            return 0.0
        left, right = (computation.instructions[name].arrays[0].dims for name in each.operands)
        if each.kind == "convolution":
            return _count_convolution_flops(each, left, right)
        contracted = re.findall(r"\d+", each.find(r"lhs_contracting_dims=\{([\d,]*)\}"))
        return 2.0 * math.prod(each.arrays[0].dims) * math.prod(left[int(a)] for a in contracted)

    def _count_bytes(self, computation: _Computation, each: Instruction) -> int:
        """Returns the bytes of HBM that one run of an instruction reads and writes."""
        kind = each.kind
        free_call = each.find(r'custom_call_target="(\w+)"') in _FREE_CALLS
        if kind in _FREE or kind.endswith("-done") or free_call:
            return 0
        sources = [computation.instructions[name] for name in each.operands]
        if kind == "fusion":
            fused = self._get_fused(each)
            written = list(self._list_written(fused))
            if len(written) != len(each.arrays):
                written = [array.bytes for array in each.arrays]
            read = (self._count_read(fused, n) for n, source in enumerate(sources) if source.hbm)
            return sum(read) + sum(
                size for size, array in zip(written, each.arrays, strict=True) if array.hbm
            )
        if kind in _SLICES:
            return each.hbm + each.bytes * bool(sources[0].hbm)
        if kind == "dynamic-update-slice":
            return sources[1].hbm + sources[1].bytes * bool(each.hbm)
        if kind == "scatter":
            # In place: the table itself is free. Updates and indices are read, and rows as large as
            # the updates are read and written. Where one overwrites its rows, it reads fewer.
            count = len(each.arrays)
            rows = zip(computation.list_rows(each), sources, each.arrays, strict=False)
            return sum(source.hbm for source in sources[count:]) + sum(
                size * (bool(source.hbm) + bool(array.hbm)) for size, source, array in rows
            )
        if kind == "slice-start":  # (source), slice, context
            source, part = each.arrays[:2]
            return part.bytes * (bool(source.hbm) + bool(part.hbm))
        if kind.endswith("-start") and kind != "all-reduce-start":
            return each.hbm  # the result holds the operands too
        return each.hbm + sum(source.hbm for source in sources)

    def _count_read(self, fused: _Computation, index: int) -> int:
        """Returns the bytes that a fusion reads of an operand."""
        name, parameter = next(
            (name, each)
            for name, each in fused.instructions.items()
            if each.kind == "parameter" and each.inside == str(index)
        )
        return min(parameter.bytes, self._count_read_of(fused, name, parameter.bytes))

    def _count_read_of(self, fused: _Computation, name: str, whole: int) -> int:
        if name == fused.root:
            return whole
        total = 0
        for user_name, user in fused.instructions.items():
            if name not in user.operands:
                continue
            place = user.operands.index(name)
            once = user.operands.count(name) == 1
            if user.kind in _SLICES and place == 0 and once:
                total += user.bytes
            elif user.kind == "dynamic-update-slice" and place == 0 and once:
                pass  # overwritten in place
            elif user.kind == "scatter" and place < len(user.arrays) and once:
                if user not in fused.list_results():
                    return whole  # what follows in the fusion reads all of it
                total += fused.list_rows(user)[place]
            elif user.kind == "bitcast":
                total += self._count_read_of(fused, user_name, whole)
            elif user.kind == "fusion" and once:
                inner = self._get_fused(user)
                made = inner.skip_bitcasts(inner.root)
                if made.kind == "parameter" and made.inside == str(place):  # another view of it
                    total += self._count_read_of(fused, user_name, whole)
                else:
                    total += self._count_read(inner, place)
            else:
                return whole
        return total

    def _list_written(
        self, fused: _Computation, made_outside: frozenset[str] = frozenset()
    ) -> Iterator[int]:
        """Yields the bytes that a fusion writes to each result: of an update, those of its part.

        `made_outside` has the numbers of the parameters that an enclosing fusion makes.
        """

        def is_made(name: str) -> bool:
            source = fused.skip_bitcasts(name)
            return source.kind != "parameter" or source.inside in made_outside

        for result in fused.list_results():
            if result.kind == "fusion":
                made = (str(n) for n, name in enumerate(result.operands) if is_made(name))
                yield from self._list_written(self._get_fused(result), frozenset(made))
            elif result.kind == "dynamic-update-slice":
                yield fused.instructions[result.operands[1]].bytes
            elif result.kind == "scatter":
                # A table that a fusion makes is written whole.
                yield from (
                    array.bytes if is_made(name) else rows
                    for array, name, rows in zip(
                        result.arrays, result.operands, fused.list_rows(result), strict=False
                    )
                )
            else:
                yield from (array.bytes for array in result.arrays)


def _choose_branch(each: Instruction, runs: int, branches: list[list[Cost]]) -> list[Cost]:
    """Returns what a conditional costs: the most FLOPs and the most bytes of any branch.

    They are the instructions of a branch that has both, or else one instruction. A loop or a call
    has one branch.
    """
    sums = [
        (sum(cost.bytes for cost in branch), sum(cost.flops for cost in branch))
        for branch in branches
    ]
    most_bytes, most_flops = (max(amounts) for amounts in zip(*sums, strict=True))
    if (most_bytes, most_flops) in sums:
        return branches[sums.index((most_bytes, most_flops))]
    return [Cost(each, runs, most_flops, most_bytes)]


def _parse_instruction(line: str) -> Instruction:
    kind = re.search(r"(?:^|\s)([a-z][a-z\d\-]*)\(", line)
    assert kind, line
    depth, end = 1, kind.end()
    while depth:
        depth += {"(": 1, ")": -1}.get(line[end], 0)
        end += 1
    inside = line[kind.end() : end - 1]
    operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    arrays = tuple(_parse_arrays(line[: kind.start()]))
    return Instruction(kind[1], arrays, operands, inside, line[end:])


def _parse_arrays(result: str) -> Iterator[_Array]:
    for dtype, sizes, layout in re.findall(r"([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?", result):
        dims = tuple(map(int, re.findall(r"\d+", sizes)))
        filled = list(dims)
        if tile := re.search(r"T\(([\d,]+)\)", layout):
            # The last size of a tile is that of the axis which varies fastest, named first.
            axes = map(int, re.findall(r"\d+", layout.partition(":")[0]))
            for axis, size in zip(axes, reversed(tile[1].split(",")), strict=False):
                filled[axis] = -(-dims[axis] // int(size)) * int(size)
        bits = 8 if dtype == "pred" else int((re.search(r"\d+", dtype) or ["0"])[0])
        size = math.prod(filled) * bits // 8
        yield _Array(dtype, dims, size, 0 if re.search(r"S\([1-9]", layout) else size)


def _count_convolution_flops(
    each: Instruction, left: tuple[int, ...], right: tuple[int, ...]
) -> float:
    """Returns the FLOPs of a convolution, as which a TPU computes all matrix products.

    Along an axis of its window, what falls on padding or between elements is not counted.
    """
    labels = re.findall(r"\w+", each.find(r"dim_labels=(\w+->\w+)").replace("_", " "))
    window = each.find(r"window=\{([^}]*)\}")

    def list_settings(name: str, default: str) -> list[str]:
        found = re.search(rf"\b{name}=(\S+)", window)
        return found[1].split("x") if found else [default] * (len(labels[0]) - 2)

    products = 1
    for axis, (stride, pad, apart, kernel_apart) in enumerate(
        zip(
            *(list_settings("stride", "1"), list_settings("pad", "0_0")),
            *(list_settings("lhs_dilate", "1"), list_settings("rhs_dilate", "1")),
            strict=True,
        )
    ):
        size, kernel, made = (
            dims[label.index(str(axis))]
            for dims, label in zip((left, right, each.arrays[0].dims), labels, strict=True)
        )
        first = int(pad.split("_")[0])
        places = (
            at * int(stride) + step * int(kernel_apart) - first
            for at, step in itertools.product(range(made), range(kernel))
        )
        products *= sum(p % int(apart) == 0 and 0 <= p < size * int(apart) for p in places)
    rows = left[labels[0].index("b")] // int(each.find(r"batch_group_count=(\d+)", "1"))
    i, o = (right[labels[1].index(label)] for label in "io")
    return 2.0 * products * rows * i * o
