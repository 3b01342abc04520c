"""Behaviours of data/tokenizer.py: what a text says comes back, and what does not is counted."""

import functools
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imbalance_jax.config import TokenizerConfig
from imbalance_jax.data import prepare, text_cuts
from imbalance_jax.data import sentencepiece_tokenizer as sentencepiece_lib
from imbalance_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer
from imbalance_jax.data.text_tokenizer import count_bytes
from imbalance_jax.runs import children

LINES = [f"It was number {n} of the quick brown foxes that sat on the mat." for n in range(99)]
SPACE = "\u2581"


def trained(lines, *, exact=False, **flags):
    """A tokenizer as others train them: with NFKC, a space before the text, and no bytes.

    With `exact`, the sums of scores have no rounding by which a unigram model chooses.
    """
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, minloglevel=2, **flags
    )
    proto = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())
    for piece in proto.pieces if exact else ():
        piece.score = round(64 * piece.score) / 64
    return SentencePieceTokenizer(proto.SerializeToString())


@pytest.fixture(scope="module")
def own():
    """Our own tokenizers; that of a text of hardly any spaces has no piece for one."""

    def make(lines, size, model_type="bpe"):
        config = TokenizerConfig(vocab_size=size, model_type=model_type)
        return SentencePieceTokenizer(prepare.train_tokenizer("en", config, lines))

    return {
        "bpe": make(LINES, 320),
        "unigram": make(LINES, 290, "unigram"),
        "spaceless": make(["日本語を書く" * 900, "語 を"], 280),
    }


@pytest.fixture(scope="module")
def lossy():
    return trained(["alpha beta gamma delta", "fine file of fire"] * 50, vocab_size=20)


# Text and back


TEXTS = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(" \u2581\ufdd0<D>▁th"))


@pytest.mark.parametrize("kind", ["bpe", "unigram", "spaceless"])
@settings(max_examples=60, deadline=None)
@given(text=TEXTS)
def test_any_text_comes_back_from_its_ids_with_its_bytes(own, kind, text):
    tokenizer = own[kind]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not {tokenizer.pad_id, tokenizer.unknown, tokenizer.separator} & set(ids)
    assert tokenizer.pieces().bytes_U[ids].sum() == len(text.encode())
    assert tokenizer.lost_bytes(text, ids) == 0


@pytest.mark.parametrize("kind", ["bpe", "unigram", "spaceless"])
def test_a_space_and_the_character_that_sentencepiece_writes_for_it_have_ids_of_their_own(
    own, kind
):
    tokenizer = own[kind]
    assert (SPACE in tokenizer.strings) == (kind != "spaceless")
    space, other = tokenizer.encode("a b"), tokenizer.encode(f"a{SPACE}b")
    assert [tokenizer.strings[i] for i in other][1:-1] == ["<0xE2>", "<0x96>", "<0x81>"]
    if kind == "spaceless":
        assert [tokenizer.strings[i] for i in space][1:-1] == ["<0x20>"]


def test_a_model_of_words_writes_the_spaces_of_unknown_words_as_spaces():
    tokenizer = trained(
        ["the quick  fox", "the  mat"] * 20,
        model_type="word",
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        vocab_size=280,
    )
    assert SPACE in tokenizer.strings  # of two spaces that follow each other
    for text in ("the unknown word", f" a  {SPACE} b", "the quick  fox"):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text and tokenizer.lost_bytes(text, ids) == 0


def test_texts_encoded_together_are_encoded_as_one_by_one(own):
    texts = ["", f"a{SPACE}b", "the mat", f"\ufdd0{SPACE}"]
    for tokenizer in own.values():
        assert tokenizer.encode_all(texts) == [tokenizer.encode(text) for text in texts]


# Long texts


OWN = {
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "add_dummy_prefix": False,
    "remove_extra_whitespaces": False,
    "allow_whitespace_only_pieces": True,
}
ANYWHERE = {
    "split_by_whitespace": False,
    "split_by_number": False,
    "split_by_unicode_script": False,
}
KINDS = {
    "our bpe": {**OWN, "model_type": "bpe"},
    "our unigram": {**OWN, "model_type": "unigram"},
    "their bpe": {"model_type": "bpe"},
    "their unigram": {"model_type": "unigram", "normalization_rule_name": "nfkc_cf"},
    "pieces of several words": {"model_type": "bpe", **ANYWHERE},
    "spaces at the end": {"model_type": "unigram", "treat_whitespace_as_suffix": True},
    "all spaces": {"model_type": "bpe", "remove_extra_whitespaces": False},
    "symbols": {**OWN, "model_type": "bpe", "user_defined_symbols": ["the mat", "▁of", "日本"]},
    "words": {**OWN, "model_type": "word"},
    "characters": {"model_type": "char"},
}
PARTS = [
    *(
        "the",
        "mat",
        "foxes",
        " of",
        "aaa",
        "a",
        "日本語",
        "東",
        "é",
        "e\u0301",
        "ﬁ",
        "½",
        "zq",
        "12",
    ),
    *(
        "the mat",
        "<s>",
        "<D>",
        "<0x41>",
        "x" * 40,
        "б",
        "\ufdd0",
        "\U0001f600",
        "ﾊﾞ",
        "\x00",
        "\x7f",
    ),
    *(
        " ",
        " ",
        " ",
        "  ",
        "\t",
        "\n",
        "\r\n",
        "\u00a0",
        "\u2003",
        "\u3000",
        "\u200b",
        "\u2028",
        SPACE,
    ),
]


@pytest.fixture(scope="module")
def of_kind():
    lines = [*LINES, *["aaa  aa aaaa, naïvely: 日本語を書く"] * 9]

    @functools.cache
    def make(kind):
        return trained(lines, vocab_size=330, hard_vocab_limit=False, exact=True, **KINDS[kind])

    return make


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30, deadline=None)
@given(text=st.lists(st.sampled_from(PARTS)).map("".join), size=st.integers(1, 12))
def test_a_text_in_parts_has_the_ids_of_one_call(of_kind, kind, text, size):
    tokenizer = of_kind(kind)
    whole = tokenizer.encode(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sentencepiece_lib, "_WHOLE_CHARACTERS", 0)
        patch.setattr(text_cuts, "_PART_CHARACTERS", size)
        assert tokenizer.encode(text) == whole
        assert "".join(tokenizer._cutter.cut(text)) == text
    assert count_bytes(text) == len(text.encode())


def test_no_call_has_more_than_a_part_of_a_text_but_of_a_word_that_is_longer(own, monkeypatch):
    monkeypatch.setattr(text_cuts, "_PART_CHARACTERS", 20)
    cutter = own["bpe"]._cutter
    sizes = [len(part) for part in cutter.cut(" ".join(LINES))]
    assert min(sizes[:-1]) > 8 and max(sizes) == 20
    # Between th and th, a piece could reach: "hth" is in none, "th" is in one.
    word = "th" * 50
    assert {"th", "ht"} & cutter._neighbours == {"th"}
    assert [len(part) for part in cutter.cut(word)] == [20] * 5
    cutter._neighbours.add("ht")
    assert [len(part) for part in cutter.cut(f"a {word} b")] == [1, 101, 2]


# What no text can say


RESERVED = "write <D> here <D> please </s> <pad> <unk> <s>"


def test_a_text_cannot_spell_a_separator(own):
    for tokenizer in own.values():
        ids = tokenizer.encode(RESERVED)
        assert tokenizer.separator not in ids and tokenizer.decode(ids) == RESERVED
        assert tokenizer.decode([*ids, tokenizer.separator, *ids]) == f"{RESERVED}<D>{RESERVED}"


def test_nor_one_that_its_tokenizer_was_told_to_find_in_texts():
    # As ours were trained before, and as others are.
    flags = {"vocab_size": 300, "byte_fallback": True, "user_defined_symbols": ["<D>"]}
    found = trained([*LINES, RESERVED], **flags)
    assert found.strings[found.separator] == "<D>" and found.processor.is_control(found.separator)
    ids = found.encode(RESERVED)
    assert found.separator not in ids and found.decode(ids) == RESERVED


def test_nor_one_that_is_a_piece_of_text_to_its_tokenizer():
    found = trained(
        ["<D>" * 5] * 9, vocab_size=9, eos_id=-1, split_by_unicode_script=False, model_type="bpe"
    )
    assert found.strings[found.separator] == "<D>"
    assert found.separator not in found.encode("<D><D>")
    assert found.decode(found.encode("<D><D>")) == "<D><D>"


def test_a_tokenizer_is_trained_on_texts_that_spell_what_is_reserved():
    config = TokenizerConfig(vocab_size=290)
    found = SentencePieceTokenizer(prepare.train_tokenizer("en", config, [RESERVED] * 300))
    assert found.strings.count("<D>") == 1 and found.decode(found.encode(RESERVED)) == RESERVED


# What is lost


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("alpha beta", 0),
        ("alpha βeta", 2),  # unknown
        ("alpha ﬁne", 3),  # one character, which becomes two others
        ("alpha  beta", 1),  # a space too many
        ("αβγ", 6),
        (f"alpha{SPACE}beta", 3),
    ],
)
def test_what_does_not_come_back_is_counted_in_the_texts_own_bytes(lossy, text, lost):
    ids = lossy.encode(text)
    assert lossy.lost_bytes(text, ids) == lost
    assert (lossy.decode(ids) == text) == (lost == 0)


# Training


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_a_tokenizer_does_not_depend_on_the_number_of_cores(monkeypatch, model_type):
    config = TokenizerConfig(vocab_size=290, model_type=model_type)
    models = []
    for cores in (1, 3):
        monkeypatch.setattr(children, "count_cores", lambda cores=cores: cores)
        models.append(prepare.train_tokenizer("en", config, LINES))
    assert models[0] == models[1]
