"""Compiles a plan's training steps for the TPUs that it is for, on a machine without any.

A mesh that XLA refuses, or a step that needs more memory than a chip has, shows here before a
slice is paid for. Each shape of step is compiled once, whichever runs have it. It takes libtpu
(extra `tpu`), a core and a few minutes a shape.
"""

import dataclasses
from collections.abc import Iterator

from imbalance_jax import cli
from imbalance_jax.config import Config, costs
from imbalance_jax.study import grid, study_plan
from launch.plan import Plan
from launch.profile import Profile


@dataclasses.dataclass(frozen=True)
class StepShape:
    """A step that is compiled once: of a run, or of a pack of so many members."""

    config: Config
    members: int
    runs: tuple[str, ...]

    @property
    def name(self) -> str:
        runs = f"{len(self.runs)} runs, such as {self.runs[0]}"
        pack = f" in packs of {self.members}" if self.members > 1 else ""
        return f"{study_plan.make_size_key(self.config)}: {runs}{pack}"


def list_step_shapes(study: grid.StudyConfig, plan: Plan, profile: Profile) -> list[StepShape]:
    """Returns the steps that a plan's jobs compile, each with the profile's mesh."""
    runs_of: dict[tuple, list[str]] = {}
    configs = {}
    for job in plan.jobs:
        config = study.runs[job.members[0]].config
        members = len(job.members) if plan.pack == "member" else 1
        optimizer = (config.optimizer.name, config.optimizer.accumulate)
        key = (
            members,
            study_plan.make_size_key(config),
            config.model,
            optimizer,
            len(config.languages),
        )
        mesh = dataclasses.replace(config.mesh, **profile.mesh)
        configs[key] = dataclasses.replace(config, mesh=mesh)
        runs_of.setdefault(key, []).extend(job.members)
    return [StepShape(configs[key], key[0], tuple(runs)) for key, runs in runs_of.items()]


def run_preflight(study: grid.StudyConfig, plan: Plan, profile: Profile) -> int:
    """Prints the memory of each shape of step, and returns the command's exit code.

    Raises:
      ValueError: the profile is not for TPUs, or libtpu cannot be had.
    """
    size = profile.size
    if not size.is_tpu:
        raise ValueError(
            f"The profile {profile.name} is for {size.family}, and only TPUs can be compiled for "
            "without one. On a machine with such a device, run python -m imbalance_jax.main with "
            "--study, --members and --dry_run."
        )
    if plan.pack == "host":
        raise ValueError("--pack=host gives each run a part of a host. Take a topology of that.")
    misfits = 0
    for shape in list_step_shapes(study, plan, profile):
        print(shape.name, flush=True)
        fits, lines = _compile_step(shape, profile)
        misfits += not fits
        print("\n".join(lines), flush=True)
    if misfits:
        print(f"{misfits} of these do not fit {size}. Cut the model with [mesh] fsdp, or the batch")
        print("with config.optimizer.accumulate in the study's config file, which may change at")
        print("any time; or take a larger topology.")
    return cli.REFUSED if misfits else cli.DONE


def _compile_step(shape: StepShape, profile: Profile) -> tuple[bool, Iterator[str]]:
    from imbalance_jax.bench import topology

    size = profile.size
    measured = topology.measure_step_on_topology(
        shape.config,
        costs.compute_vocab_size(shape.config),
        size.libtpu,
        num_slices=size.num_slices,
        members=shape.members,
    )
    return measured["fits"], topology.describe_topology_step(measured)
