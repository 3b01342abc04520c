"""The monolingual runs that a language is held against: which there are, and which lack."""

import dataclasses
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable

from imbalance_jax.analysis.study_table import Observation, StudyTable
from imbalance_jax.config import Config, costs
from imbalance_jax.config.size import describe_size
from imbalance_jax.study.run_spec import BASELINES, NEAR, RunSpec


@dataclasses.dataclass(frozen=True, order=True)
class BaselineGroup:
    """The monolingual runs that one law is fitted to."""

    source: str  # of the text
    size: str  # of the model, as `describe_size`
    kind: str  # one of BASELINES
    shape: int = 0  # steps, of matched and epochs; ids of the vocabulary, of wide; else 0

    @classmethod
    def of(cls, config: Config, source: str, kind: str) -> "BaselineGroup":
        """Returns the group of a baseline, or the one that a mixture is held against."""
        shape = {"matched": config.steps, "epochs": config.steps}.get(kind, 0)
        if kind == "wide":
            shape = costs.compute_vocab_size(config)
        return cls(source, describe_size(config), kind, shape)

    @property
    def dials(self) -> str:
        """What `describe_size` says besides N x D."""
        return self.size.partition(", ")[2]

    @classmethod
    def of_baseline(cls, run: RunSpec) -> "BaselineGroup":
        config = run.config
        only = next(tag for tag in config.tags if config.mixture.ratio.get(tag))
        return cls.of(config, config.source_of(only), run.kind)


def list_baseline_runs(table: StudyTable, group: BaselineGroup) -> list[str]:
    """Returns the runs that a group has in the study, done or not.

    A monolingual run of a mixture's steps and batch is one with all of its tokens of any kind
    that is matched to the mixture.
    """
    batches = {
        run.config.batch_size
        for run in table.runs.values()
        if run.spec.kind not in BASELINES and run.config.steps == group.shape
    }
    names = []
    for name, run in table.runs.items():
        if run.spec.kind not in BASELINES:
            continue
        alone = BaselineGroup.of_baseline(run.spec)
        whole = (
            group.kind in ("matched", "epochs")
            and alone == BaselineGroup(group.source, group.size, "monolingual")
            and run.config.steps == group.shape
            and run.config.batch_size in batches
        )
        if whole or alone == group:
            names.append(name)
    return names


def take_tuned_baselines(
    table: StudyTable, group: BaselineGroup, members: list[Observation]
) -> list[Observation]:
    """Returns, of `epochs` baselines of one text, those of the best setting; all others as given.

    One that goes through its text more or less often stands for the mixture whose share of the text
    it has, and so for that mixture's tokens of the language (`Grid.tune_epochs`).
    """
    batches = {
        run.config.batch_size
        for run in table.runs.values()
        if run.spec.kind not in BASELINES and run.config.steps == group.shape
    }
    if group.kind != "epochs" or len(batches) != 1:
        return members
    by_text: defaultdict[float, defaultdict[str, list[Observation]]]
    by_text = defaultdict(lambda: defaultdict(list))
    for row in members:
        by_text[table.runs[row.run].config.mixture.text_share][row.cell].append(row)
    found: list[Observation] = []
    for share, cells in by_text.items():
        best = min(cells.values(), key=lambda rows: statistics.fmean(row.loss for row in rows))
        if len(cells) == 1:
            found += best
            continue
        config = table.runs[best[0].run].config
        tokens = float(share * config.steps * max(batches) * config.model.L)
        found += [dataclasses.replace(row, tokens=tokens) for row in best]
    return found


def find_nearest_baseline(table: StudyTable, group: BaselineGroup, own_tokens: float) -> str:
    """Returns the run of a group whose tokens are nearest to a language's.

    A batch has whole sequences and a run has whole steps, so few are equal. The name is "" where
    none is within `NEAR`.
    """
    distances = {
        name: abs(table.runs[name].spec.tokens - own_tokens)
        for name in list_baseline_runs(table, group)
    }
    near = [name for name, distance in distances.items() if distance <= NEAR * own_tokens]
    configs = {name: run.config for name, run in table.runs.items()}
    decays = {
        config.optimizer.weight_decay
        for name, config in configs.items()
        if table.runs[name].spec.kind not in BASELINES
    }
    # One that was tuned is not what the mixture alone would be.
    return min(
        near,
        key=lambda name: (distances[name], configs[name].optimizer.weight_decay not in decays),
        default="",
    )


def format_token_difference(part: float) -> str:
    """Returns by how much of its tokens a baseline is off, in words."""
    return f"{100 * abs(part):.3g} % {'more' if part > 0 else 'fewer'}"


def list_baseline_kinds(table: StudyTable) -> list[str]:
    """Returns the kinds of baseline that a study has or claims something of."""
    kinds = {run.spec.kind for run in table.runs.values()}
    for claim in table.claims.values():
        kinds |= {claim.against, claim.baseline if claim.measure == "log_teff" else ""}
    # Whatever a study has, a loss alone says nothing without these.
    return [k for k in BASELINES if k in kinds] or ["monolingual", "matched"]


@dataclasses.dataclass
class BaselineDemand:
    """What the mixtures of a study ask of a group of baselines."""

    tokens: list[float] = dataclasses.field(default_factory=list)  # at which its law is read
    seeds: int = 1
    flops_per_token: float = math.nan  # of the mixture


@dataclasses.dataclass(frozen=True)
class MissingBaseline:
    """A monolingual run that a law needs and a study does not have."""

    tokens: float  # of one run
    seeds: int
    flops: float  # of all seeds
    reason: str


def list_missing_baselines(demand: BaselineDemand, have: Iterable[float]) -> list[MissingBaseline]:
    """Returns the runs that bring every wanted number of tokens between the baselines'.

    The wanted tokens are those at which a law is read, both own tokens and MLTE; have are the
    baselines' tokens. One run is added at each end that lacks one, or, without two baselines to
    start from, at both ends and halfway (in the log). An infinite MLTE says only that the
    baselines are too short, and asks for twice the longest.
    """
    have = set(have)
    finite = [tokens for tokens in demand.tokens if math.isfinite(tokens) and tokens > 0]
    endless = math.inf in demand.tokens
    numbers = [*finite, *have]
    if not numbers:
        return []
    low, high = min(finite or numbers), max(finite or numbers)
    if endless:
        high = max(high, 2 * max(numbers))
    points: dict[float, str] = {}
    if len(have) < 2:
        points = dict.fromkeys(
            {low, math.sqrt(low * high), high} - have,
            "a law needs baselines at three numbers of tokens",
        )
    else:
        if low < min(have) * (1 - 1e-9):
            points[low] = f"the shortest baseline has {min(have):,.0f} tokens"
        if high > max(have) * (1 + 1e-9):
            points[high] = f"the longest baseline has {max(have):,.0f} tokens"
            if endless:
                points[high] += ", and a loss is below all that their law reaches"
    return [
        MissingBaseline(
            tokens, demand.seeds, demand.seeds * tokens * demand.flops_per_token, reason
        )
        for tokens, reason in sorted(points.items())
    ]


def find_flops_per_token(table: StudyTable, group: BaselineGroup) -> float | None:
    """Returns the FLOPs per token of the study's own baselines of a group; None without any."""
    for run in table.runs.values():
        if run.spec.kind in BASELINES and (run.spec.kind == "wide") == (group.kind == "wide"):
            own = BaselineGroup.of_baseline(run.spec)
            if (own.source, own.size) == (group.source, group.size):
                vocab_size = costs.compute_vocab_size(run.config)
                return costs.compute_flops_per_token(run.config.model, vocab_size)
    return None
