"""Behaviours of data/fast_tokenizer.py and data/byte_tokenizer.py, held against the package."""

import functools
import json
import sys

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from imbalance_jax import config as config_lib
from imbalance_jax.config import SourceConfig, TokenizerConfig
from imbalance_jax.data import languages, prepare, sources
from imbalance_jax.data.byte_tokenizer import ByteTokenizer
from imbalance_jax.data.fast_tokenizer import FastTokenizer, MissingLibraryError
from imbalance_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer
from imbalance_jax.data.tokenizer import open_tokenizer, parse_tokenizer
from imbalance_jax.runs.damaged_files import DamagedFileError

LINES = [f"It was number {n} of the quick brown foxes that sat on the mat." for n in range(99)]
PARTS = [" ", "▁", "Ġ", "\n", "the", " mat", "<|endoftext|>", "</s>", "<D>", "<0x41>", "\ufeff"]
TEXTS = st.lists(st.characters(exclude_categories=["Cs"]) | st.sampled_from(PARTS)).map("".join)


def byte_level(size=300, **options):
    """A tokenizer as GPT-2's, with names of its specials as others have them."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, **options)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = ["<|endoftext|>", "<pad>"]
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(LINES, trainer)
    return json.loads(made.to_str())


def byte_fallback():
    """A tokenizer as Llama's: a space is U+2581, one comes first, and rare letters are bytes."""
    made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<unk>", "<s>", "</s>", *bytes_],
        show_progress=False,
        max_token_length=8,
    )
    made.train_from_iterator(LINES, trainer)
    described = json.loads(made.to_str())
    described["added_tokens"] = described["added_tokens"][:3]
    described["model"]["byte_fallback"] = True
    return described


def unigram():
    """A tokenizer as T5's, whose model has its specials among its own tokens."""
    made = tokenizers.Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    specials = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=90, special_tokens=specials, unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator(LINES, trainer)
    return json.loads(made.to_str())


def of_words(model="WordPiece"):
    """A tokenizer as BERT's, or of whole words."""
    made = tokenizers.Tokenizer(getattr(models, model)(unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.WhitespaceSplit()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = getattr(trainers, f"{model}Trainer")(
        vocab_size=110, special_tokens=specials, show_progress=False
    )
    made.train_from_iterator(LINES, trainer)
    described = json.loads(made.to_str())
    if model == "WordPiece":
        described["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": False}
    return described


def ignoring_merges():
    """A tokenizer that takes a whole text for a token, if it has it."""
    described = byte_level(use_regex=False)
    described["model"]["ignore_merges"] = True
    return described


MADE = {
    "byte-level": byte_level,
    "byte fallback": byte_fallback,
    "unigram": unigram,
    "WordPiece": of_words,
    "WordLevel": functools.partial(of_words, "WordLevel"),
    "ignores merges": ignoring_merges,
}


def content_of(described):
    return json.dumps(described).encode()


@functools.cache
def opened(kind):
    return ByteTokenizer() if kind == "bytes" else FastTokenizer(content_of(MADE[kind]()))


def library(kind, content=None):
    """Returns the package's own tokenizer of a kind, which takes specials in a text for text."""
    made = tokenizers.Tokenizer.from_str((content or opened(kind).content).decode())
    made.encode_special_tokens = True
    return made


# Text and back


@pytest.mark.parametrize("kind", ["bytes", "byte-level", "byte fallback", "ignores merges"])
@settings(max_examples=60, deadline=None)
@given(text=TEXTS)
def test_any_text_comes_back_from_its_ids_with_its_bytes(kind, text):
    tokenizer = opened(kind)
    if kind == "byte fallback":
        text = text.replace("▁", "")  # which it takes for a space
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text and tokenizer.lost_bytes(text, ids) == 0
    assert tokenizer.separator not in ids
    # The package puts a space in front of a text, which the decoder takes away.
    space = kind == "byte fallback" and text != ""
    assert tokenizer.pieces().bytes_U[ids].sum() == len(text.encode()) + space


@pytest.mark.parametrize("kind", ["bytes", *MADE])
def test_ids_and_text_are_those_of_the_package(kind):
    tokenizer, theirs = opened(kind), library(kind)
    texts = ["", "the mat", *LINES, "Größe: 5 €  \n\n\t日本", "x" * 5000]
    wanted = [theirs.encode(text, add_special_tokens=False).ids for text in texts]
    assert tokenizer.encode_all(texts) == wanted
    assert [tokenizer.encode(text) for text in texts] == wanted
    for ids in wanted:
        if tokenizer.unknown not in ids:
            assert tokenizer.decode(ids) == theirs.decode(ids, skip_special_tokens=False)
    assert tokenizer.size == theirs.get_vocab_size() == len(tokenizer.strings)


def test_bytes_are_kept_as_a_tokenizer_json():
    tokenizer = ByteTokenizer()
    assert isinstance(parse_tokenizer(tokenizer.content), ByteTokenizer)
    as_file = FastTokenizer(tokenizer.content)
    text = "".join(map(chr, range(0x800))) + "<D>日本\U0001f600"
    assert tokenizer.encode(text) == as_file.encode(text)
    assert tokenizer.encode(text) == [3 + byte for byte in text.encode()]
    assert tokenizer.written[3:] == as_file.written[3:]
    assert (tokenizer.size, tokenizer.separator) == (as_file.size, as_file.separator) == (259, 2)


# What no text can say


@pytest.mark.parametrize("kind", ["bytes", *MADE])
def test_a_text_cannot_spell_a_separator(kind):
    tokenizer = opened(kind)
    name = tokenizer.strings[tokenizer.separator]
    assert name in ("<D>", "<|endoftext|>", "</s>", "[SEP]")
    for text in (name, f"the {name} fox", f"the fox{name}{name}", f"\n{name}\n"):
        assert tokenizer.separator not in tokenizer.encode(text)
    both = [*tokenizer.encode("the quick"), tokenizer.separator, *tokenizer.encode("the")]
    assert tokenizer.decode(both) == f"the quick{name}the"


def test_nor_one_that_its_tokenizer_was_told_to_find_in_texts():
    described = byte_level()
    for token in described["added_tokens"]:
        token["special"] = False
    assert 0 in library("", content_of(described)).encode("a<|endoftext|>b").ids
    tokenizer = FastTokenizer(content_of(described))
    assert tokenizer.separator == 0 not in tokenizer.encode("a<|endoftext|>b")
    assert tokenizer.decode(tokenizer.encode("a<|endoftext|><pad>b")) == "a<|endoftext|><pad>b"


def test_no_text_is_cut_padded_framed_or_encoded_at_random():
    described = byte_level()
    theirs = tokenizers.Tokenizer.from_str(json.dumps(described))
    theirs.enable_truncation(4)
    theirs.enable_padding(length=9)
    theirs.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    changed = json.loads(theirs.to_str())
    changed["model"]["dropout"] = 0.9
    tokenizer = FastTokenizer(content_of(changed))
    assert tokenizer.encode(LINES[0]) == opened("byte-level").encode(LINES[0])


# What is lost


@pytest.mark.parametrize(
    ("kind", "text", "lost"),
    [
        ("unigram", "the mat", 0),
        ("unigram", "the ﬁne mat", 3),  # one character, which becomes two others
        ("unigram", "the βeta", 2),  # unknown
        ("byte fallback", "the▁mat", 3),
        ("WordPiece", "the mat", 0),
        ("WordPiece", "The mat\n", 2),
        ("WordPiece", "the 日本 mat", 7),  # with the space before it
    ],
)
def test_what_does_not_come_back_is_counted_in_the_texts_own_bytes(kind, text, lost):
    tokenizer = opened(kind)
    assert tokenizer.lost_bytes(text, tokenizer.encode(text)) == lost


@pytest.mark.parametrize("kind", ["bytes", *MADE])
def test_the_ids_of_a_document_stand_for_exactly_its_bytes(kind):
    tokenizer = opened(kind)
    texts = ["The quick 日本 mat", "", "  two  spaces", LINES[0], "é"]
    ids = [[*tokenizer.encode(text), tokenizer.separator] for text in texts]
    starts_d = np.cumsum([0, *map(len, ids)])[:-1]
    bytes_d = np.array([len(text.encode()) for text in texts])
    ids_n = np.concatenate(ids)
    bytes_n = sources.compute_bytes_per_id(ids_n, tokenizer.pieces(), starts_d, bytes_d)
    assert np.add.reduceat(bytes_n, starts_d).tolist() == bytes_d.tolist()
    assert bytes_n.min() >= 0
    # A separator stands for none, but where nothing else is left of a text.
    ends = ids_n == tokenizer.separator
    alone = [len(each) == 1 for each in ids]
    assert bytes_n[ends].tolist() == [n * one for n, one in zip(bytes_d, alone, strict=True)]


# Merged vocabularies


def merge(layout="merged", **tokenizers_):
    """Returns the vocabulary of languages with a tokenizer each."""
    sources_ = {
        name: config_lib.declared(SourceConfig, kind="files", train="x") for name in tokenizers_
    }
    config = config_lib.spoken(sources_, scale="demo", ratio=":".join("1" * len(sources_)))
    config.vocabulary.layout = layout
    pieces = {name: tokenizer.pieces() for name, tokenizer in tokenizers_.items()}
    return languages.build_vocabulary(config_lib.resolve_config(config), pieces)


@pytest.fixture(scope="module")
def of_sentencepiece():
    config = TokenizerConfig(vocab_size=320)
    return SentencePieceTokenizer(prepare.train_tokenizer("en", config, LINES))


@pytest.mark.parametrize("kind", ["bytes", "byte-level", "byte fallback", "unigram"])
def test_pieces_that_write_the_same_have_one_id(of_sentencepiece, kind):
    ours, theirs = of_sentencepiece, opened(kind)
    made = merge(en=ours, fr=theirs)
    writers = {}  # what a piece of SentencePiece writes -> its id; specials aside
    for id_ in range(3, ours.size):
        if ours.strings[id_] != f"<0x{id_ - 3:02X}>" or id_ >= 3 + 0x80:
            writers[ours.written[id_]] = id_
    named = {ours.strings[id_]: id_ for id_ in range(3, 3 + 0x80)}  # bytes beside characters
    specials = {theirs.separator, theirs.unknown, theirs.pad_id}
    shared = 0
    for id_, written in enumerate(theirs.written):
        other = None if id_ in specials else writers.get(written)
        if kind == "byte fallback" and theirs.strings[id_] in named:
            other = named[theirs.strings[id_]]
        if other is not None:
            shared += 1
            assert made.map_GU[1, id_] == made.map_GU[0, other]
    specials_shared = int((made.map_GU[1, sorted(specials - {-1})] < ours.size).sum())
    assert made.size == ours.size + theirs.size - shared - specials_shared
    assert shared > {"bytes": 150, "unigram": 15}.get(kind, 170)
    assert made.map_GU[0, : ours.size].tolist() == list(range(ours.size))
    for row, tokenizer in enumerate([ours, theirs]):
        ids = made.map_GU[row, : tokenizer.size]
        assert len(set(ids.tolist())) == tokenizer.size  # none has two pieces


def test_pieces_of_words_are_merged_with_no_others():
    words = opened("WordPiece")
    assert not words.has_surfaces
    with pytest.raises(ValueError, match=r"sources\.fr\.tokenizer.*Set config\.vocabulary\.layout"):
        merge(en=ByteTokenizer(), fr=words)
    assert merge(fr=words).size == words.size
    assert merge("disjoint", en=ByteTokenizer(), fr=words).size == 259 + words.size


# What cannot be opened


def test_a_file_is_refused_that_would_end_documents_at_what_is_unknown():
    described = of_words()
    described["model"]["unk_token"] = "[SEP]"
    with pytest.raises(ValueError, match=r"unknown token \[SEP\].*Add a special token <D>"):
        FastTokenizer(content_of(described))
    of_bytes = byte_level()
    of_bytes["model"]["unk_token"] = "<|endoftext|>"
    assert FastTokenizer(content_of(of_bytes)).unknown == -1


@pytest.mark.parametrize("change", [{"type": "Nothing"}, {"vocab": [1]}, {"merges": [["a", "zz"]]}])
def test_a_file_that_the_package_does_not_read_is_refused_in_a_line(change):
    described = byte_level()
    described["model"] |= change
    with pytest.raises(ValueError, match="tokenizer.json") as caught:
        FastTokenizer(content_of(described))
    assert "\n" not in str(caught.value)
    with pytest.raises(DamagedFileError, match="tokenizer-en.model is not a tokenizer"):
        open_tokenizer(content_of(described), "tokenizer-en.model", "")


def test_without_the_package_the_extra_is_named(monkeypatch):
    content = content_of(byte_level(301))
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingLibraryError, match=r"tokenizer-en.model: .*'\.\[huggingface\]'"):
        open_tokenizer(content, "tokenizer-en.model", "Delete it.")
    assert ByteTokenizer().encode("a") == [100]
