"""Opens tokenizers of any kind, by what their files hold."""

import functools
import re

from etils import epath

from imbalance_jax.config import TokenizerConfig
from imbalance_jax.data.byte_tokenizer import ByteTokenizer, format_byte_tokenizer
from imbalance_jax.data.fast_tokenizer import FastTokenizer, MissingLibraryError
from imbalance_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer
from imbalance_jax.data.text_tokenizer import TextTokenizer
from imbalance_jax.runs import damaged_files, storage

_REMEDY = "Name a .model file, a tokenizer.json or a folder that has one as tokenizer.path."


# A run opens the same one in several places, and one of 250,000 pieces takes a second.
@functools.lru_cache(maxsize=8)
def parse_tokenizer(content: bytes) -> TextTokenizer:
    """Returns the tokenizer of a SentencePiece model, of a tokenizer.json, or of bytes.

    Raises:
      RuntimeError: it is none of these.
      ValueError: it is a tokenizer.json that cannot be used, or it has no separator.
    """
    if content == format_byte_tokenizer():
        return ByteTokenizer()
    # No SentencePiece model begins like a JSON object.
    if re.match(rb'(\xef\xbb\xbf)?\s*\{\s*["}]', content):
        return FastTokenizer(content)
    return SentencePieceTokenizer(content)


def get_untrained_tokenizer(tokenizer: TokenizerConfig) -> bytes | None:
    """Returns what a tokenizer is that needs no text: a file, or bytes; None if it is trained."""
    if tokenizer.path:
        return read_tokenizer_file(tokenizer.path)
    return format_byte_tokenizer() if tokenizer.model_type == "bytes" else None


def check_tokenizer_path(field: str, path: str) -> None:
    """Raises ValueError if a tokenizer's path, where there is one, cannot be used."""
    if not path:
        return
    field = f"{field}={path!r}"
    if not storage.parse_path(path).exists():
        raise ValueError(f"{field}: there is no such file.")
    file = find_tokenizer_in(path)
    if file.is_dir():
        raise ValueError(f"{field} {_describe_folder(file)}")
    try:
        parse_tokenizer(read_tokenizer_file(path))
    except RuntimeError as error:
        raise ValueError(
            f"{field} is not a SentencePiece model, nor a tokenizer.json. Name a .model file or a "
            "tokenizer.json."
        ) from error
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from error


def find_tokenizer_in(path: str) -> epath.Path:
    """Returns the file that a tokenizer's path means: itself, or the tokenizer.json of a folder."""
    file = storage.parse_path(path)
    inside = file / "tokenizer.json"
    return inside if file.is_dir() and inside.exists() else file


def _describe_folder(folder: epath.Path) -> str:
    """Returns what a folder without a tokenizer.json has, and the way out."""
    models = sorted(file.name for file in folder.glob("*.model"))
    if models:
        return f"is a folder without a tokenizer.json. Name {folder / models[0]}."
    if any((folder / name).exists() for name in ("vocab.json", "vocab.txt", "merges.txt")):
        return (
            "is a folder without a tokenizer.json: its tokenizer is of the slow kind. Convert it "
            "with transformers: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)."
        )
    return f"is a folder without a tokenizer.json. {_REMEDY}"


def read_tokenizer_file(path: str) -> bytes:
    """Returns the bytes of a file that a config names as a tokenizer."""
    return damaged_files.read_file(find_tokenizer_in(path), _REMEDY)


def open_tokenizer(content: bytes, path: epath.PathLike, remedy: str) -> TextTokenizer:
    """Returns the tokenizer that this program wrote into a file.

    Raises:
      DamagedFileError: it is none, or has no separator.
      MissingLibraryError: what reads it is not installed.
    """
    try:
        return parse_tokenizer(content)
    except MissingLibraryError as error:
        raise MissingLibraryError(f"{path}: {error}") from error
    # Protobuf raises an error of its own.
    except Exception as error:
        problem = "is not a tokenizer that this program wrote"
        raise damaged_files.DamagedFileError(path, problem, remedy) from error
