"""Writes the page of a run, of several runs, or of a study.

    python -m imbalance_jax.report --workdir=runs/90_10
    python -m imbalance_jax.report --workdir=runs/90_10,runs/50_50
    python -m imbalance_jax.report --workdir=studies/ratio
    python -m imbalance_jax.report --reference --workdir=reports/reference

The second sets runs side by side, in a page beside the first of them. The third writes the tables
and figures of a study as well. The last draws every figure and table of the reference study from
the values that it reported. All need the directories alone: neither jax nor the machine that
trained the run.
"""

import os

from absl import flags

from imbalance_jax import cli
from imbalance_jax.runs import storage

FLAGS = flags.FLAGS


def define_flags() -> None:
    flags.DEFINE_string(
        "workdir", None, "DIR[,DIR]: A run or a study, which gets report.html; or several runs."
    )
    flags.DEFINE_bool("reference", False, "Write what the reference study reported into --workdir.")


def main() -> int:
    workdir = FLAGS.workdir
    if not workdir:
        cli.exit_with_error(
            "--workdir is missing. Give the directory of a run or a study, such as runs/90_10."
        )
    print(_write_page(workdir))
    return cli.DONE


def _write_page(workdir: str) -> os.PathLike:
    """Writes the page that the flags ask for and returns its path."""
    # Imported here: they bring the libraries of figures, which --help does not need.
    from imbalance_jax.runs.run_directory import RunDirectory

    if FLAGS.reference:
        from imbalance_jax.reference import paper_page

        return paper_page.write_reference_page(workdir)
    if "," in workdir and not storage.parse_path(workdir).exists():
        from imbalance_jax.report import comparison_page

        runs = [RunDirectory(path) for path in workdir.split(",") if path]
        return comparison_page.write_comparison_page(runs)
    if (storage.parse_path(workdir) / "study.json").exists():
        from imbalance_jax.analysis import study_table
        from imbalance_jax.report import study_page
        from imbalance_jax.study.study_directory import StudyDirectory

        directory = StudyDirectory(workdir)
        table = study_table.read_study_table(directory)
        for line in study_table.describe_damaged_runs(table):
            print(line)
        study_table.write_study_table(table, directory)
        return study_page.write_study_page(table, directory)
    from imbalance_jax.report import run_page

    return run_page.write_run_page(RunDirectory(workdir))


if __name__ == "__main__":
    define_flags()
    cli.run_command(main)
