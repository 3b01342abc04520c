"""Other programs take turns with ours, and say in a sentence what they lack."""

import datetime
import importlib.util
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest
from helpers import ONE_DEVICE, ROOT

from imbalance_jax.bench import case as case_lib

FOLDER = ROOT / "docs" / "measure_peers"
# A script, and no part of the package.
_SPEC = importlib.util.spec_from_file_location("compare", FOLDER / "compare.py")
assert _SPEC and _SPEC.loader
compare = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(compare)
# What each driver looks for in a checkout, and the first package that it needs.
DRIVERS = {
    "xling_imbalance.py": ("languini/projects/gpt/model.py", "torch"),
    "nanodo.py": ("nanodo/train.py", "flax"),
}
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
    "versions": {}, "device": "cpu", "threads": 1, "parameters": 7, "loss": 5.0,
    "seconds_per_step": [float(sys.argv[3]) * turn] * case["steps"],
    "peak_bytes": None, "notes": [],
    "matmul_peak": {"best": 4e3, "median": 2e3},
}))
"""


REPORT = {
    **{"program": "a", "versions": {}, "device": "cpu", "threads": 1, "dtype": "float32"},
    **{"seconds_per_step": [1.5], "flops_per_token": 1e3, "parameters": 7, "loss": 5},
    **{"peak_bytes": None, "notes": []},
}


@pytest.fixture
def other(tmp_path):
    """Returns commands of programs that take so many seconds in the first turn."""
    (tmp_path / "other.py").write_text(OTHER)

    def command(name: str, seconds: float) -> list[str]:
        return [sys.executable, *map(str, (tmp_path / "other.py", tmp_path / "log", name, seconds))]

    return command


def compare_with(ours: list[str], other: str, monkeypatch, **options):
    monkeypatch.setattr(compare, "OURS", ours)
    return compare.compare_programs(case_lib.parse_case("demo:2:4"), [other], **options)


def test_programs_take_turns_and_ratios_are_within_a_round(other, tmp_path, monkeypatch):
    lines = []
    found = compare_with(
        other("a", 1.0),
        " ".join(other("b", 3.0)),
        monkeypatch,
        rounds=3,
        steps=2,
        note=lines.append,
    )
    assert (tmp_path / "log").read_text() == "bababa" and len(lines) == 6
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
    request = compare.describe_case(case, "float32", 7)
    assert {name: request[name] for name in ("B", "L", "D", "H", "K", "F", "N", "V", "steps")} == {
        **{"B": 4, "L": 512, "D": 512, "H": 8, "K": 32, "F": 2048, "N": 3},
        **{"V": 32_768, "steps": 7},
    }
    assert request["threads"] >= 1 and case_lib.parse_case(request["case"]) == case


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("no-such-program", "there is no program no-such-program"),
        (f"{sys.executable} -c 'print(1)'", "without a result. It said: nothing"),
        (f"{sys.executable} -c 'import sys; sys.exit(\"install torch\")'", "said: install torch"),
    ],
)
def test_a_program_that_fails_is_named_with_what_it_said(command, expected, other, monkeypatch):
    with pytest.raises(ValueError, match=expected):
        compare_with(other("a", 1.0), command, monkeypatch, rounds=1, steps=1)


def run_printing(report: object) -> dict:
    return compare.run_program(
        [sys.executable, "-c", f"print({json.dumps(report)!r})"], {"steps": 1}
    )


def test_a_report_needs_every_key_of_the_protocol_and_no_other():
    assert run_printing(REPORT) == REPORT
    for name in REPORT:
        rest = {other: value for other, value in REPORT.items() if other != name}
        assert list(compare.list_report_faults(rest, 1)) == [f"it lacks {name}"]
    with pytest.raises(ValueError, match=r"-c .* it lacks program, versions, .*notes\.$"):
        run_printing({"seconds_per_step": [1.0]})


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"seconds_per_step": [0.0]}, r"seconds_per_step is \[0.0\] and not a list of numbers ab"),
        ({"seconds_per_step": ["1.0"]}, r'seconds_per_step is \["1.0"\] and not'),
        ({"seconds_per_step": [True]}, "seconds_per_step is .true. and not"),
        ({"seconds_per_step": [float("nan")]}, "seconds_per_step is .NaN. and not"),
        ({"seconds_per_step": 1.0}, "seconds_per_step is 1.0 and not"),
        ({"seconds_per_step": []}, "seconds_per_step has 0 steps and not 1"),
        ({"flops_per_token": 0}, "flops_per_token is 0 and not a number above 0"),
        ({"dtype": None, "loss": "5"}, 'dtype is null and not a text; loss is "5" and not a numb'),
        ({"peak_bytes": "1 GB"}, "peak_bytes is .1 GB. and not a whole number or null"),
        (
            {"matmul_peak": {"best": 1.0}},
            "matmul_peak is .* and not an object with best and median",
        ),
    ],
)
def test_a_report_of_another_kind_is_refused_by_its_key(change, expected):
    with pytest.raises(ValueError, match=f"-c .*: {expected}") as caught:
        run_printing(REPORT | change)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("no-such-program x", "--against: there is no program no-such-program"),
        ("", "--against is empty"),
        ("python 'x", "--against=python 'x cannot be read: No closing quotation"),
        (f"{sys.executable} -c 'print(1)'", "without a result"),
        (f"{sys.executable} -c 'import os; os.write(1, bytes([255]))'", "without a result"),
        (
            f"{sys.executable} -c 'import time; time.sleep(60)'",
            r"sleep.* longer than --timeout=0.5",
        ),
    ],
)
def test_a_program_that_cannot_be_compared_is_found_before_ours_is_timed(
    command, expected, other, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(compare, "OURS", other("a", 1.0))
    flags = ["--case=demo:2:4", f"--against={command}"]
    flags += ["--timeout=0.5"] if "sleep" in command else []
    assert compare.main(flags) == 2 and not (tmp_path / "log").exists()
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and re.search(expected, error)


def test_a_missing_program_is_found_before_another_one_is_started(other, tmp_path, monkeypatch):
    commands = [" ".join(other("b", 1.0)), "no-such-program"]
    monkeypatch.setattr(compare, "OURS", other("a", 1.0))
    with pytest.raises(ValueError, match="no-such-program"):
        compare.compare_programs(case_lib.parse_case("demo:2:4"), commands, rounds=1, steps=1)
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize(
    "flag",
    [
        *("--rounds=0", "--rounds=-1", "--rounds=x", "--steps=0", "--steps=-2"),
        *("--timeout=0", "--timeout=-1", "--timeout=nan", "--timeout=inf", "--timeout=x"),
    ],
)
def test_a_number_that_measures_nothing_is_refused_by_its_flag(flag, capsys):
    with pytest.raises(SystemExit) as caught:
        compare.main(["--case=demo:2:4", "--against=no-such-program", flag])
    name, _, value = flag.partition("=")
    assert caught.value.code == 2
    assert f"argument {name}: {value} is no" in capsys.readouterr().err


@pytest.mark.parametrize("out", ["", "folder", "absent/figures.json", "file/figures.json"])
def test_an_out_that_cannot_be_written_is_refused_before_the_first_case(
    out, other, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.setattr(compare, "OURS", other("a", 1.0))
    program = shlex.join(other("b", 1.0))
    assert compare.main(["--case=demo:2:4", f"--against={program}", f"--out={out}"]) == 2
    assert not (tmp_path / "log").exists()
    error = capsys.readouterr().err
    assert error.startswith(f"--out={out}") and len(error.splitlines()) == 1


def test_figures_say_when_with_what_and_on_which_cpu_they_were_measured(
    other, tmp_path, monkeypatch
):
    monkeypatch.setattr(compare, "OURS", other("a", 1.0))
    out, program = tmp_path / "figures.json", shlex.join(other("b", 3.0))
    assert compare.main(["--case=demo:2:4", f"--against={program}", f"--out={out}"]) == 0
    figures = json.loads(out.read_text())
    assert datetime.date.fromisoformat(figures["date"]) and figures["cpu"]
    assert figures["versions"]["packages"]["jax"] and figures["versions"]["git"]
    assert figures["cases"]["demo:2:4"]["programs"][1]["ratio"] == 3.0


def test_a_comparison_that_fails_leaves_no_file_and_keeps_an_earlier_one(tmp_path):
    flags = ["--case=demo:2:4", "--against=no-such-program"]
    earlier = tmp_path / "earlier.json"
    earlier.write_text("{}")
    for out in (earlier, tmp_path / "new.json"):
        assert compare.main([*flags, f"--out={out}"]) == 2
    assert list(tmp_path.iterdir()) == [earlier] and earlier.read_text() == "{}"


def run_driver(program: str, code: pathlib.Path) -> subprocess.CompletedProcess:
    request = compare.describe_case(case_lib.parse_case("demo:2:4"), "float32", 1)
    # -S: an environment in which nothing is installed, this package included.
    command = [sys.executable, "-S", str(FOLDER / program), f"--code={code}"]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        command, input=json.dumps(request), capture_output=True, text=True, env=env
    )


@pytest.mark.parametrize("program", DRIVERS)
def test_a_missing_checkout_is_one_sentence_that_says_what_to_clone(program, tmp_path):
    done = run_driver(program, tmp_path)
    assert done.returncode == 2 and "git clone https://github.com/" in done.stderr
    assert len(done.stderr.splitlines()) == 1 and not done.stdout


@pytest.mark.parametrize("program", DRIVERS)
def test_a_missing_package_is_one_sentence_that_says_what_to_install(program, tmp_path):
    file, package = DRIVERS[program]
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).touch()
    done = run_driver(program, tmp_path)
    assert done.returncode == 2 and done.stderr.startswith(f"{package} is missing: pip install")
    assert len(done.stderr.splitlines()) == 1 and not done.stdout


@pytest.mark.slow
def test_ours_speaks_the_protocol_that_it_asks_of_others(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", ONE_DEVICE)
    case = case_lib.parse_case("demo:2:2 model.L=16 model.D=16 model.F=16 model.N=1 model.K=8")
    found = compare.run_program(compare.OURS, compare.describe_case(case, "float32", 2))
    assert len(found["seconds_per_step"]) == 2 and found["dtype"] == "float32"
    assert json.dumps(found) and found["matmul_peak"]["best"] >= found["matmul_peak"]["median"] > 0
    # Of a model that has seen made-up words for three steps: less than a uniform guess.
    assert 0 < found["loss"] < 8
