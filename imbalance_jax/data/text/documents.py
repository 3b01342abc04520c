"""What readers of text hand over: documents, and what splits they come in."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

SPLITS = ("train", "validation", "test")
# Returns what stands for the content of files, by their paths.
DigestFiles: TypeAlias = Callable[[Sequence[str]], Mapping[str, str]]


@dataclasses.dataclass(frozen=True)
class Document:
    """One text; a line of it is a paragraph."""

    id: str  # decides the split, and pairs a document with its versions in other languages
    text: str
    # The source that made the id up from where it found the text; "" where the text gave it.
    named_by: str = dataclasses.field(default="", compare=False)

    @property
    def identity(self) -> str:
        """The id, such that one which is made up is that of no other source's document."""
        return f"\0{self.named_by}\0{self.id}" if self.named_by else self.id


class Record(NamedTuple):
    """What a file says of one document, by the names of fields."""

    consumed: int  # bytes of the file read so far
    number: int | None  # of the line that it begins with, or of the row; None is all of the file
    values: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class RawDocuments:
    """What the module of a kind of source hands over: documents before any is held out."""

    documents: Iterator[tuple[str, Document]]  # each with its split, also if without text
    carved: Sequence[str]  # the splits without text of their own
    share: float = 0.01  # of the documents of train that each of these gets


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """A file of a source. Documents without an id of their own are named after its place."""

    split: str
    path: str
    place: str  # of no other file of the source; the same wherever the corpus lies

    def document(self, name: str, text: str, number: int | None = None) -> Document:
        """Returns a text without an id as a document, which is all of the file or a part."""
        made_up = self.place if number is None else f"{self.place}:{number}"
        return Document(made_up, text, named_by=name)


@functools.cache
def print_once(line: str) -> None:
    """Prints a line unless it was: a text is read for its tokenizer, and again to be encoded."""
    print(line, flush=True)
