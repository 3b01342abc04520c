"""Trains a model at a chosen language ratio.

    python -m imbalance_jax.main --config=configs/90_10.py --workdir=runs/90_10
    python -m imbalance_jax.main --config=90_10:scale=pico --config.optimizer.peak_lr=1e-3
    python -m imbalance_jax.main --workdir=runs/90_10 --config.steps=3000 --extend

The first command prepares the text if it is not prepared yet, and trains. Started again with the
same work directory, a run goes on from its newest checkpoint. Without --config, a run goes on with
the config that it was started with, as in the third command.

    python -m imbalance_jax.main --study=studies/ratio --members=r50_50_s0,r90_10_s0

trains runs of a study in their directories, with the configs in the study's study.json. Several
runs are a pack: they train as one program, and each leaves the files that it would leave alone.
"""

import dataclasses
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from absl import flags

from imbalance_jax import cli
from imbalance_jax import config as config_lib
from imbalance_jax.runs import divergence, storage
from imbalance_jax.runs.run_directory import RunDirectory
from imbalance_jax.study.study_directory import StudyDirectory

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from imbalance_jax.training.ends import Preempted
    from imbalance_jax.training.pack import PackMember
    from imbalance_jax.training.recorder import RunTimer

FLAGS = flags.FLAGS


def define_flags() -> None:
    cli.define_config_flag()
    flags.DEFINE_string("workdir", None, "DIR: The run's directory; by default runs/<config name>.")
    flags.DEFINE_bool("dry_run", False, "Say what the run takes, and train nothing.")
    flags.DEFINE_bool("extend", False, "Allow more config.steps than the run was started with.")
    flags.DEFINE_string("export", None, "DIR: Write the final parameters there.")
    flags.DEFINE_enum(
        "format",
        None,
        ["safetensors", "huggingface"],
        "Of the export: names of ours, or what transformers loads.",
    )
    flags.DEFINE_string(
        "language", None, "TAG: Of huggingface, the tokenizer's; by default the first."
    )
    flags.DEFINE_integer("devices", 0, "Refuse to start on another number of devices; 0 is any.", 0)
    cli.define_compute_flags()
    flags.DEFINE_string("study", None, "DIR: A study's directory, some of whose runs to train.")
    flags.DEFINE_list("members", [], "RUN,RUN: The ids of those runs in its study.json.")
    flags.DEFINE_string("data_dir", None, "DIR: Where their text is; by default config.data_dir.")
    flags.DEFINE_list("mesh", [], "AXIS=N: Their mesh, such as fsdp=4,tensor=2.")


class _RequestedRun(NamedTuple):
    """A run that the command line names."""

    name: str  # its id where several are trained
    run: RunDirectory
    config: config_lib.Config
    text: Mapping[str, str]  # source -> the fingerprint of its text, where a study recorded it


def main() -> int:
    requested = _read_study_runs() if FLAGS.study or FLAGS.members else [_read_single_run()]
    for each in requested:
        each.run.check(each.config, extend=FLAGS.extend)
    _check_export_flags(requested[0].config)
    runs, diverged = [], []
    for each in requested:
        if each.run.done and each.config.steps == each.run.config().steps and not FLAGS.dry_run:
            diverged.append(divergence.describe_divergence(each.run))
            if diverged[-1]:
                print(f"error: {diverged[-1]}", file=sys.stderr)
            else:
                print(f"{each.run} is done. See {_ensure_report(each.run)}.")
        else:
            each.run.check_checkpoints()
            each.run.check_writable("--study" if FLAGS.study else "--workdir")
            runs.append(each)
    code = _train_runs(runs, packed=len(requested) > 1) if runs else cli.DONE
    if any(diverged):
        return code or cli.FAILED
    return code if runs else _write_export(requested[0].run)


def _read_single_run() -> _RequestedRun:
    for name in ("data_dir", "mesh"):
        if getattr(FLAGS, name):
            raise ValueError(f"--{name} is for runs of a study. Set --config.{name} instead.")
    run = RunDirectory(FLAGS.workdir or os.path.join("runs", cli.get_config_name()))
    begun = FLAGS.config is None and (run.path / "config.json").exists()
    config = run.config() if begun else cli.require_run_config()
    return _RequestedRun("", run, _apply_compute_flags(config), {})


def _train_runs(runs: Sequence[_RequestedRun], *, packed: bool) -> int:
    """Trains runs in their directories; if they are `packed`, the mesh may have members."""
    from imbalance_jax.compute import hosts as distributed

    distributed.join_processes(FLAGS.devices)
    try:
        return _plan_and_train_runs(runs, packed=packed)
    # Of what all do together before the first step, in restoring, or in a save at the end.
    except (RuntimeError, ValueError) as error:
        if not distributed.is_lost_peer(error):
            raise
        return _exit_after_lost_peer("another process was lost")


def _plan_and_train_runs(runs: Sequence[_RequestedRun], *, packed: bool) -> int:
    """Does what `_train_runs` does, once the processes of the run have met."""
    import jax

    from imbalance_jax.compute import hardware, sharding
    from imbalance_jax.compute import hosts as distributed
    from imbalance_jax.data import sources
    from imbalance_jax.training import planning
    from imbalance_jax.training.experiment import Experiment
    from imbalance_jax.training.pack import Pack, PackMember
    from imbalance_jax.training.recorder import RunTimer

    _check_single_process_flags()
    config = runs[0].config
    hardware.use_compilation_cache(sources.resolve_data_cache_dir(config.data_dir) / "compiled")
    times = RunTimer()
    with times("setup"):
        # What can be wrong without the text is found before its preparation takes minutes.
        with distributed.propagate_errors():
            mesh = sharding.make_mesh(config.mesh, jax.devices(), packed=packed)
            for each in runs:
                planning.check_memory(each.config, mesh, len(runs))
                sharding.check_batch(each.config, mesh)
                _check_run_inputs(each.run, each.config)
        alone = sharding.make_one_member_mesh(mesh)
        members = [
            PackMember(name, Experiment.of_run(config, run, alone, text), run)
            for name, run, config, text in runs
        ]
        with distributed.propagate_errors():
            for member in members:
                member.experiment.minimal_pairs  # noqa: B018 - read now, for what is wrong with it
            pack = Pack(members, mesh)
        print(planning.describe_plan(pack))
    if FLAGS.dry_run:
        print(planning.forecast_plan(pack))
        print("\n".join(planning.describe_disks(pack)))
        print("Nothing was trained. To train: the same command without --dry_run.")
        return cli.DONE
    for line in planning.warn_of_full_disk(pack):
        print(line)
    begun = members[0].run.begun() if FLAGS.extend else None
    if begun is not None and begun.steps < pack.steps:
        print(planning.describe_extension(begun, pack.first))
    return _train_and_report(members, mesh, times)


def _check_export_flags(config: config_lib.Config) -> None:
    """Raises ValueError if the export that flags ask for would fail when the run is done."""
    for name in ("format", "language"):
        if getattr(FLAGS, name) and not FLAGS.export:
            raise ValueError(f"--{name} says how to export. Give --export=DIR too.")
    if FLAGS.language and FLAGS.format != "huggingface":
        raise ValueError("--language is for --format=huggingface; safetensors has all languages.")
    if FLAGS.format == "huggingface":
        from imbalance_jax.training import hugging_face

        hugging_face.check_export(config, FLAGS.language)
    if FLAGS.export:
        storage.check_directory_writable("--export", FLAGS.export)


def _ensure_report(run: RunDirectory) -> os.PathLike:
    """Returns the path of a run's report, which is written where it is missing."""
    from imbalance_jax.report import run_page as page

    report = run.path / "report.html"
    return report if report.exists() else page.write_run_page(run)


def _check_single_process_flags() -> None:
    """Raises ValueError if flags ask for something that several processes cannot do."""
    import jax

    if FLAGS.export and jax.process_count() > 1:
        raise ValueError(
            f"--export={FLAGS.export} gathers the parameters in one process, and there are "
            f"{jax.process_count()}. Leave it out, and give it with --workdir alone when the run "
            "is done."
        )


def _check_run_inputs(run: RunDirectory, config: config_lib.Config) -> None:
    """Raises ValueError if a run, package or file that a config names is missing; reads no text."""
    from imbalance_jax.data import minimal_pairs, parallel
    from imbalance_jax.runs import mirrors
    from imbalance_jax.training import init_from

    if not run.checkpoints.exists():  # a run that has begun needs the other one no more
        init_from.check_init_from(config)
    mirrors.check_mirror_packages(config.mirrors)
    parallel.check_all_parallel_sets(config)
    if config.evaluation.minimal_pairs:
        asked = config.evaluation.minimal_pairs
        minimal_pairs.find_pair_files(config, asked, minimal_pairs.FIELD)


def _read_study_runs() -> list[_RequestedRun]:
    """Returns the runs that --study and --members name.

    Raises:
      ValueError: there are no such runs, or other flags say what to train too.
    """
    for name in ("config", "workdir", "extend", "export"):
        if getattr(FLAGS, name):
            raise ValueError(
                f"--{name} is for a run alone; --study says what its runs are and where they lie. "
                f"Leave out --{name}, or --study and --members."
            )
    if not FLAGS.study:
        raise ValueError("--members are runs of a study. Give its directory, as --study=DIR.")
    try:
        recorded = StudyDirectory(FLAGS.study).read_recorded_runs()
    except FileNotFoundError as error:
        raise ValueError(f"--study={FLAGS.study} holds no study: it has no study.json.") from error
    if not FLAGS.members:
        raise ValueError(
            f"--study={FLAGS.study} needs --members: which of its runs to train, such as "
            f"--members={','.join(list(recorded)[:2])}."
        )
    for name in FLAGS.members:
        if name not in recorded:
            some = f"It has {len(recorded)}, such as {', '.join(list(recorded)[:3])}."
            raise ValueError(
                f"--members has {name!r}, which is no run of {FLAGS.study}/study.json. "
                f"{config_lib.suggest_nearest_name(name, recorded) or some}"
            )
    names = list(dict.fromkeys(FLAGS.members))
    return [
        _RequestedRun(
            name if len(names) > 1 else "",
            RunDirectory(os.path.join(FLAGS.study, "runs", name)),
            _apply_placement_flags(config_lib.resolve_config(recorded[name]["config"])),
            recorded[name].get("text", {}),
        )
        for name in names
    ]


def _apply_placement_flags(config: config_lib.Config) -> config_lib.Config:
    """Returns a run's config with the mesh, data_dir and computation of the command line.

    Raises:
      ValueError: --mesh names no axis, or no size.
    """
    sizes = {}
    for part in FLAGS.mesh:
        axis, _, size = part.partition("=")
        axes = [field.name for field in dataclasses.fields(config.mesh)]
        if axis not in axes or not re.fullmatch(r"-1|[1-9]\d*", size):
            raise ValueError(
                f"--mesh={part}: write an axis of {', '.join(axes)} and its size, as in "
                "--mesh=data=-1,fsdp=4; -1 is the rest of the devices."
            )
        sizes[axis] = int(size)
    mesh = dataclasses.replace(config.mesh, **sizes)
    config = dataclasses.replace(config, mesh=mesh, data_dir=FLAGS.data_dir or config.data_dir)
    return _apply_compute_flags(config)


def _apply_compute_flags(config: config_lib.Config) -> config_lib.Config:
    """Returns a run's config with the micro-batches and the remat of the command line.

    Raises:
      ValueError: the batch cannot be cut into so many.
    """
    accumulate = FLAGS.accumulate or config.optimizer.accumulate
    return dataclasses.replace(
        config,
        optimizer=dataclasses.replace(config.optimizer, accumulate=accumulate),
        model=dataclasses.replace(config.model, remat=FLAGS.remat or config.model.remat),
    )


def _train_and_report(members: "Sequence[PackMember]", mesh: "Mesh", setup: "RunTimer") -> int:
    """Trains members that have come equally far together, one group after another."""
    from imbalance_jax.compute import hosts as distributed
    from imbalance_jax.training.ends import (
        CheckpointSetAside,
        MemberRefused,
        PeerLost,
        Preempted,
    )
    from imbalance_jax.training.loop import train_members
    from imbalance_jax.training.pack import Pack
    from imbalance_jax.training.recorder import RunTimer

    failed: dict[str, str] = {}
    waiting, times = list(members), setup
    with distributed.SharedInterrupts() as interrupts:
        while waiting:
            starts = {member.name: member.find_start() for member in waiting}
            group = [member for member in waiting if starts[member.name] == min(starts.values())]
            try:
                failed |= train_members(Pack(group, mesh), times, interrupts)
            except CheckpointSetAside:
                continue  # its run goes on from an older one, perhaps with others of the pack
            except MemberRefused as refused:
                failed[refused.name] = refused.why
                waiting = [member for member in waiting if member.name != refused.name]
                continue
            except Preempted as stop:
                where = f"of {len(group)} runs" if len(members) > 1 else f"in {members[0].run}"
                print(_describe_stop(stop, where))
                return cli.PREEMPTED
            except PeerLost as lost:
                return _exit_after_lost_peer(str(lost))
            waiting = [member for member in waiting if member not in group]
            times = RunTimer()
    for member in members:
        if member.name in failed:
            _report_failure(member, failed[member.name])
    try:
        for member in members if distributed.is_writer() else ():
            if member.name not in failed:
                _report_success(member)
        if not failed:
            _write_export(members[0].run)
    except OSError as error:  # the run is done, and the same command writes what is missing
        print(f"error: {storage.describe_os_error(error)}", file=sys.stderr)
        return distributed.exit_process(cli.FAILED)
    return distributed.exit_process(cli.FAILED) if failed else cli.DONE


def _report_success(member: "PackMember") -> None:
    from imbalance_jax.report import run_page as page

    report = page.write_run_page(member.run)
    if member.name:
        print(f"{member.name} is done. See {report}.")
    else:
        generate = f"python -m imbalance_jax.generate --workdir={shlex.quote(str(member.run))}"
        print(f"Done. Read {report}. For some text of the model: {generate}")


def _report_failure(member: "PackMember", why: str) -> None:
    print(f"error: {member.name}: {why}" if member.name else f"error: {why}", file=sys.stderr)
    details = member.run.path / "FAILED.json"
    if details.exists():
        print(f"{details} has the details.", file=sys.stderr)


def _describe_stop(stop: "Preempted", where: str) -> str:
    if stop.step is None:
        return f"Stopped before the first step. {_format_resume_command()}"
    return f"Saved step {stop.step} {where}. {_format_resume_command()}"


def _exit_after_lost_peer(why: str) -> int:
    """Ends a process whose run has lost another one."""
    from imbalance_jax.compute import hosts as distributed

    print(
        f"error: {why}: the newest checkpoint stands. {_format_resume_command()}", file=sys.stderr
    )
    return distributed.exit_process(cli.LOST, seconds=0)


def _format_resume_command() -> str:
    again = shlex.join([os.path.basename(sys.executable), "-m", "imbalance_jax.main"])
    return f"To go on:\n    {again} {shlex.join(sys.argv[1:])}"


def _write_export(run: RunDirectory) -> int:
    if FLAGS.export:
        from imbalance_jax.training import exporting, hugging_face

        if FLAGS.format == "huggingface":
            out = hugging_face.export_run(run, FLAGS.export, FLAGS.language)
        else:
            out = exporting.export_run(run, FLAGS.export)
        print(f"Wrote {out}.")
    return cli.DONE


if __name__ == "__main__":
    define_flags()
    cli.run_command(main, computes=True)
