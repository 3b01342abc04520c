"""Exit codes, and how a command ends with an error."""

import sys
from collections.abc import Mapping
from typing import Any, NoReturn

from imbalance_jax.runs import children

DONE = 0
FAILED = 1
REFUSED = 2
PREEMPTED = 75  # EX_TEMPFAIL: start again to go on
LOST = children.LOST  # another process of the run has gone


def exit_with_error(message: str) -> NoReturn:
    """Prints what is wrong and how to mend it, and exits with code 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(REFUSED)


def check_same_measurement(what: str, known: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises ValueError if results exist that were measured with other settings.

    Args:
      what: the beginning of the message: the results and their file.
      known: the settings of the results.
      now: the settings to measure with.
    """
    differences = [
        f"{key}={known.get(key)!r} and not {value!r}"
        for key, value in now.items()
        if known.get(key) != value
    ]
    if differences:
        raise ValueError(f"{what} already, with {'; '.join(differences)}. --overwrite replaces it.")
