"""Two clones at six ratios, perplexity against the share of the second (Figure 1 left).

    python -m imbalance_jax.study run --config=configs/paper/e2_ratio.py

It costs 22 runs, 23.8 billion tokens and 1.51e19 FLOPs; with baselines=none 6 runs, 7.2 billion
tokens and 4.95e18 FLOPs.

The reference: the perplexity of EN2 is 35.8, 32.8, 32.4, 29.6, 27.6 and 26.1 at 5, 10, 20, 30,
40 and 50 % of the tokens, where the law of monolingual models has 82.7, 46.0, 33.3, ..., 25.4:
TEff 3.3, 2.08, 1.08, 0.936, 0.894 and 0.885.

baselines=none leaves the monolingual runs of the law out.

scale=pico runs the same grid small; files=DIR reads DIR/en.train.jsonl.gz and
DIR/en.test.jsonl.gz in place of wiki40b/en of TFDS, files=docstrings the embedded text; seeds
and steps are as in configs/studies/ratio.py. Runs that another study has finished serve
with --config.reuse="('studies/NAME',)".
"""

import ml_collections

from imbalance_jax.reference import paper_presets


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    choice = paper_presets.parse(arg)
    study = paper_presets.grid_of("Two clones of English at six ratios.", choice)
    paper_presets.add_ratio_sweep(study, choice, "Figure 1 left")
    paper_presets.add_laws(study, choice, ["en1"], ["small"])
    if choice.baselines == "all":
        study.claim(
            "rare_gains",
            "At 90:10 the rare clone needs fewer tokens than a monolingual model.",
            measure="log_teff",
            cell="r90_10_small_1x",
            language="en2",
            direction="higher",
            smallest=0.1,
        )
    study.claim(
        "clones_are_equal",
        "At 50:50 both clones have the same loss.",
        cell="r50_50_small_1x",
        against="r50_50_small_1x",
        language="en1",
        against_language="en2",
        direction="same",
        smallest=0.02,
    )
    return study.to_config()
