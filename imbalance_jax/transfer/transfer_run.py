"""A trained run, fine-tuned in one of its languages and scored in all of them."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from imbalance_jax import cli
from imbalance_jax.analysis import transfer_results
from imbalance_jax.compute import hardware, sharding, tuning
from imbalance_jax.compute.context import make_context
from imbalance_jax.config import MeshConfig
from imbalance_jax.runs.progress import Progress
from imbalance_jax.training.loading import LoadedRun
from imbalance_jax.transfer import finetune
from imbalance_jax.transfer.examples import Examples, LoadedTask, load_task
from imbalance_jax.transfer.languages import choose_languages
from imbalance_jax.transfer.tasks import Task


@dataclasses.dataclass(frozen=True)
class TransferRun:
    """A run that is fine-tuned in one language."""

    run: LoadedRun
    classifier: finetune.ClassifierTrainer
    trained: str
    scored: tuple[str, ...]  # `trained` first
    notes: tuple[str, ...]  # on languages that are left out

    @classmethod
    def make(
        cls,
        run: LoadedRun,
        settings: finetune.FineTuningSettings,
        trained: str = "",
        languages: Sequence[str] = (),
    ) -> "TransferRun":
        """Prepares the fine-tuning of a run in a language, which is scored in other ones as well.

        Raises:
          ValueError: as `choose_languages`, or the run has fewer positions than an example.
        """
        config = run.config
        if settings.length > config.model.L:
            raise ValueError(
                f"--length={settings.length}: the model has {config.model.L} positions. Set "
                f"--length={config.model.L}, or less."
            )
        trained, scored, notes = choose_languages(config, trained, languages)
        mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
        together = settings.seeds if tuning.choose_packing(mesh) == "vmap" else 1
        # The same program for runs that differ in what fine-tuning does not read. An example is one
        # document, although separators stand in it and behind it.
        model = dataclasses.replace(
            tuning.resolve_auto_fields(config.model, jax.devices()[0]),
            loss_chunk=0,
            loss_tile=0,
            documents="joined",
            dropout=0.0,
        )
        classifier = finetune.ClassifierTrainer(model, settings, together)
        return cls(run, classifier, trained, scored, notes)

    def _source(self, tag: str) -> str:
        return self.run.config.source_of(tag)

    def load(
        self, task: Task, directory: str = "", most: Mapping[str, int] | None = None
    ) -> LoadedTask:
        """Returns a task's examples; as `load_task`."""
        names = dict.fromkeys(self._source(tag) for tag in self.scored)
        sources = {name: self.run.config.sources[name] for name in names}
        origin = self._source(self.trained)
        return load_task(task, sources, origin, directory=directory, most=most)

    def encode(self, examples: Examples, tag: str) -> finetune.EncodedExamples:
        """Returns examples in the words of a language's source as the model's ids."""
        tokenizer = self.run.tokenizers[self._source(tag)]
        encoded = finetune.encode_examples(
            [tokenizer.encode_all(texts) for texts in examples.texts],
            separator=tokenizer.separator,
            # Nothing is read after the text but by the reference, which has id 0.
            pad=max(tokenizer.pad_id, 0),
            length=self.classifier.settings.length,
        )
        g = self.run.vocabulary.index(tag)
        context = make_context(self.classifier.config, self.run.vocabulary, g)
        return finetune.map_ids_to_language(encoded, self.run.vocabulary.map_GU[g], context)

    def _describe_measurement(self, loaded: LoadedTask) -> dict[str, Any]:
        """Returns the part of a result that says how it was measured, and on what."""
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

    def check_same(self, loaded: LoadedTask, result: Mapping[str, Any]) -> None:
        """Raises ValueError if an earlier result of a task was measured in another way."""
        now = self._describe_measurement(loaded)
        settings = now.pop("settings")
        in_result = {**result["languages"], **result["skipped"]}
        languages = [tag for tag in self.scored if tag in in_result]
        cli.check_same_measurement(
            f"{transfer_results.FILE} has {loaded.task.name} in {self.trained}",
            {**result, **result["settings"], "languages": languages},
            {**now, **settings, "languages": list(self.scored)},
        )

    def measure(self, loaded: LoadedTask) -> dict[str, Any]:
        """Returns what transfer.json has of a task: see analysis/transfer_results.py."""
        began = time.monotonic()
        classifier, classes, name = self.classifier, len(loaded.labels), loaded.task.name
        length, every = classifier.settings.length, classifier.settings.evaluate_every
        skipped = {
            tag: f"{tag} is left out of {name}: it has no text of its own."
            for tag in self.scored
            if self._source(tag) not in loaded.test
        }
        examples = {
            tag: loaded.test[self._source(tag)] for tag in self.scored if tag not in skipped
        }
        tests = {tag: self.encode(each, tag) for tag, each in examples.items()}
        train = self.encode(loaded.train, self.trained)
        test, test_label_n = tests[self.trained], examples[self.trained].label_n

        def score(params: Any) -> np.ndarray:
            predicted_Sn = classifier.predict(params, test)
            return finetune.compute_selection_score(predicted_Sn, test_label_n, classes)

        cut = (train.cut + test.cut) / (len(train) + len(test))
        total = classifier.updates(len(train))
        times: list[float] = []  # of the updates; the first waits for a program
        with Progress(f"{name} in {self.trained}", total) as progress:
            for line in skipped.values():
                progress.line(line)
            if classifier.never_scored(len(train)):
                progress.line(
                    f"{total} updates are fewer than --evaluate_every={every}: the last weights "
                    "are kept."
                )
            if cut:
                progress.line(f"{cut:.1%} of the examples lose what is beyond {length} positions.")

            def poll(done: int, loss: float | None) -> None:
                times.append(time.monotonic())
                speed = (
                    f"loss {loss:.3f}   {compute_update_rate(times):,.1f} updates/s" if loss else ""
                )
                progress.show(done, speed)

            params, updates = classifier.train(
                self.run.params, train, loaded.train.label_n, classes, score, poll
            )
            results = {
                tag: transfer_results.estimate_accuracy(
                    classifier.predict(params, tests[tag]) == of_tag.label_n,
                    of_tag.groups,
                    majority=float(np.bincount(of_tag.label_n).max() / len(of_tag)),
                )
                for tag, of_tag in examples.items()
            }
        return {
            **self._describe_measurement(loaded),
            "cut": cut,
            "updates": updates,
            "updates_per_second": round(compute_update_rate(times), 2),
            "seconds": round(time.monotonic() - began, 1),
            "device": hardware.describe_devices(),
            "dtype": classifier.config.dtype,
            "skipped": skipped,
            "languages": results,
        }


def compute_update_rate(times: Sequence[float]) -> float:
    """Returns how many updates a second there were, without the first."""
    return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 0.0
