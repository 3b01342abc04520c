"""Encodes the documents of a source with its tokenizer, and writes them as a prepared source."""

import functools
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from etils import epath

from imbalance_jax.config import SourceConfig
from imbalance_jax.data import sources
from imbalance_jax.data.prepare import tokenizers
from imbalance_jax.data.prepare.duplicates import DuplicateCounter
from imbalance_jax.data.prepare.joint import JointTokenizer
from imbalance_jax.data.text import synthetic
from imbalance_jax.data.text.documents import Document
from imbalance_jax.data.text.selection import (
    MOST_BYTES_A_TOKEN,
    Selection,
    describe_left_out,
    hash_text,
)
from imbalance_jax.data.text_tokenizer import batch_texts, count_bytes
from imbalance_jax.data.tokenizer import get_untrained_tokenizer, parse_tokenizer
from imbalance_jax.runs import children, storage
from imbalance_jax.runs.progress import Progress


def write_prepared_source(
    name: str,
    source: SourceConfig,
    path: epath.Path,
    text_key: str,
    key: str,
    tokenizer: JointTokenizer | None,
    made_of: Mapping[str, object],
) -> None:
    """Makes the directory of a source, as `sources.write_source` does.

    Args:
      text_key: stands for the text.
      key: stands for what is asked for.
      tokenizer: one that it shares with other sources, in place of its own.

    Raises:
      ValueError: the text or the tokenizer cannot be used; nothing is left half made.
    """
    write = functools.partial(
        sources.write_source, path, name=name, text=text_key, key=key, made_of=made_of
    )
    if source.kind == "synthetic":
        _check_synthetic_size(f"config.sources.{name}", source, path)
        model = synthetic.SyntheticSource(name, source.synthetic).model
        write(tokenizer=model, documents=synthetic.generate_documents(source.synthetic))
        return
    read = tokenizers.make_document_reader(name, source)
    content = tokenizer.model() if tokenizer else get_untrained_tokenizer(source.tokenizer)
    if content is None:
        sample = tokenizers.sample_paragraphs(name, source, read)
        field = f"config.sources.{name}.tokenizer"
        print(f"Training the tokenizer of {name}: {source.tokenizer.vocab_size} pieces", flush=True)
        content = tokenizers.train_tokenizer(field, source.tokenizer, sample)

    selection, counts = Selection(), dict[str, Mapping[str, int]]()
    with Progress(f"Tokenizing {name}", 1) as progress:
        encoded = _encode_documents(content, read(progress, selection))
        documents = _take_documents(encoded, source, selection, path.parent, counts)
        write(tokenizer=content, documents=documents, reading_counts=counts)
    written = sources.open_source(name, path, pathlib.Path())
    print(f"Prepared {path}: {written.count('train'):,} tokens to train on", flush=True)
    for line in describe_left_out(f"config.sources.{name}", written.about):
        print(line, flush=True)
    if written.count("train") < source.max_tokens and selection.compute_progress(source) >= 1:
        print(
            f"config.sources.{name}.max_tokens={source.max_tokens:,}: {MOST_BYTES_A_TOKEN} bytes "
            "of text for each were read, which have fewer tokens. Set it higher for more text.",
            flush=True,
        )
    lost, whole = (sum(written.about[of].values()) for of in ("lost_bytes", "bytes"))
    if lost:
        print(
            f"The tokenizer of {name} loses {lost:,} of the text's {whole:,} bytes "
            f"({lost / whole:.2%}): they are unknown to it or normalized away. Bits per byte count "
            "them all the same.",
            flush=True,
        )


def _check_synthetic_size(field: str, source: SourceConfig, path: epath.Path) -> None:
    """Raises ValueError if the disk has no room for the ids of a toy language's text."""
    language = synthetic.SyntheticSource("", source.synthetic).language
    tokens, free = source.synthetic.tokens, storage.count_free_bytes(path)
    if free is not None and tokens * language.dtype.itemsize > free:
        raise ValueError(
            f"{field}.synthetic.tokens={tokens} takes {tokens * language.dtype.itemsize / 1e9:.3g} "
            f"GB in {path.parent}, where {free / 1e9:.3g} GB are free. Set fewer, or 0: text "
            "without end takes none."
        )


def _encode_documents(
    model: bytes, documents: Iterable[tuple[str, Document]]
) -> Iterator[sources.EncodedDocument]:
    """Yields what `sources.write_source` takes, encoding on all cores."""
    tokenizer = parse_tokenizer(model)
    for batch in batch_texts(documents, lambda item: len(item[1].text)):
        texts = [document.text for _, document in batch]
        encoded = tokenizer.encode_arrays(texts, num_threads=children.count_cores())
        for (split, document), ids in zip(batch, encoded, strict=True):
            yield sources.EncodedDocument(
                split,
                document.identity,
                np.append(ids, np.int32(tokenizer.separator)),
                bytes=count_bytes(document.text),
                lost=tokenizer.lost_bytes(document.text, ids),
                text_hash=hash_text(document.text),
            )


def _take_documents(
    documents: Iterable[sources.EncodedDocument],
    source: SourceConfig,
    selection: Selection,
    data_dir: epath.Path,
    counts: dict[str, Mapping[str, int]],
) -> Iterator[sources.EncodedDocument]:
    """Yields documents up to the one to train on that reaches `max_tokens`, and held-out files.

    How many were left out, and how many are there twice, is put into `counts` at the end.
    """
    duplicates = DuplicateCounter(sources.resolve_data_cache_dir(os.fspath(data_dir)))
    tokens = 0
    for document in documents:
        # Some were encoded with the one that reached it.
        if tokens >= source.max_tokens > 0 and document.split in selection.carved:
            continue
        duplicates.add(document.split, document.text_hash)
        yield document
        tokens += len(document.ids) if document.split == "train" else 0
        if tokens >= source.max_tokens > 0:
            selection.ended.add("train")
    counts |= {"left_out": dict(selection.left_out), "duplicates": duplicates.count()}
