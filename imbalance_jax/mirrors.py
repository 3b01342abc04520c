"""Optional copies of metrics.jsonl for those who look at TensorBoard or Weights & Biases.

`config.mirrors` names them. metrics.jsonl stays the truth: nothing here is read back, and a
resumed run sends the steps after its checkpoint again.
"""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from imbalance_jax import config as config_lib
from imbalance_jax import storage
from imbalance_jax.runs import RunDirectory

# The package that each one needs; the extra of setup.cfg has the mirror's name.
_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}


class Mirror(Protocol):
    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in the run directory: `tensorboard --logdir RUN`.

    In a gs:// directory tensorboardX keeps all events in memory, and writes them anew each time.
    """

    def __init__(self, run: RunDirectory, config: config_lib.Config) -> None:
        import tensorboardX

        self._writer = tensorboardX.SummaryWriter(str(run.path / "tensorboard"))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of the same name; WANDB_MODE, WANDB_PROJECT and so on apply."""

    def __init__(self, run: RunDirectory, config: config_lib.Config) -> None:
        import wandb

        name = run.path.name
        self._run = wandb.init(
            name=name,
            id=name,
            resume="allow",
            # In a store it cannot write: WANDB_DIR says where then, or the current directory is it.
            dir=None if storage.is_store(run.path) else str(run.path),
            config=config_lib.to_dict(config),
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


def check(names: Sequence[str]) -> None:
    """Raises ValueError if the package of a mirror is not installed."""
    for name in names:
        if importlib.util.find_spec(_PACKAGES[name]) is None:
            raise ValueError(
                f"config.mirrors has {name!r}, and the package {_PACKAGES[name]} is not installed. "
                f"Run pip install -e '.[{name}]', or set config.mirrors=()."
            )


def open_mirrors(
    names: Sequence[str], run: RunDirectory, config: config_lib.Config
) -> list[Mirror]:
    """Opens the mirrors of a run, after `check`."""
    kinds: dict[str, Callable[..., Mirror]]
    kinds = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}
    return [kinds[name](run, config) for name in names]
