"""A trained run opened again, with its text, on the devices at hand."""

from collections.abc import Sequence

import jax
from jax.sharding import Mesh

from imbalance_jax import config as config_lib
from imbalance_jax.compute import hardware, sharding
from imbalance_jax.compute import hosts as distributed
from imbalance_jax.compute.step import TrainState
from imbalance_jax.config import Config
from imbalance_jax.data import sources
from imbalance_jax.runs.run_directory import RunDirectory
from imbalance_jax.training.experiment import Experiment
from imbalance_jax.training.loading import read_vocabulary, restore_state


def open_run(
    run: RunDirectory, config: Config, *, step: int | None = None
) -> tuple[Experiment, TrainState]:
    """Returns a run's parts and a state that it saved, on the devices at hand.

    Args:
      run: a directory with a checkpoint.
      config: the run's, with the evaluation and the data_dir that are wanted now.
      step: of the checkpoint; None is the newest.

    Raises:
      ValueError: it has no such checkpoint, or the text is another one by now.
    """
    distributed.join_processes()
    saved = run.steps()
    if not saved or (step is not None and step not in saved):
        wanted = "checkpoint yet" if step is None else f"checkpoint of step {step}"
        steps = ", ".join(map(str, saved)) or "none"
        raise ValueError(f"{run} has no {wanted}. It has: {steps}.")
    hardware.use_compilation_cache(sources.resolve_data_cache_dir(config.data_dir) / "compiled")
    mesh = choose_mesh(config, read_vocabulary(run).size, jax.devices())
    experiment = Experiment.of_run(config, run, mesh)
    return experiment, restore_state(run, step, experiment.abstract_state())


def choose_mesh(config: Config, vocab_size: int, devices: Sequence[jax.Device]) -> Mesh:
    """Returns the mesh of a run's config over these devices, or copies of the model on each.

    The second where the run was trained on another number of them, which its mesh or the
    dimensions of its model do not fit.
    """
    try:
        mesh = sharding.make_mesh(config.mesh, devices)
        sharding.check_dimensions(config, mesh, vocab_size)
    except ValueError:
        return sharding.make_mesh(config_lib.MeshConfig(), devices)
    return mesh
