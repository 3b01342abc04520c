"""What progress says: how much is done of all that is to do, and the time left."""

import itertools

import pytest

from imbalance_jax.runs.progress import Progress, RunWork, split_progress


@pytest.mark.parametrize("every", [0, 4, 5])
def test_the_work_of_a_run_is_its_steps_and_its_evaluations(every):
    work = RunWork(steps=10, every=every, evaluation=0.5, scoring=3.0)
    evaluated = {step for step in range(11) if step in (0, 10) or (every and step % every == 0)}
    done = 0.0
    for step in range(11):
        done += step > 0
        assert work.before_evaluation(step) == pytest.approx(done)
        done += 0.5 * (step in evaluated)
        assert work.after(step) == pytest.approx(done)
    assert work.total == pytest.approx(done + 3)


def test_parts_are_shown_as_shares_of_the_whole():
    shown = []
    first, second, none = split_progress(shown.append, [3, 1, 0])
    for show, share in ((first, 0.5), (first, 1.0), (second, 0.5), (second, 1.0), (none, 1.0)):
        show(share)
    assert shown == [0.375, 0.75, 0.875, 1.0, 1.0]


def test_the_time_left_does_not_grow_while_work_goes_on_evenly(monkeypatch, capsys):
    monkeypatch.setattr("time.monotonic", itertools.count(0, 10).__next__)
    work = RunWork(steps=6, every=3, evaluation=2.0, scoring=4.0)
    with Progress("Training", work.total) as progress:
        for done in range(1, int(work.total) + 1):
            progress.show(done)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in lines] == [
        f"{minutes}:{seconds:02}"
        for minutes, seconds in (divmod(s, 60) for s in range(150, -1, -10))
    ]


def test_100_percent_is_said_when_all_is_done(capsys):
    with Progress("Training", 1000, every=0) as progress:
        for done in (995, 999.9, 1000, 1000):
            progress.show(done)
    said = [line.split()[1] for line in capsys.readouterr().out.splitlines()]
    assert said == ["99%", "99%", "100%", "100%"]


def test_what_is_done_in_place_of_steps_is_named_and_no_time_is_left(capsys):
    with Progress("Study", 10, every=0) as progress:
        progress.show(10, "0 of 2 runs done", doing="scoring 2")
    assert capsys.readouterr().out == "Study 100%  scoring 2  0 of 2 runs done\n"
