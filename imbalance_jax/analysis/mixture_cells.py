"""The mixtures of a study that a law over the ratio is fitted to."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from imbalance_jax import config as config_lib
from imbalance_jax.analysis.laws import Floats
from imbalance_jax.analysis.mixture_forms import Mixtures
from imbalance_jax.analysis.resampling import average_runs
from imbalance_jax.analysis.study_table import Observation, StudyTable
from imbalance_jax.config import Config

_SIZE = ("L", "D", "H", "K", "F", "N", "kv_heads", "base_width", "base_head_width", "dropout")
_WHY_MISSING = {  # by state
    "absent": "not begun.",
    "begun": "not done.",
    "failed": "failed; python -m imbalance_jax.study status says why.",
    "early": "ended before the steps that were set, as the text did.",
    "done": "a language has no part, which a law cannot say anything of.",
}
_RATES = ("peak_lr", "final_lr", "warmup")


@dataclasses.dataclass(frozen=True)
class MixtureCells:
    """Conditions that differ in ratio, size and length alone, and their runs."""

    languages: tuple[str, ...]
    sources: tuple[str, ...]  # whose text each language is
    names: tuple[str, ...]  # of the cells
    mixtures: Mixtures
    losses: tuple[Mapping[int, Floats], ...]  # of a cell: seed -> nats per token of each language
    runs: tuple[str, ...]
    text_G: Floats  # tokens of text that there are of each; nan where it has no end
    bits_G: Floats  # bits per byte of a loss of one nat per token; nan where it is not known
    left_out: tuple[str, ...]  # other cells of mixtures: they differ in more
    own_tokenizers: bool = False  # whether losses in nats per token do not compare

    @property
    def mean_CG(self) -> Floats:
        return average_runs(self.losses)

    @property
    def runs_C(self) -> Floats:
        return np.array([float(len(of_cell)) for of_cell in self.losses])

    def make_mixtures(self, share_CG: Floats, tokens: float, parameters: float) -> Mixtures:
        """Returns mixtures of one size and length, of the text that the study has."""
        tokens_CG = share_CG * tokens
        pool_GG = np.array([[a == b for b in self.sources] for a in self.sources], float)
        epochs_CG = np.nan_to_num(tokens_CG @ pool_GG / self.text_G)
        return Mixtures(np.full(len(share_CG), parameters), tokens_CG, epochs_CG)


def collect_mixture_cells(table: StudyTable) -> MixtureCells:
    """Returns the largest set of cells of a study that differ in ratio, size and length alone.

    Schedules, and languages whose words are shuffled, are left out, as are all controls, and runs
    that ended where their text did (`on_exhaustion=stop`).

    Raises:
      ValueError: no mixture is done.
    """
    rows_by_run: defaultdict[str, list[Observation]] = defaultdict(list)
    for row in table.observations:
        if row.kind == "mixture" and math.isfinite(row.loss):
            rows_by_run[row.run].append(row)
    groups: defaultdict[str, defaultdict[str, dict[int, str]]]
    groups = defaultdict(lambda: defaultdict(dict))
    for name, rows in rows_by_run.items():
        config = table.runs[name].config
        whole = len(rows) == len(config.tags) > 1 and not _ended_early(rows)
        if whole and not config.mixture.stages:
            groups[make_group_key(config)][rows[0].cell][config.seed] = name
    if not groups:
        raise ValueError(
            f"No mixture of {table.name} is done, at the length that it was set: a law over the "
            "ratio is fitted to runs of two languages or more at several ratios. Train some with "
            "python -m imbalance_jax.study run, or add ratios to the study."
        )
    largest = max(groups.values(), key=len)
    kept = _choose_recipes(
        {cell: table.runs[min(of.values())].config for cell, of in largest.items()}
    )
    cells = {cell: largest[cell] for cell in kept}
    others = [cell for group in groups.values() for cell in group if cell not in cells]
    names = sorted(cells, key=config_lib.make_natural_sort_key)
    firsts = [rows_by_run[next(iter(cells[name].values()))] for name in names]
    mixtures = Mixtures(
        np.array([float(rows[0].parameters) for rows in firsts]),
        np.array([[row.tokens for row in rows] for rows in firsts]),
        np.nan_to_num(np.array([[row.epochs for row in rows] for rows in firsts])),
    )
    rows = firsts[0]
    return MixtureCells(
        languages=tuple(row.language for row in rows),
        sources=tuple(row.source for row in rows),
        names=tuple(names),
        mixtures=mixtures,
        losses=tuple(
            {
                seed: np.array([row.loss for row in rows_by_run[run]])
                for seed, run in cells[name].items()
            }
            for name in names
        ),
        runs=tuple(run for name in names for run in cells[name].values()),
        text_G=np.fmax.reduce([_count_text(each) for each in firsts]),
        bits_G=np.array([row.bits_per_byte / row.loss for row in rows]),
        left_out=tuple(sorted(others, key=config_lib.make_natural_sort_key)),
        own_tokenizers=_has_own_tokenizers(table.runs[rows[0].run].config),
    )


def describe_missing_runs(table: StudyTable, cells: MixtureCells) -> list[str]:
    """Returns a line on each reason for which runs of mixtures are in no law.

    Those that `left_out` names, schedules and damaged runs are told of elsewhere.
    """
    found: defaultdict[str, list[str]] = defaultdict(list)
    rows_by_run: defaultdict[str, list[Observation]] = defaultdict(list)
    for row in table.observations:
        rows_by_run[row.run].append(row)
    for name, run in table.runs.items():
        several = len(run.config.tags) > 1 and not run.config.mixture.stages
        known = name in cells.runs or run.spec.cell in cells.left_out
        if run.spec.kind == "mixture" and several and not known:
            early = _ended_early(rows_by_run[name])
            found[_WHY_MISSING.get("early" if early else run.state.state, "")].append(name)
    return [f"Without {', '.join(names)}: {why}" for why, names in found.items() if why]


def _ended_early(rows: Sequence[Observation]) -> bool:
    realised = math.fsum(row.realised_tokens for row in rows)
    return 0 < realised < 0.99 * math.fsum(row.tokens for row in rows)


def make_group_key(config: Config) -> str:
    """Returns what is equal in runs that differ in ratio, size and length alone.

    Runs of one size and length have to have `list_recipe` in common too.
    """
    plain = config_lib.build_run_identity(config)
    for name in ("seed", "steps", "batch_size"):
        del plain[name]
    for name in _SIZE:
        plain["model"].pop(name, None)
    del plain["mixture"]["ratio"]
    for name in _RATES:  # larger models take other rates
        del plain["optimizer"][name]
    return config_lib.hash_plain_values(plain)


def _has_own_tokenizers(config: Config) -> bool:
    """Returns whether languages of a run have different tokenizers; words need none."""
    names = {config.source_of(tag) for tag in config.tags}
    texts = {name: config.sources[name] for name in names}
    found = {s.tokenizer.path or name for name, s in texts.items() if s.kind != "synthetic"}
    return config.vocabulary.layout != "joint" and len(found) > 1


def list_shape(config: Config) -> tuple[float, ...]:
    """Returns the size and the length of a run."""
    sizes = [getattr(config.model, name) for name in _SIZE]
    return (*sizes, config.steps * config.batch_size)


def list_recipe(config: Config) -> tuple[float, ...]:
    """Returns what runs of one size and length have in common if their ratio alone differs."""
    rates = [getattr(config.optimizer, name) for name in _RATES]
    return (config.batch_size, *rates)


def _choose_recipes(configs: Mapping[str, Config]) -> list[str]:
    """Returns the cells that are trained as most of their size and length are."""
    by_shape: defaultdict[tuple[float, ...], defaultdict[tuple[float, ...], list[str]]]
    by_shape = defaultdict(lambda: defaultdict(list))
    for cell, config in configs.items():
        by_shape[list_shape(config)][list_recipe(config)].append(cell)
    return [cell for of in by_shape.values() for cell in max(of.values(), key=len)]


def _count_text(rows: Sequence[Observation]) -> list[float]:
    """Returns the tokens of text that there are of each language of a run."""
    used: defaultdict[str, float] = defaultdict(float)
    for row in rows:
        used[row.source] += row.tokens
    return [used[row.source] / row.epochs if row.epochs > 0 else math.nan for row in rows]
