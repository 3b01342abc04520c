"""A small study, and what the engines make of it on the profiles that the package has."""

import pathlib
import shlex

import ml_collections
from made_studies import mixture

from imbalance_jax.study import grid
from launch import engines, plan, profile
from launch.engines import JobRequest

PROFILES = sorted(pathlib.Path(profile.__file__).parent.glob("profiles/*.toml"))
WORKDIRS = {"slurm": "/shared/studies/ratio", "local": "/home/me/studies/ratio"}


def study(seeds: int = 1) -> grid.StudyConfig:
    return grid.resolve_study(small_grid(seeds))


def small_grid(seeds: int = 1) -> ml_collections.ConfigDict:
    config = grid.Grid("A made study.", unit=_sized("50:50"))
    for ratio in ("50:50", "90:10"):
        config.add("r" + ratio.replace(":", "_"), _sized(ratio), seeds=range(seeds))
    return config.to_config()


def _sized(ratio: str) -> ml_collections.ConfigDict:
    config = mixture(ratio)
    config.batch_size = 64  # divides over every profile
    return config


def workdir(engine: str) -> str:
    return WORKDIRS.get(engine, "gs://my-bucket/studies/ratio")


def made(
    where: profile.Profile,
    *,
    out: str = "OUT",
    again: bool = False,
    env_file: str = "",
    **options,
) -> tuple[plan.Plan, engines.RenderedJobs]:
    """Returns the plan of the study's run r90_10_s0 and what its engine makes of it."""
    options = {"workdir": workdir(where.engine), "runs": ["r90_10_s0"], **options}
    mine = plan.make_plan(study(), where, **options)
    request = JobRequest(mine.jobs, out=out, again=again, env_file=env_file)
    return mine, engines.load_engine(mine.engine).render_jobs(mine, where, request)


def text(rendered: engines.RenderedJobs) -> str:
    """Returns all that is rendered as one text, but the scripts, which are static."""
    parts = [
        f"==> {name}\n{content}"
        for name, content in rendered.files.items()
        if not name.endswith(".sh")
    ]
    return "\n".join([*parts, *map(shlex.join, rendered.commands), *rendered.notes]) + "\n"
