"""Everything of a run that is fixed before its first step."""

import dataclasses
import functools
import types
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from imbalance_jax.compute import conditions, hardware, sharding
from imbalance_jax.compute import hosts as distributed
from imbalance_jax.compute import model as model_lib
from imbalance_jax.compute import step as step_lib
from imbalance_jax.compute.context import draw_dropout_keys
from imbalance_jax.config import Config, ModelConfig, costs
from imbalance_jax.data import languages, prepare
from imbalance_jax.data import parallel as parallel_lib
from imbalance_jax.data import word_order as views
from imbalance_jax.data.minimal_pairs import FIELD, PairSet, read_run_pairs
from imbalance_jax.data.order.audit import check_begun_text
from imbalance_jax.data.order.corpora import AnySource
from imbalance_jax.data.order.ratio import resolve_ratio
from imbalance_jax.data.order.stream import Stream
from imbalance_jax.data.parallel import ParallelSet
from imbalance_jax.data.text import synthetic
from imbalance_jax.evaluation import alignment as alignment_lib
from imbalance_jax.evaluation import perplexity
from imbalance_jax.evaluation.minimal_pairs import make_pair_windows
from imbalance_jax.evaluation.programs import MeasurementPrograms
from imbalance_jax.runs.code_versions import get_code_versions
from imbalance_jax.runs.run_directory import RunDirectory
from imbalance_jax.training import init_from
from imbalance_jax.training.loading import read_vocabulary


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
          config: of the run. A ratio that follows from the texts is filled in.
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
                source.tokens(split)  # text that is damaged is refused before anything is written
                if source.count(split) < 2:
                    caps = [
                        cap
                        for cap in ("max_documents", "max_tokens")
                        if getattr(config.sources[name], cap)
                    ]
                    raised = "".join(f", raise config.sources.{name}.{cap}" for cap in caps)
                    raise ValueError(
                        f"config.sources.{name}: no document is held out for {split} (1 % of the "
                        f"{source.about['documents']['train']} documents are, by a hash of their "
                        f"id). Give config.sources.{name}.{split} a file{raised}, or use more "
                        "documents."
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
    ) -> "Experiment":
        """Builds and checks all parts of a run, whose text is prepared where it is not yet.

        Process 0 prepares it, and the others find it. The batch need not suit the devices: a
        `Pack` checks that, and an evaluation has batches of its own.

        Args:
          text: source -> the fingerprint of its text, where the run's study has recorded it.

        Raises:
          ValueError: as `make`; or the run was begun with other text, or its study.
        """

        def build() -> Experiment:
            run.check_format()
            sources = prepare.prepare_run_sources(config, {**text, **run.texts()})
            prepare.check_recorded_texts(sources, text, config.data_dir)
            sets = parallel_lib.prepare_all_parallel_sets(config, sources, run.texts("parallel"))
            begun = run.begun()
            experiment = cls.make(config, sources, mesh, sets, training=False, begun=begun)
            line = check_begun_text(
                run, experiment.config, experiment.stream, experiment.fingerprints()
            )
            if line and distributed.is_writer():
                print(line, flush=True)
            check_run_vocabulary(run, experiment.vocabulary)
            if config.init_from and not run.checkpoints.exists():
                init_from.check_vocabulary(config, experiment.vocabulary, experiment._models())
            return experiment

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
        """Returns the entropy of a synthetic language's text and its bounds; {} for others.

        They are those of its own order of words; shuffled text has no entropy of a sentence.
        """
        source = self.config.sources[self.config.source_of(tag)]
        if source.kind != "synthetic":
            return {}
        words = self.config.languages[tag].words
        lower, upper = synthetic.compute_loss_bounds(source.synthetic, self.config.model.L, words)
        entropy = dataclasses.asdict(synthetic.compute_language_entropy(source.synthetic, words))
        known = {name: value for name, value in entropy.items() if value is not None}
        return known | {"least_loss": [lower, upper]}

    def parallel_windows(self, set_: ParallelSet) -> list[perplexity.EvaluationWindows]:
        """Returns the texts of a parallel set for each language; none for those it is not in."""
        windows = []
        for tag in self.config.tags:
            name = self.config.source_of(tag)
            inside = name in set_.sources and self.config.languages[tag].words == "as_written"
            side = name if inside else set_.sources[0]
            ids_PW, weight_PL = set_.windows(side, self.source(tag).pieces.separator)
            rows = slice(None if inside else 0)
            windows.append(
                perplexity.EvaluationWindows(
                    ids_PW[rows],
                    weight_PL[rows],
                    self.config.model.L,
                    bytes_n=set_.bytes[side][rows],
                )
            )
        return windows

    @functools.cached_property
    def minimal_pairs(self) -> dict[str, PairSet]:
        """The pairs that the final test scores, of each language that has any.

        Raises:
          ValueError: there are none where some are asked for.
        """
        asked = self.config.evaluation.minimal_pairs
        if not asked:
            return {}
        return read_run_pairs(self.config, self.sources, asked, FIELD)

    def pair_windows(self, sets: Mapping[str, PairSet]) -> list[perplexity.EvaluationWindows]:
        """Returns the sentences of minimal pairs for each language; none for those without any."""
        return [
            make_pair_windows(sets.get(tag), self.source(tag).pieces.separator, self.config.model.L)
            for tag in self.config.tags
        ]

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
        """Returns the evaluator of alignment, on sequences of a held-out split.

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

    def compile_step(self, state: step_lib.TrainState) -> jax.stages.Compiled:
        """Returns the compiled step for states of these shapes and shardings."""
        step = step_lib.jit_step(self.config, self.stream.steps, self.mesh, state)
        return step.lower(state, self.batch(0), self.map_GU()).compile()

    def settled_model(self) -> ModelConfig:
        """Replaces each "auto" of the model's config by its value for the mesh."""
        return self._settled_on(self.mesh)

    def _settled_on(self, mesh: jax.sharding.Mesh) -> ModelConfig:
        return step_lib.resolve_auto_in_config(self.config, mesh, self.vocabulary.size).model

    @functools.cached_property
    def _rows(self) -> distributed.HostRows:
        rows = sharding.make_batch_sharding(self.mesh)
        return distributed.HostRows(rows, self.config.batch_size)

    def batch(self, step: int) -> step_lib.Batch:
        """Returns the batch of a step on the devices; this process reads its rows of it."""
        return jax.tree.map(self._rows.place, self.host_batch(step, self._rows.index_B))

    def host_batch(self, step: int, rows: np.ndarray | slice) -> step_lib.Batch:
        """Returns some rows of the batch of a step, on the host."""
        config, local = self.config, self.stream.batch(step, rows)
        batch = step_lib.label_windows(
            config.model, self.vocabulary, local.ids_BW, local.language_B
        )
        key_B = None
        if config.model.dropout:
            key_B = draw_dropout_keys(config.seed, step, config.batch_size)[rows]
        weight_B = step_lib.weigh_losses(config, local.language_B, self.stream.steps)
        return dataclasses.replace(batch, weight_B=weight_B, key_B=key_B)

    def map_GU(self) -> jax.Array:
        return distributed.place_whole_arrays(
            self.vocabulary.map_GU, sharding.make_replicated_sharding(self.mesh)
        )

    def count_parameters(self) -> int:
        return model_lib.count_parameters(
            self.config.model, self.vocabulary.size, len(self.config.languages)
        )

    def flops_per_step(self) -> float:
        tokens = self.config.batch_size * self.config.model.L
        return tokens * costs.compute_flops_per_token(self.config.model, self.vocabulary.size)

    def abstract_state(self) -> step_lib.TrainState:
        return step_lib.make_abstract_state(self.config, self.vocabulary.size, self.mesh)

    def init_state(self, make: jax.stages.Wrapped | None = None) -> step_lib.TrainState:
        """Returns the state before the first update.

        Args:
          make: `step.jit_init_state` of a run of the same shapes, which is compiled already.
        """
        make = make or step_lib.jit_init_state(self.config, self.vocabulary.size, self.mesh)
        state = make(jax.random.key(self.config.seed))
        row_V = languages.find_initial_rows(self.config, self.vocabulary)
        if not np.array_equal(row_V, np.arange(len(row_V))):
            params = model_lib.gather_embedding_rows(state.params, row_V)
            state = dataclasses.replace(state, params=params)
        if not self.config.init_from:
            return state
        params = init_from.restore_params(
            self.config, self.mesh, self.vocabulary, self._models(), state.params
        )
        return dataclasses.replace(state, params=params)

    def provenance(self, mesh: jax.sharding.Mesh | None = None) -> dict[str, Any]:
        """Returns the content of provenance.json.

        Args:
          mesh: that of the updates; by default the experiment's.
        """
        mesh = mesh or self.mesh
        config, model = self.config, self._settled_on(mesh)
        peak = hardware.get_peak_flops(model.dtype)
        computed = {name: getattr(model, name) for name in _HOW}
        versions = get_code_versions()
        return versions | {
            "device": hardware.describe_devices(),
            "mesh": dict(mesh.shape),
            "computed": computed,
            "conditions": conditions.record_conditions(
                versions, mesh.shape, computed, config.optimizer.accumulate
            ),
            "order_version": self.stream.order_version,
            "parameters": self.count_parameters(),
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


_HOW = ("dtype", "attention", "remat", "scan_layers", "loss_chunk", "loss_tile")


_ABOUT = (
    *("format", "fingerprint", "text", "tokenizer", "vocab_size"),
    *("documents", "tokens", "bytes", "lost_bytes", "left_out", "duplicates"),
)


def check_run_vocabulary(run: RunDirectory, vocabulary: languages.Vocabulary) -> None:
    """Raises ValueError if a run that was begun would go on with other ids of its languages."""
    file = run.path / "vocabulary.npz"
    if not file.exists():
        return
    before = read_vocabulary(run, vocabulary.tags)
    if not np.array_equal(before.map_GU, vocabulary.map_GU):
        raise ValueError(
            f"{run} was started by a version that gave its languages other ids of the model (a "
            f"padding piece was shared only where its id is 0): {file} is not what this version "
            "makes. Use another --workdir, or go on with the version it was started with."
        )
