"""What a study is made of: a grid of runs, the baselines they are held against, and claims.

A file in `configs/studies/` builds a `Grid` and returns its ConfigDict:

    grid = Grid("Two clones at four ratios.", unit=config)
    grid.add("r90_10", config, seeds=range(3))
    grid.baselines(config, "en1", fractions=(0.1, 0.5, 1), seeds=range(3))
    grid.claim("dominance_helps", ...)
    return grid.to_config()

`resolve_study` turns that into a StudyConfig once. Neither jax nor the text is needed for it.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import ml_collections

from imbalance_jax import config as config_lib
from imbalance_jax.config.bounds import INT64, Bounds, FieldGroup
from imbalance_jax.study.claim import Claim as Claim
from imbalance_jax.study.claim import check_claim, check_decidable
from imbalance_jax.study.objective import Objective, check_objective
from imbalance_jax.study.run_spec import BASELINES as BASELINES
from imbalance_jax.study.run_spec import KINDS
from imbalance_jax.study.run_spec import RunSpec as RunSpec

# The runs of a grid are in memory together, and each takes about 20 ms at every start.
_MOST_SEEDS = 10_000


@dataclasses.dataclass(frozen=True)
class StudyConfig(FieldGroup, place="config"):
    """A study, whole."""

    description: str = ""
    # Tokens of "1x", which fractions and laws count in.
    unit_tokens: Annotated[int, Bounds(0, INT64)] = 0
    runs: Mapping[str, RunSpec] = dataclasses.field(default_factory=dict)  # by id
    claims: Mapping[str, Claim] = dataclasses.field(default_factory=dict)
    objectives: Mapping[str, Objective] = dataclasses.field(default_factory=dict)  # of proposals
    reuse: tuple[str, ...] = ()  # directories of studies whose runs serve, where equal


class Grid:
    """Collects the runs of a study. Every method that adds returns the names of its cells."""

    def __init__(self, description: str, *, unit: ml_collections.ConfigDict) -> None:
        """Begins an empty grid. `unit` is a run of the whole length, whose tokens are "1x"."""
        self._study = config_lib.declared(StudyConfig, description=" ".join(description.split()))
        self._study.unit_tokens = unit.steps * unit.batch_size * unit.model.L

    def add(
        self,
        cell: str,
        config: ml_collections.ConfigDict,
        *,
        seeds: Iterable[int],
        kind: str = "mixture",
        figures: Sequence[str] = (),
        reference: Mapping[str, str] | None = None,
    ) -> str:
        """Adds a cell: the same config with each seed. Adding it a second time changes nothing.

        Raises:
          ValueError: another config has that cell and seed already.
        """
        for seed in _list_seeds(seeds):
            seeded = _copy_config(config)
            seeded.seed = seed
            spec = {"config": seeded, "cell": cell, "kind": kind, "figures": tuple(figures)}
            spec["reference"] = dict(reference or {})
            name = f"{cell}_s{seed}"
            earlier = self._study.runs.get(name)
            if earlier is None:
                self._study.runs[name] = ml_collections.ConfigDict(spec)
                continue
            if earlier.config.to_dict() != seeded.to_dict():
                raise ValueError(
                    f"The grid has two different runs {name}. Give one of the two another cell."
                )
            # The run that is there already serves for other figures too.
            earlier.figures = tuple(dict.fromkeys((*earlier.figures, *figures)))
            if reference and not earlier.reference:
                earlier.reference = ml_collections.ConfigDict(reference)
        return cell

    def baselines(
        self,
        config: ml_collections.ConfigDict,
        tag: str,
        *,
        fractions: Iterable[float],
        seeds: Iterable[int],
        kinds: Sequence[str] = ("monolingual", "matched"),
        prefix: str = "",
        **labels: Any,
    ) -> list[str]:
        """Adds a language alone at parts of a mixture's tokens, in each of some kinds.

        The fractions are of the mixture's tokens. The whole of them is one run for all kinds but
        `wide`. Baselines of equal text and model are the same run, so they are added once
        however many mixtures share them. A `prefix` of the cells' names tells the baselines of
        several models apart; `labels` are as for `add`.
        """
        seeds, cells = _list_seeds(seeds), []
        for kind in kinds:
            for fraction in fractions:
                if fraction >= 1 and kind in ("matched", "epochs"):
                    continue
                baseline = make_baseline(config, tag, fraction, kind)
                origin = config.languages[tag].clone_of or tag
                short = {"monolingual": "mono"}.get(kind, kind)
                cell = f"{prefix}{short}_{origin}_{percent(fraction)}"
                cells.append(self.add(cell, baseline, seeds=seeds, kind=kind, **labels))
        return cells

    def tune_epochs(
        self,
        config: ml_collections.ConfigDict,
        tag: str,
        *,
        fractions: Iterable[float],
        seeds: Iterable[int],
        epochs: Iterable[float] = (0.5, 1, 2, 4),
        decays: Iterable[float] = (0.0, 0.1, 1.0),
        prefix: str = "",
    ) -> list[str]:
        """Adds `epochs` baselines that go through their text more or less often, and decay more.

        A fraction's text is that of its `epochs` baseline, gone through so many times as often, in
        larger or smaller batches, with each weight decay. The law of `epochs` baselines
        takes the best of each fraction.
        """
        seeds, cells = _list_seeds(seeds), []
        origin = config.languages[tag].clone_of or tag
        for fraction, often, decay in itertools.product(fractions, epochs, decays):
            if fraction >= 1:
                continue
            tuned = make_baseline(config, tag, fraction, "epochs")
            tuned.batch_size = max(1, round(fraction * often * config.batch_size))
            tuned.optimizer.weight_decay = float(decay)
            if tuned.to_dict() == make_baseline(config, tag, fraction, "epochs").to_dict():
                name = f"{prefix}epochs_{origin}_{percent(fraction)}"
            else:
                setting = f"e{_format_decimal(often)}_wd{_format_decimal(decay)}"
                name = f"{prefix}epochs_{origin}_{percent(fraction)}_{setting}"
            cells.append(self.add(name, tuned, seeds=seeds, kind="epochs"))
        return cells

    def sweep(
        self,
        cell: str,
        config: ml_collections.ConfigDict,
        *,
        factors: Iterable[float] = (0.25, 0.5, 1, 2, 4),
        seeds: Iterable[int] = (0,),
    ) -> list[str]:
        """Adds a cell at other peak learning rates, by factors of its own."""
        seeds, cells = _list_seeds(seeds), []
        for factor in factors:
            changed = _copy_config(config)
            changed.optimizer.peak_lr = config.optimizer.peak_lr * factor
            changed.optimizer.final_lr = config.optimizer.final_lr * factor
            if factor != 1:
                name = f"{cell}_lr{_format_decimal(factor)}"
                cells.append(self.add(name, changed, seeds=seeds, kind="sweep"))
        return cells

    def claim(self, name: str, statement: str, **fields: Any) -> None:
        """States what the study is to decide; see `Claim` for the fields."""
        self._study.claims[name] = config_lib.declared(Claim, statement=statement, **fields)

    def objective(self, name: str, **fields: Any) -> None:
        """States what `study propose` is to choose a ratio for; see `Objective` for the fields."""
        self._study.objectives[name] = config_lib.declared(Objective, **fields)

    def to_config(self) -> ml_collections.ConfigDict:
        return self._study


def _list_seeds(seeds: Iterable[int]) -> list[int]:
    """Returns the seeds of a cell.

    Raises:
      ValueError: they are more than a grid can have; the others are not made.
    """
    found = list(itertools.islice(seeds, _MOST_SEEDS + 1))
    if len(found) > _MOST_SEEDS:
        raise ValueError(
            f"seeds from {found[0]} on are more than {_MOST_SEEDS:,}, and each makes a run of a "
            "cell. Use fewer seeds."
        )
    return found


def _copy_config(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(config.to_dict())


def make_baseline(
    config: ml_collections.ConfigDict, tag: str, fraction: float, kind: str
) -> ml_collections.ConfigDict:
    """Returns the monolingual baseline of a language, with a fraction of its mixture's tokens.

    A clone's baseline is its parent, whose text it has. The kinds `monolingual` and `wide` have a
    fraction of the steps and their own whole learning-rate schedule, as in the reference study;
    `matched` and `epochs` have all steps and a fraction of the batch, to the nearest sequence;
    `epochs` also has that fraction of the text, so that it comes as often as in the mixture.

    Raises:
      ValueError: nothing is left to train on.
    """
    changed = _copy_config(config)
    tag = config.languages[tag].clone_of or tag
    if kind == "wide":
        changed.mixture.ratio = {name: int(name == tag) for name in config.languages}
    else:
        changed.languages = {tag: changed.languages[tag]}
        changed.mixture.ratio = {tag: 1}
        name = config.languages[tag].source
        # A joint tokenizer is trained on all sources, also for a model of one.
        if config.vocabulary.layout != "joint":
            changed.sources = {name: changed.sources[name]}
            changed.parallel = ml_collections.ConfigDict()
    changed.mixture.stages = changed.mixture.same_total_as = ()
    changed.mixture.temperature = changed.mixture.max_epochs = 0.0
    changed.mixture.loss_weights = {}
    changed.evaluation.alignment.languages = ()
    if kind in ("matched", "epochs"):
        changed.batch_size = max(1, round(fraction * config.batch_size))
        changed.optimizer.accumulate = 1
        if kind == "epochs":
            changed.mixture.text_share = float(fraction)
        return changed
    changed.steps = int(fraction * config.steps + 1e-9)
    if changed.steps < 1:
        raise ValueError(
            f"A fraction {fraction} of {config.steps} steps is none. Use more steps, or a larger "
            "fraction."
        )
    return changed


def placebo(config: ml_collections.ConfigDict, partner: str) -> ml_collections.ConfigDict:
    """Returns a mixture whose partner has the frequencies of a language and none of its order."""
    changed = _copy_config(config)
    changed.languages[partner].words = "shuffled"
    return changed


def anchored(
    config: ml_collections.ConfigDict, clone: str, share: float = 1.0
) -> ml_collections.ConfigDict:
    """Returns a mixture whose clone keeps a share of its parent's ids."""
    changed = _copy_config(config)
    changed.languages[clone].anchors = float(share)
    if share == 1:
        changed.vocabulary.anchor_specials = "always"
    return changed


def copied(config: ml_collections.ConfigDict, clone: str) -> ml_collections.ConfigDict:
    """Returns a mixture whose clone begins with its parent's embeddings and output rows."""
    changed = _copy_config(config)
    changed.languages[clone].rows = "copied"
    return changed


def lengthen_run(config: ml_collections.ConfigDict, factor: float) -> ml_collections.ConfigDict:
    """Returns a run of so many times the steps, rounded down as in the reference study."""
    changed = _copy_config(config)
    changed.steps = int(factor * config.steps + 1e-9)
    return changed


def percent(fraction: float) -> str:
    """Returns a fraction as a part of a cell's name: 0.05 is 5, 0.125 is 12p5."""
    return _format_decimal(fraction * 100)


def _format_decimal(value: float) -> str:
    return f"{value:.6g}".replace(".", "p")


def parse_seeds(text: str) -> range:
    """Returns seeds 0 .. n - 1 for a choice such as seeds=3, and 10 .. 14 for seeds=10-14.

    Raises:
      ValueError: the text says neither.
    """
    first, dash, last = text.partition("-")
    found = range(0)
    if re.fullmatch(r"\d{1,20}", text):
        found = range(int(text))
    elif re.fullmatch(r"\d{1,20}-\d{1,20}", text):
        found = range(int(first), int(last) + 1)
    if not found:
        raise ValueError(f"seeds={text}: write how many, such as 3, or which, such as 10-14.")
    _list_seeds(found)
    return found


def resolve_study(
    values: ml_collections.ConfigDict | Mapping[str, Any], *, begun: bool = False
) -> StudyConfig:
    """Returns the typed study of a ConfigDict, or of a study.json read back.

    Args:
      values: of its fields.
      begun: whether they are of a study.json. Its claims are read even where no run decides
        them, and its runs even where two are the same: earlier versions let both be made, and
        what was trained is shown.

    Raises:
      ValueError: the config is none of a study, a field is wrong, or two runs are the same.
    """
    if isinstance(values, ml_collections.ConfigDict):
        values = values.to_dict()
    values = dict(values)
    if "runs" not in values:
        raise ValueError(
            "--config is not that of a study: it has no field `runs`. Give a file in "
            "configs/studies/, or train a single run with python -m imbalance_jax.main."
        )
    runs = {name: _parse_run_spec(name, spec) for name, spec in values.pop("runs").items()}
    runs = dict(sorted(runs.items(), key=_make_run_sort_key))
    study = dataclasses.replace(config_lib.parse_dataclass(StudyConfig, values), runs=runs)
    _check_runs(study, begun)
    tags_by_cell = {spec.cell: spec.config.tags for spec in reversed(runs.values())}
    kinds = {spec.kind for spec in runs.values()}
    for check in (check_claim,) if begun else (check_claim, check_decidable):
        for name, claim in study.claims.items():
            check(f"config.claims.{name}", claim, tags_by_cell, kinds)
    mixed = [spec.config.tags for spec in runs.values() if spec.kind == "mixture"]
    languages = list(dict.fromkeys(tag for tags in mixed for tag in tags))
    for name, objective in study.objectives.items():
        if not re.fullmatch(r"[a-z0-9_]+", name):
            raise ValueError(f"config.objectives.{name}: a name is made of a-z, 0-9 and _ only.")
        check_objective(f"config.objectives.{name}", objective, languages)
    return study


def _make_run_sort_key(item: tuple[str, RunSpec]) -> tuple:
    """Orders runs so that a study stopped halfway has every cell with some of its seeds."""
    name, spec = item
    kind = list(KINDS).index(spec.kind) if spec.kind in KINDS else 0
    return spec.config.seed, kind, config_lib.make_natural_sort_key(name)


def _parse_run_spec(name: str, values: Mapping[str, Any]) -> RunSpec:
    try:
        return config_lib.parse_dataclass(RunSpec, values)
    except ValueError as error:
        raise ValueError(f"Run {name} of the study: {error}") from error


def _check_runs(study: StudyConfig, begun: bool) -> None:
    if not study.runs:
        raise ValueError("The study has no runs. Add some to its grid.")
    names: dict[str, str] = {}  # by hash
    for name, spec in study.runs.items():
        if not re.fullmatch(r"[a-z0-9_]+", name):
            raise ValueError(f"config.runs.{name}: a run's id is made of a-z, 0-9 and _ only.")
        if spec.kind not in KINDS:
            raise ValueError(
                f"config.runs.{name}.kind={spec.kind!r} is not one of {', '.join(KINDS)}."
            )
        mixture = spec.config.mixture
        ratios = {} if mixture.follows_text else {"ratio": mixture.ratio}
        ratios |= {f"stages[{place}]": ratio for place, (_, ratio) in enumerate(mixture.stages)}
        for field, ratio in ratios.items():
            if not any(ratio.values()):
                raise ValueError(
                    f"Run {name} of the study: config.mixture.{field} is zero for every language. "
                    "Give one of them 1."
                )
        # Earlier versions took runs that differ in optimizer.accumulate alone for two.
        if spec.hash in names and not begun:
            raise ValueError(
                f"Runs {names[spec.hash]} and {name} of the study are the same run: nothing that "
                "is trained differs between them. Drop one of the two, or change what it is to "
                "vary."
            )
        names[spec.hash] = name


def convert_study_to_dict(study: StudyConfig) -> dict[str, Any]:
    """Returns a study as study.json has it; each run with its hash."""
    plain = config_lib.to_dict(study)
    for name, spec in study.runs.items():
        plain["runs"][name]["hash"] = spec.hash
        plain["runs"][name]["seed"] = spec.config.seed
    return plain
