"""How training ends before its last step, and what it says then."""

import contextlib
import shlex
from collections.abc import Iterator, Mapping

import jax

from imbalance_jax.compute import hardware
from imbalance_jax.config import Config, mesh_shape
from imbalance_jax.runs import divergence, storage
from imbalance_jax.runs.run_directory import RunDirectory


class Preempted(Exception):
    """The run was asked to stop, and has saved the state after `step`, if it had one yet."""

    def __init__(self, step: int | None) -> None:
        super().__init__("stopped" if step is None else f"stopped after step {step}")
        self.step = step


class CheckpointSetAside(Exception):
    """A run's newest checkpoint is damaged and lies elsewhere now; nothing was trained."""


class MemberRefused(Exception):
    """A member of a pack has no checkpoint that it can go on from; the others train without it."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"{name}: {why}")
        self.name, self.why = name, why


class PeerLost(Exception):
    """Another process of the run has gone, for no reason that FAILED.json would give."""

    def __init__(self, step: int) -> None:
        super().__init__(f"another process was lost after step {step}")
        self.step = step


def explain_divergence(what: str, config: Config, run: RunDirectory) -> str:
    """Returns the message of a run that diverged, with what is left of it and what to change.

    Args:
      what: is not finite, and when.
      run: whose checkpoints are those that it can go on from.
    """
    good = run.newest_checkpoint()
    ways = f"In another --workdir, {divergence.WAYS_OUT}"
    if not good:
        return f"{what} The run has diverged, and has no checkpoint from before. {ways}."
    more, begin = max(10, 2 * config.optimizer.skip_nonfinite), shlex.quote(f"{run}@{good}")
    return (
        f"{what} The run has diverged. Its last good checkpoint is {run.checkpoints / str(good)}. "
        f"{ways}; --config.init_from={begin} begins with the parameters of that checkpoint. "
        "Or start the same command again with "
        f"--config.optimizer.skip_nonfinite={more}: it goes on from there, and leaves out up to "
        f"{more} such updates in a row."
    )


@contextlib.contextmanager
def explain_out_of_memory(config: Config, mesh: Mapping[str, int]) -> Iterator[None]:
    """Raises ValueError where memory runs out before the first step."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if not hardware.is_out_of_memory(error):
            raise
        raise ValueError(explain_error(config, error, mesh)) from error


def explain_error(config: Config, error: Exception, mesh: Mapping[str, int]) -> str:
    """Returns the message of an error that ends a run, with what to do about it where known."""
    if isinstance(error, MemoryError):
        return f"This machine is out of memory: {error or 'it does not say for what'}."
    if not hardware.is_out_of_memory(error):
        system = error if isinstance(error, OSError) else storage.find_os_error(error)
        if system:
            return storage.describe_os_error(system)
        return str(error) or type(error).__name__
    possible = mesh_shape.list_micro_batch_counts(config.batch_size, mesh)
    more = [k for k in possible if k > config.optimizer.accumulate]
    ways = [f"--accumulate={more[0]} (the same update in smaller parts)"] if more else []
    ways += ["--remat=full (less is kept for the backward pass)"] * (config.model.remat != "full")
    help_ = f"Start it again with {' or '.join(ways)}." if ways else "Use more devices."
    return f"Out of memory: {str(error).splitlines()[0]} {help_}"
