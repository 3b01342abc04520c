"""What a study's run directories hold, as tidy tables: languages of runs, alignment, and curves.

An observation is a language of a finished run on the test split. Everything is read from the
directories alone, so a table can be made on a laptop, and of a study that is still running.
"""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from imbalance_jax.analysis.learning_curves import LearningCurve, collect_learning_curves
from imbalance_jax.config import Config, costs
from imbalance_jax.config.size import describe_size
from imbalance_jax.runs.damaged_files import DamagedFileError
from imbalance_jax.runs.run_directory import Record, RunDirectory
from imbalance_jax.study.claim import Claim
from imbalance_jax.study.run_spec import RunSpec
from imbalance_jax.study.study_directory import RunState, StudyDirectory

# What a metric of alignment is held against: the same measure where nothing is shared.
_BASELINE_OF = {
    "hidden": "hidden_shuffled",
    "embed_in": "embed_in_between",
    "embed_out": "embed_out_between",
    # One in the number of candidates; earlier runs have not written it.
    "retrieval": "retrieval_chance",
    "embed_in_retrieval": "embed_in_retrieval_chance",
    "embed_out_retrieval": "embed_out_retrieval_chance",
}


@dataclasses.dataclass(frozen=True)
class Observation:
    """A language of a finished run, on the test split."""

    run: str
    cell: str
    kind: str  # of study.run_spec.KINDS
    seed: int
    language: str  # its tag
    source: str  # whose text it is: clones share it, and with it a law
    size: str  # of the model, as N x D: "4x128"
    tokens: float  # trained on in this language, as the ratio asks for
    other_tokens: float  # trained on in all other languages together
    realised_tokens: float
    epochs: float  # of the text that it draws from, gone through by all languages that do
    steps: int
    batch_size: int
    peak_lr: float
    vocab_size: int
    parameters: int
    flops_per_token: float
    loss: float  # nats per token: language_nats + loss_own
    language_nats: float
    loss_own: float
    leak: float  # nan where a language has all ids for itself
    bits_per_byte: float
    top1: float  # how often the most probable token is the right one; nan in early runs
    minimal_pairs: float  # accuracy on minimal pairs; nan where none were scored
    pair_set: str  # stands for the sentences of these pairs; "" where none were scored

    @property
    def ppl(self) -> float:
        # Beyond e^700 there is no float.
        return math.exp(min(self.loss, 700.0))

    @property
    def share(self) -> float:
        """The language's part of all tokens of the run."""
        return self.tokens / (self.tokens + self.other_tokens)


@dataclasses.dataclass(frozen=True)
class AlignmentObservation:
    """A measure of how alike a finished run treats two languages."""

    run: str
    cell: str
    kind: str
    seed: int
    pair: str  # en1-en2
    measure: str  # hidden, hidden_centred, cka, retrieval, embed_in, embed_out, gradient, ...
    layer: int  # 0 the embedding's output, N + 1 the final norm's; -1 where there is none
    layers: int  # N + 2
    value: float
    # The same where nothing is shared: shuffled pairs, or chance; nan where none exists.
    baseline: float

    @property
    def excess(self) -> float:
        return self.value - (0.0 if math.isnan(self.baseline) else self.baseline)


@dataclasses.dataclass(frozen=True)
class CurveObservation:
    """What a finished run measured at one step of its training."""

    run: str
    cell: str
    kind: str
    seed: int
    of: str  # a language's tag, or a pair of languages such as en1-en2
    measure: str  # "loss" of a language, on the validation split; "alignment" of a pair
    step: int
    value: float  # nats per token; the cosine of hidden states, mean over the blocks
    baseline: float  # of alignment, the same of shuffled pairs; nan where none is known


@dataclasses.dataclass(frozen=True)
class StudyRun:
    """One run of a study and how far it is."""

    spec: RunSpec
    state: RunState
    directory: RunDirectory

    @property
    def config(self) -> Config:
        return self.spec.config


@dataclasses.dataclass(frozen=True)
class StudyTable:
    """A study, read once for its page."""

    name: str
    description: str
    unit_tokens: int
    runs: Mapping[str, StudyRun]
    claims: Mapping[str, Claim]
    observations: Sequence[Observation]
    alignments: Sequence[AlignmentObservation]
    # (run, language) -> the nats and the tokens of each text of the test split, by its number.
    texts: Mapping[tuple[str, str], Mapping[int, tuple[float, float]]] = dataclasses.field(
        default_factory=dict
    )
    # (run, language or pair of languages) -> what a finished run measured while it trained.
    curves: Mapping[tuple[str, str], LearningCurve] = dataclasses.field(default_factory=dict)

    @property
    def curve_observations(self) -> list[CurveObservation]:
        rows = []
        for (name, of), curve in self.curves.items():
            spec = self.runs[name].spec
            origin = (name, spec.cell, spec.kind, spec.config.seed, of, curve.measure)
            points = zip(curve.steps, curve.values, curve.baselines, strict=True)
            rows += [CurveObservation(*origin, *point) for point in points]
        return rows


def read_study_table(directory: StudyDirectory) -> StudyTable:
    """Returns all that a study's directories say so far.

    Raises:
      FileNotFoundError: there is no study.
      ValueError: a run's directory was changed by hand.
    """
    study = directory.study()
    runs = {}
    observations: list[Observation] = []
    alignments: list[AlignmentObservation] = []
    texts: defaultdict[tuple[str, str], dict[int, tuple[float, float]]] = defaultdict(dict)
    curves: dict[tuple[str, str], LearningCurve] = {}
    for name, spec in study.runs.items():
        state = directory.state(name, study)
        run = StudyRun(spec, state, directory.find_run(name, study)[0])
        if state.state == "done":
            try:
                rows, records = list(_read_observations(name, run)), list(run.directory.metrics())
                aligned = _collect_alignments(name, run, records)
                scored_texts = run.directory.read_csv("test_texts.csv")
                of_run = collect_learning_curves(records, [row.language for row in rows])
                for file in ("transfer.json", "word2vec.json"):  # read for figures, later
                    run.directory.read_json(file)
            except DamagedFileError as error:
                damaged = RunState("damaged", 0, spec.config.steps, str(error))
                run = dataclasses.replace(run, state=damaged)
            else:
                observations += rows
                alignments += aligned
                for text in scored_texts:
                    scored = float(text["loss"]), float(text["tokens"])
                    texts[name, text["language"]][int(float(text["text"]))] = scored
                curves |= {(name, of): curve for of, curve in of_run.items()}
        runs[name] = run
    return StudyTable(
        directory.name,
        study.description,
        study.unit_tokens,
        runs,
        study.claims,
        observations,
        alignments,
        texts,
        curves,
    )


def _read_observations(name: str, run: StudyRun) -> Iterator[Observation]:
    spec, config = run.spec, run.config
    evaluation = run.directory.read_json("evaluation.json")
    results, pairs = evaluation["languages"], evaluation.get("minimal_pairs", {})
    provenance = run.directory.read_json("provenance.json") or {}
    vocab_size = provenance.get("vocab_size", costs.compute_vocab_size(config))
    parts = run.directory.read_csv("mixture.csv")
    realised = {tag: _sum_column(parts, tag, "realised_tokens") for tag in config.tags}
    # A ratio that follows from the texts is known to its directory alone.
    asked = costs.count_language_tokens(config)
    if config.mixture.follows_text:
        asked = {
            tag: _sum_column(parts, tag, "requested_sequences") * config.model.L for tag in asked
        }
    total = math.fsum(asked.values())
    for tag in config.tags:
        if not asked[tag]:
            continue  # a model with room for a language that it never saw
        result = results[tag]
        source = config.source_of(tag)
        yield Observation(
            run=name,
            cell=spec.cell,
            kind=spec.kind,
            seed=config.seed,
            language=tag,
            source=source,
            size=describe_size(config),
            tokens=asked[tag],
            other_tokens=total - asked[tag],
            realised_tokens=realised[tag],
            epochs=_count_epochs(config, tag, asked, provenance, parts),
            steps=config.steps,
            batch_size=config.batch_size,
            peak_lr=config.optimizer.peak_lr,
            vocab_size=vocab_size,
            parameters=costs.compute_parameter_count(
                config.model, vocab_size, len(config.languages)
            ),
            flops_per_token=costs.compute_flops_per_token(config.model, vocab_size),
            loss=result["loss"],
            language_nats=result["language_nats"],
            loss_own=result["loss_own"],
            leak=_take_number(result, "leak"),
            bits_per_byte=_take_number(result, "bits_per_byte"),
            top1=_take_number(result, "top1"),
            minimal_pairs=_take_number(pairs.get(tag, {}), "accuracy"),
            pair_set=pairs.get(tag, {}).get("digest", ""),
        )


def _take_number(result: Mapping[str, float | None], name: str) -> float:
    """Returns a number of a result, or NaN where it is absent or was not finite."""
    value = result.get(name)
    return math.nan if value is None else value


def _sum_column(parts: Sequence[Mapping[str, str]], tag: str, column: str) -> float:
    return math.fsum(float(row[column]) for row in parts if row["language"] == tag)


def _count_epochs(
    config: Config,
    tag: str,
    asked: Mapping[str, float],
    provenance: Mapping[str, Any],
    parts: Sequence[Mapping[str, str]],
) -> float:
    """Returns how often the text that a language shares was gone through; nan if it has no end.

    `mixture.csv` counts it, as only the run knows which documents `content=disjoint` and
    `switch=document` left to the language. Earlier runs did not count; theirs is of the whole text.
    """
    source = config.source_of(tag)
    about = provenance.get("sources", {}).get(source, {})
    text = about.get("tokens", {}).get("train") if about.get("kind") != "synthetic" else None
    if not text:
        return math.nan
    counted = [
        row["pool_epochs"] for row in parts if row["language"] == tag and "pool_epochs" in row
    ]
    if counted:
        return float(counted[-1])
    used = math.fsum(asked[other] for other in config.tags if config.source_of(other) == source)
    return used / (text * config.mixture.text_share)


def describe_damaged_runs(table: StudyTable) -> list[str]:
    """Returns a line on each run that a table leaves out because a file of it is damaged."""
    return [
        f"Without {name}: {run.state.error}"
        for name, run in table.runs.items()
        if run.state.state == "damaged"
    ]


def _collect_alignments(
    name: str, run: StudyRun, records: Iterable[Record]
) -> list[AlignmentObservation]:
    spec, layers = run.spec, run.config.model.N + 2
    measures: dict[tuple[str, str, int], float] = {}
    newest: Record = {}
    for record in records:
        newest |= {metric: v for metric, v in record.items() if metric.startswith("align/")}
    for metric, value in newest.items():
        parts = metric.split("/")[1:]
        if len(parts) > 1 and "-" in parts[1] and isinstance(value, (int, float)):
            layer = int(parts[2]) if len(parts) > 2 else -1
            measures[parts[0], parts[1], layer] = float(value)
    rows = []
    for (measure, pair, layer), value in measures.items():
        if measure in _BASELINE_OF.values():
            continue
        below = _BASELINE_OF.get(measure, "")
        baseline = measures.get((below, pair, layer), measures.get((below, pair, -1), math.nan))
        origin = (name, spec.cell, spec.kind, run.config.seed)
        rows.append(AlignmentObservation(*origin, pair, measure, layer, layers, value, baseline))
    return rows


def list_columns(rows: Sequence[Any]) -> dict[str, list[Any]]:
    """Returns the fields and then the properties of one row or more, as columns."""
    names = [field.name for field in dataclasses.fields(rows[0])]
    names += [n for n, value in vars(type(rows[0])).items() if isinstance(value, property)]
    return {name: [getattr(row, name) for row in rows] for name in names}


def write_study_table(table: StudyTable, directory: StudyDirectory) -> list[str]:
    """Writes each table as CSV and Parquet, and returns the files."""
    import pyarrow
    import pyarrow.csv
    import pyarrow.parquet

    written = []
    tables: Mapping[str, Sequence[Any]] = {
        "table": table.observations,
        "alignment": table.alignments,
        "curves": table.curve_observations,
    }
    for stem, rows in tables.items():
        if not rows:
            continue
        content = pyarrow.table(list_columns(rows))
        writers = {"csv": pyarrow.csv.write_csv, "parquet": pyarrow.parquet.write_table}
        for suffix, write in writers.items():
            path = directory.path / f"{stem}.{suffix}"
            with path.open("wb") as file:
                write(content, file)
            written.append(str(path))
    return written
