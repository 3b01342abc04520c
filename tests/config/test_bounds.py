"""Behaviours of config/bounds.py: no number of a config is without ends."""

import dataclasses
import math
import sys

import numpy as np
import pytest
from made_configs import changed, two_clones

from imbalance_jax import config as config_lib
from imbalance_jax.config import bounds, mesh_shape, schema
from imbalance_jax.study import claim, grid, objective
from launch import profile

GROUPS = [
    *(schema.Config, grid.StudyConfig, claim.Claim, objective.Objective),
    *(profile.Hardware, profile.ProfileFields),
    *profile.ENGINES.values(),
]
NUMBERS = {
    field.name: field
    for field in config_lib.list_bounds()
    # The first step of a stage ends with the steps of the run.
    if bounds.is_number_type(field.type) and not field.name.endswith("[0][0]")
}


@pytest.mark.parametrize("kind", GROUPS)
def test_every_number_that_a_user_writes_has_a_lowest_and_a_highest_value(kind):
    for field in config_lib.list_bounds(kind, kind.__name__):
        if bounds.is_number_type(field.type):
            assert field.lowest is not None and field.highest is not None, (
                f"{field.name} has no bounds. Write Annotated[{field.type.__name__}, Bounds(...)]."
            )
            assert math.isfinite(field.lowest) and math.isfinite(field.highest)
            assert issubclass(kind, bounds.FieldGroup)


def test_a_number_without_bounds_is_found():
    @dataclasses.dataclass(frozen=True)
    class Open:
        size: int = 1

    assert config_lib.list_bounds(Open, "open") == [config_lib.PlainField("open.size", int)]


def test_the_list_has_every_field_and_what_it_may_be():
    listed = {field.name: field for field in config_lib.list_bounds()}
    assert {row.name for row in config_lib.list_field_rows()} == {
        name.partition("[")[0].removesuffix(".*") for name in listed
    }
    assert listed["config.model.remat"].choices == ("auto", "none", "dots", "full")
    assert listed["config.vocabulary.mix.*"].type is int
    assert listed["config.mixture.text_share"].lowest == sys.float_info.min * 2**-52


def write(name, value):
    """Returns the plain values of a run of which nothing else keeps the value from a field."""
    values = changed(
        steps=1,
        batch_size=1,
        mixture__sampler="bernoulli",
        **{"mesh__data": 1, "model__scan_layers": True},
    )
    values["sources"]["fr"] = values["sources"]["en"] | {}
    field = name.removeprefix("config.").replace("SOURCE", "en").replace("TAG", "en2")
    whole = value if isinstance(value, int) and 0 < value < 2**31 else 1
    beside = {
        "optimizer.accumulate": {"batch_size": whole},
        "model.loss_chunk": {"model": values["model"] | {"L": whole}},
        **dict.fromkeys(
            ("sources.en.max_documents", "sources.en.max_tokens"),
            {"sources": {"en": values["sources"]["en"] | {"kind": "files", "train": "a.txt"}}},
        ),
        "mixture.max_epochs": {"mixture": values["mixture"] | {"sampler": "exact"}},
        "model.kv_heads": {"model": values["model"] | {"H": whole}},
        "model.base_head_width": {"model": values["model"] | {"base_width": 1}},
        "sources.en.synthetic.lemmas": {"topics": whole},
        "sources.en.synthetic.topics": {"lemmas": min(whole, 2**18)},
        "vocabulary.mix.*": {"vocabulary": values["vocabulary"] | {"layout": "joint"}},
    }.get(field, {})
    if ".synthetic." in field:
        values["sources"]["en"]["synthetic"] |= beside
    else:
        values |= beside
    if field.endswith("[0][1].*"):
        values["mixture"]["stages"] = ((0, {"en1": 1, "en2": value}),)
        return values
    *groups, last = {
        "vocabulary.mix.*": "vocabulary.mix.en",
        "mixture.ratio.*": "mixture.ratio.en2",
        "mixture.loss_weights.*": "mixture.loss_weights.en2",
    }.get(field, field).split(".")
    target = values
    for group in groups:
        target = target[group]
    target[last] = value
    if field == "vocabulary.mix.*":
        target["fr"] = 1
    return values


@pytest.mark.parametrize("name", NUMBERS)
def test_the_ends_of_a_number_are_taken_and_what_is_beyond_is_refused_by_its_name(name):
    field = NUMBERS[name]
    kind = int if field.type is int else float
    ends = [kind(field.lowest), kind(field.highest)]
    for value in ends:
        config_lib.resolve_config(write(name, value))
    if kind is int:
        beyond = [ends[0] - 1, ends[1] + 1]
    else:
        beyond = [math.nextafter(ends[0], -math.inf), math.nextafter(ends[1], math.inf)]
    last = name.replace("SOURCE", "en").replace("TAG", "en2").partition("[")[0].removesuffix(".*")
    last = last.replace("same_total_as", "stages")
    for value in beyond:
        with pytest.raises(ValueError) as refused:
            config_lib.resolve_config(write(name, value))
        assert str(refused.value).startswith(last) and "<group>" not in str(refused.value)
    for value in (*map(float, ("inf", "-inf", "nan")), 2**31, 2**63, -1, 10**30, 10**5000):
        try:
            config_lib.resolve_config(write(name, value))
        except ValueError as error:
            assert last.rpartition(".")[2] in str(error) and len(str(error)) < 400


def test_the_highest_values_are_those_of_the_numbers_that_count():
    highest = {name: field.highest for name, field in NUMBERS.items()}
    assert highest["config.steps"] == np.iinfo(np.int32).max
    assert highest["config.seed"] == np.iinfo(np.uint32).max
    assert np.isfinite(np.float32(highest["config.optimizer.peak_lr"]))
    decay = highest["config.optimizer.b2"]
    assert np.float32(decay) < 1 == np.float32(math.nextafter(decay + 2**-25, 1))


def test_a_seed_beyond_the_highest_would_repeat_another_seeds_parameters():
    import jax

    highest = int(NUMBERS["config.seed"].highest)
    first, last, beyond = (jax.random.key(seed) for seed in (0, highest, highest + 1))
    assert first != last and first == beyond


def test_a_run_of_more_sequences_of_a_language_than_32_bits_count_is_refused():
    even = {"mixture__ratio": {"en1": 1, "en2": 1}, "batch_size": 4}
    config_lib.resolve_config(changed(steps=2**30 - 1, **even))
    with pytest.raises(ValueError, match=r"steps=1073741824 of config\.batch_size=4 .* fewer"):
        config_lib.resolve_config(changed(steps=2**30, **even))


@pytest.mark.parametrize(
    ("field", "written", "meant"),
    [
        ("steps", np.int64(7), 7),
        ("optimizer__eps", np.float32(0.5), 0.5),
        ("optimizer__clip_norm", 10**30, 1e30),
        ("optimizer__warmup", 3, 3.0),
        ("optimizer__weight_decay", -0.0, 0.0),
        ("model__tied", np.bool_(True), True),
    ],
)
def test_a_number_of_another_type_is_the_value_that_it_is(field, written, meant):
    config = config_lib.to_dict(config_lib.resolve_config(changed(**{field: written})))
    for part in field.split("__"):
        config = config[part]
    assert config == meant and type(config) is type(meant)


def test_a_whole_number_with_a_point_is_refused_with_how_to_write_it():
    with pytest.raises(ValueError, match=r"steps=1000\.0 must be of type int\. Write 1000\."):
        config_lib.resolve_config(changed(steps=1e3))
    # In a ConfigDict too, whose fields have types of their own.
    values = two_clones()
    with pytest.raises(TypeError):
        values.steps = 1.5


@pytest.mark.parametrize("number", [1, 2, 36, 97, 1024, 2310])
def test_the_divisors_of_a_number_are_all_that_divide_it(number):
    assert mesh_shape.list_divisors(number) == [k for k in range(1, number + 1) if number % k == 0]
