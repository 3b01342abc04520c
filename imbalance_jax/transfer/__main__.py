"""Fine-tunes a run on tasks in one language, scores all.

    python -m imbalance_jax.transfer --workdir=runs/90_10 --tasks=all --train_language=en1
    python -m imbalance_jax.transfer --workdir=runs/90_10 --tasks=next_sentence,origin
    python -m imbalance_jax.transfer --workdir=runs/en_fr --tasks=paws-x --train_language=en
    python -m imbalance_jax.transfer --workdir=runs/90_10 --tasks=mine.toml --protocol=intended

The model learns to classify texts in one language; nothing is trained in the others. The defaults
are those of the reference study. The results go into transfer.json and report.html. Tasks that are
there already are not measured again. imbalance_jax/transfer/finetune.py describes the protocols,
and tasks.py beside it the tasks.
"""

import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from imbalance_jax import cli
from imbalance_jax.analysis import transfer_results
from imbalance_jax.config import Config
from imbalance_jax.runs import divergence
from imbalance_jax.runs.run_directory import RunDirectory
from imbalance_jax.transfer import languages, tasks

if TYPE_CHECKING:
    from imbalance_jax.transfer.examples import LoadedTask
    from imbalance_jax.transfer.finetune import FineTuningSettings
    from imbalance_jax.transfer.transfer_run import TransferRun

FLAGS = flags.FLAGS


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "DIR: The run's directory.")
    flags.DEFINE_integer(
        "step", -1, "Step of the checkpoint; by default the newest.", lower_bound=-1
    )
    flags.DEFINE_list("tasks", ["all"], "Tasks, all for the 11 of (Super)GLUE, or .toml files.")
    flags.DEFINE_string("tasks_dir", "", "DIR: Where the tasks' files and TFDS's datasets lie.")
    flags.DEFINE_string("train_language", "", "TAG: What is trained in; by default the first.")
    flags.DEFINE_list("languages", [], "TAG,TAG: What is scored in as well; by default all.")
    flags.DEFINE_enum("protocol", "reference", ["reference", "intended"], "How it is trained.")
    flags.DEFINE_integer("seeds", 3, "Trainings, each with its own head and order.")
    flags.DEFINE_integer("epochs", 10, "Times that the examples are gone through, at most.")
    flags.DEFINE_integer("batch_size", 64, "Examples of an update.")
    flags.DEFINE_float("learning_rate", 5e-5, "At the first update; it falls linearly to 0.")
    flags.DEFINE_integer("length", None, "Positions of an example; by default 128, or L if less.")
    flags.DEFINE_integer("evaluate_every", 200, "intended: updates between two scores.")
    flags.DEFINE_integer("patience", 10, "intended: scores without a gain before it stops.")
    flags.DEFINE_float("threshold", 1e-3, "intended: what counts as a gain.")
    for part, count in (("train", "4,000"), ("test", "1,000")):
        text = f"Used at most; 0 is all, and {count} of tasks made of the run's text."
        flags.DEFINE_integer(f"{part}_examples", 0, text, lower_bound=0)
    flags.DEFINE_bool("overwrite", False, "Replace what is known of these tasks.")


def main() -> int:
    if not FLAGS.workdir:
        cli.exit_with_error(
            "--workdir is missing. Give the directory of a run, such as runs/90_10."
        )
    # What takes no jax first, so that a mistake shows at once.
    chosen = tasks.find_tasks(FLAGS.tasks)
    run = RunDirectory(FLAGS.workdir)
    config = run.config()
    run.check_writable()
    diverged = divergence.describe_divergence(run) if FLAGS.step < 0 else ""
    if diverged:
        raise ValueError(f"{diverged} An earlier checkpoint of this one is --step=STEP.")
    languages.choose_languages(config, FLAGS.train_language, FLAGS.languages)
    if any(tasks.is_made_of_text(task) for task in chosen):
        check_run_text(run, config)

    import jax

    from imbalance_jax.compute import hardware
    from imbalance_jax.compute import hosts as distributed
    from imbalance_jax.data import sources
    from imbalance_jax.report import run_page
    from imbalance_jax.training import loading
    from imbalance_jax.transfer.transfer_run import TransferRun

    if jax.process_count() > 1 or distributed.detect_cluster(os.environ, tpu=False):
        cli.exit_with_error(
            "transfer takes one process with one device, and was started as one of several."
        )
    settings = _read_settings(config.model.L)
    hardware.use_compilation_cache(sources.resolve_data_cache_dir(config.data_dir) / "compiled")
    loaded = loading.load(run.path, None if FLAGS.step < 0 else FLAGS.step)
    transferring = TransferRun.make(loaded, settings, FLAGS.train_language, FLAGS.languages)
    for line in transferring.notes:
        print(line)
    most = {"train": FLAGS.train_examples, "test": FLAGS.test_examples}
    # All of them before any is trained on: what is wrong shows in the first seconds.
    ready = [transferring.load(task, FLAGS.tasks_dir, most) for task in chosen]
    results = {} if FLAGS.overwrite else _find_earlier_results(run, transferring, ready)
    for each in ready:
        name = each.task.name
        if name in results:
            print(f"{name} is known already; --overwrite measures it again.")
        else:
            try:
                results[name] = transferring.measure(each)
            except FloatingPointError as error:
                print(f"error: {name}: {error} Set a lower --learning_rate.", file=sys.stderr)
                return cli.FAILED
            save_task_result(run, settings.protocol, transferring.trained, name, results[name])
        print("\n".join(describe_task_result(name, results[name])))
    print(f"Wrote {run.path / transfer_results.FILE}. See {run_page.write_run_page(run)}.")
    return cli.DONE


def check_run_text(run: RunDirectory, config: Config) -> None:
    """Raises ValueError if a source has another text than the run was trained on.

    Its held-out documents could be some of those that the run has seen.
    """
    from imbalance_jax.data import prepare, prepared

    recorded = run.read_provenance()["sources"]
    for name in prepare.list_language_sources(config):
        text = recorded.get(name, {}).get("text")  # synthetic text and earlier runs have none
        source = config.sources[name]
        if text and text != prepared.fingerprint_text(name, source, config.data_dir):
            raise ValueError(
                f"config.sources.{name} of {run} has another text now than when the run was "
                "started (that of kind docstrings changes with the installed packages), and tasks "
                "made of it could test on what the run was trained on. Put the text back, or "
                "choose other --tasks."
            )


def _read_settings(positions: int) -> "FineTuningSettings":
    """Returns the settings that the flags give, for a model of so many positions."""
    from imbalance_jax.transfer.finetune import FineTuningSettings

    values = {
        field.name: getattr(FLAGS, field.name) for field in dataclasses.fields(FineTuningSettings)
    }
    if values["length"] is None:
        values["length"] = min(FineTuningSettings.length, positions)
    return FineTuningSettings(**values)


def _find_earlier_results(
    run: RunDirectory, transferring: "TransferRun", ready: Sequence["LoadedTask"]
) -> dict[str, dict[str, Any]]:
    """Returns the results that transfer.json has of the tasks that are asked for.

    Raises:
      ValueError: one was measured in another way.
    """
    protocol = transferring.classifier.settings.protocol
    in_file = transfer_results.read_transfer_results(run).get(protocol, {})
    results = in_file.get(transferring.trained, {})
    earlier = [loaded for loaded in ready if loaded.task.name in results]
    for loaded in earlier:
        transferring.check_same(loaded, results[loaded.task.name])
    return {loaded.task.name: results[loaded.task.name] for loaded in earlier}


def save_task_result(
    run: RunDirectory, protocol: str, trained: str, task: str, result: Mapping[str, Any]
) -> None:
    """Writes the result of a task beside those that the run has already."""
    results = run.read_json(transfer_results.FILE) or {}
    results.setdefault(protocol, {}).setdefault(trained, {})[task] = result
    run.write_json(transfer_results.FILE, results)


def describe_task_result(task: str, result: Mapping[str, Any]) -> list[str]:
    """Returns the main figures of a task in a few lines."""

    def span(ends: Sequence[float] | None) -> str:
        return "–" if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}"

    return [
        f"{task}, {tag}: accuracy {row['accuracy']:.3f} ({span(row['interval'])}; over seeds alone "
        f"{span(row['over_seeds'])}), always the most frequent label {row['majority']:.3f}"
        for tag, row in result["languages"].items()
    ]


if __name__ == "__main__":
    define_flags()
    cli.run_command(main, computes=True)
