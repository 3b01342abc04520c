"""Optional copies of metrics.jsonl in TensorBoard or Weights & Biases, named by `config.mirrors`.

Nothing reads a mirror back, and one that fails while the run trains gets no more metrics. A run
that goes on from a checkpoint makes some steps again; each mirror shows them once. A run has the
name of its directory in both, which is its id in a study. `push_table` sends a study's table.
"""

import glob
import importlib.util
import os
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from etils import epath

from imbalance_jax import config as config_lib
from imbalance_jax.runs import storage
from imbalance_jax.runs.run_directory import RunDirectory

# Mirror -> the package that it needs. The extra of setup.cfg has the mirror's name.
_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}
# The id of a run of Weights & Biases, in the run's directory.
_ID_FILE = "wandb.json"


class Mirror(Protocol):
    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in the run directory: `tensorboard --logdir runs` names each run after its own.

    Earlier versions wrote them into RUN/tensorboard; their runs go on there. In a gs:// directory
    tensorboardX keeps all events in memory and writes them anew each time.
    """

    def __init__(self, run: RunDirectory, config: config_lib.Config, start: int, sent: int) -> None:
        import tensorboardX

        earlier = run.path / "tensorboard"
        folder = earlier if earlier.exists() else run.path
        begun = folder == earlier or any(folder.glob("events.out.tfevents.*"))
        # Readers leave out the records of earlier files from this step on.
        purge = (start + 1 if start else 0) if begun else None
        self._writer = tensorboardX.SummaryWriter(str(folder), purge_step=purge)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run with the directory's name; WANDB_MODE, WANDB_PROJECT and so on apply.

    Runs of a study are a group, which has the name of the study's directory.

    The history of such a run can only grow (`resume_from`, which would cut it, is a beta that
    needs the server). So steps that it has already are not sent again. With WANDB_MODE=offline
    the server cannot be asked, and the logged steps count as sent; if the run was killed, wandb
    may not have written the last of them.
    """

    def __init__(self, run: RunDirectory, config: config_lib.Config, start: int, sent: int) -> None:
        saved = run.read_json(_ID_FILE)
        id_ = saved["id"] if saved else _find_legacy_wandb_id(run, start)
        self._sent = sent if id_ else -1
        plain = config_lib.to_dict(config)
        self._run = _begin_wandb_run(run, id_, run.path.name, _find_study_name(run), config=plain)
        if self._run.resumed:  # the server knows what it has
            self._sent = self._run.starting_step - 1

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if step > self._sent:
            self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


def _begin_wandb_run(
    directory: RunDirectory, id_: str, name: str, group: str, **settings: Any
) -> Any:
    """Returns the run of Weights & Biases with an id, or a new one, whose id a directory keeps."""
    import wandb

    id_ = id_ or secrets.token_hex(8)
    if not (directory.path / _ID_FILE).exists():
        directory.write_json(_ID_FILE, {"id": id_})
    return wandb.init(
        name=name,
        id=id_,
        resume="allow",
        # What is given here would come before the environment.
        group=os.environ.get("WANDB_RUN_GROUP") or group or None,
        # wandb cannot write to a store: it takes WANDB_DIR, or the current directory.
        dir=None if storage.is_store(directory.path) else str(directory.path),
        **settings,
    )


def _find_study_name(run: RunDirectory) -> str:
    """Returns the name of the directory of the study that a run is of; "" if it is of none."""
    runs = epath.Path(storage.make_absolute_path(run.path)).parent
    return runs.parent.name if (runs.parent / "study.json").exists() else ""


def push_table(path: epath.Path, name: str, columns: Mapping[str, Sequence[Any]]) -> None:
    """Sends a study's table to a run of Weights & Biases that is named after the study.

    A table that is sent again is a new version in the same run.

    Args:
      path: the study's directory, which keeps the id of that run.
      name: of the study.
      columns: of the table, by their names.

    Raises:
      ValueError: wandb is not installed, or does not start.
    """
    check_package_installed("wandb", "study push sends a table to Weights & Biases")
    import wandb

    try:
        directory = RunDirectory(path)
        id_ = (directory.read_json(_ID_FILE) or {}).get("id", "")
        sent = _begin_wandb_run(directory, id_, name, name, job_type="study")
        rows = [list(row) for row in zip(*columns.values(), strict=True)]
        sent.log({"table": wandb.Table(columns=list(columns), data=rows)})
        sent.finish()
    except Exception as error:
        raise ValueError(f"Weights & Biases does not take the table: {error}") from error


def _find_legacy_wandb_id(run: RunDirectory, start: int) -> str:
    """Returns the id of a run that an earlier version mirrored under its name; "" if none did."""
    name = run.path.name
    if storage.is_store(run.path):  # its files may be anywhere
        return name if start else ""
    return name if any(run.path.glob(f"wandb/*run-*-{glob.escape(name)}")) else ""


class Mirrors:
    """The mirrors of a run. Each gets every metric of a step once.

    Args:
      names: the mirrors.
      run: the directory, whose metrics end at `start`.
      config: of the run.
      start: the step that the run goes on from.
      sent: the newest step that the run has logged before; -1 is none.

    Raises:
      ValueError: a mirror does not open.
    """

    def __init__(
        self,
        names: Sequence[str],
        run: RunDirectory,
        config: config_lib.Config,
        start: int = 0,
        sent: int = -1,
    ) -> None:
        kinds: dict[str, Callable[..., Mirror]] = {
            "tensorboard": TensorBoard,
            "wandb": WeightsAndBiases,
        }
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
        # A step has several records, and all of them have the elapsed seconds.
        self._step, self._names = start, set[str]()
        if sent >= start and self._open:
            for record in run.records_of(start):
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
        """Does something for every mirror, and drops a mirror that fails."""
        for name, mirror in list(self._open.items()):
            try:
                act(mirror)
            except Exception as error:
                del self._open[name]
                print(f"{name} gets no more metrics: {error}", file=sys.stderr)


def check_mirror_packages(names: Sequence[str]) -> None:
    """Raises ValueError if the package of a mirror is not installed."""
    for name in names:
        check_package_installed(name, f"config.mirrors has {name!r}", ", or set config.mirrors=()")


def check_package_installed(mirror: str, asked: str, otherwise: str = "") -> None:
    """Raises ValueError, with what asked for it, if the package of a mirror is not installed."""
    if importlib.util.find_spec(_PACKAGES[mirror]) is None:
        raise ValueError(
            f"{asked}, and the package {_PACKAGES[mirror]} is not installed. Run pip install -e "
            f"'.[{mirror}]'{otherwise}."
        )
