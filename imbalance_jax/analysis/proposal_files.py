"""Proposals in a study's directory, and what was run of them since."""

import dataclasses
import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from imbalance_jax import config as config_lib
from imbalance_jax.analysis.fitted_laws import group_by_cell
from imbalance_jax.analysis.mixture_cells import list_recipe, list_shape, make_group_key
from imbalance_jax.analysis.proposals import VERSION, Proposal
from imbalance_jax.analysis.study_table import Observation, StudyTable
from imbalance_jax.config import costs
from imbalance_jax.runs import damaged_files, storage
from imbalance_jax.study.study_directory import StudyDirectory

FOLDER = "proposals"
_REMEDY = "Delete it, and propose again with python -m imbalance_jax.study propose."
_NUMBER, _INTERVAL = damaged_files.NUMBER, list
_INTERVALS = dict.fromkeys(("interval", "same_seeds_interval", "run_interval"), _INTERVAL)
_ERRORS = dict.fromkeys(("ratios", "ends", "sizes", "largest"), _NUMBER)
_LAW = {"form": str, "formula": str, "source": str, "errors": {"*": _ERRORS}}
_LAW["interpolation"] = _ERRORS
_SHAPE = {
    "version": int,
    "name": str,
    "objective": dict,
    "ratio": {"*": int},
    "target": {"parameters": _NUMBER, "tokens": _NUMBER},
    "shares": {"*": _INTERVAL},
    "losses": {"*": {"value": _NUMBER, **_INTERVALS}},
    "laws": {"*": _LAW | {"parameters": {"*": {"value": _NUMBER, "interval": _INTERVAL}}}},
    "runs": list,
    "seeds": list,
    "left_out": list,
    "repeated": bool,
    "extrapolated": list,
    "next_runs": list,
}
_LEFT_OUT = {"ratios": "ratios", "sizes": "sizes", "largest": "largest size"}
_NEAR = 0.01  # how far the tokens and parameters of a run may be from those proposed


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A language of a cell at a proposal's ratio, which the proposal does not rest on."""

    cell: str
    language: str
    seeds: tuple[int, ...]
    same_seeds: bool  # as those that the proposal rests on: else it is one run with another seed
    predicted: float  # nats per token
    interval: tuple[float, float]
    loss: float  # mean over the seeds

    @property
    def inside(self) -> bool:
        return self.interval[0] <= self.loss <= self.interval[1]


def write_proposal(
    directory: StudyDirectory, proposal: Proposal, table: StudyTable
) -> list[epath.Path]:
    """Writes proposals/NAME.json into a study's directory.

    An earlier proposal of that name is kept as NAME-1.json, or the next number, if the study has a
    run of its ratio since: else what was predicted of that run would be lost.

    Returns:
      The file, and the one that the earlier proposal is kept in, if any.

    Raises:
      DamagedFileError: the earlier proposal cannot be read.
    """
    path = directory.path / FOLDER / f"{proposal.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = []
    if path.exists():
        earlier = damaged_files.read_json(path, _REMEDY, _SHAPE)
        if earlier["version"] != VERSION or any(_list_later_runs(earlier, table)):
            kept = [_keep_file(path)]
    text = damaged_files.format_checked_json(proposal.to_dict(), indent=1)
    storage.write_file_atomically(path, text.encode())
    return [path, *kept]


def _keep_file(path: epath.Path) -> epath.Path:
    """Copies a proposal to the first number that is free, or that has it already."""
    content = path.read_bytes()
    for number in itertools.count(1):
        kept = path.parent / f"{path.stem}-{number}.json"
        if not kept.exists():
            storage.write_file_atomically(kept, content)
            return kept
        if kept.read_bytes() == content:
            return kept
    raise AssertionError("numbers do not end")


def read_proposals(directory: StudyDirectory) -> list[dict[str, Any]]:
    """Returns the proposals of a study, by the names of their files.

    Raises:
      DamagedFileError: one is not what was written.
    """
    paths = sorted((directory.path / FOLDER).glob("*.json"), key=str)
    found = [damaged_files.read_json(path, _REMEDY, _SHAPE) for path in paths]
    named = [each | {"name": path.stem} for each, path in zip(found, paths, strict=True)]
    return [proposal for proposal in named if proposal["version"] == VERSION]


def list_outcomes(proposal: Mapping[str, Any], table: StudyTable) -> list[Outcome]:
    """Returns what came of a proposal: cells at its ratio, size and length, run after it.

    Where a cell has all seeds that the proposal rests on, their mean is held against the interval
    of such a mean, as what a seed does to all cells alike is in both. Other runs are held against
    the interval of one run.
    """
    outcomes = []
    for (cell, tag), rows in group_by_cell(_list_later_rows(proposal, table)).items():
        predicted, value = proposal["losses"][tag], proposal["losses"][tag]["value"]
        known = [row for row in rows if row.seed in proposal["seeds"]]
        together = len(known) == len(proposal["seeds"])
        if together:
            seeds = tuple(sorted(row.seed for row in known))
            mean = statistics.fmean(row.loss for row in known)
            interval = tuple(predicted["same_seeds_interval"])
            outcomes.append(Outcome(cell, tag, seeds, True, value, interval, mean))
        interval = tuple(predicted["run_interval"])
        outcomes += [
            Outcome(cell, tag, (row.seed,), False, value, interval, row.loss)
            for row in rows
            if not (together and row in known)
        ]
    return outcomes


def _list_later_rows(proposal: Mapping[str, Any], table: StudyTable) -> Iterator[Observation]:
    later = set(_list_later_runs(proposal, table))
    for row in table.observations:
        of_size = _is_near(row.parameters, proposal["target"]["parameters"])
        if row.run in later and of_size and row.language in proposal["losses"]:
            yield row


def _list_later_runs(proposal: Mapping[str, Any], table: StudyTable) -> Iterator[str]:
    """Yields runs of a proposal's ratio and length, done or not, that it does not rest on.

    They differ in nothing but ratio, size and length from those that it rests on.
    """
    rests = [table.runs[name].config for name in proposal["runs"] if name in table.runs]
    groups = {make_group_key(config) for config in rests}
    recipes = defaultdict(set)
    for config in rests:
        recipes[list_shape(config)].add(list_recipe(config))
    for name, run in table.runs.items():
        config = run.config
        plain = run.spec.kind == "mixture" and not config.mixture.stages
        later = name not in proposal["runs"] and run.spec.cell not in proposal["left_out"]
        if not (
            plain and later and config_lib.reduce_ratio(config.mixture.ratio) == proposal["ratio"]
        ):
            continue
        alike = not groups or make_group_key(config) in groups
        recipe = recipes.get(list_shape(config))
        tokens = math.fsum(costs.count_language_tokens(config).values())
        as_trained = recipe is None or list_recipe(config) in recipe
        if alike and as_trained and _is_near(tokens, proposal["target"]["tokens"]):
            yield name


def _is_near(has: float, asked: float) -> bool:
    return math.isclose(has, asked, rel_tol=_NEAR)


def describe_objective(objective: Mapping[str, Any]) -> str:
    """Returns in words what a ratio was chosen for."""
    unit = {"nats": "", "bits_per_byte": " in bits per byte"}[objective["unit"]]
    if objective["kind"] == "minimax":
        words = f"the largest loss of a language{unit} is least"
    elif objective["kind"] == "least":
        than = ":".join(map(str, objective["than"].values()))
        words = (
            f"the loss of {objective['language']} is least, and no other is more than "
            f"{objective['worse']:g}{unit or ' nats'} above its loss at {than} "
            f"({', '.join(objective['than'])})"
        )
    else:
        weights = objective["weights"]
        by = ", ".join(f"{tag} {weight:g}" for tag, weight in weights.items())
        words = f"the mean of the losses{unit} is least" + (f", weighted {by}" if by else "")
    epochs = ", ".join(f"{tag} {most:g}" for tag, most in objective["most_epochs"].items())
    return words + (f"; most epochs: {epochs}" if epochs else "")


def describe_proposal(proposal: Mapping[str, Any]) -> str:
    """Returns a proposal as lines of text."""
    return "\n".join(_list_lines(proposal))


def _list_lines(proposal: Mapping[str, Any]) -> Iterator[str]:
    ratio, target = proposal["ratio"], proposal["target"]
    whole, epochs = sum(ratio.values()), proposal.get("epochs", {})
    yield f"{proposal['name']}: {describe_objective(proposal['objective'])}."
    yield f"  {format_ratio(ratio)}, at {target['tokens']:,.0f} tokens and " + (
        f"{target['parameters']:,.0f} parameters"
    )
    for tag, loss in proposal["losses"].items():
        share = f"{ratio[tag] / whole:.1%} ({format_ends(proposal['shares'][tag], '.1%')})"
        yield (
            f"  {tag}: share {share}, loss {loss['value']:.4f} "
            f"({format_ends(loss['interval'], '.4f')}; of the same seeds "
            f"{format_ends(loss['same_seeds_interval'], '.4f')})"
            + _describe_compared(proposal, loss)
            + (f", {epochs[tag]:.3g} epochs" if _is_known(epochs.get(tag)) else "")
        )
    yield from (f"  note: {sentence}" for sentence in proposal.get("notes", ()))
    for tag, law in proposal["laws"].items():
        yield f"  law of {tag}: {law['form']}, {law['formula']}; {describe_errors(law)}"
    yield f"  {describe_rest(proposal)}"
    yield from (f"  extrapolated: {sentence}" for sentence in proposal["extrapolated"])
    for place, run in enumerate(proposal["next_runs"]):
        yield f"  {'next:' if not place else 'then:'} {describe_next_run(run)}"
    if proposal.get("next_note"):
        yield f"  next: {proposal['next_note']}"


def _describe_compared(proposal: Mapping[str, Any], loss: Mapping[str, Any]) -> str:
    if proposal["objective"]["unit"] == "nats" or "compared" not in loss:
        return ""
    ends = format_ends(loss["compared_interval"], ".4f")
    return f", {loss['compared']:.4f} bits per byte ({ends})"


def _is_known(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


def describe_rest(proposal: Mapping[str, Any]) -> str:
    """Returns a sentence on the runs that a proposal rests on."""
    scatter = "of seeds" if proposal["repeated"] else "around the laws, as no cell was repeated"
    text = f"rests on {len(proposal['runs'])} runs, and on the scatter {scatter}"
    others: Sequence[str] = proposal["left_out"]
    return text + (f"; left out, as they differ in more: {', '.join(others)}" if others else "")


def describe_errors(law: Mapping[str, Any]) -> str:
    """Returns the left-out errors of a law, and those of interpolation."""
    error, between = law["errors"][law["form"]], law["interpolation"]
    parts = [
        f"left-out {word} {error[kind]:.4f} nats (interpolation {format_error(between[kind])})"
        for kind, word in _LEFT_OUT.items()
        if error[kind] is not None and not math.isnan(error[kind])
    ]
    return "; ".join(parts) or "nothing could be left out"


def describe_next_run(run: Mapping[str, Any]) -> str:
    seeds = f"{run['runs']} seed{'s' * (run['runs'] != 1)}"
    return (
        f"{format_next_ratio(run)}, {seeds}, {run['tokens']:,.0f} tokens, "
        f"{run['parameters']:,.0f} parameters: the interval of the ratio becomes "
        f"{run['width']:.0%} as wide"
    )


def format_next_ratio(run: Mapping[str, Any]) -> str:
    """Returns en:fr = 62:38, and that it means more seeds where the study has that ratio."""
    return "more seeds at " * bool(run.get("again")) + format_ratio(run["ratio"])


def format_ratio(ratio: Mapping[str, int]) -> str:
    """Returns en:fr = 62:38."""
    return f"{':'.join(ratio)} = {':'.join(map(str, ratio.values()))}"


def format_ends(interval: Iterable[float], form: str) -> str:
    return " to ".join(f"{end:{form}}" for end in interval)


def format_error(value: float | None) -> str:
    return "unknown" if value is None or math.isnan(value) else f"{value:.4f}"
