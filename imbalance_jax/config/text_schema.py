"""Every field of the text of a run: its sources, their tokenizers, and parallel texts.

As in schema.py, which has the other fields, each is declared once, with type, default and unit.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Literal

from imbalance_jax.config.bounds import GROUP, INT64, Bounds, Count, FieldGroup, Part, Rate, Share

SPECIALS = ("<pad>", "<unk>", "<D>")  # ids 0, 1 and 2 of every tokenizer that we train


@dataclasses.dataclass(frozen=True)
class TokenizerConfig(FieldGroup):
    """The tokenizer of one source."""

    # Number of pieces, with the 3 specials and 256 byte pieces: these take the first 259 ids. Bytes
    # have no others, whatever it says.
    vocab_size: Annotated[int, Bounds(260, 2**24, "is more pieces than a tokenizer has")] = 16384
    # Which algorithm of SentencePiece trains it. bytes: the bytes of UTF-8, without any training.
    model_type: Literal["bpe", "unigram", "bytes"] = "bpe"
    # The share of the text, above 0 to 1, that is covered by the characters with pieces of their
    # own. These are the most frequent characters; all others are written as bytes. Preparation
    # lowers 0.9995, and says so, where the pieces are too few for it.
    character_coverage: Part = 0.9995
    # An existing .model file of SentencePiece, tokenizer.json of Hugging Face, or folder that has
    # the latter. Of the other fields only vocab_size is used then, to estimate what a run takes.
    path: str = ""

    @property
    def is_trained(self) -> bool:
        """Whether it is trained on text, and neither a file nor made of bytes."""
        return not self.path and self.model_type != "bytes"

    @property
    def size(self) -> int:
        """The number of its pieces; that of an existing one is not known here."""
        of_bytes = not self.path and self.model_type == "bytes"
        return len(SPECIALS) + 256 if of_bytes else self.vocab_size


# The words and the tokenizer of a toy language are made at every start, in some seconds.
_Lemmas = Annotated[int, Bounds(1, 1 << 18, "makes a vocabulary of as many words")]
_Depth = Annotated[int, Bounds(1, 12, "makes sentences of more than 4,095 words")]
_Tokens = Annotated[int, Bounds(0, 10**12, "is longer than text without end, which is 0")]
_Number = Annotated[int, Bounds(0, INT64, "does not fit into 64 bits")]


@dataclasses.dataclass(frozen=True)
class SyntheticConfig(FieldGroup):
    """A toy language. `imbalance_jax/data/text/synthetic.py` says what each dial does."""

    world: _Number = 0  # The seed of what is said. Languages of one world are translations.
    language: _Number = 0  # Which language of the world it is: 0, 1, 2 and so on.
    tokens: _Tokens = 0  # Tokens of training text. 0 is text without end, made as it is needed.
    lemmas: _Lemmas = 1024  # Words of the language.
    topics: _Lemmas = 8  # A word's topic decides which words may depend on it. It divides lemmas.
    zipf: Rate = 1.0  # Exponent of the frequencies of the lemmas of a topic.
    depth: _Depth = 3  # Levels of a sentence's tree: a sentence has 2**depth - 1 words.
    # In how many ways the topic of a word chooses the topics of the words below it. 1 is the same
    # way for all words, 0 is one way for each rank of a word within its topic.
    rules: Count = 0
    overlap: Share = 0.0  # The share of lemmas whose word is the same in every language.
    shared_words: bool = False  # All languages choose from one set of words: false friends.
    # Where a word stands among the words that depend on it.
    order: Literal["head_first", "head_middle", "head_last"] = "head_first"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lemmas % self.topics:
            raise ValueError(
                f"{GROUP}.topics={self.topics} does not divide lemmas={self.lemmas}. Set lemmas to "
                "a multiple of topics."
            )


# The kinds of source that read a field; all read the others. Packages are not here:
# `--config.sources.en.kind=files` may be set for a config file that has some.
_KINDS_OF_FIELDS: Mapping[str, tuple[str, ...]] = {
    "train": ("files", "tfds"),
    "validation": ("files", "tfds"),
    "test": ("files", "tfds"),
    "field": ("files", "tfds"),
    "id_field": ("files", "tfds"),
    "markup": ("files", "tfds"),
    "dataset": ("tfds",),
    "dataset_dir": ("tfds",),
}


@dataclasses.dataclass(frozen=True)
class SourceConfig(FieldGroup):
    """A corpus of one tokenizer. Every kind declares all fields and reads its own."""

    # docstrings: documentation in installed packages. files: your own. synthetic: a toy language.
    kind: Literal["docstrings", "files", "tfds", "synthetic"] = "docstrings"
    # files: glob patterns of training text, separated by commas (data/text/patterns.py has all).
    # tfds: the name or slice of a split, such as train[:10%]; "" is the dataset's own.
    train: str = ""
    # As train. files: "" holds out 1 % of the documents of train, chosen by a hash of their ids.
    validation: str = ""
    test: str = ""  # As validation, for the final test.
    # files, tfds: the field or feature that holds the text; with dots if it is nested.
    field: str = "text"
    id_field: str = "id"  # files, tfds: the field with the document's id, if there is one.
    # shared: an id names the same document, such as a translation, in all sources with shared ids.
    ids: Literal["own", "shared"] = "own"
    packages: tuple[str, ...] = ()  # docstrings: top-level packages. () is a fixed list.
    dataset: str = ""  # tfds: a dataset's name and config, such as wiki40b/fr.
    dataset_dir: str = ""  # tfds: the folder of the datasets. "" is TFDS's own choice.
    markup: Literal["none", "wiki40b"] = "none"  # files, tfds: the markup to take out of the text.
    synthetic: SyntheticConfig = SyntheticConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()

    def __post_init__(self) -> None:
        for name, kinds in _KINDS_OF_FIELDS.items():
            value = getattr(self, name)
            if self.kind not in kinds and value != getattr(SourceConfig, name):
                raise ValueError(
                    f"{GROUP}.{name}={value!r} is for text of kind {' or '.join(kinds)}, and "
                    f"{GROUP}.kind={self.kind!r} does not read it. Leave it out, or set "
                    f"{GROUP}.kind={kinds[0]}."
                )
        if self.kind == "files" and not self.train:
            raise ValueError(
                f"{GROUP}.kind='files' needs {GROUP}.train: a .txt, .jsonl or .parquet file (.txt "
                "and .jsonl also as .gz or .zst), or a pattern such as 'text/*.txt'."
            )
        if self.kind == "tfds" and not self.dataset:
            raise ValueError(
                f"{GROUP}.kind='tfds' needs {GROUP}.dataset: a TFDS dataset with its config, such "
                "as wiki40b/fr."
            )

    @property
    def names_ids(self) -> bool:
        """Whether the config relies on ids that the documents have."""
        read = self.kind in ("files", "tfds")
        return read and (self.id_field != SourceConfig.id_field or self.ids == "shared")


@dataclasses.dataclass(frozen=True)
class ParallelConfig:
    """Texts that say the same in two languages, to measure alignment on."""

    sources: tuple[str, ...] = ()  # The two sources that the languages belong to.
    # A .jsonl file (also .gz or .zst) with a pair a line, or two files of lines with a comma
    # between them. "" for synthetic sources.
    path: str = ""
    fields: tuple[str, ...] = ()  # Fields of a line, in the order of sources; () is their names.
