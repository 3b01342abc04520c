"""What is taken of a text while it is read, and what is left out of it.

A text with a cap is read up to it. The cap counts what there is to train on; documents that are
held out of it by their ids are those of the part that is read. Validation and test text of its
own is read up to `HELD_OUT_BYTES` of each, whatever the cap, so that sources of different caps
have the same.

What there is to train on ends with the document that reaches `max_documents`. How many tokens it
has is known once it is encoded: whoever encodes it ends it there. So that other passes over the
text end too, no more is read of it than `bytes_a_token` for each of `max_tokens`.
"""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from imbalance_jax.config import SourceConfig

# Bytes of text for each of max_tokens that are read at most: more than any tokenizer has.
MOST_BYTES_A_TOKEN = 16
# The same, of what a tokenizer is trained on: about what it comes to have.
USUAL_BYTES_A_TOKEN = 4
HELD_OUT_BYTES = 20_000_000  # of each split with text of its own, where a cap is set
_BAD_LINES = 1000  # after which a text is refused, if no line of it could be read
_PART = 1 << 22  # characters that are encoded at once


@dataclasses.dataclass
class Selection:
    """What is taken of a source's text in one pass over it. Reading fills it in.

    Whoever reads ends a split by adding it to `ended`; readers look there after each document.
    """

    bytes_a_token: int = MOST_BYTES_A_TOKEN
    left_out: Counter[str] = dataclasses.field(default_factory=Counter)  # documents, by reason
    # The split of the text to train on, and those that are held out of it.
    carved: Collection[str] = ("train",)
    ended: set[str] = dataclasses.field(default_factory=set)  # of those that have text of their own
    opened: list[str] = dataclasses.field(default_factory=list)  # the files that were read
    # Of texts that are not trained on; None before a pass has collected them.
    removed: frozenset[int] | None = None
    readable: int = 0  # lines or records that could be read
    first_error: ValueError | None = None  # of those that could not
    documents: int = 0  # to train on so far, those that are removed among them
    bytes: Counter[str] = dataclasses.field(default_factory=Counter)  # by split, where a cap is set

    def count(self, source: SourceConfig, own: str, split: str, text: str) -> None:
        """Counts a document, and ends its split where that has enough of them.

        Args:
          own: the split that its file or record belongs to.
          split: the one that it is in.
        """
        self.documents += split == "train"
        if not has_cap(source):
            return
        if own == split:
            self.bytes[split] += len(text.encode())
        if own != "train":
            enough = self.bytes[own] >= HELD_OUT_BYTES
        else:
            enough = self.compute_progress(source) >= 1
        if enough:
            self.ended.add(own)

    def leave_out(self, error: ValueError) -> None:
        """Counts a line or record that cannot be read, or raises where none of the first can."""
        self.left_out["bad_lines"] += 1
        self.first_error = self.first_error or error
        if not self.readable and self.left_out["bad_lines"] >= _BAD_LINES:
            raise self.first_error

    def compute_progress(self, source: SourceConfig) -> float:
        """Returns which share of its cap a text has reached; 0 where there is none."""
        shares = [0.0]
        if source.max_documents:
            shares.append(self.documents / source.max_documents)
        if source.max_tokens:
            shares.append(self.bytes["train"] / (source.max_tokens * self.bytes_a_token))
        return max(shares)


def has_cap(source: SourceConfig) -> bool:
    return bool(source.max_documents or source.max_tokens)


# What the reasons for which documents are left out say of them.
_REASONS = {
    "where": "that do not meet where",
    "bad_lines": "that cannot be read",
    "empty": "without text",
    "held_out_duplicates": "with the text of a held-out one",
}


def describe_left_out(field: str, about: Mapping[str, Any]) -> list[str]:
    """Returns lines on what prepared text lacks, and on what it has in train and held out.

    Args:
      field: names the source.
      about: its `source.json`, or what provenance.json has of it.
    """
    lines = []
    documents = about["documents"]
    left_out = {reason: count for reason, count in about.get("left_out", {}).items() if count}
    if left_out:
        whole = sum(documents.values()) + sum(left_out.values())
        reasons = [f"{count:,} {_REASONS[reason]}" for reason, count in left_out.items()]
        lines.append(
            f"{field}: {sum(left_out.values()):,} of {whole:,} documents were left out: "
            f"{', '.join(reasons)}."
        )
    twice = about.get("duplicates", {})
    if twice.get("train"):
        held_out = sum(documents.values()) - documents["train"]
        lines.append(
            f"{field}: {twice['train']:,} of {documents['train']:,} documents to train on "
            f"({twice['train'] / documents['train']:.1%}) have the text of a held-out document, "
            f"which {twice['held_out']:,} of {held_out:,} held-out documents "
            f"({twice['held_out'] / held_out:.1%}) have in common with them. "
            f"{field}.held_out_duplicates=remove leaves them out of training."
        )
    return lines


def hash_text(text: str) -> int:
    """Returns 64 bits that stand for a text, without a copy of a long one."""
    digest = hashlib.blake2b(digest_size=8)
    for start in range(0, len(text), _PART):
        digest.update(text[start : start + _PART].encode())
    return int.from_bytes(digest.digest(), "little")
