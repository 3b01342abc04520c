"""What the files of configs/studies have in common: their choices, text and size of a run.

A config file is run by itself and cannot import another one, so that this is a module.
"""

import os
import types
from collections.abc import Sequence
from typing import TypeAlias

import ml_collections
import numpy as np

from imbalance_jax import config as config_lib
from imbalance_jax.config import ParallelConfig
from imbalance_jax.data.text import patterns
from imbalance_jax.study import grid

CHOICES = {"scale": "pico", "seeds": "3", "steps": "", "batch": "", "test": "", "files": ""}
# Sequences per update. A twentieth, a tenth and a quarter of 40 are whole, so that baselines
# with a mixture's updates get exactly its tokens; of 32 they are not. Other scales keep the
# 128 or 256 of the reference study, where such a baseline is off by half a sequence at most.
_BATCH = {"demo": 40, "pico": 40}
_EVALUATIONS = 8  # of a run, along its way
_GRAMMAR_EVALUATIONS = 30  # of a run on a toy language, whose loss falls within few steps

Choice: TypeAlias = types.SimpleNamespace  # of the colon of --config=FILE:name=value


def parse(arg: str, **more: str) -> Choice:
    """Returns the choices of a study: those of all, and its own."""
    choice = config_lib.parse_arg(arg, **CHOICES, **more)
    choice.seeds = grid.parse_seeds(choice.seeds)
    return choice


def clones(choice: Choice, ratio: str) -> ml_collections.ConfigDict:
    """Returns a run of a study on clones of English, en1, en2, ..., at a ratio such as 90:10."""
    config = config_lib.cloned(scale=choice.scale, ratio=ratio)
    config.sources.en.update(make_text_fields("en", choice.files, otherwise="docstrings"))
    return sized(config, choice)


def spoken(choice: Choice, ratio: str, *, layout: str = "merged") -> ml_collections.ConfigDict:
    """Returns a run of a study on English and French."""
    return sized(
        make_english_french(choice.files, ratio, scale=choice.scale, layout=layout), choice
    )


def parse_grammar(arg: str, **more: str) -> Choice:
    """Returns the choices of a study of the toy language of configs/grammar.py, and its own."""
    defaults = {name: text for name, text in config_lib.GRAMMAR.items() if name != "ratio"}
    own = {"seeds": "3", "bar": "3.3", "meets": "0.1"}
    choice = config_lib.parse_arg(arg, **own | defaults | more)
    choice.seeds = grid.parse_seeds(choice.seeds)
    choice.bar, choice.meets = number("bar", choice.bar), number("meets", choice.meets)
    # Of two events that are seen once in `_GRAMMAR_EVALUATIONS`, what is sure to be told apart.
    choice.soon = whole("steps", choice.steps) / _GRAMMAR_EVALUATIONS * 2
    return choice


def grammatical(choice: Choice, ratio: str, **changes: object) -> ml_collections.ConfigDict:
    """Returns a run of a study on a toy language and its clones at a ratio.

    Args:
      choice: as `parse_grammar` returns it.
      ratio: such as 90:10.
      changes: of the choices, such as D=32.
    """
    texts = {name: str(value) for name, value in changes.items()}
    config = config_lib.grammatical(Choice(**vars(choice) | texts | {"ratio": ratio}))
    config.evaluation.every = max(1, config.steps // _GRAMMAR_EVALUATIONS)
    # Every third time, as alignment costs more than the losses.
    config.evaluation.alignment.update(every=3 * config.evaluation.every, budget=1.0)
    config.checkpoint.update(every=0, keep=1)
    config.mesh.update(member=-1, data=1)
    return config


def make_english_french(
    files: str, ratio: str, *, scale: str, layout: str
) -> ml_collections.ConfigDict:
    """Returns a run on English and French, from files or else wiki40b, as configs/en_fr.py."""
    sources = {}
    for name in ("en", "fr"):
        sources[name] = config_lib.declared(config_lib.SourceConfig)
        sources[name].update(make_text_fields(name, files, otherwise="wiki40b"))
    config = config_lib.spoken(sources, scale=scale, ratio=ratio)
    config.vocabulary.layout = layout
    path = os.path.join(files, "parallel.jsonl.gz")
    # A folder that is not on this machine is taken to have all that it may have.
    if files and (os.path.isfile(path) or not os.path.isdir(files)):
        config.parallel.en_fr = config_lib.declared(ParallelConfig, sources=("en", "fr"), path=path)
    return config


def make_text_fields(name: str, files: str, *, otherwise: str) -> dict[str, str]:
    """Returns the fields of a source that say where its text is.

    Args:
      name: of the source: en or fr.
      files: a folder with files that are named after the source, or "". Of a folder that is not on
        this machine, NAME.train.jsonl.gz and NAME.test.jsonl.gz are meant.
      otherwise: what to read without files: docstrings, or wiki40b of TFDS.

    Raises:
      ValueError: the folder has no such files.
    """
    if files:
        splits = {s: os.path.join(files, f"{name}.{s}.jsonl.gz") for s in ("train", "test")}
        if os.path.isdir(files) and not all(map(os.path.isfile, splits.values())):
            splits = patterns.find_language_files(files, name)
        return {"kind": "files", **splits}
    if otherwise == "docstrings":
        return {"kind": "docstrings"}
    # The same article has the same id in every language.
    ids = {"markup": "wiki40b", "id_field": "wikidata_id"}
    return {"kind": "tfds", "dataset": f"wiki40b/{name}", **ids}


def sized(config: ml_collections.ConfigDict, choice: Choice) -> ml_collections.ConfigDict:
    """Sets steps and batch as the choices say, and what is measured, in place."""
    config.steps = whole("steps", choice.steps) if choice.steps else config.steps
    if choice.batch:
        config.batch_size = whole("batch", choice.batch)
    else:
        config.batch_size = _BATCH.get(choice.scale, config.batch_size)
    if choice.test:
        # Scored whole, so that the same time covers more of the text.
        config.evaluation.stride = config.model.L
        config.evaluation.max_test_windows = whole("test", choice.test)
    # Several devices are shared out among the members of a pack, and a run alone has them all.
    config.mesh.update(member=-1, data=1)
    return measured(config)


def measured(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Has a run measured now and then, and its alignment after the last step, in place."""
    config.evaluation.every = max(1, config.steps // _EVALUATIONS)
    config.evaluation.alignment.every = config.steps
    config.evaluation.alignment.budget = 1.0
    return config


def lengthened(config: ml_collections.ConfigDict, factor: float) -> ml_collections.ConfigDict:
    """Returns a run of so many times the steps, which is measured at its own end."""
    return measured(grid.lengthen_run(config, factor))


def resized(config: ml_collections.ConfigDict, factor: float) -> ml_collections.ConfigDict:
    """Returns a run whose model has so many times the blocks, width and heads.

    Raises:
      ValueError: they are not whole numbers.
    """
    changed = ml_collections.ConfigDict(config.to_dict())
    for name in "NDHF":
        value = factor * config.model[name]
        if value != int(value) or value < 1:
            raise ValueError(
                f"sizes={factor:g}: {name} = {config.model[name]} of this scale becomes "
                f"{value:g}. Write factors that keep N, D, H and F whole, such as 0.5 or 2."
            )
        changed.model[name] = int(value)
    return changed


def scheduled(
    config: ml_collections.ConfigDict, shares: str, *, boundary: int = 0
) -> ml_collections.ConfigDict:
    """Returns a run on two languages with a schedule in place of its ratio.

    Args:
      config: of a run on two languages.
      shares: the share of the second language in each stage, such as 0.1_0.9.
      boundary: the step at which the second of two stages begins; 0 makes all stages equally
        long, and then has the run refused unless its totals are those of the ratio.
    """
    changed = ml_collections.ConfigDict(config.to_dict())
    schedule = config_lib.equal_stages(shares, *config.languages)
    if boundary:
        (_, before), (_, after) = schedule
        schedule = ((0, before), (boundary, after))
    else:
        changed.mixture.same_total_as = ((0, config.mixture.ratio.to_dict()),)
    changed.mixture.stages = schedule
    return changed


def half_learning_rate(config: ml_collections.ConfigDict) -> int:
    """Returns the step before which half of all learning rate is spent.

    The sum of the cosine schedule over the updates of a run, its warm-up included.

    Raises:
      ValueError: the schedule is not a cosine.
    """
    optimizer, steps = config.optimizer, config.steps
    if optimizer.schedule != "cosine":
        raise ValueError(
            f"config.optimizer.schedule={optimizer.schedule!r}: stages are weighed by a cosine. "
            "Set config.optimizer.schedule=cosine."
        )
    rates = config_lib.compute_learning_rate(optimizer, steps, np.arange(1, steps + 1), np)
    spent = np.cumsum(rates)
    return int(np.argmin(np.abs(spent - spent[-1] / 2))) + 1


def ratio_cell(ratio: str) -> str:
    """Returns a ratio as a cell's name: 90:10 is r90_10."""
    return f"r{ratio.replace(':', '_')}"


def schedule_cell(shares: str) -> str:
    """Returns a schedule as a cell's name: 0.1_0.9 is s10_90."""
    return "s" + "_".join(grid.percent(float(share)) for share in shares.split("_"))


def whole(name: str, text: str) -> int:
    """Returns a choice that is a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{name}={text}: write a whole number above 0.")
    return int(text)


def listed(text: str) -> list[str]:
    """Returns the parts of a choice such as 1+2+4."""
    return text.split("+")


def numbers(name: str, text: str) -> list[float]:
    """Returns the numbers of a choice such as 0.5+1+2."""
    try:
        values = [float(part) for part in listed(text)]
    except ValueError:
        values = []
    if not values or not all(0 <= value < np.inf for value in values):
        raise ValueError(f"{name}={text}: write numbers with + between them, such as 0.5+1+2.")
    return values


def number(name: str, text: str) -> float:
    """Returns a choice that is one number, 0 or more."""
    try:
        values = numbers(name, text)
    except ValueError:
        raise ValueError(f"{name}={text}: write one number, 0 or more.") from None
    if len(values) > 1:
        raise ValueError(f"{name}={text}: write one number, such as {values[0]:g}.")
    return values[0]


def factors(name: str, text: str, offered: Sequence[str]) -> dict[str, float]:
    """Returns the factor of each part of a choice such as sgd:200+muon:2.

    Raises:
      ValueError: the file has no such part, or its factor is not a number.
    """
    found = {}
    for part in filter(None, listed(text)):
        key, _, value = part.partition(":")
        chosen(name, key, offered)
        found[key] = number(name, value)
    return found


def chosen(name: str, text: str, offered: Sequence[str]) -> list[str]:
    """Returns the parts of a choice that is all, none, or some of a file's parts with +.

    Raises:
      ValueError: the file has no such part.
    """
    if text in ("all", "none"):
        return list(offered) if text == "all" else []
    for part in listed(text):
        if part not in offered:
            raise ValueError(
                f"{name}={text}: there is no {part!r}. Write all, none, or some of "
                f"{'+'.join(offered)}."
            )
    return listed(text)
