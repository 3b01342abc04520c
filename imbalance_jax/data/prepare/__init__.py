"""Turns text into a prepared source: trains its tokenizer, writes its ids.

    python -m imbalance_jax.data.prepare --config=configs/90_10.py
    python -m imbalance_jax.data.prepare --config=configs/studies/ratio.py:scale=small
    python -m imbalance_jax.data.prepare --study=studies/ratio

A run prepares what it needs by itself; this command does it ahead of time, for a run or for all
runs of a study, parallel sets included. What is already there, keyed by the text and the
tokenizer, costs nothing. A copy of data_dir is all that a run needs on another machine, where the
text is not: see prepared.py.
"""

import dataclasses
import functools
import hashlib
import io
import pathlib
import types
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
from etils import epath

from imbalance_jax import config as config_lib
from imbalance_jax.config import Config, SourceConfig, TokenizerConfig
from imbalance_jax.data import prepared, sources
from imbalance_jax.data.order import keyed_draws
from imbalance_jax.data.text import coverage as coverage_lib
from imbalance_jax.data.text import reading as text
from imbalance_jax.data.text import synthetic
from imbalance_jax.data.text.documents import Document
from imbalance_jax.data.tokenizer import TextTokenizer
from imbalance_jax.runs import children, storage
from imbalance_jax.runs.progress import Progress

# Bytes of text that a tokenizer is trained on; of a larger corpus a share of its paragraphs,
# chosen by a hash (a document may be larger than the whole sample).
_SAMPLE_BYTES = 50_000_000
# Characters of a paragraph in one piece: SentencePiece drops lines above 65,536 bytes.
_LINE_CHARACTERS = 1 << 14
# Each adds up its own share of the sample, so that their number is part of a unigram model.
_TRAINING_THREADS = 16
# Characters encoded in one call, on all cores.
_BATCH_CHARACTERS = 4_000_000


@dataclasses.dataclass(frozen=True)
class JointTokenizer:
    """A SentencePiece model that sources share: what stands for it, and how to get it."""

    key: str
    model: Callable[[], bytes]
    stated: Mapping[str, object]  # what the config says of it; see prepared.state_joint


def prepare_run_sources(
    config: Config, recorded: Mapping[str, str] = types.MappingProxyType({})
) -> dict[str, sources.Source | synthetic.SyntheticSource]:
    """Returns the prepared source of every language of a run, making what is missing.

    Args:
      config: of the run.
      recorded: source -> the fingerprint of the text that the run was begun with, or its study.

    Raises:
      ValueError: a text or tokenizer cannot be used, or neither it nor its prepared form is here.
    """
    # All sources are checked before the first one is worked on.
    found = find_all_prepared_sources(config, recorded)
    for name in _list_required_sources(config, found):
        if name not in found:
            check_source_inputs(name, config.sources[name])
    joint = _make_joint_tokenizer(config, found) if config.vocabulary.layout == "joint" else None
    made = {
        name: prepare_source(
            name, config.sources[name], config.data_dir, joint, recorded.get(name, "")
        )
        for name in list_language_sources(config)
    }
    if joint:
        _check_joint_tokenizer(made, config.data_dir)
    return made


def list_language_sources(config: Config) -> list[str]:
    """Returns the names of the sources that the languages of a run have."""
    return sorted({language.source for language in config.languages.values() if language.source})


def _list_required_sources(
    config: Config, found: Mapping[str, prepared.PreparedDirectory]
) -> list[str]:
    """Returns the sources that a run opens, and those that its joint tokenizer is trained on.

    Args:
      config: of the run.
      found: prepared texts; if they are those of all languages, no tokenizer is trained.
    """
    used = list_language_sources(config)
    if config.vocabulary.layout != "joint" or found.keys() >= set(used):
        return used
    return [
        *used,
        *(n for n, part in _resolve_joint_parts(config).items() if part and n not in used),
    ]


def find_all_prepared_sources(
    config: Config, recorded: Mapping[str, str] = types.MappingProxyType({})
) -> dict[str, prepared.PreparedDirectory]:
    """Returns the prepared text of each source of a run whose own text is not on this machine.

    Raises:
      ValueError: neither a text nor its prepared form is here, or the latter in several versions.
    """
    joint = resolve_joint_statement(config)
    found: dict[str, prepared.PreparedDirectory] = {}

    def look(names: Iterable[str]) -> None:
        for name in names:
            source = config.sources[name]
            opened = _find_prepared_or_raise(
                name, source, config.data_dir, joint, recorded.get(name, "")
            )
            if opened:
                found[name] = opened

    used = list_language_sources(config)
    look(used)
    look(name for name in _list_required_sources(config, found) if name not in used)
    return found


def _find_prepared_or_raise(
    name: str,
    source: SourceConfig,
    data_dir: str,
    joint: Mapping[str, object] | None,
    recorded: str,
) -> prepared.PreparedDirectory | None:
    """Returns what `prepared.find_source` does.

    Raises:
      ValueError: as it does; or the text is not here, and nothing is found in its place.
    """
    found = prepared.find_prepared_source(name, source, data_dir, joint, recorded)
    if found is None and source.kind != "synthetic":
        path = prepared.resolve_tokenizer_path(source, joint)
        if not (prepared.is_text_here(name, source) and prepared.is_file_here(path)):
            try:
                check_source_inputs(name, source)
                _check_tokenizer_path(
                    "config.vocabulary.tokenizer.path", TokenizerConfig(path=path)
                )
            except ValueError as error:
                advice = prepared.advise_preparing(f"config.sources.{name}", name, data_dir)
                raise ValueError(f"{error} {advice}") from error
    return found


def _check_joint_tokenizer(
    made: Mapping[str, sources.Source | synthetic.SyntheticSource], data_dir: str
) -> None:
    """Raises ValueError if sources of a joint tokenizer were prepared with different ones."""
    models: dict[str, str] = {}
    for name, source in made.items():
        models.setdefault(source.about["tokenizer"], name)
    if len(models) > 1:
        raise ValueError(
            f"config.vocabulary.layout='joint' has one tokenizer for all sources, and "
            f"{' and '.join(models.values())} were prepared with different ones in {data_dir}. "
            "Prepare them anew where their text is, and copy both."
        )


def check_source_inputs(name: str, source: SourceConfig) -> None:
    """Raises ValueError for whatever can be seen to be wrong without reading the text."""
    if source.kind != "synthetic":
        text.check_source_text(name, source)
        _check_tokenizer_path(f"config.sources.{name}.tokenizer.path", source.tokenizer)


def _check_tokenizer_path(field: str, tokenizer: TokenizerConfig) -> None:
    """Raises ValueError if a tokenizer's path is not one that can be used."""
    if not tokenizer.path:
        return
    path = storage.parse_path(tokenizer.path)
    field = f"{field}={tokenizer.path!r}"
    if not path.exists() or path.is_dir():
        raise ValueError(f"{field}: there is no such file.")
    try:
        TextTokenizer(path.read_bytes())
    except RuntimeError as error:
        raise ValueError(f"{field} is not a SentencePiece model. Name a .model file.") from error
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from error


def prepare_source(
    name: str,
    source: SourceConfig,
    data_dir: str,
    tokenizer: JointTokenizer | None = None,
    recorded: str = "",
) -> sources.Source | synthetic.SyntheticSource:
    """Returns a prepared source, from disk if its text and tokenizer are there already.

    Where the text is not on this machine, what is prepared of it in data_dir is opened.

    Args:
      name: of the source in config.sources.
      source: what its text and, without a shared one, its tokenizer are.
      data_dir: where prepared sources are kept.
      tokenizer: one that it shares with other sources, in place of its own.
      recorded: the fingerprint of the text that a run was begun with; "" if none.

    Raises:
      ValueError: the text or the tokenizer cannot be used; nothing is left half made.
    """
    if source.kind == "synthetic" and not source.synthetic.tokens:
        return synthetic.SyntheticSource(name, source.synthetic)
    joint = tokenizer.stated if tokenizer else None
    found = _find_prepared_or_raise(name, source, data_dir, joint, recorded)
    if found:
        print(
            prepared.describe_prepared_text(f"config.sources.{name}", found, data_dir), flush=True
        )
        return sources.open_source(name, found.path, sources.resolve_data_cache_dir(data_dir))
    text_key = _fingerprint_source(name, source, data_dir)
    # Of what is asked for; the fingerprint follows from what is made.
    key = config_lib.hash_plain_values(
        {
            "format": sources.FORMAT,
            "text": text_key,
            "tokenizer": tokenizer.key if tokenizer else _make_tokenizer_key(source),
        }
    )
    path = storage.parse_path(data_dir) / f"{name}-{key}"
    made_of = prepared.describe_source_origin(source, text_key, joint)
    if sources.is_prepared(path):
        prepared.add_statement(path, sources.MARKER, made_of)
    else:
        _make_prepared_source(name, source, path, text_key, key, tokenizer, made_of)
    return sources.open_source(name, path, sources.resolve_data_cache_dir(data_dir))


def _fingerprint_source(name: str, source: SourceConfig, data_dir: str) -> str:
    if source.kind == "synthetic":
        return synthetic.SyntheticSource(name, source.synthetic).fingerprint
    return prepared.fingerprint_text(name, source, data_dir)


def _make_tokenizer_key(source: SourceConfig) -> object:
    if source.kind == "synthetic":
        return "words"
    if source.tokenizer.path:
        return hashlib.sha256(epath.Path(source.tokenizer.path).read_bytes()).hexdigest()
    return config_lib.to_dict(source.tokenizer)


def _make_prepared_source(
    name: str,
    source: SourceConfig,
    path: epath.Path,
    text_key: str,
    key: str,
    tokenizer: JointTokenizer | None,
    made_of: Mapping[str, object],
) -> None:
    write = functools.partial(
        sources.write_source, path, name=name, text=text_key, key=key, made_of=made_of
    )
    if source.kind == "synthetic":
        model = synthetic.SyntheticSource(name, source.synthetic).model
        write(tokenizer=model, documents=synthetic.generate_documents(source.synthetic))
        return
    documents = _make_document_reader(name, source)
    if tokenizer:
        model = tokenizer.model()
    elif source.tokenizer.path:
        model = epath.Path(source.tokenizer.path).read_bytes()
    else:
        sample = _sample_paragraphs(name, source, documents, _SAMPLE_BYTES)
        field = f"config.sources.{name}.tokenizer"
        print(f"Training the tokenizer of {name}: {source.tokenizer.vocab_size} pieces", flush=True)
        model = train_tokenizer(field, source.tokenizer, sample)

    with Progress(f"Tokenizing {name}", 1) as progress:
        write(tokenizer=model, documents=_encode_documents(model, documents(progress)))
    made = sources.open_source(name, path, pathlib.Path())
    print(f"Prepared {path}: {made.count('train'):,} tokens to train on", flush=True)
    lost, whole = (sum(made.about[of].values()) for of in ("lost_bytes", "bytes"))
    if lost:
        print(
            f"The tokenizer of {name} loses {lost:,} of the text's {whole:,} bytes "
            f"({lost / whole:.2%}): they are unknown to it or normalized away. Bits per byte count "
            "them all the same.",
            flush=True,
        )


Reader = Callable[[Progress], Iterable[tuple[str, Document]]]


def _make_document_reader(name: str, source: SourceConfig) -> Reader:
    """Returns what yields the documents of a source, as often as it is called."""
    if source.kind != "docstrings":
        return lambda progress: text.read_documents(name, source, progress.show)
    kept: list[tuple[str, Document]] = []

    def read(progress: Progress) -> Iterable[tuple[str, Document]]:
        # Small, and slow to extract: read once and kept.
        if not kept:
            kept.extend(text.read_documents(name, source, progress.show))
        return kept

    return read


def _resolve_joint_parts(config: Config) -> dict[str, int]:
    """Returns the part of each source in the text of a joint tokenizer; {} if it has a path.

    Sources without a language count too, so that a language alone has the tokenizer of the mixture
    that it is compared with.
    """
    vocabulary = config.vocabulary
    if vocabulary.tokenizer.path:
        return {}
    mix = vocabulary.mix
    return {name: mix.get(name, 0) if mix else 1 for name in sorted(config.sources)}


def resolve_joint_statement(config: Config) -> dict[str, object] | None:
    """Returns what a config says of the tokenizer of its sources; None if each has its own."""
    if config.vocabulary.layout != "joint":
        return None
    return prepared.make_joint_statement(
        config.vocabulary.tokenizer, _resolve_joint_parts(config), config.sources
    )


def _make_joint_tokenizer(
    config: Config, found: Mapping[str, prepared.PreparedDirectory]
) -> JointTokenizer:
    """Returns the tokenizer of all sources, which is trained when it is first needed.

    Args:
      config: of the run.
      found: the prepared texts of sources whose own text is not on this machine.
    """
    tokenizer, mix = config.vocabulary.tokenizer, config.vocabulary.mix
    names, parts, stated = (
        list_language_sources(config),
        _resolve_joint_parts(config),
        resolve_joint_statement(config) or {},
    )
    if found.keys() >= set(names):
        model = (found[names[0]].path / "tokenizer.model").read_bytes()
        return JointTokenizer(hashlib.sha256(model).hexdigest(), lambda: model, stated)
    _check_tokenizer_path("config.vocabulary.tokenizer.path", tokenizer)
    if tokenizer.path:
        model = epath.Path(tokenizer.path).read_bytes()
        return JointTokenizer(hashlib.sha256(model).hexdigest(), lambda: model, stated)
    if not any(parts[name] for name in names):
        raise ValueError(
            f"config.vocabulary.mix={dict(mix)} has no source of a language. Give one of "
            f"{', '.join(names)} a part."
        )
    key = config_lib.hash_plain_values(
        {
            "tokenizer": config_lib.to_dict(tokenizer),
            "parts": parts,
            "texts": [
                found[name].made_of.get("text", "")
                if name in found
                else _fingerprint_source(name, config.sources[name], config.data_dir)
                for name, part in parts.items()
                if part
            ],
        }
    )
    path = storage.parse_path(config.data_dir) / f"tokenizer-{key}.model"

    def model_of_all() -> bytes:
        if not path.exists():
            sample = _sample_joint_paragraphs(config, parts)
            print(f"Training the joint tokenizer: {tokenizer.vocab_size} pieces", flush=True)
            trained = train_tokenizer("config.vocabulary.tokenizer", tokenizer, sample)
            path.parent.mkdir(parents=True, exist_ok=True)
            storage.write_file_atomically(path, trained)
        model = path.read_bytes()
        try:
            TextTokenizer(model)
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"{path} is not as it was written. Delete it; the next run trains it again."
            ) from error
        return model

    return JointTokenizer(key, model_of_all, stated)


def _sample_joint_paragraphs(config: Config, parts: Mapping[str, int]) -> list[str]:
    """Returns paragraphs of all sources, whose bytes are in proportion to their parts."""
    total = sum(parts.values())
    samples = {}
    for name, part in parts.items():
        if part:
            source = config.sources[name]
            samples[name] = _sample_paragraphs(
                name, source, _make_document_reader(name, source), _SAMPLE_BYTES
            )
            if not any(samples[name]):
                raise ValueError(f"config.sources.{name}: no text to train a tokenizer on.")
    held = {name: sum(len(p.encode()) for p in found) for name, found in samples.items()}
    # As much as the source that is shortest for its part allows.
    whole = min(_SAMPLE_BYTES, *(held[name] * total / parts[name] for name in samples))
    chosen = []
    for name, paragraphs in samples.items():
        keep = whole * parts[name] / total / max(1, held[name])
        drawn = keyed_draws.draw_bits(
            keyed_draws.derive_key("joint tokenizer", name), np.arange(len(paragraphs))
        )
        kept = drawn.astype(np.float64) < keep * 2.0**64
        chosen += [paragraphs[i] for i in np.nonzero(kept)[0]]
    return chosen


def _sample_paragraphs(name: str, source: SourceConfig, documents: Reader, most: int) -> list[str]:
    """Returns paragraphs of training documents, about `most` bytes of them at most."""
    share = min(1.0, most / max(1, text.estimate_text_bytes(source)))
    threshold = int(share * 2**64)
    paragraphs = []
    with Progress(f"Reading {name} for a tokenizer", 1) as progress:
        for split, document in documents(progress):
            if split != "train":
                continue
            # Names of files need not be UTF-8, and documents without ids are named after them.
            named = document.id.encode("utf-8", "surrogatepass")
            keyed = hashlib.blake2b(named, digest_size=8, key=b"tokenizer")
            for number, line in enumerate(_split_long_lines(document.text)):
                drawn = keyed.copy()
                drawn.update(b"/%d" % number)
                if share == 1 or int.from_bytes(drawn.digest(), "big") < threshold:
                    paragraphs.append(line)
    return paragraphs


def _split_long_lines(document: str) -> Iterator[str]:
    for line in document.split("\n"):
        for start in range(0, len(line), _LINE_CHARACTERS):
            yield line[start : start + _LINE_CHARACTERS]


def train_tokenizer(field: str, tokenizer: TokenizerConfig, paragraphs: list[str]) -> bytes:
    """Returns a SentencePiece model with the flags of the reference study.

    Ids 0, 1 and 2 are padding, unknown and the separator of documents; then the 256 bytes,
    so that any text can be written and read back unchanged. The model is the same on every
    machine, however many cores it has.

    Args:
      field: of the tokenizer, for messages.
      tokenizer: its size and type.
      paragraphs: what it is trained on.

    Raises:
      ValueError: the text does not hold as many pieces, or more characters than pieces.
    """
    if not paragraphs:
        raise ValueError(f"{field}: there is no text to train it on.")
    try:
        return _train_with_config_coverage(field, tokenizer, paragraphs)
    except coverage_lib.TooManyCharacters:
        return coverage_lib.train_with_lower_coverage(
            field, tokenizer, paragraphs, _train_with_config_coverage
        )


def _train_with_config_coverage(
    field: str, tokenizer: TokenizerConfig, paragraphs: list[str]
) -> bytes:
    """Does what `train_tokenizer` does, with the coverage of the config alone."""
    import sentencepiece

    field = f"{field}.vocab_size={tokenizer.vocab_size}"
    covered, options = coverage_lib.apply_coverage(paragraphs, tokenizer.character_coverage)
    model = io.BytesIO()
    pad, unknown, separator = config_lib.SPECIALS
    try:
        sentencepiece.SentencePieceTrainer.train(
            # The trainer would take a U+2581 for a space.
            sentence_iterator=(part for one in covered for part in one.split("\u2581")),
            model_writer=model,
            model_type=tokenizer.model_type,
            vocab_size=tokenizer.vocab_size,
            hard_vocab_limit=True,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            split_by_unicode_script=True,
            split_by_number=True,
            split_by_whitespace=True,
            max_sentencepiece_length=99,
            max_sentence_length=1 << 16,
            control_symbols=[separator],  # no text can spell it
            pad_id=0,
            pad_piece=pad,
            unk_id=1,
            unk_piece=unknown,
            bos_id=-1,
            eos_id=-1,
            num_threads=_TRAINING_THREADS,
            minloglevel=2,
            **options,
        )
    except RuntimeError as error:
        reason = _parse_error_reason(error)
        if "required_chars" in reason:
            raise coverage_lib.TooManyCharacters(
                f"{field} is too small for the characters of the text. Set it higher."
            ) from error
        most = _parse_max_pieces(reason)
        if most:
            raise ValueError(
                f"{field} is more than the text allows. Set it to {most} or less."
            ) from (error)
        raise ValueError(
            f"{field} does not suit the text ({reason}). Set it lower for little text, or higher "
            "for many different characters."
        ) from error
    trained = TextTokenizer(model.getvalue())
    if trained.size != tokenizer.vocab_size:
        raise ValueError(
            f"{field} is more than the text allows: it holds {trained.size} pieces. "
            "Set it to that or lower, or use more text."
        )
    return model.getvalue()


def _parse_max_pieces(reason: str) -> str:
    """Returns the most pieces that a text allows, where SentencePiece says so."""
    return reason.rpartition("<= ")[2].rstrip(".") if "too high" in reason else ""


def _parse_error_reason(error: RuntimeError) -> str:
    """Returns what SentencePiece says, without its place in the source."""
    return str(error).strip().splitlines()[-1].rpartition("] ")[2].strip(" .") or "no reason given"


def _encode_documents(
    model: bytes, documents: Iterable[tuple[str, Document]]
) -> Iterator[sources.EncodedDocument]:
    """Yields what `sources.write` takes, encoding on all cores."""
    tokenizer = TextTokenizer(model)
    for batch in _batch_documents(documents):
        texts = [document.text for _, document in batch]
        encoded = tokenizer.encode_all(texts, num_threads=children.count_cores())
        for (split, document), ids in zip(batch, encoded, strict=True):
            yield sources.EncodedDocument(
                split,
                document.identity,
                np.array([*ids, tokenizer.separator]),
                bytes=len(document.text.encode()),
                lost=tokenizer.lost_bytes(document.text, ids),
            )


def _batch_documents(
    documents: Iterable[tuple[str, Document]],
) -> Iterator[list[tuple[str, Document]]]:
    batch, characters = [], 0
    for split, document in documents:
        batch.append((split, document))
        characters += len(document.text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


# Of several runs, and from the command line


def prepare_runs(
    configs: Mapping[str, Config],
    recorded: Mapping[str, Mapping[str, str]] = types.MappingProxyType({}),
) -> dict[str, dict[str, sources.Source | synthetic.SyntheticSource]]:
    """Prepares the text and the parallel sets of several runs, each once.

    Args:
      configs: by run.
      recorded: by run, as of `prepare_run_sources`.

    Returns:
      the prepared sources of each run by name.

    Raises:
      ValueError: as `prepare_run_sources`, or the text is not the recorded one.
    """
    from imbalance_jax.data import parallel

    known: dict[str, dict[str, sources.Source | synthetic.SyntheticSource]] = {}
    found = {}
    for run, config in configs.items():
        mine = recorded.get(run, {})
        parts = (config.sources, config.languages, config.vocabulary, config.parallel)
        key = repr((config.data_dir, parts, config.model.L, dict(mine)))
        if key not in known:
            made = prepare_run_sources(config, mine)
            check_recorded_texts(made, mine, config.data_dir)
            parallel.prepare_all_parallel_sets(config, made)
            known[key] = made
        found[run] = known[key]
    return found


def check_recorded_texts(
    made: Mapping[str, sources.Source | synthetic.SyntheticSource],
    recorded: Mapping[str, str],
    data_dir: str,
) -> None:
    """Raises ValueError if a study that was begun with one text would go on with another."""
    for name, source in made.items():
        theirs = recorded.get(name, source.fingerprint)
        if theirs != source.fingerprint:
            raise ValueError(
                f"config.sources.{name}: the study was begun with the text of fingerprint {theirs} "
                f"and this machine's has {source.fingerprint}. Copy {name}-... of that fingerprint "
                f"to {data_dir}, or put the text and its tokenizer back as they were, or use "
                "another --workdir for the study."
            )


def collect_fingerprints(
    made: Mapping[str, Mapping[str, sources.Source | synthetic.SyntheticSource]],
) -> dict[str, dict[str, str]]:
    """Returns source -> fingerprint for each run, of what `prepare_runs` returns."""
    return {
        run: {name: source.fingerprint for name, source in found.items()}
        for run, found in made.items()
    }
