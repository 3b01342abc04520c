"""What a ratio is to be chosen for: `python -m imbalance_jax.study propose` answers it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated

from imbalance_jax.config.bounds import INT32, INT64, Bounds, FieldGroup, Rate, Ratio

KINDS = ("weights", "least", "minimax")
UNITS = ("nats", "bits_per_byte")


@dataclasses.dataclass(frozen=True)
class Objective(FieldGroup):
    """What a ratio is chosen for, and within which limits.

    `weights` takes the ratio with the least weighted mean of the languages' losses, `least` the one
    with the least loss of `language` while no other is more than `worse` above its loss at the
    ratio `than`, and `minimax` the one whose largest loss is least. Losses are those that the
    study's laws predict for runs of `tokens` tokens and models of `parameters` parameters.
    """

    kind: str = "weights"  # weights | least | minimax
    weights: Mapping[str, Rate] = dataclasses.field(default_factory=dict)  # none is equal weights
    language: str = ""  # least: whose loss
    worse: Rate = 0.0  # least: in `unit`
    than: Mapping[str, Ratio] = dataclasses.field(default_factory=dict)  # least: as mixture.ratio
    unit: str = "nats"  # nats (per token) | bits_per_byte, which compares across tokenizers
    # Tokens of text that there are of each language; what is not named is that of the study's runs.
    text: Mapping[str, Rate] = dataclasses.field(default_factory=dict)
    # How often the text of each may be gone through; what is not named may be without end.
    most_epochs: Mapping[str, Rate] = dataclasses.field(default_factory=dict)
    tokens: Annotated[int, Bounds(0, INT64)] = 0  # of all languages; 0 is the longest of the study
    parameters: Annotated[int, Bounds(0, INT64)] = 0  # of the model; 0 is the largest of the study
    parts: Annotated[int, Bounds(0, INT32)] = 0  # whole numbers that a ratio adds up to; 0 chooses


def check_objective(field: str, objective: Objective, languages: Sequence[str]) -> None:
    """Raises ValueError for an objective that is not well formed, or of what the study has not.

    Args:
      field: of the config.
      objective: its value.
      languages: of the study's mixtures.
    """
    for name, offered in {"kind": KINDS, "unit": UNITS}.items():
        if getattr(objective, name) not in offered:
            raise ValueError(
                f"{field}.{name}={getattr(objective, name)!r} is not one of {', '.join(offered)}."
            )
    named = {
        "language": [objective.language] if objective.language else [],
        **{name: [*getattr(objective, name)] for name in ("weights", "than", "text")},
        "most_epochs": [*objective.most_epochs],
    }
    for name, tags in named.items():
        for tag in tags:
            if tag not in languages:
                raise ValueError(
                    f"{field}.{name}: no mixture of the study has a language {tag!r}. It has: "
                    f"{', '.join(languages)}."
                )
    used = {"weights": ("weights",), "least": ("language", "worse", "than"), "minimax": ()}
    for kind, names in used.items():
        for name in names:
            if kind != objective.kind and getattr(objective, name):
                raise ValueError(
                    f"{field}.{name} is of kind={kind} alone, and this objective is of kind="
                    f"{objective.kind}. Leave it out."
                )
    if objective.weights and not any(objective.weights.values()):
        raise ValueError(f"{field}.weights are all 0. Give one language a weight above 0.")
    if objective.kind == "least":
        if not objective.language:
            raise ValueError(
                f"{field}.language is empty. Name the language whose loss is to be least: "
                f"{', '.join(languages)}."
            )
        lacking = [tag for tag in languages if not objective.than.get(tag)]
        if lacking:
            raise ValueError(
                f"{field}.than has no part of {', '.join(lacking)}. Give the ratio that the others "
                f"are held to, such as {', '.join(f'{tag}=1' for tag in languages)}."
            )
    if any(not most > 0 for most in objective.most_epochs.values()):
        raise ValueError(
            f"{field}.most_epochs must be above 0: a language with no text cannot be learnt."
        )
    for tag, tokens in objective.text.items():
        if not tokens > 0:
            raise ValueError(
                f"{field}.text.{tag} must be above 0: it is how many tokens of text of {tag} there "
                "are. Leave it out to take what the study's runs have."
            )
    if objective.parts and objective.parts < len(languages):
        raise ValueError(
            f"{field}.parts={objective.parts} is fewer than the {len(languages)} languages. Set "
            "it to 20 or 100, or leave it out."
        )
