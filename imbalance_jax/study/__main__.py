"""Trains a grid of runs, and says what follows from them.

    python -m imbalance_jax.study plan   --config=configs/studies/ratio.py
    python -m imbalance_jax.study run    --config=configs/studies/ratio.py --workdir=studies/ratio
    python -m imbalance_jax.study status --workdir=studies/ratio

Without --workdir the study's directory is studies/<config name>.
"""

import dataclasses
import os
import shlex
import sys
from collections.abc import Mapping

from absl import flags

from imbalance_jax import cli
from imbalance_jax.config import Config, suggest_nearest_name
from imbalance_jax.runs import storage
from imbalance_jax.study import grid, study_plan, study_runner
from imbalance_jax.study.study_directory import StudyDirectory

FLAGS = flags.FLAGS
_STUDY = ("config", "workdir")
_TRAINED = ("accumulate", "remat")
SUBCOMMANDS = {
    "plan": cli.Subcommand(
        "Says what there is to train and what it takes.",
        "--config=configs/studies/ratio.py --measure",
        (*_STUDY, "pack", "measure", *_TRAINED),
    ),
    "run": cli.Subcommand(
        "Trains what is left, and goes on where it was stopped.",
        "--config=configs/studies/ratio.py --pack=8",
        (*_STUDY, "jobs", "pack", "only", *_TRAINED),
    ),
    "status": cli.Subcommand("Says how far each run is.", "--workdir=studies/ratio", _STUDY),
    "collect": cli.Subcommand(
        "Writes the tables, the figures and the page of the runs that are done.",
        "--workdir=studies/ratio",
        _STUDY,
    ),
    "propose": cli.Subcommand(
        "Proposes a ratio for each objective of a study, with its interval.",
        "--workdir=studies/mix --only=mean",
        (*_STUDY, "only"),
    ),
    "push": cli.Subcommand(
        "Sends the table of the runs that are done to Weights & Biases.",
        "--workdir=studies/ratio",
        _STUDY,
    ),
    "check": cli.Subcommand(
        "Holds a study of configs/paper/ against what the reference study reported.",
        "--workdir=studies/e2_ratio",
        _STUDY,
    ),
}


def define_flags() -> None:
    cli.define_config_flag(example="studies/ratio")
    flags.DEFINE_string("workdir", None, "DIR: The study's directory; by default studies/<name>.")
    flags.DEFINE_integer("jobs", 1, "run: processes at a time.", lower_bound=1)
    flags.DEFINE_integer(
        "pack", 0, "plan, run: up to so many runs of a shape train as one program.", lower_bound=0
    )
    flags.DEFINE_list(
        "only",
        [],
        "run: ids or cells, or `failed`; by default all that is left. propose: names of the "
        "study's objectives, such as mean; by default all.",
    )
    flags.DEFINE_bool("measure", False, "plan: try a few steps of each size on this machine.")
    cli.define_compute_flags()


def main(command: str) -> int:
    directory = _get_study_directory()
    study = directory.study() if FLAGS.config is None else grid.resolve_study(FLAGS.config)
    # From wherever the study is looked at later.
    study = dataclasses.replace(study, reuse=tuple(map(storage.make_absolute_path, study.reuse)))
    if FLAGS.config is not None:
        directory.check(study)
    return {
        "plan": _print_plan,
        "run": _run_study,
        "status": _print_status,
        "collect": _collect_results,
        "propose": _propose_ratios,
        "push": _push_table,
        "check": _print_comparison,
    }[command](directory, study)


def _get_study_directory() -> StudyDirectory:
    if FLAGS.workdir:
        return StudyDirectory(FLAGS.workdir)
    if FLAGS.config is None:
        raise ValueError(
            "--workdir is missing. Give the directory of a study, such as --workdir=studies/ratio, "
            "or its grid, such as --config=configs/studies/ratio.py."
        )
    return StudyDirectory(os.path.join("studies", cli.get_config_name()))


def _print_plan(directory: StudyDirectory, study: grid.StudyConfig) -> int:
    speeds = study_plan.read_measured_speeds(directory, study)
    sizes = {study_plan.make_size_key(spec.config): None for spec in study.runs.values()}
    if FLAGS.measure:
        unknown = [size for size in sizes if size not in speeds]
        speeds |= study_plan.measure_trial_speeds(study, unknown, cli.format_compute_flags())
    states = directory.states(study)
    print(study_plan.describe_study_plan(directory.name, study, states, speeds, FLAGS.pack))
    if any(state.state != "done" for state in states.values()):
        args = [arg for arg in sys.argv[1:] if arg not in ("plan", "--measure")]
        print(f"To train what is left: python -m imbalance_jax.study run {shlex.join(args)}")
    left = {name: spec.config for name, spec in study.runs.items() if states[name].state != "done"}
    _check_texts(left, directory.binding_texts())
    return cli.DONE


def _run_study(directory: StudyDirectory, study: grid.StudyConfig) -> int:
    storage.check_directory_writable("--workdir", directory.path)
    options = cli.format_compute_flags()
    runner = study_runner.StudyRunner(directory, study, options=options)
    left = _choose_runs(runner, study)
    texts = _prepare_texts({n: study.runs[n].config for n in left}, directory.binding_texts())
    directory.claim(study, texts)
    with directory.held():
        if not left:
            print(f"Nothing is to be trained in {directory}.")
        packs = study_runner.group_into_packs(study, left, FLAGS.pack)
        try:
            code = runner.run(packs, jobs=FLAGS.jobs)
            return code if code == cli.PREEMPTED else _describe_results(directory, study, code)
        except OSError as error:  # runs may have trained: their directories say how far they are
            print(f"error: {storage.describe_os_error(error)}", file=sys.stderr)
            return cli.FAILED


def _describe_results(directory: StudyDirectory, study: grid.StudyConfig, code: int) -> int:
    """Writes the tables and the page, says what is left, and returns the exit code."""
    states = directory.states(study)
    failed = [name for name, run in states.items() if run.state == "failed"]
    damaged = [name for name, run in states.items() if run.state == "damaged"]
    others = [n for n, run in states.items() if run.state not in ("failed", "damaged", "done")]
    done = len(states) - len(failed) - len(damaged) - len(others)
    print(f"{done} of {len(states)} runs are done.")
    _collect_results(directory, study)
    if others:
        again = "leave out --only" if FLAGS.only else "read why above, and start this again"
        print(f"Left: {', '.join(others)}. To train them, {again}.")
    if failed:
        print(f"Failed: {', '.join(failed)}. To try again: --only=failed")
    return cli.FAILED if failed or damaged else code


def _prepare_texts(
    configs: Mapping[str, Config], recorded: Mapping[str, Mapping[str, str]]
) -> dict[str, dict[str, str]]:
    """Makes the text ready once, so that no two runs that begin together do it at once.

    What is wrong with it is found here, before anything is trained. Both `recorded`, of a study
    that was begun, and the result have source -> fingerprint of its text by run.
    """
    from imbalance_jax.data import prepare

    return prepare.collect_fingerprints(prepare.prepare_runs(configs, recorded))


def _check_texts(configs: Mapping[str, Config], recorded: Mapping[str, Mapping[str, str]]) -> None:
    """Raises ValueError for text that is neither on this machine nor prepared."""
    from imbalance_jax.data import prepare

    prepare.check_inputs_of_runs(configs, recorded)


def _choose_runs(runner: study_runner.StudyRunner, study: grid.StudyConfig) -> list[str]:
    """Returns the runs to train.

    Raises:
      ValueError: --only names what the study does not have.
    """
    if not FLAGS.only:
        return runner.left(retry=False)
    left = runner.left(retry=True)
    chosen: dict[str, None] = {}
    for name in FLAGS.only:
        members = (
            [n for n in left if n not in runner.left(retry=False)]
            if name == "failed"
            else [n for n, spec in study.runs.items() if name in (n, spec.cell)]
        )
        if not members and name != "failed":
            known = [*study.runs, *(spec.cell for spec in study.runs.values()), "failed"]
            raise ValueError(
                f"--only={name}: the study has no run and no cell of that name. "
                f"{suggest_nearest_name(name, known)}".strip()
            )
        chosen |= dict.fromkeys(n for n in members if n in left)
    return list(chosen)


def _print_status(directory: StudyDirectory, study: grid.StudyConfig) -> int:
    print(study_plan.describe_states(study, directory))
    return cli.DONE


def _collect_results(directory: StudyDirectory, study: grid.StudyConfig) -> int:
    from imbalance_jax.analysis import study_table
    from imbalance_jax.report import study_page

    table = study_table.read_study_table(directory)
    for line in study_table.describe_damaged_runs(table):
        print(line)
    for path in study_table.write_study_table(table, directory):
        print(path)
    print(f"Read {study_page.write_study_page(table, directory)}.")
    return cli.DONE


def _propose_ratios(directory: StudyDirectory, study: grid.StudyConfig) -> int:
    from imbalance_jax.analysis import mixture_cells, mixture_resamples, proposals, study_table
    from imbalance_jax.analysis.proposal_files import describe_proposal, write_proposal

    objectives = study.objectives or proposals.DEFAULT
    for name in FLAGS.only:
        if name not in objectives:
            raise ValueError(
                f"--only={name}: the study states no such objective. It has: "
                f"{', '.join(objectives)}. State another with Grid.objective, and give --config."
            )
    table = study_table.read_study_table(directory)
    for line in study_table.describe_damaged_runs(table):
        print(line)
    cells = mixture_cells.collect_mixture_cells(table)
    for line in mixture_cells.describe_missing_runs(table, cells):
        print(line)
    laws = mixture_resamples.resample_mixture_laws(cells)
    found = [
        proposals.propose_ratio(name, objective, laws)
        for name, objective in objectives.items()
        if not FLAGS.only or name in FLAGS.only
    ]
    storage.check_directory_writable("--workdir", directory.path)
    for proposal in found:
        print(describe_proposal(proposal.to_dict()))
        path, *kept = write_proposal(directory, proposal, table)
        for earlier in kept:
            print(f"Kept the earlier proposal in {earlier}, as the study has a run of its ratio.")
        print(f"Wrote {path}.\n")
    return _collect_results(directory, study)


def _push_table(directory: StudyDirectory, study: grid.StudyConfig) -> int:
    from imbalance_jax.analysis import study_table
    from imbalance_jax.runs import mirrors

    table = study_table.read_study_table(directory)
    for line in study_table.describe_damaged_runs(table):
        print(line)
    if not table.observations:
        raise ValueError(f"No run of {directory} is done, so it has no table to send.")
    columns = study_table.list_columns(table.observations)
    mirrors.push_table(directory.path, table.name, columns)
    print(f"Sent {len(table.observations)} rows to Weights & Biases, as the table of {table.name}.")
    return cli.DONE


def _print_comparison(directory: StudyDirectory, study: grid.StudyConfig) -> int:
    from imbalance_jax.analysis import study_table
    from imbalance_jax.reference import paper_check

    table = study_table.read_study_table(directory)
    for line in study_table.describe_damaged_runs(table):
        print(line)
    checks = paper_check.compare_with_reference(table)
    print(paper_check.describe_checks(checks))
    return cli.DONE


if __name__ == "__main__":
    define_flags()
    cli.run_command(main, subcommands=SUBCOMMANDS)
