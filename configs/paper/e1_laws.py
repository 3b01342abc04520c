"""Monolingual runs of three sizes in two languages, and the laws fitted to them (Figure 5).

    python -m imbalance_jax.study run --config=configs/paper/e1_laws.py

It costs 55 runs, 53.1 billion tokens and 6.05e19 FLOPs.

The reference: English small comes down from perplexity 78.9 at 5 % of the tokens to 21.93 at
1x and 18.78 at 3x, French small from 54.6 to 16.02 and 14.47 at 2x; 1/PPL = c - a x^-b with
a = 0.0387, b = 0.207, c = 0.0841 for English small. The top rows of Tables 1 and 3 are those
of e3_overview.py and e12_en_fr_overview.py.

Short runs have whole learning-rate schedules of their own. English has its own vocabulary;
French has that of both languages, as in the reference, where which of the two was not recorded.

scale=pico runs the same grid small; files=DIR reads DIR/{en,fr}.{train,test}.jsonl.gz, and
DIR/parallel.jsonl.gz for alignment, in place of wiki40b/en and wiki40b/fr of TFDS; seeds and
steps are as in configs/studies/ratio.py. Runs that another study has finished serve
with --config.reuse="('studies/NAME',)".
"""

import ml_collections

from imbalance_jax.reference import paper_presets


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    choice = paper_presets.parse(arg)
    study = paper_presets.grid_of("Monolingual runs of three sizes and two languages.", choice)
    for (language, size), fractions in paper_presets.FRACTIONS.items():
        for tokens in fractions:
            vocab = "bilingual, p_l2=1" if language == "fr" else paper_presets.ENGLISH_ONLY
            reference = paper_presets.setting(
                language.upper(), "monolingual", vocab, size=size, tokens=f"{tokens}x"
            )
            paper_presets.add_alone(
                study,
                choice,
                language,
                tokens,
                size=size,
                figures=("Figure 5",),
                reference=reference,
            )
    return study.to_config()
