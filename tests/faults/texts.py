"""Files of odd text, together with what has to be read from them."""

import gzip
import json
import pathlib
import random
from typing import NamedTuple

import pyarrow
from pyarrow import parquet

# Pieces that a careless reader would lose, split at, or take for something else.
_PIECES = (
    *("word", "two words", " ", "  ", "\t", "x" * 3000, "0", "null", '{"text": "inner"}', "<D>"),
    *("\n", "\n\n", "\r", "\r\n", "\x0b", "\x0c", "\x1c", "\x1e", "\x85", "\u2028", "\u2029"),
    *("\u2581", "\u2581\u2581", "\ufeff", "\u200b", "\u00a0", "\u0000", "\u0001", "\u001b[31m"),
    *("e\u0301", "\u00e9", "\ufb01", "\u1e9e", "\u0130", "\uac00", "\u1100\u1161", "\u202e"),
    *("\U0001f469\u200d\U0001f680", "\U0010ffff", "\ufffd", "\ufffe", "\ufdd0", "\ue000"),
    *("\ud800", "\udfff", "\ud83d\ude00", "<unk>", "<0x41>", "<s>", "_NEWLINE_", "\\u0041"),
)


class OddFile(NamedTuple):
    """A file and what is in it."""

    path: pathlib.Path
    documents: list[str]  # what has to be read
    about: str
    refused_at: str = ""  # in place of documents: what the refusal has to name


def draw_text(rng: random.Random) -> str:
    """Returns a text of a few pieces and of characters from anywhere in Unicode."""
    pieces = [
        rng.choice(_PIECES)
        if rng.random() < 0.6
        else chr(rng.choice((rng.randrange(0x250), rng.randrange(0x110000))))
        for _ in range(rng.choice((0, 1, 2, 8, 40)))
    ]
    return "".join(pieces)


def replace_surrogates(text: str) -> str:
    """Returns a text as UTF-8 can say it: pairs of surrogates are one character, halves U+FFFD."""
    out: list[str] = []
    for character in text:
        low = "\udc00" <= character <= "\udfff"
        if low and out and "\ud800" <= out[-1] <= "\udbff":
            high = ord(out.pop()) - 0xD800
            out.append(chr(0x10000 + (high << 10) + ord(character) - 0xDC00))
        else:
            out.append(character)
    return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in out)


def write_odd_file(folder: pathlib.Path, rng: random.Random) -> OddFile:
    """Writes a file of odd texts, which in a fifth of the cases is not to be read."""
    kind = rng.choice((".txt", ".jsonl", ".jsonl", ".parquet"))
    made = {".txt": _write_txt, ".jsonl": _write_jsonl}.get(kind)
    if made is None:
        return _write_parquet(folder, rng)
    content, documents, about, refused_at = made(rng)
    compression = rng.choice(("", "", ".gz", ".zst"))
    path = folder / f"odd{kind}{compression}"
    if compression == ".gz":
        content = gzip.compress(content, mtime=0)
    elif compression == ".zst":
        content = _compress_zstd(content)
    if compression and rng.random() < 0.1:
        content = content[: rng.randrange(1, len(content))]
        about, refused_at, documents = f"{about}, compressed data cut", path.name, []
    path.write_bytes(content)
    return OddFile(path, documents, about, refused_at.replace("FILE", path.name))


def _compress_zstd(content: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def _write_txt(rng: random.Random) -> tuple[bytes, list[str], str, str]:
    text = replace_surrogates(draw_text(rng))
    content = text.encode()
    mark = b"\xef\xbb\xbf" if rng.random() < 0.2 else b""
    if rng.random() < 0.2:
        bad = rng.choice(
            (b"\xff", b"\xc3", b"\xe9t\xe9", b"\xed\xa0\x80", "\u00e9".encode("utf-16"))
        )
        content += bad
        # A NUL is looked for first: it tells UTF-16 and what is no text at all.
        end = content.find(b"\0") if b"\0" in content else len(content)
        line = content.count(b"\n", 0, end) + 1
        return mark + content + b"\nmore", [], f"not UTF-8: {bad!r}", f"FILE, line {line}"
    # One mark that begins a file is none of its text, whoever wrote it.
    read = (mark.decode() + text).removeprefix("\ufeff")
    read = "\n".join(read.replace("\r\n", "\n").split("\r"))
    return mark + content, [read], repr(text[:200]), ""


def _write_jsonl(rng: random.Random) -> tuple[bytes, list[str], str, str]:
    lines, documents = [], []
    for number in range(rng.randint(1, 6)):
        text = draw_text(rng)
        record = {"text": text, "other": rng.choice((None, 1.5, [text], {"text": "no"}))}
        if rng.random() < 0.3:
            record = {"id": f"{number}", **record}
        # Characters that JSON may leave as they are, unless UTF-8 cannot say them.
        plain = rng.random() < 0.5 and replace_surrogates(text) == text
        line = json.dumps(record, ensure_ascii=not plain).encode()
        mark = b"\xef\xbb\xbf" if rng.random() < 0.1 else b""
        end = rng.choice((b"\n", b"\n", b"\r\n", b"\n\n", b"\n  \n"))
        lines.append(mark + line + end)
        documents.append(replace_surrogates(text))
    if rng.random() < 0.2:
        bad = rng.choice(
            (
                b"{",
                b"[1]",
                b'"text"',
                b"{}",
                b'{"text": 1}',
                b'{"text": null}',
                b"\xff\xfe",
                b"[" * 100_000,
            )
        )
        before = b"".join(lines)
        where = f"FILE, line {before.count(chr(10).encode()) + 1}"
        return before + bad + b"\n", [], f"a wrong line: {bad[:40]!r}", where
    return b"".join(lines), documents, repr(documents)[:300], ""


def _write_parquet(folder: pathlib.Path, rng: random.Random) -> OddFile:
    documents = [replace_surrogates(draw_text(rng)) for _ in range(rng.randint(1, 80))]
    columns = {"text": documents, "id": [str(number) for number in range(len(documents))]}
    if rng.random() < 0.3:
        columns["text"], columns["other"] = columns["text"], columns["text"][::-1]
    path = folder / "odd.parquet"
    table = pyarrow.table(columns)
    if rng.random() < 0.3:
        table = table.set_column(0, "text", table["text"].dictionary_encode())
    codec = rng.choice(("none", "snappy", "gzip", "zstd"))
    parquet.write_table(table, path, compression=codec, row_group_size=rng.choice((1, 7, 1000)))
    if rng.random() < 0.15:
        content = path.read_bytes()
        path.write_bytes(content[: rng.randrange(1, len(content))])
        return OddFile(path, [], "cut", path.name)
    if rng.random() < 0.1:
        parquet.write_table(pyarrow.table({"text": [*documents, None]}), path)
        return OddFile(path, [], "a null", f"{path.name}, row {len(documents) + 1}")
    if rng.random() < 0.05:
        parquet.write_table(
            pyarrow.Table.from_arrays([documents, documents[::-1]], ["text"] * 2), path
        )
        return OddFile(path, [], "two columns of one name", path.name)
    return OddFile(path, documents, repr(documents)[:300])
