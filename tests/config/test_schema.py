"""Behaviours of config.py, and of how cli.py reads a config from the command line."""

import dataclasses
import fractions
import json
import os
import pathlib
import re
import runpy
import subprocess
import sys
import textwrap

import ml_collections
import pytest
from absl import flags
from helpers import ROOT

from imbalance_jax import cli
from imbalance_jax import config as config_lib
from imbalance_jax.runs import run_config
from imbalance_jax.runs import run_directory as runs

# Of runs that begin by themselves: lm_transfer.py needs one to go on from.
FILES = sorted(p for p in (ROOT / "configs").glob("*.py") if p.name != "lm_transfer.py")
REFERENCE = str(ROOT / "configs" / "90_10.py")


def two_clones(ratio="3:1", scale="demo"):
    return config_lib.cloned(scale=scale, ratio=ratio)


def spoken():
    """Returns a run on two languages, from files, with a set of parallel texts."""
    return cli.load_config_file(f"{ROOT}/configs/en_fr.py:scale=demo,files=DIR")


def toys():
    """Returns a run on two toy languages, which are parallel."""
    return cli.load_config_file(f"{ROOT}/configs/toy.py")


def changed(made=two_clones, **changes):
    """Returns the plain values of a run, on two clones; changes are fields joined by __."""
    values = made().to_dict()
    for name, value in changes.items():
        *groups, field = name.split("__")
        target = values
        for group in groups:
            target = target[group]
        target[field] = value
    return values


def resolved(made=two_clones, **changes):
    return config_lib.resolve_config(changed(made, **changes))


# Config files


@pytest.mark.parametrize("scale", config_lib.SCALES)
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_config_file_resolves_at_every_scale(file, scale):
    values = runpy.run_path(str(file))["get_config"](f"scale={scale}")
    config = config_lib.resolve_config(values)
    size = config_lib.SCALES[scale]
    assert (config.steps, config.model.D) == (size["steps"], size["model.D"])
    for source in config.sources.values():
        assert source.tokenizer.vocab_size == size["tokenizer.vocab_size"]
    joint = config.vocabulary.tokenizer.vocab_size
    assert joint == size["tokenizer.vocab_size"] * len(config.sources)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_config_file_says_how_it_is_run(file):
    says = file.read_text().split('"""')[1]
    commands = re.findall(r"--config=(configs/\S+)", says)
    assert commands[0].startswith(f"configs/{file.name}")
    for command in commands:
        config_lib.resolve_config(cli.load_config_file(f"{ROOT}/{command}"))
    get_config = runpy.run_path(str(file))["get_config"]
    scale = "pico" if file.name == "en_fr.py" else "demo"
    assert get_config() == get_config(f"scale={scale}")


# file -> choices that it documents, and fields that follow from them.
CHOICES = {
    "50_50.py": {},
    "90_10.py": {
        "ratio=95:5": {"mixture.ratio": {"en1": 95, "en2": 5}},
        "ratio=0:1": {"mixture.ratio": {"en1": 0, "en2": 1}},
        "ratio=8:1:1": {"mixture.ratio": {"en1": 8, "en2": 1, "en3": 1}},
        "ratio=1": {"mixture.ratio": {"en1": 1}},
        "joins=0.5": {
            "mixture.stages": [[0, {"en1": 90, "en2": 0}], [0.5, {"en1": 90, "en2": 10}]]
        },
    },
    "anchors.py": {
        "anchors=0": {"languages.en2.anchors": 0.0},
        "anchors=0.2": {"languages.en2.anchors": 0.2},
        "anchors=1": {"languages.en2.anchors": 1.0},
        **{
            f"choice={choice}": {"languages.en2.anchor_choice": choice}
            for choice in ("reference", "frequent", "rare")
        },
        **{f"measure={m}": {"languages.en2.anchor_measure": m} for m in ("ids", "tokens")},
        **{
            f"specials={specials}": {"vocabulary.anchor_specials": specials}
            for specials in ("reference", "never", "always")
        },
    },
    "dials.py": {
        "dial=none": {"languages.en2.clone_of": "en1", "mixture.ratio": {"en1": 90, "en2": 10}},
        "dial=none,ratio=1:1": {"mixture.ratio": {"en1": 1, "en2": 1}},
        "dial=tokenizer": {
            "languages.en2.source": "en2",
            "mixture.content": "disjoint",
            "sources.en1.ids": "shared",
            "sources.en2.ids": "shared",
        },
        "dial=tokenizer,ratio=1:1": {"mixture.ratio": {"en1": 1, "en2": 1}},
        "dial=reversed": {"languages.en2.words": "reversed"},
        "dial=permuted": {"languages.en2.words": "permuted"},
        "dial=placebo": {"languages.en2.words": "shuffled"},
        "dial=separator": {"vocabulary.separator": "shared"},
        "dial=document": {"mixture.switch": "document"},
    },
    "en_fr.py": {
        "ratio=90:10": {"mixture.ratio": {"en": 90, "fr": 10}},
        **{f"layout={n}": {"vocabulary.layout": n} for n in ("disjoint", "merged", "joint")},
        **{f"content={n}": {"mixture.content": n} for n in ("shared", "disjoint")},
        "stages=0.1_0.9": {
            "mixture.stages": [[0, {"en": 9, "fr": 1}], [0.5, {"en": 1, "fr": 9}]],
            "mixture.same_total_as": [],
        },
        "joins=0.5": {"mixture.stages": [[0, {"en": 50, "fr": 0}], [0.5, {"en": 50, "fr": 50}]]},
        "languages=fr,ratio=1": {"mixture.ratio": {"fr": 1}, "parallel": {}},
        "files=DIR": {
            "sources.fr.kind": "files",
            "sources.fr.train": "DIR/fr.train.jsonl.gz",
            "sources.fr.test": "DIR/fr.test.jsonl.gz",
            "parallel.en_fr.path": "DIR/parallel.jsonl.gz",
        },
        "layout=joint,content=disjoint": {
            "sources.fr.kind": "tfds",
            "sources.fr.dataset": "wiki40b/fr",
            "sources.fr.id_field": "wikidata_id",
            "sources.fr.ids": "shared",
            "sources.en.markup": "wiki40b",
        },
    },
    "schedule.py": {
        "stages=0.1_0.9": {
            "mixture.stages": [[0, {"en1": 9, "en2": 1}], [0.5, {"en1": 1, "en2": 9}]]
        },
        "stages=0.0_1.0": {
            "mixture.stages": [[0, {"en1": 1, "en2": 0}], [0.5, {"en1": 0, "en2": 1}]]
        },
        "stages=0.1_0.9_0.5_0.5": {},
        "stages=0.05_0.65_0.65_0.65": {},
        "stages=0.0_0.5_1.0": {},
        "stages=0.5": {"mixture.stages": [[0, {"en1": 1, "en2": 1}]]},
    },
    "ten_languages.py": {
        "main=0": {"mixture.ratio.en1": 0},
        "main=10": {},
        "main=50": {},
        "main=100": {"mixture.ratio.en10": 0},
    },
    "toy.py": {
        "ratio=2:1:1": {"mixture.ratio": {"toy0": 2, "toy1": 1, "toy2": 1}},
        "zipf=1.2": {"sources.toy0.synthetic.zipf": 1.2, "sources.toy1.synthetic.zipf": 1.2},
        "depth=4": {"sources.toy0.synthetic.depth": 4, "sources.toy1.synthetic.depth": 4},
        "overlap=0.2": {
            "sources.toy0.synthetic.overlap": 0.2,
            "sources.toy1.synthetic.overlap": 0.2,
        },
        **{
            f"order={order}": {
                "sources.toy0.synthetic.order": "head_first",
                "sources.toy1.synthetic.order": order,
            }
            for order in ("head_first", "head_middle", "head_last")
        },
        **{f"layout={n}": {"vocabulary.layout": n} for n in ("disjoint", "merged")},
    },
}


def field_of(plain, name):
    for part in name.split("."):
        plain = plain[part]
    return plain


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_choice_that_a_file_documents_sets_what_it_says(file):
    choices = CHOICES[file.name]
    for choice, fields in choices.items():
        for scale in config_lib.SCALES:
            config = config_lib.resolve_config(
                cli.load_config_file(f"{file}:scale={scale},{choice}")
            )
            assert config.steps == config_lib.SCALES[scale]["steps"]
            plain = config_lib.to_dict(config)
            assert {name: field_of(plain, name) for name in fields} == fields
    # There is no choice that is not tried here, nor one that the file does not explain.
    get_config = runpy.run_path(str(file))["get_config"]
    with pytest.raises(ValueError, match="no choice 'other'. It offers: ") as refused:
        get_config("other=1")
    offered = set(re.findall(r"(\w+)=", str(refused.value).partition("offers: ")[2]))
    assert offered == {"scale"} | {part.split("=")[0] for c in choices for part in c.split(",")}
    says = file.read_text().split('"""')[1]
    assert all(name in says for name in offered)


WRONG_CHOICES = {
    "90_10.py:ratio=90": "such as 90:10",
    "90_10.py:joins=1": "joins=1: write the fraction of the run after which en2 joins",
    "90_10.py:joins=half": "joins=half: write the fraction",
    "90_10.py:joins=0.5,ratio=1": "joins=0.5: en1 is alone",
    "en_fr.py:languages=fr": "ratio=50:50: write 1 part, for fr",
    "en_fr.py:languages=de,ratio=1": "languages=de: choose en_fr, en or fr",
    "en_fr.py:languages=en,ratio=1,stages=0.1_0.9": "stages=0.1_0.9 is for two languages",
    "dials.py:ratio=1,dial=reversed": "ratio=1: dial=reversed is of a clone",
    "90_10.py:ratio=0:0": "config.mixture.ratio is zero for every language",
    "50_50.py:ratio=1:1": "It offers: scale=demo",
    "anchors.py:anchors=few": "anchors=few: write a share from 0 to 1",
    "anchors.py:anchors=1.5": "config.languages.en2.anchors=1.5 must lie in 0 to 1",
    "anchors.py:anchors=nan": "config.languages.en2.anchors=nan must lie in 0 to 1",
    "anchors.py:choice=common": "anchor_choice='common' is not one of 'reference', 'frequent',",
    "anchors.py:measure=types": "anchor_measure='types' is not one of 'ids', 'tokens'",
    "anchors.py:specials=no": "config.vocabulary.anchor_specials='no' is not one of",
    "dials.py:dial=loud": "dial=loud: choose one of none, tokenizer, reversed",
    "dials.py:dial=tokenizer,ratio=1:1:1": "ratio=1:1:1: write 2 parts, for en1, en2",
    "en_fr.py:ratio=1:1:1": "ratio=1:1:1: write 2 parts, for en, fr",
    "en_fr.py:layout=anchored": "config.vocabulary.layout='anchored' is not one of 'disjoint',",
    "en_fr.py:content=split": "config.mixture.content='split' is not one of 'shared', 'disjoint'",
    "en_fr.py:stages=often": "stages=often: write the share of fr in each stage",
    "schedule.py:stages=0.1_1.1": "stages=0.1_1.1: write the share of en2 in each stage",
    "schedule.py:stages=0.1__0.9": "stages=0.1__0.9: write the share of en2",
    "schedule.py:stages=1/0": "stages=1/0: write the share of en2",
    "schedule.py:stages=nan_0.5": "stages=nan_0.5: write the share of en2",
    "schedule.py:stages=0.1_0.8": "same_total_as gives en1 24,000 sequences in all, but",
    "ten_languages.py:main=50.5": "main=50.5: write a percentage in whole numbers, such as 50",
    "ten_languages.py:main=101": "main=101: write a percentage",
    "ten_languages.py:main=-1": "main=-1: write a percentage",
    "toy.py:overlap=much": "overlap=much: write a number",
    "toy.py:overlap=2": "synthetic.overlap=2.0 must lie in 0 to 1",
    "toy.py:order=free": "synthetic.order='free' is not one of 'head_first', 'head_middle',",
    "toy.py:layout=joint": "Set config.vocabulary.layout=merged",
    "toy.py:ratio=100": "such as 90:10",
}


@pytest.mark.parametrize("choice", WRONG_CHOICES)
def test_a_wrong_choice_is_refused_in_one_line_with_what_to_write(capsys, choice):
    try:
        config_lib.resolve_config(cli.load_config_file(f"{ROOT}/configs/{choice}"))
        message = ""
    except SystemExit as exit_:
        assert exit_.code == 2
        message = capsys.readouterr().err.strip()
    except ValueError as error:
        message = str(error)
    assert WRONG_CHOICES[choice] in message and len(message.splitlines()) == 1


def test_each_dial_differs_from_a_clone_in_one_thing():
    def differences(dial):
        found = [
            config_lib.to_dict(
                config_lib.resolve_config(cli.load_config_file(f"{ROOT}/configs/dials.py:dial={d}"))
            )
            for d in (dial, "none")
        ]
        return [name for name, _, _ in config_lib.find_differences(*found)]

    assert differences("none") == []
    for dial, field in {
        "reversed": "languages.en2.words",
        "permuted": "languages.en2.words",
        "placebo": "languages.en2.words",
        "separator": "vocabulary.separator",
        "document": "mixture.switch",
    }.items():
        assert differences(dial) == [f"config.{field}"]
    config = config_lib.resolve_config(
        cli.load_config_file(f"{ROOT}/configs/dials.py:dial=tokenizer")
    )
    one, two = config.sources["en1"], config.sources["en2"]
    assert two.tokenizer.vocab_size * 2 == one.tokenizer.vocab_size
    assert dataclasses.replace(two, tokenizer=one.tokenizer) == one
    clone = config_lib.resolve_config(cli.load_config_file(f"{ROOT}/configs/dials.py"))
    assert one == dataclasses.replace(clone.sources["en"], ids="shared")
    assert config.mixture.ratio == clone.mixture.ratio


@pytest.mark.parametrize("main, clone", [(50, 5.556), (10, 10), (37, 7), (0, 11.111), (100, 0)])
def test_of_ten_languages_the_first_gets_what_main_says_and_the_others_equal_parts(main, clone):
    config = config_lib.resolve_config(
        cli.load_config_file(f"{ROOT}/configs/ten_languages.py:main={main}")
    )
    ratio = dict(config.mixture.ratio)
    assert config.tags == tuple(f"en{n}" for n in range(1, 11)) and set(ratio) == set(config.tags)
    percent = {tag: 100 * count / sum(ratio.values()) for tag, count in ratio.items()}
    assert percent.pop("en1") == main
    assert {round(share, 3) for share in percent.values()} == {clone}
    assert [config.languages[tag].clone_of for tag in percent] == ["en1"] * 9


def test_ten_languages_of_the_reference_have_short_blocks():
    for main, block in ((50, 18), (10, 10)):
        config = config_lib.resolve_config(
            cli.load_config_file(f"{ROOT}/configs/ten_languages.py:main={main}")
        )
        assert sum(config_lib.reduce_ratio(config.mixture.ratio).values()) == block


def test_the_scales_of_the_reference_study_are_its_own():
    sizes = {"mini": (512, 8, 32, 2048, 4), "small": (768, 12, 64, 3072, 12)}
    sizes["medium"] = (1024, 16, 64, 4096, 24)
    for scale, size in sizes.items():
        config = config_lib.resolve_config(two_clones(scale=scale))
        model, optimizer = config.model, config.optimizer
        assert size == (model.D, model.H, model.K, model.F, model.N) and model.L == 512
        assert (optimizer.peak_lr, optimizer.final_lr, optimizer.warmup) == (6e-4, 6e-6, 200)
        assert (optimizer.b1, optimizer.b2, optimizer.eps) == (0.9, 0.95, 1e-8)
        assert optimizer.weight_decay == optimizer.clip_norm == 0
        assert config.batch_size == (256 if scale == "medium" else 128)
        # The same text at each scale, but for half a batch.
        assert abs(config.steps * config.batch_size - 18265 * 128) <= 128


def test_toy_languages_say_the_same_in_languages_of_their_own():
    config = config_lib.resolve_config(
        cli.load_config_file(f"{ROOT}/configs/toy.py:ratio=1:1:1,order=head_last")
    )
    assert [config.sources[f"toy{n}"].synthetic.language for n in range(3)] == [0, 1, 2]
    assert {name: set_.sources for name, set_ in config.parallel.items()} == {
        "toy0_toy1": ("toy0", "toy1"),
        "toy0_toy2": ("toy0", "toy2"),
    }


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
    config = config_lib.resolve_config(two_clones("7:0:2:1"))
    assert config.tags == ("en1", "en2", "en3", "en4")
    assert dict(config.mixture.ratio) == {"en1": 7, "en2": 0, "en3": 2, "en4": 1}
    assert [config.languages[tag].clone_of for tag in config.tags] == ["", "en1", "en1", "en1"]


def test_a_ratio_of_one_part_is_a_run_on_one_language():
    config = config_lib.resolve_config(cli.load_config_file(f"{REFERENCE}:ratio=1"))
    assert config.tags == ("en1",) and dict(config.mixture.ratio) == {"en1": 1}
    french = cli.load_config_file(f"{ROOT}/configs/en_fr.py:files=DIR,languages=fr,ratio=1")
    config = config_lib.resolve_config(french)
    assert config.tags == ("fr",) == tuple(config.sources) and not config.parallel
    assert config_lib.resolve_config(
        cli.load_config_file(f"{ROOT}/configs/toy.py:ratio=1")
    ).tags == ("toy0",)


def test_a_language_that_joins_later_has_its_ids_from_the_start_and_its_ratio_from_then_on():
    config = config_lib.resolve_config(cli.load_config_file(f"{REFERENCE}:ratio=6:3:1,joins=0.25"))
    assert config_lib.list_stages(config) == (
        (0, {"en1": 6, "en2": 3, "en3": 0}),
        (375, {"en1": 6, "en2": 3, "en3": 1}),
    )
    assert config.tags == ("en1", "en2", "en3")
    config = config_lib.resolve_config(cli.load_config_file(f"{ROOT}/configs/en_fr.py:joins=0.5"))
    assert [ratio["fr"] for _, ratio in config_lib.list_stages(config)] == [0, 50]


@pytest.mark.parametrize("ratio", ["90", "0.9:0.1", "90:-10", "a:b", "90:", "90/10", ""])
def test_a_ratio_that_is_not_whole_numbers_with_colons_is_refused_with_an_example(ratio):
    with pytest.raises(ValueError, match="such as 90:10"):
        config_lib.parse_ratio(ratio)


@pytest.mark.parametrize(
    "ratio, counts",
    [((90, 10), (9, 1)), ((95, 5), (19, 1)), ((0, 50), (0, 1)), ((7, 5), (7, 5)), ((4, 6), (2, 3))],
)
def test_a_ratio_is_reduced_to_its_lowest_terms(ratio, counts):
    reduced = config_lib.reduce_ratio(dict(zip("ab", ratio, strict=True)))
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
    "a seed below": ({"mixture__seed": -2}, r"config\.mixture\.seed=-2 must be -1 or more"),
    "no such layout": (
        {"vocabulary__layout": "anchored"},
        r"config\.vocabulary\.layout='anchored' is not one of 'disjoint', 'merged', 'joint'",
    ),
    "no such separator": (
        {"vocabulary__separator": "cloned"},
        r"config\.vocabulary\.separator='cloned' is not one of 'layout', 'own', 'shared'",
    ),
    "no such rule for specials": (
        {"vocabulary__anchor_specials": "own"},
        r"config\.vocabulary\.anchor_specials='own' is not one of 'reference', 'never', 'always'",
    ),
    "no such measure": (
        {"languages__en2__anchor_measure": "types"},
        r"config\.languages\.en2\.anchor_measure='types' is not one of 'ids', 'tokens'",
    ),
    "no such choice": (
        {"languages__en2__anchor_choice": "all"},
        r"languages\.en2\.anchor_choice='all' is not one of 'reference', 'frequent', 'rare'",
    ),
    "no such order of words": (
        {"languages__en2__words": "sorted"},
        r"languages\.en2\.words='sorted' is not one of 'as_written', 'reversed', 'permuted', 'shuf",
    ),
    "a block of one word": (
        {"languages__en2__words_block": 1},
        r"config\.languages\.en2\.words_block=1 must be 2 or more",
    ),
    "no such order": (
        {"mixture__order": "random"},
        r"config\.mixture\.order='random' is not one of 'shuffled', 'sequential'",
    ),
    "no such switch": (
        {"mixture__switch": "sentence"},
        r"config\.mixture\.switch='sentence' is not one of 'window', 'document'",
    ),
    "no such content": (
        {"mixture__content": "own"},
        r"config\.mixture\.content='own' is not one of 'shared', 'disjoint'",
    ),
    "no such reuse": (
        {"mixture__reuse": "all"},
        r"config\.mixture\.reuse='all' is not one of 'same_language', 'any', 'forbid'",
    ),
    "no such end": (
        {"mixture__on_exhaustion": "wrap"},
        r"config\.mixture\.on_exhaustion='wrap' is not one of 'repeat', 'stop', 'error'",
    ),
    "a temperature below zero": (
        {"mixture__temperature": -1.0},
        r"config\.mixture\.temperature=-1\.0 must be 0 or more",
    ),
    "no temperature": (
        {"mixture__temperature": float("nan")},
        r"config\.mixture\.temperature=nan must be 0 or more",
    ),
    "a temperature and stages": (
        {"mixture__temperature": 2.0, "mixture__stages": [[0, {"en1": 1, "en2": 1}]]},
        r"config\.mixture\.temperature=2\.0 makes the ratio .*config\.mixture\.stages says another",
    ),
    "a temperature and a total": (
        {"mixture__temperature": 2.0, "mixture__same_total_as": [[0, {"en1": 1, "en2": 1}]]},
        r"config\.mixture\.temperature=2\.0 .*config\.mixture\.same_total_as says another one. Set",
    ),
    "too few joint pieces": (
        {"vocabulary__tokenizer__vocab_size": 259},
        r"config\.vocabulary\.tokenizer\.vocab_size=259 must be 260 or more",
    ),
    "no such type of joint tokenizer": (
        {"vocabulary__tokenizer__model_type": "word"},
        r"config\.vocabulary\.tokenizer\.model_type='word' is not one of 'bpe', 'unigram'",
    ),
    "no such type of tokenizer": (
        {"sources__en__tokenizer__model_type": "word"},
        r"config\.sources\.en\.tokenizer\.model_type='word' is not one of 'bpe', 'unigram'",
    ),
    "a mix of what is no source": (
        {"vocabulary__layout": "joint", "vocabulary__mix": {"fr": 1}},
        r"config\.vocabulary\.mix\.fr is not a source. config\.sources has: en",
    ),
    "a part below zero": (
        {"vocabulary__layout": "joint", "vocabulary__mix": {"en": -1}},
        r"config\.vocabulary\.mix\.en=-1 must be 0 or more",
    ),
    "a part of a part": (
        {"vocabulary__layout": "joint", "vocabulary__mix": {"en": 0.5}},
        r"config\.vocabulary\.mix\.en=0\.5 must be of type int",
    ),
    "a mix of nothing": (
        {"vocabulary__layout": "joint", "vocabulary__mix": {"en": 0}},
        r"config\.vocabulary\.mix is zero for every source.*Give one of them 1",
    ),
    "a joint tokenizer and one of its own": (
        {"vocabulary__layout": "joint", "sources__en__tokenizer__path": "en.model"},
        r"config\.sources\.en\.tokenizer\.path names .*Set config\.vocabulary\.tokenizer\.path",
    ),
    "a joint tokenizer of words": (
        {"vocabulary__layout": "joint", "sources__en__kind": "synthetic"},
        r"config\.sources\.en is synthetic and made of words. Set config\.vocabulary\.layout=mer",
    ),
    "markup of a text without any": (
        {"sources__en__kind": "docstrings", "sources__en__markup": "wiki40b"},
        r"config\.sources\.en\.markup='wiki40b' is for text of kind files or tfds, .*Leave it out",
    ),
    "no such markup": (
        {"sources__en__markup": "html"},
        r"config\.sources\.en\.markup='html' is not one of 'none', 'wiki40b'",
    ),
    **{
        f"a {split} file that is not read": (
            {f"sources__en__{split}": "a.txt"},
            rf"config\.sources\.en\.{split}='a.txt' is for .*kind='docstrings' does not read it",
        )
        for split in ("train", "validation", "test")
    },
    **{
        f"{name} of another kind of text": (
            {f"sources__en__{name}": value},
            rf"config\.sources\.en\.{name}=.* is for text of kind .*kind='docstrings' does not",
        )
        for name, value in {"field": "body", "id_field": "url", "dataset_dir": "d"}.items()
    },
    "ids of nobody": (
        {"sources__en__ids": "all"},
        r"config\.sources\.en\.ids='all' is not one of 'own', 'shared'",
    ),
    "no coverage": (
        {"sources__en__tokenizer__character_coverage": 0.0},
        r"config\.sources\.en\.tokenizer\.character_coverage=0\.0 must lie above 0 and be 1 at",
    ),
    "a dataset without a name": (
        {"sources__en__kind": "tfds"},
        r"config\.sources\.en\.kind='tfds' needs config\.sources\.en\.dataset: .*such as wiki40b/",
    ),
    "a dataset that is not read": (
        {"sources__en__dataset": "wiki40b/en"},
        r"config\.sources\.en\.dataset='wiki40b/en' is .*, or set config\.sources\.en\.kind=tfds",
    ),
    "no such order of heads": (
        {"sources__en__synthetic__order": "head_none"},
        r"synthetic\.order='head_none' is not one of 'head_first', 'head_middle', 'head_last'",
    ),
    **{
        f"a {name} below {least}": (
            {f"sources__en__synthetic__{name}": least - 1},
            rf"config\.sources\.en\.synthetic\.{name}={least - 1}(\.0)? must be {least} or more",
        )
        for name, least in {
            "world": 0,
            "language": 0,
            "tokens": 0,
            "zipf": 0,
            "lemmas": 1,
            "topics": 1,
            "depth": 1,
        }.items()
    },
    "lemmas without end": (
        {"sources__en__synthetic__lemmas": 1 << 20},
        r"config\.sources\.en\.synthetic\.lemmas=1048576 .*Set it to 262144 or less",
    ),
    "sentences of too many words": (
        {"sources__en__synthetic__depth": 13},
        r"config\.sources\.en\.synthetic\.depth=13 makes sentences of .*Set it to 12 or less",
    ),
    "topics that do not divide": (
        {"sources__en__synthetic__topics": 7},
        r"synthetic\.topics=7 does not divide lemmas=1024. Set lemmas to a multiple of topics",
    ),
    "an overlap of more than all": (
        {"sources__en__synthetic__overlap": 1.01},
        r"config\.sources\.en\.synthetic\.overlap=1\.01 must lie in 0 to 1",
    ),
    "no overlap": (
        {"sources__en__synthetic__overlap": float("nan")},
        r"config\.sources\.en\.synthetic\.overlap=nan must lie in 0 to 1",
    ),
    "other words of a text without end": (
        {"sources__en__kind": "synthetic", "languages__en2__words": "reversed"},
        r"config\.languages\.en2\.words='reversed' needs a text with an end. Set synthetic\.tokens",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_field_is_refused_by_name_with_what_to_write(case):
    changes, message = WRONG[case]
    with pytest.raises(ValueError, match=message) as refused:
        resolved(**changes)
    assert len(str(refused.value).splitlines()) == 1


WRONG_PARALLEL = {
    "one source": ({"sources": ("en",)}, r"sources=\('en',\) must name two sources, such as"),
    "no source": ({"sources": ()}, r"sources=\(\) must name two sources, such as \('en', 'fr'\)"),
    "one source twice": (
        {"sources": ("en", "en")},
        r"sources=\('en', 'en'\) must name two sources",
    ),
    "two sources thrice": ({"sources": ("en", "fr", "fr")}, r"sources=.* must name two sources"),
    "a source that is not there": (
        {"sources": ("en", "de")},
        r"sources has 'de', which is not declared. config\.sources has: en, fr",
    ),
    "one field": ({"fields": ("en",)}, r"fields=\('en',\) must be two, or \(\)"),
    "three fields": ({"fields": ("a", "b", "c")}, r"fields=\('a', 'b', 'c'\) must be two, or"),
    "no file": ({"path": ""}, r"path is empty. Name a \.jsonl file with a pair of texts on each"),
}


@pytest.mark.parametrize("case", WRONG_PARALLEL)
def test_parallel_texts_that_cannot_be_are_refused_by_their_field(case):
    fields, message = WRONG_PARALLEL[case]
    changes = {f"parallel__en_fr__{name}": value for name, value in fields.items()}
    with pytest.raises(ValueError, match=rf"config\.parallel\.en_fr\.{message}"):
        resolved(spoken, **changes)


@pytest.mark.parametrize("name", ["en-fr", "EN", ""])
def test_a_set_of_parallel_texts_has_a_name_like_a_tag(name):
    values = changed(spoken)
    values["parallel"][name] = values["parallel"].pop("en_fr")
    with pytest.raises(ValueError, match="a name is made of a-z, 0-9 and _ only"):
        config_lib.resolve_config(values)


@pytest.mark.parametrize("dial", [{"world": 1}, {"lemmas": 2048}, {"zipf": 2.0}, {"depth": 2}])
def test_toy_languages_are_parallel_only_where_they_say_the_same(dial):
    [(name, value)] = dial.items()
    with pytest.raises(ValueError, match=r"config\.parallel\.toy0_toy1: .* where world, lemmas"):
        resolved(toys, **{f"sources__toy1__synthetic__{name}": value})
    # What makes the language, not what it says.
    for name, value in {"language": 7, "order": "head_last", "overlap": 0.5, "tokens": 9}.items():
        resolved(toys, **{f"sources__toy1__synthetic__{name}": value})


def test_toy_languages_are_parallel_to_no_text_and_by_no_file():
    with pytest.raises(ValueError, match=r"config\.parallel\.toy0_toy1: .*path is empty"):
        resolved(toys, parallel__toy0_toy1__path="pairs.jsonl")
    with pytest.raises(ValueError, match=r"config\.parallel\.toy0_toy1: synthetic sources"):
        resolved(toys, sources__toy1=config_lib.to_dict(config_lib.SourceConfig()))


@pytest.mark.parametrize("name", ["EN", "e n", "en-1", ""])
def test_a_source_has_a_name_like_a_tag(name):
    values = changed()
    values["sources"][name] = config_lib.to_dict(config_lib.SourceConfig())
    with pytest.raises(ValueError, match="a name is made of a-z, 0-9 and _ only"):
        config_lib.resolve_config(values)


def test_words_in_another_order_take_a_toy_text_with_an_end():
    changes = {"sources__en__kind": "synthetic", "sources__en__synthetic__tokens": 1000}
    config = resolved(**changes, languages__en2__words="reversed")
    assert config.languages["en2"].words == "reversed"


def test_a_joint_vocabulary_and_its_mix_are_those_of_the_config():
    config = resolved(spoken, vocabulary__layout="joint", vocabulary__mix={"en": 9, "fr": 0})
    assert dict(config.vocabulary.mix) == {"en": 9, "fr": 0}
    with pytest.raises(TypeError):
        config.vocabulary.mix["fr"] = 1


@pytest.mark.parametrize(
    "changes",
    [{"vocabulary__mix": {"en": 1}}, {"vocabulary__tokenizer__path": "both.model"}],
    ids=["mix", "path"],
)
def test_what_only_a_joint_tokenizer_has_is_refused_without_one(changes):
    with pytest.raises(ValueError, match=r"Set config\.vocabulary\.layout=joint"):
        resolved(spoken, **changes)
    resolved(spoken, vocabulary__layout="joint", **changes)


@pytest.mark.parametrize("name", ["EN2", "en-2", "en 2", "en.2", ""])
def test_a_tag_is_made_of_small_letters_digits_and_underscores(name):
    values = changed()
    values["languages"][name] = values["languages"].pop("en2")
    values["mixture"]["ratio"][name] = values["mixture"]["ratio"].pop("en2")
    with pytest.raises(ValueError, match="made of a-z, 0-9 and _ only"):
        config_lib.resolve_config(values)


# The ratio


def test_blocks_above_the_largest_are_refused_with_the_sum_and_the_sampler_that_has_none():
    huge = {"en1": 2**31 - 1, "en2": 1}
    with pytest.raises(ValueError, match=r"mixture\.ratio .*2,147,483,648.*2,147,483,647 at most"):
        resolved(mixture__ratio=huge)
    with pytest.raises(ValueError, match=r"mixture\.stages\[1\] .*mixture\.sampler=bernoulli"):
        resolved(mixture__stages=((0, {"en1": 1, "en2": 1}), (5, huge)))
    resolved(mixture__ratio=huge, mixture__sampler="bernoulli")
    resolved(mixture__ratio={"en1": 2**40, "en2": 2**40})  # one to one


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
    assert whole == resolved() and config_lib.build_run_identity(
        whole
    ) == config_lib.build_run_identity(resolved())
    assert config_lib.reduce_ratio(whole.mixture.ratio) == {"en1": 3, "en2": 1}


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
    for first in ("5", None, True, (5,)):
        with pytest.raises(ValueError, match=r"config\.mixture\.stages\[0\]\[0\]=.* must be a num"):
            resolved(mixture__stages=stages(first))
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


@pytest.mark.parametrize(
    "firsts, wrong",
    [((0.5,), 0), ((0, 0.5, 0.5), 2), ((0, 0.7, 0.5), 2), ((0, -0.1), 1), ((0, float("nan")), 1)],
)
def test_stages_by_fraction_begin_at_zero_and_one_after_the_other(firsts, wrong):
    with pytest.raises(ValueError, match=rf"config\.mixture\.stages\[{wrong}\] begins at step"):
        resolved(mixture__stages=stages(*firsts))


@pytest.mark.parametrize("first", [1.0, 500.0, float("inf")])
def test_a_fraction_of_all_steps_or_more_is_refused(first):
    message = (
        rf"config\.mixture\.stages\[1\] begins at {first} of all steps. Write a fraction below"
    )
    with pytest.raises(ValueError, match=message):
        resolved(mixture__stages=stages(0, first))


def test_steps_and_fractions_do_not_mix():
    for firsts in ((0, 5, 0.5), (0, 0.1, 700), (0.0, 0.1, 700)):
        with pytest.raises(ValueError, match=r"config\.mixture\.stages mixes steps with fractions"):
            resolved(mixture__stages=stages(*firsts))
    for firsts in ((0, 0.1, 0.2), (0.0, 0.1), (0, 5, 700), (0.0, 5)):
        assert len(resolved(mixture__stages=stages(*firsts)).mixture.stages) == len(firsts)


def test_stages_that_fall_on_one_step_are_refused():
    for firsts in ((0, 0.001), (0, 0.5, 0.501)):
        with pytest.raises(
            ValueError, match=r"two stages that begin at the same one of .*steps=20"
        ):
            resolved(mixture__stages=stages(*firsts), steps=20)


def test_a_fraction_is_rounded_down_to_a_step_and_is_what_it_looks_like():
    def first_of(fraction, steps):
        config = resolved(mixture__stages=stages(0, fraction), steps=steps)
        return config_lib.list_stages(config)[1][0]

    for tenths in range(1, 10):
        for steps in (10, 1000, 18265, 18270):
            assert first_of(tenths / 10, steps) == tenths * steps // 10
    assert first_of(0.5, 18265) == 9132 and first_of(0.999, 1000) == 999
    assert first_of(0.12345, 100_000) == 12345
    for parts in range(2, 30):
        for steps in (parts, 30 * parts, 30 * parts + 1):
            schedule = stages(*(part / parts for part in range(parts)))
            found = config_lib.list_stages(resolved(mixture__stages=schedule, steps=steps))
            assert [first for first, _ in found] == [part * steps // parts for part in range(parts)]


@pytest.mark.parametrize(
    "text, lengths, total",
    [
        ("0.1_0.9", (9132, 9133), 0.5),
        ("0.0_1.0", (9132, 9133), 0.5),
        ("0.1_0.9_0.5_0.5", (4566, 4566, 4566, 4567), 0.5),
        ("0.05_0.65_0.65_0.65", (4566, 4566, 4566, 4567), 0.5),
        ("0.25", (18265,), 0.25),
    ],
)
def test_equal_stages_are_those_of_the_reference(text, lengths, total):
    schedule = config_lib.equal_stages(text, "en1", "en2")
    config = resolved(mixture__stages=schedule, steps=18265)
    found = config_lib.list_stages(config)
    ends = [first for first, _ in found[1:]] + [18265]
    assert tuple(e - first for e, (first, _) in zip(ends, found, strict=True)) == lengths
    shares = [fractions.Fraction(part) for part in text.split("_")]
    for share, (_, ratio) in zip(shares, found, strict=True):
        assert fractions.Fraction(ratio["en2"], sum(ratio.values())) == share
    totals = config_lib.compute_sequence_totals(config)
    assert sum(totals.values()) == 18265 * config.batch_size
    share = float(totals["en2"] / sum(totals.values()))
    # The last stage takes the remainder, as in the reference.
    assert abs(share - total) < 3e-5


@pytest.mark.parametrize("text", ["0_0.5_1", "0.2_0.5_0.5_0.5_0.5_0.8", "1_0.5_0", "0_1_0_1_0_1"])
@pytest.mark.parametrize("steps", [1500, 2100, 18264])
def test_stages_that_are_balanced_are_not_refused_for_their_rounding(text, steps):
    changes = {
        "mixture__stages": config_lib.equal_stages(text, "en1", "en2"),
        "mixture__same_total_as": stages(0),
    }
    config = resolved(**changes, steps=steps)
    [firsts, _] = zip(*config_lib.list_stages(config), strict=True)
    assert firsts == tuple(range(0, steps, steps // len(firsts)))
    assert config_lib.compute_sequence_totals(config)["en1"] == steps * config.batch_size / 2


def test_a_total_is_that_of_all_stages_together():
    schedule = [[0, {"en1": 3, "en2": 1}], [40, {"en1": 0, "en2": 1}], [60, {"en1": 1, "en2": 2}]]
    config = resolved(mixture__stages=schedule, steps=100, batch_size=8)
    assert config_lib.compute_sequence_totals(config) == {
        "en1": 8 * (40 * fractions.Fraction(3, 4) + 40 * fractions.Fraction(1, 3)),
        "en2": 8 * (10 + 20 + 40 * fractions.Fraction(2, 3)),
    }
    assert config_lib.compute_sequence_totals(resolved(steps=100, batch_size=8)) == {
        "en1": 600,
        "en2": 200,
    }


def test_a_run_that_asks_for_another_one_s_total_is_refused_where_it_has_not():
    schedule = [[0, {"en1": 9, "en2": 1}], [0.5, {"en1": 1, "en2": 9}]]
    changes = {"mixture__stages": schedule, "steps": 1000, "batch_size": 32}
    resolved(**changes, mixture__same_total_as=stages(0))
    resolved(**changes, mixture__same_total_as=stages(0, 0.3, 0.7))
    resolved(
        **changes, mixture__same_total_as=[schedule[1], [500, schedule[0][1]]][:2] and schedule
    )
    with pytest.raises(
        ValueError, match=r"same_total_as gives en1 24,000 sequences .* gives it 16,0"
    ):
        resolved(**changes, mixture__same_total_as=stages(0, en1=3))
    # Of the ratio, where there are no stages.
    resolved(mixture__ratio={"en1": 2, "en2": 2}, mixture__same_total_as=schedule, steps=1000)
    with pytest.raises(ValueError, match=r"gives en1 16,000 sequences .* gives it 24,000. Change"):
        resolved(mixture__same_total_as=schedule, steps=1000)
    # Less than a step apart is as near as a schedule can be; a step is not.
    near = [[0, {"en1": 9, "en2": 1}], [501, {"en1": 1, "en2": 9}]]
    resolved(**{**changes, "mixture__stages": near}, mixture__same_total_as=stages(0))
    far = [[0, {"en1": 1, "en2": 0}], [501, {"en1": 0, "en2": 1}]]
    with pytest.raises(ValueError, match=r"same_total_as gives en1 16,000 .* gives it 16,032"):
        resolved(**{**changes, "mixture__stages": far}, mixture__same_total_as=stages(0))


def test_a_schedule_to_compare_with_is_checked_like_the_stages():
    with pytest.raises(ValueError, match=r"config\.mixture\.same_total_as\[1\] begins at step 0"):
        resolved(mixture__same_total_as=stages(0, 0))
    with pytest.raises(
        ValueError, match=r"config\.mixture\.same_total_as\[0\]\.fr is the ratio of"
    ):
        resolved(mixture__same_total_as=stages(0, fr=1))
    with pytest.raises(
        ValueError, match=r"config\.mixture\.same_total_as\[0\]\.en1=0\.5 must be a w"
    ):
        resolved(mixture__same_total_as=stages(0, en1=0.5))
    with pytest.raises(ValueError, match=r"same_total_as begins its last stage at step 20, .*=20"):
        resolved(mixture__same_total_as=stages(0, 20), steps=20)


def test_with_a_temperature_the_ratio_may_be_anything_or_nothing():
    for ratio in ({}, {"en1": 3, "en2": 1}, {"en1": 0, "en2": 0}):
        assert resolved(mixture__temperature=2.0, mixture__ratio=ratio).mixture.temperature == 2


def test_stages_can_be_set_in_a_config_file():
    config = two_clones()
    config.mixture.stages = ((0, {"en1": 1, "en2": 0}), (500, {"en1": 1, "en2": 3}))
    [(_, first), (step, second)] = config_lib.resolve_config(config).mixture.stages
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
        {"mixture__stages": stages(0, 0.1, 1 / 3), "mixture__same_total_as": stages(0)},
        {"vocabulary__layout": "joint", "vocabulary__mix": {"en": 3}},
        {"made": spoken, "parallel__en_fr__fields": ("english", "french")},
        {"made": toys, "sources__toy1__synthetic__overlap": 0.25},
    ],
)
def test_a_config_read_back_from_its_run_is_the_same(tmp_path, changes):
    config = resolved(**changes)
    run = runs.RunDirectory(tmp_path / "run")
    run.check(config)
    run.claim(config)
    assert run.config() == config
    assert config_lib.build_run_identity(run.config()) == config_lib.build_run_identity(config)
    plain = json.loads((tmp_path / "run" / "config.json").read_text())
    assert plain == config_lib.to_dict(config)
    assert config_lib.hash_plain_values(plain) == config_lib.hash_plain_values(
        config_lib.to_dict(run.config())
    )
    run.check(config)


def test_every_field_has_a_default_that_can_be_set_from_the_command_line():
    def check(kind, group):
        for field in dataclasses.fields(kind):
            assert field.name in group and group[field.name] is not None
            if isinstance(group[field.name], ml_collections.ConfigDict) and group[field.name]:
                check(type(field.default), group[field.name])

    check(config_lib.Config, config_lib.default())
    for kind in (config_lib.SourceConfig, config_lib.LanguageConfig, config_lib.ParallelConfig):
        check(kind, config_lib.declared(kind))


def test_differences_name_each_field_with_both_values():
    ours = config_lib.to_dict(resolved())
    theirs = config_lib.to_dict(resolved(steps=7, model__D=32, languages__en2__anchors=0.5))
    assert config_lib.find_differences(ours, theirs) == [
        ("config.steps", ours["steps"], 7),
        ("config.languages.en2.anchors", 0.0, 0.5),
        ("config.model.D", 64, 32),
    ]
    assert config_lib.find_differences(ours, ours) == []
    other = {"ratio": {"en1": 3}, "stages": [[0, {"en1": 3}]]}
    assert config_lib.find_differences({"ratio": {"en1": 3, "fr": 1}, "stages": []}, other) == [
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
        {"languages__en2__anchor_choice": "rare"},
        {"languages__en2__anchor_measure": "tokens"},
        {"languages__en2__words": "reversed"},
        {"languages__en2__words_block": 4},
        {"vocabulary__anchor_specials": "always"},
        {"vocabulary__layout": "merged"},
        {"vocabulary__separator": "own"},
        {"vocabulary__tokenizer__vocab_size": 2048},
        {"mixture__temperature": 2.0},
        {"mixture__stages": [[0, {"en1": 3, "en2": 1}], [9, {"en1": 1, "en2": 1}]]},
        {"mixture__sampler": "bernoulli"},
        {"mixture__order": "sequential"},
        {"mixture__switch": "document"},
        {"mixture__content": "disjoint"},
        {"mixture__reuse": "any"},
        {"mixture__on_exhaustion": "stop"},
        {"init_from": "runs/other"},
        {"sources__en__synthetic__depth": 4},
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
    field = re.escape("config." + name.replace("__", "."))
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
        {"mirrors": ("tensorboard",)},
        {"parallel": {}},
        {"parallel__en_fr__path": "other.jsonl"},
    ],
)
def test_what_does_not_change_the_training_may_change_in_a_run(tmp_path, changes):
    run = runs.RunDirectory(tmp_path / "run")
    run.claim(resolved(spoken))
    run.check(resolved(spoken, **changes))


FRACTIONS, STEPS = stages(0, 0.25, 0.5, en1=3), stages(0, 250, 500, en1=3)


def test_stages_by_fraction_and_by_their_steps_are_one_run(tmp_path):
    for ours, theirs in ((FRACTIONS, STEPS), (STEPS, FRACTIONS)):
        one, other = (resolved(mixture__stages=s, steps=1000) for s in (ours, theirs))
        assert config_lib.build_run_identity(one) == config_lib.build_run_identity(other)
        run = runs.RunDirectory(tmp_path / str(ours[1][0]))
        run.claim(one)
        run.check(other)
        with pytest.raises(ValueError, match=r"belongs to a run with config\.mixture\.stages="):
            run.check(resolved(mixture__stages=stages(0, 250, 501, en1=3), steps=1000))


def test_more_steps_may_not_move_a_stage_that_is_a_fraction(tmp_path):
    by_fraction = runs.RunDirectory(tmp_path / "fraction")
    by_fraction.claim(resolved(mixture__stages=FRACTIONS, steps=1000))
    with pytest.raises(
        ValueError, match=r"belongs to a run with config\.mixture\.stages=.*250.*500"
    ):
        by_fraction.check(resolved(mixture__stages=FRACTIONS, steps=2000), extend=True)
    # Written as steps, they stay where they are.
    by_fraction.check(resolved(mixture__stages=STEPS, steps=2000), extend=True)
    by_step = runs.RunDirectory(tmp_path / "step")
    by_step.claim(resolved(mixture__stages=STEPS, steps=1000))
    by_step.check(resolved(mixture__stages=STEPS, steps=2000), extend=True)


def test_a_run_that_goes_on_by_its_directory_keeps_the_steps_of_its_stages(tmp_path):
    run = runs.RunDirectory(tmp_path / "run")
    balanced = stages(0, 0.5, en1=3)
    run.claim(resolved(mixture__stages=FRACTIONS, mixture__same_total_as=FRACTIONS, steps=1000))
    longer = run_config.get_config(str(run.path))
    longer.steps = 2000
    found = config_lib.resolve_config(longer)
    run.check(found, extend=True)
    assert [first for first, _ in found.mixture.stages] == [0, 250, 500]
    assert found.mixture.same_total_as == found.mixture.stages
    # The whole config says fractions of the longer run. What it can do instead is said.
    again = resolved(mixture__stages=balanced, steps=2000)
    with pytest.raises(ValueError, match=r"or leave out --config\.$"):
        run.check(again, extend=True)


def test_a_refusal_advises_no_field_that_does_not_exist(tmp_path):
    by_document = {"mixture__stages": STEPS, "mixture__switch": "document"}
    run = runs.RunDirectory(tmp_path / "run")
    run.claim(resolved(**by_document, steps=1000))
    with pytest.raises(ValueError, match=r"or keep config\.steps=1000: the documents were given"):
        run.check(resolved(**by_document, steps=2000), extend=True)
    warm = runs.RunDirectory(tmp_path / "warm")
    warm.claim(resolved(mixture__temperature=2.0, mixture__ratio={}))
    temperature = {"mixture__ratio": {"en1": 2, "en2": 1}}
    with pytest.raises(ValueError, match=r"or set config\.mixture\.temperature=2\.0\.$"):
        warm.check(resolved(**temperature))


def test_a_ratio_that_a_temperature_filled_in_is_not_part_of_the_run(tmp_path):
    config = resolved(mixture__temperature=2.0, mixture__ratio={})
    filled = [
        dataclasses.replace(
            config, mixture=dataclasses.replace(config.mixture, ratio={"en1": n, "en2": 1})
        )
        for n in (3, 5)
    ]
    assert (
        len(
            {
                config_lib.hash_plain_values(config_lib.build_run_identity(one))
                for one in [config, *filled]
            }
        )
        == 1
    )
    run = runs.RunDirectory(tmp_path / "run")
    run.claim(filled[0])
    run.check(config)
    for changes in ({}, {"mixture__temperature": 3.0}):
        with pytest.raises(
            ValueError, match=r"belongs to a run with config\.mixture\.temperature=2"
        ):
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
    (tmp_path / "slurm-1.out").write_text("")
    runs.RunDirectory(tmp_path).check(resolved())  # nothing of a run's is in its way
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"metrics\.jsonl would be written over.* --workdir"):
        runs.RunDirectory(tmp_path).check(resolved())


# The command line


def parse_flags(*args):
    """Returns the flags that a command with --config reads from a command line."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    flags.DEFINE_bool("dry_run", False, "", flag_values=values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flags, "FLAGS", values)
        cli.define_config_flag()
        cli._parse_flags(["main", *args])
    return values


def refused(capsys, *args):
    """Returns the message that a command line is refused with."""
    with pytest.raises(SystemExit) as exit_:
        parse_flags(*args)
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
        ("--config.parallel.en_fr.path=x", "config.parallel is empty. Set all of it, as in"),
        ("--config.vocabulary.mix.en=5", "--config.vocabulary.mix=\"{'en': ...}\""),
        ("--noconfig.model.tid", "config.model has no field 'tid'. Did you mean config.model.tied"),
    ],
)
@pytest.mark.parametrize("form", ["one", "two"])
def test_an_override_of_a_field_that_does_not_exist_is_refused(capsys, arg, message, form):
    # Either of --config=FILE and --config FILE.
    config = [f"--config={REFERENCE}"] if form == "one" else ["--config", REFERENCE]
    assert message in refused(capsys, *config, arg)
    assert message in refused(capsys, *config, *arg.split("="))


def test_a_field_of_a_run_is_refused_in_a_study_saying_where_its_runs_have_it(capsys):
    study = f"--config={ROOT}/configs/studies/anchors.py"
    for field in ("data_dir=elsewhere", "model.N=3"):
        message = refused(capsys, study, f"--config.{field}")
        assert "is a field of a run, and this config is a study" in message
        assert f"config.runs.NAME.config.{field.partition('=')[0]} for one run" in message
    assert "config has no field 'stps'" in refused(capsys, study, "--config.stps=5")


def test_overrides_of_fields_that_exist_pass():
    values = parse_flags(f"--config={REFERENCE}:scale=mini", "--config.steps=5", "--dry_run")
    assert (values.config.steps, values.config.model.D, values.dry_run) == (5, 512, True)
    values = parse_flags("--config", REFERENCE, "--config.mixture.ratio.en2", "5", "--nodry_run")
    assert values.config.mixture.ratio.en2 == 5
    assert parse_flags("--workdir=somewhere").config is None


def test_a_config_file_is_loaded_once(tmp_path):
    file = tmp_path / "config.py"
    file.write_text(
        f"open({str(tmp_path / 'loads')!r}, 'a').write('1')\n" + pathlib.Path(REFERENCE).read_text()
    )
    parse_flags(f"--config={file}", "--config.steps=5")
    assert (tmp_path / "loads").read_text() == "1"


def run_shower(tmp_path, what, *args):
    """Returns what a program with --config shows of it."""
    program = f"""
        import json
        from imbalance_jax import cli, config
        def main():
            print(json.dumps({what}))
            return 0
        cli.define_config_flag()
        cli.run_command(main)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *args],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def leaves(group, name="config"):
    """Yields every field of a ConfigDict with its dotted name."""
    for field, value in group.items():
        if isinstance(value, ml_collections.ConfigDict) and value:
            yield from leaves(value, f"{name}.{field}")
        else:
            yield f"{name}.{field}", value


def another(name, value):
    """Returns a value of the same type, and how it is written on a command line."""
    if name.endswith((".stages", ".same_total_as")):
        return [[0, {"en": 1, "fr": 2}], [0.5, {"en": 3, "fr": 0}]], None
    if isinstance(value, ml_collections.ConfigDict):
        return {"en": 9, "fr": 1}, None
    if isinstance(value, tuple):
        return ["one", "two"], None
    if isinstance(value, bool):
        return not value, str(not value).lower()
    if isinstance(value, str):
        return "other", "other"
    return value + type(value)(2), str(value + type(value)(2))


def test_every_field_can_be_set_from_the_command_line(tmp_path):
    fields = dict(leaves(spoken()))
    assert {
        "config.vocabulary.mix",
        "config.vocabulary.tokenizer.path",
        "config.mixture.same_total_as",
        "config.languages.fr.anchor_choice",
        "config.sources.en.synthetic.shared_words",
        "config.parallel.en_fr.fields",
        "config.mixture.ratio.fr",
    } <= set(fields)
    wanted, args = {}, []
    for name, value in fields.items():
        wanted[name], written = another(name, value)
        if isinstance(wanted[name], list) and written is None:
            written = repr(tuple(tuple(v) if isinstance(v, list) else v for v in wanted[name]))
        args.append(f"--{name}={wanted[name] if written is None else written}")
    file = f"--config={ROOT}/configs/en_fr.py:scale=demo,files=DIR"
    shown = {"config": run_shower(tmp_path, "cli.require_config().to_dict()", file, *args)}
    assert {name: field_of(shown, name) for name in fields} == wanted


def test_a_command_line_of_new_fields_is_the_config_that_it_says(tmp_path):
    shown = run_shower(
        tmp_path,
        "config.to_dict(config.resolve_config(cli.require_config()))",
        f"--config={ROOT}/configs/en_fr.py:layout=joint,files=DIR",
        "--config.vocabulary.mix={'en': 9, 'fr': 1}",
        "--config.vocabulary.separator=own",
        "--config.mixture.stages=((0, {'en': 1, 'fr': 1}), (0.5, {'en': 19, 'fr': 1}))",
        "--config.mixture.order=sequential",
        "--config.parallel.en_fr.fields=('english', 'french')",
        "--config.languages.fr.words=permuted",
    )
    assert shown["vocabulary"]["mix"] == {"en": 9, "fr": 1}
    assert shown["vocabulary"]["separator"] == "own"
    assert shown["mixture"]["stages"] == [[0, {"en": 1, "fr": 1}], [0.5, {"en": 19, "fr": 1}]]
    assert shown["mixture"]["order"] == "sequential"
    assert shown["parallel"]["en_fr"]["fields"] == ["english", "french"]
    assert shown["languages"]["fr"]["words"] == "permuted"


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
        (("--config.mixture.stages=((0,{'en1':1,'en2':1}),(5,{'en1':1}))",), "stages[1] says noth"),
        (("--config.languages.en2.anchor_choice=few",), "config.languages.en2.anchor_choice='few'"),
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


def test_whether_ids_are_shared_is_part_of_a_run_only_where_documents_are_parted():
    def identity(ids, content):
        config = cli.load_config_file(f"{ROOT}/configs/dials.py:dial=tokenizer")
        config.sources.en1.ids, config.mixture.content = ids, content
        return config_lib.build_run_identity(config_lib.resolve_config(config))

    assert identity("own", "shared") == identity("shared", "shared")
    assert identity("own", "disjoint") != identity("shared", "disjoint")


def test_more_steps_that_would_part_documents_anew_are_refused(tmp_path):
    stages = ((0, {"en1": 1, "en2": 0}), (10, {"en1": 1, "en2": 1}))
    for changes in ({"mixture__switch": "document"}, {"mixture__content": "disjoint"}):
        run = runs.RunDirectory(tmp_path / next(iter(changes)))
        run.claim(resolved(steps=20, mixture__stages=stages, **changes))
        with pytest.raises(ValueError, match=r"config\.mixture\.sequences"):
            run.check(resolved(steps=40, mixture__stages=stages, **changes), extend=True)
        # One ratio throughout parts them the same whatever the steps.
        even = runs.RunDirectory(tmp_path / f"{next(iter(changes))}-even")
        even.claim(resolved(steps=20, **changes))
        even.check(resolved(steps=40, **changes), extend=True)


def test_a_flag_of_another_kind_is_refused_by_what_it_takes(capsys):
    values = flags.FlagValues()
    flags.DEFINE_integer("epochs", 1, "", flag_values=values)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit, match="2"):
        patch.setattr(cli.flags, "FLAGS", values)
        cli._parse_flags(["command", "--epochs=x"])
    assert capsys.readouterr().err == "error: --epochs=x: it must be an integer.\n"


@pytest.mark.parametrize("sent", ["SIGTERM", "SIGINT"])
def test_a_command_that_is_told_to_stop_asks_to_be_started_again(sent):
    # Asleep for short times: another thread may be given the signal, which does not end a long one.
    # What a shell starts in the background begins with SIGINT ignored.
    program = f"""
        import os, signal, time
        from imbalance_jax import cli
        signal.signal(signal.SIGINT, signal.default_int_handler)
        def main():
            os.kill(os.getpid(), signal.{sent})
            for _ in range(1000):
                time.sleep(0.01)
        cli.run_command(main)
    """
    code = textwrap.dedent(program)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (cli.PREEMPTED, "")
    assert done.stderr == "Interrupted. Start again to go on.\n"


def test_runs_keep_the_identity_that_earlier_versions_wrote_into_study_json():
    # The hashes of revision 8043688. A new field that changes them turns every older study away.
    staged = config_lib.cloned(scale="small", ratio="90:10:5")
    staged.mixture.stages = (
        (0, {"en1": 1, "en2": 0, "en3": 1}),
        (0.5, {"en1": 1, "en2": 2, "en3": 0}),
    )
    for values, written in (
        (config_lib.cloned(scale="demo", ratio="90:10"), "eb3223aa6aca5424"),
        (staged, "2722714b6338b746"),
        # Documents were parted by their ids then as they are now where ids are shared.
        (cli.load_config_file(f"{ROOT}/configs/en_fr.py:content=disjoint"), "c42e2bfdf99ca36f"),
        (cli.load_config_file(f"{ROOT}/configs/dials.py:dial=tokenizer"), "40b8407cf581cd87"),
    ):
        assert (
            config_lib.hash_plain_values(
                config_lib.build_run_identity(config_lib.resolve_config(values))
            )
            == written
        )


@pytest.mark.parametrize("stages_", [(), FRACTIONS, STEPS], ids=["none", "fractions", "steps"])
def test_overrides_without_a_config_change_that_of_the_run_in_the_workdir(
    tmp_path, monkeypatch, stages_
):
    started = resolved(mixture__stages=stages_, steps=1000)
    runs.RunDirectory(tmp_path / "run").claim(started)
    argv = ["main", f"--workdir={tmp_path / 'run'}", "--config.steps=2000", "--noconfig.model.tied"]
    monkeypatch.setattr("sys.argv", argv)
    values = parse_flags(*argv[1:])
    # More steps leave the stages where they were.
    expected = resolved(mixture__stages=STEPS if stages_ else (), steps=2000)
    assert config_lib.resolve_config(values.config) == expected
    assert sys.argv == argv  # what "To go on" repeats


@pytest.mark.parametrize("workdir", [[], ["--workdir=no/run"]])
def test_overrides_of_no_config_at_all_are_refused(capsys, monkeypatch, workdir):
    monkeypatch.setattr(cli, "_list_config_flags", lambda: ["config"])
    with pytest.raises(SystemExit):
        cli._insert_run_config(["main", *workdir, "--config.steps=5"])
    assert (
        "--config.steps changes a field of a config, and there is none" in capsys.readouterr().err
    )
    assert cli._insert_run_config(["main", *workdir]) == ["main", *workdir]
    whole = ["main", *workdir, f"--config={REFERENCE}", "--config.steps=5"]
    assert cli._insert_run_config(whole) == whole


def test_help_shows_every_flag_of_the_command():
    code = (
        "from absl import flags; from imbalance_jax import cli\n"
        "cli.define_config_flag(); cli.define_compute_flags()\n"
        "print(flags.FLAGS.main_module_help())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    for flag in ("--config", "--accumulate", "--remat"):
        assert f"\n  {flag}: " in done.stdout, done.stderr
