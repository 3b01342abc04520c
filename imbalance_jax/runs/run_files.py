"""What each file of a run directory has to hold, and how one that is damaged is made again."""

import shlex
from collections.abc import Collection, Mapping
from typing import NamedTuple

from imbalance_jax.runs.damaged_files import ANY, NUMBER, Shape

_AGAIN = (
    "Start the run again without it and without DONE: it goes on from its newest checkpoint and "
    "writes the file anew."
)
_SCORE = "Delete it, and score the run again with python -m imbalance_jax.evaluate --workdir={run}."
_LANGUAGES = {"loss": NUMBER, "ppl": NUMBER, "language_nats": NUMBER, "loss_own": NUMBER}


class RunFile(NamedTuple):
    """What a file has to hold: the shape of JSON, or the columns of CSV."""

    remedy: str  # how it is made again; {run} stands for the directory
    shape: Shape = dict
    required: Collection[str] = ()
    words: Collection[str] = ()  # columns of text


_FILES: Mapping[str, RunFile] = {
    "config.json": RunFile("Copy it back, or use another --workdir."),
    "provenance.json": RunFile(
        _AGAIN,
        {
            "sources?": {"*": {"fingerprint?": str, "kind?": str, "text?": str, "tokenizer?": str}},
            "parallel?": {"*": {"fingerprint": str}},
            "order_version?": int,
            "vocab_size?": int,
            "conditions?": dict,
            "packages?": dict,
        },
    ),
    "evaluation.json": RunFile(
        _SCORE,
        {
            "step": int,
            "split?": str,
            "languages?": {"*": {f"{name}?": kind for name, kind in _LANGUAGES.items()}},
            "alignment?": dict,
            "parallel?": dict,
            "minimal_pairs?": {"*": {"pairs": int, "accuracy?": NUMBER, "interval?": list}},
        },
    ),
    "test_texts.csv": RunFile(
        _SCORE.replace("={run}", "={run} --overwrite"),
        required=("language", "text", "loss", "tokens"),
        words=("language",),
    ),
    "mixture.csv": RunFile(
        _AGAIN,
        required=("language", "requested_sequences", "realised_sequences", "realised_tokens"),
        words=("language", "pool", "ratio"),
    ),
    "FAILED.json": RunFile("Delete it.", {"step": int, "error": str, "message": str}),
    "wandb.json": RunFile("Delete it: the run then is a new one at Weights & Biases.", {"id": str}),
    "word2vec.json": RunFile(
        "Delete it, and run python -m imbalance_jax.word2vec --workdir={run} again.",
        {"*": {"settings?": dict, "steps?": int}},
    ),
    "transfer.json": RunFile(
        "Delete it, and run python -m imbalance_jax.transfer --workdir={run} again.",
        {"*": {"*": {"*": {"languages": {"*": dict}}}}},
    ),
    "first_updates.json": RunFile(
        "Delete it: then no resume can be verified before the next checkpoint.",
        {"*": {"checkpoint": str, "metrics": dict, "conditions": dict}},
    ),
    "vocabulary.npz": RunFile(_AGAIN),
    "tokenizer.model": RunFile(_AGAIN),
}


def describe_run_file(name: str, run: object) -> RunFile:
    """Returns what a file of a run has to hold; `run` is its directory.

    Results of an earlier step, such as evaluation-20.json, hold what evaluation.json does.
    """
    stem, _, kind = name.rpartition(".")
    found = _FILES.get(name) or _FILES.get(f"{stem.partition('-')[0]}.{kind}")
    if found is None:
        return RunFile("Delete it, or copy it back.", ANY)
    return found._replace(remedy=found.remedy.replace("{run}", shlex.quote(str(run))))
