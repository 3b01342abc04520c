"""What a study is to decide: a claim, and whether the runs of its grid can decide it."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

from imbalance_jax.config.bounds import FieldGroup, Real
from imbalance_jax.study.run_spec import BASELINES

# Of a language, of a pair of languages, and what needs `against`: nothing says what 0 would be.
MEASURES = (
    *("loss", "language_nats", "loss_own", "bits_per_byte", "top1"),
    *("log_teff", "alignment", "retrieval", "accuracy", "steps_to", "minimal_pairs"),
)
PAIR_MEASURES = ("alignment", "retrieval")
_OF_TEXT = ("loss", "language_nats", "loss_own", "bits_per_byte", "top1")
_OF_LANGUAGE = (*_OF_TEXT, "minimal_pairs")  # as baselines have them too
DIRECTIONS = ("lower", "higher", "same")


@dataclasses.dataclass(frozen=True)
class Claim(FieldGroup):
    """What a study is to decide, stated before it runs.

    The effect is the measure of `language` in `cell` minus that in `against`, seed by seed.
    `top1` is the next token's accuracy, `minimal_pairs` that on minimal pairs, `accuracy` that of
    tasks (transfer.json), `alignment` and `retrieval` those of hidden states, of a pair such as
    en1-en2. `against` may be empty for log_teff (an effect of 0 is a TEff of 1; `baseline` says
    which law gives the monolingual tokens), for alignment and retrieval (shuffled pairs, and
    chance), for minimal_pairs (0.5, which is chance) and for accuracy (always the most frequent
    label). `steps_to` is the first step at which a run passes `bar`: at which the held-out loss of
    a language is that or less, or the alignment of a pair that or more.
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
    smallest: Real = 0.01  # the smallest effect of interest, in units of the measure
    bar: Real = 0.0  # steps_to: nats per token, or a pair's cosine above shuffled pairs

    @property
    def of_pair(self) -> bool:
        """Whether it is of a pair of languages. The name of a language has no dash."""
        return self.measure in PAIR_MEASURES or (
            self.measure == "steps_to" and "-" in self.language
        )


def check_claim(
    field: str, claim: Claim, tags_by_cell: Mapping[str, Sequence[str]], kinds: set[str]
) -> None:
    """Raises ValueError for a claim that is not well formed, or of what the study has not.

    Args:
      field: of the config.
      claim: its value.
      tags_by_cell: the languages of each cell of the study.
      kinds: of its runs.
    """
    choices = {"measure": MEASURES, "direction": DIRECTIONS, "baseline": BASELINES}
    for part, allowed in choices.items():
        if getattr(claim, part) not in allowed:
            raise ValueError(
                f"{field}.{part}={getattr(claim, part)!r} is not one of {', '.join(allowed)}."
            )
    for part, others in {"cell": (), "against": ("", *BASELINES)}.items():
        value = getattr(claim, part)
        if value not in (*tags_by_cell, *others):
            raise ValueError(
                f"{field}.{part}={value!r} is no cell of the study. It has: "
                f"{', '.join(sorted(tags_by_cell))}."
            )
    if not claim.against and claim.measure in (*_OF_TEXT, "steps_to"):
        raise ValueError(f"{field}.against is empty. Name the cell that {claim.cell} is held to.")
    if claim.measure == "log_teff" and claim.baseline not in kinds:
        raise ValueError(
            f"{field}: a TEff is read off a law of {claim.baseline} baselines, and the grid has no "
            "such runs. Add them with Grid.baselines, or set another baseline."
        )
    if not claim.smallest > 0:
        raise ValueError(
            f"{field}.smallest={claim.smallest} must be above 0: the smallest effect that would "
            "matter, so that its absence can be shown too."
        )
    _check_bar(field, claim)
    if claim.of_pair:
        return
    for cell, language in (
        (claim.cell, claim.language),
        (claim.against, claim.against_language or claim.language),
    ):
        tags = tags_by_cell.get(cell, (language,))
        if language not in tags:
            raise ValueError(
                f"{field}: cell {cell} has no language {language!r}. It has: {', '.join(tags)}."
            )


def _check_bar(field: str, claim: Claim) -> None:
    """Raises ValueError for a bar that is missing, or that its measure does not have."""
    if claim.measure != "steps_to":
        if claim.bar:
            raise ValueError(
                f"{field}.bar={claim.bar} is of steps_to alone, and this claim is of "
                f"{claim.measure}. Leave it out."
            )
    elif not 0 < claim.bar < math.inf:
        raise ValueError(
            f"{field}.bar={claim.bar} must be above 0: the loss in nats per token that a language "
            "is to reach, or the cosine above shuffled pairs that a pair is to reach."
        )


def check_decidable(
    field: str, claim: Claim, tags_by_cell: Mapping[str, Sequence[str]], kinds: set[str]
) -> None:
    """Raises ValueError for a claim that is well formed and that no run of the grid can decide.

    The arguments are those of `check_claim`.
    """
    if claim.against in BASELINES and claim.against not in tags_by_cell:
        if claim.measure not in _OF_LANGUAGE:
            ways = (
                "another cell. Name one"
                if claim.measure == "steps_to"
                else "another cell, or against nothing. Name a cell, or leave it empty"
            )
            raise ValueError(
                f"{field}.against={claim.against!r}: {claim.measure} is held against {ways}."
            )
        # The whole of the language alone is matched to the mixture too.
        alike = {"matched": "monolingual", "epochs": "monolingual"}.get(claim.against, "")
        if not {claim.against, alike} & kinds:
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
        tags = tags_by_cell.get(cell)
        if tags is None:
            continue
        if claim.of_pair:
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
