"""Trains tokenizers: SentencePiece with the flags of the reference study, on a sample of text."""

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from imbalance_jax import config as config_lib
from imbalance_jax.config import SourceConfig, TokenizerConfig
from imbalance_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer
from imbalance_jax.data.text import coverage as coverage_lib
from imbalance_jax.data.text import reading as text
from imbalance_jax.data.text.documents import Document
from imbalance_jax.data.text.selection import USUAL_BYTES_A_TOKEN, Selection
from imbalance_jax.runs.progress import Progress

# Bytes of text that a tokenizer is trained on; of a larger corpus a share of its paragraphs,
# chosen by a hash (a document may be larger than the whole sample).
SAMPLE_BYTES = 50_000_000
# Characters of a paragraph in one piece: SentencePiece drops lines above 65,536 bytes.
_LINE_CHARACTERS = 1 << 14

_PAD, _UNKNOWN, _SEPARATOR = config_lib.SPECIALS
_FLAGS: dict[str, Any] = {
    "hard_vocab_limit": True,
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "add_dummy_prefix": False,
    "remove_extra_whitespaces": False,
    "allow_whitespace_only_pieces": True,
    "split_digits": True,
    "split_by_unicode_script": True,
    "split_by_number": True,
    "split_by_whitespace": True,
    "max_sentencepiece_length": 99,
    "max_sentence_length": 1 << 16,
    "control_symbols": [_SEPARATOR],  # no text can spell it
    "pad_id": 0,
    "pad_piece": _PAD,
    "unk_id": 1,
    "unk_piece": _UNKNOWN,
    "bos_id": -1,
    "eos_id": -1,
    # Each thread adds up its own share of the sample, so that their number is part of a unigram
    # model.
    "num_threads": 16,
    "minloglevel": 2,
}

Reader = Callable[..., Iterable[tuple[str, Document]]]  # what make_document_reader returns


def make_document_reader(name: str, source: SourceConfig) -> Reader:
    """Returns what yields the documents of a source, as often as it is called.

    It takes a `Progress`, and a `Selection`; without one it reads what a tokenizer is trained on.
    """
    documents: list[tuple[str, Document]] = []
    removed: frozenset[int] | None = None

    def read(
        progress: Progress, selection: Selection | None = None
    ) -> Iterator[tuple[str, Document]]:
        # What the first pass has found to be removed, others need not look for.
        nonlocal removed
        selection = selection or Selection(USUAL_BYTES_A_TOKEN)
        selection.removed = removed
        yield from text.read_documents(name, source, progress.show, selection)
        removed = selection.removed

    def read_docstrings(
        progress: Progress, selection: Selection | None = None
    ) -> Iterable[tuple[str, Document]]:
        # Small, and slow to extract: read once and kept.
        if not documents:
            documents.extend(text.read_documents(name, source, progress.show))
        return documents

    return read_docstrings if source.kind == "docstrings" else read


def sample_paragraphs(name: str, source: SourceConfig, read: Reader) -> list[str]:
    """Returns paragraphs of training documents, of about SAMPLE_BYTES bytes at most."""
    share = min(1.0, SAMPLE_BYTES / max(1, text.estimate_text_bytes(source)))
    threshold = int(share * 2**64)
    paragraphs = []
    with Progress(f"Reading {name} for a tokenizer", 1) as progress:
        for split, document in read(progress):
            if split != "train":
                continue
            # Names of files need not be UTF-8, and documents without ids are named after them.
            document_id = document.id.encode("utf-8", "surrogatepass")
            keyed = hashlib.blake2b(document_id, digest_size=8, key=b"tokenizer")
            for number, line in enumerate(_split_long_lines(document.text)):
                drawn = keyed.copy()
                drawn.update(b"/%d" % number)
                if share == 1 or int.from_bytes(drawn.digest(), "big") < threshold:
                    paragraphs.append(line)
    return paragraphs


def _split_long_lines(document: str) -> Iterator[str]:
    for line in document.split("\n"):
        for start in range(0, len(line), _LINE_CHARACTERS):
            yield line[start : start + _LINE_CHARACTERS]


def train_tokenizer(field: str, tokenizer: TokenizerConfig, paragraphs: list[str]) -> bytes:
    """Returns a SentencePiece model with the flags of the reference study.

    Ids 0, 1 and 2 are padding, unknown and the separator of documents; then the 256 bytes,
    so that any text can be written and read back unchanged. The model is the same on every
    machine, however many cores it has. Messages name its field in the config.

    Raises:
      ValueError: the text does not hold as many pieces, or more characters than pieces.
    """
    if not paragraphs:
        raise ValueError(f"{field}: there is no text to train it on.")
    try:
        return _train_with_config_coverage(field, tokenizer, paragraphs)
    except coverage_lib.TooManyCharacters:
        return coverage_lib.train_with_lower_coverage(
            field, tokenizer, paragraphs, _train_with_config_coverage
        )


def _train_with_config_coverage(
    field: str, tokenizer: TokenizerConfig, paragraphs: list[str]
) -> bytes:
    """Does what `train_tokenizer` does, with the coverage of the config alone."""
    import sentencepiece

    field = f"{field}.vocab_size={tokenizer.vocab_size}"
    covered, options = coverage_lib.apply_coverage(paragraphs, tokenizer.character_coverage)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            # The trainer would take a U+2581 for a space.
            sentence_iterator=(part for one in covered for part in one.split("\u2581")),
            model_writer=model,
            model_type=tokenizer.model_type,
            vocab_size=tokenizer.vocab_size,
            **_FLAGS,
            **options,
        )
    except RuntimeError as error:
        raise _explain_failed_training(field, error) from error
    size = SentencePieceTokenizer(model.getvalue()).size
    if size != tokenizer.vocab_size:
        raise ValueError(
            f"{field} is more than the text allows: it holds {size} pieces. "
            "Set it to that or lower, or use more text."
        )
    return model.getvalue()


def _explain_failed_training(field: str, error: RuntimeError) -> ValueError:
    """Returns what SentencePiece says as an error of the config's field."""
    # Without its place in the source.
    reason = str(error).strip().splitlines()[-1].rpartition("] ")[2].strip(" .")
    if "required_chars" in reason:
        return coverage_lib.TooManyCharacters(
            f"{field} is too small for the characters of the text. Set it higher."
        )
    most = reason.rpartition("<= ")[2] if "too high" in reason else ""
    if most:
        return ValueError(f"{field} is more than the text allows. Set it to {most} or less.")
    return ValueError(
        f"{field} does not suit the text ({reason or 'no reason given'}). Set it lower for little "
        "text, or higher for many different characters."
    )
