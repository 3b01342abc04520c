"""A study's results in the form of what the reference study reported.

`collect_study_results` gives each run that belongs to a figure or table of the reference the rows
that it would have there; reported.py holds the reported ones, panels.py and paper_tables.py show
either.
"""

import dataclasses
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from imbalance_jax.analysis import transfer_results
from imbalance_jax.reference.reported import PaperResult, is_ratio_metric, split_figure_names

if TYPE_CHECKING:
    from imbalance_jax.analysis.efficiency import Efficiency
    from imbalance_jax.analysis.study_table import AlignmentObservation, Observation, StudyTable
    from imbalance_jax.runs.run_directory import RunDirectory

Efficiencies = Mapping[tuple[str, str], "Efficiency"]  # by run and language, of those that have one
Interval = Callable[[Sequence[float]], tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class _RunValue:
    """A number of one run, with what identifies its row beside the run's own setting."""

    metric: str
    value: float
    setting: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass
class _RunEvidence:
    """What is known of one run."""

    observations: list["Observation"] = dataclasses.field(default_factory=list)
    logged: list["AlignmentObservation"] = dataclasses.field(default_factory=list)
    evaluation: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    efficiencies: Efficiencies = dataclasses.field(default_factory=dict)

    @property
    def pair(self) -> Mapping[str, Any]:
        """What was measured of the first two languages; empty where nothing was."""
        pairs = (self.evaluation.get("alignment") or {}).get("pairs") or {}
        return next(iter(pairs.values()), {})


def collect_study_results(
    table: "StudyTable",
    efficiencies: Efficiencies,
    *,
    interval: Interval | None = None,
    evaluations: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[PaperResult]:
    """Returns a row for each figure, cell and metric, with a value for each seed.

    Means and intervals of perplexities, TEff, MLTE and MLPE are those of the logarithm, taken
    back; of cosines, those of the values.

    Args:
      table: of the study. Runs without figures, or not done, are passed over.
      efficiencies: of the runs.
      interval: of the mean of at least two values; none leaves intervals out.
      evaluations: run -> what `read_run_evaluation` returns, for gradients, embeddings and hidden
        states; of the last there is, without it, what the run logged.
    """
    runs: defaultdict[str, _RunEvidence] = defaultdict(_RunEvidence)
    for observation in table.observations:
        runs[observation.run].observations.append(observation)
    for alignment in table.alignments:
        runs[alignment.run].logged.append(alignment)
    cells = defaultdict(list)
    for name, run in table.runs.items():
        if run.spec.figures and run.state.state == "done" and runs[name].observations:
            cells[run.spec.cell].append(name)
            runs[name].evaluation = (evaluations or {}).get(name, {})
            runs[name].efficiencies = efficiencies
    results = []
    for names in cells.values():
        spec = table.runs[names[0]].spec
        setting = _make_setting(runs[names[0]].observations, table.unit_tokens)
        setting |= dict(spec.reference)
        for figure in spec.figures:
            read = _READERS.get(split_figure_names(figure)[0], _read_perplexities)
            rows: defaultdict[tuple[str, tuple[tuple[str, str], ...]], list[float]]
            rows = defaultdict(list)
            for name in names:
                for measured in read(runs[name]):
                    rows[measured.metric, measured.setting].append(measured.value)
            for (metric, more), values in rows.items():
                whole = setting | dict(more) | {"unit_tokens": str(table.unit_tokens)}
                mean, low, high = _estimate_mean(metric, values, interval)
                results.append(
                    PaperResult(figure, whole, metric, mean, low, high, tuple(values), table.name)
                )
    return results


def read_run_evaluation(run: "RunDirectory") -> dict[str, Any]:
    """Returns a run's evaluation.json, with its word2vec.json and transfer.json by these names."""
    others = {
        "word2vec": run.read_json("word2vec.json") or {},
        "transfer": transfer_results.read_transfer_results(run),
    }
    return (run.read_json("evaluation.json") or {}) | others


def make_law_results(
    language: str, model: str, law: tuple[float, float, float], *, unit_tokens: int, source: str
) -> list[PaperResult]:
    """Returns the rows of a law 1/PPL = c - a x^-b, x in units, from which curves are drawn.

    Args:
      language: whose text the law is of, such as EN.
      model: its size, as the settings of the study's other rows have it.
      law: a, b and c.
      unit_tokens: of "1x".
      source: the study's name.
    """
    setting = {"languages": language, "model": model, "tokens": "-"}
    setting["unit_tokens"] = str(unit_tokens)
    return [
        PaperResult("Figure 5", setting, f"law_{name}", value, source=source)
        for name, value in zip("abc", law, strict=True)
    ]


def _make_setting(observations: Sequence["Observation"], unit_tokens: int) -> dict[str, str]:
    """Returns what a run's observations say of its setting, where the study says nothing."""
    languages = [observation.language.upper() for observation in observations]
    shares = [round(100 * observation.share, 2) for observation in observations]
    total = math.fsum(observation.tokens for observation in observations)
    setting = {
        "languages": "+".join(languages),
        "split": "/".join(f"{share:g}" for share in shares) if len(shares) > 1 else "100/0",
        "model": observations[0].size,
        "tokens": f"{total / unit_tokens:.4g}x",
        "schedule": "none",
    }
    if len(languages) == 2:
        setting[f"p_{languages[1]}"] = f"{observations[1].share:.6g}"
    return setting


def _estimate_mean(
    metric: str, values: Sequence[float], interval: Interval | None
) -> tuple[float, float, float]:
    """Returns the mean and its interval; NaN for what there is no interval of."""
    ratio = is_ratio_metric(metric)
    if ratio and not all(value > 0 for value in values):
        return math.nan, math.nan, math.nan
    scaled = [math.log(value) for value in values] if ratio else list(values)
    back = math.exp if ratio else float
    low, high = interval(scaled) if interval and len(values) > 1 else (math.nan, math.nan)
    return back(statistics.fmean(scaled)), back(low), back(high)


# What a run has for a figure.


def _read_perplexities(run: _RunEvidence) -> Iterator[_RunValue]:
    for observation in run.observations:
        language = observation.language.upper()
        yield _RunValue(f"ppl_{language}", observation.ppl)
        worth = run.efficiencies.get((observation.run, observation.language))
        for metric in ("teff", "mlte", "mlpe") if worth else ():
            value = getattr(worth, metric)
            if not math.isnan(value):
                yield _RunValue(f"{metric}_{language}", value)


def _read_hidden_cosines(run: _RunEvidence) -> Iterator[_RunValue]:
    """The cosine after each block: of equal positions of clones, of matched ones of others."""
    hidden = run.pair.get("hidden")
    if not hidden:
        yield from _read_logged_cosines(run)
        return
    clones = run.pair.get("positions_correspond")
    kind, matching = ("positions", "one_by_one") if clones else ("matched", "max_matching")
    # The first is the embedding's output and the last that of the final norm.
    for layer, value in enumerate((hidden.get(kind) or {}).get("cosine", [])[1:-1], 1):
        yield _RunValue("hidden_cossim", value, (("layer", str(layer)), ("matching", matching)))


def _read_logged_cosines(run: _RunEvidence) -> Iterator[_RunValue]:
    """The same as it was logged last while training, on the validation split."""
    hidden = [r for r in run.logged if r.measure == "hidden" and r.pair == run.logged[0].pair]
    clones = len({observation.source for observation in run.observations}) == 1
    matching = "one_by_one" if clones else "max_matching"
    for row in sorted(hidden, key=lambda row: row.layer):
        if 0 < row.layer < row.layers - 1:
            setting = (("layer", str(row.layer)), ("matching", matching))
            yield _RunValue("hidden_cossim", row.value, setting)


def _read_gradient_cosines(run: _RunEvidence) -> Iterator[_RunValue]:
    gradients = run.pair.get("gradients") or {}
    rows = zip(gradients.get("rows", ()), gradients.get("per_pair", ()), strict=True)
    for row, values in rows:
        parameter = row.replace("attn ", "attn.linear_").replace("mlp ", "mlp.c_")
        for layer, value in enumerate(values, 1):
            setting = (("param", parameter), ("layer", str(layer)))
            yield _RunValue("gradient_cossim", value, setting)
    if "mean_with_key_bias" in gradients:
        yield _RunValue("gradient_cossim_mean", gradients["mean_with_key_bias"])


def _read_embedding_cosines(run: _RunEvidence) -> Iterator[_RunValue]:
    yield from _read_table_cosines(run.pair, {"embed_in": "input", "embed_out": "output"})
    cbow = (run.evaluation.get("word2vec") or {}).get("cbow") or {}  # as the reference's
    shallow: Mapping[str, Any] = next(iter((cbow.get("pairs") or {}).values()), {})
    for row in _read_table_cosines(shallow, {"input": "input", "output": "output"}):
        yield dataclasses.replace(row, setting=(("model", "word2vec"), *row.setting))


def _read_table_cosines(pair: Mapping[str, Any], tables: Mapping[str, str]) -> Iterator[_RunValue]:
    """As the reference counts: with all ids of a model, the untrained ones too.

    Args:
      pair: what was measured of two languages.
      tables: its names of them -> the reference's.
    """
    for where, embedding in tables.items():
        cosines = pair.get(where) or {}
        for name, kind in (("cosine_all_ids", "clones"), ("all_pairs", "all pairs")):
            if cosines.get(name) is not None:
                setting = (("embedding", embedding), ("pairs", kind))
                yield _RunValue("embedding_cossim", cosines[name], setting)


def _read_frequency_cosines(run: _RunEvidence) -> Iterator[_RunValue]:
    bins = (run.pair.get("embed_in") or {}).get("by_frequency") or {}
    columns = [bins.get(name, ()) for name in ("low", "high", "cosine")]
    for low, high, cosine in zip(*columns, strict=True):
        setting = (("freq_lo", _format_bin_edge(low)), ("freq_hi", _format_bin_edge(high)))
        yield _RunValue("clone_cossim_input", cosine, setting)


def _format_bin_edge(count: float) -> str:
    return f"10^{round(4 * math.log10(count)) / 4:g}"


def _average_accuracies(run: _RunEvidence) -> Iterator[_RunValue]:
    """Mean accuracies after fine-tuning in one language as the reference did.

    Those of its 11 tasks are what it reports; those of others are another metric.
    """
    trained = run.observations[0].language
    transfer = (run.evaluation.get("transfer") or {}).get("reference") or {}
    tasks = transfer.get(trained) or {}
    metric = "transfer_acc"
    setting: tuple[tuple[str, str], ...] = (("tasks", transfer_results.name_tasks(tasks)),)
    if set(tasks) >= set(transfer_results.GLUE):
        metric, setting = "glue_acc", ()
        tasks = {name: tasks[name] for name in transfer_results.GLUE}
    for tag, mean in transfer_results.average_over_tasks(tasks).items():
        yield _RunValue(f"{metric}_{tag.upper()}", mean["accuracy"], setting)
        if tag == trained:
            yield _RunValue(f"{metric}_majority", mean["majority"], setting)


# What a figure or table shows; those that are not named show perplexities.
_READERS: Mapping[str, Callable[[_RunEvidence], Iterator[_RunValue]]] = {
    **dict.fromkeys(("Table 2", "Table 4"), _read_hidden_cosines),
    **dict.fromkeys(("Figure 11", "Figure 12", "Figure 13"), _read_gradient_cosines),
    "Figure 6": _read_embedding_cosines,
    "Figure 7": _read_frequency_cosines,
    "Figure 1 right": _average_accuracies,
}
