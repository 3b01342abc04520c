"""Shows the batches of a run, and checks its record of them.

    python -m imbalance_jax.data.inspect --workdir=runs/90_10 --step=3 --rows=4
    python -m imbalance_jax.data.inspect --check runs/90_10
    python -m imbalance_jax.data.inspect --diff runs/90_10 runs/files
    python -m imbalance_jax.data.inspect --totals configs/schedule.py configs/50_50.py

The first prints a batch with the language of each row. The second makes the order of the data again
and compares every hash and count with the run's. The third says up to which step two runs saw the
same tokens, the fourth whether two schedules have the same total per language. Exit code 1 is a
difference.
"""

from absl import flags

from imbalance_jax import cli
from imbalance_jax import config as config_lib
from imbalance_jax.data import sources
from imbalance_jax.data.inspect import (
    DIFFERENT,
    TrainingData,
    check_run,
    compare_runs,
    compare_totals,
    describe_balance,
    describe_batch,
    read_order_hashes,
)
from imbalance_jax.data.order import audit
from imbalance_jax.runs.run_directory import RunDirectory

FLAGS = flags.FLAGS


def define_flags() -> None:
    cli.define_config_flag()
    flags.DEFINE_string("workdir", None, "DIR: A run, in place of a config.")
    flags.DEFINE_integer("step", None, "Print the batch after so many updates.", 0)
    flags.DEFINE_integer("rows", 0, "With --step: how many rows; 0 is all.", 0)
    flags.DEFINE_string("diff", None, "RUN: Compare a run with the run named after it.")
    flags.DEFINE_string("check", None, "RUN: Check a run against its own record.")
    flags.DEFINE_string("totals", None, "FILE: Compare totals with the config named after it.")


def main(names: list[str]) -> int:
    if FLAGS.diff is not None:
        paths = [FLAGS.diff, _require_second_name("--diff", names)]
        first, second = (TrainingData.of_run(path) for path in paths)
        hashes = [read_order_hashes(RunDirectory(path)) for path in paths]
        same, verdict = compare_runs(first, second, hashes)
        print(verdict)
        return cli.DONE if same else DIFFERENT
    if FLAGS.totals is not None:
        paths = [FLAGS.totals, _require_second_name("--totals", names)]
        same, verdict = compare_totals(
            *(config_lib.resolve_config(cli.load_config_file(path)) for path in paths)
        )
        print(verdict)
        return cli.DONE if same else DIFFERENT
    if names:
        raise ValueError(f"{names[0]!r} is not a flag. Write --name=value.")
    if FLAGS.check is not None:
        return _print_run_check(FLAGS.check)
    if FLAGS.step is None:
        raise ValueError("Say what to do: --step=N, --diff A B, --check RUN or --totals A B.")
    if FLAGS.workdir:
        opened_run = TrainingData.of_run(FLAGS.workdir)
    else:
        opened_run = TrainingData.of(cli.require_run_config())
    print(describe_batch(opened_run, FLAGS.step, FLAGS.rows))
    return cli.DONE


def _require_second_name(flag: str, names: list[str]) -> str:
    if len(names) != 1:
        raise ValueError(f"{flag} takes two names, such as {flag} A B.")
    return names[0]


def _print_run_check(path: str) -> int:
    run = RunDirectory(path)
    opened = TrainingData.of_run(path)
    wrong = [
        line
        for source in opened.sources.values()
        if isinstance(source, sources.Source)
        for line in source.find_damage()
    ]
    wrong += check_run(run, opened)
    records = [record for record in run.metrics() if audit.ORDER_METRIC in record]
    print(describe_balance(opened, records))
    if wrong:
        print("\n".join(wrong[:10]))
        print(f"{len(wrong)} disagreements between {run} and what its config and its text make.")
        return DIFFERENT
    print(
        f"All {len(records):,} hashes and counts of {run} agree with the order that its config "
        f"makes, up to step {records[-1]['step']:,}."
    )
    return cli.DONE


if __name__ == "__main__":
    define_flags()
    cli.run_command(main, names=True)
