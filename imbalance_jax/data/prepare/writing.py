"""Encodes the documents of a source with its tokenizer, and writes them as a prepared source."""

import functools
import pathlib
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from etils import epath

from imbalance_jax.config import SourceConfig
from imbalance_jax.data import sources
from imbalance_jax.data.prepare import tokenizers
from imbalance_jax.data.prepare.joint import JointTokenizer
from imbalance_jax.data.text import synthetic
from imbalance_jax.data.text.documents import Document
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
    model = tokenizer.model() if tokenizer else get_untrained_tokenizer(source.tokenizer)
    if model is None:
        sample = tokenizers.sample_paragraphs(name, source, read)
        field = f"config.sources.{name}.tokenizer"
        print(f"Training the tokenizer of {name}: {source.tokenizer.vocab_size} pieces", flush=True)
        model = tokenizers.train_tokenizer(field, source.tokenizer, sample)

    with Progress(f"Tokenizing {name}", 1) as progress:
        write(tokenizer=model, documents=_encode_documents(model, read(progress)))
    written = sources.open_source(name, path, pathlib.Path())
    print(f"Prepared {path}: {written.count('train'):,} tokens to train on", flush=True)
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
            )
