"""A language's tokenizer.json, read by the package tokenizers, against our own tokenizers."""

import io
import json

import numpy as np
import pytest
import sentencepiece

from imbalance_jax.data import hugging_face
from imbalance_jax.data.byte_tokenizer import ByteTokenizer
from imbalance_jax.data.languages import Vocabulary
from imbalance_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer
from imbalance_jax.data.text_tokenizer import TextTokenizer
from imbalance_jax.data.tokenizer import parse_tokenizer

tokenizers = pytest.importorskip(
    "tokenizers", reason="needs tokenizers: pip install -e '.[huggingface]'"
)

# Spaces, U+2581, bytes, and what spells a special token or a name of another language's id.
ODD = [
    *("", " ", "  a  b\n\n\tc", "a\u2581b \u2581\u2581", "日本語 e\u0301 \U0001f600\0", "<D>"),
    *(" <pad>x", "<unk> <0x41>", "</s>", "\ufdd0x: the", "\ufdd0y:\u2581the"),
    *("-" * 50, "=" * 33 + "aaaa" * 9),
]
UNIGRAM = {"model_type": "unigram", "normalization_rule_name": "identity"}
OTHER = {"add_dummy_prefix": True, "remove_extra_whitespaces": True}
EDGES = dict.fromkeys(OTHER, False)
BYTES = {"byte_fallback": True, "pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1}


def train_sentencepiece(lines: list[str], **options: object) -> SentencePieceTokenizer:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=420,
        minloglevel=2,
        control_symbols="<D>",
        **BYTES | options,
    )
    return SentencePieceTokenizer(model.getvalue())


def train_byte_level(lines: list[str]) -> TextTokenizer:
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.pre_tokenizer, trained.decoder = byte_level, tokenizers.decoders.ByteLevel()
    options = {"initial_alphabet": byte_level.alphabet(), "show_progress": False}
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>"], **options
    )
    trained.train_from_iterator(lines, trainer)
    trained.add_tokens(["zebra crossing"])  # behind the vocabulary
    return parse_tokenizer(trained.to_str().encode())


@pytest.fixture(scope="module")
def lines(english) -> list[str]:
    text = english.tokenizer.decode(english.tokens("train")[:40_000])
    return [line for line in text.split("\n") if line]


def scatter_ids(size: int, spare: int = 5) -> Vocabulary:
    """Returns ids of two languages of as many pieces, in a random order, some in no language."""
    ids = np.random.default_rng(0).permutation(2 * size + spare).astype(np.int32)
    map_GU = ids[: 2 * size].reshape(2, size)
    own_GV = np.stack([np.isin(np.arange(len(ids)), row) for row in map_GU])
    return Vocabulary(("x", "y"), len(ids), map_GU, own_GV)


@pytest.mark.parametrize("kind", ["bpe", "normalized", "unigram", "byte level", "bytes"])
def test_the_ids_of_a_text_are_the_models(lines, english, kind):
    make = {
        "bpe": lambda: english.tokenizer,
        "normalized": lambda: train_sentencepiece(lines[:500], model_type="bpe", **OTHER),
        "unigram": lambda: train_sentencepiece(lines[:500], **UNIGRAM | EDGES),
        "byte level": lambda: train_byte_level(lines[:500]),
        "bytes": ByteTokenizer,
    }
    tokenizer = make[kind]()
    vocabulary = scatter_ids(tokenizer.size)
    described = hugging_face.build_tokenizer_json("y", dict.fromkeys("xy", tokenizer), vocabulary)
    library = tokenizers.Tokenizer.from_str(json.dumps(described))
    library.encode_special_tokens = True
    assert library.get_vocab_size() == vocabulary.size
    texts = [*lines, "\n".join(lines), *ODD]
    map_U = vocabulary.map_GU[1]
    ours = [map_U[ids].tolist() for ids in tokenizer.encode_arrays(texts)]
    theirs = [each.ids for each in library.encode_batch(texts, add_special_tokens=False)]
    differ = [text for text, one, other in zip(texts, ours, theirs, strict=True) if one != other]
    if kind == "unigram":
        # Equal scores are told apart by rounding; and what spells a name is cut at its start.
        assert len(differ) < 1e-3 * len(lines) + 5
    elif kind == "normalized":
        assert set(differ) <= set(ODD)  # U+2581 is a space there
    else:
        assert not differ
    if kind != "normalized":  # which changes the text
        assert [library.decode(ids) for ids in theirs] == texts
    separator = int(map_U[tokenizer.separator])
    assert separator not in np.concatenate(theirs)
    assert library.encode("a").ids[0] == separator


def test_ids_of_other_languages_have_the_name_of_their_piece(english):
    tokenizer = english.tokenizer
    vocabulary = scatter_ids(tokenizer.size)
    described = hugging_face.build_tokenizer_json("y", dict.fromkeys("xy", tokenizer), vocabulary)
    name_of = {id_: name for name, id_ in described["model"]["vocab"].items()}
    piece = tokenizer.strings.index("\u2581the")
    assert name_of[vocabulary.map_GU[1, piece]] == " the"
    assert name_of[vocabulary.map_GU[0, piece]] == "\ufdd0x:\u2581the"


def test_a_model_of_words_is_refused(lines):
    tokenizer = train_sentencepiece(lines[:200], model_type="word", byte_fallback=False)
    with pytest.raises(ValueError, match="the SentencePiece model of x is neither BPE nor"):
        hugging_face.build_tokenizer_json("x", {"x": tokenizer}, scatter_ids(tokenizer.size))
