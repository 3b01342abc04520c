"""A tokenizer.json of Hugging Face, read by the package tokenizers.

The ids of a text are those of the package without special tokens, but for two things. A text that
spells a special token is text: no id of it ends a document. And a BPE model never drops merges at
random. The separator is the first of `_SEPARATORS` among the added tokens of the file.

Which bytes an id writes follows from the decoder of the file. Decoders of whole words, such as
WordPiece's, write a space where the text may have none. Their tokenizers have no surfaces: their
text is what the package decodes, its unknown token included, and the bytes of their pieces only
divide a text's bytes.
"""

import functools
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from imbalance_jax.data.byte_tokenizer import map_byte_characters
from imbalance_jax.data.text_tokenizer import TextTokenizer
from imbalance_jax.runs import damaged_files
from imbalance_jax.runs.json_text import format_json

if TYPE_CHECKING:
    import tokenizers

# Tokens that end a document, the first that there is.
_SEPARATORS = (
    *("<D>", "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "<|eos|>", "[SEP]"),
    *("<sep>", "<｜end▁of▁sentence｜>", "<EOS_TOKEN>"),
)
_BYTE = map_byte_characters()


class MissingLibraryError(ValueError):
    """A tokenizer needs a package that is not installed."""


class FastTokenizer(TextTokenizer):
    """A tokenizer of the package tokenizers."""

    kind = "fast"
    pad_id = -1  # a text may spell that of the file

    def __init__(self, content: bytes) -> None:
        """Raises ValueError if it is no tokenizer.json, has no separator, or nothing to read it."""
        self.content = content
        described = _parse_description(content)
        try:
            self._separator_name, self.separator, self.unknown = _settle_specials(described)
            decoders, split = map(_list_steps, (described["decoder"], described["pre_tokenizer"]))
            decoders = decoders or [step for step in split if step["type"] == "ByteLevel"]
            self._added = {each["id"]: each["content"] for each in described["added_tokens"]}
            self._dummy_prefix = any(map(_drops_space, decoders)) or any(map(_adds_space, split))
            write = _make_piece_writer(decoders)
            self._write_piece = write or _make_word_writer(decoders, described["model"])
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"this is no tokenizer.json: {error!r}") from error
        self.has_surfaces = write is not None
        self._library = _open_library(described)
        self.size = max(self._library.get_vocab().values()) + 1

    @functools.cached_property
    def strings(self) -> tuple[str, ...]:
        # Ids that the file leaves out have names that it cannot have.
        strings = [f"<{index}>" for index in range(self.size)]
        for string, index in self._library.get_vocab().items():
            strings[index] = string
        strings[self.separator] = self._separator_name
        return tuple(strings)

    @functools.cached_property
    def written(self) -> tuple[bytes, ...]:
        written = [
            self._added[index].encode() if index in self._added else self._write_piece(string)
            for index, string in enumerate(self.strings)
        ]
        for special in (self.unknown, self.separator):
            if special >= 0:
                written[special] = b""
        return tuple(written)

    def encode_arrays(self, texts: Sequence[str], num_threads: int = -1) -> list[np.ndarray]:
        # The package takes every core for several texts, and one for one.
        encoded = self._library.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(each.ids, np.int32) for each in encoded]

    def _write(self, ids: Sequence[int], written: Sequence[bytes]) -> bytes:
        if self.has_surfaces:
            return super()._write(ids, written)
        shown = [id_ for id_ in ids if id_ != self.unknown or written[id_]]
        return self._library.decode(shown, skip_special_tokens=False).encode()


def _parse_description(content: bytes) -> dict[str, Any]:
    """Returns the values of a tokenizer.json, without what cuts, pads or changes at random.

    Raises:
      ValueError: it is none.
    """
    shape = {"model": {"vocab": (dict, list)}, "added_tokens?": list}
    try:
        text = content.decode().removeprefix("\ufeff")
        described = damaged_files.parse_json(text, "it", "", shape)
    except ValueError as error:
        raise ValueError(
            f"this is no tokenizer.json: {str(error).rstrip('.')}. Name one as save_pretrained of "
            "transformers or Tokenizer.save writes it."
        ) from error
    described["model"]["dropout"] = None
    absent = dict.fromkeys(("decoder", "pre_tokenizer"))
    left_out = dict.fromkeys(("truncation", "padding", "post_processor"))
    return {"added_tokens": []} | absent | described | left_out


def _settle_specials(described: dict[str, Any]) -> tuple[str, int, int]:
    """Returns the separator, its id and that of the unknown token, and keeps text from the first.

    A model that has the separator among its own tokens may find it in a text. There it becomes the
    empty string, which no text has in it.

    Raises:
      ValueError: no token separates documents.
    """
    model, added = described["model"], described["added_tokens"]
    ids = {token["content"]: token["id"] for token in added}
    name = next((name for name in _SEPARATORS if name in ids), None)
    if name is None:
        raise ValueError(
            f"none of its added tokens ends a document, such as {', '.join(_SEPARATORS[1:5])}. Add "
            "one with the package tokenizers: t = Tokenizer.from_file(FILE); "
            f"t.add_special_tokens([{_SEPARATORS[1]!r}]); t.save(FILE)."
        )
    vocab = model["vocab"]
    # A unigram model has a list of tokens and scores.
    own = vocab if isinstance(vocab, dict) else {each[0]: n for n, each in enumerate(vocab)}
    unknown = model.get("unk_token")
    if model.get("unk_id") is not None:
        unknown = vocab[model["unk_id"]][0]
    if unknown == name and model.get("type") == "BPE":
        unknown = model["unk_token"] = None  # a byte-level model, which knows all bytes
    if unknown == name:
        raise ValueError(
            f"its unknown token {name} would end documents. Add a special token <D> to it."
        )
    for token in added:
        if token["content"] == name:
            token["special"] = True  # which is not looked for in texts
    if name in own:
        described["added_tokens"] = [token for token in added if token["content"] != name]
        if isinstance(vocab, dict):
            vocab[""] = vocab.pop(name)
        else:
            vocab[own[name]][0] = ""
    return name, ids[name], -1 if unknown is None else own.get(unknown, ids.get(unknown, -1))


def _open_library(described: dict[str, Any]) -> "tokenizers.Tokenizer":
    """Returns the package's tokenizer, which takes special tokens in a text for text.

    Raises:
      ValueError: the package cannot read it, or is not installed.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise MissingLibraryError(
            "a tokenizer.json is read by the package tokenizers, which is not installed. Install "
            "it with: pip install -e '.[huggingface]'."
        ) from error
    try:
        library = tokenizers.Tokenizer.from_str(format_json(described))
    # The package raises Exception itself.
    except Exception as error:
        raise ValueError(
            f"tokenizers {tokenizers.__version__} does not read this tokenizer.json ({error}). A "
            "later version may: pip install -U tokenizers."
        ) from error
    library.encode_special_tokens = True
    return library


def _list_steps(step: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Returns the steps of a decoder or a pre-tokenizer, which may be a sequence of others."""
    if step is None:
        return []
    if step["type"] != "Sequence":
        return [step]
    inner = step.get("decoders") or step.get("pretokenizers") or []
    return [each for one in inner for each in _list_steps(one)]


def _adds_space(step: dict[str, Any]) -> bool:
    """Whether a step of a pre-tokenizer begins a text with a space that its decoder leaves."""
    return step["type"] == "ByteLevel" and step.get("add_prefix_space", True)


def _drops_space(step: dict[str, Any]) -> bool:
    """Whether a step of a decoder takes away the space that a text begins with."""
    if step["type"] == "Metaspace":
        return step.get("prepend_scheme", "always") != "never"
    return step["type"] == "Strip"


def _make_piece_writer(decoders: list[dict[str, Any]]) -> Callable[[str], bytes] | None:
    """Returns what writes a token's bytes; None if they depend on the tokens around it."""
    types = [step["type"] for step in decoders]
    if set(types) <= {"ByteLevel", "Fuse"} and "ByteLevel" in types:
        return _write_byte_characters
    written: dict[str, str] = {}
    for number, step in enumerate(decoders):
        if step["type"] == "Metaspace":
            written[step.get("replacement", "\u2581")] = " "
        elif step["type"] == "Replace" and "String" in step["pattern"]:
            written[step["pattern"]["String"]] = step["content"]
        elif step["type"] == "Strip":
            # Of the whole text.
            one = (step["content"], step["start"], step["stop"]) == (" ", 1, 0)
            if not one or "Fuse" not in types[:number]:
                return None
        elif step["type"] not in ("ByteFallback", "Fuse"):
            return None

    def write(string: str) -> bytes:
        if "ByteFallback" in types and re.fullmatch("<0x[0-9A-F]{2}>", string):
            return bytes([int(string[3:5], 16)])
        for old, new in written.items():
            string = string.replace(old, new)
        return string.encode()

    return write if decoders else None


def _write_byte_characters(string: str) -> bytes:
    known = all(character in _BYTE for character in string)
    return bytes(_BYTE[character] for character in string) if known else string.encode()


def _make_word_writer(
    decoders: list[dict[str, Any]], model: dict[str, Any]
) -> Callable[[str], bytes]:
    """Returns what writes a token of a tokenizer without surfaces, with a space for each word."""
    inside = model.get("continuing_subword_prefix") or ""
    ends = next((step["suffix"] for step in decoders if step["type"] == "BPEDecoder"), "")

    def write(string: str) -> bytes:
        if ends:
            return string.replace(ends, " ").encode()
        if inside and string.startswith(inside):
            return string.removeprefix(inside).encode()
        return f" {string}".encode()

    return write
