"""Behaviours of config.py, and of how cli.py reads a config from the command line."""

import dataclasses
import json
import os
import pathlib
import runpy
import subprocess
import sys

import ml_collections
import pytest

from imbalance_jax import cli, runs
from imbalance_jax import config as config_lib

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted((ROOT / "configs").glob("*.py"))
REFERENCE = str(ROOT / "configs" / "90_10.py")


def two_clones(ratio="3:1", scale="demo"):
    return config_lib.cloned(scale=scale, ratio=ratio)


def changed(**changes):
    """Returns the plain values of a run on two clones; changes are fields joined by __."""
    values = two_clones().to_dict()
    for name, value in changes.items():
        *groups, field = name.split("__")
        target = values
        for group in groups:
            target = target[group]
        target[field] = value
    return values


def resolved(**changes):
    return config_lib.resolve(changed(**changes))


# Config files


@pytest.mark.parametrize("scale", config_lib.SCALES)
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_config_file_resolves_at_every_scale(file, scale):
    values = runpy.run_path(str(file))["get_config"](f"scale={scale}")
    config = config_lib.resolve(values)
    size = config_lib.SCALES[scale]
    assert (config.steps, config.model.D) == (size["steps"], size["model.D"])
    for source in config.sources.values():
        assert source.tokenizer.vocab_size == size["tokenizer.vocab_size"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_config_file_says_how_it_is_run(file):
    assert f"--config=configs/{file.name}" in file.read_text().split('"""')[1]
    get_config = runpy.run_path(str(file))["get_config"]
    assert get_config() == get_config("scale=demo")


def test_the_scales_of_the_reference_study_are_its_own():
    sizes = {"mini": (512, 8, 32, 2048, 4), "small": (768, 12, 64, 3072, 12)}
    sizes["medium"] = (1024, 16, 64, 4096, 24)
    for scale, size in sizes.items():
        config = config_lib.resolve(two_clones(scale=scale))
        model, optimizer = config.model, config.optimizer
        assert size == (model.D, model.H, model.K, model.F, model.N) and model.L == 512
        assert (optimizer.peak_lr, optimizer.final_lr, optimizer.warmup) == (6e-4, 6e-6, 200)
        assert (optimizer.b1, optimizer.b2, optimizer.eps) == (0.9, 0.95, 1e-8)
        assert optimizer.weight_decay == optimizer.clip_norm == 0
        assert config.batch_size == (256 if scale == "medium" else 128)
        # The same text at each scale, but for half a batch.
        assert abs(config.steps * config.batch_size - 18265 * 128) <= 128


def test_the_choices_behind_the_colon_are_what_the_file_offers():
    choice = config_lib.parse_arg("scale=small,ratio=95:5", scale="demo", ratio="90:10")
    assert (choice.scale, choice.ratio) == ("small", "95:5")
    assert config_lib.parse_arg("", scale="demo").scale == "demo"
    with pytest.raises(ValueError, match=r"no choice 'size'. It offers: scale=demo, ratio=90:10"):
        config_lib.parse_arg("size=small", scale="demo", ratio="90:10")
    for unfinished in ("scale", "scale="):
        with pytest.raises(ValueError, match="write scale=VALUE"):
            config_lib.parse_arg(unfinished, scale="demo")
    with pytest.raises(ValueError, match="scale=huge.*demo, pico, mini, small, medium"):
        two_clones(scale="huge")


def test_a_ratio_of_n_parts_is_a_run_on_n_clones():
    config = config_lib.resolve(two_clones("7:0:2:1"))
    assert config.tags == ("en1", "en2", "en3", "en4")
    assert dict(config.mixture.ratio) == {"en1": 7, "en2": 0, "en3": 2, "en4": 1}
    assert [config.languages[tag].clone_of for tag in config.tags] == ["", "en1", "en1", "en1"]


@pytest.mark.parametrize("ratio", ["90", "0.9:0.1", "90:-10", "a:b", "90:", "90/10", ""])
def test_a_ratio_that_is_not_whole_numbers_with_colons_is_refused_with_an_example(ratio):
    with pytest.raises(ValueError, match="such as 90:10"):
        config_lib.parse_ratio(ratio)


@pytest.mark.parametrize(
    "ratio, counts",
    [((90, 10), (9, 1)), ((95, 5), (19, 1)), ((0, 50), (0, 1)), ((7, 5), (7, 5)), ((4, 6), (2, 3))],
)
def test_a_ratio_is_reduced_to_its_lowest_terms(ratio, counts):
    reduced = config_lib.reduced(dict(zip("ab", ratio, strict=True)))
    assert tuple(reduced.values()) == counts


# Fields that are wrong

WRONG = {
    "a field that does not exist": ({"step": 5}, r"config has no field 'step'.*config\.steps"),
    "a nested one": ({"model__depth": 5}, r"config\.model has no field 'depth'. It has: "),
    "a mistyped one": ({"optimizer__peaklr": 1.0}, r"Did you mean config\.optimizer\.peak_lr\?"),
    "of a language": (
        {"languages__en2__clone": "en1"},
        r"config\.languages\.en2 has no field 'clone'. Did you mean .*en2\.clone_of",
    ),
    "text for a number": ({"steps": "5"}, r"config\.steps='5' must be of type int"),
    "a fraction of a step": ({"steps": 5.5}, r"config\.steps=5\.5 must be of type int"),
    "true for a number": ({"batch_size": True}, r"config\.batch_size=True must be of type int"),
    "a number for text": ({"data_dir": 5}, r"config\.data_dir=5 must be of type str"),
    "a number for true": ({"model__tied": 1}, r"config\.model\.tied=1 must be of type bool"),
    "a value for a group": ({"model": 5}, r"config\.model=5 must be a group of fields"),
    "text for a tuple": ({"sources__en__packages": "json"}, r"packages='json' must be a tuple"),
    "no steps": ({"steps": 0}, r"config\.steps=0 must be 1 or more"),
    "a negative seed": ({"seed": -1}, r"config\.seed=-1 must be 0 or more"),
    "not a number": (
        {"optimizer__peak_lr": float("nan")},
        r"config\.optimizer\.peak_lr=nan must be 0 or more",
    ),
    "no such sampler": (
        {"mixture__sampler": "random"},
        r"config\.mixture\.sampler='random' is not one of 'exact', 'bernoulli'",
    ),
    "no such type": ({"model__dtype": "float16"}, r"config\.model\.dtype='float16' is not one of"),
    "a beta of one": ({"optimizer__b2": 1.0}, r"config\.optimizer\.b2=1\.0 must lie in \[0, 1\)"),
    "no width": ({"model__K": 0}, r"config\.model\.K=0 must be 1 or more"),
    "a chunk that does not divide": (
        {"model__loss_chunk": 7},
        r"config\.model\.loss_chunk=7 does not divide config\.model\.L=64.*divisor",
    ),
    "uneven micro-batches": (
        {"optimizer__accumulate": 3},
        r"config\.batch_size=32 cannot be cut into config\.optimizer\.accumulate=3",
    ),
    "two free axes": ({"mesh__fsdp": -1}, r"config\.mesh has more than one -1"),
    "no checkpoint kept": ({"checkpoint__keep": 0}, r"config\.checkpoint\.keep=0 must be 1 or"),
    "forbidden and repeated": (
        {"mixture__reuse": "forbid"},
        r"config\.mixture\.reuse='forbid' contradicts .*Set config\.mixture\.on_exhaustion to",
    ),
    "no kind of source": ({"sources__en__kind": "web"}, r"config\.sources\.en\.kind='web' is not"),
    "files without a name": (
        {"sources__en__kind": "files"},
        r"config\.sources\.en\.kind='files' needs config\.sources\.en\.train",
    ),
    "too few pieces": (
        {"sources__en__tokenizer__vocab_size": 259},
        r"config\.sources\.en\.tokenizer\.vocab_size=259 must be 260 or more",
    ),
    "no languages": ({"languages": {}}, r"config\.languages is empty. Declare one"),
    "a source and a parent": (
        {"languages__en2__source": "en"},
        r"config\.languages\.en2 needs one of source .* and clone_of",
    ),
    "neither": ({"languages__en2__clone_of": ""}, r"config\.languages\.en2 needs one of source"),
    "a source that is not there": (
        {"languages__en1__source": "fr"},
        r"config\.languages\.en1\.source='fr' is not declared. config\.sources has: en",
    ),
    "a parent that is not there": (
        {"languages__en2__clone_of": "fr"},
        r"config\.languages\.en2\.clone_of='fr' is not a language .*Those are: en1",
    ),
    "its own parent": (
        {"languages__en2__clone_of": "en2"},
        r"config\.languages\.en2\.clone_of='en2' is not a language with a source of its own",
    ),
    "more anchors than ids": (
        {"languages__en2__anchors": 1.5},
        r"config\.languages\.en2\.anchors=1\.5 must lie in 0 to 1",
    ),
    "anchors of an original": (
        {"languages__en1__anchors": 0.5},
        r"config\.languages\.en1\.anchors=0\.5 applies to clones only",
    ),
    "a fractional seed": ({"mixture__seed": 0.5}, r"config\.mixture\.seed=0\.5 must be of type"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_field_is_refused_by_name_with_what_to_write(case):
    changes, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        resolved(**changes)


@pytest.mark.parametrize("name", ["EN2", "en-2", "en 2", "en.2", ""])
def test_a_tag_is_made_of_small_letters_digits_and_underscores(name):
    values = changed()
    values["languages"][name] = values["languages"].pop("en2")
    values["mixture"]["ratio"][name] = values["mixture"]["ratio"].pop("en2")
    with pytest.raises(ValueError, match="made of a-z, 0-9 and _ only"):
        config_lib.resolve(values)


# The ratio


@pytest.mark.parametrize("count", [0.9, -1, -0.5, float("nan"), float("inf")])
def test_a_count_that_is_not_a_whole_number_is_refused_by_its_field(count):
    fix = r" must be a whole number of sequences, 0 or more.*19 and 1"
    with pytest.raises(ValueError, match=rf"config\.mixture\.ratio\.en1={count}{fix}"):
        resolved(mixture__ratio={"en1": count, "en2": 1})
    stages = [[0, {"en1": 1, "en2": 1}], [5, {"en1": count, "en2": 1}]]
    with pytest.raises(ValueError, match=rf"config\.mixture\.stages\[1\]\.en1={count}{fix}"):
        resolved(mixture__stages=stages)


@pytest.mark.parametrize("count", ["3", True, None])
def test_a_count_that_is_not_a_number_is_refused_by_its_field(count):
    with pytest.raises(ValueError, match=rf"config\.mixture\.ratio\.en1={count!r} must be of type"):
        resolved(mixture__ratio={"en1": count, "en2": 1})


def test_a_whole_number_written_with_a_point_is_that_number():
    whole = resolved(mixture__ratio={"en1": 3.0, "en2": 1})
    assert whole == resolved() and config_lib.identity(whole) == config_lib.identity(resolved())
    assert config_lib.reduced(whole.mixture.ratio) == {"en1": 3, "en2": 1}


def test_every_language_has_a_ratio_and_every_ratio_a_language():
    with pytest.raises(ValueError, match=r"ratio\.fr is the ratio of a language that is not decl"):
        resolved(mixture__ratio={"en1": 1, "en2": 1, "fr": 1})
    with pytest.raises(ValueError, match=r"mixture\.ratio says nothing of the language en2.*Set"):
        resolved(mixture__ratio={"en1": 1})
    with pytest.raises(ValueError, match=r"config\.mixture\.ratio is zero for every language"):
        resolved(mixture__ratio={"en1": 0, "en2": 0})
    assert dict(resolved(mixture__ratio={"en1": 0, "en2": 1}).mixture.ratio)["en1"] == 0


def stages(*firsts, **ratio):
    return [[first, {"en1": 1, "en2": 1} | ratio] for first in firsts]


@pytest.mark.parametrize(
    "firsts, wrong", [((5,), 0), ((0, 5, 5), 2), ((0, 9, 5), 2), ((0, -3), 1), ((0, 0), 1)]
)
def test_stages_begin_at_step_zero_and_one_after_the_other(firsts, wrong):
    with pytest.raises(ValueError, match=rf"config\.mixture\.stages\[{wrong}\] begins at step"):
        resolved(mixture__stages=stages(*firsts))


def test_a_stage_is_a_step_and_a_ratio_of_all_languages():
    with pytest.raises(ValueError, match=r"config\.mixture\.stages\[0\]=5 must be a tuple"):
        resolved(mixture__stages=[5])
    with pytest.raises(ValueError, match=r"config\.mixture\.stages\[0\]=.* must have 2 parts"):
        resolved(mixture__stages=[[0]])
    with pytest.raises(ValueError, match=r"config\.mixture\.stages\[0\]\[0\]=0\.5 must be of type"):
        resolved(mixture__stages=stages(0.5))
    with pytest.raises(
        ValueError, match=r"config\.mixture\.stages\[0\]\.fr is the ratio of a lang"
    ):
        resolved(mixture__stages=stages(0, fr=1))
    with pytest.raises(ValueError, match=r"config\.mixture\.stages\[0\] says nothing of .*en2"):
        resolved(mixture__stages=[[0, {"en1": 1}]])
    with pytest.raises(ValueError, match=r"config\.mixture\.stages\[0\] is zero for every"):
        resolved(mixture__stages=stages(0, en1=0, en2=0))


def test_a_stage_after_the_end_of_the_run_is_refused():
    with pytest.raises(ValueError, match=r"last stage at step 20, .*config\.steps=20"):
        resolved(mixture__stages=stages(0, 20), steps=20)
    assert len(resolved(mixture__stages=stages(0, 19), steps=20).mixture.stages) == 2


def test_stages_can_be_set_in_a_config_file():
    config = two_clones()
    config.mixture.stages = ((0, {"en1": 1, "en2": 0}), (500, {"en1": 1, "en2": 3}))
    [(_, first), (step, second)] = config_lib.resolve(config).mixture.stages
    assert (dict(first), step, dict(second)) == ({"en1": 1, "en2": 0}, 500, {"en1": 1, "en2": 3})


# What a run is


def test_nothing_writes_to_a_config():
    config = resolved()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.steps = 5
    with pytest.raises(TypeError):
        config.mixture.ratio["en1"] = 5


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mixture__stages": stages(0, 10), "mixture__sampler": "bernoulli"},
        {"sources__en__packages": ("json", "email"), "languages__en2__anchors": 0.1},
        {"optimizer__peak_lr": 1, "seed": 7},
    ],
)
def test_a_config_read_back_from_its_run_is_the_same(tmp_path, changes):
    config = resolved(**changes)
    run = runs.RunDirectory(tmp_path / "run")
    run.check(config)
    run.claim(config)
    assert run.config() == config
    assert config_lib.identity(run.config()) == config_lib.identity(config)
    plain = json.loads((tmp_path / "run" / "config.json").read_text())
    assert plain == config_lib.to_dict(config)
    assert config_lib.digest(plain) == config_lib.digest(config_lib.to_dict(run.config()))
    run.check(config)


def test_every_field_has_a_default_that_can_be_set_from_the_command_line():
    def check(kind, group):
        for field in dataclasses.fields(kind):
            assert field.name in group and group[field.name] is not None
            if isinstance(group[field.name], ml_collections.ConfigDict) and group[field.name]:
                check(type(field.default), group[field.name])

    check(config_lib.Config, config_lib.default())
    check(config_lib.SourceConfig, config_lib.declared(config_lib.SourceConfig))


def test_differences_name_each_field_with_both_values():
    ours = config_lib.to_dict(resolved())
    theirs = config_lib.to_dict(resolved(steps=7, model__D=32, languages__en2__anchors=0.5))
    assert config_lib.differences(ours, theirs) == [
        ("config.steps", ours["steps"], 7),
        ("config.languages.en2.anchors", 0.0, 0.5),
        ("config.model.D", 64, 32),
    ]
    assert config_lib.differences(ours, ours) == []
    other = {"ratio": {"en1": 3}, "stages": [[0, {"en1": 3}]]}
    assert config_lib.differences({"ratio": {"en1": 3, "fr": 1}, "stages": []}, other) == [
        ("config.ratio.fr", 1, "absent"),
        ("config.stages", [], [[0, {"en1": 3}]]),
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"steps": 999},
        {"batch_size": 16},
        {"sources__en__packages": ("json",)},
        {"sources__en__tokenizer__vocab_size": 512},
        {"languages__en2__anchors": 0.1},
        {"vocabulary__anchor_specials": "always"},
        {"mixture__ratio": {"en1": 1, "en2": 1}},
        {"mixture__seed": 3},
        {"model__N": 3},
        {"optimizer__b2": 0.99},
    ],
)
def test_another_run_is_refused_in_its_directory_naming_the_field(tmp_path, changes):
    run = runs.RunDirectory(tmp_path / "run")
    run.claim(resolved())
    [name] = changes
    field = r"config\." + name.replace("__", r"\.")
    with pytest.raises(ValueError, match=rf"belongs to a run with {field}.*Use another --workdir"):
        run.check(resolved(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"data_dir": "elsewhere"},
        {"log_every": 3},
        {"evaluation__every": 7},
        {"checkpoint__every": 7},
        {"mesh__fsdp": 2},
    ],
)
def test_what_does_not_change_the_training_may_change_in_a_run(tmp_path, changes):
    run = runs.RunDirectory(tmp_path / "run")
    run.claim(resolved())
    run.check(resolved(**changes))


def test_only_more_steps_are_an_extension(tmp_path):
    run = runs.RunDirectory(tmp_path / "run")
    run.claim(resolved(steps=20))
    with pytest.raises(ValueError, match=r"config\.steps=20.*or pass --extend"):
        run.check(resolved(steps=30))
    run.check(resolved(steps=30), extend=True)
    with pytest.raises(ValueError, match=r"--extend cannot shorten"):
        run.check(resolved(steps=10), extend=True)
    with pytest.raises(ValueError, match=r"config\.seed=0"):
        run.check(resolved(steps=30, seed=1), extend=True)


def test_a_directory_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="is not empty and holds no run. Use another --workdir"):
        runs.RunDirectory(tmp_path).check(resolved())


# The command line


def refused(capsys, *args):
    """Returns the message that arguments are refused with, before any flag is parsed."""
    with pytest.raises(SystemExit) as exit_:
        cli._check_config(list(args))
    assert exit_.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    "arg, message",
    [
        ("--config.step=5", "config has no field 'step'. Did you mean config.steps?"),
        ("--config.model.depth=5", "config.model has no field 'depth'. It has: "),
        ("--config.steps.x=5", "config.steps is a value and has no fields"),
        ("--config.mixture.ratio.fr=5", "not declared. config.languages has: en1, en2"),
        ("--config.sources.fr.kind=files", "config.sources has no field 'fr'. It has: en"),
    ],
)
@pytest.mark.parametrize("form", ["one", "two"])
def test_an_override_of_a_field_that_does_not_exist_is_refused(capsys, arg, message, form):
    # Either of --config=FILE and --config FILE.
    config = [f"--config={REFERENCE}"] if form == "one" else ["--config", REFERENCE]
    assert message in refused(capsys, *config, arg)
    assert message in refused(capsys, *config, *arg.split("="))


def test_overrides_of_fields_that_exist_pass():
    cli._check_config([f"--config={REFERENCE}:scale=mini", "--config.steps=5", "--dry_run"])
    cli._check_config(["--config", REFERENCE, "--config.mixture.ratio.en2", "5", "--nodry_run"])
    cli._check_config(["--workdir=somewhere"])


def test_a_config_file_that_cannot_be_used_is_refused_with_the_reason(capsys, tmp_path):
    def message(content, choices=""):
        (tmp_path / "c.py").write_text(content)
        return refused(capsys, f"--config={tmp_path}/c.py{choices}")

    assert "there is no file nowhere.py" in refused(capsys, "--config=nowhere.py")
    assert "defines no function get_config" in message("x = 1")
    assert "fails with SyntaxError" in message("x = = 1")
    assert "fails with KeyError: 'SCRATCH'" in message("{}['SCRATCH']\ndef get_config(): pass")
    assert "fails with KeyError: 'a'" in message("def get_config(): return {}['a']")
    assert "takes 0 positional arguments" in message("def get_config(): return {}", ":scale=mini")
    assert "no choice 'size'" in refused(capsys, f"--config={REFERENCE}:size=mini")


def run_main(tmp_path, *args):
    command = [sys.executable, "-m", "imbalance_jax.main", "--workdir=run", *args]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)


@pytest.mark.parametrize(
    "args, message",
    [
        (("--config.steps=few",), "--config.steps=few"),
        (("--config", REFERENCE, "--config.modle.L=3"), "Did you mean config.model?"),
        (
            ("--config.mixture.ratio.en1=0.9",),
            "it must be a whole number of sequences. Write 92.5%",
        ),
        (("--config.mixture.ratio.en1=0", "--config.mixture.ratio.en2=0"), "zero for every"),
    ],
)
def test_a_command_with_a_wrong_config_exits_with_2_one_message_and_nothing_made(
    tmp_path, args, message
):
    done = run_main(tmp_path, f"--config={REFERENCE}", *args)
    assert done.returncode == 2 and done.stdout == ""
    assert message in done.stderr and done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
