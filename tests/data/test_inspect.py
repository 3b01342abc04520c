"""Behaviours of data/inspect, and of the bench of the stream, on runs of made-up metrics."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from helpers import run_main, tiny_config

from imbalance_jax import config as config_lib
from imbalance_jax.bench import stream
from imbalance_jax.compute import sharding
from imbalance_jax.data import inspect, prepare
from imbalance_jax.data.order import audit
from imbalance_jax.data.order.mixture import ORDER_VERSION
from imbalance_jax.runs.run_directory import RunDirectory
from imbalance_jax.training.experiment import Experiment


def make_run(path, config) -> RunDirectory:
    """Returns a run directory as training leaves it, without a model."""
    opened = inspect.TrainingData.of(config)
    config, run = opened.config, RunDirectory(path)
    run.claim(config)
    fingerprints = {
        name: {"fingerprint": source.fingerprint, "format": 3}
        for name, source in opened.sources.items()
    }
    run.write_json("provenance.json", {"sources": fingerprints, "order_version": ORDER_VERSION})
    follower = audit.OrderAudit(config, opened.stream)
    trained_G = np.zeros(len(config.tags), int)
    for step in range(opened.stream.steps):
        language_B = opened.stream.batch(step).language_B
        trained_G += np.bincount(language_B, minlength=len(config.tags))
        follower.follow()
        if (step + 1) % config.log_every == 0:
            tokens = dict(zip(config.tags, trained_G * config.model.L, strict=True))
            record = {f"train/tokens/{tag}": int(count) for tag, count in tokens.items()}
            run.log(step + 1, record | follower.metrics())
    rows = audit.build_mixture_rows(config, opened.stream, list(run.metrics()))
    run.write_csv("mixture.csv", rows)
    run.finish()
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory, english, data_dir) -> RunDirectory:
    return make_run(tmp_path_factory.mktemp("runs") / "first", tiny_config(data_dir))


@pytest.fixture
def copy(run, tmp_path) -> RunDirectory:
    shutil.copytree(run.path, tmp_path / "copy")
    return RunDirectory(tmp_path / "copy")


def checked(run) -> list[str]:
    return inspect.check_run(run, inspect.TrainingData.of_run(run.path))


def test_a_run_agrees_with_its_own_record(run):
    assert checked(run) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"mixture__sampler": "bernoulli"},
        {"mixture__order": "sequential"},
        {"mixture__reuse": "any", "steps": 2500, "log_every": 500},
        {"mixture__stages": ((0, {"en1": 1, "en2": 0}), (0.5, {"en1": 1, "en2": 3}))},
        {"mixture__switch": "document"},
        {"mixture__temperature": 2.0},
        {"languages__en2__words": "permuted"},
    ],
    ids=lambda changes: ",".join(changes),
)
def test_every_kind_of_order_can_be_made_again_from_the_record(tmp_path, data_dir, changes):
    made = make_run(tmp_path / "run", tiny_config(data_dir, **changes))
    assert checked(made) == []


def test_repeats_across_clones_are_recorded_where_the_config_allows_them(tmp_path, data_dir):
    changes = {"steps": 3000, "log_every": 500, "mixture__reuse": "any"}
    made = make_run(tmp_path / "run", tiny_config(data_dir, **changes))
    rows = made.read_csv("mixture.csv")
    repeats = [int(row["cross_language_repeats"]) for row in rows]
    opened = inspect.TrainingData.of_run(made.path)
    [dry] = opened.stream.dry_steps().values()
    assert 500 < dry < 3000  # or the test shows nothing
    for row, count in zip(rows, repeats, strict=True):
        assert bool(count) == (int(row["last_step"]) > dry)


def rewrite(run, change) -> None:
    records = list(run.metrics())
    change(records)
    text = "".join(json.dumps(record) + "\n" for record in records)
    (run.path / "metrics.jsonl").write_text(text)


def test_a_changed_hash_is_found_by_its_step(copy):
    def change(records):
        records[2][audit.ORDER_METRIC] = records[1][audit.ORDER_METRIC]

    rewrite(copy, change)
    [wrong] = checked(copy)
    assert wrong.startswith("step 15: data/order is")


def test_a_count_that_the_device_did_not_make_is_found(copy):
    def change(records):
        records[3]["train/tokens/en2"] += 16

    rewrite(copy, change)
    wrong = checked(copy)
    assert any("656 tokens of en2 were counted on the device" in line for line in wrong)


@pytest.mark.parametrize(
    "change, found",
    [
        (lambda records: records.pop(1), "no data/order between steps 5 and 15"),
        (lambda records: records.pop(0), "no data/order between steps 0 and 10"),
        (lambda records: records.pop(), "no data/order between steps 15 and 20"),
        (lambda records: records.insert(2, records[1]), "data/order of step 10 twice"),
        (lambda records: records.reverse(), "step 15 after step 20"),
    ],
    ids=["missing", "missing first", "missing last", "twice", "in another order"],
)
def test_a_hole_in_the_metrics_is_found(copy, change, found):
    rewrite(copy, change)
    assert any(f"metrics.jsonl has {found}" in line for line in checked(copy))


def test_a_change_of_log_every_is_no_hole():
    assert inspect._find_holes([5, 10, 20, 30, 40], 10, 40) == []
    assert inspect._find_holes([10, 20, 25, 30], 5, 30) == [] == inspect._find_holes([], 0, 40)
    assert inspect._find_holes([10, 30, 40], 10, 50) == [(10, 30), (40, 50)]


def test_the_hash_of_the_order_says_which_text_it_was_where_provenance_is_gone(
    copy, data_dir, tmp_path, capsys
):
    (copy.path / "checkpoints" / "10").mkdir(parents=True)
    (copy.path / "provenance.json").unlink()
    inspect.TrainingData.of_run(copy.path)
    assert "provenance.json is missing. The hash of the order at step 5" in capsys.readouterr().out
    changed = copy.config().sources["en"]
    changed = dataclasses.replace(changed, packages=changed.packages[:1])
    other = dataclasses.replace(copy.config(), sources={"en": changed}, data_dir=str(tmp_path))
    copy.write_json("config.json", config_lib.to_dict(other))
    with pytest.raises(ValueError, match=r"started with another text.*Use another --workdir"):
        inspect.TrainingData.of_run(copy.path)
    (copy.path / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"nothing says which text .*Copy one of them back"):
        inspect.TrainingData.of_run(copy.path)


def test_a_table_that_does_not_follow_from_the_order_is_found(copy):
    table = (copy.path / "mixture.csv").read_text()
    (copy.path / "mixture.csv").write_text(
        table.replace("0,5,en1,en,3,30,30", "0,5,en1,en,3,30,31")
    )
    assert checked(copy) == ["mixture.csv is not the table that follows from the order."]


def test_a_run_on_another_text_is_refused_before_anything_is_compared(copy):
    before = copy.read_json("provenance.json")
    before["sources"]["en"]["fingerprint"] = "0" * 16
    copy.write_json("provenance.json", before)
    with pytest.raises(ValueError, match="another text or tokenizer of source en"):
        inspect.TrainingData.of_run(copy.path)
    del before["sources"]["en"]["format"]  # as before there was one
    copy.write_json("provenance.json", before)
    with pytest.raises(ValueError, match="an earlier version of this program prepared"):
        inspect.TrainingData.of_run(copy.path)


def compared(first, second) -> tuple[bool, str]:
    opened = [inspect.TrainingData.of_run(run.path) for run in (first, second)]
    hashes = [{r["step"]: r[audit.ORDER_METRIC] for r in run.metrics()} for run in (first, second)]
    return inspect.compare_runs(*opened, hashes)


def test_a_run_and_its_copy_saw_the_same(run, copy):
    assert compared(run, copy) == (True, "The same tokens in the same languages in all 20 steps.")


def test_a_run_by_temperature_is_read_with_the_ratio_that_it_was_begun_with(tmp_path, data_dir):
    config = tiny_config(data_dir, mixture__temperature=1.0)
    run = RunDirectory(tmp_path / "run")
    run.claim(inspect.TrainingData.of(config).config)
    run.release()
    assert run.config().mixture.ratio == {"en1": 500, "en2": 500}
    # As rounding of another version would have made it.
    plain = run.read_json("config.json")
    plain["mixture"]["ratio"] = {"en1": 501, "en2": 499}
    run.write_json("config.json", plain)
    run.check(config)  # the same run
    again = Experiment.of_run(config, run, sharding.make_mesh(config.mesh, jax.devices()))
    opened = inspect.TrainingData.of_run(run.path)
    assert again.config.mixture.ratio == opened.config.mixture.ratio == {"en1": 501, "en2": 499}


def early(run) -> RunDirectory:
    """Returns a run whose hashes are those that version 1 of them would have."""
    opened = inspect.TrainingData.of_run(run.path)
    follower = audit.OrderAudit(opened.config, opened.stream, hash_version=1)

    def change(records):
        for record in records:
            while follower.step < record["step"]:
                follower.follow()
            record[audit.ORDER_METRIC] = follower.digest

    rewrite(run, change)
    return run


def test_hashes_of_an_earlier_version_hold_for_their_run_and_prove_nothing_between_runs(run, copy):
    assert checked(early(copy)) == []
    same, said = compared(run, copy)
    assert same and "of version 1, 2. Those of version 1 do not determine the tokens" in said

    # Two runs of equal early hashes, whose tokens differ.
    ours = inspect.TrainingData.of_run(run.path)
    theirs = inspect.TrainingData.of(tiny_config(ours.config.data_dir, mixture__text_share=0.95))
    equal = {20: "00" * 8}
    same, said = inspect.compare_runs(ours, theirs, [equal, equal])
    assert not same and "The same tokens up to step 0" in said


def test_a_run_that_went_on_with_other_hashes_is_held_against_both_kinds(run, copy):
    late = [record[audit.ORDER_METRIC] for record in run.metrics()]

    def change(records):
        for record, recorded in zip(records[2:], late[2:], strict=True):
            record[audit.ORDER_METRIC] = recorded

    rewrite(early(copy), change)
    assert {audit.parse_hash_version(r[audit.ORDER_METRIC]) for r in copy.metrics()} == {1, 2}
    assert checked(copy) == []
    rewrite(copy, lambda records: records[0].update({audit.ORDER_METRIC: "00" * 8}))
    [wrong] = checked(copy)
    assert wrong.startswith("step 5: data/order is")


def test_a_longer_run_is_the_same_up_to_where_the_shorter_ends(run, tmp_path, data_dir):
    longer = make_run(tmp_path / "longer", tiny_config(data_dir, steps=30))
    same, said = compared(run, longer)
    assert not same
    assert said == "The same tokens in all 20 steps that both have; one goes on to step 30."


def test_runs_part_at_the_step_where_their_ratios_do(run, tmp_path, data_dir):
    # Between two records, so that hashes alone do not say it.
    stages = ((0, {"en1": 3, "en2": 1}), (12, {"en1": 1, "en2": 3}))
    staged = make_run(tmp_path / "staged", tiny_config(data_dir, mixture__stages=stages))
    same, said = compared(run, staged)
    assert not same and said.startswith("The same tokens up to step 12; then ")


def test_another_seed_is_other_tokens_from_the_first_step_on(run, tmp_path, data_dir):
    other = make_run(tmp_path / "other", tiny_config(data_dir, seed=1))
    same, said = compared(run, other)
    assert not same and said.startswith("The same tokens up to step 0; then ")


def test_the_same_text_in_another_language_is_a_difference(run, tmp_path, data_dir):
    swapped = tiny_config(data_dir)
    plain = config_lib.to_dict(swapped)
    plain["languages"] = {"en1": plain["languages"]["en1"], "en3": plain["languages"]["en2"]}
    plain["mixture"]["ratio"] = {"en1": 3, "en3": 1}
    same, said = compared(run, make_run(tmp_path / "renamed", config_lib.resolve_config(plain)))
    assert not same and "en2" in said and "en3" in said


def test_a_batch_is_printed_with_the_language_pool_and_text_of_every_row(run, english):
    opened = inspect.TrainingData.of_run(run.path)
    said = inspect.describe_batch(opened, step=3, rows=0).splitlines()
    batch = opened.stream.batch(3)
    assert said[0] == "step 3: 8 sequences of 16 tokens (en1 6, en2 2)"
    assert len(said) == 1 + 8
    for row, line in enumerate(said[1:]):
        text = english.tokenizer.decode(batch.ids_BW[row].tolist())
        assert line.startswith(f"row {row:>3}  {opened.config.tags[batch.language_B[row]]} ")
        assert line.endswith(json.dumps(text, ensure_ascii=False)[1:-1])
    assert len(inspect.describe_batch(opened, step=3, rows=2).splitlines()) == 3
    with pytest.raises(ValueError, match=r"--step=20: the run has steps 0 to 19"):
        inspect.describe_batch(opened, step=20, rows=0)


def test_schedules_have_the_same_total_where_no_language_gets_an_update_more(tmp_path):
    balanced = tiny_config(tmp_path, mixture__ratio={"en1": 1, "en2": 1})
    turned = {"mixture__stages": ((0, {"en1": 9, "en2": 1}), (0.5, {"en1": 1, "en2": 9}))}
    same, said = inspect.compare_totals(balanced, tiny_config(tmp_path, **turned))
    assert same and "80             80 sequences" in said
    same, said = inspect.compare_totals(balanced, tiny_config(tmp_path))
    assert not same and "Different totals." in said


def test_what_was_left_out_of_the_text_is_said_below_the_balance(run):
    opened = inspect.TrainingData.of_run(run.path)
    records = list(run.metrics())
    before = inspect.describe_balance(opened, records)
    about = {**opened.sources["en"].about, "left_out": {"bad_lines": 1234, "where": 5}}
    source = dataclasses.replace(opened.sources["en"], about=about)
    said = inspect.describe_balance(dataclasses.replace(opened, sources={"en": source}), records)
    whole = sum(about["documents"].values()) + 1239
    assert said == (
        f"{before}\nconfig.sources.en: 1,239 of {whole:,} documents were left out: "
        "1,234 that cannot be read, 5 that do not meet where."
    )


def test_the_command_says_by_its_exit_code_whether_a_record_holds(run, copy):
    assert run_main(f"--check={run.path}", module="data.inspect").returncode == 0
    rewrite(copy, lambda records: records[0].update({audit.ORDER_METRIC: "00" * 8}))
    done = run_main(f"--check={copy.path}", module="data.inspect")
    assert done.returncode == 1 and "1 disagreements" in done.stdout
    done = run_main("--diff", str(run.path), str(copy.path), module="data.inspect")
    assert done.returncode == 0, done.stderr
    done = run_main("--diff", str(run.path), module="data.inspect")
    assert done.returncode == 2 and "--diff takes two names" in done.stderr
    done = run_main("--check=nowhere", module="data.inspect")
    assert done.returncode == 2 and "nowhere holds no run" in done.stderr


@pytest.mark.slow
def test_the_bench_reports_the_tokens_that_it_timed(data_dir, english, monkeypatch):
    monkeypatch.setattr(stream, "_SECONDS", 0.02)
    config = tiny_config(data_dir, steps=3000)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    trainer = Experiment.make(config, prepare.prepare_run_sources(config), mesh)
    found = stream.measure_stream_speed(trainer, seconds=0.02)
    assert set(found["data"]) == {"first epoch", "later epoch"}
    for part in found["data"].values():
        per_second = 8 * 16 / (part["microseconds_per_batch"] / 1e6)
        assert part["tokens_per_second"] == pytest.approx(per_second)
        assert 0 < part["microseconds_order"] < part["microseconds_per_batch"]
    assert found["tokens_per_second"] == pytest.approx(8 * 16 / found["seconds"]["step"])
    assert found["data_over_training"] == pytest.approx(1 / found["data_share"])
    json.dumps(found)
