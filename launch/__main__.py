"""Sends a study's runs to where they train.

    python -m launch plan   --study=configs/studies/ratio.py --profile=launch/profiles/local.toml
    python -m launch submit --study=configs/studies/ratio.py --profile=launch/profiles/local.toml
    python -m launch status --workdir=studies/ratio

Nothing is submitted without --execute. --study can be left out where --workdir holds the study.
launch/README.md has a page for each engine.
"""

import collections
import dataclasses
import fnmatch
import os
import shlex
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import TextIO

from absl import flags
from etils import epath

from imbalance_jax import cli
from imbalance_jax.runs import storage
from imbalance_jax.runs.json_text import format_json
from imbalance_jax.runs.progress import format_duration
from imbalance_jax.study import grid, study_plan
from imbalance_jax.study.study_directory import StudyDirectory
from launch import engines, inputs, submissions
from launch import plan as plan_lib
from launch import profile as profile_lib
from launch.engines import JobRequest, RenderedJobs
from launch.inputs import InputReport
from launch.plan import Job, Plan
from launch.profile import Profile

FLAGS = flags.FLAGS
_EXAMPLE = "--study=studies/ratio --profile=launch/profiles/slurm-gpu.toml"
_STUDY = ("study", "workdir", "runs", "format")
_PLANNED = (*_STUDY, "profile", "pack", "pack_size", "env", "spot", "image")
_RENDERED = (*_PLANNED, "out", "only", "max_parallel", "env_file")
SUBCOMMANDS = {
    "plan": cli.Subcommand("Says which jobs there would be.", _EXAMPLE, (*_PLANNED, "out")),
    "preflight": cli.Subcommand(
        "Compiles each shape of run for its TPU, before anything is paid for.", _EXAMPLE, _PLANNED
    ),
    "render": cli.Subcommand(
        "Writes the files of the jobs, and prints the commands.", _EXAMPLE, _RENDERED
    ),
    "submit": cli.Subcommand(
        "Does what render does; with --execute it runs the commands.",
        f"{_EXAMPLE} --execute",
        (*_RENDERED, "execute"),
    ),
    "status": cli.Subcommand("Says how far each run is.", "--workdir=studies/ratio", _STUDY),
    "logs": cli.Subcommand("Prints the commands that show the logs.", _EXAMPLE, _PLANNED),
}


def define_flags() -> None:
    cli.define_config_flag("study", "studies/ratio")
    flags.DEFINE_string("workdir", None, "DIR: The study's directory; by default studies/<name>.")
    flags.DEFINE_string("profile", None, "FILE: Where to; a TOML file, as in launch/profiles.")
    flags.DEFINE_string("out", None, "DIR: Where files go; by default launch/<profile> of it.")
    flags.DEFINE_enum("only", "all", ["all", "missing", "failed"], "Which runs, by their state.")
    flags.DEFINE_list("runs", [], "Which runs, by patterns of their ids; !PATTERN leaves out.")
    flags.DEFINE_integer("max_parallel", 0, "slurm: jobs at a time.", lower_bound=0)
    flags.DEFINE_bool("spot", None, "gke, sky, tpuvm: machines that may be taken away.")
    flags.DEFINE_enum("pack", "none", list(plan_lib.PACKS), "Several runs in a job.")
    flags.DEFINE_integer("pack_size", 0, "How many runs; see --pack.", lower_bound=0)
    flags.DEFINE_multi_string("env", [], "NAME=VALUE: Of every run's environment; no secrets.")
    flags.DEFINE_string("env_file", None, "FILE: slurm: a script with secrets, of mode 600.")
    flags.DEFINE_string("image", None, "IMAGE: gke: the image, by its digest.")
    flags.DEFINE_bool("execute", False, "submit: run the commands.")
    flags.DEFINE_enum("format", "text", ["text", "json"], "Of what is printed.")


def main(command: str) -> int:
    directory, study = _open_study()
    if command == "status":
        return _run_status_command(directory, study)
    profile = _resolve_profile()
    plan = plan_lib.make_plan(
        study,
        profile,
        workdir=storage.make_absolute_path(directory.path),
        runs=_select_runs(study),
        pack=FLAGS.pack,
        pack_size=FLAGS.pack_size,
        env=_parse_env_flags(),
    )
    if command == "logs":
        return _run_logs_command(plan, profile)
    report = _check_plan_inputs(directory, study, plan, profile, command)
    if command == "preflight":
        from launch import preflight

        _print_notes(report)
        return preflight.run_preflight(study, plan, profile)
    if command == "plan":
        return _run_plan_command(directory, study, plan, report)
    send = {"render": _run_render_command, "submit": _run_submit_command}[command]
    return send(directory, study, plan, profile, report)


def _check_plan_inputs(
    directory: StudyDirectory, study: grid.StudyConfig, plan: Plan, profile: Profile, command: str
) -> InputReport:
    """Returns a report on the text and the weights that the jobs of a plan read.

    Raises:
      ValueError: a job could not open what it reads.
    """
    reach = command == "submit" and FLAGS.execute
    readable = reach or not storage.is_store(directory.path)
    recorded = directory.binding_texts() if readable else {}
    report = inputs.check_inputs(study, plan, profile, recorded=recorded, reach=reach)
    placeholders = profile_lib.describe_placeholders(profile, plan.workdir)
    shared = submissions.describe_shared_runs(directory, study, plan, plan.jobs, reach=reach)
    notes = (*filter(None, (placeholders, shared)), *report.notes)
    return dataclasses.replace(report, notes=notes)


def _print_notes(report: InputReport) -> None:
    for note in report.notes:
        _print_comment(note, sys.stderr if FLAGS.format == "json" else sys.stdout)


def _print_comment(text: str, file: TextIO | None = None) -> None:
    """Prints a text so that a shell which reads it runs none of its lines."""
    print(textwrap.indent(text, "# ", lambda line: True), file=file)


def _open_study() -> tuple[StudyDirectory, grid.StudyConfig]:
    storage.check_store_path("--workdir", FLAGS.workdir or "")
    if FLAGS.study is None:
        if not FLAGS.workdir:
            raise ValueError(
                "--study is missing. Give a file, such as --study=configs/studies/ratio.py, or a "
                "--workdir that holds a study."
            )
        directory = StudyDirectory(FLAGS.workdir)
        try:
            return directory, directory.study()
        except FileNotFoundError as error:
            raise ValueError(
                f"{error} `submit --execute` writes it. Until then, give --study=FILE too, as to "
                "`submit`."
            ) from error
    directory = StudyDirectory(
        FLAGS.workdir or os.path.join("studies", cli.get_config_name("study"))
    )
    study = grid.resolve_study(FLAGS.study)
    study = dataclasses.replace(study, reuse=tuple(map(storage.make_absolute_path, study.reuse)))
    if not storage.is_store(directory.path):
        directory.check(study)
    return directory, study


def _resolve_profile() -> Profile:
    if not FLAGS.profile:
        raise ValueError("--profile is missing. Give a file, such as launch/profiles/local.toml.")
    profile = profile_lib.read_profile(FLAGS.profile)
    changes = {}
    if FLAGS.spot is not None:
        changes["spot"] = FLAGS.spot
    if FLAGS.image is not None:
        profile_lib.check_image(FLAGS.image)
        changes["image"] = FLAGS.image
    for name in changes:
        if not hasattr(profile.settings, name):
            raise ValueError(f"--{name} says nothing to the engine {profile.engine}.")
    return dataclasses.replace(profile, settings=dataclasses.replace(profile.settings, **changes))


def _select_runs(study: grid.StudyConfig) -> list[str]:
    """Returns the runs that --runs names.

    Raises:
      ValueError: there are none.
    """
    excluded = [pattern[1:] for pattern in FLAGS.runs if pattern.startswith("!")]
    included = [pattern for pattern in FLAGS.runs if not pattern.startswith("!")] or ["*"]
    for pattern in (*excluded, *included):
        if not any(_matches_any_pattern(name, [pattern]) for name in study.runs):
            some = ", ".join(list(study.runs)[:3])
            raise ValueError(
                f"--runs={','.join(FLAGS.runs)}: {pattern} is no run of the study. It has {some}, "
                "..."
            )
    selected = [
        name
        for name in study.runs
        if _matches_any_pattern(name, included) and not _matches_any_pattern(name, excluded)
    ]
    if not selected:
        raise ValueError(f"--runs={','.join(FLAGS.runs)} leaves out every run.")
    return selected


def _matches_any_pattern(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _parse_env_flags() -> dict[str, str]:
    for pair in FLAGS.env:
        if "=" not in pair:
            raise ValueError(f"--env={pair}: write --env=NAME=VALUE.")
    return dict(pair.split("=", 1) for pair in FLAGS.env)


def _get_output_directory(plan: Plan) -> epath.Path:
    """Returns the local directory of the files that the commands read."""
    return epath.Path(os.path.abspath(FLAGS.out) if FLAGS.out else plan.local_folder)


def _render_selected_jobs(
    directory: StudyDirectory, study: grid.StudyConfig, plan: Plan, profile: Profile
) -> tuple[tuple[Job, ...], RenderedJobs]:
    """Returns the jobs that --runs and --only select, and their files and commands.

    Raises:
      ValueError: they select no job, or the engine cannot do what is asked.
    """
    jobs, others = plan.jobs, []
    if FLAGS.only != "all":
        states = directory.states(study)
        wanted = ("failed",) if FLAGS.only == "failed" else ("absent", "begun")
        jobs = plan_lib.select_jobs(
            plan, [n for n in _select_runs(study) if states[n].state in wanted]
        )
        left = [name for job in jobs for name in job.members if states[name].state != "done"]
        others = [name for name in left if states[name].state not in wanted]
    if not jobs:
        raise ValueError(f"--only={FLAGS.only}: there is no such run.")
    env_file = os.path.abspath(FLAGS.env_file) if FLAGS.env_file else ""
    if env_file:
        plan_lib.check_path_is_one_line("--env_file", env_file)
        _check_file_mode(env_file)
    out = os.fspath(_get_output_directory(plan))
    plan_lib.check_path_is_one_line("--out", out)
    request = JobRequest(
        jobs,
        out=out,
        again=FLAGS.only == "failed",
        max_parallel=FLAGS.max_parallel,
        env_file=env_file,
    )
    rendered = engines.load_engine(plan.engine).render_jobs(plan, profile, request)
    if not others:
        return jobs, rendered
    note = f"A pack is sent whole: --only={FLAGS.only} here also trains {', '.join(others)}."
    return jobs, dataclasses.replace(rendered, notes=(note, *rendered.notes))


def _check_file_mode(file: str) -> None:
    if not os.path.isfile(file):
        raise ValueError(f"--env_file={file}: there is no such file.")
    if os.stat(file).st_mode & 0o777 != 0o600:
        raise ValueError(
            f"--env_file={file} can be read by others. Run chmod 600 {shlex.quote(file)}."
        )


def _write_plan_files(folder: epath.Path, plan: Plan, rendered: RenderedJobs) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {"plan.json": _format_plan_json(plan), **rendered.files}.items():
        (folder / name).write_text(text, encoding="utf-8")


def _format_plan_json(plan: Plan) -> str:
    return format_json(plan.to_dict(), indent=1) + "\n"


def _format_described_plan_json(
    plan: Plan, logs: Sequence[str], report: InputReport, seconds: Mapping[str, float | None]
) -> str:
    """Returns all that the readable plan says: plan.json, and the logs, the text and the time."""
    plain = plan.to_dict()
    for job, log in zip(plain["jobs"], logs, strict=True):
        job["log"] = log
    plain["text"] = [source.to_dict() for source in report.sources]
    plain["time"] = {"seconds": seconds}
    return format_json(plain, indent=1) + "\n"


def _run_plan_command(
    directory: StudyDirectory, study: grid.StudyConfig, plan: Plan, report: InputReport
) -> int:
    _write_plan_files(_get_output_directory(plan), plan, RenderedJobs({}, ()))
    engine = engines.load_engine(plan.engine)
    logs = [engine.name_log(plan, job) for job in plan.jobs]
    seconds = _estimate_seconds(directory, study, plan)
    if FLAGS.format == "json":
        print(_format_described_plan_json(plan, logs, report, seconds))
    else:
        print(plan_lib.describe_jobs(plan, logs))
        print("\nText to train on, and the run that takes the most of it:")
        for source in report.sources:
            print(source.describe())
        print(_describe_time(directory, seconds))
        print(
            f"\nWrote {_quote_path(_get_output_directory(plan) / 'plan.json')}. "
            "To see what would be sent: python -m launch submit, with the same flags."
        )
    _print_notes(report)
    return cli.DONE


def _quote_path(path: epath.PathLike) -> str:
    """Returns a path as a shell takes it."""
    return shlex.quote(os.fspath(path))


def _estimate_seconds(
    directory: StudyDirectory, study: grid.StudyConfig, plan: Plan
) -> dict[str, float | None]:
    """Returns the time that each run of a plan takes, where runs that are done say how fast."""
    speeds = {}
    if not storage.is_store(directory.path):
        speeds = study_plan.read_measured_speeds(directory, study)
    return {
        name: study_plan.estimate_training_seconds(study.runs[name].config, speeds)
        for job in plan.jobs
        for name in job.members
    }


def _describe_time(directory: StudyDirectory, seconds: Mapping[str, float | None]) -> str:
    known = {name: time for name, time in seconds.items() if time is not None}
    lines = []
    if known:
        longest = max(known, key=lambda name: known[name])
        lines.append(
            f"Time: {format_duration(known[longest])} for {longest}, the longest, and "
            f"{format_duration(sum(known.values()))} for {len(known)} runs together, at the speed "
            "of runs of this study that are done."
        )
    if len(known) < len(seconds):
        lines.append(
            f"Time: no speed is known for {len(seconds) - len(known)} runs. To measure it, on a "
            f"machine like those of the jobs: python -m imbalance_jax.study plan "
            f"{_format_study_flags(directory)} --measure"
        )
    return "\n".join(lines)


def _format_study_flags(directory: StudyDirectory) -> str:
    """Returns the flags by which `imbalance_jax.study` opens the same study."""
    if FLAGS.study is None:
        return shlex.join([f"--workdir={directory}"])
    args = [f"--config={FLAGS['study'].config_filename}"]  # type: ignore[attr-defined]
    args += [
        arg.replace("--study.", "--config.", 1) for arg in sys.argv if arg.startswith("--study.")
    ]
    return shlex.join(args)


def _run_render_command(
    directory: StudyDirectory,
    study: grid.StudyConfig,
    plan: Plan,
    profile: Profile,
    report: InputReport,
) -> int:
    _, rendered = _render_selected_jobs(directory, study, plan, profile)
    _write_plan_files(_get_output_directory(plan), plan, rendered)
    _print_rendered(rendered)
    _print_next_step(plan)
    _print_notes(report)
    return cli.DONE


def _print_next_step(plan: Plan) -> None:
    if FLAGS.format == "json":
        return
    _print_comment(
        f"The files are in {_quote_path(_get_output_directory(plan))}. Nothing was submitted."
    )
    _print_comment(
        "To send the jobs: python -m launch submit, with the same flags and --execute. It first "
        f"writes study.json and logs/ into {_quote_path(plan.workdir)}, which these commands need."
    )


def _print_rendered(rendered: RenderedJobs) -> None:
    if FLAGS.format == "json":
        print(format_json(dataclasses.asdict(rendered), indent=1))
        return
    for command in rendered.commands:
        print(shlex.join(command))
    for note in rendered.notes:
        _print_comment(note)


def _run_submit_command(
    directory: StudyDirectory,
    study: grid.StudyConfig,
    plan: Plan,
    profile: Profile,
    report: InputReport,
) -> int:
    jobs, rendered = _render_selected_jobs(directory, study, plan, profile)
    if not FLAGS.execute:
        _write_plan_files(_get_output_directory(plan), plan, rendered)
        _print_rendered(rendered)
        _print_next_step(plan)
        _print_notes(report)
        return cli.DONE
    profile_lib.check_placeholders(profile, plan.workdir)
    shared = submissions.describe_shared_runs(directory, study, plan, jobs, reach=True)
    if shared:
        raise ValueError(shared)
    _print_notes(report)
    directory.check(study)
    directory.claim(study, report.texts)
    (directory.path / "logs").mkdir(exist_ok=True)
    folder = epath.Path(plan.folder)
    for place in dict.fromkeys((_get_output_directory(plan), folder)):
        _write_plan_files(place, plan, rendered)
    if plan.engine == "local":
        print(f"What the runs say goes to {_quote_path(plan.workdir)}/logs, as they train.")
    for command in rendered.commands:
        print(shlex.join(command), flush=True)
        line = submissions.execute_command(command, plan.engine == "local")
        line |= {"engine": plan.engine, "jobs": submissions.list_submitted_members(command, jobs)}
        submissions.append_line(plan, line)
        code = line["code"]
        if plan.engine == "local":
            print(f"exit code {code}", flush=True)
        if code:
            return code if plan.engine == "local" else cli.FAILED
    status = shlex.join(["python", "-m", "launch", "status", f"--workdir={plan.workdir}"])
    print(f"How far the runs are: {status}")
    return cli.DONE


def _run_status_command(directory: StudyDirectory, study: grid.StudyConfig) -> int:
    states = {name: directory.state(name, study) for name in _select_runs(study)}
    if FLAGS.format == "json":
        print(format_json({n: dataclasses.asdict(state) for n, state in states.items()}, indent=1))
        return cli.DONE
    for name, state in states.items():
        print(f"{state.state:<7} {name:<28} {state.step:>8,} of {state.steps:,}   {state.error}")
    counts = collections.Counter(state.state for state in states.values())
    print(", ".join(f"{count} {state}" for state, count in counts.items()))
    return cli.DONE


def _run_logs_command(plan: Plan, profile: Profile) -> int:
    engine = engines.load_engine(plan.engine)
    for job in plan.jobs:
        command = engine.build_logs_command(plan, profile, job)
        _print_comment(", ".join(job.members))
        print(shlex.join(command))
    return cli.DONE


if __name__ == "__main__":
    define_flags()
    cli.run_command(main, subcommands=SUBCOMMANDS)
