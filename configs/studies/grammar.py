"""A rare clone of a toy language, held against every baseline.

    python -m imbalance_jax.study run --config=configs/studies/grammar.py:parts=none --pack=3
    python -m imbalance_jax.study run --config=configs/studies/grammar.py --pack=3

90:10, and the rare language alone with as many tokens and updates, in three seeds; parts adds all,
none, or some of these with + between them:

    alone     the language alone on a quarter, on half and on all of the tokens, for a law
    even      50:50
    placebo   90:10, where the words of the dominant clone are shuffled
    stranger  90:10, where the dominant language has another grammar and other words, and nothing
              in common with the rare one but the form of a sentence
    copied    90:10, where the rare clone's rows begin as copies of the dominant one's
    schedule  50:50 in all, 90:10 in one half of the run and 10:90 in the other, in both orders

seeds=5 is five seeds, seeds=10-14 those from 10 on. All other choices are those of
configs/grammar.py: with world=1 another language says other things in another lexicon.
bar is the loss, in nats, at or below which a language has found the grammar, and meets the cosine
of hidden states above that of shuffled pairs from which on two languages have met.
"""

import ml_collections

from imbalance_jax import config as config_lib
from imbalance_jax.config import LanguageConfig, SourceConfig
from imbalance_jax.study import grid, study_presets

PARTS = ("alone", "even", "placebo", "stranger", "copied", "schedule")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    choice = study_presets.parse_grammar(arg, parts="all")
    parts = study_presets.chosen("parts", choice.parts, PARTS)
    uneven, even = (study_presets.grammatical(choice, ratio) for ratio in ("90:10", "50:50"))
    study = grid.Grid("A toy language and its rare clone.", unit=uneven)
    study.add("r90_10", uneven, seeds=choice.seeds)
    study.baselines(uneven, "toy1", fractions=(0.1,), seeds=choice.seeds, kinds=("matched",))
    _claim_transfer(study, choice)
    if "alone" in parts:
        study.baselines(
            uneven, "toy1", fractions=(0.25, 0.5), seeds=choice.seeds, kinds=("matched",)
        )
        study.baselines(uneven, "toy1", fractions=(1,), seeds=choice.seeds, kinds=("monolingual",))
    if "placebo" in parts:
        study.add("placebo", grid.placebo(uneven, "toy1"), seeds=choice.seeds, kind="placebo")
        study.claim(
            "beats_placebo",
            "A dominant clone helps the rare one more than its shuffled words do.",
            cell="r90_10",
            against="placebo",
            language="toy2",
            smallest=0.1,
        )
    if "stranger" in parts:
        study.add("stranger", _replace_dominant(uneven), seeds=choice.seeds)
        study.claim(
            "beats_stranger",
            "A dominant clone helps the rare one more than a dominant language of another grammar "
            "does, whose sentences have the same form.",
            cell="r90_10",
            against="stranger",
            language="toy2",
            smallest=0.05,
        )
    if "copied" in parts:
        study.add("copied", grid.copied(uneven, "toy2"), seeds=choice.seeds, kind="copied")
    if "even" in parts:
        study.add("r50_50", even, seeds=choice.seeds)
        _claim_imbalance(study, choice)
    if "schedule" in parts:
        for shares in ("0.1_0.9", "0.9_0.1"):
            cell = study_presets.schedule_cell(shares)
            study.add(cell, study_presets.scheduled(even, shares), seeds=choice.seeds)
            if "even" in parts:
                _claim_schedule(study, cell)
    return study.to_config()


def _replace_dominant(uneven: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Returns the mixture with a dominant language that says other things by another grammar."""
    config = ml_collections.ConfigDict(uneven.to_dict())
    config.sources.stranger = config_lib.declared(SourceConfig, **uneven.sources.toy.to_dict())
    config.sources.stranger.synthetic.world += 1000
    config.languages.toy1 = config_lib.declared(LanguageConfig, source="stranger")
    config.languages.toy2 = config_lib.declared(LanguageConfig, source="toy")
    return config


def _claim_transfer(study: grid.Grid, choice: study_presets.Choice) -> None:
    study.claim(
        "beats_matched",
        "At 90:10 the rare clone has a lower loss than alone with as many updates and tokens.",
        cell="r90_10",
        against="matched_toy1_10",
        language="toy2",
        against_language="toy1",
        smallest=0.1,
    )
    study.claim(
        "finds_grammar_sooner",
        "At 90:10 the rare clone finds the grammar sooner than alone with as many updates.",
        measure="steps_to",
        bar=choice.bar,
        cell="r90_10",
        against="matched_toy1_10",
        language="toy2",
        against_language="toy1",
        smallest=choice.soon,
    )
    study.claim(
        "aligns",
        "At 90:10 the hidden states of the clones are alike where they say the same.",
        measure="alignment",
        cell="r90_10",
        language="toy1-toy2",
        direction="higher",
        smallest=0.05,
    )


def _claim_imbalance(study: grid.Grid, choice: study_presets.Choice) -> None:
    for language, role in (("toy1", "dominant"), ("toy2", "rare")):
        study.claim(
            f"imbalance_helps_{role}",
            f"90:10 gives the {role} clone a lower loss than 50:50.",
            cell="r90_10",
            against="r50_50",
            language=language,
            smallest=0.02,
        )
        study.claim(
            f"imbalance_hastens_{role}",
            f"At 90:10 the {role} clone finds the grammar sooner than at 50:50.",
            measure="steps_to",
            bar=choice.bar,
            cell="r90_10",
            against="r50_50",
            language=language,
            smallest=choice.soon,
        )
    study.claim(
        "imbalance_aligns",
        "90:10 aligns the hidden states of the clones more than 50:50 does.",
        measure="alignment",
        cell="r90_10",
        against="r50_50",
        language="toy1-toy2",
        direction="higher",
        smallest=0.05,
    )
    study.claim(
        "imbalance_hastens_meeting",
        "At 90:10 the clones meet sooner than at 50:50.",
        measure="steps_to",
        bar=choice.meets,
        cell="r90_10",
        against="r50_50",
        language="toy1-toy2",
        smallest=choice.soon,
    )
    study.claim(
        "clones_are_equal",
        "At 50:50 both clones have the same loss.",
        cell="r50_50",
        against="r50_50",
        language="toy1",
        against_language="toy2",
        direction="same",
        smallest=0.02,
    )


def _claim_schedule(study: grid.Grid, cell: str) -> None:
    for language in ("toy1", "toy2"):
        study.claim(
            f"{cell}_helps_{language}",
            f"A schedule that is imbalanced at every moment and balanced in all ({cell}) gives "
            f"{language} a lower loss than 50:50.",
            cell=cell,
            against="r50_50",
            language=language,
            smallest=0.02,
        )
