"""Fine-tunes a run to classify texts in one of its languages, and scores it in all of them.

    python -m imbalance_jax.transfer --workdir=runs/90_10 --tasks=all --train_language=en1
    python -m imbalance_jax.transfer --workdir=runs/90_10 --tasks=next_sentence,origin
    python -m imbalance_jax.transfer --workdir=runs/en_fr --tasks=paws-x --train_language=en
    python -m imbalance_jax.transfer --workdir=runs/90_10 --tasks=mine.toml --protocol=intended

What is learnt in one language and known in another has been transferred: nothing is trained in
the others. A clone is scored on the same examples under its own ids, a language of another text on
examples of its own, where a task has them. The defaults are the reference study's
(imbalance_jax/evaluation/transfer.py says what the two protocols are, and
imbalance_jax/data/tasks.py which tasks there are). The results go into transfer.json, a task
whole or not at all, beside those that are there, and report.html is written anew. What is there
already is not measured again, so that a command that was interrupted goes on; with other settings
it is refused, unless --overwrite says that it may go. One device does it all.
"""

import dataclasses
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from imbalance_jax import cli
from imbalance_jax.analysis import transfer_results
from imbalance_jax.runs.progress import Progress
from imbalance_jax.runs.run_directory import RunDirectory

if TYPE_CHECKING:
    import numpy as np

    from imbalance_jax.config import Config
    from imbalance_jax.training.loading import LoadedRun
    from imbalance_jax.transfer.finetune import (
        ClassifierTrainer,
        EncodedExamples,
        FineTuningSettings,
    )
    from imbalance_jax.transfer.tasks import Examples, LoadedTask

FLAGS = flags.FLAGS


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "The run's directory.")
    flags.DEFINE_integer("step", -1, "The checkpoint; -1 is the newest.")
    flags.DEFINE_list("tasks", ["all"], "Tasks, all for the 11 of (Super)GLUE, or .toml files.")
    flags.DEFINE_string("tasks_dir", "", "Where files of the tasks, and datasets of TFDS, lie.")
    flags.DEFINE_string("train_language", "", "What is trained in; by default the first.")
    flags.DEFINE_list("languages", [], "What is scored in as well; by default all.")
    flags.DEFINE_enum("protocol", "reference", ["reference", "intended"], "How it is trained.")
    flags.DEFINE_integer("seeds", 3, "Trainings, each with its own head and order.")
    flags.DEFINE_integer("epochs", 10, "Times that the examples are gone through, at most.")
    flags.DEFINE_integer("batch_size", 64, "Examples of an update.")
    flags.DEFINE_float("learning_rate", 5e-5, "At the first update; it falls linearly to 0.")
    flags.DEFINE_integer("length", None, "Positions of an example; by default 128, or all it has.")
    flags.DEFINE_integer("evaluate_every", 200, "intended: updates between two scores.")
    flags.DEFINE_integer("patience", 10, "intended: scores without a gain before it stops.")
    flags.DEFINE_float("threshold", 1e-3, "intended: what counts as a gain.")
    for part, made in (("train", "4,000"), ("test", "1,000")):
        said = f"Used at most; 0 is all, and {made} of tasks made of the run's text."
        flags.DEFINE_integer(f"{part}_examples", 0, said, lower_bound=0)
    flags.DEFINE_bool("overwrite", False, "Replace what is known of these tasks.")


def main() -> int:
    from imbalance_jax.data import sources
    from imbalance_jax.transfer import tasks

    if not FLAGS.workdir:
        cli.exit_with_error(
            "--workdir is missing. Give the directory of a run, such as runs/90_10."
        )
    # What takes no jax first, so that a mistake shows at once.
    chosen = tasks.find_tasks(FLAGS.tasks)
    run = RunDirectory(FLAGS.workdir)
    config = run.config()
    run.check_writable()
    choose_languages(config, FLAGS.train_language, FLAGS.languages)
    if any(tasks.is_made_of_text(task) for task in chosen):
        check_run_text(run, config)

    import jax

    from imbalance_jax.compute import hardware
    from imbalance_jax.compute import hosts as distributed
    from imbalance_jax.training import loading

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
    known = {} if FLAGS.overwrite else _find_known_results(run, transferring, ready)
    from imbalance_jax.report import run_page as page

    for each in ready:
        name = each.task.name
        if name in known:
            print(f"{name} is known already; --overwrite measures it again.")
        else:
            try:
                known[name] = transferring.measure(each)
            except FloatingPointError as error:
                print(f"error: {name}: {error} Set a lower --learning_rate.", file=sys.stderr)
                return cli.FAILED
            save_task_result(run, settings.protocol, transferring.trained, name, known[name])
        print("\n".join(describe_task_result(name, known[name])))
    print(f"Wrote {run.path / transfer_results.FILE}. See {page.write_run_page(run)}.")
    return cli.DONE


def check_run_text(run: RunDirectory, config: "Config") -> None:
    """Raises ValueError if a source has another text than the run was trained on.

    Its held-out documents could be some of those that the run has seen.
    """
    from imbalance_jax.data import prepare, prepared

    recorded = (run.read_json("provenance.json") or {}).get("sources", {})
    for name in prepare.list_language_sources(config):
        theirs = recorded.get(name, {}).get("text")  # synthetic text and earlier runs have none
        if theirs and theirs != prepared.fingerprint_text(
            name, config.sources[name], config.data_dir
        ):
            raise ValueError(
                f"config.sources.{name} of {run} has another text now than when the run was "
                "started (that of kind docstrings changes with the installed packages), and tasks "
                "made of it could test on what the run was trained on. Put the text back, or "
                "choose other --tasks."
            )


def _read_settings(positions: int) -> "FineTuningSettings":
    """Returns what the flags say, for a model of so many positions."""
    from imbalance_jax.transfer.finetune import FineTuningSettings

    given = {
        field.name: getattr(FLAGS, field.name) for field in dataclasses.fields(FineTuningSettings)
    }
    if given["length"] is None:
        given["length"] = min(FineTuningSettings.length, positions)
    return FineTuningSettings(**given)


def _find_known_results(
    run: RunDirectory, transferring: "TransferRun", ready: Sequence["LoadedTask"]
) -> dict[str, dict[str, Any]]:
    """Returns what is known of tasks that are asked for.

    Raises:
      ValueError: it was found in another way.
    """
    protocol = transferring.classifier.settings.protocol
    every = (
        transfer_results.read_transfer_results(run).get(protocol, {}).get(transferring.trained, {})
    )
    known = {each.task.name: each for each in ready if each.task.name in every}
    for name, loaded in known.items():
        transferring.check_same(loaded, every[name])
    return {name: every[name] for name in known}


def save_task_result(
    run: RunDirectory, protocol: str, trained: str, task: str, found: Mapping[str, Any]
) -> None:
    """Writes what was found of a task beside what is known of others."""
    results = run.read_json(transfer_results.FILE) or {}
    results.setdefault(protocol, {}).setdefault(trained, {})[task] = found
    run.write_json(transfer_results.FILE, results)


def choose_languages(
    config: "Config", trained: str = "", languages: Sequence[str] = ()
) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Returns the language to train in, all to score in, it first, and what is left out and why.

    Args:
      config: of a run.
      trained: a tag; "" is the first.
      languages: tags that are scored as well; () is all.

    Raises:
      ValueError: the run has no such language, or cannot be trained in it.
    """
    for flag, tags in (("train_language", [trained] if trained else []), ("languages", languages)):
        for tag in tags:
            if tag not in config.tags:
                raise ValueError(
                    f"--{flag}={tag}: the run has no such language. It has: "
                    f"{', '.join(config.tags)}."
                )
    trained = trained or config.tags[0]
    # Their examples would have to be put in their order, which is not done.
    reordered = [tag for tag in config.tags if config.languages[tag].words != "as_written"]
    if trained in reordered:
        raise ValueError(
            f"--train_language={trained}: its words are {config.languages[trained].words}, and "
            "those of examples are as written. Use another language."
        )
    wanted = [tag for tag in languages or config.tags if tag != trained]
    notes = tuple(
        f"{tag} is left out: its words are {config.languages[tag].words}, and those of "
        "examples are as written."
        for tag in wanted
        if tag in reordered
    )
    return trained, (trained, *(tag for tag in wanted if tag not in reordered)), notes


@dataclasses.dataclass(frozen=True)
class TransferRun:
    """A run that is fine-tuned in one language."""

    run: "LoadedRun"
    classifier: "ClassifierTrainer"
    trained: str
    scored: tuple[str, ...]  # `trained` first
    notes: tuple[str, ...]  # on languages that are left out

    @classmethod
    def make(
        cls, run: "LoadedRun", settings: Any, trained: str = "", languages: Sequence[str] = ()
    ) -> "TransferRun":
        """Args:
          run: that is fine-tuned.
          settings: evaluation.transfer.Settings.
          trained: a tag; "" is the first.
          languages: tags that are scored as well; () is all.

        Raises:
          ValueError: as `choose_languages`, or the run has fewer positions than an example.
        """
        import jax

        from imbalance_jax.compute import sharding, tuning
        from imbalance_jax.config import MeshConfig
        from imbalance_jax.transfer.finetune import ClassifierTrainer

        config = run.config
        if settings.length > config.model.L:
            raise ValueError(
                f"--length={settings.length}: the model has {config.model.L} positions. Set "
                f"--length={config.model.L}, or less."
            )
        trained, scored, notes = choose_languages(config, trained, languages)
        mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
        together = settings.seeds if tuning.choose_packing(mesh) == "vmap" else 1
        # The same program for runs that differ in what fine-tuning does not read.
        model = dataclasses.replace(
            tuning.resolve_auto_fields(config.model, jax.devices()[0]), loss_chunk=0
        )
        return cls(run, ClassifierTrainer(model, settings, together), trained, scored, notes)

    def _source(self, tag: str) -> str:

        return self.run.config.source_of(tag)

    def load(self, task: Any, directory: str = "", most: Mapping[str, int] | None = None) -> Any:
        """Returns a task's examples; as `data.tasks.load`."""
        from imbalance_jax.transfer import tasks

        names = dict.fromkeys(self._source(tag) for tag in self.scored)
        wanted = {name: self.run.config.sources[name] for name in names}
        origin = self._source(self.trained)
        return tasks.load_task(task, wanted, origin, directory=directory, most=most)

    def encode(self, examples: "Examples", tag: str) -> "EncodedExamples":
        """Returns examples in the words of a language's source as the model's ids."""
        from imbalance_jax.transfer import finetune as transfer

        tokenizer = self.run.tokenizers[self._source(tag)]
        encoded = transfer.encode_examples(
            [tokenizer.encode_all(texts) for texts in examples.texts],
            separator=tokenizer.separator,
            # Nothing is read after the text but by the reference, which has id 0.
            pad=max(tokenizer.pad_id, 0),
            length=self.classifier.settings.length,
        )
        map_U = self.run.vocabulary.map_GU[self.run.vocabulary.index(tag)]
        return transfer.map_ids_to_language(encoded, map_U)

    def _identity(self, loaded: "LoadedTask") -> dict[str, Any]:
        """Returns the part of what is found that says what was done, and to what."""
        return {
            "settings": dataclasses.asdict(self.classifier.settings),
            "step": self.run.step,
            "origin": loaded.origin,
            "labels": list(loaded.labels),
            "examples": {
                "train": len(loaded.train),
                "test": {name: len(examples) for name, examples in loaded.test.items()},
            },
        }

    def check_same(self, loaded: "LoadedTask", known: Mapping[str, Any]) -> None:
        """Raises ValueError if what is known of a task was found in another way."""
        now = self._identity(loaded)
        settings = now.pop("settings")
        both = {**known["languages"], **known["skipped"]}
        cli.check_same_measurement(
            f"{transfer_results.FILE} has {loaded.task.name} in {self.trained}",
            {
                **known,
                **known["settings"],
                "languages": [tag for tag in self.scored if tag in both],
            },
            {**now, **settings, "languages": list(self.scored)},
        )

    def measure(self, loaded: "LoadedTask") -> dict[str, Any]:
        """Returns what transfer.json has of a task: see analysis/transfer_results.py."""
        import numpy as np

        from imbalance_jax.compute import hardware
        from imbalance_jax.transfer import finetune as transfer

        began = time.monotonic()
        classifier, classes = self.classifier, len(loaded.labels)
        name, tests, skipped = loaded.task.name, {}, {}
        for tag in self.scored:
            examples = loaded.test.get(self._source(tag))
            if examples is None:
                skipped[tag] = (
                    f"{tag} is left out of {loaded.task.name}: it has no text of its own."
                )
            else:
                tests[tag] = (self.encode(examples, tag), examples.label_n)
        known, known_label_n = tests[self.trained]

        def score(params: Any) -> "np.ndarray":
            predicted_Sn = classifier.predict(params, known)
            return transfer.compute_selection_score(predicted_Sn, known_label_n, classes)

        train = self.encode(loaded.train, self.trained)
        cut = (train.cut + known.cut) / (len(train) + len(known))
        title, total = f"{name} in {self.trained}", classifier.updates(len(train))
        with Progress(title, total) as progress:
            for line in skipped.values():
                progress.line(line)
            if classifier.never_scored(len(train)):
                progress.line(
                    f"{total} updates are fewer than --evaluate_every="
                    f"{classifier.settings.evaluate_every}: the last weights are kept."
                )
            if cut:
                length = classifier.settings.length
                progress.line(f"{cut:.1%} of the examples lose what is beyond {length} positions.")
            times: list[float] = []  # of the updates; the first waits for a program

            def poll(done: int, loss: float | None) -> None:
                times.append(time.monotonic())
                speed = (
                    f"loss {loss:.3f}   {compute_update_rate(times):,.1f} updates/s" if loss else ""
                )
                progress.show(done, speed)

            params, updates = classifier.train(
                self.run.params, train, loaded.train.label_n, classes, score, poll
            )
            languages = {}
            for tag, (encoded, label_n) in tests.items():
                correct_Sn = classifier.predict(params, encoded) == label_n
                languages[tag] = transfer_results.estimate_accuracy(
                    correct_Sn,
                    loaded.test[self._source(tag)].groups,
                    majority=float(np.bincount(label_n).max() / len(label_n)),
                )
        return {
            **self._identity(loaded),
            "cut": cut,
            "updates": updates,
            "updates_per_second": round(compute_update_rate(times), 2),
            "seconds": round(time.monotonic() - began, 1),
            "device": hardware.describe_devices(),
            "dtype": classifier.config.dtype,
            "skipped": skipped,
            "languages": languages,
        }


def compute_update_rate(times: Sequence[float]) -> float:
    """Returns how many updates a second there were, without the first."""
    return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 0.0


def describe_task_result(task: str, found: Mapping[str, Any]) -> list[str]:
    """Returns the main results of a task in a few lines."""

    def span(ends: Sequence[float] | None) -> str:
        return "–" if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}"

    return [
        f"{task}, {tag}: accuracy {row['accuracy']:.3f} ({span(row['interval'])}; over seeds alone "
        f"{span(row['over_seeds'])}), always the most frequent label {row['majority']:.3f}"
        for tag, row in found["languages"].items()
    ]


if __name__ == "__main__":
    define_flags()
    cli.run_command(main)
