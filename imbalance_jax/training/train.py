"""The training loop: setup above, one short loop below.

A `RunProgress` is what a run does besides its updates, alone or in a pack (pack.py).
"""

import contextlib
import dataclasses
import functools
import sys
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from imbalance_jax.compute import conditions, hardware, sharding
from imbalance_jax.compute import hosts as distributed
from imbalance_jax.compute import model as model_lib
from imbalance_jax.compute import step as step_lib
from imbalance_jax.compute.checkpoint import Checkpoints, remove_unfinished_checkpoints
from imbalance_jax.config import Config, ModelConfig, costs, mesh_shape
from imbalance_jax.data import languages, prepare
from imbalance_jax.data import parallel as parallel_lib
from imbalance_jax.data import word_order as views
from imbalance_jax.data.order.audit import OrderAudit, build_mixture_rows
from imbalance_jax.data.order.corpora import AnySource
from imbalance_jax.data.order.stream import Stream, resolve_ratio
from imbalance_jax.data.parallel import ParallelSet
from imbalance_jax.data.sources import Source
from imbalance_jax.data.text import synthetic
from imbalance_jax.evaluation import alignment as alignment_lib
from imbalance_jax.evaluation import perplexity
from imbalance_jax.evaluation.programs import MeasurementPrograms
from imbalance_jax.runs import mirrors, storage
from imbalance_jax.runs.code_versions import get_code_versions
from imbalance_jax.runs.progress import Progress, RunWork, split_progress
from imbalance_jax.runs.run_directory import RunDirectory
from imbalance_jax.training import loading
from imbalance_jax.training.cadence import Cadence


class Preempted(Exception):
    """The run was asked to stop, and has saved the state after `step`, if it had one yet."""

    def __init__(self, step: int | None) -> None:
        super().__init__("stopped" if step is None else f"stopped after step {step}")
        self.step = step


class PeerLost(Exception):
    """Another process of the run has gone, for no reason that FAILED.json would give."""

    def __init__(self, step: int) -> None:
        super().__init__(f"another process was lost after step {step}")
        self.step = step


class RunFailed(Exception):
    """The run ended with an error after its first step began; FAILED.json says which."""


class RunTimer:
    """Seconds spent in each part of a run, over all its starts."""

    PARTS = ("setup", "compile", "data", "evaluate", "align", "checkpoint")

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._total_before = 0.0
        self.seconds = dict.fromkeys(self.PARTS, 0.0)

    def go_on(self, before: Mapping[str, float]) -> None:
        """Adds what earlier starts of the run took, from their last record."""
        self._total_before = before.get("time/total", 0.0)
        for part in self.PARTS:
            self.seconds[part] += before.get(f"time/{part}", 0.0)

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[part] += time.monotonic() - began

    def shift(self, part: str, other: str, seconds: float) -> None:
        """Counts seconds of one part as those of another."""
        self.seconds[part] -= seconds
        self.seconds[other] += seconds

    @property
    def total(self) -> float:
        return self._total_before + time.monotonic() - self._began

    @property
    def running(self) -> float:
        """Seconds of everything but setup and compilation."""
        return max(self.total - self.seconds["setup"] - self.seconds["compile"], 1e-9)

    @property
    def training(self) -> float:
        """Seconds that no part claims."""
        return self.total - sum(self.seconds.values())

    def metrics(self) -> dict[str, float]:
        """Returns time/<part>; what no part claims is training."""
        seconds = self.seconds | {"train": self.training, "total": self.total}
        return {f"time/{part}": round(value, 3) for part, value in seconds.items()}


@dataclasses.dataclass
class Experiment:
    """Everything that is fixed before the first step."""

    config: Config
    sources: Mapping[str, AnySource]
    stream: Stream
    vocabulary: languages.Vocabulary
    mesh: jax.sharding.Mesh
    parallel: Mapping[str, ParallelSet]

    @classmethod
    def make(
        cls,
        config: Config,
        sources: Mapping[str, AnySource],
        mesh: jax.sharding.Mesh,
        parallel: Mapping[str, ParallelSet] = types.MappingProxyType({}),
        *,
        training: bool = True,
        begun: Config | None = None,
    ) -> "Experiment":
        """Builds and checks all parts.

        Args:
          config: of the run. A ratio by temperature is filled in.
          sources: the prepared ones, by name.
          mesh: of the devices.
          parallel: the prepared sets of parallel text, by name.
          training: whether the batch has to suit the devices too.
          begun: what the run was begun with, if it was.

        Raises:
          ValueError: the config does not suit the text or the devices.
        """
        config = resolve_ratio(config, sources, begun)
        pieces = {name: source.pieces for name, source in sources.items()}
        vocabulary = languages.build_vocabulary(config, pieces)
        sharding.check_dimensions(config, mesh, vocabulary.size)
        if training:
            sharding.check_batch(config, mesh)
        for name, source in sources.items():
            for split in ("validation", "test"):
                if source.count(split) < 2:
                    raise ValueError(
                        f"config.sources.{name}: no document is held out for {split} (1 % of the "
                        f"{source.about['documents']['train']} documents are, by a hash of their "
                        f"id). Give config.sources.{name}.{split} a file, or use more documents."
                    )
            context, test = config.model.L - config.eval_stride, source.count("test")
            if test - 1 <= context:
                raise ValueError(
                    f"config.sources.{name} has {test} tokens to test on, and the final test "
                    f"scores none of the first {context + 1} (config.model.L - stride + 1). Set "
                    f"config.evaluation.stride={config.model.L}, or use more text."
                )
        return cls(config, sources, Stream(config, sources), vocabulary, mesh, parallel)

    @classmethod
    def of_run(
        cls,
        config: Config,
        run: RunDirectory,
        mesh: jax.sharding.Mesh,
        text: Mapping[str, str] = types.MappingProxyType({}),
        *,
        training: bool = True,
    ) -> "Experiment":
        """Builds and checks all parts of a run, whose text is prepared where it is not yet.

        Process 0 prepares it, and the others find it.

        Args:
          config: of the run.
          run: its directory.
          mesh: of the devices.
          text: source -> the fingerprint of its text, where the run's study has recorded it.
          training: as of `make`.

        Raises:
          ValueError: as `make`; or the run was begun with other text, or its study.
        """

        def build() -> Experiment:
            run.check_format()
            sources = prepare.prepare_run_sources(config, {**text, **run.texts()})
            prepare.check_recorded_texts(sources, text, config.data_dir)
            sets = parallel_lib.prepare_all_parallel_sets(config, sources, run.texts("parallel"))
            begun = run.begun()
            trainer = cls.make(config, sources, mesh, sets, training=training, begun=begun)
            run.check_text(trainer.fingerprints(), trainer.stream.order_version)
            check_run_vocabulary(run, trainer.vocabulary)
            if config.init_from and not run.checkpoints.exists():
                loading.check_vocabulary(config, trainer.vocabulary, trainer._models())
            return trainer

        return distributed.run_process_0_first(build)

    def source(self, tag: str) -> AnySource:
        return self.sources[self.config.source_of(tag)]

    def held_out(self, tag: str, split: str) -> np.ndarray:
        """Returns a language's ids of a held-out split, its words in its own order."""
        return views.load_held_out_tokens(self.source(tag), split, self.config.languages[tag])

    def _models(self) -> dict[str, bytes]:
        """Returns the tokenizer of each source."""
        return {name: source.model for name, source in self.sources.items()}

    def _held_out_bytes(self, tag: str, split: str) -> np.ndarray:
        """Returns the UTF-8 bytes that each of those ids stands for."""
        language, ids_t = self.config.languages[tag], self.held_out(tag, split)
        return views.count_bytes(self.source(tag), split, language, ids_t)

    def fingerprints(self) -> dict[str, str]:
        return {name: source.fingerprint for name, source in self.sources.items()}

    def validation_windows(self) -> list[perplexity.EvaluationWindows]:
        L, most = self.config.model.L, self.config.evaluation.max_windows
        return [
            perplexity.cut_spread_windows(
                self.held_out(tag, "validation"),
                L,
                most,
                bytes_t=self._held_out_bytes(tag, "validation"),
            )
            for tag in self.config.tags
        ]

    def test_windows(self) -> list[perplexity.EvaluationWindows]:
        L, stride = self.config.model.L, self.config.eval_stride
        most = self.config.evaluation.max_test_windows
        return [
            perplexity.cut_strided_windows(
                self.held_out(tag, "test"), L, stride, most, self._held_out_bytes(tag, "test")
            )
            for tag in self.config.tags
        ]

    def entropy(self, tag: str) -> dict[str, Any]:
        """Returns the entropy of a synthetic language's text and its bounds; {} for others."""
        source = self.config.sources[self.config.source_of(tag)]
        if source.kind != "synthetic":
            return {}
        lower, upper = synthetic.compute_loss_bounds(source.synthetic, self.config.model.L)
        found = dataclasses.asdict(synthetic.compute_language_entropy(source.synthetic))
        return found | {"least_loss": [lower, upper]}

    def parallel_windows(self, set_: ParallelSet) -> list[perplexity.EvaluationWindows]:
        """Returns the texts of a parallel set for each language; none for those it is not in."""
        found = []
        for tag in self.config.tags:
            name = self.config.source_of(tag)
            inside = name in set_.sources and self.config.languages[tag].words == "as_written"
            side = name if inside else set_.sources[0]
            ids_PW, weight_PL = set_.windows(side, self.source(tag).pieces.separator)
            rows = slice(None if inside else 0)
            found.append(
                perplexity.EvaluationWindows(
                    ids_PW[rows],
                    weight_PL[rows],
                    self.config.model.L,
                    bytes_n=set_.bytes[side][rows],
                )
            )
        return found

    def scored_windows(self) -> list[list[perplexity.EvaluationWindows]]:
        """Returns what `score` scores: the test split, and then each parallel set."""
        return [self.test_windows(), *map(self.parallel_windows, self.parallel.values())]

    def cost_of_scoring(self, windows: Sequence[perplexity.EvaluationWindows]) -> float:
        """Returns what it takes to score windows, in training steps.

        A forward pass is a third of an update, whose backward pass takes twice as much.
        """
        return sum(len(w.ids_nW) for w in windows) / self.config.batch_size / 3

    def evaluator(self) -> perplexity.PerplexityEvaluator:
        each = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        size = self.config.batch_size // self.config.optimizer.accumulate
        size = -(-size // each) * each  # more than the batch where that does not divide
        dtype = np.result_type(*(source.tokens("test") for source in self.sources.values()))
        return perplexity.PerplexityEvaluator(
            self.config.model, self.vocabulary, self.mesh, size, dtype
        )

    def alignment(
        self, split: str, most: int, programs: MeasurementPrograms | None = None
    ) -> alignment_lib.AlignmentEvaluator:
        """Returns what measures the languages, on so many sequences of a held-out split.

        Args:
          split: validation or test.
          most: sequences.
          programs: those of a run of the same shapes, so that nothing compiles again.
        """
        return alignment_lib.AlignmentEvaluator(
            self.config,
            self.sources,
            self.parallel,
            self.vocabulary,
            self.mesh,
            split=split,
            most=most,
            programs=programs,
        )

    def score(
        self,
        state: step_lib.TrainState,
        poll: Callable[[float], None],
        evaluator: perplexity.PerplexityEvaluator | None = None,
    ) -> dict[str, Any]:
        """Returns the losses of a state on the test split, for `RunDirectory.write_results`.

        Args:
          state: after some updates.
          poll: called now and then with the share done; may raise to stop.
          evaluator: a compiled one, where there is one.
        """
        evaluator = evaluator or self.evaluator()
        windows, *others = self.scored_windows()
        costs = [self.cost_of_scoring(each) for each in (windows, *others)]
        polls = iter(split_progress(poll, costs))
        sums, losses = evaluator.measure(state.params, windows, next(polls))
        found = evaluator.summaries(sums)
        texts = {
            tag: self._by_text(tag, losses[tag], windows[g])
            for g, tag in enumerate(self.config.tags)
        }
        parallel = {
            name: _score_parallel_set(
                self, evaluator, state, self.parallel[name], each, next(polls)
            )
            for name, each in zip(self.parallel, others, strict=True)
        }
        # A loss to compare with, where the text's entropy is known.
        floors = {tag: self.entropy(tag) for tag in found if self.entropy(tag)}
        return {
            "split": "test",
            "stride": self.config.eval_stride,
            "languages": found,
            "parallel": parallel,
            "entropy": floors,
            "texts": {tag: found for tag, found in texts.items() if found},
        }

    def _by_text(
        self, tag: str, loss_n: np.ndarray, windows: perplexity.EvaluationWindows
    ) -> list[tuple[int, float, int]]:
        """Returns the test loss of each text that a language's source is made of."""
        source = self.source(tag)
        # Other orders of words move ids between places, and synthetic text has no documents.
        if not isinstance(source, Source) or self.config.languages[tag].words != "as_written":
            return []
        return perplexity.sum_loss_by_text(
            loss_n, windows, source.documents("test")["start"], _TEXTS
        )

    def compile_step(self, state: step_lib.TrainState) -> jax.stages.Compiled:
        """Returns the compiled step for states of these shapes and shardings."""
        step = step_lib.jit_step(self.config, self.stream.steps, self.mesh, state)
        return step.lower(state, self.batch(0), self.map_GU()).compile()

    def settled_model(self) -> ModelConfig:
        """Returns the model's config with what the devices decide filled in."""
        return self._settled_on(self.mesh)

    def _settled_on(self, mesh: jax.sharding.Mesh) -> ModelConfig:
        return step_lib.resolve_auto_in_config(self.config, mesh, self.vocabulary.size).model

    @functools.cached_property
    def _rows(self) -> distributed.HostRows:
        rows = sharding.make_batch_sharding(self.mesh)
        return distributed.HostRows(rows, self.config.batch_size)

    def batch(self, step: int) -> step_lib.Batch:
        """Returns the batch of a step on the devices; this process reads its rows of it."""
        local = self.stream.batch(step, self._rows.index_B)
        return step_lib.Batch(self._rows.place(local.ids_BW), self._rows.place(local.language_B))

    def map_GU(self) -> jax.Array:
        return distributed.place_whole_arrays(
            self.vocabulary.map_GU, sharding.make_replicated_sharding(self.mesh)
        )

    def flops_per_step(self) -> float:
        tokens = self.config.batch_size * self.config.model.L
        return tokens * costs.compute_flops_per_token(self.config.model, self.vocabulary.size)

    def abstract_state(self) -> step_lib.TrainState:
        return step_lib.make_abstract_state(self.config, self.vocabulary.size, self.mesh)

    def init_state(self, make: jax.stages.Wrapped | None = None) -> step_lib.TrainState:
        """Args: make is the `step.jit_init` of a run of the same shapes, if there is one."""
        make = make or step_lib.jit_init_state(self.config, self.vocabulary.size, self.mesh)
        state = make(jax.random.key(self.config.seed))
        row_V = languages.find_initial_rows(self.config, self.vocabulary)
        if not np.array_equal(row_V, np.arange(len(row_V))):
            params = model_lib.gather_embedding_rows(state.params, row_V)
            state = dataclasses.replace(state, params=params)
        if not self.config.init_from:
            return state
        params = loading.restore_params(self.config, self.mesh, self.vocabulary, self._models())
        return dataclasses.replace(state, params=params)

    def provenance(self, mesh: jax.sharding.Mesh | None = None) -> dict[str, Any]:
        """Args: mesh is that of the updates, if it is another one than the trainer's."""
        mesh = mesh or self.mesh
        config, model = self.config, self._settled_on(mesh)
        peak = hardware.get_peak_flops(model.dtype)
        computed = {name: getattr(model, name) for name in _HOW}
        known = get_code_versions()
        return known | {
            "device": hardware.describe_devices(),
            "mesh": dict(mesh.shape),
            "computed": computed,
            "conditions": conditions.record_conditions(
                known, mesh.shape, computed, config.optimizer.accumulate
            ),
            "order_version": self.stream.order_version,
            "parameters": model_lib.count_parameters(config.model, self.vocabulary.size),
            "vocab_size": self.vocabulary.size,
            "flops_per_token": costs.compute_flops_per_token(config.model, self.vocabulary.size),
            "flop_convention": costs.FLOP_CONVENTION,
            "peak_flops": dataclasses.asdict(peak),
            "sources": {
                name: {"kind": config.sources[name].kind}
                | {k: source.about[k] for k in _ABOUT if k in source.about}
                for name, source in self.sources.items()
            },
            "parallel": {name: dict(set_.about) for name, set_ in self.parallel.items()},
        }


# Texts of the test split whose losses are kept apart, to resample them in a study.
_TEXTS = 200
_HOW = ("dtype", "attention", "remat", "scan_layers", "loss_chunk")
_ABOUT = (
    *("format", "fingerprint", "text", "tokenizer", "vocab_size"),
    *("documents", "tokens", "bytes", "lost_bytes"),
)


class MetricsRecorder:
    """Adds up what the steps report, and writes a record of it now and then."""

    def __init__(
        self,
        trainer: Experiment,
        run: RunDirectory,
        times: RunTimer,
        start: int,
        sent: int,
        errors: distributed.WriterErrors,
    ) -> None:
        """Args: as for `RunProgress`; errors keeps those of writing."""
        self._trainer, self._run, self._times, self._errors = trainer, run, times, errors
        self._audit = OrderAudit(trainer.config, trainer.stream)
        names = trainer.config.mirrors if distributed.is_writer() else ()
        self._peak = hardware.get_peak_flops(trainer.settled_model().dtype).value
        with distributed.propagate_errors():
            if distributed.is_writer():
                self._audit.resume(run.metrics(), start)
            self._mirrors = mirrors.Mirrors(names, run, trainer.config, start, sent)
        self._pending: tuple[int, step_lib.Metrics] | None = None
        self.newest: dict[str, Any] = {}  # the newest record of training
        self._reset()

    def _reset(self) -> None:
        G = len(self._trainer.config.tags)
        self._loss_G, self._tokens_G, self._steps = np.zeros(G), np.zeros(G), 0
        self._began, self._parts = time.monotonic(), dict(self._times.seconds)

    def note(self, done: int, metrics: step_lib.Metrics) -> None:
        """Takes a step's metrics, and reads those of the step before it.

        One step late, so that the device always has the next step to work on.
        """
        before, self._pending = self._pending, (done, metrics)
        if before:
            self.read(*before)

    def flush(self) -> None:
        """Reads the newest step's metrics too."""
        before, self._pending = self._pending, None
        if before:
            self.read(*before)

    def read(self, done: int, metrics: Mapping[str, Any]) -> None:
        """Adds a step's metrics up.

        Raises:
          FloatingPointError: its loss or gradient is not finite.
        """
        values = jax.device_get(metrics)
        if not np.isfinite(values["loss"] + values["grad_norm"]):
            raise FloatingPointError(
                f"The loss of step {done} is {values['loss']}, its gradient norm "
                f"{values['grad_norm']}. In another --workdir, lower config.optimizer.peak_lr or "
                "set config.optimizer.clip_norm=1."
            )
        with self._errors.kept():
            if distributed.is_writer():
                self._audit.follow()
        self._loss_G += values["loss_G"]
        self._tokens_G += values["tokens_G"]
        self._steps += 1
        if is_step_due(done, self._trainer.config.log_every) or done == self._trainer.stream.steps:
            self.newest = self._record(values)
            self.write(done, self.newest)
            self._reset()

    def write(self, step: int, record: Mapping[str, Any]) -> None:
        """Writes a record to the run directory and its mirrors, from one process."""
        with self._errors.kept():
            if distributed.is_writer():
                self._run.log(step, record)
        numbers = {name: value for name, value in record.items() if not isinstance(value, str)}
        self._mirrors.log(step, numbers)

    def close(self) -> None:
        self._mirrors.close()

    def _record(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the metrics of the steps since the last record; losses are their means."""
        tags, L = self._trainer.config.tags, self._trainer.config.model.L
        tokens = float(self._tokens_G.sum())
        parts = {part: s - self._parts[part] for part, s in self._times.seconds.items()}
        away = sum(parts[name] for name in ("evaluate", "align", "checkpoint", "compile"))
        elapsed = max(time.monotonic() - self._began - away, 1e-9)
        flops = self._trainer.flops_per_step() * self._steps
        record = {"train/loss": float(self._loss_G.sum()) / tokens}
        for g, tag in enumerate(tags):
            if self._tokens_G[g]:
                record[f"train/loss/{tag}"] = float(self._loss_G[g] / self._tokens_G[g])
            record[f"train/tokens/{tag}"] = int(values["trained_G"][g]) * L
        return record | {
            "train/grad_norm": float(values["grad_norm"]),
            "train/learning_rate": float(values["learning_rate"]),
            "perf/tokens_per_second": tokens / elapsed,
            "perf/mfu": flops / elapsed / self._peak,
            "perf/data_wait_fraction": parts["data"] / elapsed,
            **self._audit.metrics(),
            **self._times.metrics(),
        }

    @property
    def text(self) -> str:
        """The newest record in a few words."""
        record = self.newest
        if not record:
            return ""
        losses = [
            f"{tag} {record[f'train/loss/{tag}']:.3f}"
            for tag in self._trainer.config.tags
            if f"train/loss/{tag}" in record
        ]
        speed, mfu = record["perf/tokens_per_second"], record["perf/mfu"]
        return f"loss {'  '.join(losses)}   {speed:,.0f} tokens/s   MFU {mfu:.0%}"


def is_step_due(done: int, every: int) -> bool:
    """Whether something that happens every so many steps happens after this one."""
    return every > 0 and done % every == 0


def train_single_run(
    trainer: Experiment,
    run: RunDirectory,
    times: RunTimer,
    interrupts: distributed.SharedInterrupts,
) -> None:
    """Trains a run to its end, from its newest checkpoint if it has one.

    Raises:
      ValueError: the state does not fit the config or the device; nothing is written.
      Preempted: it was asked to stop.
      Failed: an error after the first step began.
    """
    print("Compiling", flush=True)
    with times("compile"), distributed.propagate_errors():
        update, evaluator = compile_programs(trainer)
    if interrupts.poll():
        raise Preempted(None)
    # Before anything is written: it may not fit the device, or its config.
    begun = bool(distributed.broadcast_from_process_0(np.bool_(run.checkpoints.exists())))
    with explain_out_of_memory(trainer.config, trainer.mesh.shape):
        state = None if begun else trainer.init_state()
    with distributed.propagate_errors():
        if distributed.is_writer():
            run.claim(trainer.config)
            remove_unfinished_checkpoints(run.checkpoints)
    checkpoints = Checkpoints(run.checkpoints, keep=trainer.config.checkpoint.keep)
    with contextlib.ExitStack() as stack:
        stack.callback(run.release)
        stack.callback(checkpoints.close)
        saved = checkpoints.steps()
        start = int(distributed.broadcast_from_process_0(np.int32(saved[-1] if saved else 0)))
        with explain_out_of_memory(trainer.config, trainer.mesh.shape):
            if start:
                state = checkpoints.restore(start, trainer.abstract_state())
                print(f"Going on from step {start:,}", flush=True)
            state = state or trainer.init_state()
        with distributed.propagate_errors():
            before = record_run_start(trainer, run, start, trainer.provenance())
        if before.change:
            print(before.change, flush=True)
        times.go_on(run.newest("time/"))
        course = RunProgress(
            trainer, run, times, interrupts, checkpoints, evaluator, start, sent=before.sent
        )
        try:
            _train_or_record_failure(course, times, update, state)
        except Preempted:
            raise
        except Exception:  # others may be gone, of whom closing would wait
            distributed.skip_stack_cleanup(stack)
            raise


def check_run_vocabulary(run: RunDirectory, vocabulary: languages.Vocabulary) -> None:
    """Raises ValueError if a run that was begun would go on with other ids of its languages."""
    file = run.path / "vocabulary.npz"
    if not file.exists():
        return
    before = languages.Vocabulary.from_bytes(vocabulary.tags, file.read_bytes())
    if not np.array_equal(before.map_GU, vocabulary.map_GU):
        raise ValueError(
            f"{run} was started by a version that gave its languages other ids of the model (a "
            f"padding piece was shared only where its id is 0): {file} is not what this version "
            "makes. Use another --workdir, or go on with the version it was started with."
        )


def compile_programs(
    trainer: Experiment,
) -> tuple[jax.stages.Compiled, perplexity.PerplexityEvaluator]:
    state = trainer.abstract_state()
    evaluator = trainer.evaluator()
    try:
        evaluator.compile(state.params, trainer.config.model.L)
        return trainer.compile_step(state), evaluator
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(explain_error(trainer.config, error, trainer.mesh.shape)) from error


@contextlib.contextmanager
def explain_out_of_memory(config: Config, mesh: Mapping[str, int]) -> Iterator[None]:
    """Raises ValueError where memory runs out before the first step."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if not hardware.is_out_of_memory(error):
            raise
        raise ValueError(explain_error(config, error, mesh)) from error


def _train_or_record_failure(
    course: "RunProgress", times: RunTimer, update: jax.stages.Compiled, state: step_lib.TrainState
) -> None:
    """Trains a state to the run's end, and writes what the run leaves behind, however it ends."""
    try:
        _train_and_finish(course, times, update, state)
    except Preempted:
        raise
    except Exception as error:
        if distributed.is_lost_peer(error) and not course.failed_elsewhere():
            raise PeerLost(course.done) from error
        raise RunFailed(course.fail(error)) from error
    finally:
        course.recorder.close()


def _train_and_finish(
    course: "RunProgress", times: RunTimer, update: jax.stages.Compiled, state: step_lib.TrainState
) -> None:
    trainer, stream = course.trainer, course.trainer.stream
    map_GU = trainer.map_GU()
    try:
        with Progress("Training", course.work.total, start=course.work.after(course.done)) as bar:
            course.begin(state, bar)
            for done in range(course.done + 1, stream.steps + 1):
                with times("data"):
                    batch = trainer.batch(done - 1)
                state, metrics = update(state, batch, map_GU)
                course.done = done
                course.recorder.note(done, metrics)
                bar.show(course.work.before_evaluation(done), course.recorder.text)
                course.measure(state)
                course.poll()
            course.score(state)
    except Preempted:
        # This may fail as any other save may: the newest step's loss may not be finite.
        course.save(state)
        course.checkpoints.wait()
        raise
    course.finish()


class RunProgress:
    """What a run does besides its updates: it is measured, saved, and ended in its directory.

    `done` is the number of updates that the states given to its methods have had.
    """

    def __init__(
        self,
        trainer: Experiment,
        run: RunDirectory,
        times: RunTimer,
        interrupts: distributed.SharedInterrupts,
        checkpoints: Checkpoints,
        evaluator: perplexity.PerplexityEvaluator,
        start: int,
        *,
        sent: int = -1,
        name: str = "",
        place: int = 0,
        together: int = 1,
        programs: MeasurementPrograms | None = None,
    ) -> None:
        """Args:
        trainer: of the run.
        run: its directory, after `record_run_start`.
        times: where its time goes.
        interrupts: what asks it to stop.
        checkpoints: its own.
        evaluator: a compiled one.
        start: updates that it has had.
        sent: the newest step that it had logged before it went on from `start`; -1 is none.
        name: what its lines begin with, where other runs write some too.
        place: its number among the runs that take turns.
        together: how many these are, whose time `times` counts.
        programs: of alignment, of a run of the same shapes.
        """
        self.trainer, self.run, self.checkpoints, self.name = trainer, run, checkpoints, name
        self.done = start
        self._writer_errors = distributed.WriterErrors()
        self.recorder = MetricsRecorder(trainer, run, times, start, sent, self._writer_errors)
        self._times, self._interrupts, self._evaluator = times, interrupts, evaluator
        self._place, self._together = place, together
        self._validation = trainer.validation_windows()
        self.alignment, self._cadence = _build_alignment(trainer, run, programs)
        self.work = RunWork(
            steps=trainer.stream.steps,
            every=trainer.config.evaluation.every,
            evaluation=trainer.cost_of_scoring(self._validation),
            scoring=sum(map(trainer.cost_of_scoring, trainer.scored_windows())),
        )
        self._progress: Progress

    def poll(self, share: float = 1.0) -> None:
        """Raises Preempted if the run was asked to stop."""
        if self._interrupts.poll():
            raise Preempted(self.done)

    def _show_and_poll(self, begun: float, cost: float, text: str, share: float) -> None:
        """Shows how far a part of the run's work is, which may be one of several runs' part."""
        self._progress.show(begun + (self._place + share) / self._together * cost, text)
        self.poll()

    def begin(self, state: step_lib.TrainState, progress: Progress) -> None:
        """Makes up for what was not measured of the first state; lines go to `progress`."""
        self._progress = progress
        missed = self.done == 0 or self._evaluation_is_due
        evaluated, aligned = distributed.broadcast_from_process_0(
            np.array([self.run.has(self.done, name) for name in ("eval/", "align/")])
        )
        if missed and not evaluated:
            self._evaluate(state)
        if self._cadence.due(self.done) and not aligned:
            self._align(state)
        notes = (*self.alignment.notes, *self.alignment.skipped.values()) if self.alignment else ()
        for line in notes:
            self._line(line)

    @property
    def _is_last(self) -> bool:
        return self.done == self.trainer.stream.steps

    @property
    def _evaluation_is_due(self) -> bool:
        return self._is_last or is_step_due(self.done, self.trainer.config.evaluation.every)

    @property
    def _saving_is_due(self) -> bool:
        return self._is_last or is_step_due(self.done, self.trainer.config.checkpoint.every)

    @property
    def is_due(self) -> bool:
        """Whether `measure` has something to do."""
        return self._evaluation_is_due or self._saving_is_due or self._cadence.due(self.done)

    def measure(self, state: step_lib.TrainState) -> None:
        """Evaluates, aligns and saves a state, as far as each is due."""
        if not self.is_due:
            return
        if self._evaluation_is_due:
            self._evaluate(state)
        if self._cadence.due(self.done):
            self._align(state)
        if self._saving_is_due:
            self.save(state)
        self._writer_errors.agree()

    def _evaluate(self, state: step_lib.TrainState) -> None:
        begun = self.work.before_evaluation(self.done)
        poll = functools.partial(self._show_and_poll, begun, self.work.evaluation, "evaluating")
        with self._times("evaluate"):
            self.recorder.flush()
            found = self._evaluator(state.params, self._validation, poll)
        self._line(_describe_evaluation(self.done, found))
        self.recorder.write(self.done, _make_evaluation_record(found) | self._times.metrics())

    def _align(self, state: step_lib.TrainState) -> None:
        times, alignment, cadence = self._times, self.alignment, self._cadence
        assert alignment is not None
        if not alignment.programs.compile_seconds:
            self._line("Compiling what measures alignment")
        with times("align"):
            self.recorder.flush()
            before, began = alignment.programs.compile_seconds, time.monotonic()
            found = alignment.watch(state, self.trainer.stream, self.poll)
            compiling = alignment.programs.compile_seconds - before
            # The other runs of a pack are measured as often.
            cost = (time.monotonic() - began - compiling) * self._together
        times.shift("align", "compile", compiling)
        news = cadence.settle(
            self.done,
            cost=cost,
            spent=times.seconds["align"],
            elapsed=times.running,
            seconds_per_step=times.training / self.done,
        )
        if news:
            self._line(cadence.describe(cost))
        share = times.seconds["align"] / times.running
        shares = {"align/every": cadence.every, "align/share": round(share, 5)}
        self.recorder.write(self.done, found | shares | times.metrics())

    def save(self, state: step_lib.TrainState) -> None:
        with self._times("checkpoint"):
            self.recorder.flush()
            with self._writer_errors.kept():
                if distributed.is_writer():
                    self.run.flush()  # a run resumed there needs all that was logged before
            self.checkpoints.save(state)
        with self._writer_errors.kept():
            if distributed.is_writer():
                _write_mixture(self.trainer, self.run)

    def score(self, state: step_lib.TrainState) -> None:
        """Scores the last state on the test split, and writes the results."""
        begun, cost = self.work.after(self.done), self.work.scoring
        text = "scoring the test split" + f" of {self.name}" * bool(self.name)
        poll = functools.partial(self._show_and_poll, begun, cost, text)
        with self._times("evaluate"):
            results = self.trainer.score(state, poll, self._evaluator)
            self._line(_describe_evaluation(self.done, results["languages"], "test"))
            for name, scores in results["parallel"].items():
                self._line(_describe_parallel_scores(name, scores))
        with self._writer_errors.kept():
            if distributed.is_writer():
                self.run.write_results({"step": self.done, **results})
        self._writer_errors.agree()

    def failed_elsewhere(self) -> bool:
        """Whether the process that was lost has written down why; it may still be at it."""
        return distributed.wait_for_condition((self.run.path / "FAILED.json").exists)

    def fail(self, error: Exception) -> str:
        """Writes down why the run ended, where another process has not done so, and returns it."""
        message = explain_error(self.trainer.config, error, self.trainer.mesh.shape)
        if jax.process_count() == 1:
            self.checkpoints.close()
            remove_unfinished_checkpoints(self.checkpoints.path)
        elsewhere = isinstance(error, distributed.ElsewhereError)
        if not elsewhere and not (self.run.path / "FAILED.json").exists():
            try:
                self.run.fail(self.done, error, message)
            except OSError as unwritten:
                print(f"error: {storage.describe_os_error(unwritten)}", file=sys.stderr)
        return message

    def finish(self) -> None:
        """Says that the run is done, when all that it leaves behind is on disk."""
        with self._times("checkpoint"):
            self.checkpoints.wait()
        with self._writer_errors.kept():
            if distributed.is_writer():
                self.run.log(self.done, self._times.metrics())
                # Whoever was killed after the last checkpoint may not have written it.
                _write_mixture(self.trainer, self.run)
                self.run.finish()
        self._writer_errors.agree()

    def _line(self, text: str) -> None:
        self._progress.line(f"{self.name}: {text}" if self.name else text)


def _build_alignment(
    trainer: Experiment, run: RunDirectory, programs: MeasurementPrograms | None
) -> tuple[alignment_lib.AlignmentEvaluator | None, Cadence]:
    """Returns what measures alignment while the run trains, and how often."""
    config = trainer.config.evaluation.alignment
    every = config.every if len(trainer.config.tags) > 1 else 0
    name = "align/every"
    chosen = int(distributed.broadcast_from_process_0(np.int32(run.newest(name).get(name, -1))))
    cadence = Cadence(every, config.budget, trainer.stream.steps, chosen if chosen >= 0 else None)
    measure = trainer.alignment("validation", config.pairs, programs) if every else None
    return measure, cadence


class EarlierStarts(NamedTuple):
    """What `record_run_start` finds of the starts of a run before this one."""

    sent: int = -1  # the newest step that was logged, which may be after that of the checkpoint
    change: str = ""  # the conditions that changed, in a line


def record_run_start(
    trainer: Experiment, run: RunDirectory, start: int, provenance: Mapping[str, Any]
) -> EarlierStarts:
    """Writes what a run records of itself before its first step, or its first after `start`."""
    if not distributed.is_writer():
        return EarlierStarts()
    for line in run.keep_results(trainer.stream.steps):
        print(line)
    before = (run.read_json("provenance.json") or {}) if start else {}
    sent = max((record["step"] for record in run.metrics()), default=-1)
    run.truncate_metrics(start)
    run.write_json("provenance.json", provenance)
    run.write_bytes("vocabulary.npz", trainer.vocabulary.to_bytes())
    for name, source in trainer.sources.items():
        run.write_bytes(f"tokenizer-{name}.model", source.model)
    change = conditions.describe_change(before.get("conditions", {}), provenance["conditions"])
    return EarlierStarts(sent, change)


def _write_mixture(trainer: Experiment, run: RunDirectory) -> None:
    rows = build_mixture_rows(trainer.config, trainer.stream, list(run.metrics()))
    if rows:
        run.write_csv("mixture.csv", rows)


def _score_parallel_set(
    trainer: Experiment,
    evaluator: perplexity.PerplexityEvaluator,
    state: step_lib.TrainState,
    set_: ParallelSet,
    windows: list[perplexity.EvaluationWindows],
    poll: Callable[[float], None],
) -> dict[str, Any]:
    """Returns what each language of a parallel set needs for the same content.

    Nats per token compare within a tokenizer, bits per byte within a language; the nats of
    the same texts compare across.
    """
    sums = evaluator.sums(state.params, windows, poll)
    pairs = int(set_.pairs_P.sum())
    scored = [tag for g, tag in enumerate(trainer.config.tags) if len(windows[g].ids_nW)]
    return {
        "pairs": pairs,
        "languages": {
            tag: {"nats_per_pair": sums[tag]["loss"] / pairs}
            | perplexity.compute_language_metrics(sums[tag])
            for tag in scored
        },
    }


def _describe_parallel_scores(name: str, scores: Mapping[str, Any]) -> str:
    parts = [f"{tag} {values['nats_per_pair']:.1f}" for tag, values in scores["languages"].items()]
    return f"parallel {name}, {scores['pairs']:,} pairs: nats a pair  {'   '.join(parts)}"


def _make_evaluation_record(found: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    names = ("loss", "ppl", "bits_per_byte", "language_nats", "loss_own", "leak", "top1")
    return {
        f"eval/{name}/{tag}": found[tag][name]
        for name in names
        for tag in found
        # A language that has all ids for itself, as with a joint vocabulary, leaks nothing.
        if name in found[tag]
    }


def _describe_evaluation(
    done: int, found: Mapping[str, Mapping[str, float]], split: str = "held-out"
) -> str:
    parts = [
        f"{tag} {values['loss']:.3f} (ppl {values['ppl']:,.1f})" for tag, values in found.items()
    ]
    return f"step {done:>6}  {split} loss  {'   '.join(parts)}"


def explain_error(config: Config, error: Exception, mesh: Mapping[str, int]) -> str:
    """Returns an error's message, with what to do about it where that is known.

    Args:
      config: of the run.
      error: what ended it.
      mesh: the sizes of the mesh of its updates.
    """
    if isinstance(error, MemoryError):
        return f"This machine is out of memory: {error or 'it does not say for what'}."
    if isinstance(error, OSError):
        return storage.describe_os_error(error)
    if not hardware.is_out_of_memory(error):
        return str(error) or type(error).__name__
    possible = mesh_shape.list_micro_batch_counts(config.batch_size, mesh)
    more = [k for k in possible if k > config.optimizer.accumulate]
    ways = [f"--accumulate={more[0]} (the same update in smaller parts)"] if more else []
    ways += ["--remat=full (less is kept for the backward pass)"] * (config.model.remat != "full")
    help_ = f"Start it again with {' or '.join(ways)}." if ways else "Use more devices."
    return f"Out of memory: {str(error).splitlines()[0]} {help_}"
