"""What lies in a file becomes records, one for each document.

`read_records` reads every format; what a record becomes is said where it is used.

    jsonl           a JSON object a line
    text            plain text; a document is the file, a line, or what stands between blank lines
    tsv             columns with tabs between them, a line each; fields are numbers from 1 on, or
                    the names in the first line if the field of the text is such a name
    conllu          `# text` of sentences, a line each; a document begins at `# newdoc`
    wiki_extractor  <doc id="..." url="..." title="..."> to </doc>, without the line of the title
    tmx             translations, a field for each language
    parquet, arrow  a row (columns.py)

Lines of plain text, tsv, conllu and wiki_extractor end at a line feed, or a carriage return and a
line feed. A .txt file that is one document may also have lines that end at a carriage return.
"""

import html
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn
from xml.etree import ElementTree

from imbalance_jax.data.text import columns, files
from imbalance_jax.data.text import fields as fields_lib
from imbalance_jax.data.text.documents import Record
from imbalance_jax.data.text.fields import WantedField

# By the ending of a file's name, without that of its compression.
ENDINGS: Mapping[str, str] = {
    ".txt": "text",
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".ndjson": "jsonl",
    ".tsv": "tsv",
    ".conllu": "conllu",
    ".tmx": "tmx",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
UNTYPED = ("tsv", "conllu", "wiki_extractor", "tmx")  # whose values are all texts
OnBadLine = Callable[[ValueError], None]
_BEGINNING = 1 << 16  # bytes of a file that are looked at before it is read
_WIKI_ATTRIBUTE = re.compile(r'(\w+)="(.*?)"(?= \w+="|>$)')
_XML_LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"


def find_format(path: str, stated: str = "auto") -> str:
    """Returns the format of a file, by its ending where none is stated; "" if it is unknown."""
    if stated != "auto":
        return stated
    return ENDINGS.get(os.path.splitext(files.split_compression(path)[0])[1], "")


def describe_endings(of: Sequence[str] = tuple(ENDINGS.values())) -> str:
    """Returns the endings that say what a file is, of some formats, for a message."""
    endings = {ending: format_ for ending, format_ in ENDINGS.items() if format_ in of}
    tables = [ending for ending, format_ in endings.items() if format_ in columns.KINDS]
    lines = [ending for ending in endings if ending not in tables]
    compressed = ", ".join(files.COMPRESSIONS)
    return f"{', '.join(lines)} (each also with {compressed}), {', '.join(tables)}"


def raise_bad_line(error: ValueError) -> NoReturn:
    raise error


def read_records(
    path: str,
    file_format: str,
    documents: str,
    wanted: Sequence[WantedField],
    on_bad_line: OnBadLine = raise_bad_line,
) -> Iterator[Record]:
    """Yields the records of a file, with the wanted fields and any others that cost nothing.

    A line that is not what it should be is handed to `on_bad_line`, and left out if that returns.

    Raises:
      ValueError: the file cannot be read as what it should be.
    """
    if file_format in columns.KINDS:
        yield from columns.read_column_records(path, file_format, wanted, on_bad_line)
    elif file_format == "jsonl":
        yield from _read_json_lines(path, wanted, on_bad_line)
    elif file_format == "tmx":
        yield from _read_translation_units(path)
    elif file_format == "text" and documents == "file":
        yield from _read_whole_text(path, on_bad_line)
    else:
        lines = _read_text_lines(path, on_bad_line)
        if file_format == "tsv":
            yield from _split_columns(lines, wanted)
        elif file_format == "conllu":
            yield from _join_sentences(path, lines, on_bad_line)
        elif file_format == "wiki_extractor":
            yield from _join_articles(path, lines, on_bad_line)
        elif documents == "line":
            for consumed, number, line in lines:
                yield Record(consumed, number, {"text": line})
        else:
            yield from _join_paragraphs(lines)


def get_wanted_value(record: Record, field: WantedField, path: str, file_format: str) -> Any:
    """Returns the value of a field; None where a record lacks an id or a value.

    Raises:
      ValueError: it has no such text, or what is there is no text or no id.
    """
    value = record.values.get(field.name, fields_lib.ABSENT)
    if type(value) is str:  # most are
        return files.replace_lone_surrogates(value)
    if value is fields_lib.ABSENT:
        value = fields_lib.find_field_value(record.values, field.name)
    if value is fields_lib.ABSENT:
        if field.kind != "text":
            return None
        raise ValueError(
            f"{describe_place(path, file_format, record.number)}: has no field {field.name!r}; it "
            f"has: {fields_lib.format_field_names(record.values)}. Set {field.setting}."
        )
    is_id = field.kind == "id" and (value is None or type(value) is int)
    if not (isinstance(value, str) or is_id or field.kind == "value"):
        what, kind = "field", f"JSON {files.name_json_type(value)}"
        if file_format in columns.KINDS:
            what, kind = "column", f"{columns.KINDS[file_format]} {files.name_json_type(value)}"
        raise ValueError(
            f"{describe_place(path, file_format, record.number)}: its {what} {field.name!r} is a "
            f"{kind}, not a string. Set {field.setting}."
        )
    return files.replace_lone_surrogates(value) if isinstance(value, str) else value


def describe_place(path: str, file_format: str, number: int | None) -> str:
    unit = "row" if file_format in columns.KINDS else "unit" if file_format == "tmx" else "line"
    return f"{path}, {unit} {number}" if number else path


# Beginnings


def check_beginning(path: str, file_format: str) -> None:
    """Raises ValueError if the beginning of a file shows that it is of another format."""
    begins = files.read_file_beginning(path, _BEGINNING)
    if file_format == "text":
        _check_no_nul(begins, path)
    if file_format != "jsonl":
        return
    first = begins.removeprefix(b"\xef\xbb\xbf").lstrip()
    line = first.partition(b"\n")[0].strip()
    stem = os.path.splitext(files.split_compression(path)[0])[0]
    for one, looks, program in (
        ("array", first.startswith(b"["), "'.[]'"),
        ("object", line == b"{", "."),
    ):
        if looks:
            raise ValueError(
                f"{path}: is one JSON {one} over the whole file, not an object a line. Convert it: "
                f"{format_reading_command(path)} | jq -c {program} > {stem}.lines.jsonl"
            )


def format_reading_command(path: str) -> str:
    """Returns the command of a shell that writes the content of a file."""
    programs = {".gz": "gzip -dc", ".zst": "zstd -dc", ".xz": "xz -dc", ".bz2": "bzip2 -dc"}
    return f"{programs.get(files.split_compression(path)[1], 'cat')} {path}"


def _check_no_nul(data: bytes, path: str) -> None:
    """Raises ValueError if a file begins with a NUL byte in it, as UTF-16 and binaries have."""
    place = data.find(b"\0")
    if place >= 0:
        line = data.count(b"\n", 0, place) + 1
        raise ValueError(
            f"{path}, line {line}: has a NUL byte (at offset {place} of the file), so it is no "
            "text in UTF-8. Convert the file to UTF-8, or remove what is no text."
        )


# Lines


def _read_json_lines(
    path: str, wanted: Sequence[WantedField], on_bad_line: OnBadLine
) -> Iterator[Record]:
    check_beginning(path, "jsonl")
    texts = (f'"{field.name}": "..."' for field in wanted if field.kind == "text")
    example = f"{{{', '.join(texts)}}}"
    for number, (consumed, line) in enumerate(files.read_file_lines(path), start=1):
        if not line.strip():
            continue
        try:
            values = files.parse_json_object(line, path, number, example)
        except ValueError as error:
            on_bad_line(error)
        else:
            yield Record(consumed, number, values)


def _read_text_lines(path: str, on_bad_line: OnBadLine) -> Iterator[tuple[int, int, str]]:
    """Yields (bytes of the file consumed so far, number of the line, line without its end)."""
    check_beginning(path, "text")
    for number, (consumed, data) in enumerate(files.read_file_lines(path), start=1):
        try:
            line = files.decode_utf8(data, path, number)
        except ValueError as error:
            on_bad_line(error)
        else:
            yield consumed, number, line.removesuffix("\n").removesuffix("\r")


def _read_whole_text(path: str, on_bad_line: OnBadLine) -> Iterator[Record]:
    data = b"".join(line for _, line in files.read_file_lines(path))
    try:
        _check_no_nul(data, path)
        text = files.decode_utf8(data, path, of="file")
    except ValueError as error:
        on_bad_line(error)
    else:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        yield Record(os.path.getsize(path), None, {"text": text})


def _join_paragraphs(lines: Iterator[tuple[int, int, str]]) -> Iterator[Record]:
    """Yields what stands between blank lines, which have white space at most."""
    consumed, begun, paragraphs = 0, 0, list[str]()
    for consumed, number, line in lines:
        if line.strip():
            begun = begun if paragraphs else number
            paragraphs.append(line)
        elif paragraphs:
            yield Record(consumed, begun, {"text": "\n".join(paragraphs)})
            paragraphs = []
    if paragraphs:
        yield Record(consumed, begun, {"text": "\n".join(paragraphs)})


def _split_columns(
    lines: Iterator[tuple[int, int, str]], wanted: Sequence[WantedField]
) -> Iterator[Record]:
    has_names = any(field.kind == "text" and not field.name.isdecimal() for field in wanted)
    names: list[str] = []
    for consumed, number, line in lines:
        cells = line.split("\t")
        if has_names and not names:
            names = cells
        elif line.strip():
            values = {str(column): cell for column, cell in enumerate(cells, start=1)}
            yield Record(consumed, number, values | dict(zip(names, cells, strict=False)))


def _join_sentences(
    path: str, lines: Iterator[tuple[int, int, str]], on_bad_line: OnBadLine
) -> Iterator[Record]:
    """Yields the documents of a treebank; without `# newdoc`, all of the file."""
    consumed = 0
    begun: int | None = None
    document_id: str | None = None
    texts: list[str] = []
    first_word, has_text = 0, False  # of the sentence

    def end_document() -> Iterator[Record]:
        if texts and not "".join(texts).strip("_ "):
            on_bad_line(
                ValueError(
                    f"{describe_place(path, 'conllu', begun)}: the text is left out, with _ in "
                    "place of words. Put it in with the program that comes with the treebank."
                )
            )
        elif texts:
            yield Record(consumed, begun, {"text": "\n".join(texts), "id": document_id})

    for consumed, number, line in lines:  # noqa: B007
        if line.startswith("#"):
            key, _, value = (part.strip() for part in line[1:].partition("="))
            if key in ("newdoc", "newdoc id"):
                yield from end_document()
                texts, begun, document_id = [], number, value
            elif key == "text":
                texts.append(value)
                has_text = True
        elif line.strip():
            first_word = first_word or number
        else:
            if first_word and not has_text:
                on_bad_line(
                    ValueError(
                        f"{path}, line {first_word}: the sentence has no line '# text = ' above "
                        "its words. Use a release of the treebank that has them."
                    )
                )
            first_word, has_text = 0, False
    yield from end_document()


def _join_articles(
    path: str, lines: Iterator[tuple[int, int, str]], on_bad_line: OnBadLine
) -> Iterator[Record]:
    begun = 0  # the line of <doc>; 0 is outside
    values: dict[str, str] = {}
    body: list[str] = []
    for consumed, number, line in lines:
        if line.startswith('<doc id="'):
            begun, body = number, []
            values = {name: html.unescape(value) for name, value in _WIKI_ATTRIBUTE.findall(line)}
        elif line == "</doc>" and begun:
            # The title stands above the text, with an empty line between them.
            if body and html.unescape(body[0]) == values.get("title"):
                body = body[1:]
            yield Record(consumed, begun, {**values, "text": "\n".join(body).strip("\n")})
            begun = 0
        elif begun:
            body.append(line)
        elif line.strip():
            on_bad_line(
                ValueError(
                    f"{path}, line {number}: stands outside of <doc ...> and </doc>, which "
                    "format=wiki_extractor reads. For what WikiExtractor writes with --json, set "
                    "format=jsonl."
                )
            )
    if begun:
        on_bad_line(
            ValueError(f"{path}, line {begun}: its <doc> has no </doc>. Copy the file again.")
        )


def _read_translation_units(path: str) -> Iterator[Record]:
    parser: Any = ElementTree.XMLPullParser(("start", "end"))
    above: list[ElementTree.Element] = []
    number = 0
    try:
        for consumed, line in files.read_file_lines(path):
            parser.feed(line)
            for event, element in parser.read_events():
                if event == "start":
                    above.append(element)
                    continue
                above.pop()
                if element.tag == "tu":
                    number += 1
                    yield Record(consumed, number, _parse_translation_unit(element))
                    above[-1].clear()  # what has been read
        parser.close()
    except ElementTree.ParseError as error:
        raise ValueError(f"{path}: is not valid XML ({error}). Copy the file again.") from error


def _parse_translation_unit(unit: ElementTree.Element) -> dict[str, str]:
    texts: dict[str, str] = {}
    for variant in unit.iter("tuv"):
        segment = variant.find("seg")
        language = variant.get(_XML_LANGUAGE) or variant.get("lang") or ""
        if segment is not None:
            texts.setdefault(language, "".join(segment.itertext()))
    return texts
