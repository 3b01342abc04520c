"""JSON that any reader of JSON reads."""

import json
import math

import numpy as np

from imbalance_jax.runs import json_text


def test_what_is_not_finite_is_null_at_any_depth_and_all_else_is_as_json_has_it():
    value = {"a": [1.5, math.nan, {"b": -math.inf}], "c": (np.float64("inf"), None), "NaN": "NaN"}
    found = json_text.format_json(value, indent=1)
    strict = json.loads(found, parse_constant=lambda name: 1 / 0)
    assert strict == {"a": [1.5, None, {"b": None}], "c": [None, None], "NaN": "NaN"}
    finite = {"x": [0.1, 1e300, True, "é"], "y": None}
    assert json_text.format_json(finite, sort_keys=True) == json.dumps(finite, sort_keys=True)
