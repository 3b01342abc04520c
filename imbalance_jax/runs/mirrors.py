"""Optional copies of metrics.jsonl for those who look at TensorBoard or Weights & Biases.

`config.mirrors` names them. metrics.jsonl stays the truth: nothing here is read back, and a mirror
that fails while the run trains is left behind. A run that goes on from a checkpoint makes the same
steps again; each mirror shows them once.
"""

import glob
import importlib.util
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from imbalance_jax import config as config_lib
from imbalance_jax.runs import storage
from imbalance_jax.runs.run_directory import RunDirectory

# The package that each one needs; the extra of setup.cfg has the mirror's name.
_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}
# The id of a run of Weights & Biases, in the run's directory.
_ID_FILE = "wandb.json"


class Mirror(Protocol):
    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in the run directory: `tensorboard --logdir RUN`.

    In a gs:// directory tensorboardX keeps all events in memory, and writes them anew each time.
    """

    def __init__(self, run: RunDirectory, config: config_lib.Config, start: int, sent: int) -> None:
        import tensorboardX

        folder = run.path / "tensorboard"
        # Readers leave out what earlier files have from this step on.
        purge = (start + 1 if start else 0) if folder.exists() else None
        self._writer = tensorboardX.SummaryWriter(str(folder), purge_step=purge)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run with the directory's name; WANDB_MODE, WANDB_PROJECT and so on apply.

    The history of a run there can only grow (`resume_from`, which would cut it, is a beta that
    needs its server). So the steps that it has already, which are the same ones, are not sent
    again. Where the server is not asked, with WANDB_MODE=offline, these are the steps that were
    logged; of a run that was killed, wandb may not have written the last of them.
    """

    def __init__(self, run: RunDirectory, config: config_lib.Config, start: int, sent: int) -> None:
        import wandb

        known = run.read_json(_ID_FILE)
        id_ = known["id"] if known else _find_legacy_wandb_id(run, start)
        self._sent = sent if id_ else -1
        id_ = id_ or secrets.token_hex(8)
        if known is None:
            run.write_json(_ID_FILE, {"id": id_})
        self._run = wandb.init(
            name=run.path.name,
            id=id_,
            resume="allow",
            # In a store it cannot write: WANDB_DIR says where then, or the current directory is it.
            dir=None if storage.is_store(run.path) else str(run.path),
            config=config_lib.to_dict(config),
        )
        if self._run.resumed:  # the server knows what it has
            self._sent = self._run.starting_step - 1

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if step > self._sent:
            self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


def _find_legacy_wandb_id(run: RunDirectory, start: int) -> str:
    """Returns the id of a run that was mirrored when ids were names, or nothing for another."""
    name = run.path.name
    if storage.is_store(run.path):  # where its files are is not known
        return name if start else ""
    return name if any(run.path.glob(f"wandb/*run-*-{glob.escape(name)}")) else ""


class Mirrors:
    """The mirrors of a run, which get each metric of a step once."""

    def __init__(
        self,
        names: Sequence[str],
        run: RunDirectory,
        config: config_lib.Config,
        start: int = 0,
        sent: int = -1,
    ) -> None:
        """Args:
        names: of the mirrors.
        run: the directory, whose metrics end at `start`.
        config: of the run.
        start: the step that the run goes on from.
        sent: the newest step that it had logged before; -1 is none.

        Raises:
          ValueError: a mirror does not open.
        """
        kinds: dict[str, Callable[..., Mirror]]
        kinds = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}
        self._open: dict[str, Mirror] = {}
        for name in names:
            try:
                self._open[name] = kinds[name](run, config, start, sent)
            except Exception as error:
                self.close()
                raise ValueError(
                    f"config.mirrors has {name!r}, which does not start: {error} Mend that, or set "
                    "config.mirrors=()."
                ) from error
        # A step has several records, and each of them has the clock's seconds.
        self._step, self._names = start, set[str]()
        if sent >= start and self._open:
            for record in run.metrics():
                if record["step"] == start:
                    self._names |= record.keys()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if step != self._step:
            self._step, self._names = step, set()
        new = {name: value for name, value in metrics.items() if name not in self._names}
        self._names |= new.keys()
        self._each(lambda mirror: mirror.log(step, new))

    def close(self) -> None:
        self._each(lambda mirror: mirror.close())
        self._open = {}

    def _each(self, act: Callable[[Mirror], None]) -> None:
        """Does something for every mirror; one that it fails for is left behind."""
        for name, mirror in list(self._open.items()):
            try:
                act(mirror)
            except Exception as error:
                del self._open[name]
                print(f"{name} gets no more metrics: {error}", file=sys.stderr)


def check_mirror_packages(names: Sequence[str]) -> None:
    """Raises ValueError if the package of a mirror is not installed."""
    for name in names:
        if importlib.util.find_spec(_PACKAGES[name]) is None:
            raise ValueError(
                f"config.mirrors has {name!r}, and the package {_PACKAGES[name]} is not installed. "
                f"Run pip install -e '.[{name}]', or set config.mirrors=()."
            )
