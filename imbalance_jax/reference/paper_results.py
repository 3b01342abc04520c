"""A study's results in the form of what the reference study reported.

`collect_study_results` gives each run that belongs to a figure or table of the reference the rows
that it would have there; reference.py holds the reported ones, paper_panels.py and
paper_tables.py show either.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from imbalance_jax.analysis import transfer_results
from imbalance_jax.reference.reported import PaperResult, split_figure_names

if TYPE_CHECKING:
    from imbalance_jax.analysis.study_table import AlignmentObservation, Observation, StudyTable
    from imbalance_jax.runs.run_directory import RunDirectory

# What a figure or table shows; of those that are not named, perplexities.
_HIDDEN = ("Table 2", "Table 4")
_GRADIENTS = ("Figure 11", "Figure 12", "Figure 13")
_EMBEDDINGS = ("Figure 6",)
_FREQUENCIES = ("Figure 7",)
_GLUE = ("Figure 1 right",)
# Positive by nature, and as likely to be twice as half of what they are.
_RATIOS = ("ppl", "teff", "mlte", "mlpe")

Interval = Callable[[Sequence[float]], tuple[float, float]]


class EfficiencyProtocol(Protocol):
    """What a perplexity is worth beside monolingual models; NaN where it is not known."""

    @property
    def teff(self) -> float: ...  # MLTE / tokens seen of the language
    @property
    def mlte(self) -> float: ...  # tokens
    @property
    def mlpe(self) -> float: ...  # perplexity of a monolingual model on the same tokens


@dataclasses.dataclass(frozen=True)
class _RunValue:
    """A number of one run, with what identifies its row beside the run's own setting."""

    metric: str
    value: float
    setting: tuple[tuple[str, str], ...] = ()


def collect_study_results(
    table: "StudyTable",
    efficiencies: Mapping[tuple[str, str], EfficiencyProtocol],
    *,
    interval: Interval | None = None,
    intervals: Mapping[tuple[str, str], tuple[float, float]] | None = None,
    evaluations: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[PaperResult]:
    """Returns a row for each figure, cell and metric, with a value for each seed.

    Means and intervals of perplexities, TEff, MLTE and MLPE are those of the logarithm, taken
    back; of cosines, those of the values.

    Args:
      table: of the study. Runs without figures, or not done, are passed over.
      efficiencies: (run, language) -> efficiency, of those that have one.
      interval: of the mean of at least two values; none leaves intervals out.
      intervals: (cell, metric) -> ends, in place of those of `interval`.
      evaluations: run -> what `read_run_evaluation` returns, for gradients, embeddings and hidden
        states; of the last there is, without it, what the run logged.
    """
    cells: dict[str, list[str]] = {}
    for name, run in table.runs.items():
        if run.spec.figures and run.state.state == "done":
            cells.setdefault(run.spec.cell, []).append(name)
    measured_layers: dict[str, list[AlignmentObservation]] = {}
    for alignment in table.alignments:
        measured_layers.setdefault(alignment.run, []).append(alignment)
    by_run: dict[str, list[Observation]] = {}
    for observation in table.observations:
        by_run.setdefault(observation.run, []).append(observation)
    found = []
    for cell, names in cells.items():
        names = [name for name in names if name in by_run]
        if not names:
            continue
        spec = table.runs[names[0]].spec
        setting = _make_setting(by_run[names[0]], table.unit_tokens) | dict(spec.reference)
        for figure in spec.figures:
            rows: dict[tuple[str, tuple[tuple[str, str], ...]], list[float]] = {}
            for name in names:
                evaluation = (evaluations or {}).get(name, {})
                logged = measured_layers.get(name, [])
                for measured in _collect_run_values(
                    figure, by_run[name], efficiencies, evaluation, logged
                ):
                    key = (measured.metric, measured.setting)
                    rows.setdefault(key, []).append(measured.value)
            for (metric, more), values in rows.items():
                low, high = (intervals or {}).get((cell, metric), (math.nan, math.nan))
                value, low_here, high_here = _estimate_mean(metric, values, interval)
                if math.isnan(low):
                    low, high = low_here, high_here
                settings = setting | dict(more) | {"unit_tokens": str(table.unit_tokens)}
                found.append(
                    PaperResult(
                        figure, settings, metric, value, low, high, tuple(values), table.name
                    )
                )
    return found


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
    setting = {
        "languages": language,
        "model": model,
        "tokens": "-",
        "unit_tokens": str(unit_tokens),
    }
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
    ratio = metric.partition("_")[0] in _RATIOS
    if ratio and not all(value > 0 for value in values):
        return math.nan, math.nan, math.nan
    scaled = [math.log(value) for value in values] if ratio else list(values)
    back = math.exp if ratio else float
    if interval is None or len(values) < 2:
        return back(statistics.fmean(scaled)), math.nan, math.nan
    low, high = interval(scaled)
    return back(statistics.fmean(scaled)), back(low), back(high)


# What a run has for a figure.


def _collect_run_values(
    figure: str,
    observations: Sequence["Observation"],
    efficiencies: Mapping[tuple[str, str], EfficiencyProtocol],
    evaluation: Mapping[str, Any],
    logged: Sequence["AlignmentObservation"],
) -> Iterator[_RunValue]:
    name = split_figure_names(figure)[0]
    pair = _get_first_pair(evaluation)
    if name in _HIDDEN:
        yield from (
            _read_hidden_cosines(pair)
            if pair.get("hidden")
            else _read_logged_cosines(logged, observations)
        )
    elif name in _GRADIENTS:
        yield from _read_gradient_cosines(pair)
    elif name in _EMBEDDINGS:
        yield from _read_embedding_cosines(pair, {"embed_in": "input", "embed_out": "output"})
        cbow = (evaluation.get("word2vec") or {}).get("cbow") or {}  # as the reference's
        shallow: Mapping[str, Any] = next(iter((cbow.get("pairs") or {}).values()), {})
        for row in _read_embedding_cosines(shallow, {"input": "input", "output": "output"}):
            setting = (("model", "word2vec"), *row.setting)
            yield dataclasses.replace(row, setting=setting)
    elif name in _FREQUENCIES:
        yield from _read_frequency_cosines(pair)
    elif name in _GLUE:
        yield from _average_accuracies(evaluation.get("transfer") or {}, observations[0].language)
    else:
        for observation in observations:
            language = observation.language.upper()
            yield _RunValue(f"ppl_{language}", observation.ppl)
            worth = efficiencies.get((observation.run, observation.language))
            if worth is None:
                continue
            for metric in ("teff", "mlte", "mlpe"):
                value = getattr(worth, metric)
                if not math.isnan(value):
                    yield _RunValue(f"{metric}_{language}", value)


def _get_first_pair(evaluation: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns what was measured of the first two languages; empty where nothing was."""
    pairs = (evaluation.get("alignment") or {}).get("pairs") or {}
    return next(iter(pairs.values()), {})


def _read_hidden_cosines(pair: Mapping[str, Any]) -> Iterator[_RunValue]:
    """The cosine after each block: of equal positions of clones, of matched ones of others."""
    hidden = pair.get("hidden") or {}
    clones = pair.get("positions_correspond")
    kind, matching = ("positions", "one_by_one") if clones else ("matched", "max_matching")
    # The first is the embedding's output and the last that of the final norm.
    for layer, value in enumerate((hidden.get(kind) or {}).get("cosine", [])[1:-1], 1):
        yield _RunValue("hidden_cossim", value, (("layer", str(layer)), ("matching", matching)))


def _read_logged_cosines(
    logged: Sequence["AlignmentObservation"], observations: Sequence["Observation"]
) -> Iterator[_RunValue]:
    """The same as it was logged last while training, on the validation split."""
    hidden = [row for row in logged if row.measure == "hidden" and row.pair == logged[0].pair]
    clones = len({observation.source for observation in observations}) == 1
    matching = "one_by_one" if clones else "max_matching"
    for row in sorted(hidden, key=lambda row: row.layer):
        if 0 < row.layer < row.layers - 1:
            setting = (("layer", str(row.layer)), ("matching", matching))
            yield _RunValue("hidden_cossim", row.value, setting)


def _read_gradient_cosines(pair: Mapping[str, Any]) -> Iterator[_RunValue]:
    found = pair.get("gradients") or {}
    for row, values in zip(found.get("rows", ()), found.get("per_pair", ()), strict=True):
        parameter = row.replace("attn ", "attn.linear_").replace("mlp ", "mlp.c_")
        for layer, value in enumerate(values, 1):
            setting = (("param", parameter), ("layer", str(layer)))
            yield _RunValue("gradient_cossim", value, setting)
    if "mean_with_key_bias" in found:
        yield _RunValue("gradient_cossim_mean", found["mean_with_key_bias"])


def _read_embedding_cosines(
    pair: Mapping[str, Any], tables: Mapping[str, str]
) -> Iterator[_RunValue]:
    """As the reference counts: with all ids of a model, the untrained ones too.

    Args:
      pair: what was measured of two languages.
      tables: its names of them -> the reference's.
    """
    for where, embedding in tables.items():
        found = pair.get(where) or {}
        for name, kind in (("cosine_all_ids", "clones"), ("all_pairs", "all pairs")):
            if found.get(name) is not None:
                setting = (("embedding", embedding), ("pairs", kind))
                yield _RunValue("embedding_cossim", found[name], setting)


def _read_frequency_cosines(pair: Mapping[str, Any]) -> Iterator[_RunValue]:
    bins = (pair.get("embed_in") or {}).get("by_frequency") or {}
    columns = [bins.get(name, ()) for name in ("low", "high", "cosine")]
    for low, high, cosine in zip(*columns, strict=True):
        setting = (("freq_lo", _format_bin_edge(low)), ("freq_hi", _format_bin_edge(high)))
        yield _RunValue("clone_cossim_input", cosine, setting)


def _average_accuracies(transfer: Mapping[str, Any], trained: str) -> Iterator[_RunValue]:
    """Mean accuracies after fine-tuning in one language as the reference did.

    Those of its 11 tasks are what it reports; those of others are another metric.
    """
    tasks = (transfer.get("reference") or {}).get(trained) or {}
    metric = "transfer_acc"
    setting: tuple[tuple[str, str], ...] = (("tasks", transfer_results.name_tasks(tasks)),)
    if set(tasks) >= set(transfer_results.GLUE):
        metric, setting = "glue_acc", ()
        tasks = {name: tasks[name] for name in transfer_results.GLUE}
    for tag, mean in transfer_results.average_over_tasks(tasks).items():
        yield _RunValue(f"{metric}_{tag.upper()}", mean["accuracy"], setting)
        if tag == trained:
            yield _RunValue(f"{metric}_majority", mean["majority"], setting)


def _format_bin_edge(count: float) -> str:
    return f"10^{round(4 * math.log10(count)) / 4:g}"
