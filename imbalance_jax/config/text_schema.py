"""Every field of the text of a run: its sources, their tokenizers, and parallel texts.

As in schema.py, which has the other fields, each is declared once, with type, default and unit.
"""

import dataclasses
import itertools
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


FileFormat = Literal[
    "auto", "jsonl", "text", "tsv", "conllu", "wiki_extractor", "tmx", "parquet", "arrow"
]

# The kinds of source that read a field; all read the others. Packages are not here:
# `--config.sources.en.kind=files` may be set for a config file that has some.
_KINDS_OF_FIELDS: Mapping[str, tuple[str, ...]] = {
    "train": ("files", "tfds"),
    "validation": ("files", "tfds"),
    "test": ("files", "tfds"),
    "field": ("files", "tfds"),
    "id_field": ("files", "tfds"),
    "markup": ("files", "tfds"),
    "format": ("files",),
    "documents": ("files",),
    "max_documents": ("files", "tfds"),
    "max_tokens": ("files", "tfds"),
    "where": ("files", "tfds"),
    "on_bad_line": ("files", "tfds"),
    "held_out_duplicates": ("files", "tfds"),
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
    # files: what the files are (data/text/formats.py). auto: as the ending of each one's name says.
    format: FileFormat = "auto"
    # files: what a document of plain text is: a file, a line, or what is between blank lines.
    documents: Literal["file", "line", "blank_line"] = "file"
    # shared: an id names the same document, such as a translation, in all sources with shared ids.
    ids: Literal["own", "shared"] = "own"
    packages: tuple[str, ...] = ()  # docstrings: top-level packages. () is a fixed list.
    dataset: str = ""  # tfds: a dataset's name and config, such as wiki40b/fr.
    dataset_dir: str = ""  # tfds: the folder of the datasets. "" is TFDS's own choice.
    markup: Literal["none", "wiki40b"] = "none"  # files, tfds: the markup to take out of the text.
    # files, tfds: reading ends when there are so many documents to train on. 0 is all.
    max_documents: _Number = 0
    max_tokens: _Number = 0  # As max_documents, in tokens: the last document is read to its end.
    # files, tfds: conditions on fields that a document has to meet, with commas between them, such
    # as language_score >= 0.9, doc_scores.0 > 5, language == 'fra'. "" takes all documents.
    where: str = ""
    # files, tfds: error ends preparing at a line or record that cannot be read. skip leaves it out.
    on_bad_line: Literal["error", "skip"] = "error"
    # files, tfds: whether documents whose text is that of a held-out one stay in the text to train
    # on. They are counted in either case.
    held_out_duplicates: Literal["keep", "remove"] = "keep"
    synthetic: SyntheticConfig = SyntheticConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
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
                "and .jsonl also as .gz, .zst, .xz or .bz2), or a pattern such as 'text/*.txt'."
            )
        if self.documents != "file" and self.format not in ("auto", "text"):
            raise ValueError(
                f"{GROUP}.documents={self.documents!r} is for plain text, and {GROUP}.format="
                f"{self.format!r} has documents of its own. Leave documents out."
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
    """Texts that say the same in two languages or more, to measure alignment on."""

    # The sources that the languages belong to. Of more than two, each two are compared.
    sources: tuple[str, ...] = ()
    # A file with a field for each source, such as .jsonl, .tsv, .tmx or .parquet. Or two files with
    # a comma between them, or with {source} in place of the name of any number of sources. "" for
    # synthetic sources.
    path: str = ""
    # Fields of a line, in the order of sources; () is their names. Of a file for each source: the
    # one field that holds the text, if it is not plain lines.
    fields: tuple[str, ...] = ()
    # What says the same in files of one source each: equal lines, or equal ids in the field join.
    join: str = "line"
    format: FileFormat = "auto"  # As of a source. auto: unknown endings of two files are text.

    @property
    def pattern(self) -> str:
        """The path, or the paths with the name of each source in place of {source}."""
        paths = (self.path.replace("{source}", source) for source in self.sources)
        return ",".join(paths) if "{source}" in self.path else self.path


def list_pair_sets(parallel: Mapping[str, ParallelConfig]) -> dict[str, ParallelConfig]:
    """Returns sets of two sources each, by name.

    A set of more, such as flores, is flores:en-fr and so on, which are what a set of these two
    sources would be.
    """
    pairs: dict[str, ParallelConfig] = {}
    for name, of_all in parallel.items():
        if len(of_all.sources) <= 2:
            pairs[name] = of_all
            continue
        numbers = range(len(of_all.sources))
        for two in itertools.combinations(numbers, 2):
            sources = tuple(of_all.sources[number] for number in two)
            fields = of_all.fields
            if len(fields) > 1:
                fields = tuple(fields[number] for number in two)
            pairs[f"{name}:{'-'.join(sources)}"] = dataclasses.replace(
                of_all, sources=sources, fields=fields
            )
    return pairs
