"""Parameters of another run that a run begins with, and whether its ids mean the same there.

init_hugging_face.py has what begins with a folder of Hugging Face.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh

from imbalance_jax import config as config_lib
from imbalance_jax.compute import model as model_lib
from imbalance_jax.compute import step as step_lib
from imbalance_jax.compute.checkpoint import DamagedCheckpoint
from imbalance_jax.data import languages
from imbalance_jax.data.tokenizer import parse_tokenizer, read_tokenizer_file
from imbalance_jax.runs import storage
from imbalance_jax.runs.run_directory import RunDirectory, run_and_step
from imbalance_jax.training import init_hugging_face
from imbalance_jax.training.loading import (
    check_checkpoint_exists,
    check_not_export,
    find_tokenizer_file,
    read_tokenizer_model,
    read_vocabulary,
    restore_state,
)


def check_init_from(config: config_lib.Config) -> None:
    """Raises ValueError if a run cannot begin with the parameters that its config names.

    Reads neither weights nor text, so that a mistake shows before any work is done. What the
    ids of the two runs mean is known for certain when this one's text is prepared:
    `check_vocabulary`.
    """
    if not config.init_from:
        return
    if init_hugging_face.is_hugging_face_folder(config.init_from):
        init_hugging_face.check_folder(config)
        return
    run, step = run_and_step(config.init_from)
    try:
        check_not_export(run)
        other = run.config()
        check_checkpoint_exists(run, step, run.steps())
        _check_config_ids(config, run, other)
    except FileNotFoundError as error:
        raise ValueError(
            f"config.init_from={config.init_from!r} is not RUN or RUN@STEP: {error}"
        ) from error
    ours, theirs = (_list_architecture(each.model) for each in (config, other))
    for name, value in theirs.items():
        if ours[name] != value:
            where = f"{run}/checkpoints" + (f"/{step}" if step is not None else "")
            raise ValueError(
                f"{where} was written with config.model.{name}={value}, but this "
                f"run has config.model.{name}={ours[name]}. Use another "
                f"config.init_from, or set config.model.{name}={value}."
            )


def _list_architecture(model: config_lib.ModelConfig) -> dict[str, Any]:
    """Returns the fields that two models have in common whose parameters mean the same."""
    same = (*"LDHKFN", "tied", "position_tables", "base_width", "base_head_width")
    rest: dict[str, Any] = {"kv_heads": model.count_kv_heads()}
    if model.settle("position") == "rope":
        rest["rope_theta"] = model.rope_theta
    return {name: getattr(model, name) for name in same} | model.settle_dials() | rest


def _check_config_ids(
    config: config_lib.Config, run: RunDirectory, other: config_lib.Config
) -> None:
    """Raises ValueError if a config alone says that its ids mean something else than a run's."""
    if set(config.tags) != set(other.tags):
        raise ValueError(
            f"config.init_from={config.init_from!r} has the languages {', '.join(other.tags)}, "
            f"and this run has {', '.join(config.tags)}: a row of its tables would get another "
            "meaning. Give this run those languages (config.mixture.ratio may be 0), or use "
            "another config.init_from."
        )
    for tag in config.tags:
        rows = config.languages[tag].rows
        if rows == "copied" != other.languages[tag].rows:
            raise ValueError(
                f"config.languages.{tag}.rows={rows!r} would copy nothing: all rows come from "
                f"config.init_from={config.init_from!r}. Leave it out."
            )
        field, tokenizer = _find_tokenizer_field(config, tag)
        if config.sources[config.source_of(tag)].kind == "synthetic":
            continue
        model = read_tokenizer_model(run, other, tag)
        if tokenizer.path and storage.parse_path(tokenizer.path).exists():
            ours = read_tokenizer_file(tokenizer.path)
            _check_tokenizer(config.init_from, tag, field, (run, other), ours)
        elif not tokenizer.path and tokenizer.size != (size := parse_tokenizer(model).size):
            trained = tokenizer.is_trained
            ours_by = f"vocab_size={tokenizer.size}" if trained else "model_type='bytes'"
            raise ValueError(
                f"config.init_from={config.init_from!r} has {size} pieces of {tag}, and this run "
                f"has {field}.{ours_by}. Set "
                f"{field}.path={find_tokenizer_file(run, other, tag)}, or use another "
                "config.init_from."
            )


def _find_tokenizer_field(
    config: config_lib.Config, tag: str
) -> tuple[str, config_lib.TokenizerConfig]:
    """Returns the field that says what a language is tokenized with, and its value."""
    if config.vocabulary.layout == "joint":
        return "config.vocabulary.tokenizer", config.vocabulary.tokenizer
    name = config.source_of(tag)
    return f"config.sources.{name}.tokenizer", config.sources[name].tokenizer


def check_vocabulary(
    config: config_lib.Config, vocabulary: languages.Vocabulary, models: Mapping[str, bytes]
) -> None:
    """Raises ValueError if an id of the run that a config begins with means something else here.

    Args:
      config: with `init_from`.
      vocabulary: of this run.
      models: source name -> this run's tokenizer.
    """
    if init_hugging_face.is_hugging_face_folder(config.init_from):
        init_hugging_face.find_folder_rows(config, vocabulary, models)
        return
    run, _ = run_and_step(config.init_from)
    try:
        other, before = run.config(), read_vocabulary(run)
        for tag in config.tags:
            before.index(tag)
            field, _ = _find_tokenizer_field(config, tag)
            model = models[config.source_of(tag)]
            _check_tokenizer(config.init_from, tag, field, (run, other), model)
    except FileNotFoundError as error:
        raise ValueError(f"config.init_from={config.init_from!r}: {error}") from error
    for tag in config.tags:
        ours_U = vocabulary.map_GU[vocabulary.index(tag)]
        theirs_U = before.map_GU[before.index(tag)]
        ours_U, theirs_U = ours_U[ours_U >= 0], theirs_U[theirs_U >= 0]
        differs = np.flatnonzero(ours_U != theirs_U)
        if len(differs):
            u = int(differs[0])
            piece = parse_tokenizer(models[config.source_of(tag)]).strings[u]
            raise ValueError(
                f"config.init_from={config.init_from!r} has other ids for {len(differs)} of the "
                f"{len(ours_U)} pieces of {tag}: {piece!r} is {theirs_U[u]} there and {ours_U[u]} "
                "here. Give this run the config.languages (their order and anchors too) and the "
                "config.vocabulary of that one."
            )
    if vocabulary.size != before.size:
        raise ValueError(
            f"{run} has a vocabulary of {before.size} ids, this run one of {vocabulary.size}. "
            "Give this run the languages and tokenizers of that one."
        )


def _check_tokenizer(
    init_from: str,
    tag: str,
    field: str,
    before: tuple[RunDirectory, config_lib.Config],
    model: bytes,
) -> None:
    """Raises ValueError if a run has another tokenizer of a language than this one."""
    other = read_tokenizer_model(*before, tag)
    if other == model:
        return
    pieces = [parse_tokenizer(each).strings for each in (other, model)]
    differs = [u for u, (x, y) in enumerate(zip(*pieces, strict=False)) if x != y]
    if differs:
        u = differs[0]
        what = f"its piece {u} is {pieces[0][u]!r}, and here it is {pieces[1][u]!r}"
    elif len(pieces[0]) != len(pieces[1]):
        what = f"it has {len(pieces[0])} pieces, and here there are {len(pieces[1])}"
    else:
        what = "it has the same pieces, but cuts text in another way"
    raise ValueError(
        f"config.init_from={init_from!r} has another tokenizer of {tag}: {what}. Set "
        f"{field}.path={find_tokenizer_file(*before, tag)}, or use another config.init_from."
    )


def restore_params(
    config: config_lib.Config,
    mesh: Mesh,
    vocabulary: languages.Vocabulary,
    models: Mapping[str, bytes],
    params: model_lib.Params,
) -> model_lib.Params:
    """Returns the parameters that a run begins with, on its devices, after `check_init_from`.

    Args: as `check_vocabulary`; mesh is that of the devices, and params what the run would begin
    with otherwise.

    Raises:
      ValueError: as `check_vocabulary`, or there is no such checkpoint, or it is damaged.
    """
    if init_hugging_face.is_hugging_face_folder(config.init_from):
        return init_hugging_face.restore_folder_params(config, vocabulary, models, params)
    check_vocabulary(config, vocabulary, models)
    run, step = run_and_step(config.init_from)
    like = step_lib.make_abstract_state(run.config(), vocabulary.size, mesh)
    try:
        # The newest is named, because another one would make another run of it.
        return restore_state(run, step or run.newest_checkpoint() or None, like).params
    except (FileNotFoundError, DamagedCheckpoint) as error:
        raise ValueError(f"config.init_from={config.init_from!r}: {error}") from error
