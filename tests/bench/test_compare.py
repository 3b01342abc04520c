"""Other programs take turns with ours, and a ratio is one of the same round."""

import json
import sys

import pytest
from helpers import ONE_DEVICE

from imbalance_jax.bench import case as case_lib
from imbalance_jax.bench import compare

OTHER = """
import json, sys
case = json.load(sys.stdin)
log = open(sys.argv[1], "a+")
log.write(sys.argv[2])
log.seek(0)
turn = log.read().count(sys.argv[2])
print("some progress")
print(json.dumps({
    "program": sys.argv[2], "dtype": case["dtype"], "flops_per_token": 100.0,
    "seconds_per_step": [float(sys.argv[3]) * turn] * case["steps"],
    "matmul_peak": {"best": 4e3, "median": 2e3},
}))
"""


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """What a user has who has set nothing."""
    monkeypatch.setenv("XLA_FLAGS", ONE_DEVICE)


@pytest.fixture
def other(tmp_path):
    """Returns commands of programs that take so many seconds in the first turn."""
    (tmp_path / "other.py").write_text(OTHER)

    def command(name: str, seconds: float) -> list[str]:
        return [sys.executable, *map(str, (tmp_path / "other.py", tmp_path / "log", name, seconds))]

    return command


def test_programs_take_turns_and_ratios_are_within_a_round(other, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "OURS", other("a", 1.0))
    case = case_lib.parse_case("demo:2:4")
    lines = []
    found = compare.compare_programs(
        case, 2048, [" ".join(other("b", 3.0))], rounds=3, steps=2, note=lines.append
    )
    assert (tmp_path / "log").read_text() == "ababab" and len(lines) == 6
    ours, theirs = found["programs"]
    # The machine slows down from turn to turn, for both alike.
    assert theirs["seconds_per_step"] == [[3.0] * 2, [6.0] * 2, [9.0] * 2]
    assert (theirs["ratio"], theirs["ratio_least"], theirs["ratio_most"]) == (3.0, 3.0, 3.0)
    assert theirs["seconds"] == 6.0 and ours["ratio"] == 1.0
    text = "\n".join(compare.describe_comparison(found))
    # 4 x 64 tokens in 6 s at 100 FLOPs each, of a peak of 2,000 FLOP/s.
    assert "ours is 3.00 times as fast (3.00 to 3.00)" in text and "213%" in text


def test_a_program_reads_the_sizes_of_the_case():
    case = case_lib.parse_case("mini:2:4 model.N=3")
    asked = compare.describe_case(case, case.vocab_size, "float32", 7)
    assert {name: asked[name] for name in ("B", "L", "D", "H", "K", "F", "N", "V", "steps")} == {
        **{"B": 4, "L": 512, "D": 512, "H": 8, "K": 32, "F": 2048, "N": 3},
        **{"V": 32_768, "steps": 7},
    }
    assert asked["threads"] >= 1 and case_lib.parse_case(asked["case"]) == case


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("no-such-program", "there is no program no-such-program"),
        (f"{sys.executable} -c 'print(1)'", "without a result. It said: nothing"),
        (f"{sys.executable} -c 'import sys; sys.exit(\"install torch\")'", "said: install torch"),
    ],
)
def test_a_program_that_fails_is_named_with_what_it_said(command, expected, other, monkeypatch):
    monkeypatch.setattr(compare, "OURS", other("a", 1.0))
    with pytest.raises(ValueError, match=expected):
        compare.compare_programs(
            case_lib.parse_case("demo:2:4"), 2048, [command], rounds=1, steps=1
        )


@pytest.mark.slow
def test_ours_speaks_the_protocol_that_it_asks_of_others():
    case = case_lib.parse_case("demo:2:2 model.L=16 model.D=16 model.F=16 model.N=1 model.K=8")
    asked = compare.describe_case(case, case.vocab_size, "float32", 2)
    found = compare._run_program(compare.OURS, asked)
    assert len(found["seconds_per_step"]) == 2 and found["dtype"] == "float32"
    assert json.dumps(found) and found["matmul_peak"]["best"] >= found["matmul_peak"]["median"] > 0
    # Of a model that has seen made-up words for three steps: less than a uniform guess.
    assert 0 < found["loss"] < 8
