"""Odd text is read exactly as it was written, or refused by file and line."""

import random

from faults.ledger import Case, Fault, Ledger
from faults.texts import OddFile, draw_text, replace_surrogates, write_odd_file
from helpers import write_jsonl

from imbalance_jax.config import SourceConfig, TokenizerConfig
from imbalance_jax.data import prepare
from imbalance_jax.data.text import reading


def check_read(odd: OddFile) -> str:
    """Reads a file in this process, and compares with what was written."""
    source = SourceConfig(kind="files", train=str(odd.path))
    try:
        reading.check_source_text("odd", source)
        read = [document.text for _, document in reading.read_documents("odd", source)]
    except (ValueError, OSError) as error:
        message = str(error)
        if isinstance(error, UnicodeError) or "\n" in message.strip():
            raise Fault("no one line", f"{odd.about} -> {error!r}") from error
        name = odd.refused_at or odd.path.name
        if name not in message:
            raise Fault("no name in the line", f"{odd.about}: {name} -> {message}") from error
        if not odd.refused_at and not is_refusable(odd):
            raise Fault("refused without a reason", f"{odd.about} -> {message}") from error
        return "refused by file and line"
    except Exception as error:
        raise Fault("traceback", f"{odd.about} -> {error!r}") from error
    if odd.refused_at:
        raise Fault("silent difference", f"read what is {odd.about}: {read!r:.300}")
    # A document without text is left out.
    expected = [text for text in odd.documents if text.strip()]
    if sorted(read) != sorted(expected):
        raise Fault("silent difference", f"{odd.about} -> {read!r:.300}")
    return "read exactly"


def is_refusable(odd: OddFile) -> bool:
    """Whether a file that can be read may be refused: it is empty, or no text for its NULs."""
    return not odd.path.stat().st_size or (
        ".txt" in odd.path.name and any("\0" in text for text in odd.documents)
    )


def test_odd_files(ledger: Ledger, tmp_path) -> None:
    def check(case: Case) -> str:
        folder = tmp_path / str(case.number)
        folder.mkdir()
        return check_read(write_odd_file(folder, case.random))

    ledger.run(check, short=150, full=4000)


def test_odd_tokens(ledger: Ledger, english) -> None:
    """What a text says comes back from its ids."""
    tokenizer = english.tokenizer

    def check(case: Case) -> str:
        texts = [replace_surrogates(draw_text(case.random)) for _ in range(20)]
        for text, ids in zip(texts, tokenizer.encode_all(texts), strict=True):
            if tokenizer.separator in ids:
                raise Fault("a separator within a text", repr(text))
            if tokenizer.decode(ids) != text or tokenizer.lost_bytes(text, ids):
                raise Fault("silent difference", f"{text!r} -> {tokenizer.decode(ids)!r}")
        return "read back"

    ledger.run(check, short=10, full=400)


def draw_plain_texts(rng: random.Random) -> list[str]:
    """Returns documents of enough words to train a tokenizer on."""
    words = [f"{rng.choice('abcdefgh')}{number % 97} of the text" for number in range(800)]
    return [" ".join(words[i : i + 40]) for i in range(0, len(words), 40)]


def test_odd_preparations(ledger: Ledger, tmp_path) -> None:
    """A prepared source has the documents and bytes of the text that was written."""

    def check(case: Case) -> str:
        folder = tmp_path / str(case.number)
        folder.mkdir()
        texts = draw_plain_texts(case.random)
        plain = write_jsonl(folder / "plain.jsonl", texts)
        odd = write_odd_file(folder, case.random)
        source = SourceConfig(
            kind="files", train=f"{plain},{odd.path}", tokenizer=TokenizerConfig(vocab_size=300)
        )
        try:
            prepared = prepare.prepare_source("odd", source, str(folder / "data"))
        except (ValueError, OSError) as error:
            if (odd.refused_at or odd.path.name) not in str(error):
                raise Fault("no name in the line", f"{odd.about} -> {error}") from error
            if any((folder / "data").glob("*odd-*")):
                raise Fault("something is left", odd.about) from error
            return "refused by file and line"
        expected = texts + [text for text in odd.documents if text.strip()]
        counts = sum(prepared.about["documents"].values()), sum(prepared.about["bytes"].values())
        if counts != (len(expected), sum(len(text.encode()) for text in expected)):
            raise Fault("silent difference", f"{odd.about}: {counts}")
        tokenizer, read = prepared.tokenizer, []
        for split in ("train", "validation", "test"):
            ids, starts = prepared.tokens(split), list(prepared.documents(split)["start"])
            for first, last in zip(starts, [*starts[1:], len(ids)], strict=True):
                read.append(tokenizer.decode(ids[first : last - 1]))
        if sorted(read) != sorted(expected):
            raise Fault("silent difference", odd.about)
        return "prepared exactly"

    ledger.run(check, short=1, full=60)
