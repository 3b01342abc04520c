"""What contradicts what in a config: checks that need more than one group of its fields."""

from collections.abc import Mapping

from imbalance_jax.config.schedule import (
    compute_sequence_totals,
    reduce_ratio,
    resolve_first_step,
)
from imbalance_jax.config.schema import (
    AlignmentConfig,
    Config,
    LanguageConfig,
    MixtureConfig,
    ParallelConfig,
    SourceConfig,
    SyntheticConfig,
    VocabularyConfig,
    check_tokenizer,
    require_at_least,
    require_name,
    require_one_of,
)


def check_config(config: Config) -> None:
    """Raises ValueError if a field contradicts another one."""
    for name, source in config.sources.items():
        _check_source(name, source)
    _check_languages(config.languages, config.sources)
    _check_alignment(config.evaluation.alignment, config.languages)
    _check_vocabulary(config.vocabulary, config.sources)
    _check_mixture(config.mixture, config.languages, config.steps)
    for name, parallel in config.parallel.items():
        _check_parallel(name, parallel, config.sources)
    _check_totals(config)


# Fields of a source that no other kind reads. Those that have a message of their own are not here,
# nor are packages: `--config.sources.en.kind=files` may be set for a config file that has some.
_FIELDS_OF_KINDS: Mapping[str, tuple[str, ...]] = {
    "field": ("files", "tfds"),
    "id_field": ("files", "tfds"),
    "dataset_dir": ("tfds",),
}


def _check_source(name: str, source: SourceConfig) -> None:
    field = f"sources.{name}"
    require_name(field, name, "name")
    require_one_of(f"{field}.kind", source.kind, ("docstrings", "files", "tfds", "synthetic"))
    require_one_of(f"{field}.markup", source.markup, ("none", "wiki40b"))
    require_one_of(f"{field}.ids", source.ids, ("own", "shared"))
    for name_, kinds in _FIELDS_OF_KINDS.items():
        value = getattr(source, name_)
        if source.kind not in kinds and value != getattr(SourceConfig, name_):
            raise ValueError(
                f"config.{field}.{name_}={value!r} is for text of kind {' or '.join(kinds)}, and "
                f"config.{field}.kind={source.kind!r} does not read it. Leave it out, or set "
                f"config.{field}.kind."
            )
    for split in ("train", "validation", "test"):
        if source.kind not in ("files", "tfds") and getattr(source, split):
            raise ValueError(
                f"config.{field}.{split} names a file, but config.{field}.kind="
                f"{source.kind!r} reads none. Set config.{field}.kind=files."
            )
    if source.kind == "files" and not source.train:
        raise ValueError(
            f"config.{field}.kind='files' needs config.{field}.train: a .txt, .jsonl or "
            ".parquet file (.txt and .jsonl also as .gz or .zst), or a pattern such as "
            "'text/*.txt'."
        )
    if source.kind == "tfds" and not source.dataset:
        raise ValueError(
            f"config.{field}.kind='tfds' needs config.{field}.dataset: a TFDS dataset with its "
            "config, such as wiki40b/fr."
        )
    if source.kind != "tfds" and source.dataset:
        raise ValueError(
            f"config.{field}.dataset={source.dataset!r} is a TFDS dataset, but config.{field}."
            f"kind={source.kind!r} reads none. Set config.{field}.kind=tfds, or dataset=''."
        )
    if source.kind not in ("files", "tfds") and source.markup != "none":
        raise ValueError(
            f"config.{field}.markup={source.markup!r} is for text of kind files or tfds, but "
            f"config.{field}.kind={source.kind!r}. Set config.{field}.markup=none."
        )
    _check_synthetic(f"{field}.synthetic", source.synthetic)
    check_tokenizer(f"{field}.tokenizer", source.tokenizer)


_MOST_LEMMAS = 1 << 18  # their words and tokenizer are made at every start, in some seconds


def _check_synthetic(field: str, synthetic: SyntheticConfig) -> None:
    require_one_of(f"{field}.order", synthetic.order, ("head_first", "head_middle", "head_last"))
    for name in ("world", "language", "tokens", "zipf"):
        require_at_least(f"{field}.{name}", getattr(synthetic, name), 0)
    for name in ("lemmas", "topics", "depth"):
        require_at_least(f"{field}.{name}", getattr(synthetic, name), 1)
    if synthetic.depth > 12:
        raise ValueError(
            f"config.{field}.depth={synthetic.depth} makes sentences of 2**{synthetic.depth} - 1 "
            "words. Set it to 12 or less."
        )
    if synthetic.lemmas > _MOST_LEMMAS:
        raise ValueError(
            f"config.{field}.lemmas={synthetic.lemmas} makes a vocabulary of as many words. Set it "
            f"to {_MOST_LEMMAS} or less."
        )
    if synthetic.lemmas % synthetic.topics:
        raise ValueError(
            f"config.{field}.topics={synthetic.topics} does not divide lemmas={synthetic.lemmas}. "
            "Set lemmas to a multiple of topics."
        )
    if not 0 <= synthetic.overlap <= 1:
        raise ValueError(f"config.{field}.overlap={synthetic.overlap} must lie in 0 to 1.")


def _check_languages(
    languages: Mapping[str, LanguageConfig], sources: Mapping[str, SourceConfig]
) -> None:
    if not languages:
        raise ValueError("config.languages is empty. Declare one, such as en with source='en'.")
    for tag, language in languages.items():
        field = f"languages.{tag}"
        require_name(field, tag, "tag")
        if bool(language.source) == bool(language.clone_of):
            raise ValueError(
                f"config.{field} needs one of source (its own text) and clone_of (another "
                f"language's text), and has source={language.source!r}, "
                f"clone_of={language.clone_of!r}."
            )
        if language.source and language.source not in sources:
            raise ValueError(
                f"config.{field}.source={language.source!r} is not declared. "
                f"config.sources has: {', '.join(sources) or 'nothing'}."
            )
        if language.clone_of:
            parent = languages.get(language.clone_of)
            if parent is None or not parent.source:
                originals = [t for t, other in languages.items() if other.source]
                raise ValueError(
                    f"config.{field}.clone_of={language.clone_of!r} is not a language with a "
                    f"source of its own. Those are: {', '.join(originals) or 'none'}."
                )
        if not 0 <= language.anchors <= 1:
            raise ValueError(f"config.{field}.anchors={language.anchors} must lie in 0 to 1.")
        if language.anchors and not language.clone_of:
            raise ValueError(
                f"config.{field}.anchors={language.anchors} applies to clones only. "
                f"Set config.{field}.clone_of, or anchors=0."
            )
        require_one_of(f"{field}.anchor_measure", language.anchor_measure, ("ids", "tokens"))
        require_one_of(
            f"{field}.anchor_choice",
            language.anchor_choice,
            ("reference", "frequent", "rare"),
        )
        require_one_of(
            f"{field}.words", language.words, ("as_written", "reversed", "permuted", "shuffled")
        )
        require_at_least(f"{field}.words_block", language.words_block, 2)
        require_one_of(f"{field}.rows", language.rows, ("own", "copied"))
        if language.rows == "copied" and not language.clone_of:
            raise ValueError(
                f"config.{field}.rows='copied' applies to clones only. Set config.{field}."
                "clone_of, or rows='own'."
            )
        origin = sources.get(language.source or languages[language.clone_of].source)
        if (
            language.words != "as_written"
            and origin
            and origin.kind == "synthetic"
            and not origin.synthetic.tokens
        ):
            raise ValueError(
                f"config.{field}.words={language.words!r} needs a text with an end. Set "
                "synthetic.tokens of its source, or synthetic.order for another word order."
            )


def _check_alignment(alignment: AlignmentConfig, languages: Mapping[str, LanguageConfig]) -> None:
    for tag in alignment.languages:
        if tag not in languages:
            raise ValueError(
                f"config.evaluation.alignment.languages has {tag!r}, which the run does not have. "
                f"config.languages has: {', '.join(languages)}."
            )
    if len(set(alignment.languages)) == 1 or len(set(alignment.languages)) < len(
        alignment.languages
    ):
        raise ValueError(
            f"config.evaluation.alignment.languages={alignment.languages!r} must name two or more "
            "different languages, or none for all pairs."
        )


def _check_vocabulary(vocabulary: VocabularyConfig, sources: Mapping[str, SourceConfig]) -> None:
    tokenizer_path = vocabulary.tokenizer.path
    for name, part in vocabulary.mix.items():
        if name not in sources:
            raise ValueError(
                f"config.vocabulary.mix.{name} is not a source. "
                f"config.sources has: {', '.join(sources)}."
            )
        require_at_least(f"vocabulary.mix.{name}", part, 0)
    if vocabulary.mix and not any(vocabulary.mix.values()):
        raise ValueError("config.vocabulary.mix is zero for every source. Give one of them 1.")
    if vocabulary.layout != "joint":
        for name, value in (("mix", dict(vocabulary.mix)), ("tokenizer.path", tokenizer_path)):
            if value:
                raise ValueError(
                    f"config.vocabulary.{name}={value!r} is for a joint tokenizer, but config."
                    f"vocabulary.layout={vocabulary.layout!r}. Set config.vocabulary.layout=joint, "
                    f"or leave config.vocabulary.{name} empty."
                )
        return
    for name, source in sources.items():
        if source.kind == "synthetic":
            raise ValueError(
                f"config.vocabulary.layout='joint' trains a tokenizer, but config.sources.{name} "
                "is synthetic and made of words. Set config.vocabulary.layout=merged."
            )
        if source.tokenizer.path:
            raise ValueError(
                f"config.sources.{name}.tokenizer.path names a tokenizer of its own, but "
                "config.vocabulary.layout='joint' has one for all sources. Set "
                "config.vocabulary.tokenizer.path instead."
            )


def _check_parallel(
    name: str, parallel: ParallelConfig, sources: Mapping[str, SourceConfig]
) -> None:
    field = f"parallel.{name}"
    require_name(field, name, "name")
    if len(parallel.sources) != 2 or len(set(parallel.sources)) != 2:
        raise ValueError(
            f"config.{field}.sources={parallel.sources!r} must name two sources, such as "
            "('en', 'fr')."
        )
    for source in parallel.sources:
        if source not in sources:
            raise ValueError(
                f"config.{field}.sources has {source!r}, which is not declared. "
                f"config.sources has: {', '.join(sources)}."
            )
    if parallel.fields and len(parallel.fields) != 2:
        raise ValueError(f"config.{field}.fields={parallel.fields!r} must be two, or ().")
    kinds = [sources[source].kind == "synthetic" for source in parallel.sources]
    if any(kinds):
        first, second = (sources[source].synthetic for source in parallel.sources)
        # What they say is the same where these are; how they say it may differ.
        names = ("world", "lemmas", "topics", "zipf", "depth")
        differ = [n for n in names if getattr(first, n) != getattr(second, n)]
        if not all(kinds) or differ or parallel.path:
            raise ValueError(
                f"config.{field}: synthetic sources are parallel to each other, where "
                f"{', '.join(names)} are equal and path is empty. Set them so for both sources, "
                f"or take config.{field} out."
            )
    elif not parallel.path:
        raise ValueError(
            f"config.{field}.path is empty. Name a .jsonl file with a pair of texts on each line."
        )


def _check_mixture(
    mixture: MixtureConfig, languages: Mapping[str, LanguageConfig], steps: int
) -> None:
    ratios = {} if mixture.temperature else {"mixture.ratio": mixture.ratio}
    for name in ("stages", "same_total_as"):
        schedule = getattr(mixture, name)
        ratios |= {f"mixture.{name}[{i}]": ratio for i, (_, ratio) in enumerate(schedule)}
        if schedule and resolve_first_step(schedule[-1][0], steps) >= steps:
            raise ValueError(
                f"config.mixture.{name} begins its last stage at step {schedule[-1][0]}, but "
                f"the run has config.steps={steps}. Drop the stage, or set more steps."
            )
        steps_ = [resolve_first_step(first, steps) for first, _ in schedule]
        if len(set(steps_)) < len(steps_):
            raise ValueError(
                f"config.mixture.{name} has two stages that begin at the same one of "
                f"config.steps={steps}. Use fewer stages, or more steps."
            )
    for field, ratio in ratios.items():
        for tag in ratio:
            if tag not in languages:
                raise ValueError(
                    f"config.{field}.{tag} is the ratio of a language that is not declared. "
                    f"config.languages has: {', '.join(languages)}."
                )
        for tag in languages:
            if tag not in ratio:
                raise ValueError(
                    f"config.{field} says nothing of the language {tag}. "
                    f"Set config.{field}.{tag}; 0 trains without it and still evaluates it."
                )
        if not any(ratio.values()):
            raise ValueError(f"config.{field} is zero for every language. Give one of them 1.")
        if mixture.sampler == "exact" and not field.startswith("mixture.same_total_as"):
            _check_block(field, ratio)


# Of the exact sampler: twice its square fits into the 64 bits that positions are counted in.
_LARGEST_BLOCK = 2**31 - 1


def _check_block(field: str, ratio: Mapping[str, int]) -> None:
    block = sum(reduce_ratio(ratio).values())
    if block > _LARGEST_BLOCK:
        raise ValueError(
            f"config.{field} makes blocks of {block:,} sequences, and the exact sampler has blocks "
            f"of {_LARGEST_BLOCK:,} at most. Write a ratio with a smaller sum, or set "
            "config.mixture.sampler=bernoulli."
        )


def _check_totals(config: "Config") -> None:
    mixture = config.mixture
    if not mixture.same_total_as or mixture.temperature:
        return
    ours, theirs = (
        compute_sequence_totals(config),
        compute_sequence_totals(config, mixture.same_total_as),
    )
    for tag in config.tags:
        # A stage begins with a step, so no schedule can be nearer to another than that.
        if abs(ours[tag] - theirs[tag]) >= config.batch_size:
            raise ValueError(
                f"config.mixture.same_total_as gives {tag} {float(theirs[tag]):,.10g} sequences in "
                f"all, but the run gives it {float(ours[tag]):,.10g}. Change the ratios or the "
                "lengths of config.mixture.stages, or set same_total_as=()."
            )
