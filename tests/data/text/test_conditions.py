"""Behaviours of data/text/conditions.py."""

import operator

import pytest

from imbalance_jax.data.text.conditions import parse_conditions


def is_met(where, values, **options):
    return all(
        [
            each.is_met(values, "a.jsonl, line 1", **options)
            for each in parse_conditions("en", where)
        ]
    )


@pytest.mark.parametrize("sign", [">=", "<=", "==", "!=", ">", "<"])
def test_each_operator_is_that_of_python(sign):
    function = {
        ">=": operator.ge,
        "<=": operator.le,
        "==": operator.eq,
        "!=": operator.ne,
        ">": operator.gt,
        "<": operator.lt,
    }[sign]
    for value in (-1, 0.5, 0.9, 1, 7.25):
        for bound in (-1, 0.9, 7.25):
            assert is_met(f"score {sign} {bound}", {"score": value}) is function(value, bound)
    for value in ("eng", "fra", "éa"):
        assert is_met(f"lang{sign}'fra'", {"lang": value}) is function(value, "fra")


def test_a_document_meets_all_conditions_whatever_is_quoted_in_them():
    where = """lang == 'fr, or "fra"', doc_scores.0 > 5, ok == true , warc-type != "a'b" """
    values = {"lang": 'fr, or "fra"', "doc_scores": [5.5, 1], "ok": True, "warc-type": "x"}
    assert is_met(where, values)
    for field, other in (
        ("lang", "fra"),
        ("doc_scores", [5.0, 9]),
        ("ok", False),
        ("warc-type", "a'b"),
    ):
        assert not is_met(where, values | {field: other})


def test_a_null_or_what_is_within_one_meets_no_condition():
    for where in ("a.b >= 0", "a.b != 0", "a.b == 'x'"):
        assert not is_met(where, {"a": {"b": None}}) and not is_met(where, {"a": None})


def test_a_number_that_is_written_as_text_counts_where_all_values_are_texts():
    assert is_met("2 >= 0.5", {"2": "0.75"}, typed=False)
    assert not is_met("2 >= 0.5", {"2": "0.25"}, typed=False)


@pytest.mark.parametrize(
    ("where", "values", "problem"),
    [
        ("score >= 1", {"text": "x"}, "line 1: has no field 'score'; it has: text."),
        ("score >= 1", {"score": "2"}, "its field 'score' is a text, and .* the number 1"),
        ("score >= 1", {"score": True}, "its field 'score' is a truth value"),
        ("score == 'a'", {"score": [1]}, "its field 'score' is a list"),
    ],
)
def test_what_cannot_be_compared_is_refused_by_its_field(where, values, problem):
    with pytest.raises(ValueError, match=problem) as refused:
        is_met(where, values)
    assert "config.sources.en.where" in str(refused.value)


@pytest.mark.parametrize(
    "where",
    [
        *("score", "score = 1", "score => 1", ">= 1", "score >=", "score >= high", "score >= 1 2"),
        *("lang == 'fra", "a > 1,", ", a > 1", "a > 1,, b > 1", "ok > true", "score >= nan"),
        *("__import__('os') == 1", "a > 1 and b > 2", "a >> 1"),
    ],
)
def test_what_is_no_condition_is_refused(where):
    with pytest.raises(ValueError, match=r"config\.sources\.en\.where"):
        parse_conditions("en", where)
