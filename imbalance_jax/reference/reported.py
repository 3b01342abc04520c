"""What the reference study reported, as rows of facts that ours are held against.

The rows lie in results.csv: printed at full precision, printed in tables, or
read off plots, each with how sure it is. A study's results take the same form
(paper_results.py), so that the same code draws both.
"""

import csv
import dataclasses
import functools
import importlib.resources
import math
import re
from collections.abc import Iterable, Mapping

UNIT_TOKENS = 1_197_015_040  # of "1x": 512 positions x 128 sequences x 18,265 steps

_NUMBER = re.compile(r"-?\d+\.?\d*(?:e[+-]?\d+)?")


@dataclasses.dataclass(frozen=True)
class PaperResult:
    """A number of a figure or table: reported, or measured in a study."""

    figure: str  # "Table 1", "Figure 1 left"; "Figure 2/Figure 9" where it is in both
    setting: Mapping[str, str]  # what identifies the row: languages, split, model, tokens, ...
    metric: str  # ppl_EN1, teff_FR, hidden_cossim, ...
    value: float  # perplexities and MLTE (tokens) in a study: the geometric mean over seeds
    low: float = math.nan  # an interval around the value; NaN where there is none
    high: float = math.nan
    values: tuple[float, ...] = ()  # one per seed; none for what was reported
    source: str = ""  # notebook, table, read_off_plot, or the study's name

    @property
    def language(self) -> str:
        """The language in the metric's name: EN2 of ppl_EN2."""
        return self.metric.rpartition("_")[2]

    @property
    def tokens(self) -> float:
        """Of all languages together, in units of "1x"; NaN for a row that is of no run."""
        return parse_leading_number(self.setting.get("tokens", ""))

    @property
    def unit_tokens(self) -> float:
        """Tokens of "1x"."""
        return float(self.setting.get("unit_tokens", UNIT_TOKENS))


def parse_leading_number(text: str) -> float:
    """Returns the number that a text begins with, such as 2.4 of "2.4x (...)", or NaN."""
    number = _NUMBER.match(text)
    return float(number[0]) if number else math.nan


def is_ratio_metric(metric: str) -> bool:
    """Says whether a metric is positive by nature: its differences are those of its logarithms."""
    return metric.partition("_")[0] in ("ppl", "teff", "mlte", "mlpe")


def get_base_language(language: str) -> str:
    """Returns whose text a language is: EN of the clones EN1 and EN2."""
    return language.rstrip("0123456789")


@functools.cache
def read_reference_results() -> tuple[PaperResult, ...]:
    """Returns all that was reported, in the order of the file."""
    file = importlib.resources.files("imbalance_jax.reference") / "results.csv"
    results = []
    for row in csv.DictReader(file.read_text(encoding="utf-8").splitlines()):
        value, uncertainty = float(row["value"]), parse_leading_number(row["uncertainty"])
        results.append(
            PaperResult(
                figure=row["figure_or_table"],
                setting=dict(part.split("=", 1) for part in row["setting"].split("; ")),
                metric=row["metric"],
                value=value,
                low=value - uncertainty,
                high=value + uncertainty,
                source=row["source"],
            )
        )
    return tuple(results)


def split_figure_names(name: str) -> tuple[str, ...]:
    """Returns the figures that a row serves: both of "Figure 2/Figure 9"."""
    return tuple(name.split("/"))


def select_figure_results(rows: Iterable[PaperResult], figure: str) -> list[PaperResult]:
    """Returns the rows that belong to a figure or table."""
    return [row for row in rows if figure in split_figure_names(row.figure)]
