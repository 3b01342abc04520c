"""What a mistyped name may have meant."""

import difflib
from collections.abc import Iterable


def suggest_nearest_name(name: str, known: Iterable[str], form: str = "{}") -> str:
    """Returns "Did you mean X?" for the known name that is nearest to a wrong one, or "".

    Args:
      name: the wrong one.
      known: the names that there are.
      form: how the nearest one is written in the question, such as "--{}".
    """
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"Did you mean {form.format(close[0])}?" if close else ""
