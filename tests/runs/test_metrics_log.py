"""What is read of a run's metrics: all in order of step, or no more than the end."""

import json

import pytest
from etils import epath
from helpers import list_parsed_json

from imbalance_jax.runs import metrics_log
from imbalance_jax.runs.metrics_log import MetricsFile, MetricsSegments
from imbalance_jax.runs.run_directory import RunDirectory


@pytest.mark.parametrize("block", [1, 7, 64, 1 << 16])
@pytest.mark.parametrize("kind", [MetricsFile, MetricsSegments])
def test_a_log_reads_the_same_from_its_end(tmp_path, monkeypatch, kind, block):
    monkeypatch.setattr(metrics_log, "_BLOCK", block)
    log = kind(epath.Path(tmp_path), **({"size": 80} if kind is MetricsSegments else {}))
    assert list(log.read_backwards()) == []
    for step in range(9):
        log.append({"step": step, "train/loss": 2.5, "of": "é"})
    assert list(log.read_backwards()) == list(log.read())[::-1]
    log.flush()
    file = sorted(tmp_path.glob("metrics*.jsonl"))[-1]
    file.write_text(file.read_text() + '{"step": 9, "tra')  # a kill while it was written
    others = list(kind(epath.Path(tmp_path)).read_backwards())
    assert [record["step"] for record in others] == [*range(8, -1, -1)]


def test_what_is_newest_is_found_without_the_rest_of_the_log(tmp_path, monkeypatch):
    run = RunDirectory(tmp_path)
    assert run.newest_step() == -1 and run.newest_with("a") == {} and not run.has(0, "a")
    many = 5000
    lines = [{"step": n, "train/loss": 1 / n, "time/total": n} for n in range(1, many + 1)]
    lines.insert(-3, {"step": many - 3, "align/every": 7, "time/total": many - 3})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    parsed = list_parsed_json(monkeypatch)
    for look, found in (
        (run.newest_step, many),
        (lambda: run.newest_with("time/total")["time/total"], many),
        (lambda: run.newest_with("align/every"), lines[-4]),
        (lambda: run.records_of(many - 3), [lines[-4], lines[-5]]),
        (lambda: run.has(many - 3, "align/"), True),
        (lambda: run.has(many - 2, "align/"), False),
        (lambda: run.has(many + 1, ""), False),
    ):
        parsed.clear()
        assert look() == found and len(parsed) <= 6
    assert sum(map(len, lines)) > 3 * many  # and not because there is no more
