"""Behaviours of config/checks.py and of the checks in config/schema.py."""

import re

import pytest
from made_configs import changed, resolved, spoken, toys

from imbalance_jax import config as config_lib

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
    "two free axes": ({"mesh__fsdp": -1}, r"config\.mesh\.data and config\.mesh\.fsdp are -1"),
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
    "a weight of nobody": (
        {"mixture__loss_weights": {"en3": 2.0}},
        r"config\.mixture\.loss_weights\.en3 is the weight of an undeclared language",
    ),
    "a weight below": (
        {"mixture__loss_weights": {"en2": -1.0}},
        r"config\.mixture\.loss_weights\.en2=-1\.0 must be 0 or more",
    ),
    "no weight": (
        {"mixture__loss_weights": {"en1": 0.0, "en2": 0.0}},
        r"config\.mixture\.loss_weights is zero for every language .* Give one of them 1",
    ),
    "no weight for what is trained": (
        {"mixture__loss_weights": {"en1": 0.0}, "mixture__ratio": {"en1": 1, "en2": 0}},
        r"config\.mixture\.loss_weights is zero for every language that is trained on",
    ),
    "no weight and means of each language": (
        {"mixture__loss_weights": {"en1": 0.0}, "optimizer__moments": "per_language"},
        r"config\.mixture\.loss_weights\.en1=0 .*=per_language .* Set a ratio of 0 for en1, or",
    ),
    "a factor of a head that is tied": (
        {"optimizer__rate_factors__head": 2.0, "model__tied": True},
        r"config\.optimizer\.rate_factors\.head=2\.0 is for .*tied=True .*Set .*\.embedding, or",
    ),
    "means of languages without Adam": (
        {"optimizer__moments": "per_language", "optimizer__name": "sgd"},
        r"config\.optimizer\.moments=per_language are Adam's, .* is sgd\. Set name=adam, or",
    ),
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
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_field_is_refused_by_name_with_what_to_write(case):
    changes, message = WRONG[case]
    with pytest.raises(ValueError, match=message) as refused:
        resolved(**changes)
    assert len(str(refused.value).splitlines()) == 1 and "<group>" not in str(refused.value)


WRONG_PARALLEL = {
    "one source": (
        {"sources": ("en",)},
        r"sources=\('en',\) must name two sources or more, such as",
    ),
    "no source": (
        {"sources": ()},
        r"sources=\(\) must name two sources or more, such as \('en', 'fr'\)",
    ),
    "one source twice": (
        {"sources": ("en", "en")},
        r"sources=\('en', 'en'\) must name two sources",
    ),
    "two sources thrice": ({"sources": ("en", "fr", "fr")}, r"sources=.* must name two sources"),
    "a source that is not there": (
        {"sources": ("en", "de")},
        r"sources has 'de', which is not declared. config\.sources has: en, fr",
    ),
    "three fields": (
        {"fields": ("a", "b", "c")},
        r"fields=\('a', 'b', 'c'\) must be one for each of 2 sources, one for all",
    ),
    "no file": ({"path": ""}, r"path is empty. Name a \.jsonl file with a pair of texts on each"),
}


@pytest.mark.parametrize("case", WRONG_PARALLEL)
def test_parallel_texts_that_cannot_be_are_refused_by_their_field(case):
    fields, message = WRONG_PARALLEL[case]
    changes = {f"parallel__en_fr__{name}": value for name, value in fields.items()}
    with pytest.raises(ValueError, match=rf"config\.parallel\.en_fr\.{message}"):
        resolved(spoken, **changes)


@pytest.mark.parametrize("name", ["en-fr", "en fr", ""])
def test_a_set_of_parallel_texts_has_a_name_like_a_tag(name):
    values = changed(spoken)
    values["parallel"][name] = values["parallel"].pop("en_fr")
    with pytest.raises(ValueError, match="a name is made of A-Z, a-z, 0-9 and _ only"):
        config_lib.resolve_config(values)


@pytest.mark.parametrize("dial", [{"world": 1}, {"lemmas": 2048}, {"zipf": 2.0}, {"depth": 2}])
def test_toy_languages_are_parallel_only_where_they_say_the_same(dial):
    [(name, value)] = dial.items()
    wanted = rf"config\.parallel\.toy0_toy1: .* Change config\.sources\.toy1\.synthetic\.{name}, or"
    with pytest.raises(ValueError, match=wanted):
        resolved(toys, **{f"sources__toy1__synthetic__{name}": value})
    # What makes the language, not what it says.
    for name, value in {"language": 7, "order": "head_last", "overlap": 0.5, "tokens": 9}.items():
        resolved(toys, **{f"sources__toy1__synthetic__{name}": value})


def test_toy_languages_are_parallel_to_no_text_and_by_no_file():
    with pytest.raises(
        ValueError,
        match=r"config\.parallel\.toy0_toy1: .*Change config\.parallel\.toy0_toy1\.path, or",
    ):
        resolved(toys, parallel__toy0_toy1__path="pairs.jsonl")
    with pytest.raises(
        ValueError, match=r"config\.parallel\.toy0_toy1: .*Change config\.sources\.toy1\.kind,"
    ):
        resolved(toys, sources__toy1=config_lib.to_dict(config_lib.SourceConfig()))


@pytest.mark.parametrize("name", ["en.1", "e n", "en-1", ""])
def test_a_source_has_a_name_like_a_tag(name):
    values = changed()
    values["sources"][name] = config_lib.to_dict(config_lib.SourceConfig())
    with pytest.raises(ValueError, match="a name is made of A-Z, a-z, 0-9 and _ only"):
        config_lib.resolve_config(values)


@pytest.mark.parametrize("tokens", [0, 1000])
@pytest.mark.parametrize("words", ["reversed", "permuted", "shuffled"])
def test_toy_text_with_and_without_an_end_can_have_its_words_in_another_order(tokens, words):
    changes = {"sources__en__kind": "synthetic", "sources__en__synthetic__tokens": tokens}
    config = resolved(**changes, languages__en2__words=words)
    assert config.languages["en2"].words == words


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


@pytest.mark.parametrize("name", ["zh-Hans", "en-2", "en 2", "en.2", ""])
def test_a_tag_is_made_of_letters_digits_and_underscores(name):
    values = changed()
    values["languages"][name] = values["languages"].pop("en2")
    values["mixture"]["ratio"][name] = values["mixture"]["ratio"].pop("en2")
    with pytest.raises(ValueError, match="made of A-Z, a-z, 0-9 and _ only") as caught:
        config_lib.resolve_config(values)
    spelling = re.sub("[^A-Za-z0-9]", "_", name)
    assert str(caught.value).endswith(f"Write {spelling}." if name else "parts of flags are.")
    if name:
        values["languages"][spelling] = values["languages"].pop(name)
        values["mixture"]["ratio"][spelling] = values["mixture"]["ratio"].pop(name)
        assert spelling in config_lib.resolve_config(values).tags
