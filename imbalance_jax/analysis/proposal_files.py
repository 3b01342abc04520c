"""Proposals in a study's directory, and what was run of them since."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from imbalance_jax import config as config_lib
from imbalance_jax.analysis.proposals import VERSION, Proposal
from imbalance_jax.analysis.study_table import StudyTable
from imbalance_jax.runs import damaged_files, storage
from imbalance_jax.study.study_directory import StudyDirectory

FOLDER = "proposals"
_REMEDY = "Delete it, and propose again with python -m imbalance_jax.study propose."
_NUMBER, _INTERVAL = damaged_files.NUMBER, list
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
    "losses": {"*": {"value": _NUMBER, "interval": _INTERVAL, "run_interval": _INTERVAL}},
    "laws": {"*": _LAW | {"parameters": {"*": {"value": _NUMBER, "interval": _INTERVAL}}}},
    "runs": list,
    "left_out": list,
    "repeated": bool,
    "extrapolated": list,
    "next_runs": list,
}
_LEFT_OUT = {"ratios": "ratios", "sizes": "sizes", "largest": "largest size"}
_NEAR = 0.01  # how far the tokens and parameters of a run may be from those proposed


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A language of a run of a proposal, which the proposal does not rest on."""

    run: str
    language: str
    predicted: float  # nats per token
    interval: tuple[float, float]  # of one run
    loss: float

    @property
    def inside(self) -> bool:
        return self.interval[0] <= self.loss <= self.interval[1]


def write_proposal(directory: StudyDirectory, proposal: Proposal) -> epath.Path:
    """Writes proposals/NAME.json into a study's directory, and returns it."""
    path = directory.path / FOLDER / f"{proposal.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = damaged_files.format_checked_json(proposal.to_dict(), indent=1)
    storage.write_file_atomically(path, text.encode())
    return path


def read_proposals(directory: StudyDirectory) -> list[dict[str, Any]]:
    """Returns the proposals of a study, by name.

    Raises:
      DamagedFileError: one is not what was written.
    """
    paths = sorted((directory.path / FOLDER).glob("*.json"), key=str)
    found = [damaged_files.read_json(path, _REMEDY, _SHAPE) for path in paths]
    return [proposal for proposal in found if proposal["version"] == VERSION]


def list_outcomes(proposal: Mapping[str, Any], table: StudyTable) -> list[Outcome]:
    """Returns the runs at a proposal's ratio, size and length that came after it."""
    outcomes = []
    for row in table.observations:
        run, of_language = table.runs[row.run], proposal["losses"].get(row.language)
        ratio = config_lib.reduce_ratio(run.config.mixture.ratio)
        target = proposal["target"]
        alike = all(
            math.isclose(has, asked, rel_tol=_NEAR)
            for has, asked in (
                (row.tokens + row.other_tokens, target["tokens"]),
                (row.parameters, target["parameters"]),
            )
        )
        of_kind = row.kind == "mixture" and not run.config.mixture.stages
        later = row.run not in proposal["runs"] and row.cell not in proposal["left_out"]
        if of_language and of_kind and later and alike and ratio == proposal["ratio"]:
            interval = tuple(of_language["run_interval"])
            outcomes.append(
                Outcome(row.run, row.language, of_language["value"], interval, row.loss)
            )
    return outcomes


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
    whole = sum(ratio.values())
    yield f"{proposal['name']}: {describe_objective(proposal['objective'])}."
    yield f"  {format_ratio(ratio)}, at {target['tokens']:,.0f} tokens and " + (
        f"{target['parameters']:,.0f} parameters"
    )
    for tag, loss in proposal["losses"].items():
        share = f"{ratio[tag] / whole:.1%} ({format_ends(proposal['shares'][tag], '.1%')})"
        yield (
            f"  {tag}: share {share}, loss {loss['value']:.4f} "
            f"({format_ends(loss['interval'], '.4f')}; of one run "
            f"{format_ends(loss['run_interval'], '.4f')})"
        )
    for tag, law in proposal["laws"].items():
        yield f"  law of {tag}: {law['form']}, {law['formula']}; {describe_errors(law)}"
    yield f"  {describe_rest(proposal)}"
    yield from (f"  extrapolated: {sentence}" for sentence in proposal["extrapolated"])
    for place, run in enumerate(proposal["next_runs"]):
        yield f"  {'next:' if not place else 'then:'} {describe_next_run(run)}"


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
    return (
        f"{format_ratio(run['ratio'])}, {run['runs']} seeds, {run['tokens']:,.0f} tokens, "
        f"{run['parameters']:,.0f} parameters: the interval of the ratio becomes "
        f"{run['width']:.0%} as wide"
    )


def format_ratio(ratio: Mapping[str, int]) -> str:
    """Returns en:fr = 62:38."""
    return f"{':'.join(ratio)} = {':'.join(map(str, ratio.values()))}"


def format_ends(interval: Iterable[float], form: str) -> str:
    return " to ".join(f"{end:{form}}" for end in interval)


def format_error(value: float | None) -> str:
    return "unknown" if value is None or math.isnan(value) else f"{value:.4f}"
