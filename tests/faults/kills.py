"""Kills at random moments: after something that a run has come to, and a random time more."""

import contextlib
import os
import pathlib
import random
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from faults.forked import Ended, ForkServer
from faults.ledger import Fault

# Most kills are those that a process does not see.
SIGNALS = (*[signal.SIGKILL] * 6, signal.SIGTERM, signal.SIGTERM, signal.SIGINT)
# How a command may end that was sent a signal: killed by it, stopped and saved, or done before.
_CODES: Mapping[int, tuple[int, ...]] = {
    signal.SIGKILL: (-signal.SIGKILL, 0),
    signal.SIGTERM: (75, 0),
    signal.SIGINT: (75, 0),
}
_TRACEBACK = "Traceback (most recent call last)"


class Moment:
    """Something that a run comes to, and the seconds after it within which it is killed."""

    def __init__(self, name: str, spread: float, has_come: Callable[[], bool]) -> None:
        self.name, self.spread, self.has_come = name, spread, has_come


def list_run_moments(
    server: ForkServer, run: pathlib.Path, data_dir: pathlib.Path, rng: random.Random
) -> list[Moment]:
    """Returns the moments of a run from where it is now: its text, programs, steps, saves, end."""
    saved = list_saved_steps(run)
    step = max(saved, default=0) + rng.randint(1, 25)
    # A process that is about to print has read its flags, so a signal meets its handlers.
    said = lambda text: text in server.out.read_text(errors="replace")
    unfinished = lambda: bool(list_entries(data_dir, ".*.unfinished", "en-*"))
    list_unfinished = lambda: set(list_entries(run / "checkpoints", "*-tmp*"))
    left = list_unfinished()  # by an earlier kill
    saving = lambda: bool(list_unfinished() - left)
    return [
        *([] if list_entries(data_dir, "en-*") else [Moment("text", 0.6, unfinished)]),
        Moment("compile", 1.0, lambda: said("Compiling")),
        # The log may be that of an earlier start until this one has read its flags.
        Moment("step", 0.05, lambda: said("Compiling") and count_logged_steps(run) >= step),
        Moment("save", 0.05, saving),
        Moment("new save", 0.02, lambda: bool(set(list_saved_steps(run)) - set(saved))),
        Moment("score", 0.3, lambda: said("scoring the test split")),
        Moment("end", 0.3, lambda: said("test loss")),
    ]


def list_entries(folder: pathlib.Path, *patterns: str) -> list[pathlib.Path]:
    """Returns what a folder has, in which a command makes and removes directories meanwhile."""
    with contextlib.suppress(FileNotFoundError):
        return [path for pattern in patterns for path in folder.glob(pattern)]
    return []


def list_saved_steps(run: pathlib.Path) -> list[int]:
    folder = run / "checkpoints"
    if not folder.exists():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


def count_logged_steps(run: pathlib.Path) -> int:
    file = run / "metrics.jsonl"
    return file.read_bytes().count(b"train/loss/en1") if file.exists() else 0


def run_through_kills(
    server: ForkServer,
    module: str,
    args: Sequence[str],
    rng: random.Random,
    list_moments: Callable[[], Sequence[Moment]],
    *,
    kills: int,
    **options: Any,
) -> list[str]:
    """Starts a command again and again, and kills it at random moments, until it is done.

    Returns what happened, as "SIGKILL in step".

    Raises:
      Fault: it ended in a way that a signal does not explain, or not at all.
    """
    history: list[str] = []
    for number in range(kills + 1):
        last = number == kills
        moment, how = rng.choice(list_moments()), rng.choice(SIGNALS)
        pid = server.start(module, args, **options)
        if not last:
            send_after(pid, moment, how, rng)
        ended = server.wait()
        what = f"{signal.Signals(how).name} in {moment.name}" if not last else "no signal"
        check_killed(ended, () if last else _CODES[how], f"{history}, then {what}")
        if ended.code == 0:
            return history
        history.append(what)
    raise AssertionError("a command without a signal is done")


def send_after(pid: int, moment: Moment, how: int, rng: random.Random) -> None:
    """Sends a signal to a process once a moment has come, unless it has ended before."""
    while not moment.has_come():
        if not _is_running(pid):
            return
        time.sleep(0.002)
    time.sleep(rng.uniform(0, moment.spread))
    if _is_running(pid):
        os.kill(pid, how)


def _is_running(pid: int) -> bool:
    try:
        return "Z" not in pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]
    except OSError:
        return False


def check_killed(ended: Ended, codes: Sequence[int], about: str, *, speaks: bool = True) -> None:
    """Raises Fault if a command has not ended as those do that are killed, or done.

    Process 0 of several `speaks` for all of how to go on.
    """
    about += f" -> exit {ended.code}, {(ended.out + ended.err)[-1500:]}"
    if ended.hung:
        raise Fault("hang", about)
    if _TRACEBACK in ended.out + ended.err:
        raise Fault("traceback", about)
    codes = tuple(codes) or (0,)
    if not (ended.out + ended.err).strip():
        # A signal has met it before its first line, and so perhaps before its handlers.
        codes += tuple(-how for how in (signal.SIGTERM, signal.SIGINT) if 75 in codes)
    if ended.code not in codes:
        raise Fault("wrong exit code", about)
    if ended.code == 75 and speaks and "o on" not in ended.out + ended.err:
        raise Fault("no way to go on", about)
