"""Toy languages: text without end whose entropy is known, so that a loss has a floor.

What is said is a matter of the *world*. It has `lemmas`, whose number gives their topic
(lemma % topics) and their rank within it (lemma // topics). A sentence is a complete binary
tree of `depth` levels with a lemma at each of its J = 2**depth - 1 nodes:

    the topic of the root is drawn uniformly, that of any other node is *selected* by the lemma
    of its parent, in one way for left children and in another for right ones;
    every rank is drawn by Zipf's law: in proportion to (rank + 1)**-zipf, of the R ranks.

For every rank and side the world has a permutation of its topics, which sends the topic of
the parent to that of the child. So which topic a child has takes the whole parent to tell, yet
over all sentences every node has every topic equally often, and the frequency of each lemma is
known exactly. With `rules` there are so many permutations a side, which the ranks take in turn:
with one the topic of the parent is all that matters, and there is a rule that words of all ranks,
and of all languages of the world, have in common. Sentences are independent of each other.

How it is said is a matter of the *language*: the `order` of words and the lexicon.

    head_first    a parent, all of its left child's words, all of its right child's
    head_middle   all of the left child's words, the parent, all of the right child's
    head_last     all of the left child's words, all of the right child's, the parent

A sentence ends with a piece of its own, and a document is 16 sentences and the separator, so
what lies at a position of a text is arithmetic. Languages that differ in `language`, `order`,
`overlap` and `shared_words` alone are translations of each other, sentence by sentence.

T topics, R ranks of a topic, J nodes (or words) of a sentence, W ids of a window, U base ids.
"""

import functools

import numpy as np

from imbalance_jax import config as config_lib
from imbalance_jax.config import SPECIALS, SyntheticConfig
from imbalance_jax.data.order.keyed_draws import derive_key, draw_bits, permute_indices

VERSION = 1  # part of every fingerprint: raise it when a config begins to yield another text

SENTENCES = 16  # of a document
ENDLESS = 1 << 40  # ids that text without end claims to have
# Ids to evaluate on, about: the documents that it takes to hold as many.
HELD_OUT = {"validation": 65_536, "test": 262_144}

SEPARATOR = 2  # the id after a document
PERIOD = 259  # the id after a sentence, the first one after the bytes
FIRST_WORD = 260  # the id of lemma 0, in every language
CHUNK = 1 << 15  # ids that are made at once: their arrays stay in a core's cache

# What a sentence says follows from these fields, the split and its number alone.
SAID = ("world", "lemmas", "topics", "zipf", "depth", "rules")

_CONSONANTS = "bdfghjklmnprstvz"
_VOWELS = "aeiou"
_SYLLABLES = [consonant + vowel for consonant in _CONSONANTS for vowel in _VOWELS]


class World:
    """What all languages of a world say."""

    def __init__(self, config: SyntheticConfig) -> None:
        self._config = config
        self.words = 2**config.depth - 1
        # The probability of each rank.
        weight_R = (1.0 + np.arange(config.lemmas // config.topics)) ** -config.zipf
        self.p_R = weight_R / weight_R.sum()
        # Without the last end, which is 1 but for rounding.
        self._ends_R = np.cumsum(self.p_R)[:-1]

    @functools.cached_property
    def selects_SRT(self) -> np.ndarray:
        """The topic that a lemma selects, by its rank and topic: for left children, for right."""
        shape = (self._config.lemmas // self._config.topics, self._config.topics)
        lemma_RT = np.arange(self._config.lemmas).reshape(shape)
        if self._config.rules:  # equal ranks up to a multiple of `rules` choose alike
            lemma_RT = lemma_RT[np.arange(len(lemma_RT)) % self._config.rules]
        drawn = [draw_bits(self._key("selects", side), lemma_RT) for side in ("left", "right")]
        return np.argsort(np.stack(drawn), axis=2, kind="stable")

    def sentences(self, split: str, number_n: np.ndarray) -> np.ndarray:
        """Returns the lemmas (J, n) of sentences; the children of node j are 2j + 1 and 2j + 2.

        Each split has sentences of its own, which are numbered from 0 on.
        """
        topics, depth = self._config.topics, self._config.depth
        number_n = np.asarray(number_n, np.int64)
        node_Jn = number_n * self.words + np.arange(self.words)[:, None]
        lemma_Jn = self._draw_ranks(split, node_Jn) * topics
        lemma_Jn[0] += self._draw_topics(split, number_n)
        left, right = self.selects_SRT.reshape(2, -1)
        for level in range(depth - 1):
            # The nodes of a level lie together: 2**level - 1 and those after it.
            first = 2**level - 1
            parents = lemma_Jn[first : 2 * first + 1]
            children = lemma_Jn[2 * first + 1 : 4 * first + 3]
            children[0::2] += left[parents]
            children[1::2] += right[parents]
        return lemma_Jn

    def lemmas(self, split: str, number_n: np.ndarray, node_n: np.ndarray) -> np.ndarray:
        """Returns the lemma (n,) at one node of each sentence, from the draws above it alone."""
        topics = self._config.topics
        lemma_n = np.zeros(len(number_n), np.int64)
        for up in reversed(range(self._config.depth)):
            # The ancestor so many levels up, counted from 1 on; 0 is above the root.
            above_n = (node_n + 1) >> up
            rank_n = self._draw_ranks(split, number_n * self.words + np.maximum(above_n, 1) - 1)
            side_n = above_n % 2  # a left child has an even number
            topic_n = np.where(
                above_n == 1,
                self._draw_topics(split, number_n),
                self.selects_SRT.reshape(2, -1)[side_n, lemma_n],
            )
            lemma_n = np.where(above_n > 0, rank_n * topics + topic_n, lemma_n)
        return lemma_n

    def _draw_ranks(self, split: str, node: np.ndarray) -> np.ndarray:
        """Returns the rank at each node, counted through all sentences."""
        # The 53 bits that a float in [0, 1) holds.
        uniform = (draw_bits(self._key("rank", split), node) >> np.uint64(11)) * 2.0**-53
        return np.searchsorted(self._ends_R, uniform, side="right")

    def _draw_topics(self, split: str, number_n: np.ndarray) -> np.ndarray:
        """Returns the topic at the root of each sentence."""
        drawn_n = draw_bits(self._key("topic", split), number_n)
        return (drawn_n % np.uint64(self._config.topics)).astype(np.int64)

    def _key(self, *purpose: str) -> int:
        return derive_key("synthetic", self._config.world, *purpose)


class SyntheticLanguage:
    """How one language says what its world says."""

    def __init__(self, config: SyntheticConfig) -> None:
        self.config = config
        self.world = World(config)
        self.sentence_length = self.world.words + 1
        self.document_length = SENTENCES * self.sentence_length + 1
        # The last piece is a lone space: no text has it, but a prompt may.
        self.size = FIRST_WORD + config.lemmas + 1
        self.dtype = np.dtype(np.uint16 if self.size <= 1 << 16 else np.uint32)
        self.node_J = np.array(_order_tree_nodes(config.order, 0, self.world.words))  # of each word

    # The lexicon.

    def shared(self) -> np.ndarray:
        """Returns the lemmas whose word is the same in every language.

        They are the first round(overlap * lemmas) of an order of the world's, so that a smaller
        overlap is part of every larger one.
        """
        return self._by_overlap()[: self._num_shared]

    @property
    def _num_shared(self) -> int:
        return round(self.config.overlap * self.config.lemmas)

    def _by_overlap(self) -> np.ndarray:
        drawn = draw_bits(
            derive_key("synthetic", self.config.world, "overlap"), np.arange(self.config.lemmas)
        )
        return np.argsort(drawn, kind="stable")

    def words(self) -> list[str]:
        """Returns the word of each lemma.

        A lemma has a stem of syllables. The stem is the word that all languages can have; a
        word of a language's own ends in consonants that spell the language's number. So no two
        lemmas or languages can meet in one word, whatever their numbers and sizes.

        With `shared_words` the lemmas outside the overlap, in the order in which an overlap
        would take them in, have the stem that lies as many places further on as the language
        has its number. So two languages have the same word for none of them, unless their
        numbers differ by a multiple of how many these are.
        """
        config = self.config
        stems = _make_word_stems(config.lemmas)
        own = self._by_overlap()[self._num_shared :]
        words = list(stems)
        if config.shared_words:
            for lemma, other in zip(own, np.roll(own, -config.language), strict=True):
                words[lemma] = stems[other]
        else:
            ending = "".join(_CONSONANTS[int(digit, 16)] for digit in f"{config.language:x}")
            for lemma in own:
                words[lemma] = stems[lemma] + ending
        return words

    def pieces(self) -> list[str]:
        """Returns the string of each piece: specials, bytes, the period, words, a space."""
        bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
        words = ["\u2581" + word for word in self.words()]
        return [*SPECIALS, *bytes_, ".", *words, "\u2581"]

    def model(self) -> bytes:
        """Returns a SentencePiece model of the pieces, with the flags of those that we train.

        A word is one piece with the space before it, and no other piece has a space, so there
        is one way to cut a sentence. What is no word is written in bytes.
        """
        from sentencepiece import sentencepiece_model_pb2

        # Protobuf makes its classes when the module is imported.
        model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
        piece = model.SentencePiece
        pad, unknown, separator = SPECIALS
        kinds = {pad: piece.CONTROL, unknown: piece.UNKNOWN, separator: piece.CONTROL}
        for index, string in enumerate(self.pieces()):
            kind = kinds.get(string, piece.BYTE if index < PERIOD else piece.NORMAL)
            model.pieces.add(piece=string, score=0.0, type=kind)
        trainer, normalizer = model.trainer_spec, model.normalizer_spec
        trainer.model_type, trainer.vocab_size = trainer.UNIGRAM, self.size
        trainer.byte_fallback = True
        trainer.control_symbols.append(separator)
        trainer.pad_piece, trainer.unk_piece = pad, unknown
        trainer.pad_id, trainer.unk_id, trainer.bos_id, trainer.eos_id = 0, 1, -1, -1
        normalizer.name = "identity"
        normalizer.add_dummy_prefix = normalizer.remove_extra_whitespaces = False
        return model.SerializeToString(deterministic=True)

    # Text.

    def sentences(self, split: str, number_n: np.ndarray) -> np.ndarray:
        """Returns the ids (n, J + 1) of sentences of a split, each with its period."""
        lemma_Jn = self.world.sentences(split, number_n)
        ids = np.full((lemma_Jn.shape[1], self.sentence_length), PERIOD, self.dtype)
        ids[:, :-1] = lemma_Jn[self.node_J].T + FIRST_WORD
        return ids

    def ids(self, split: str, starts_n: np.ndarray, W: int) -> np.ndarray:
        """Returns the W ids from each start on: (n, W), of self.dtype.

        The text of a split begins at position 0 and has no end here. Starts go up to 2**40.
        """
        starts_n = np.asarray(starts_n, np.int64)
        ids_nW = np.empty((len(starts_n), W), self.dtype)
        for column in range(0, W, CHUNK):
            width = min(CHUNK, W - column)
            rows = -(-CHUNK // (width + 2 * self.sentence_length))
            for row in range(0, len(starts_n), rows):
                some_n = starts_n[row : row + rows] + column
                ids_nW[row : row + rows, column : column + width] = self._ids(split, some_n, width)
        return ids_nW

    def _ids(self, split: str, starts_n: np.ndarray, W: int) -> np.ndarray:
        length = self.sentence_length
        place_nW = starts_n[:, None] + np.arange(W)
        document_nW = place_nW // self.document_length
        place_nW -= document_nW * self.document_length
        is_separator_nW = place_nW == self.document_length - 1
        # A separator counts as a place of the sentence after it, which begins the next document.
        sentence_nW = place_nW // length
        place_nW -= sentence_nW * length
        sentence_nW += document_nW * SENTENCES
        # The sentences that a window can reach into: it may begin with the last id of one.
        reach = 1 + (W - 1 + self.world.words) // length
        first_n1 = sentence_nW[:, :1]
        sentences = self.sentences(split, (first_n1 + np.arange(reach)).reshape(-1))
        index_nW = (sentence_nW - first_n1) * length + place_nW
        ids_nW = np.take_along_axis(sentences.reshape(-1, reach * length), index_nW, axis=1)
        ids_nW[is_separator_nW] = SEPARATOR
        return ids_nW

    def ids_at(self, split: str, place_n: np.ndarray) -> np.ndarray:
        """Returns the id at each of any places of a split: (n,), of self.dtype.

        It takes no other word of the sentences that they are in.
        """
        document_n, inside_n = np.divmod(place_n, self.document_length)
        sentence_n, word_n = np.divmod(inside_n, self.sentence_length)
        ends_n = word_n == self.world.words
        is_separator_n = inside_n == self.document_length - 1
        node_n = self.node_J[np.where(ends_n, 0, word_n)]
        # A separator takes the place of the first word of the next document.
        lemma_n = self.world.lemmas(split, document_n * SENTENCES + sentence_n, node_n)
        ids_n = np.where(ends_n, PERIOD, lemma_n + FIRST_WORD)
        return np.where(is_separator_n, SEPARATOR, ids_n).astype(self.dtype)

    def num_documents(self, split: str) -> int:
        """Returns how many documents a split has; without end, how many ENDLESS ids hold."""
        if split == "train" and not self.config.tokens:
            return ENDLESS // self.document_length
        ids = self.config.tokens if split == "train" else HELD_OUT[split]
        return -(-ids // self.document_length)

    def document_id(self, split: str, number: int) -> str:
        """Returns the id that a document and its translations have, and no other."""
        return f"synthetic/{self._said}/{split}/{number}"

    @functools.cached_property
    def _said(self) -> str:
        plain = config_lib.to_dict(self.config, leave_out=config_lib.NEWER)
        said = {name: plain[name] for name in SAID if name in plain}
        return config_lib.hash_plain_values([VERSION, said])

    def text(self, split: str) -> "LazyTokens":
        endless = split == "train" and not self.config.tokens
        size = ENDLESS if endless else self.num_documents(split) * self.document_length
        return LazyTokens(self, split, size)

    # What is known of it.

    def shares_U(self) -> np.ndarray:
        """Returns the share that each id has of all ids of the text, exactly."""
        share_U = np.zeros(self.size)
        share_U[SEPARATOR] = 1
        share_U[PERIOD] = SENTENCES
        p_RT = np.repeat(self.world.p_R / self.config.topics, self.config.topics)
        share_U[FIRST_WORD : FIRST_WORD + self.config.lemmas] = SENTENCES * self.world.words * p_RT
        return share_U / self.document_length


class LazyTokens:
    """All ids of a split, made where they are looked at."""

    def __init__(self, language: SyntheticLanguage, split: str, size: int) -> None:
        self.language, self.split, self._size = language, split, size
        self.dtype = language.dtype

    def __len__(self) -> int:
        return self._size

    def read_all(self) -> np.ndarray:
        """Returns all ids as one array; not of text without end."""
        return self.windows(np.zeros(1, np.int64), self._size)[0]

    def windows(self, starts_n: np.ndarray, W: int) -> np.ndarray:
        """Returns the ids (n, W) from each start on.

        Raises:
          IndexError: a window is not inside the text.
        """
        starts_n = np.asarray(starts_n, np.int64)
        if len(starts_n) and not 0 <= starts_n.min() <= starts_n.max() <= self._size - W:
            raise IndexError(f"A window of {W} ids is not inside a text of {self._size} ids.")
        return self.read(starts_n, W)

    def read(self, starts_n: np.ndarray, W: int) -> np.ndarray:
        """Returns what `windows` does, of windows that are inside the text."""
        return self.language.ids(self.split, starts_n, W)


def _order_tree_nodes(order: str, node: int, count: int) -> list[int]:
    """Returns the nodes below and with one, in the order of their words; count is of all."""
    if node >= count:
        return []
    left, right = (_order_tree_nodes(order, child, count) for child in (2 * node + 1, 2 * node + 2))
    if order == "head_first":
        return [node, *left, *right]
    return [*left, node, *right] if order == "head_middle" else [*left, *right, node]


def _make_word_stems(count: int) -> list[str]:
    """Returns as many different words of syllables, each of equally many letters."""
    base, syllables = len(_SYLLABLES), 2
    while base**syllables < count:
        syllables += 1
    # Scattered over all that are possible: frequent words look no more alike than others.
    code_n = permute_indices(derive_key("synthetic", "stems"), np.arange(count), base**syllables)
    parts = [np.array(_SYLLABLES)[code_n // base**place % base] for place in range(syllables)]
    return ["".join(part) for part in zip(*parts, strict=True)]
