"""What readers of text hand over: documents, and what splits they come in."""

import dataclasses
from collections.abc import Iterator, Sequence

SPLITS = ("train", "validation", "test")


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


@dataclasses.dataclass(frozen=True)
class RawDocuments:
    """What the module of a kind of source hands over: documents before any is held out."""

    documents: Iterator[tuple[str, Document]]  # each with its split, also if without text
    carved: Sequence[str]  # the splits without text of their own
    share: float  # of the documents of train that each of these gets, 0 to 1
