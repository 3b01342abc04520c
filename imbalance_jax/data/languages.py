"""What a language is: a tag, a source, and a map from the source's ids to the model's.

The host moves base ids (those of the source's tokenizer) and one language index per
sequence. The map is a table, applied on the device in the jitted step, so that any layout
of the vocabulary is one gather. A clone is the text of its parent under other ids.
"""

import collections
import dataclasses
import fractions
import io
import random
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np

from imbalance_jax.config import Config, LanguageConfig, VocabularyConfig
from imbalance_jax.runs import damaged_files

# What is equal for pieces of two tokenizers that are the same, and whether it is no text.
PieceKey: TypeAlias = tuple[str | bytes, bool]


@dataclasses.dataclass(frozen=True)
class Pieces:
    """The pieces of a source's tokenizer, and how often its text has them."""

    size: int  # pieces in all
    pad_id: int  # never text; -1 if the tokenizer has none
    special_ids: tuple[int, ...]  # the unknown piece, if there is one, and the separator
    bytes_U: np.ndarray  # UTF-8 bytes that a piece stands for; 0 for specials
    strings: tuple[str, ...] = ()  # the pieces themselves
    counts_U: np.ndarray | None = None  # how often each occurs in the text to train on
    written: tuple[bytes, ...] = ()  # what each writes, and specials nothing; () is the strings
    # Whether a piece writes the same wherever it stands; if not, `written` is a guess.
    has_surfaces: bool = True

    @property
    def separator(self) -> int:
        return self.special_ids[-1]

    @property
    def unknown(self) -> int:
        """The id of what has no piece; -1 if there is none."""
        return self.special_ids[0] if len(self.special_ids) > 1 else -1


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The one vocabulary that a model has for all its languages.

    `map_GU[g, t]` is the model's id for base id t in language g, and `own_GV` says which model
    ids belong to a language.
    """

    tags: tuple[str, ...]
    size: int
    map_GU: np.ndarray  # int32
    own_GV: np.ndarray  # bool
    # The model's id of the separator of documents in each language. vocabulary.npz has none.
    separator_G: np.ndarray | None = None

    def index(self, tag: str) -> int:
        """Returns the row of a language.

        Raises:
          ValueError: the model has no such language.
        """
        if tag not in self.tags:
            raise ValueError(f"There is no language {tag!r}. The run has: {', '.join(self.tags)}.")
        return self.tags.index(tag)

    def base_ids(self, language: int, ids: np.ndarray) -> np.ndarray:
        """Returns the source's ids for the model's; ids of other languages become -1."""
        base_V = np.full(self.size, -1, np.int64)
        base_ids = np.nonzero(self.map_GU[language] >= 0)[0]
        # Backwards, so that the first base id wins where padding shares one id.
        base_V[self.map_GU[language, base_ids[::-1]]] = base_ids[::-1]
        return base_V[ids]

    def to_bytes(self) -> bytes:
        """Returns the tables as the bytes of an .npz file, for the run directory."""
        file = io.BytesIO()
        np.savez_compressed(file, map_GU=self.map_GU, own_GV=self.own_GV)
        return file.getvalue()

    @classmethod
    def from_bytes(
        cls, tags: tuple[str, ...], content: bytes, path: str = "vocabulary.npz", remedy: str = ""
    ) -> "Vocabulary":
        """Returns what `to_bytes` was made from.

        Raises:
          DamagedFileError: it cannot be read, or is of other languages; `path` is its file.
        """
        tables = damaged_files.parse_arrays(content, path, remedy, ("map_GU", "own_GV"))
        map_GU, own_GV = tables["map_GU"], tables["own_GV"]
        whole = map_GU.ndim == own_GV.ndim == 2 and len(map_GU) == len(own_GV) == len(tags)
        if not (whole and map_GU.dtype.kind == "i" and own_GV.dtype == bool):
            shapes = f"{map_GU.dtype}{map_GU.shape} and {own_GV.dtype}{own_GV.shape}"
            problem = f"is not the vocabulary of {len(tags)} languages ({shapes})"
            raise damaged_files.DamagedFileError(path, problem, remedy)
        return cls(tags, own_GV.shape[1], map_GU, own_GV)


def build_vocabulary(config: Config, pieces: Mapping[str, Pieces]) -> Vocabulary:
    """Lays the ids of all languages out in one vocabulary.

    `disjoint` gives every language a slot as wide as its source's tokenizer, in the order of
    `config.tags`. `merged` and `joint` first lay out the languages with a source of their own, in
    the same order. A piece that writes what a piece of an earlier one writes takes its id; the
    others get new ids in the order of their base ids. With a joint tokenizer all of them are equal.
    A special is never the same as a piece of text. Slots for the clones follow.

    In every layout, the languages whose tokenizer has a padding piece share its id. Unused ids,
    such as those that a clone's anchors take the place of, stay in the vocabulary, and so in the
    softmax, as in the reference study.

    Raises:
      ValueError: pieces are to be merged that do not write the same wherever they stand.
    """
    sources = {tag: pieces[config.source_of(tag)] for tag in config.tags}
    ids: dict[str, np.ndarray] = {}  # by tag
    size = 0
    if config.vocabulary.layout == "disjoint":
        for tag, source in sources.items():
            ids[tag] = size + np.arange(source.size)
            size += source.size
    else:
        if config.vocabulary.layout == "merged":
            check_sources_can_merge(
                {config.source_of(tag): each.has_surfaces for tag, each in sources.items()}
            )
        id_of: dict[PieceKey, int] = {}
        for tag, source in sources.items():
            if config.languages[tag].source:
                names = _build_piece_keys(source)
                ids[tag] = np.array([id_of.setdefault(name, len(id_of)) for name in names])
        size = len(id_of)
        for tag, source in sources.items():
            if config.languages[tag].clone_of:
                ids[tag] = size + np.arange(source.size)
                size += source.size

    pads = {tag: source.pad_id for tag, source in sources.items() if source.pad_id >= 0}
    padding = min((int(ids[tag][pad]) for tag, pad in pads.items()), default=0)
    for tag, source in sources.items():
        language = config.languages[tag]
        if language.clone_of:
            anchored_U = ~select_cloned_ids(source, language, config.vocabulary)
            ids[tag] = np.where(anchored_U, ids[language.clone_of], ids[tag])
        if tag in pads:
            ids[tag][pads[tag]] = padding
    size = _assign_separators(config.vocabulary.separator, ids, sources, size)

    widest = max(source.size for source in sources.values())
    map_GU = np.full((len(sources), widest), -1, np.int32)
    own_GV = np.zeros((len(sources), size), bool)
    for row, (tag, source) in enumerate(sources.items()):
        map_GU[row, : source.size] = ids[tag]
        own_GV[row, ids[tag]] = True
    separators = [ids[tag][source.separator] for tag, source in sources.items()]
    return Vocabulary(config.tags, size, map_GU, own_GV, np.array(separators, np.int32))


def check_sources_can_merge(has_surfaces: Mapping[str, bool]) -> None:
    """Raises ValueError if pieces of several sources cannot be compared by what they write.

    Takes `Pieces.has_surfaces` of each source that a language has.
    """
    without = next((name for name, has in has_surfaces.items() if not has), "")
    if without and len(has_surfaces) > 1:
        raise ValueError(
            "config.vocabulary.layout='merged' gives one id to pieces that write the same, but "
            f"what a piece of config.sources.{without}.tokenizer writes depends on the pieces "
            "around it, as with WordPiece. Set config.vocabulary.layout=disjoint, or use a "
            "byte-level or SentencePiece tokenizer."
        )


def _build_piece_keys(pieces: Pieces) -> list[PieceKey]:
    """Returns what makes pieces of two tokenizers equal: what they write, and if it is no text.

    A piece of text that spells "</s>" is not the separator of another tokenizer. A byte piece of
    ASCII, such as <0x41>, stands beside the piece of the character, and is another one.
    """
    no_text = {*pieces.special_ids, pieces.pad_id}
    keys: list[PieceKey] = []
    all_written = pieces.written or [string.encode() for string in pieces.strings]
    for index, (string, written) in enumerate(zip(pieces.strings, all_written, strict=True)):
        beside = written < b"\x80" and string == f"<0x{written[:1].hex().upper()}>"
        by_name = index in no_text or beside or not written
        keys.append((string.encode() if by_name else written, index in no_text))
    # Of pieces that write the same, which a tokenizer of others may have, none is more than a name.
    times = collections.Counter(keys)
    return [
        key if times[key] == 1 else (string, False)
        for key, string in zip(keys, pieces.strings, strict=True)
    ]


def _assign_separators(
    separator: str, ids: Mapping[str, np.ndarray], sources: Mapping[str, Pieces], size: int
) -> int:
    """Gives all languages one separator of documents, or each its own, in place of the layout's.

    Returns the size of the vocabulary, with the ids that were added.
    """
    if separator == "layout":
        return size
    first = next(iter(ids))
    shared, taken = ids[first][sources[first].separator], set()
    for tag, ids_U in ids.items():
        base_id = sources[tag].separator
        if separator == "shared":
            ids_U[base_id] = shared
        elif ids_U[base_id] in taken:
            ids_U[base_id], size = size, size + 1
        taken.add(ids_U[base_id])
    return size


def find_initial_rows(config: Config, vocabulary: Vocabulary) -> np.ndarray:
    """Returns the id whose row of the tables each id starts with: (V,).

    That is its own, but for clones whose rows start as copies of their parent's.
    """
    row_V = np.arange(vocabulary.size)
    for tag, language in config.languages.items():
        if language.rows == "copied":
            own_U = vocabulary.map_GU[vocabulary.index(tag)]
            parent_U = vocabulary.map_GU[vocabulary.index(language.clone_of)]
            row_V[own_U[own_U >= 0]] = parent_U[own_U >= 0]
    return row_V


def select_cloned_ids(
    pieces: Pieces, language: LanguageConfig, vocabulary: VocabularyConfig
) -> np.ndarray:
    """Returns which base ids of a clone get ids of their own; the others are anchors.

    The reference's choice of anchors: all but the first floor((1 - anchors) U) ids of a list
    shuffled by CPython's `random.Random(0)`. The seed is fixed, so a smaller set of anchors
    is part of every larger one; so it is for the most and the least frequent ids.

    Anchors that are a share of tokens are the first ids of their order that hold this share
    of the text, or one less where that comes nearer to it; specials count as no text.
    """
    # Through text, so that 1 - 0.9 is a tenth exactly.
    share = fractions.Fraction(str(language.anchors))
    cloned_U = np.ones(pieces.size, bool)
    if not share:
        return cloned_U
    ordered = _order_anchor_ids(pieces, language.anchor_choice)
    if share == 1 or language.anchor_measure == "ids":
        anchors = pieces.size - int((1 - share) * pieces.size)
    else:
        counts_U = _count_text_pieces(pieces)
        tokens = np.concatenate([[0], np.cumsum(counts_U[ordered])])
        anchors = int(np.argmin(np.abs(tokens - float(share * int(counts_U.sum())))))
    cloned_U[ordered[:anchors]] = False
    if vocabulary.anchor_specials != "reference":
        cloned_U[list(pieces.special_ids)] = vocabulary.anchor_specials == "never"
    return cloned_U


def _order_anchor_ids(pieces: Pieces, choice: str) -> np.ndarray:
    """Returns all base ids, those first that become anchors first."""
    if choice == "reference":
        shuffled = list(range(pieces.size))
        random.Random(0).shuffle(shuffled)
        return np.array(shuffled[::-1])
    counts_U = _count_text_pieces(pieces)
    if choice == "frequent":
        return np.argsort(-counts_U, kind="stable")
    # An id that never occurs is no anchor worth having, so those come last.
    return np.argsort(np.where(counts_U == 0, np.iinfo(np.int64).max, counts_U), kind="stable")


def _count_text_pieces(pieces: Pieces) -> np.ndarray:
    assert pieces.counts_U is not None, "anchors by frequency need the text's counts"
    counts_U = np.array(pieces.counts_U, np.int64)
    counts_U[list(pieces.special_ids)] = 0
    return counts_U


def compute_token_share(pieces: Pieces, ids_U: np.ndarray) -> float:
    """Returns the share of the text's tokens that some base ids hold; specials are no text."""
    counts_U = _count_text_pieces(pieces)
    return float(counts_U[ids_U].sum() / max(1, counts_U.sum()))
