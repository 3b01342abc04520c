"""English and French at eleven ratios, with ids apart and shared (Figure 3).

    python -m imbalance_jax.study run --config=configs/paper/e11_en_fr_ratio.py

It costs 52 runs, 54.1 billion tokens and 3.60e19 FLOPs; with baselines=none 22 runs, 26.3
billion tokens and 1.81e19 FLOPs.

The reference: TEff is U-shaped. The rare language gains (French at 5 % 1.34 with ids apart and
1.56 with equal pieces shared, English at 5 % 1.43 and 1.72), in the middle it is 0.81 to 0.91.

baselines=none leaves the monolingual runs of both laws out.

scale, files, seeds, steps and --config.reuse are as in configs/paper/e1_laws.py.
"""

import ml_collections

from imbalance_jax.reference import paper_presets

FRENCH = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    choice = paper_presets.parse(arg)
    study = paper_presets.grid_of("English and French at eleven ratios.", choice)
    for layout in paper_presets.LAYOUTS:
        for share in FRENCH:
            percent = round(100 * share)
            split = f"{100 - percent}/{percent}"
            paper_presets.add_pair(
                study, choice, ["Figure 3"], split, layout=layout, p_FR=str(share)
            )
    paper_presets.add_laws(study, choice, ["en", "fr"], ["small"])
    if choice.baselines == "all":
        for layout in paper_presets.LAYOUTS:
            study.claim(
                f"french_gains_{layout}",
                f"At 95:5 French needs fewer tokens than a monolingual model ({layout}).",
                measure="log_teff",
                cell=paper_presets.cell_of("95/5", layout=layout),
                language="fr",
                direction="higher",
                smallest=0.1,
            )
    return study.to_config()
