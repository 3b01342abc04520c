"""Behaviours of config/recipes.py and of the files in configs/."""

import dataclasses
import re
import runpy

import pytest
from helpers import ROOT
from made_configs import (
    REFERENCE,
    field_of,
    two_clones,
)

from imbalance_jax import cli
from imbalance_jax import config as config_lib

# Of runs that begin by themselves and have a scale: lm_transfer.py needs one to go on from, text.py
# a folder, and grammar.py has choices of its own.
_OTHERS = ("lm_transfer.py", "text.py", "grammar.py")
FILES = sorted(p for p in (ROOT / "configs").glob("*.py") if p.name not in _OTHERS)


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
        "rule=cosine,count=50": {},
        "rule=linear,count=2": {
            "mixture.stages": [[0, {"en1": 70, "en2": 30}], [0.5, {"en1": 30, "en2": 70}]]
        },
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


GRAMMAR_CHOICES = {
    "ratio=8:1:1": {"mixture.ratio": {"toy1": 8, "toy2": 1, "toy3": 1}},
    "ratio=1,batch=4": {"mixture.ratio": {"toy1": 1}, "batch_size": 4},
    "world=7": {"sources.toy.synthetic.world": 7},
    "lemmas=512": {"sources.toy.synthetic.lemmas": 512},
    "topics=8": {"sources.toy.synthetic.topics": 8},
    "rules=1": {"sources.toy.synthetic.rules": 1},
    "depth=3": {"sources.toy.synthetic.depth": 3},
    "zipf=1": {"sources.toy.synthetic.zipf": 1.0},
    "L=64": {"model.L": 64, "evaluation.stride": 64},
    "D=16": {"model.D": 16, "model.H": 1, "model.K": 16, "model.F": 64},
    "D=128": {"model.D": 128, "model.H": 4, "model.K": 32, "model.F": 512},
    "N=4": {"model.N": 4},
    "steps=600": {"steps": 600, "evaluation.every": 20},
    "lr=0.002": {"optimizer.peak_lr": 0.002, "optimizer.final_lr": 2e-5},
}


def test_the_toy_language_has_the_choices_that_its_file_documents():
    file = ROOT / "configs" / "grammar.py"
    says = file.read_text().split('"""')[1]
    assert all(name in says for name in config_lib.GRAMMAR)
    assert {c.split("=")[0] for text in GRAMMAR_CHOICES for c in text.split(",")} == set(
        config_lib.GRAMMAR
    )
    for command in re.findall(r"--config=(configs/\S+)", says):
        config_lib.resolve_config(cli.load_config_file(f"{ROOT}/{command}"))
    for choice, fields in GRAMMAR_CHOICES.items():
        plain = config_lib.to_dict(
            config_lib.resolve_config(cli.load_config_file(f"{file}:{choice}"))
        )
        assert {name: field_of(plain, name) for name in fields} == fields


def test_text_of_a_folder_is_found_by_the_names_of_its_languages(tmp_path, capsys):
    (tmp_path / "sw").mkdir()
    for name in ("en.train.jsonl", "en.test.jsonl.gz", "fr.txt.zst", "sw/1.txt"):
        (tmp_path / name).touch()
    load = lambda arg: config_lib.resolve_config(
        cli.load_config_file(f"{ROOT}/configs/text.py:files={tmp_path},{arg}")
    )
    config = load("languages=en_fr_sw,ratio=8:1:1,scale=pico")
    found = {name: (s.train, s.validation, s.test) for name, s in config.sources.items()}
    assert found == {
        "en": (f"{tmp_path}/en.train.*", "", f"{tmp_path}/en.test.*"),
        "fr": (f"{tmp_path}/fr.*", "", ""),
        "sw": (f"{tmp_path}/sw/*", "", ""),
    }
    assert config.mixture.ratio == {"en": 8, "fr": 1, "sw": 1}
    assert (config.model.D, config.vocabulary.layout, config.parallel) == (128, "merged", {})

    (tmp_path / "parallel.jsonl.gz").touch()
    both = load("ratio=9:1").parallel["en_fr"]
    assert (both.sources, both.path) == (("en", "fr"), f"{tmp_path}/parallel.jsonl.gz")
    assert load("languages=sw,ratio=1").parallel == {}
    with pytest.raises(SystemExit):
        load("languages=en_de")
    assert "holds no de.* and no folder de. Name the text" in capsys.readouterr().err


WRONG_CHOICES = {
    "text.py:languages=en_sw": "files= is missing",
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
    "schedule.py:rule=square": "rule=square is not one of linear, cosine",
    "schedule.py:rule=linear,count=few": "count=few: write a whole number of stages",
    "ten_languages.py:main=50.5": "main=50.5: write a percentage in whole numbers, such as 50",
    "ten_languages.py:main=101": "main=101: write a percentage",
    "ten_languages.py:main=-1": "main=-1: write a percentage",
    "grammar.py:lemmas=many": "lemmas=many: write a whole number, such as 256",
    "grammar.py:lr=fast": "lr=fast: write a number, such as 0.003",
    "grammar.py:lemmas=100": "topics=16 does not divide lemmas=100",
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
