"""All that is measured of how a model treats its languages, put together for a run.

`AlignmentEvaluator.watch` returns what a run logs as it trains, on the validation split.
`AlignmentEvaluator.parts` returns what `python -m imbalance_jax.evaluate` writes down, part by
part, on the test split. The measures are in embeddings.py, hidden.py, gradients.py, leak_probe.py
and after_text.py; this file makes their inputs. All of it is computed in fp32.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from imbalance_jax.compute import model as model_lib
from imbalance_jax.compute.context import Context, make_context
from imbalance_jax.compute.step import TrainState, label_windows, weigh_losses
from imbalance_jax.config import Config
from imbalance_jax.data import languages as languages_lib
from imbalance_jax.data import parallel
from imbalance_jax.data import word_order as views
from imbalance_jax.data.order.corpora import AnySource
from imbalance_jax.data.order.stream import Stream
from imbalance_jax.data.parallel import ParallelSet
from imbalance_jax.evaluation import after_text, embeddings, gradients, hidden, leak_probe, updates
from imbalance_jax.evaluation.embeddings import PiecePairs
from imbalance_jax.evaluation.hidden import SequencePairs
from imbalance_jax.evaluation.perplexity import cut_spread_windows
from imbalance_jax.evaluation.piece_counts import PieceCounts, count_pieces
from imbalance_jax.evaluation.programs import MeasurementPrograms, Measuring, Poll

# Pieces among which a counterpart is looked for while training; afterwards it is all.
_WATCHED_CANDIDATES = 1024
# Pairs of sequences whose gradients are taken while training: each costs a training step's.
_WATCHED_GRADIENTS = 16
# Rows of a parallel set that suggest which pieces mean the same.
_ROWS = 4096
# What the states of the sequences that are worked on at once may take.
_STATE_BYTES = {"cpu": 1 << 28}
_STATE_BYTES_ELSEWHERE = 1 << 31


@dataclasses.dataclass(frozen=True)
class LanguagePair:
    """Two languages of a run, and what says the same in both."""

    name: str  # such as en1-en2
    languages: tuple[int, int]  # by their places in config.tags
    set: str  # in config.parallel; "" for two languages of one source
    sequences: SequencePairs
    bases: tuple[np.ndarray, np.ndarray]  # base ids of pieces that mean the same


@dataclasses.dataclass(frozen=True)
class AlignmentPart:
    """One part of what is written down of a trained run."""

    title: str
    pair: LanguagePair | None  # of which it is said; None is all languages
    names: tuple[str, ...]  # of its results
    measure: Callable[[Poll], dict[str, Any]]  # returns them, ready for JSON


class AlignmentEvaluator:
    """Measures the languages of a run."""

    def __init__(
        self,
        config: Config,
        sources: Mapping[str, AnySource],
        sets: Mapping[str, ParallelSet],
        vocabulary: languages_lib.Vocabulary,
        mesh: Mesh,
        *,
        split: str,
        most: int,
        programs: MeasurementPrograms | None = None,
    ) -> None:
        """Args:
        config: of the run.
        sources: the prepared ones, by name.
        sets: the prepared sets of parallel text, by name.
        vocabulary: of the model.
        mesh: of the devices.
        split: of the text of one source, validation or test.
        most: sequences that each pair of languages is compared on.
        programs: those of a run of the same shapes, so that nothing compiles again.
        """
        self._config, self._sources, self._sets = config, sources, sets
        self._vocabulary, self._split, self._most = vocabulary, split, most
        model, platform = config.model, mesh.devices.flat[0].platform
        # One program for all layers: these run seldom, and compile every time. Fused attention
        # may know no fp32.
        self.model = dataclasses.replace(
            model,
            dtype="float32",
            scan_layers=True,
            remat="none",
            attention="blockwise" if platform == "cpu" else "einsum",
        )
        each = 4 * 3 * (model.N + 2) * model.L * model.D  # three sequences are compared at once
        limit = _STATE_BYTES.get(platform, _STATE_BYTES_ELSEWHERE)
        micro = config.batch_size // config.optimizer.accumulate
        self._together = max(1, min(micro, limit // each))
        self.programs = programs or MeasurementPrograms(mesh, self._together)
        self.skipped: dict[str, str] = {}  # pair -> why nothing is measured of it
        self.notes: list[str] = []
        if len(config.tags) == 1:
            self.notes.append("The run has one language, and so no pair of languages to compare.")
        asked = config.evaluation.alignment.languages or config.tags
        tags = [tag for tag in config.tags if tag in asked]
        found = [self._pair(a, b) for a, b in itertools.combinations(tags, 2)]
        self.pairs = [pair for pair in found if pair]

    def _pair(self, a: str, b: str) -> LanguagePair | None:
        name, config = f"{a}-{b}", self._config
        aligned = parallel.find_aligned_sequences(
            config, self._sources, self._sets, a, b, self._most, self._split
        )
        first, second = (config.source_of(tag) for tag in (a, b))
        if aligned is None:
            self.skipped[name] = self._why_skipped(a, b, first, second)
            return None
        count = len(aligned.lengths[0])
        if count < self._most:
            where = (
                f"config.parallel.{aligned.set}"
                if aligned.set
                else f"the {self._split} split of config.sources.{first}"
            )
            self.notes.append(
                f"{name} is compared on {count} sequences, not {self._most}: "
                f"{where} has no more of them."
            )
        g, h = (self._vocabulary.index(tag) for tag in (a, b))
        if first == second:
            size = self._sources[first].pieces.size
            bases = (np.arange(size), np.arange(size))
        else:
            bases = embeddings.suggest_piece_pairs(*self._occurrences(aligned.set, first, second))
        return LanguagePair(name, (g, h), aligned.set, self._sequences(aligned, g, h), bases)

    def _why_skipped(self, a: str, b: str, first: str, second: str) -> str:
        if {self._config.languages[tag].words for tag in (a, b)} != {"as_written"}:
            return (
                f"{a}-{b} is not measured: config.parallel has texts as they were written, and "
                f"one of these has its words in another order (config.languages)."
            )
        return (
            f"{a}-{b} is not measured: nothing says the same in both. Give config.parallel a set "
            f"with sources=({first!r}, {second!r}) and a path."
        )

    def _sequences(self, aligned: parallel.AlignedSequences, g: int, h: int) -> SequencePairs:
        ids, text, own = [], [], []
        own_GV = self._vocabulary.own_GV
        shared_V = own_GV[g] & own_GV[h]
        for row, ids_PL, length_P in zip((g, h), aligned.ids, aligned.lengths, strict=True):
            text_PL = np.arange(ids_PL.shape[1]) < length_P[:, None]
            model_PL = np.where(text_PL, self._vocabulary.map_GU[row, ids_PL.astype(int)], 0)
            ids.append(model_PL.astype(np.int32))
            text.append(text_PL)
            own.append(text_PL & ~shared_V[model_PL])
        return SequencePairs(
            (ids[0], ids[1]),
            (text[0], text[1]),
            (own[0], own[1]),
            aligned.positions,
            aligned.prefix,
            (self._context(g), self._context(h)),
        )

    def _context(self, *languages: int) -> Context:
        return make_context(self._config.model, self._vocabulary, *languages)

    def _occurrences(self, name: str, first: str, second: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns which pieces, (P, U) bool each, the rows of a parallel set hold."""
        found, set_ = [], self._sets[name]
        lengths = {source: np.asarray(set_.lengths[source])[:_ROWS] for source in (first, second)}
        for source in (first, second):
            pieces = self._sources[source].pieces
            occurs = np.zeros((len(lengths[source]), pieces.size), bool)
            row_n, place_n = np.nonzero(np.arange(set_.L) < lengths[source][:, None])
            occurs[row_n, set_.ids[source][row_n, place_n]] = True
            occurs[:, list(pieces.special_ids)] = False
            found.append(occurs)
        return found[0], found[1]

    # What a run logs.

    def watch(self, state: TrainState, stream: Stream, poll: Poll) -> dict[str, float]:
        """Returns the metrics of a state, by their names in metrics.jsonl.

        Args:
          state: after some updates.
          stream: whose next batch shows what each language has in the gradient.
          poll: called now and then with the share done; may raise to stop.
        """
        params = state.params
        found: dict[str, float] = {}
        counts = self._count_pieces(state)
        for number, pair in enumerate(self.pairs):

            def polled(share: float, begun: int = number) -> None:
                poll((begun + share) / len(self.pairs))

            name = pair.name
            for where, table_VD in self._tables(params).items():
                rows = self._embedding(pair, table_VD, counts, _WATCHED_CANDIDATES)
                for metric, value in _select_table_metrics(where, rows).items():
                    found[f"align/{metric}/{name}"] = value
            measuring = Measuring(self.programs, params, self.model, polled)
            states = hidden.measure_hidden_states(
                measuring, pair.sequences, match=not pair.sequences.aligned, rotate=False
            )
            if "sentences" in states:
                found[f"align/retrieval_chance/{name}"] = states["sentences"]["chance"]
            for metric, values in _select_state_metrics(states).items():
                for layer, value in enumerate(values):
                    found[f"align/{metric}/{name}/{layer}"] = value
            pulls = gradients.measure_gradients(
                measuring,
                _take_first_rows(pair.sequences.ids, _WATCHED_GRADIENTS),
                _take_first_rows(pair.sequences.text, _WATCHED_GRADIENTS),
                None,
                pair.sequences.contexts,
            )
            if "mean" in pulls:
                found[f"align/gradient/{name}"] = pulls["mean"]
            if pulls.get("corrected_mean") is not None:
                found[f"align/gradient_corrected/{name}"] = pulls["corrected_mean"]
        for metric, by_tag in self._optimizer(state, stream).items():
            found |= {f"align/{metric}/{tag}": value for tag, value in by_tag.items()}
        return {name: value for name, value in found.items() if np.isfinite(value)}

    # What is written down of a trained run.

    def parts(self, state: TrainState, stream: Stream) -> list["AlignmentPart"]:
        """Returns what there is to measure of a state, in parts that do not need each other.

        Args:
          state: after some updates.
          stream: of the run.
        """
        config, params, steps = self._config, state.params, int(state.step)
        piece_counts = self._count_pieces(state)
        tables = (self._vocabulary.map_GU, self._vocabulary.own_GV)
        all_languages = range(len(config.tags))

        def measuring(poll: Poll) -> Measuring:
            return Measuring(self.programs, params, self.model, poll)

        @functools.cache
        def divisor() -> model_lib.Params | None:
            return updates.compute_adam_divisor(self.programs, state.opt_state, config.optimizer)

        def embed(pair: LanguagePair, poll: Poll) -> dict[str, Any]:
            found = {}
            for where, table_VD in self._tables(params).items():
                found[where] = self._embedding(pair, table_VD, piece_counts, 0)
                poll(0.5)
            return found

        def compare_states(pair: LanguagePair, poll: Poll) -> dict[str, Any]:
            return {
                "hidden": hidden.measure_hidden_states(
                    measuring(poll), pair.sequences, match=True, rotate=True
                )
            }

        def compare_gradients(pair: LanguagePair, poll: Poll) -> dict[str, Any]:
            of = pair.sequences
            measured = gradients.measure_gradients(
                measuring(poll), of.ids, of.text, divisor(), of.contexts
            )
            return {"gradients": measured}

        def put_prefixes(pair: LanguagePair, poll: Poll) -> dict[str, Any]:
            losses = {
                f"{config.tags[g]} before {config.tags[h]}": after_text.measure_prefix_losses(
                    measuring(poll), _swap_languages(pair.sequences, back), self._context(g, h)
                )
                for g, h, back in _list_directions(pair)
            }
            return {"prefix": losses}

        def compare_seen(pair: LanguagePair, poll: Poll) -> dict[str, Any]:
            return {"seen": self._seen(measuring(poll), pair, stream, steps)}

        def find_leak(poll: Poll) -> dict[str, Any]:
            counts = [piece_counts.own_GU[g] for g in range(len(config.tags))]
            leaks = leak_probe.measure_leak(
                measuring(poll), tables, self._windows, counts, self._context(*all_languages)
            )
            return {"leak": dict(zip(config.tags, leaks, strict=True))}

        def probe_states(poll: Poll) -> dict[str, Any]:
            if len(config.tags) == 1:
                return {"probe": {}}
            least = min(map(len, self._windows))
            equal = [ids_nW[:least] for ids_nW in self._windows]
            found = leak_probe.probe_languages(
                measuring(poll), tables[0], equal, self._context(*all_languages)
            )
            return {"probe": found}

        def share_updates(poll: Poll) -> dict[str, Any]:
            return {"optimizer": self._optimizer(state, stream)}

        of_pairs: dict[
            str, tuple[tuple[str, ...], Callable[[LanguagePair, Poll], dict[str, Any]]]
        ] = {
            "embeddings": (tuple(self._tables(params)), embed),
            "hidden states": (("hidden",), compare_states),
            "gradients": (("gradients",), compare_gradients),
            "prefixes": (("prefix",), put_prefixes),
            "seen text": (("seen",), compare_seen),
        }
        return [
            *(
                AlignmentPart(
                    f"{what} of {pair.name}", pair, names, functools.partial(measure, pair)
                )
                for pair in self.pairs
                for what, (names, measure) in of_pairs.items()
            ),
            AlignmentPart("leak", None, ("leak",), find_leak),
            AlignmentPart("probe", None, ("probe",), probe_states),
            AlignmentPart("optimizer", None, ("optimizer",), share_updates),
        ]

    def describe_pair(self, pair: LanguagePair) -> dict[str, Any]:
        """Returns what says of a pair how it is compared, ready for JSON."""
        described = {
            "languages": [self._config.tags[g] for g in pair.languages],
            "origin": pair.set or "clones",
            "positions_correspond": pair.sequences.aligned,
            "sequences": len(pair.sequences.ids[0]),
        }
        # Of windows that begin where documents do; earlier versions had synthetic ones elsewhere,
        # and results of both kinds are not to stand side by side.
        if pair.sequences.prefix:
            described["prefix_ids"] = pair.sequences.prefix
        return described

    def describe_windows(self) -> dict[str, int]:
        """Returns how many windows of each language show its leak and are probed."""
        counts = map(len, self._windows)
        return dict(zip(self._config.tags, counts, strict=True))

    def _seen(
        self, measuring: Measuring, pair: LanguagePair, stream: Stream, steps: int
    ) -> dict[str, Any]:
        tags, losses = self._config.tags, {}
        for g, h, _ in _list_directions(pair):
            maps = (self._vocabulary.map_GU[g], self._vocabulary.map_GU[h])
            try:
                losses[f"{tags[g]} seen, {tags[h]} scored"] = after_text.measure_seen_losses(
                    measuring,
                    stream,
                    maps,
                    (g, h),
                    steps=min(steps, stream.steps),
                    most=self._most,
                    contexts=(self._context(g), self._context(h)),
                )
            except after_text.MissingWindows as reason:
                losses[f"{tags[g]} seen, {tags[h]} scored"] = {"skipped": str(reason)}
        return losses

    @functools.cached_property
    def _windows(self) -> list[np.ndarray]:
        """Windows (n, W) of base ids of each language's held-out text."""
        found = []
        for tag in self._config.tags:
            source = self._sources[self._config.source_of(tag)]
            tokens = views.load_held_out_tokens(source, self._split, self._config.languages[tag])
            windows = cut_spread_windows(tokens, self._config.model.L, self._most)
            found.append(windows.ids_nW[windows.weight_nL.all(axis=1)])
        return found

    def _tables(self, params: model_lib.Params) -> dict[str, jax.Array]:
        tables = {
            "embed_in": params["embed_VD"],
            "embed_out": model_lib.get_output_embeddings(params, self._config.model),
        }
        return tables if "head_VD" in params else {"embed_in": tables["embed_in"]}

    def _embedding(
        self, pair: LanguagePair, table_VD: jax.Array, counts: PieceCounts, candidates: int
    ) -> dict[str, Any]:
        g, h = pair.languages
        map_GU, own_GV = self._vocabulary.map_GU, self._vocabulary.own_GV
        ids = (map_GU[g, pair.bases[0]], map_GU[h, pair.bases[1]])
        source_count_n, own_count_n = (
            np.minimum(count_GU[g, pair.bases[0]], count_GU[h, pair.bases[1]])
            for count_GU in (counts.source_GU, counts.own_GU)
        )
        shared_V = own_GV[g] & own_GV[h]
        others = []
        for row, mine in zip((g, h), ids, strict=True):
            count_U = counts.source_GU[row]
            trained = np.flatnonzero(count_U >= 1)
            trained = trained[np.argsort(-count_U[trained], kind="stable")]
            there = map_GU[row, trained]
            others.append(there[~np.isin(there, mine) & ~shared_V[there]])
        origin = "suggested" if pair.set else "clones"
        pieces = PiecePairs(ids, source_count_n, origin, (others[0], others[1]), own_count_n)
        blocks = (np.flatnonzero(own_GV[g]), np.flatnonzero(own_GV[h]))
        return embeddings.measure_embeddings(
            self.programs, table_VD, pieces, blocks, candidates=candidates
        )

    def _count_pieces(self, state: TrainState) -> PieceCounts:
        sequences_G = np.asarray(jax.device_get(state.sequences_G))
        return count_pieces(self._config, self._sources, self._vocabulary.map_GU, sequences_G)

    def _optimizer(self, state: TrainState, stream: Stream) -> dict[str, dict[str, float]]:
        """Returns what each language has in the tables and in the gradient of a batch."""
        tags = self._config.tags
        # As many rows on any number of devices, so that they are the same ones.
        host = stream.batch(int(state.step) % stream.steps, slice(0, self._together))
        batch = dataclasses.replace(
            label_windows(self._config.model, self._vocabulary, host.ids_BW, host.language_B),
            weight_B=weigh_losses(self._config, host.language_B, stream.steps),
        )
        measuring = Measuring(self.programs, state.params, self.model)
        shares: dict[str, Any] = updates.measure_language_shares(
            measuring, batch, self._vocabulary.map_GU
        )
        names = {"embed_in": "embed_norm", "embed_out": "head_norm"}
        for where, table_VD in self._tables(state.params).items():
            norm_G = self.programs.run(
                embeddings.compute_language_norms, table_VD, self._vocabulary.own_GV
            )
            shares[names[where]] = jax.device_get(norm_G).tolist()
        return {name: dict(zip(tags, values, strict=True)) for name, values in shares.items()}


def _take_first_rows(
    sides: tuple[np.ndarray, np.ndarray], count: int
) -> tuple[np.ndarray, np.ndarray]:
    return sides[0][:count], sides[1][:count]


def _list_directions(pair: LanguagePair) -> list[tuple[int, int, bool]]:
    g, h = pair.languages
    return [(g, h, False), (h, g, True)]


def _swap_languages(sequences: SequencePairs, back: bool) -> SequencePairs:
    """Returns the sequences with the second language first."""
    if not back:
        return sequences
    sides = ("ids", "text", "own", "contexts")
    turned = {name: getattr(sequences, name)[::-1] for name in sides}
    return dataclasses.replace(sequences, **turned)


def _select_table_metrics(where: str, rows: Mapping[str, Any]) -> dict[str, float]:
    """Returns what is logged of a table: what is beside each other in evaluation.json."""
    if "cosine" not in rows:
        return {}
    retrieval = rows["retrieval"]
    return {
        where: rows["cosine"],
        f"{where}_between": rows["between"],
        f"{where}_centred": rows["centred"],
        f"{where}_retrieval": (retrieval["csls_forth"] + retrieval["csls_back"]) / 2,
        f"{where}_retrieval_chance": retrieval["chance"],
    }


def _select_state_metrics(states: Mapping[str, Any]) -> dict[str, list[float]]:
    if "sentences" not in states:
        return {}
    compared = states["positions"] if "positions" in states else states["matched"]
    wholes = states["sentences"]
    return {
        "hidden": compared["cosine"],
        "hidden_shuffled": compared["cosine_shuffled"],
        "hidden_centred": compared["centred_excess"],
        "cka": wholes["cka_debiased"],
        "retrieval": [
            (forth + back) / 2
            for forth, back in zip(
                wholes["centred_retrieval_forth"], wholes["centred_retrieval_back"], strict=True
            )
        ],
    }
