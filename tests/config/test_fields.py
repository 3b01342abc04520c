"""Behaviours of config/fields.py and of the command that shows a config's fields."""

import dataclasses
import json
import subprocess
import sys
import typing

import pytest
from helpers import ROOT
from made_configs import field_of, spoken, toys, two_clones

from imbalance_jax import config as config_lib
from imbalance_jax.config import __main__ as command
from imbalance_jax.config import fields, schema


def test_every_field_says_what_it_means_beside_its_declaration():
    meanings = fields.read_field_meanings()
    for row in config_lib.list_field_rows():
        assert row.meaning[:1] and row.meaning.endswith("."), row.name
    # A field has one comment: above it, or behind it.
    assert meanings["Config", "steps"] == "Optimizer updates."
    above = meanings["TokenizerConfig", "character_coverage"]
    assert above.startswith("The share of the text") and above.endswith("too few for it.")
    assert meanings["TokenizerConfig", "path"].startswith("An existing .model file")


def test_the_rows_are_all_fields_of_the_dataclasses_with_their_defaults():
    def count(kind: type) -> int:
        total = 0
        for hint in typing.get_type_hints(kind).values():
            inner = [a for a in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(a)]
            total += count(inner[0]) if inner else 1
        return total

    rows = config_lib.list_field_rows()
    assert len({row.name for row in rows}) == len(rows) == count(schema.Config)
    defaults = {"config": config_lib.default().to_dict()}
    plain = [row for row in rows if not {"SOURCE", "TAG", "NAME"} & set(row.name.split("."))]
    for row in plain:
        assert row.value == row.default == config_lib.to_dict(field_of(defaults, row.name))


@pytest.mark.parametrize("made", [two_clones, spoken, toys])
def test_the_rows_of_a_config_have_its_resolved_values(made):
    config = config_lib.resolve_config(made())
    rows = {row.name: row for row in config_lib.list_field_rows(config)}
    plain = {"config": config_lib.to_dict(config)}
    for name, row in rows.items():
        assert row.value == field_of(plain, name)
    assert rows["config.steps"].changed and not rows["config.checkpoint.keep"].changed


def test_the_page_of_all_fields_is_what_the_command_makes():
    page = (ROOT / "docs" / "config.md").read_text()
    assert page == config_lib.format_markdown_page(), (
        "Run python -m imbalance_jax.config --markdown > docs/config.md"
    )


def test_a_field_or_a_group_is_chosen_by_its_name_and_a_wrong_one_gets_the_nearest():
    rows = config_lib.list_field_rows(config_lib.resolve_config(two_clones()))

    def names(field):
        return [row.name for row in command.select_field_rows(rows, field)]

    assert names("") == [row.name for row in rows]
    assert names("config.mesh") == names("mesh") == [f"config.mesh.{axis}" for axis in AXES]
    assert names("languages.en2.anchors") == ["config.languages.en2.anchors"]
    for wrong, meant in {
        "mixtre": "mixture",
        "peak_lr": "optimizer.peak_lr",
        "mixture.ratoi": "mixture.ratio",
    }.items():
        with pytest.raises(ValueError, match=f"--field={wrong}: .* Did you mean {meant}"):
            names(wrong)


AXES = ("member", "data", "fsdp", "tensor")


def show(*args: str) -> subprocess.CompletedProcess:
    call = [sys.executable, "-m", "imbalance_jax.config", *args]
    return subprocess.run(call, cwd=ROOT, capture_output=True, text=True)


def test_the_command_prints_a_config_as_json_and_as_a_table():
    args = ("--config=90_10:ratio=3:1", "--config.mixture.seed=7", "--field=mixture")
    shown = json.loads(show(*args, "--json").stdout)
    assert shown["config.mixture.ratio"]["value"] == {"en1": 3, "en2": 1}
    assert shown["config.mixture.seed"] == {
        "type": "whole number",
        "bounds": f"-1 to {2**63 - 1}",
        "default": -1,
        "value": 7,
        "meaning": "The seed of the order of languages and windows. -1 takes config.seed.",
    }
    table = show(*args).stdout
    assert "config.mixture" in table and '{"en1": 3, "en2": 1}' in table
    assert "independent draw" in " ".join(table.split()) and "peak_lr" not in table


def test_the_command_shows_a_run_of_a_study():
    study = ("--config=studies/ratio:seeds=1", "--field=mixture.ratio", "--json")
    refused = show(*study)
    assert refused.returncode == 2 and "Choose one with --run" in refused.stderr
    assert "Did you mean r90_10_s0?" in show(*study, "--run=r90_10").stderr
    shown = json.loads(show(*study, "--run=r90_10_s0").stdout)
    assert shown["config.mixture.ratio"]["value"] == {"en1": 90, "en2": 10}
