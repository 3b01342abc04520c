"""Command: writes the page of a run, of several or of a study, from their directories alone.

    python -m imbalance_jax.report --workdir=runs/90_10
    python -m imbalance_jax.report --workdir=runs/90_10,runs/50_50
    python -m imbalance_jax.report --workdir=studies/ratio
    python -m imbalance_jax.report --reference --workdir=reports/reference

The second sets runs side by side, of one study or of none, in a page beside the first of them. The
page of a study comes with its tables and figures. The last draws every figure and table of
the reference study from the values it reported.
Needs neither jax nor the machine that the run was trained on.
"""

from absl import flags

from imbalance_jax import cli
from imbalance_jax.analysis import study_table
from imbalance_jax.reference import paper_page
from imbalance_jax.report import comparison_page, run_page, study_page
from imbalance_jax.runs import storage
from imbalance_jax.runs.run_directory import RunDirectory
from imbalance_jax.study.study_directory import StudyDirectory

FLAGS = flags.FLAGS


def define_flags() -> None:
    flags.DEFINE_string(
        "workdir", None, "The directory of a run or study, which gets report.html; or several runs."
    )
    flags.DEFINE_bool(
        "reference", False, "Write what the reference study reported into --workdir instead."
    )


def main() -> int:
    workdir = FLAGS.workdir
    if not workdir:
        cli.exit_with_error(
            "--workdir is missing. Give the directory of a run or a study, such as runs/90_10."
        )
    if FLAGS.reference:
        print(paper_page.write_reference_page(workdir))
        return cli.DONE
    if "," in workdir and not storage.parse_path(workdir).exists():
        runs = [RunDirectory(path) for path in workdir.split(",") if path]
        print(comparison_page.write_comparison_page(runs))
        return cli.DONE
    if (storage.parse_path(workdir) / "study.json").exists():
        directory = StudyDirectory(workdir)
        table = study_table.read_study_table(directory)
        study_table.write_study_table(table, directory)
        print(study_page.write_study_page(table, directory))
        return cli.DONE
    print(run_page.write_run_page(RunDirectory(workdir)))
    return cli.DONE


if __name__ == "__main__":
    define_flags()
    cli.run_command(main)
