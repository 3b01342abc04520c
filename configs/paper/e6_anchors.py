"""Two clones in equal parts that share some of their ids (Figure 8).

    python -m imbalance_jax.study run --config=configs/paper/e6_anchors.py

It costs 13 runs, 13.8 billion tokens and 9.08e18 FLOPs.

The reference: the perplexity of EN1 is 26.13 without anchors, 23.40 with 5 % of the ids, then
23.13, 22.93, 22.35, 22.28 and 22.16 with 10, 25, 50, 80 and 90 %, and 21.93 alone. The dotted
lines are the language alone on 50 to 90 % of the tokens.

A draw of ids decides about the separator of documents too (anchor_specials=reference).
baselines does nothing here: the lines are part of the figure.

scale, files, seeds, steps and --config.reuse are as in configs/paper/e2_ratio.py.
"""

import ml_collections

from imbalance_jax.reference import paper_presets
from imbalance_jax.study import grid

ANCHORS = (0.0, 0.05, 0.1, 0.25, 0.5, 0.8, 0.9)


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    choice = paper_presets.parse(arg)
    study = paper_presets.grid_of("Two clones of English that share ids.", choice)
    even = paper_presets.clones(choice, "50:50")
    for share in ANCHORS:
        study.add(
            f"anchors_{grid.percent(share)}",
            grid.anchored(even, "en2", share),
            seeds=choice.seeds,
            figures=("Figure 8",),
            reference=_setting("EN1+EN2", "50/50", share),
        )
    paper_presets.add_alone(
        study,
        choice,
        "en1",
        1,
        figures=("Figure 8",),
        reference=_setting("EN1 (monolingual)", "100/0", 1.0),
    )
    for tokens in (0.5, 0.6, 0.7, 0.8, 0.9):
        reference = paper_presets.setting(
            "EN1", "100/0", paper_presets.ENGLISH_ONLY, tokens=f"{tokens}x"
        )
        paper_presets.add_alone(
            study, choice, "en1", tokens, figures=("Figure 8",), reference=reference
        )
    study.claim(
        "few_suffice",
        "Sharing one id in twenty lowers the loss of the first clone.",
        cell="anchors_5",
        against="anchors_0",
        language="en1",
        smallest=0.05,
    )
    return study.to_config()


def _setting(languages: str, split: str, share: float) -> dict[str, str]:
    vocab = f"anchored fraction {share} (frac_clone={1 - share:.12g})"
    if share in (0, 1):
        vocab = f"anchored fraction {share} (frac_clone={1 - share})"
    return paper_presets.setting(languages, split, vocab, anchor_fraction=str(share))
