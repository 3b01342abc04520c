"""The training loop: setup above, one short loop below."""

import contextlib
import dataclasses
import time
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from imbalance_jax import distributed, hardware, languages, loading, mirrors, sharding
from imbalance_jax import model as model_lib
from imbalance_jax import step as step_lib
from imbalance_jax.cadence import Cadence
from imbalance_jax.checkpoint import Checkpoints
from imbalance_jax.config import Config, ModelConfig
from imbalance_jax.data import synthetic, views
from imbalance_jax.data.audit import Audit, requested_and_realised
from imbalance_jax.data.corpora import AnySource
from imbalance_jax.data.mixture import ORDER_VERSION
from imbalance_jax.data.parallel import ParallelSet
from imbalance_jax.data.sources import Source
from imbalance_jax.data.stream import HostBatch, Stream, with_ratio
from imbalance_jax.evaluation import alignment as alignment_lib
from imbalance_jax.evaluation import perplexity
from imbalance_jax.progress import Progress
from imbalance_jax.runs import RunDirectory, versions


class Preempted(Exception):
    """The run was asked to stop, and has saved the state after `step`."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step = step


class Failed(Exception):
    """The run ended with an error after its first step began; FAILED.json says which."""


class Clock:
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
class Trainer:
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
    ) -> "Trainer":
        """Builds and checks all parts.

        Args:
          config: of the run. A ratio by temperature is filled in.
          sources: the prepared ones, by name.
          mesh: of the devices.
          parallel: the prepared sets of parallel text, by name.
          training: whether the batch has to suit the devices too.

        Raises:
          ValueError: the config does not suit the text or the devices.
        """
        config = with_ratio(config, sources)
        pieces = {name: source.pieces for name, source in sources.items()}
        vocabulary = languages.vocabulary(config, pieces)
        sharding.check_dimensions(config, mesh, vocabulary.size)
        if training:
            sharding.check_batch(config, mesh)
            distributed.local_rows(config.batch_size)
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

    def source(self, tag: str) -> AnySource:
        return self.sources[languages.source_of(self.config, tag)]

    def held_out(self, tag: str, split: str) -> np.ndarray:
        """Returns a language's ids of a held-out split, its words in its own order."""
        source = self.source(tag)
        if isinstance(source, Source):
            return views.tokens(source, split, self.config.languages[tag])
        tokens = source.tokens(split)
        assert isinstance(tokens, np.ndarray)  # only text to train on is without end
        return tokens

    def fingerprints(self) -> dict[str, str]:
        return {name: source.fingerprint for name, source in self.sources.items()}

    def validation_windows(self) -> list[perplexity.Windows]:
        L, most = self.config.model.L, self.config.evaluation.max_windows
        return [
            perplexity.spread_windows(self.held_out(tag, "validation"), L, most)
            for tag in self.config.tags
        ]

    def test_windows(self) -> list[perplexity.Windows]:
        L, stride = self.config.model.L, self.config.eval_stride
        return [
            perplexity.strided_windows(self.held_out(tag, "test"), L, stride)
            for tag in self.config.tags
        ]

    def entropy(self, tag: str) -> dict[str, Any]:
        """Returns the entropy of a synthetic language's text and its bounds; {} for others."""
        source = self.config.sources[languages.source_of(self.config, tag)]
        if source.kind != "synthetic":
            return {}
        lower, upper = synthetic.bounds(source.synthetic, self.config.model.L)
        found = dataclasses.asdict(synthetic.entropy(source.synthetic))
        return found | {"least_loss": [lower, upper]}

    def parallel_windows(self, set_: ParallelSet) -> list[perplexity.Windows]:
        """Returns the texts of a parallel set for each language; none for those it is not in."""
        found = []
        for tag in self.config.tags:
            name = languages.source_of(self.config, tag)
            inside = name in set_.sources and self.config.languages[tag].words == "as_written"
            ids_PW, weight_PL = set_.windows(
                name if inside else set_.sources[0], self.source(tag).pieces.separator
            )
            rows = slice(None if inside else 0)
            found.append(perplexity.Windows(ids_PW[rows], weight_PL[rows], self.config.model.L))
        return found

    def evaluator(self) -> perplexity.Evaluator:
        each = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        size = self.config.batch_size // self.config.optimizer.accumulate
        size = -(-size // each) * each  # more than the batch where that does not divide
        dtype = np.result_type(*(source.tokens("test") for source in self.sources.values()))
        return perplexity.Evaluator(self.config.model, self.vocabulary, self.mesh, size, dtype)

    def alignment(self, split: str, most: int) -> alignment_lib.Alignment:
        """Returns what measures the languages, on so many sequences of a held-out split."""
        return alignment_lib.Alignment(
            self.config,
            self.sources,
            self.parallel,
            self.vocabulary,
            self.mesh,
            split=split,
            most=most,
        )

    def score(
        self,
        state: step_lib.TrainState,
        poll: Callable[[float], None],
        evaluator: perplexity.Evaluator | None = None,
    ) -> dict[str, Any]:
        """Returns the losses of a state on the test split, as evaluation.json has them.

        Args:
          state: after some updates.
          poll: called now and then with the share done; may raise to stop.
          evaluator: a compiled one, where there is one.
        """
        evaluator = evaluator or self.evaluator()
        found = evaluator(state.params, self.test_windows(), poll)
        parallel = {
            name: _score_parallel(self, evaluator, state, set_, poll)
            for name, set_ in self.parallel.items()
        }
        # A loss to compare with, where the text's entropy is known.
        floors = {tag: self.entropy(tag) for tag in found if self.entropy(tag)}
        return {
            "split": "test",
            "stride": self.config.eval_stride,
            "languages": found,
            "parallel": parallel,
            "entropy": floors,
        }

    def compile_step(self, state: step_lib.TrainState) -> jax.stages.Compiled:
        """Returns the compiled step for states of these shapes and shardings."""
        rows = distributed.local_rows(self.config.batch_size)
        batch = self.place(self.stream.batch(0, rows))
        step = step_lib.jit_step(self.config, self.stream.steps, self.mesh, state)
        return step.lower(state, batch, self.map_GU()).compile()

    def settled_model(self) -> ModelConfig:
        """Returns the model's config with what the devices decide filled in."""
        return step_lib.settled(self.config, self.mesh, self.vocabulary.size).model

    def place(self, batch: HostBatch) -> step_lib.Batch:
        rows = sharding.batch_sharding(self.mesh)
        return step_lib.Batch(
            distributed.place(rows, batch.ids_BW), distributed.place(rows, batch.language_B)
        )

    def map_GU(self) -> jax.Array:
        return jax.device_put(self.vocabulary.map_GU, sharding.replicated(self.mesh))

    def flops_per_step(self) -> float:
        tokens = self.config.batch_size * self.config.model.L
        return tokens * model_lib.flops_per_token(self.config.model, self.vocabulary.size)

    def abstract_state(self) -> step_lib.TrainState:
        return step_lib.abstract_state(self.config, self.vocabulary.size, self.mesh)

    def init_state(self) -> step_lib.TrainState:
        state = step_lib.init_state(self.config, self.vocabulary.size, self.mesh)
        row_V = languages.first_rows(self.config, self.vocabulary)
        if not np.array_equal(row_V, np.arange(len(row_V))):
            params = model_lib.with_rows(state.params, row_V)
            state = dataclasses.replace(state, params=params)
        if not self.config.init_from:
            return state
        params = loading.restore_params(self.config.init_from, state.params)
        return dataclasses.replace(state, params=params)

    def provenance(self) -> dict[str, Any]:
        config, peak = self.config, hardware.peak_flops()
        return versions() | {
            "device": hardware.describe(),
            "mesh": dict(self.mesh.shape),
            "computed": {name: getattr(self.settled_model(), name) for name in _HOW},
            "order_version": ORDER_VERSION,
            "parameters": model_lib.count_parameters(config.model, self.vocabulary.size),
            "vocab_size": self.vocabulary.size,
            "flops_per_token": model_lib.flops_per_token(config.model, self.vocabulary.size),
            "flop_convention": model_lib.FLOP_CONVENTION,
            "peak_flops": dataclasses.asdict(peak),
            "sources": {
                name: {"kind": config.sources[name].kind} | {k: source.about[k] for k in _ABOUT}
                for name, source in self.sources.items()
            },
            "parallel": {name: dict(set_.about) for name, set_ in self.parallel.items()},
        }


_HOW = ("dtype", "attention", "remat", "scan_layers", "loss_chunk")
_ABOUT = ("fingerprint", "vocab_size", "documents", "tokens", "bytes")


class Recorder:
    """Adds up what the steps report, and writes a record of it now and then."""

    def __init__(self, trainer: Trainer, run: RunDirectory, times: Clock, start: int) -> None:
        self._trainer, self._run, self._times = trainer, run, times
        self._audit = Audit(trainer.config, trainer.stream)
        if distributed.is_writer():
            self._audit.resume(run.metrics(), start)
        names = trainer.config.mirrors if distributed.is_writer() else ()
        self._mirrors = mirrors.open_mirrors(names, run, trainer.config)
        self._pending: tuple[int, step_lib.Metrics] | None = None
        self.text = ""  # the newest record in a few words
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
            self._read(*before)

    def flush(self) -> None:
        """Reads the newest step's metrics too."""
        before, self._pending = self._pending, None
        if before:
            self._read(*before)

    def _read(self, done: int, metrics: step_lib.Metrics) -> None:
        values = jax.device_get(metrics)
        if not np.isfinite(values["loss"] + values["grad_norm"]):
            raise FloatingPointError(
                f"The loss of step {done} is {values['loss']}, its gradient norm "
                f"{values['grad_norm']}. Lower config.optimizer.peak_lr, or set "
                "config.optimizer.clip_norm=1."
            )
        if distributed.is_writer():
            self._audit.follow()
        self._loss_G += values["loss_G"]
        self._tokens_G += values["tokens_G"]
        self._steps += 1
        if due(done, self._trainer.config.log_every) or done == self._trainer.stream.steps:
            record = self._record(values)
            self.text = self._describe(record)
            self.write(done, record)
            self._reset()

    def write(self, step: int, record: Mapping[str, Any]) -> None:
        """Writes a record to the run directory and its mirrors, from one process."""
        if distributed.is_writer():
            self._run.log(step, record)
        numbers = {name: value for name, value in record.items() if not isinstance(value, str)}
        for mirror in self._mirrors:
            mirror.log(step, numbers)

    def close(self) -> None:
        for mirror in self._mirrors:
            mirror.close()

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
            "perf/mfu": flops / elapsed / hardware.peak_flops().value,
            "perf/data_wait_fraction": parts["data"] / elapsed,
            **self._audit.metrics(),
            **self._times.metrics(),
        }

    def _describe(self, record: Mapping[str, float]) -> str:
        losses = [
            f"{tag} {record[f'train/loss/{tag}']:.3f}"
            for tag in self._trainer.config.tags
            if f"train/loss/{tag}" in record
        ]
        speed, mfu = record["perf/tokens_per_second"], record["perf/mfu"]
        return f"loss {'  '.join(losses)}   {speed:,.0f} tokens/s   MFU {mfu:.0%}"


def due(done: int, every: int) -> bool:
    """Whether something that happens every so many steps happens after this one."""
    return every > 0 and done % every == 0


def train(
    trainer: Trainer, run: RunDirectory, times: Clock, interrupts: distributed.Interrupts
) -> None:
    """Trains a run to its end, from its newest checkpoint if it has one.

    Raises:
      ValueError: the state does not fit the config or the device; nothing is written.
      Preempted: it was asked to stop.
      Failed: an error after the first step began.
    """
    if distributed.is_writer():
        print("Compiling", flush=True)
    with times("compile"):
        update, evaluator = compile_programs(trainer)
    state = None if run.checkpoints.exists() else trainer.init_state()
    if distributed.is_writer():
        run.claim(trainer.config)
    checkpoints = Checkpoints(run.checkpoints, keep=trainer.config.checkpoint.keep)
    try:
        saved = checkpoints.steps()
        start = saved[-1] if saved else 0
        if start:
            state = checkpoints.restore(start, trainer.abstract_state())
            print(f"Going on from step {start:,}", flush=True)
        state = state or trainer.init_state()
        _begin(trainer, run, times, start)
        _loop(trainer, run, times, interrupts, checkpoints, update, evaluator, state, start)
    finally:
        checkpoints.close()


def compile_programs(trainer: Trainer) -> tuple[jax.stages.Compiled, perplexity.Evaluator]:
    state = trainer.abstract_state()
    evaluator = trainer.evaluator()
    try:
        evaluator.compile(state.params, trainer.config.model.L)
        return trainer.compile_step(state), evaluator
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(_advice(trainer.config, error)) from error


def _loop(
    trainer: Trainer,
    run: RunDirectory,
    times: Clock,
    interrupts: distributed.Interrupts,
    checkpoints: Checkpoints,
    update: jax.stages.Compiled,
    evaluator: perplexity.Evaluator,
    state: step_lib.TrainState,
    start: int,
) -> None:
    config, stream, steps = trainer.config, trainer.stream, trainer.stream.steps
    rows, map_GU = distributed.local_rows(config.batch_size), trainer.map_GU()
    validation = trainer.validation_windows()
    recorder = Recorder(trainer, run, times, start)
    alignment, cadence = _alignment(trainer, run)
    done = start

    def poll() -> None:
        if interrupts.requested:
            raise Preempted(done)

    def evaluate() -> None:
        with times("evaluate"):
            recorder.flush()
            found = evaluator(state.params, validation, lambda share: poll())
        progress.line(_describe_evaluation(done, found))
        recorder.write(done, _evaluation_record(found) | times.metrics())

    def align() -> None:
        assert alignment is not None
        if not alignment.programs.compile_seconds:
            progress.line("Compiling what measures alignment")
        with times("align"):
            recorder.flush()
            before, began = alignment.programs.compile_seconds, time.monotonic()
            found = alignment.watch(state, stream, lambda share: poll())
            compiling = alignment.programs.compile_seconds - before
            cost = time.monotonic() - began - compiling
        times.shift("align", "compile", compiling)
        news = cadence.settle(
            done,
            cost=cost,
            spent=times.seconds["align"],
            elapsed=times.running,
            seconds_per_step=times.training / done,
        )
        if news:
            progress.line(cadence.describe(cost))
        share = times.seconds["align"] / times.running
        shares = {"align/every": cadence.every, "align/share": round(share, 5)}
        recorder.write(done, found | shares | times.metrics())

    def save() -> None:
        with times("checkpoint"):
            recorder.flush()
            checkpoints.save(state)
        if distributed.is_writer():
            _write_mixture(trainer, run)

    def score_test(share: float) -> None:
        progress.show(share)
        poll()

    try:
        with Progress("Training", steps, start=start) as progress:
            # A run that was stopped during an evaluation makes up for it.
            missed = start == 0 or due(start, config.evaluation.every)
            if missed and not run.has(start, "eval/"):
                evaluate()
            if start and cadence.due(start) and not run.has(start, "align/"):
                align()
            for line in (*alignment.notes, *alignment.skipped.values()) if alignment else ():
                progress.line(line)
            for done in range(start + 1, steps + 1):
                with times("data"):
                    batch = trainer.place(stream.batch(done - 1, rows))
                state, metrics = update(state, batch, map_GU)
                recorder.note(done, metrics)
                progress.show(done, recorder.text)
                if due(done, config.evaluation.every) or done == steps:
                    evaluate()
                if cadence.due(done):
                    align()
                if due(done, config.checkpoint.every) or done == steps:
                    save()
                poll()
        with Progress("Scoring the test split", 1) as progress, times("evaluate"):
            results = trainer.score(state, score_test, evaluator)
            progress.line(_describe_evaluation(done, results["languages"], "test"))
            for name, scores in results["parallel"].items():
                progress.line(_describe_parallel(name, scores))
    except Preempted:
        save()
        checkpoints.wait()
        raise
    except Exception as error:
        checkpoints.wait()
        if distributed.is_writer():
            run.fail(done, error)
        raise Failed(_advice(config, error)) from error
    finally:
        recorder.close()
    with times("checkpoint"):
        checkpoints.wait()
    if distributed.is_writer():
        _finish(trainer, run, times, results)


def _alignment(
    trainer: Trainer, run: RunDirectory
) -> tuple[alignment_lib.Alignment | None, Cadence]:
    """Returns what measures alignment while the run trains, and how often."""
    config = trainer.config.evaluation.alignment
    every = config.every if len(trainer.config.tags) > 1 else 0
    chosen = run.newest("align/every").get("align/every")
    cadence = Cadence(every, config.budget, trainer.stream.steps, chosen)
    return (trainer.alignment("validation", config.pairs) if every else None), cadence


def _begin(trainer: Trainer, run: RunDirectory, times: Clock, start: int) -> None:
    """Writes what a run records of itself before its first step."""
    if not distributed.is_writer():
        return
    run.truncate_metrics(start)
    times.go_on(run.newest("time/"))
    run.write_json("provenance.json", trainer.provenance())
    run.write_bytes("vocabulary.npz", trainer.vocabulary.to_bytes())
    for name, source in trainer.sources.items():
        run.write_bytes(f"tokenizer-{name}.model", source.model)


def _write_mixture(trainer: Trainer, run: RunDirectory) -> None:
    rows = requested_and_realised(trainer.config, trainer.stream, list(run.metrics()))
    if rows:
        run.write_csv("mixture.csv", rows)


def _finish(trainer: Trainer, run: RunDirectory, times: Clock, results: Mapping[str, Any]) -> None:
    """Writes what a run leaves behind at its end."""
    step = trainer.stream.steps
    run.write_json("evaluation.json", {"step": step, **results})
    run.log(step, times.metrics())
    run.finish()


def _score_parallel(
    trainer: Trainer,
    evaluator: perplexity.Evaluator,
    state: step_lib.TrainState,
    set_: ParallelSet,
    poll: Callable[[float], None],
) -> dict[str, Any]:
    """Returns what each language of a parallel set needs for the same content.

    Nats per token compare within a tokenizer, bits per byte within a language; the nats of
    the same texts compare across.
    """
    windows = trainer.parallel_windows(set_)
    sums = evaluator.sums(state.params, windows, poll)
    pairs = int(set_.pairs_P.sum())
    scored = [tag for g, tag in enumerate(trainer.config.tags) if len(windows[g].ids_nW)]
    return {
        "pairs": pairs,
        "languages": {
            tag: {"nats_per_pair": sums[tag]["loss"] / pairs} | perplexity.summarise(sums[tag])
            for tag in scored
        },
    }


def _describe_parallel(name: str, scores: Mapping[str, Any]) -> str:
    parts = [f"{tag} {values['nats_per_pair']:.1f}" for tag, values in scores["languages"].items()]
    return f"parallel {name}, {scores['pairs']:,} pairs: nats a pair  {'   '.join(parts)}"


def _evaluation_record(found: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
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


def _advice(config: Config, error: Exception) -> str:
    """Returns an error's message, with what to do about it where that is known."""
    if "RESOURCE_EXHAUSTED" in str(error):
        more = config.optimizer.accumulate * 2
        return (
            f"Out of memory: {str(error).splitlines()[0]} Set config.optimizer.accumulate={more}, "
            "which computes the same update in smaller parts, or config.model.remat='full'."
        )
    return str(error)
