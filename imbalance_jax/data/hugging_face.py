"""The tokenizer of one language as a tokenizer.json of Hugging Face that gives the model's ids.

`_describe_sentencepiece` writes a SentencePiece model as a tokenizer.json with its own ids. Its
pieces hold a space as a space, where SentencePiece writes U+2581. So a U+2581 of the text and a
space without a piece become bytes, as data/sentencepiece_tokenizer.py has them. Tokenizers of other
kinds are a tokenizer.json already.

Then every piece gets the id that its language has in the model. The ids of other languages have
names that no text spells. A BPE model merges to no such name. A unigram model would find any name
in a text, so the text is cut behind the first character of every name that is no text.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any

from imbalance_jax.data.languages import Vocabulary
from imbalance_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer
from imbalance_jax.data.text_tokenizer import TextTokenizer
from imbalance_jax.runs import damaged_files

# Characters that Unicode gives to no one. The name of an id of another language begins with one.
_NO_CHARACTERS = tuple(map(chr, range(0xFDD0, 0xFDF0)))
_MATCHED_AS_IT_IS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)


def build_tokenizer_json(
    tag: str, tokenizers: Mapping[str, TextTokenizer], vocabulary: Vocabulary
) -> dict[str, Any]:
    """Returns the content of a tokenizer.json that encodes the text of a language.

    Every text begins with the separator, as documents do in training.

    Args:
      tag: of the language.
      tokenizers: language -> its tokenizer. Those of other languages name the other ids.
      vocabulary: of the model.

    Raises:
      ValueError: no tokenizer.json cuts text as the language's tokenizer does.
    """
    tokenizer = tokenizers[tag]
    described = (
        _describe_sentencepiece(tag, tokenizer)
        if isinstance(tokenizer, SentencePieceTokenizer)
        else damaged_files.parse_json(
            tokenizer.content.decode("utf-8-sig"), f"tokenizer of {tag}", ""
        )
    )
    map_U = vocabulary.map_GU[vocabulary.index(tag)].tolist()
    model, added = described["model"] | {"dropout": None}, described.get("added_tokens", [])
    of_unigrams = isinstance(model["vocab"], list)
    scores = model["vocab"] if of_unigrams else []
    own = {name: u for u, (name, _) in enumerate(scores)} if of_unigrams else dict(model["vocab"])
    own |= {token["content"]: token["id"] for token in added}
    names = _name_other_ids(tokenizers, vocabulary)
    # Backwards, so that the first of two pieces keeps an id that they share.
    for name, u in sorted(own.items(), key=lambda item: -item[1]):
        names[map_U[u]] = name
    if of_unigrams:
        score_of = dict(scores)
        least = min(score_of.values())  # a lower one would make unknown characters cost more
        model["vocab"] = [[name, score_of.get(name, least)] for name in names]
        if model.get("unk_id") is not None:
            model["unk_id"] = map_U[model["unk_id"]]
        no_text = [token["content"] for token in added if token["special"]]
        cuts = [_match_beginnings(names, no_text), described.get("pre_tokenizer")]
        described["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [*filter(None, cuts)]}
    else:
        model["vocab"] = {name: id_ for id_, name in enumerate(names)}
    separator = map_U[tokenizer.separator]
    # A special token is not looked for in texts.
    added = [
        token | {"id": id_, "special": token["special"] or id_ == separator}
        for token in added
        for id_ in [map_U[token["id"]]]
    ]
    return described | {
        **dict.fromkeys(("truncation", "padding")),
        "model": model,
        "added_tokens": sorted(added, key=lambda token: token["id"]),
        "post_processor": _describe_beginning(names[separator], separator),
    }


def _name_other_ids(tokenizers: Mapping[str, TextTokenizer], vocabulary: Vocabulary) -> list[str]:
    """Returns a name for every id of the model that no text spells: its language and its piece."""
    characters = set().union(*(set("".join(each.strings)) for each in tokenizers.values()))
    mark = next(each for each in _NO_CHARACTERS if each not in characters)
    names = [f"{mark}{id_}" for id_ in range(vocabulary.size)]
    for tag in reversed(vocabulary.tags):  # the first of several languages names a shared id
        map_U = vocabulary.map_GU[vocabulary.index(tag)]
        for id_, string in zip(map_U.tolist(), tokenizers[tag].strings, strict=False):
            names[id_] = f"{mark}{tag}:{string}"
    return names


def _match_beginnings(names: Sequence[str], no_text: Sequence[str]) -> dict[str, Any]:
    """Returns the pre-tokenizer that keeps a text from spelling a name that is no text.

    It sets the first character of each such name apart, where the rest of the name follows.
    """
    marks = sorted({name[0] for name in names if name.startswith(_NO_CHARACTERS)})
    rests = [f"{re.escape(name[0])}(?={re.escape(name[1:])})" for name in no_text]
    return {
        "type": "Split",
        "pattern": {"Regex": "|".join([*marks, "<(?=0x[0-9A-F]{2}>)", *rests])},
        "behavior": "Isolated",
        "invert": False,
    }


def _describe_beginning(separator: str, id_: int) -> dict[str, Any]:
    """Returns the post-processor that puts the separator before a text."""
    first = {"SpecialToken": {"id": separator, "type_id": 0}}
    texts = [{"Sequence": {"id": place, "type_id": 0}} for place in ("A", "B")]
    return {
        "type": "TemplateProcessing",
        "single": [first, texts[0]],
        "pair": [first, *texts],
        "special_tokens": {separator: {"id": separator, "ids": [id_], "tokens": [separator]}},
    }


def _describe_sentencepiece(tag: str, tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    """Returns a SentencePiece model as a tokenizer.json, with its own ids.

    Raises:
      ValueError: the model is neither BPE nor unigram, has user-defined symbols, or puts spaces
        behind words.
    """
    from sentencepiece import sentencepiece_model_pb2

    content = tokenizer.processor.serialized_model_proto()
    # Protobuf makes its classes when the module is imported.
    proto = sentencepiece_model_pb2.ModelProto.FromString(content)  # type: ignore[attr-defined]
    trained, rules = proto.trainer_spec, proto.normalizer_spec
    known = trained.model_type in (trained.BPE, trained.UNIGRAM)
    whole = any(piece.type == piece.USER_DEFINED for piece in proto.pieces)
    if not known or whole or trained.treat_whitespace_as_suffix:
        raise ValueError(
            f"--format=huggingface: the SentencePiece model of {tag} is neither BPE nor unigram, "
            "has user-defined symbols, or puts spaces behind words, and no tokenizer.json cuts "
            "text so. Use --format=safetensors, which writes the model as it is."
        )
    names, added, score_of = [], [], {}
    for u, piece in enumerate(proto.pieces):
        of_text = piece.type == piece.NORMAL
        names.append(tokenizer.written[u].decode() if of_text else piece.piece)
        if of_text:
            score_of[names[u]] = piece.score
        if piece.type in (piece.CONTROL, piece.UNKNOWN):
            added.append({"id": u, "content": piece.piece, "special": True, **_MATCHED_AS_IT_IS})
    common = {"byte_fallback": bool(tokenizer.byte_ids)}
    if trained.model_type == trained.UNIGRAM:
        least = min(score_of.values())
        vocab = [[name, score_of.get(name, least)] for name in names]
        model = {"type": "Unigram", "unk_id": tokenizer.unknown, "vocab": vocab, **common}
    else:
        model = {
            "type": "BPE",
            "unk_token": names[tokenizer.unknown],
            "fuse_unk": True,
            "vocab": {name: u for u, name in enumerate(names)},
            "merges": _list_merges(score_of),
            **common,
        }
    decoders: list[dict[str, Any]] = [{"type": "ByteFallback"}, {"type": "Fuse"}]
    if rules.add_dummy_prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": _describe_normalizer(rules),
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": model,
    }


def _describe_normalizer(rules: Any) -> dict[str, Any] | None:
    """Returns what a SentencePiece model changes in text before it cuts it; None if nothing."""
    steps: list[dict[str, Any]] = []
    if rules.precompiled_charsmap:
        content = base64.b64encode(rules.precompiled_charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": content})
    if rules.remove_extra_whitespaces:
        for pattern, content in (("^ +| +$", ""), (" {2,}", " ")):
            steps.append({"type": "Replace", "pattern": {"Regex": pattern}, "content": content})
    if rules.add_dummy_prefix:
        steps.append({"type": "Prepend", "prepend": " "})
    return {"type": "Sequence", "normalizers": steps} if steps else None


def _list_merges(score_of: Mapping[str, float]) -> list[list[str]]:
    """Returns the pairs that a BPE model joins, those of the highest score first."""
    return [
        [piece[:cut], piece[cut:]]
        for piece in sorted(score_of, key=lambda piece: -score_of[piece])
        for cut in range(1, len(piece))
        if piece[:cut] in score_of and piece[cut:] in score_of
    ]
