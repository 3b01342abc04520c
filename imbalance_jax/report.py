"""Command: writes the page of a run from its directory alone.

    python -m imbalance_jax.report --workdir=runs/90_10
    python -m imbalance_jax.report --reference --workdir=reports/reference

The second draws every figure and table of the reference study from the values it reported.
Needs neither jax nor the machine that the run was trained on.
"""

from absl import flags
from etils import epath

from imbalance_jax import cli
from imbalance_jax.analysis import page, paper_page
from imbalance_jax.runs import RunDirectory

FLAGS = flags.FLAGS


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "The run's directory, which gets report.html.")
    flags.DEFINE_bool(
        "reference", False, "Write what the reference study reported into --workdir instead."
    )


def main() -> int:
    workdir = FLAGS.workdir
    if not workdir:
        cli.refuse("--workdir is missing. Give the directory of a run, such as runs/90_10.")
    if FLAGS.reference:
        print(paper_page.write_reference_page(workdir))
        return cli.DONE
    if (epath.Path(workdir) / "study.json").exists():
        cli.refuse(
            f"--workdir={workdir} holds a study, which has no page yet. "
            f"Give one of its runs, such as --workdir={workdir}/runs/ID."
        )
    print(page.write_run_page(RunDirectory(workdir)))
    return cli.DONE


if __name__ == "__main__":
    define_flags()
    cli.run(main)
