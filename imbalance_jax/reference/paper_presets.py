"""What the files of configs/paper have in common: the reference study's runs, at any scale.

The reference is arXiv 2404.07982. Its small model is that of the scale `small`; mini and
medium are the scales of their names. At another scale that scale's model takes the place of
small, mini has half its blocks, width and heads and medium twice as many, and medium has
twice the batch for half the steps, as there. Lengths are fractions of the small model's steps,
rounded down.
"""

import types
from collections.abc import Mapping, Sequence

import ml_collections

from imbalance_jax import config as config_lib
from imbalance_jax.study import grid, study_presets

CHOICES = {"scale": "small", "seeds": "1", "steps": "", "files": "", "baselines": "all"}

# Monolingual runs, in units of the small model's tokens.
_SMALL = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0)
_MINI = (0.05, 0.1, 0.25, 0.5, 1.0)
FRACTIONS: Mapping[tuple[str, str], tuple[float, ...]] = {
    ("en", "small"): (*_SMALL, 1.5, 2.0, 3.0),
    ("fr", "small"): (*_SMALL, 2.0),
    ("en", "mini"): _MINI,
    ("fr", "mini"): _MINI,
    ("en", "medium"): (0.1, 0.24, 0.5, 1.0, 1.2, 2.04, 2.16, 2.28, 2.4),
    ("fr", "medium"): (0.1, 0.24, 0.5, 1.0, 1.2, 2.4),
}
# Of the medium model's own steps. What is called 2.4x is 2.399 times the tokens of 1x.
_MEDIUM_LONG = 21908 / 9132
_SHORT_MEDIUM = (0.1, 0.5, 1.0)  # parts of its 1x; the others are parts of its 2.4x

# As the rows of results that were reported call them.
CLONED = "cloned 2x16384"
ENGLISH_ONLY = "EN only (16384)"
_MEDIUM_TOKENS = {"1x": "1x (1.19695e9 tok)", "2.4x": "2.4x (2.87153e9 tok)"}
LAYOUTS = {"disjoint": "disjoint 2x16384", "merged": "anchored/merged 29040"}


def parse(arg: str, **more: str) -> types.SimpleNamespace:
    """Returns the choices of a file, those of all among them."""
    choice = config_lib.parse_arg(arg, **CHOICES, **more)
    choice.seeds = grid.parse_seeds(choice.seeds)
    if choice.baselines not in ("all", "none"):
        raise ValueError(f"baselines={choice.baselines}: choose all or none.")
    return choice


def clones(
    choice: types.SimpleNamespace, ratio: str, *, size: str = "small", tokens: float = 1
) -> ml_collections.ConfigDict:
    """Returns a run on clones of English as the reference trained it.

    The ratio counts sequences of en1, en2, ...; the size is mini, small or medium; the run has
    so many tokens in units of the small model's.
    """
    config = config_lib.cloned(scale=_choose_scale(choice, size), ratio=ratio)
    otherwise, files = "wiki40b", choice.files
    if files == "docstrings":
        otherwise, files = "docstrings", ""
    config.sources.en.update(study_presets.make_text_fields("en", files, otherwise=otherwise))
    return _apply_reference_settings(config, choice, size, tokens)


def spoken(
    choice: types.SimpleNamespace,
    ratio: str,
    *,
    layout: str = "merged",
    size: str = "small",
    tokens: float = 1,
) -> ml_collections.ConfigDict:
    """Returns a run on English and French as the reference trained it; layout as in `config`."""
    scale = _choose_scale(choice, size)
    config = study_presets.make_english_french(choice.files, ratio, scale=scale, layout=layout)
    return _apply_reference_settings(config, choice, size, tokens)


def _choose_scale(choice: types.SimpleNamespace, size: str) -> str:
    return size if choice.scale == "small" else choice.scale


def _apply_reference_settings(
    config: ml_collections.ConfigDict, choice: types.SimpleNamespace, size: str, tokens: float
) -> ml_collections.ConfigDict:
    """Sets size and length, and how the reference sampled and ordered its text, in place."""
    steps = int(config_lib.SCALES[choice.scale]["steps"])
    if choice.steps:
        steps = study_presets.whole("steps", choice.steps)
    if choice.scale != "small":
        if size == "mini":
            config = study_presets.resized(config, 0.5)
        if size == "medium":
            config = study_presets.resized(config, 2)
            config.batch_size *= 2
    if size == "medium":
        steps //= 2
        if tokens not in _SHORT_MEDIUM:
            steps, tokens = int(_MEDIUM_LONG * steps + 1e-9), tokens / 2.4
    config.steps = int(tokens * steps + 1e-9)
    config.mixture.sampler = "bernoulli"
    config.mixture.order = "sequential"
    # Streams begin again at their end, in whichever language is drawn.
    config.mixture.reuse = "any"
    config.vocabulary.anchor_specials = "reference"
    return study_presets.measured(config)


def grid_of(description: str, choice: types.SimpleNamespace) -> grid.Grid:
    """Returns an empty grid whose 1x is the small model's."""
    return grid.Grid(description, unit=clones(choice, "50:50"))


def setting(
    languages: str,
    split: str,
    vocab: str,
    *,
    size: str = "small",
    tokens: str = "1x",
    schedule: str = "none",
    **more: str,
) -> dict[str, str]:
    """Returns what identifies rows of reported results, in the words of those rows."""
    return {
        "languages": languages,
        "split": split,
        "model": size,
        "tokens": tokens,
        "schedule": schedule,
        "vocab": vocab,
        **more,
    }


def add_clones(
    study: grid.Grid, choice: types.SimpleNamespace, figure: str, split: str, **fields: str
) -> None:
    """Adds a run on two clones, at a split such as 90/10, of a figure or table.

    The figure is named as the reported results name it; the fields are those of `_add_run`.
    """
    _add_run(study, choice, (figure,), split, **fields)


def add_pair(
    study: grid.Grid,
    choice: types.SimpleNamespace,
    figures: Sequence[str],
    split: str,
    *,
    layout: str = "merged",
    **fields: str,
) -> None:
    """Adds a run on English and French; the split is English/French. See `add_clones`."""
    _add_run(study, choice, figures, split, layout=layout, **fields)


def _add_run(
    study: grid.Grid,
    choice: types.SimpleNamespace,
    figures: Sequence[str],
    split: str,
    *,
    layout: str = "",
    size: str = "small",
    length: str = "1x",
    schedule: str = "none",
    **more: str,
) -> None:
    """Adds a run to a study, with the setting of the reported results that it is held against.

    Args:
      study: to add to.
      choice: of the file.
      figures: as the reported results call them.
      split: such as 90/10.
      layout: of the vocabulary of English and French; "" for clones.
      size: mini, small or medium.
      length: such as 2x.
      schedule: of the share of the second language, such as 0.1_0.9.
      more: what else identifies the reported results, such as p_EN2.
    """
    ratio, tokens = split.replace("/", ":"), float(length.removesuffix("x"))
    if layout:
        config = spoken(choice, ratio, layout=layout, size=size, tokens=tokens)
    else:
        config = clones(choice, ratio, size=size, tokens=tokens)
    cell = cell_of(split, size=size, length=length, layout=layout)
    if schedule != "none":
        config = study_presets.scheduled(config, schedule)
        cell = cell_of(schedule, size=size, length=length, layout=layout)
        split = f"{split} overall"
    reference = setting(
        "+".join(config.languages).upper(),
        split,
        LAYOUTS.get(layout, CLONED),
        size=size,
        tokens=_MEDIUM_TOKENS[length] if size == "medium" else length,
        schedule=schedule,
        **more,
    )
    study.add(cell, config, seeds=choice.seeds, figures=figures, reference=reference)


def add_ratio_sweep(study: grid.Grid, choice: types.SimpleNamespace, figure: str) -> None:
    """Adds two clones at the six ratios of the reference, to be shown in a figure."""
    for percent in (5, 10, 20, 30, 40, 50):
        split = f"{100 - percent}/{percent}"
        add_clones(study, choice, figure, split, p_EN2=f"{percent / 100:g}")


def cell_of(split: str, *, size: str = "small", length: str = "1x", layout: str = "") -> str:
    """Returns a cell's name: 90/10 is r90_10_small_1x, and the schedule 0.1_0.9 s10_90_small_1x."""
    if "/" in split:
        name = study_presets.ratio_cell(split.replace("/", ":"))
    else:
        name = study_presets.schedule_cell(split)
    return "_".join(filter(None, (name, layout, size, length.replace(".", "p"))))


def add_laws(
    study: grid.Grid, choice: types.SimpleNamespace, tags: Sequence[str], sizes: Sequence[str]
) -> None:
    """Adds the monolingual runs that the laws of some languages and sizes are fitted to.

    None with baselines=none.
    """
    for size in sizes if choice.baselines == "all" else ():
        for tag in tags:
            for tokens in FRACTIONS[tag.rstrip("1"), size]:
                add_alone(study, choice, tag, tokens, size=size)


def add_alone(
    study: grid.Grid,
    choice: types.SimpleNamespace,
    tag: str,
    tokens: float,
    *,
    size: str = "small",
    figures: Sequence[str] = (),
    reference: Mapping[str, str] | None = None,
) -> None:
    """Adds a monolingual run as the reference made its baselines.

    French was trained by the bilingual program with nothing but French, so that its models
    have the vocabulary of both languages; which of the two is not known, and is merged here.
    The tag is en1 beside clones, or en or fr beside each other; tokens are in units of the small
    model's; figures and reference are as for `Grid.add`.
    """
    make = clones if tag == "en1" else spoken
    mixture = make(choice, "1:1", size=size, tokens=tokens)
    study.add(
        f"mono_{tag}_{size}_{grid.percent(tokens)}",
        grid.make_baseline(mixture, tag, 1, "wide" if tag == "fr" else "monolingual"),
        seeds=choice.seeds,
        kind="monolingual",
        figures=figures,
        reference=reference,
    )
