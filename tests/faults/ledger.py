"""Cases of a part of the harness: drawn from a seed, judged, counted, and replayed one by one.

Environment variables say what is run:

    FAULTS_SEED=N     which cases are drawn; 0 by default
    FAULTS_CASE=N     one case alone, as the message of a fault names it
    FAULTS_SHARE=X    that share of the full length, such as 0.05
    FAULTS_DIR=DIR    where each part writes its counts, PART.json
"""

import collections
import dataclasses
import json
import os
import pathlib
import random
import re
import time
import traceback
from collections.abc import Callable, Iterator, Sequence

import pytest
from faults.forked import Ended

# A traceback, whoever prints it; a line of a warning has none.
_TRACEBACK = "Traceback (most recent call last)"
_SHOWN = 20  # faults in a message


class Fault(Exception):
    """What must not happen; `kind` is what it is counted under."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind, self.detail = kind, detail


@dataclasses.dataclass(frozen=True)
class Case:
    """One case of a part: all that is random about it comes from `random`."""

    number: int
    random: random.Random


class Ledger:
    """Runs the cases of a part and counts how they ended."""

    def __init__(self, part: str, test: str, folder: pathlib.Path, *, full: bool) -> None:
        self.part, self._test, self.folder, self.full = part, test, folder, full
        self.seed = int(os.environ.get("FAULTS_SEED", "0"))
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.faults: list[dict[str, str | int]] = []
        self.seconds = 0.0

    def skip_short(self, why: str) -> None:
        """Skips a part that has no short version."""
        if not self.full:
            pytest.skip(f"{why}: run its full length, pytest -m faults")

    def length(self, short: int, full: int) -> int:
        """Returns how many cases there are to be."""
        share = float(os.environ.get("FAULTS_SHARE", "1"))
        return max(1, round(full * share)) if self.full else short

    def cases(self, count: int) -> Iterator[Case]:
        only = os.environ.get("FAULTS_CASE")
        for number in range(count) if only is None else [int(only)]:
            # A text as the seed: it draws the same on every machine.
            yield Case(number, random.Random(f"{self.part} {self.seed} {number}"))

    def run(self, check: Callable[[Case], str], *, short: int, full: int) -> None:
        """Checks all cases, and fails if any of them is a fault.

        Args:
          check: returns the outcome of a case, or raises the Fault that it is.
          short, full: how many cases each length has.
        """
        began = time.monotonic()
        for case in self.cases(self.length(short, full)):
            try:
                self.outcomes[check(case)] += 1
            except Fault as fault:
                self.note_fault(case, fault)
            except Exception as error:  # the other cases go on
                where = traceback.extract_tb(error.__traceback__)[-1]
                detail = f"{error!r} in {where.name}, line {where.lineno}"
                self.note_fault(case, Fault("unexpected in the test", detail))
        self.finish(time.monotonic() - began)

    def note_fault(self, case: Case, fault: Fault) -> None:
        self.outcomes[f"FAULT {fault.kind}"] += 1
        self.faults.append(
            {
                "case": case.number,
                "kind": fault.kind,
                "detail": fault.detail,
                "replay": self.format_replay(case),
            }
        )

    def format_replay(self, case: Case) -> str:
        """Returns the command that runs a case alone."""
        length = "full" if self.full else "short"
        select = "-m faults " if self.full else ""
        return (
            f"FAULTS_SEED={self.seed} FAULTS_CASE={case.number} "
            f"pytest -n 0 {select}'{self._test}[{length}]'"
        )

    def summarize(self) -> dict[str, object]:
        return {
            "part": self.part,
            "full": self.full,
            "seed": self.seed,
            "cases": sum(self.outcomes.values()),
            "seconds": round(self.seconds, 1),
            "outcomes": dict(sorted(self.outcomes.items())),
            "faults": self.faults,
        }

    def finish(self, seconds: float) -> None:
        """Writes the counts down, and fails if there was a fault."""
        self.seconds = seconds
        folder = pathlib.Path(os.environ.get("FAULTS_DIR", self.folder))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.part}.json").write_text(json.dumps(self.summarize(), indent=1) + "\n")
        counts = "\n".join(f"{n:6,}  {name}" for name, n in sorted(self.outcomes.items()))
        print(f"{self.part}, seed {self.seed}:\n{counts}")
        shown = "\n\n".join(
            f"{fault['kind']}: {fault['detail']}\n    {fault['replay']}"
            for fault in self.faults[:_SHOWN]
        )
        more = len(self.faults) - _SHOWN
        if self.faults:
            cases = f"{sum(self.outcomes.values())} cases of seed {self.seed}"
            others = f"\n\nand {more} more" if more > 0 else ""
            message = f"{len(self.faults)} faults in {cases}.\n{counts}\n\n{shown}{others}"
            pytest.fail(message, pytrace=False)


def judge(
    ended: Ended, names: Sequence[str], *, codes: Sequence[int] = (2,), about: str = ""
) -> str:
    """Returns "done" or "refused" for how a command ended, or raises the Fault that it is.

    Args:
      names: one of them has to be in the message of a refusal: a field, a file, a flag.
      codes: those of a refusal.
      about: what was done to the command, for the message of a fault.
    """
    said = (ended.out + ended.err).strip()
    about += f" -> exit {ended.code}, {said[-1500:]}"
    if ended.hung:
        raise Fault("hang", about)
    if _TRACEBACK in said:
        raise Fault("traceback", about)
    if ended.code < 0 or ended.code == 134:
        raise Fault("abort", about)
    if ended.code == 0:
        return "done"
    errors = re.findall(r"^error: .*", ended.err, re.MULTILINE)
    if ended.code not in codes:
        raise Fault("wrong exit code", about)
    if len(errors) != 1:
        raise Fault("no one line", about)
    if names and not any(name in errors[0] for name in names):
        raise Fault("no name in the line", about)
    return "refused"
