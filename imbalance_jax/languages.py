"""What a language is: a tag, a source, and a map from the source's ids to the model's.

The host moves base ids (those of the source's tokenizer) and one language index per
sequence. The map is a table, applied on the device in the jitted step, so that any layout
of the vocabulary is one gather. A clone is the text of its parent under other ids.
"""

import dataclasses
import fractions
import random
from collections.abc import Mapping

import numpy as np

from imbalance_jax.config import Config, LanguageConfig, VocabularyConfig


@dataclasses.dataclass(frozen=True)
class Pieces:
    """What a language needs to know of its source's tokenizer."""

    size: int  # pieces in all
    pad_id: int  # never text; -1 if the tokenizer has none
    special_ids: tuple[int, ...]  # the unknown piece and the separator of documents
    bytes_U: np.ndarray  # UTF-8 bytes that a piece stands for; 0 for specials


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The one vocabulary that a model has for all its languages.

    `map_GU[g, t]` is the model's id for base id t in language g, `own_GV` says which model
    ids belong to a language, and `bytes_GU` how many UTF-8 bytes a base id stands for.
    """

    tags: tuple[str, ...]
    size: int
    map_GU: np.ndarray  # int32
    own_GV: np.ndarray  # bool
    bytes_GU: np.ndarray  # int32

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
        # Backwards, so that the first base id wins where padding shares one id.
        for base_id in range(self.map_GU.shape[1] - 1, -1, -1):
            if self.map_GU[language, base_id] >= 0:
                base_V[self.map_GU[language, base_id]] = base_id
        return base_V[ids]


def source_of(config: Config, tag: str) -> str:
    """Returns the name of the source whose text a language is written in."""
    language = config.languages[tag]
    return language.source or config.languages[language.clone_of].source


def vocabulary(config: Config, pieces: Mapping[str, Pieces]) -> Vocabulary:
    """Lays the ids of all languages out in one vocabulary.

    Every language gets a slot as wide as its source's tokenizer, in the order of
    `config.tags`; only padding is shared by all. Ids that the anchors of a clone leave
    unused stay in the vocabulary, and so in the softmax, as in the reference study.

    Args:
      pieces: source name -> its tokenizer's pieces.
    """
    sources = {tag: source_of(config, tag) for tag in config.tags}
    sizes = [pieces[sources[tag]].size for tag in config.tags]
    first = dict(zip(config.tags, np.cumsum([0, *sizes[:-1]]).tolist(), strict=True))

    map_GU = np.full((len(sizes), max(sizes)), -1, np.int32)
    own_GV = np.zeros((len(sizes), sum(sizes)), bool)
    bytes_GU = np.zeros_like(map_GU)
    for row, tag in enumerate(config.tags):
        language = config.languages[tag]
        source = pieces[sources[tag]]
        ids_U = np.arange(source.size) + first[tag]
        if language.clone_of:
            anchored_U = ~cloned_ids(source, language, config.vocabulary)
            ids_U = np.where(anchored_U, np.arange(source.size) + first[language.clone_of], ids_U)
        if source.pad_id == 0:
            ids_U[0] = 0
        map_GU[row, : source.size] = ids_U
        own_GV[row, ids_U] = True
        bytes_GU[row, : source.size] = source.bytes_U
    return Vocabulary(config.tags, sum(sizes), map_GU, own_GV, bytes_GU)


def cloned_ids(
    pieces: Pieces, language: LanguageConfig, vocabulary: VocabularyConfig
) -> np.ndarray:
    """Returns which base ids of a clone get ids of their own; the others are anchors.

    The reference's choice: the first floor((1 - anchors) U) ids of a list shuffled by
    CPython's `random.Random(0)`. The seed is fixed, so a smaller set of anchors is part of
    every larger one.
    """
    # Through text, so that 1 - 0.9 is a tenth exactly.
    share = 1 - fractions.Fraction(str(language.anchors))
    shuffled = list(range(pieces.size))
    random.Random(0).shuffle(shuffled)
    cloned_U = np.zeros(pieces.size, bool)
    cloned_U[shuffled[: int(share * pieces.size)]] = True
    if language.anchors and vocabulary.anchor_specials != "reference":
        cloned_U[list(pieces.special_ids)] = vocabulary.anchor_specials == "never"
    return cloned_U
