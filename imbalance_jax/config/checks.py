"""What contradicts what in a config: checks that need more than one group of its fields."""

import re
from collections.abc import Iterable, Mapping

from imbalance_jax.config.bounds import INT32
from imbalance_jax.config.schedule import (
    compute_sequence_totals,
    reduce_ratio,
    resolve_first_step,
)
from imbalance_jax.config.schema import Config, LanguageConfig
from imbalance_jax.config.text_schema import ParallelConfig, SourceConfig


def check_config(config: Config) -> None:
    """Raises ValueError if a field contradicts another one."""
    for name in config.sources:
        _check_name(f"config.sources.{name}", name, "name")
    _check_languages(config.languages, config.sources)
    _check_alignment(config)
    _check_vocabulary(config)
    _check_mixture(config)
    for name, parallel in config.parallel.items():
        _check_name(f"config.parallel.{name}", name, "name")
        _check_parallel(f"config.parallel.{name}", parallel, config.sources)
    _check_totals(config)
    _check_sequence_counts(config)
    if not config.model.scan_layers and config.model.N > _MOST_WRITTEN_OUT:
        raise ValueError(
            f"config.model.scan_layers=False writes out config.model.N={config.model.N} blocks, "
            f"and a program of more than {_MOST_WRITTEN_OUT:,} takes hours to compile. Set "
            "config.model.scan_layers=True."
        )


# Of two cores, a block that is written out takes the compiler more than a second.
_MOST_WRITTEN_OUT = 2048


def _check_name(field: str, name: str, what: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_]+", name):
        spelling = re.sub(r"[^A-Za-z0-9_]+", "_", name).strip("_")
        instead = f" Write {spelling}." if spelling else ""
        raise ValueError(
            f"{field}: a {what} is made of A-Z, a-z, 0-9 and _ only, as parts of flags are."
            + instead
        )


def _check_declared(name: str, group: str, names: Iterable[str], problem: str) -> None:
    """Raises ValueError with the problem and all names of a group, if it has no such name."""
    names = list(names)
    if name not in names:
        raise ValueError(f"{problem} {group} has: {', '.join(names) or 'nothing'}.")


def _check_languages(
    languages: Mapping[str, LanguageConfig], sources: Mapping[str, SourceConfig]
) -> None:
    if not languages:
        raise ValueError("config.languages is empty. Declare one, such as en with source='en'.")
    for tag, language in languages.items():
        field = f"config.languages.{tag}"
        _check_name(field, tag, "tag")
        if bool(language.source) == bool(language.clone_of):
            raise ValueError(
                f"{field} needs one of source (its own text) and clone_of (another language's "
                f"text), and has source={language.source!r}, clone_of={language.clone_of!r}."
            )
        if language.clone_of:
            parent = languages.get(language.clone_of)
            if parent is None or not parent.source:
                originals = [other for other in languages if languages[other].source]
                raise ValueError(
                    f"{field}.clone_of={language.clone_of!r} is not a language with a source of "
                    f"its own. Those are: {', '.join(originals) or 'none'}."
                )
        else:
            problem = f"{field}.source={language.source!r} is not declared."
            _check_declared(language.source, "config.sources", sources, problem)
            if language.anchors:
                raise ValueError(
                    f"{field}.anchors={language.anchors} applies to clones only. "
                    f"Set {field}.clone_of, or anchors=0."
                )
            if language.rows == "copied":
                raise ValueError(
                    f"{field}.rows='copied' applies to clones only. Set {field}.clone_of, or "
                    "rows='own'."
                )


def _check_alignment(config: Config) -> None:
    field, tags = "config.evaluation.alignment.languages", config.evaluation.alignment.languages
    for tag in tags:
        problem = f"{field} has {tag!r}, which the run does not have."
        _check_declared(tag, "config.languages", config.languages, problem)
    if len(set(tags)) == 1 or len(set(tags)) < len(tags):
        raise ValueError(
            f"{field}={tags!r} must name two or more different languages, or none for all pairs."
        )


def _check_vocabulary(config: Config) -> None:
    vocabulary, sources = config.vocabulary, config.sources
    for name in vocabulary.mix:
        field = f"config.vocabulary.mix.{name}"
        _check_declared(name, "config.sources", sources, f"{field} is not a source.")
    if vocabulary.mix and not any(vocabulary.mix.values()):
        raise ValueError("config.vocabulary.mix is zero for every source. Give one of them 1.")
    if vocabulary.layout != "joint":
        only_joint = {"mix": dict(vocabulary.mix), "tokenizer.path": vocabulary.tokenizer.path}
        for name, value in only_joint.items():
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


# Fields of synthetic sources that say the same where these are equal, in words of their own.
_CONTENT_FIELDS = ("world", "lemmas", "topics", "zipf", "depth", "rules")


def _check_parallel(
    field: str, parallel: ParallelConfig, sources: Mapping[str, SourceConfig]
) -> None:
    if len(parallel.sources) < 2 or len(set(parallel.sources)) < len(parallel.sources):
        raise ValueError(
            f"{field}.sources={parallel.sources!r} must name two sources or more, such as "
            "('en', 'fr')."
        )
    for name in parallel.sources:
        problem = f"{field}.sources has {name!r}, which is not declared."
        _check_declared(name, "config.sources", sources, problem)
    several = len(parallel.sources)
    if len(parallel.fields) not in (0, 1, several):
        raise ValueError(
            f"{field}.fields={parallel.fields!r} must be one for each of {several} sources, one "
            "for all of them, or ()."
        )
    if several > 2 and "{source}" not in parallel.path and re.search(r"[,*?[{]", parallel.path):
        raise ValueError(
            f"{field}.path={parallel.path!r} has the files of {several} sources. Write {{source}} "
            "in place of what differs, the name of the source, such as 'dev/{source}.dev'."
        )
    first, *others = parallel.sources
    unlike = [name for name in parallel.sources if sources[name].kind != "synthetic"]
    if len(unlike) < several:
        ours = sources[first].synthetic
        differing = [f"config.sources.{name}.kind" for name in unlike] + [
            f"config.sources.{name}.synthetic.{content}"
            for name in others
            for content in _CONTENT_FIELDS
            if getattr(sources[name].synthetic, content) != getattr(ours, content)
        ]
        if parallel.path:
            differing.append(f"{field}.path")
        if differing:
            raise ValueError(
                f"{field}: synthetic sources are parallel to each other, where "
                f"{', '.join(_CONTENT_FIELDS)} are equal and path is empty. Change "
                f"{', '.join(differing)}, or take {field} out."
            )
    elif not parallel.path:
        raise ValueError(
            f"{field}.path is empty. Name a .jsonl file with a pair of texts on each line."
        )


def _check_mixture(config: Config) -> None:
    mixture, languages, steps = config.mixture, config.languages, config.steps
    ratios = {} if mixture.follows_text else {"config.mixture.ratio": mixture.ratio}
    for name in ("stages", "same_total_as"):
        field, schedule = f"config.mixture.{name}", getattr(mixture, name)
        ratios |= {f"{field}[{i}]": ratio for i, (_, ratio) in enumerate(schedule)}
        first_steps = [resolve_first_step(first, steps) for first, _ in schedule]
        if first_steps and first_steps[-1] >= steps:
            raise ValueError(
                f"{field} begins its last stage at step {schedule[-1][0]}, but the run has "
                f"config.steps={steps}. Drop the stage, or set more steps."
            )
        if len(set(first_steps)) < len(first_steps):
            raise ValueError(
                f"{field} has two stages that begin at the same one of config.steps={steps}. Use "
                "fewer stages, or more steps."
            )
    for field, ratio in ratios.items():
        for tag in ratio:
            problem = f"{field}.{tag} is the ratio of a language that is not declared."
            _check_declared(tag, "config.languages", languages, problem)
        for tag in languages:
            if tag not in ratio:
                raise ValueError(
                    f"{field} says nothing of the language {tag}. "
                    f"Set {field}.{tag}; 0 trains without it and still evaluates it."
                )
        if not any(ratio.values()):
            raise ValueError(f"{field} is zero for every language. Give one of them 1.")
        if mixture.sampler == "exact" and "same_total_as" not in field:
            _check_block(field, ratio)
    weights = mixture.loss_weights
    for tag in weights:
        problem = f"config.mixture.loss_weights.{tag} is the weight of an undeclared language."
        _check_declared(tag, "config.languages", languages, problem)
    trained = (
        languages
        if mixture.follows_text
        else [t for t, n in compute_sequence_totals(config).items() if n]
    )
    if not any(weights.get(tag, 1.0) for tag in trained):
        raise ValueError(
            "config.mixture.loss_weights is zero for every language that is trained on. Give one "
            "of them 1."
        )
    unweighted = [tag for tag in trained if not weights.get(tag, 1.0)]
    if unweighted and config.optimizer.moments == "per_language":
        # Its direction would be zero, and count in the mean over languages.
        raise ValueError(
            f"config.mixture.loss_weights.{unweighted[0]}=0 trains on nothing of the language, and "
            "config.optimizer.moments=per_language averages over all languages that are read. Set "
            f"a ratio of 0 for {unweighted[0]}, or config.optimizer.moments=shared."
        )


# Of the exact sampler: twice its square fits into the 64 bits that positions are counted in.
_LARGEST_BLOCK = INT32


def _check_block(field: str, ratio: Mapping[str, int]) -> None:
    block = sum(reduce_ratio(ratio).values())
    if block > _LARGEST_BLOCK:
        raise ValueError(
            f"{field} makes blocks of {block:,} sequences, and the exact sampler has blocks of "
            f"{_LARGEST_BLOCK:,} at most. Write a ratio with a smaller sum, or set "
            "config.mixture.sampler=bernoulli."
        )


def _check_totals(config: Config) -> None:
    mixture = config.mixture
    if not mixture.same_total_as or mixture.follows_text:
        return
    totals = compute_sequence_totals(config)
    wanted = compute_sequence_totals(config, mixture.same_total_as)
    for tag in config.tags:
        # A stage begins with a step, so no schedule can be nearer to another than that.
        if abs(totals[tag] - wanted[tag]) >= config.batch_size:
            raise ValueError(
                f"config.mixture.same_total_as gives {tag} {float(wanted[tag]):,.10g} sequences in "
                f"all, but the run gives it {float(totals[tag]):,.10g}. Change the ratios or the "
                "lengths of config.mixture.stages, or set same_total_as=()."
            )


def _check_sequence_counts(config: Config) -> None:
    """Raises ValueError if a language has more sequences than a TrainState counts."""
    sequences = config.steps * config.batch_size
    most = sequences
    if not config.mixture.follows_text:
        most = int(max(compute_sequence_totals(config).values()))
    if most > INT32:
        raise ValueError(
            f"config.steps={config.steps} of config.batch_size={config.batch_size} are "
            f"{sequences:,} sequences, with {most:,} of one language, and a run counts up to "
            f"{INT32:,} of each. Set fewer config.steps, or a smaller config.batch_size with a "
            "larger config.model.L."
        )
