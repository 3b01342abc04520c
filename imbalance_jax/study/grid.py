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
from typing import Any

import ml_collections

from imbalance_jax import config as config_lib
from imbalance_jax.config import Config, costs

KINDS = {
    "mixture": "what is studied",
    "monolingual": "the language alone, on a part of the steps, with a schedule of its own",
    "matched": "the language alone, with the mixture's updates and its part of the batch",
    "wide": "the language alone, with the mixture's output vocabulary",
    "epochs": "the language alone, matched in updates, unique tokens and epochs",
    "placebo": "the mixture, its partner's tokens shuffled",
    "anchored": "the mixture, its partner the same language under the same ids",
    "copied": "the mixture, the clone's rows starting as copies of its parent's",
    "sweep": "a learning-rate sweep around another cell",
}
# The kinds that a law is fitted to.
BASELINES = ("monolingual", "matched", "wide", "epochs")
NEAR = 0.1  # how far the tokens of a baseline may be from those it stands for
# Of a language, of a pair of languages, and what needs `against`: nothing says what 0 would be.
MEASURES = (
    *("loss", "language_nats", "loss_own", "bits_per_byte", "top1"),
    *("log_teff", "alignment", "retrieval", "accuracy"),
)
PAIR_MEASURES = ("alignment", "retrieval")
_OF_TEXT = ("loss", "language_nats", "loss_own", "bits_per_byte", "top1")
DIRECTIONS = ("lower", "higher", "same")


@dataclasses.dataclass(frozen=True)
class RunSpec:
    """One run of a study."""

    config: Config
    cell: str = ""  # the condition; runs of one cell differ in their seed alone
    kind: str = "mixture"  # one of KINDS
    figures: tuple[str, ...] = ()  # of the reference study, that it belongs to
    reference: Mapping[str, str] = dataclasses.field(default_factory=dict)  # its setting there
    # Source -> the fingerprint of its prepared text, once that is known: whatever machine trains
    # the run opens that text.
    text: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def hash(self) -> str:
        """Stands for what is trained on what: equal for runs that would repeat each other."""
        return self._digest(config_lib.build_run_identity(self.config))

    @property
    def earlier_hash(self) -> str:
        """The hash of versions that took config.optimizer.accumulate for a part of a run."""
        plain = config_lib.build_run_identity(self.config)
        plain["optimizer"]["accumulate"] = self.config.optimizer.accumulate
        return self._digest(plain)

    def _digest(self, plain: dict[str, Any]) -> str:
        if not self.config.mixture.temperature:
            # 90 to 10 is 9 to 1.
            plain["mixture"]["ratio"] = config_lib.reduce_ratio(self.config.mixture.ratio)
        return config_lib.hash_plain_values(plain)


@dataclasses.dataclass(frozen=True)
class Claim:
    """What a study is to decide, stated before it runs.

    The effect is the measure of `language` in `cell` minus that in `against`, seed by seed.
    `top1` is the next token's accuracy, `accuracy` that of tasks (transfer.json), `alignment` and
    `retrieval` those of hidden states, of a pair such as en1-en2. `against` may be empty for
    log_teff (an effect of 0 is a TEff of 1; `baseline` says which law gives the monolingual
    tokens), for alignment and retrieval (shuffled pairs, and chance) and for accuracy (always the
    most frequent label).
    """

    statement: str = ""  # in words
    measure: str = "loss"  # one of MEASURES
    cell: str = ""
    language: str = ""
    against: str = ""  # another cell, or a kind of baseline with as many tokens
    against_language: str = ""  # "" is the same language
    trained_in: str = ""  # accuracy: the language that the tasks were learnt in; "" is the same
    baseline: str = "monolingual"  # log_teff: whose law; one of BASELINES
    direction: str = "lower"  # lower | higher | same
    smallest: float = 0.01  # the smallest effect of interest, in units of the measure


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """A study, whole."""

    description: str = ""
    unit_tokens: int = 0  # tokens of "1x", which fractions and laws count in
    runs: Mapping[str, RunSpec] = dataclasses.field(default_factory=dict)  # by id
    claims: Mapping[str, Claim] = dataclasses.field(default_factory=dict)
    reuse: tuple[str, ...] = ()  # directories of studies whose runs serve, where equal


class Grid:
    """Collects the runs of a study. Every method that adds returns the names of its cells."""

    def __init__(self, description: str, *, unit: ml_collections.ConfigDict) -> None:
        """Args: unit is a run of the whole length, whose tokens are "1x"."""
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
        for seed in seeds:
            mine = ml_collections.ConfigDict(config.to_dict())
            mine.seed = seed
            spec = ml_collections.ConfigDict(
                {
                    "config": mine,
                    "cell": cell,
                    "kind": kind,
                    "figures": tuple(figures),
                    "reference": dict(reference or {}),
                }
            )
            name = f"{cell}_s{seed}"
            if name in self._study.runs:
                if self._study.runs[name].config.to_dict() != mine.to_dict():
                    raise ValueError(
                        f"The grid has two different runs {name}. Give one of the two another cell."
                    )
                _merge_run_labels(self._study.runs[name], spec)
                continue
            self._study.runs[name] = spec
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

        The whole of the tokens is one run for all kinds but `wide`. Baselines of equal text
        and model are the same run, so they are added once however many mixtures share them.

        Args:
          config: of the mixture.
          tag: the language; a clone's baseline is its parent.
          fractions: of the mixture's tokens.
          seeds: of the runs.
          kinds: of BASELINES.
          prefix: of the cells' names, where a grid has baselines of several models.
          labels: as for `add`.
        """
        seeds, cells = list(seeds), []
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

    def sweep(
        self,
        cell: str,
        config: ml_collections.ConfigDict,
        *,
        factors: Iterable[float] = (0.25, 0.5, 1, 2, 4),
        seeds: Iterable[int] = (0,),
    ) -> list[str]:
        """Adds a cell at other peak learning rates, by factors of its own."""
        seeds, cells = list(seeds), []
        for factor in factors:
            changed = ml_collections.ConfigDict(config.to_dict())
            changed.optimizer.peak_lr = config.optimizer.peak_lr * factor
            changed.optimizer.final_lr = config.optimizer.final_lr * factor
            if factor != 1:
                name = f"{cell}_lr{_format_decimal(factor)}"
                cells.append(self.add(name, changed, seeds=seeds, kind="sweep"))
        return cells

    def claim(self, name: str, statement: str, **fields: Any) -> None:
        """States what the study is to decide; see `Claim` for the fields."""
        self._study.claims[name] = config_lib.declared(Claim, statement=statement, **fields)

    def to_config(self) -> ml_collections.ConfigDict:
        return self._study


def _merge_run_labels(spec: ml_collections.ConfigDict, other: ml_collections.ConfigDict) -> None:
    """Lets a run that is there already serve for other figures too."""
    spec.figures = tuple(dict.fromkeys((*spec.figures, *other.figures)))
    if other.reference and not spec.reference:
        spec.reference = other.reference


def make_baseline(
    config: ml_collections.ConfigDict, tag: str, fraction: float, kind: str
) -> ml_collections.ConfigDict:
    """Returns the monolingual baseline of a language of a mixture.

    Args:
      config: of the mixture.
      tag: the language; a clone's baseline is its parent, whose text it has.
      fraction: of the mixture's tokens.
      kind: one of BASELINES. `monolingual` and `wide` have a fraction of the steps and their
        own whole learning-rate schedule, as in the reference study; `matched` and `epochs`
        have all steps and a fraction of the batch, to the nearest sequence; `epochs` also has
        that fraction of the text, so that it comes as often as in the mixture.

    Raises:
      ValueError: nothing is left to train on.
    """
    changed = ml_collections.ConfigDict(config.to_dict())
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
    changed.mixture.temperature = 0.0
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
    changed = ml_collections.ConfigDict(config.to_dict())
    changed.languages[partner].words = "shuffled"
    return changed


def anchored(
    config: ml_collections.ConfigDict, clone: str, share: float = 1.0
) -> ml_collections.ConfigDict:
    """Returns a mixture whose clone keeps a share of its parent's ids."""
    changed = ml_collections.ConfigDict(config.to_dict())
    changed.languages[clone].anchors = float(share)
    if share == 1:
        changed.vocabulary.anchor_specials = "always"
    return changed


def copied(config: ml_collections.ConfigDict, clone: str) -> ml_collections.ConfigDict:
    """Returns a mixture whose clone begins with its parent's embeddings and output rows."""
    changed = ml_collections.ConfigDict(config.to_dict())
    changed.languages[clone].rows = "copied"
    return changed


def lengthen_run(config: ml_collections.ConfigDict, factor: float) -> ml_collections.ConfigDict:
    """Returns a run of so many times the steps, rounded down as in the reference study."""
    changed = ml_collections.ConfigDict(config.to_dict())
    changed.steps = int(factor * config.steps + 1e-9)
    return changed


def percent(fraction: float) -> str:
    """Returns a fraction as a part of a cell's name: 0.05 is 5, 0.125 is 12p5."""
    return _format_decimal(fraction * 100)


def _format_decimal(value: float) -> str:
    return f"{value:.6g}".replace(".", "p")


def parse_seeds(text: str) -> range:
    """Returns seeds 0 .. n - 1 for a choice such as seeds=3."""
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"seeds={text}: write how many, such as 3.")
    return range(int(text))


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
    rest = config_lib.parse_dataclass(StudyConfig, values)
    study = dataclasses.replace(rest, runs=runs)
    _check_study(study, begun)
    if not begun:
        for name, claim in study.claims.items():
            _check_decidable(name, claim, study)
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


def _check_study(study: StudyConfig, begun: bool) -> None:
    if not study.runs:
        raise ValueError("The study has no runs. Add some to its grid.")
    seen: dict[str, str] = {}
    for name, spec in study.runs.items():
        if not re.fullmatch(r"[a-z0-9_]+", name):
            raise ValueError(f"config.runs.{name}: a run's id is made of a-z, 0-9 and _ only.")
        if spec.kind not in KINDS:
            raise ValueError(
                f"config.runs.{name}.kind={spec.kind!r} is not one of {', '.join(KINDS)}."
            )
        # Earlier versions took runs that differ in optimizer.accumulate alone for two.
        if spec.hash in seen and not begun:
            raise ValueError(
                f"Runs {seen[spec.hash]} and {name} of the study are the same run: nothing that "
                "is trained differs between them. Drop one of the two, or change what it is to "
                "vary."
            )
        seen[spec.hash] = name
    cells = {spec.cell for spec in study.runs.values()}
    for name, claim in study.claims.items():
        _check_claim(name, claim, study, cells)


def _check_claim(name: str, claim: Claim, study: StudyConfig, cells: set[str]) -> None:
    field = f"config.claims.{name}"
    for part, allowed in (
        ("measure", MEASURES),
        ("direction", DIRECTIONS),
        ("baseline", BASELINES),
    ):
        if getattr(claim, part) not in allowed:
            raise ValueError(
                f"{field}.{part}={getattr(claim, part)!r} is not one of {', '.join(allowed)}."
            )
    for part in ("cell", "against"):
        value = getattr(claim, part)
        if value not in cells and not (part == "against" and (not value or value in BASELINES)):
            raise ValueError(
                f"{field}.{part}={value!r} is no cell of the study. It has: "
                f"{', '.join(sorted(cells))}."
            )
    if not claim.against and claim.measure in _OF_TEXT:
        raise ValueError(f"{field}.against is empty. Name the cell that {claim.cell} is held to.")
    if claim.measure == "log_teff" and claim.baseline not in {
        spec.kind for spec in study.runs.values()
    }:
        raise ValueError(
            f"{field}: a TEff is read off a law of {claim.baseline} baselines, and the grid has no "
            "such runs. Add them with Grid.baselines, or set another baseline."
        )
    if not claim.smallest > 0:
        raise ValueError(
            f"{field}.smallest={claim.smallest} must be above 0: the smallest effect that would "
            "matter, so that its absence can be shown too."
        )
    for cell, language in (
        (claim.cell, claim.language),
        (claim.against, claim.against_language or claim.language),
    ):
        if claim.measure in PAIR_MEASURES or cell not in cells:
            continue
        tags = next(spec.config.tags for spec in study.runs.values() if spec.cell == cell)
        if language not in tags:
            raise ValueError(
                f"{field}: cell {cell} has no language {language!r}. It has: {', '.join(tags)}."
            )


def _check_decidable(name: str, claim: Claim, study: StudyConfig) -> None:
    """Raises ValueError for a claim that is well formed and that no run of the grid can decide."""
    field, cells = f"config.claims.{name}", {spec.cell for spec in study.runs.values()}
    if claim.against in BASELINES and claim.against not in cells and claim.measure not in _OF_TEXT:
        raise ValueError(
            f"{field}.against={claim.against!r}: {claim.measure} is held against another cell, or "
            "against nothing. Name a cell, or leave it empty."
        )
    kinds = {spec.kind for spec in study.runs.values()}
    # The whole of the language alone is matched to the mixture too.
    alike = {"matched": "monolingual", "epochs": "monolingual"}.get(claim.against, "")
    if claim.against in {*BASELINES} - cells and not {claim.against, alike} & kinds:
        raise ValueError(
            f"{field}.against={claim.against!r}: the grid has no such runs. Add them with "
            "Grid.baselines, or name another cell."
        )
    if claim.against_language and not claim.against:
        raise ValueError(
            f"{field}.against_language={claim.against_language!r} is of no cell. Set against, or "
            "leave it out."
        )
    if claim.trained_in and claim.measure != "accuracy":
        raise ValueError(
            f"{field}.trained_in={claim.trained_in!r} is of accuracy alone, and this claim is of "
            f"{claim.measure}. Leave it out."
        )
    for cell in (claim.cell, claim.against):
        if cell not in cells:
            continue
        tags = next(spec.config.tags for spec in study.runs.values() if spec.cell == cell)
        if claim.measure in PAIR_MEASURES:
            pairs = ["-".join(pair) for pair in itertools.combinations(tags, 2)]
            if claim.language not in pairs:
                raise ValueError(
                    f"{field}.language={claim.language!r}: {claim.measure} is of a pair of "
                    f"languages, and cell {cell} has {', '.join(pairs) or 'one language'}."
                )
            if claim.against_language:
                raise ValueError(
                    f"{field}.against_language: {claim.measure} of another cell is that of the "
                    "same pair. Leave it out."
                )
        if claim.trained_in and claim.trained_in not in tags:
            raise ValueError(
                f"{field}.trained_in={claim.trained_in!r}: cell {cell} has no such language. It "
                f"has: {', '.join(tags)}."
            )


def convert_study_to_dict(study: StudyConfig) -> dict[str, Any]:
    """Returns a study as study.json has it; each run with its hash."""
    plain = config_lib.to_dict(study)
    for name, spec in study.runs.items():
        plain["runs"][name]["hash"] = spec.hash
        plain["runs"][name]["seed"] = spec.config.seed
    return plain


def count_run_tokens(spec: RunSpec) -> int:
    return costs.count_training_tokens(spec.config)
