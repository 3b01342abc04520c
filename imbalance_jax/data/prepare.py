"""Turns text into a prepared source: trains its tokenizer, writes its ids.

    python -m imbalance_jax.data.prepare --config=configs/90_10.py

A run prepares what it needs by itself; this command does it ahead of time. What is already
there, keyed by the text and the tokenizer, costs nothing.
"""

import hashlib
import io
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from etils import epath

from imbalance_jax import cli
from imbalance_jax import config as config_lib
from imbalance_jax.config import Config, SourceConfig, TokenizerConfig
from imbalance_jax.data import sources, text
from imbalance_jax.progress import Progress

if TYPE_CHECKING:
    pass

# Bytes of text that a tokenizer is trained on; of a larger corpus a share of its paragraphs,
# chosen by a hash (a document may be larger than the whole sample).
_SAMPLE_BYTES = 50_000_000
# Characters of a paragraph in one piece: SentencePiece drops lines above 65,536 bytes.
_LINE_CHARACTERS = 1 << 14
# Characters encoded in one call, on all cores.
_BATCH_CHARACTERS = 4_000_000


def prepare_all(config: Config) -> dict[str, sources.Source]:
    """Returns the prepared source of every language of a run, making what is missing."""
    used = {language.source for language in config.languages.values() if language.source}
    # All sources are checked before the first one is worked on.
    for name in sorted(used):
        check(name, config.sources[name])
    return {name: prepare(name, config.sources[name], config.data_dir) for name in sorted(used)}


def check(name: str, source: SourceConfig) -> None:
    """Raises ValueError for whatever can be seen to be wrong without reading the text."""
    text.check(name, source)
    path = source.tokenizer.path
    if path and not epath.Path(path).exists():
        raise ValueError(f"config.sources.{name}.tokenizer.path={path!r}: there is no such file.")


def prepare(name: str, source: SourceConfig, data_dir: str) -> sources.Source:
    """Returns a prepared source, from disk if its text and tokenizer are there already.

    Raises:
      ValueError: the text or the tokenizer cannot be used; nothing is left half made.
    """
    cache = sources.cache_dir(data_dir)
    fingerprint = config_lib.digest(
        {
            "text": text.fingerprint(name, source, cache / "digests.json"),
            "tokenizer": _tokenizer_key(source.tokenizer),
        }
    )
    path = epath.Path(data_dir) / f"{name}-{fingerprint}"
    if not (path / "source.json").exists():
        _make(name, source, path, fingerprint)
    return sources.open_source(name, path, cache)


def _tokenizer_key(tokenizer: TokenizerConfig) -> object:
    if tokenizer.path:
        return hashlib.sha256(epath.Path(tokenizer.path).read_bytes()).hexdigest()
    return config_lib.to_dict(tokenizer)


def _make(name: str, source: SourceConfig, path: epath.Path, fingerprint: str) -> None:
    documents: Callable[[Progress], Iterable[tuple[str, text.Document]]]
    if source.kind == "docstrings":
        # Small, and slow to extract: read once and kept.
        with Progress(f"Reading {name}", 1) as progress:
            kept = list(text.documents(name, source, progress.show))
        documents = lambda progress: kept  # noqa: E731
    else:
        documents = lambda progress: text.documents(name, source, progress.show)  # noqa: E731

    if source.tokenizer.path:
        model = epath.Path(source.tokenizer.path).read_bytes()
    else:
        with Progress(f"Reading {name} for its tokenizer", 1) as progress:
            sample = _sample(documents(progress), source)
        print(f"Training the tokenizer of {name}: {source.tokenizer.vocab_size} pieces", flush=True)
        model = train_tokenizer(name, source.tokenizer, sample)

    with Progress(f"Tokenizing {name}", 1) as progress:
        sources.write(
            path,
            name=name,
            fingerprint=fingerprint,
            tokenizer=model,
            documents=_encode(model, documents(progress)),
        )
    made = sources.open_source(name, path, pathlib.Path())
    print(f"Prepared {path}: {made.count('train'):,} tokens to train on", flush=True)


def _sample(documents: Iterable[tuple[str, text.Document]], source: SourceConfig) -> list[str]:
    """Returns paragraphs of training documents, about _SAMPLE_BYTES of them at most."""
    share = min(1.0, _SAMPLE_BYTES / max(1, text.size(source)))
    threshold = int(share * 2**64)
    paragraphs = []
    for split, document in documents:
        if split != "train":
            continue
        keyed = hashlib.blake2b(document.id.encode(), digest_size=8, key=b"tokenizer")
        for number, line in enumerate(_lines(document.text)):
            drawn = keyed.copy()
            drawn.update(b"/%d" % number)
            if share == 1 or int.from_bytes(drawn.digest(), "big") < threshold:
                paragraphs.append(line)
    return paragraphs


def _lines(document: str) -> Iterator[str]:
    for line in document.split("\n"):
        for start in range(0, len(line), _LINE_CHARACTERS):
            yield line[start : start + _LINE_CHARACTERS]


def train_tokenizer(name: str, tokenizer: TokenizerConfig, paragraphs: list[str]) -> bytes:
    """Returns a SentencePiece model with the flags of the reference study.

    Ids 0, 1 and 2 are padding, unknown and the separator of documents; then the 256 bytes,
    so that any text can be written and read back unchanged.

    Raises:
      ValueError: the text does not hold as many pieces, or more characters than pieces.
    """
    import sentencepiece

    field = f"config.sources.{name}.tokenizer.vocab_size={tokenizer.vocab_size}"
    if not paragraphs:
        raise ValueError(f"config.sources.{name}: there is no text to train a tokenizer on.")
    model = io.BytesIO()
    pad, unknown, separator = config_lib.SPECIALS
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(paragraphs),
            model_writer=model,
            model_type=tokenizer.model_type,
            vocab_size=tokenizer.vocab_size,
            hard_vocab_limit=True,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            split_by_unicode_script=True,
            split_by_number=True,
            split_by_whitespace=True,
            max_sentencepiece_length=99,
            max_sentence_length=1 << 16,
            user_defined_symbols=[separator],
            pad_id=0,
            pad_piece=pad,
            unk_id=1,
            unk_piece=unknown,
            bos_id=-1,
            eos_id=-1,
            num_threads=text.cores(),
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = _reason(error)
        most = _too_many(reason)
        if most:
            raise ValueError(
                f"{field} is more than the text allows. Set it to {most} or less."
            ) from (error)
        raise ValueError(
            f"{field} does not suit the text ({reason}). Set it lower for little text, or higher "
            "for many different characters."
        ) from error
    trained = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    if trained.get_piece_size() != tokenizer.vocab_size:
        raise ValueError(
            f"{field} is more than the text allows: it holds {trained.get_piece_size()} pieces. "
            "Set it to that or lower, or use more text."
        )
    return model.getvalue()


def _too_many(reason: str) -> str:
    """Returns the most pieces that a text allows, where SentencePiece says so."""
    return reason.rpartition("<= ")[2].rstrip(".") if "too high" in reason else ""


def _reason(error: RuntimeError) -> str:
    """Returns what SentencePiece says, without its place in the source."""
    return str(error).strip().splitlines()[-1].rpartition("] ")[2].strip(" .") or "no reason given"


def _encode(
    model: bytes, documents: Iterable[tuple[str, text.Document]]
) -> Iterator[tuple[str, np.ndarray, int]]:
    """Yields (split, ids with the separator, UTF-8 bytes), encoding on all cores."""
    import sentencepiece

    tokenizer = sentencepiece.SentencePieceProcessor(model_proto=model)
    separator = sources.separator_id(tokenizer)
    for batch in _batches(documents):
        texts = [document.text for _, document in batch]
        encoded = tokenizer.encode(texts, num_threads=text.cores())
        for (split, document), ids in zip(batch, encoded, strict=True):
            yield split, np.array([*ids, separator]), len(document.text.encode())


def _batches(
    documents: Iterable[tuple[str, text.Document]],
) -> Iterator[list[tuple[str, text.Document]]]:
    batch, characters = [], 0
    for split, document in documents:
        batch.append((split, document))
        characters += len(document.text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def main() -> int:
    config = config_lib.resolve(cli.required_config())
    for name, source in prepare_all(config).items():
        print(f"{name}: {source.path}")
    return 0


if __name__ == "__main__":
    cli.define_config()
    cli.run(main)
