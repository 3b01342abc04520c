"""Two clones in equal parts that share some of their ids.

    python -m imbalance_jax.main --config=configs/anchors.py --workdir=runs/anchors
    python -m imbalance_jax.main --config=configs/anchors.py:anchors=0.2,choice=frequent

anchors is the share of ids that en2 keeps from en1, or with measure=tokens the share of the
text that such ids make up: with it, choice=frequent and choice=rare are matched in how much of
the text is shared. choice=reference takes them at random, as the reference study does;
specials=reference lets its draw decide about the separator of documents as well. scale is as
in configs/90_10.py.
"""

import ml_collections

from imbalance_jax import config as config_lib


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    choice = config_lib.parse_arg(
        arg, scale="demo", anchors="0.05", choice="reference", measure="ids", specials="never"
    )
    config = config_lib.cloned(scale=choice.scale, ratio="50:50")
    try:
        config.languages.en2.anchors = float(choice.anchors)
    except ValueError:
        raise ValueError(f"anchors={choice.anchors}: write a share from 0 to 1.") from None
    config.languages.en2.anchor_choice = choice.choice
    config.languages.en2.anchor_measure = choice.measure
    config.vocabulary.anchor_specials = choice.specials
    return config
