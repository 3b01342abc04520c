"""Whether the effect is the architecture's or the optimizer's: 90:10 and 50:50, an arm at a time.

    python -m imbalance_jax.study run --config=configs/studies/why.py --pack=3
    python -m imbalance_jax.study run --config=configs/studies/why.py:text=toy --pack=3

Each arm has 90:10, 50:50 and the rare language alone with as many tokens and updates. arms is all,
none, or some of these with + between them; adam, the reference's, is always there:

    sgd       momentum alone, which divides no gradient by its size
    muon      orthogonal updates of the matrices of the blocks
    own       Adam with means of each language's own
    weighted  the losses weighed so that both languages have half of their sum
    tied      the head is the input embedding
    rope      rotated queries and keys in place of learned positions
    llama     Llama's block, with two thirds of the feed-forward width, as SwiGLU has a third matrix

own is Adam for a language alone, and weighted is adam at 50:50: these are not trained twice.
lrs=sgd:200+muon:2 multiplies the peak rate of an arm, and sweep=0.5+2 trains the 90:10 of every arm
at these factors of its rate too, one seed: an arm whose best rate is not inside says little.
text=english is clones of English, with the choices of configs/studies/ratio.py; text=toy is the toy
language of configs/grammar.py, with those of configs/studies/grammar.py.
"""

import ml_collections

from imbalance_jax.study import grid, study_presets

ARMS = {
    "sgd": {"optimizer": {"name": "sgd"}},
    "muon": {"optimizer": {"name": "muon"}},
    "own": {"optimizer": {"moments": "per_language"}},
    "weighted": {},
    "tied": {"model": {"tied": True}},
    "rope": {"model": {"position": "rope"}},
    "llama": {"model": {"preset": "llama"}},
}
# Of the peak rate of adam, the best of a sweep at 90:10 in either text (docs/results.md).
RATES = {"sgd": 100.0, "muon": 1.0}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    more = {"text": "english", "arms": "all", "lrs": "", "sweep": ""}
    toy = "text=toy" in arg.split(",")
    parse = study_presets.parse_grammar if toy else study_presets.parse
    choice = parse(arg, **more)
    study_presets.chosen("text", choice.text, ("english", "toy"))
    arms = ["adam", *study_presets.chosen("arms", choice.arms, tuple(ARMS))]
    rates = RATES | study_presets.factors("lrs", choice.lrs, arms)
    make = study_presets.grammatical if toy else study_presets.clones
    tags = ("toy1", "toy2") if toy else ("en1", "en2")
    study = grid.Grid(
        "Two clones at 90:10 and 50:50, under other optimizers and architectures.",
        unit=make(choice, "50:50"),
    )
    for arm in arms:
        uneven, even = (
            _change(make(choice, ratio), arm, rates.get(arm, 1.0)) for ratio in ("90:10", "50:50")
        )
        study.add(f"{arm}_r90_10", uneven, seeds=choice.seeds)
        if arm != "weighted":
            study.add(f"{arm}_r50_50", even, seeds=choice.seeds)
        if arm not in ("own", "weighted"):
            study.baselines(
                even,
                tags[0],
                fractions=(0.1,),
                seeds=choice.seeds,
                kinds=("matched",),
                prefix=f"{arm}_",
            )
        if choice.sweep:
            factors = study_presets.numbers("sweep", choice.sweep)
            study.sweep(f"{arm}_r90_10", uneven, factors=factors, seeds=choice.seeds[:1])
        _claim(study, arm, tags)
    return study.to_config()


def _change(config: ml_collections.ConfigDict, arm: str, rate: float) -> ml_collections.ConfigDict:
    """Returns a run as an arm has it."""
    config.update(ARMS.get(arm, {}))
    if arm == "llama":  # SwiGLU has a third matrix
        config.model.F = max(8, round(config.model.F * 2 / 3 / 8) * 8)
    config.optimizer.peak_lr *= rate
    config.optimizer.final_lr *= rate
    ratio = config.mixture.ratio.to_dict()
    if arm == "weighted" and len(set(ratio.values())) > 1:
        config.mixture.loss_weights = {tag: 1 / part for tag, part in ratio.items()}
    return config


def _claim(study: grid.Grid, arm: str, tags: tuple[str, str]) -> None:
    dominant, rare = tags
    uneven = f"{arm}_r90_10"
    alone = "adam" if arm in ("own", "weighted") else arm
    even = "adam_r50_50" if arm == "weighted" else f"{arm}_r50_50"
    study.claim(
        f"{arm}_rare_gains",
        f"Under {arm} the rare clone has a lower loss at 90:10 than alone with as many updates.",
        cell=uneven,
        against=f"{alone}_matched_{dominant}_10",
        language=rare,
        against_language=dominant,
        smallest=0.05,
    )
    study.claim(
        f"{arm}_aligns",
        f"Under {arm} the hidden states of the clones are more alike at 90:10 than at 50:50.",
        measure="alignment",
        cell=uneven,
        against=even,
        language=f"{dominant}-{rare}",
        direction="higher",
        smallest=0.05,
    )
    if arm in ("own", "weighted"):
        for language, role, direction in (
            (rare, "rare", "lower"),
            (dominant, "dominant", "higher"),
        ):
            study.claim(
                f"{arm}_shifts_{role}",
                f"At 90:10 the {role} clone has a {direction} loss under {arm} than under adam.",
                cell=uneven,
                against="adam_r90_10",
                language=language,
                direction=direction,
                smallest=0.02,
            )
