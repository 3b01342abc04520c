"""JSON as every file of ours is written: null stands for a number that is not finite.

JSON has no NaN and no Infinity, though Python writes and reads them. Files of earlier versions have
them, and are read as before.
"""

import json
import math
from typing import Any


def format_json(value: Any, **style: Any) -> str:
    """Returns a value as JSON; `style` is that of `json.dumps`."""
    try:
        return json.dumps(value, allow_nan=False, **style)
    except ValueError:  # a number is not finite, which is rare
        return json.dumps(_replace_nonfinite(value), allow_nan=False, **style)


def _replace_nonfinite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _replace_nonfinite(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_replace_nonfinite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
