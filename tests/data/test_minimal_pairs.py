"""Minimal pairs are read as they are published, and made from a text by rules that hold."""

import collections
import gzip
import json
import re

import pyarrow
import pyarrow.parquet
import pytest
from helpers import tiny_config

from imbalance_jax import config as config_lib
from imbalance_jax.config import SourceConfig
from imbalance_jax.data import minimal_pairs, own_pairs
from imbalance_jax.data.own_pairs import MinimalPair
from imbalance_jax.data.text.synthetic import SyntheticSource

PAIRS = [("dof bada mola", "dof mola bada", "order"), ('a "dof" mol', "a mol dof", "SV-#")]
WORLD = {"lemmas": 40, "topics": 4, "depth": 3, "order": "head_middle"}


def two_sources(data_dir) -> config_lib.Config:
    sources = {name: config_lib.declared(SourceConfig, kind="synthetic") for name in ("toy", "xa")}
    config = config_lib.spoken(sources, scale="demo", ratio="1:1")
    config.data_dir = str(data_dir)
    return config_lib.resolve_config(config)


@pytest.mark.parametrize("layout", ["ours", "blimp", "blimp.gz", "multiblimp", "parquet"])
def test_pairs_are_read_in_each_published_layout(tmp_path, layout):
    ours = [{"good": good, "bad": bad, "phenomenon": name} for good, bad, name in PAIRS]
    blimp = [
        {"sentence_good": good, "sentence_bad": bad, "field": "syntax", "linguistics_term": name}
        | {"UID": f"{name}_{n}", "pairID": str(n)}
        for n, (good, bad, name) in enumerate(PAIRS)
    ]
    path = tmp_path / {"multiblimp": "data.tsv", "parquet": "a.parquet"}.get(layout, layout)
    paradigms = ["", ""]
    if layout == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(blimp), path)
        paradigms = ["order_0", "SV-#_1"]
    elif layout == "multiblimp":  # quoted as pandas writes it
        quoted = ['"' + text.replace('"', '""') + '"' if '"' in text else text for text in PAIRS[1]]
        rows = [("sen", "wrong_sen", "phenomenon", "verb"), (*PAIRS[0], "1"), (*quoted, "2")]
        path.write_text("".join("\t".join(row) + "\n" for row in rows))
    else:
        rows = ours if layout == "ours" else blimp
        text = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(text) if layout.endswith(".gz") else text)
        paradigms = ["", ""] if layout == "ours" else ["order_0", "SV-#_1"]
    assert list(minimal_pairs.read_pair_file(str(path))) == [
        MinimalPair(name, good, bad, paradigm)
        for (good, bad, name), paradigm in zip(PAIRS, paradigms, strict=True)
    ]


def test_a_phenomenon_that_is_not_named_is_the_file(tmp_path):
    path = tmp_path / "agreement.jsonl"
    path.write_text('{"good": "a", "bad": "b"}\n')
    assert next(minimal_pairs.read_pair_file(str(path))).phenomenon == "agreement"


@pytest.mark.parametrize("line", ['{"text": "a"}', '{"good": "a", "bad": ""}', '{"good": "a"'])
def test_a_line_that_is_no_pair_is_named_with_what_one_looks_like(tmp_path, line):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"good": "a", "bad": "b"}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"pairs.jsonl, line 2: .*such as \{\"|line 2: is not"):
        list(minimal_pairs.read_pair_file(str(path)))


def test_a_file_is_for_the_languages_of_one_source_and_a_folder_has_one_for_each(tmp_path):
    def find(value, languages=()):
        return minimal_pairs.find_pair_files(config, str(value), "--minimal_pairs", languages)

    config, file = two_sources(tmp_path), tmp_path / "pairs" / "toy.jsonl"
    file.parent.mkdir()
    file.write_text('{"good": "a", "bad": "b"}\n')
    assert find("own") == {"toy": None, "xa": None}
    assert find(file.parent) == {"toy": [str(file)]}
    assert find(file, ["xa"]) == {"xa": [str(file)]}
    for value, languages, why in (
        (file, (), r"several texts \(toy, xa\).*--languages=TAG"),
        (file.parent, ["xa"], r"without a file named after xa, such as xa.jsonl"),
        (tmp_path / "absent.jsonl", ["xa"], r"there is no file .*absent.jsonl. Name files"),
    ):
        with pytest.raises(ValueError, match=rf"--minimal_pairs=.*{why}"):
            find(value, languages)


def test_languages_in_another_order_of_words_have_no_pairs(data_dir, english):
    config = tiny_config(data_dir, languages__en2__words="reversed")
    found = minimal_pairs.read_run_pairs(config, {"en": english}, "own", "field")
    assert list(found) == ["en1"]
    with pytest.raises(ValueError, match="text as it is written"):
        minimal_pairs.read_run_pairs(config, {"en": english}, "own", "field", ["en2"])


def test_pairs_of_english_follow_their_rules_and_no_seed(data_dir, english):
    config = tiny_config(data_dir)
    pairs = own_pairs.make_own_pairs("en", config.sources["en"], english)
    assert pairs == own_pairs.make_own_pairs("en", config.sources["en"], english)
    text = english.tokenizer.decode(english.tokens("test"))
    articles = collections.Counter()
    assert len({(pair.good, pair.bad) for pair in pairs}) == len(pairs)
    for pair in pairs:
        good, bad = pair.good.split(" "), pair.bad.split(" ")
        assert pair.good in text and len(good) == len(bad)
        changed = [n for n, words in enumerate(zip(good, bad, strict=True)) if len(set(words)) > 1]
        first, last = changed[0], changed[-1]
        if pair.phenomenon == "word_order":
            assert last == first + 1 and first > 0 and last < len(good) - 1
            assert good[first : last + 1] == bad[first : last + 1][::-1]
        else:
            assert first == last and {good[first], bad[first]} == {"a", "an"}
            assert (good[first] == "an") == bool(re.match("[aeio]", good[first + 1]))
            articles[good[first]] += 1
    assert articles["a"] == articles["an"] > 0


def test_pairs_of_a_toy_language_keep_or_break_the_rule_of_its_grammar():
    config = config_lib.resolve_config(
        config_lib.spoken(
            {"toy": config_lib.declared(SourceConfig, kind="synthetic", synthetic=WORLD)},
            scale="demo",
            ratio="1",
        )
    ).sources["toy"]
    source = SyntheticSource("toy", config.synthetic)
    language, T = source.language, 4
    lemma_of = {word: lemma for lemma, word in enumerate(language.words())}

    def follows_rule(sentence: str) -> bool:
        said = [lemma_of[word] for word in sentence.removesuffix(".").split()]
        nodes = {node: lemma for node, lemma in zip(language.node_J, said, strict=True)}
        return all(
            nodes[node] % T
            == language.world.selects_SRT[
                1 - node % 2, nodes[(node - 1) // 2] // T, nodes[(node - 1) // 2] % T
            ]
            for node in range(1, 7)
        )

    pairs = own_pairs.make_own_pairs("toy", config, source)
    assert collections.Counter(pair.phenomenon for pair in pairs) == {
        "selection": 300,
        "word_order": 300,
    }
    for pair in pairs:
        assert follows_rule(pair.good) and not follows_rule(pair.bad)
        sides = [sorted(lemma_of[w] for w in s[:-1].split()) for s in (pair.good, pair.bad)]
        if pair.phenomenon == "selection":  # as frequent as the word that it replaces
            assert sorted(n // T for n in sides[0]) == sorted(n // T for n in sides[1])
            assert (
                sum((collections.Counter(sides[0]) - collections.Counter(sides[1])).values()) == 1
            )
        else:
            assert sides[0] == sides[1]
