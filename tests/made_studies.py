"""Studies whose run directories are made up, from a law and effects that a test knows."""

import json
import math
import pathlib

import ml_collections
import numpy as np

from imbalance_jax import config as config_lib
from imbalance_jax.config import costs
from imbalance_jax.study import grid
from imbalance_jax.study.study_directory import StudyDirectory

UNIT_STEPS = 1000
# loss = FLOOR + SCALE x^-EXPONENT, with x the tokens in units of the whole run.
FLOOR, SCALE, EXPONENT = 2.0, 1.5, 0.3


def mixture(ratio: str, steps: int = UNIT_STEPS) -> ml_collections.ConfigDict:
    config = config_lib.cloned(scale="demo", ratio=ratio)
    config.steps, config.batch_size = steps, 20
    config.model.update(L=16, D=16, H=2, K=8, F=24, N=2)
    return config


def small_grid(
    ratios: tuple[str, ...] = ("50:50", "90:10"),
    seeds: int = 3,
    fractions: tuple[float, ...] = (0.1, 0.25, 0.5, 0.9, 1),
    **claims: dict,
) -> ml_collections.ConfigDict:
    """Returns the grid of a small ratio study with its baselines and a placebo at 90:10."""
    study = grid.Grid("A made study.", unit=mixture("50:50"))
    for ratio in ratios:
        study.add(cell_of(ratio), mixture(ratio), seeds=range(seeds))
    if "90:10" in ratios:
        placebo = grid.placebo(mixture("90:10"), "en1")
        study.add("placebo90_10", placebo, kind="placebo", seeds=range(seeds))
    study.baselines(mixture("50:50"), "en1", fractions=fractions, seeds=range(seeds))
    for name, fields in claims.items():
        study.claim(name, f"The claim {name}.", **fields)
    return study.to_config()


def cell_of(ratio: str) -> str:
    return "r" + ratio.replace(":", "_")


def law(tokens: float, unit_tokens: float) -> float:
    return FLOOR + SCALE * (tokens / unit_tokens) ** -EXPONENT


def make(
    path: pathlib.Path,
    config: ml_collections.ConfigDict,
    *,
    rare_gain: float = 0.0,
    noise: float = 0.01,
    alignment: bool = True,
) -> StudyDirectory:
    """Writes a finished study.

    Args:
      path: of its directory.
      config: of its grid.
      rare_gain: tokens of its own that a token in another language is worth, but for placebos.
      noise: the standard deviation of a run's loss, in nats; half of it is its seed's.
      alignment: whether the runs have measured any.
    """
    study = grid.resolve_study(config)
    directory = StudyDirectory(path)
    directory.claim(study)
    for number, (name, spec) in enumerate(study.runs.items()):
        random = np.random.default_rng([7, number])
        shared = np.random.default_rng([8, spec.config.seed]).normal() * noise / math.sqrt(2)
        make_run(
            directory,
            name,
            spec,
            gain=0.0 if spec.kind == "placebo" else rare_gain,
            noise=lambda r=random, s=shared: s + r.normal() * noise / math.sqrt(2),
            unit_tokens=study.unit_tokens,
            alignment=alignment,
        )
    return directory


def make_run(
    directory: StudyDirectory,
    name: str,
    spec: grid.RunSpec,
    *,
    gain: float,
    noise=lambda: 0.0,
    unit_tokens: float,
    alignment: bool = True,
) -> None:
    """Writes the directory of one finished run."""
    run, config = directory.run(name), spec.config
    run.claim(config)
    asked = costs.count_language_tokens(config)
    total = sum(asked.values())
    results = {}
    for tag in config.tags:
        own = max(asked[tag], 1.0)
        loss = law(own + gain * (total - asked[tag]), unit_tokens) + noise()
        nats = 0.01 * (len(config.tags) - 1)
        results[tag] = {
            "loss": loss,
            "ppl": math.exp(loss),
            "bits_per_byte": loss / 3,
            "language_nats": nats,
            "loss_own": loss - nats,
            "leak": 0.01,
            "top1": 0.2,
            "tokens": 1000,
            "bytes": 4000,
        }
    run.log(config.steps, {"train/loss": results[config.tags[0]]["loss"]})
    if alignment and len(config.tags) > 1:
        run.log(config.steps, _alignment(config, noise))
    seconds = 0.01 * config.steps
    run.log(
        config.steps,
        {"time/total": seconds + 9, "time/compile": 5.0, "time/setup": 4.0, "time/train": seconds},
    )
    provenance = {
        "vocab_size": costs.compute_vocab_size(config),
        "sources": {"en": {"kind": "docstrings", "tokens": {"train": 2 * unit_tokens}}},
    }
    run.write_json("provenance.json", provenance)
    row = {"first_step": 0, "steps": config.steps}
    run.write_csv(
        "mixture.csv",
        [
            row | {"language": tag, "requested_sequences": asked[tag] / config.model.L}
            | {"realised_sequences": asked[tag] / config.model.L, "realised_tokens": asked[tag]}
            for tag in config.tags
        ],
    )  # fmt: skip
    run.write_csv("test_texts.csv", _texts(results))
    evaluation = {"step": config.steps, "split": "test", "stride": 4, "languages": results}
    run.write_json("evaluation.json", evaluation)
    run.finish()


def _texts(results) -> list[dict]:
    """Twenty texts, of which some are harder than others in the same way for every run."""
    return [
        {
            "language": tag,
            "text": text,
            "loss": 50 * (found["loss"] + 0.5 * math.sin(2 * math.pi * text / 20)),
            "tokens": 50,
        }
        for tag, found in results.items()
        for text in range(20)
    ]


def _alignment(config: config_lib.Config, noise) -> dict[str, float]:
    found = {}
    pair = "-".join(config.tags[:2])
    for layer in range(config.model.N + 2):
        found[f"align/hidden/{pair}/{layer}"] = 0.3 + noise()
        found[f"align/hidden_shuffled/{pair}/{layer}"] = 0.25 + noise()
        found[f"align/retrieval/{pair}/{layer}"] = 0.5 + noise()
    found[f"align/retrieval_chance/{pair}"] = 1 / 32
    found[f"align/embed_in/{pair}"] = 0.1 + noise()
    found[f"align/embed_in_between/{pair}"] = 0.0
    found[f"align/gradient/{pair}"] = 0.2 + noise()
    return found


RARE = {"measure": "log_teff", "cell": "r90_10", "language": "en2", "direction": "higher"}


CLAIMS = {
    "gains": RARE | {"smallest": 0.05},
    "gains_matched": RARE | {"baseline": "matched", "smallest": 0.05},
    "gains_more": RARE | {"against": "r50_50", "smallest": 0.05},
    "beats_matched": {"cell": "r90_10", "language": "en2", "against": "matched"},
    "beats_placebo": {"cell": "r90_10", "language": "en2", "against": "placebo90_10"},
    "clones_are_equal": {
        "cell": "r50_50",
        "language": "en1",
        "against": "r50_50",
        "against_language": "en2",
        "direction": "same",
        "smallest": 0.05,
    },
    "parts_are_equal": {
        "cell": "r90_10",
        "language": "en1",
        "against": "r90_10",
        "against_language": "en2",
        "direction": "same",
        "smallest": 0.05,
    },
    "aligns": {
        "measure": "alignment",
        "cell": "r90_10",
        "language": "en1-en2",
        "against": "r50_50",
        "direction": "higher",
        "smallest": 0.05,
    },
    "is_aligned": {
        "measure": "alignment",
        "cell": "r90_10",
        "language": "en1-en2",
        "direction": "higher",
        "smallest": 0.02,
    },
}


GAIN = 0.1  # so that TEff at 10 % is 1 + 0.1 x 9


def lower(directory, name, language, loss):
    """Gives a language of a run another loss."""
    run = directory.run(name)
    results = run.read_json("evaluation.json")
    found = results["languages"][language]
    found.update(loss=loss, ppl=math.exp(min(loss, 700)), loss_own=loss - found["language_nats"])
    (run.path / "evaluation.json").write_text(json.dumps(results))


def log_curves(directory, name, curves, *, spacing=100):
    """Gives a run held-out losses of languages and excesses of pairs, every so many steps.

    Args:
      directory: of the study.
      name: of the run.
      curves: language -> losses, and pair -> cosines of hidden states above shuffled pairs.
      spacing: steps between two values, the first of which is at that step.
    """
    run = directory.run(name)
    layers = range(run.config().model.N + 2)
    # What a finished run has of its pairs would be a point of their curves.
    records = [
        {key: value for key, value in record.items() if not key.startswith("align/hidden")}
        for record in run.metrics()
    ]
    for of, values in curves.items():
        for place, value in enumerate(values):
            record = {"step": spacing * (place + 1)}
            if "-" in of:
                for layer in layers:
                    # Those of the embedding and of the final norm are no blocks.
                    above = value if 0 < layer < max(layers) else 9.0
                    record[f"align/hidden/{of}/{layer}"] = 0.1 * layer + above
                    record[f"align/hidden_shuffled/{of}/{layer}"] = 0.1 * layer
            else:
                record[f"eval/loss/{of}"] = value
            records.append(record)
    records.sort(key=lambda record: record["step"])
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (run.path / "metrics.jsonl").write_text(lines)
