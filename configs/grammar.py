"""A rare clone of a toy language, carried by the dominant one: the effect within two minutes.

    python -m imbalance_jax.main --config=configs/grammar.py --workdir=runs/grammar
    python -m imbalance_jax.main --config=configs/grammar.py:ratio=50:50 --workdir=runs/even

toy1 is a language of 256 words in sentences of three: the first word says of which topic the other
two are (imbalance_jax/data/text/synthetic.py). toy2 is its clone: the same text in other ids. The
loss of each falls suddenly when the model finds the grammar. A model that is given the tokens of
the rare clone alone, in as many updates (ratio=1,batch=4), does not find it in this time.

ratio has a part for toy1 and one for each clone. world is the seed of all that is said; lemmas,
topics, depth, rules and zipf are the language; L, D, N, batch, steps and lr (the peak rate) are the
model and its training. configs/studies/grammar.py holds the effect against every baseline.
"""

import ml_collections

from imbalance_jax import config as config_lib


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    config = config_lib.grammatical(config_lib.parse_arg(arg, **config_lib.GRAMMAR))
    config.evaluation.alignment.budget = 0.2
    return config
