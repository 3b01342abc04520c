"""The bytes of UTF-8 as ids, behind padding, unknown and separator: there is nothing to train."""

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from imbalance_jax.config import SPECIALS
from imbalance_jax.data.text_tokenizer import TextTokenizer
from imbalance_jax.runs.json_text import format_json


class ByteTokenizer(TextTokenizer):
    """Writes each byte of a text as an id of its own."""

    kind = "bytes"
    pad_id, unknown, separator = range(len(SPECIALS))
    size = len(SPECIALS) + 256

    _keeps_everything = True

    def __init__(self) -> None:
        self.content = format_byte_tokenizer()

    @functools.cached_property
    def strings(self) -> tuple[str, ...]:
        shown = (chr(byte) if byte < 0x80 else f"<0x{byte:02X}>" for byte in range(256))
        return (*SPECIALS, *shown)

    @functools.cached_property
    def written(self) -> tuple[bytes, ...]:
        return (*([b""] * len(SPECIALS)), *(bytes([byte]) for byte in range(256)))

    def encode_arrays(self, texts: Sequence[str], num_threads: int = -1) -> list[np.ndarray]:
        specials = np.int32(len(SPECIALS))
        return [np.frombuffer(text.encode(), np.uint8) + specials for text in texts]


def map_byte_characters() -> Mapping[str, int]:
    """Returns the character by which byte-level tokenizers name each byte, since GPT-2.

    A byte that is a visible character of Latin-1 is that character; the others are U+0100 and on.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(visible))
    characters = {chr(byte): byte for byte in visible}
    return characters | {chr(0x100 + n): byte for n, byte in enumerate(others)}


@functools.cache
def format_byte_tokenizer() -> bytes:
    """Returns the tokenizer as a tokenizer.json, which the package tokenizers reads."""
    of_byte = {byte: character for character, byte in map_byte_characters().items()}
    strings = [*SPECIALS, *(of_byte[byte] for byte in range(256))]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    bytewise = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }
    described = {
        "version": "1.0",
        "added_tokens": [
            {"id": index, "content": content, **flags, "special": True}
            for index, content in enumerate(SPECIALS)
        ],
        "pre_tokenizer": bytewise,
        "decoder": bytewise,
        "model": {
            "type": "BPE",
            "vocab": {string: index for index, string in enumerate(strings)},
            "merges": [],
        },
    }
    return format_json(described, indent=1).encode() + b"\n"
