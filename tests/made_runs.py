"""Run directories with made curves, and what their pages say."""

import html.parser
import math
import pathlib
import random
import re
from collections.abc import Mapping
from typing import Any

from imbalance_jax import config as config_lib
from imbalance_jax.report import run_page as page
from imbalance_jax.runs.run_directory import RunDirectory

CLONES = {"en1": 90, "en2": 10}


def make_config(ratio: Mapping[str, int], steps: int) -> config_lib.Config:
    """Returns the config of clones of the first language."""
    config = config_lib.default()
    config.steps = steps
    config.batch_size = 20
    config.model.update(L=128, D=96, H=4, K=24, F=384, N=3)
    config.sources.en = config_lib.declared(config_lib.SourceConfig)
    first, *others = ratio
    config.languages[first] = config_lib.declared(config_lib.LanguageConfig, source="en")
    for tag in others:
        config.languages[tag] = config_lib.declared(config_lib.LanguageConfig, clone_of=first)
    config.mixture.ratio = dict(ratio)
    return config_lib.resolve_config(config)


def make_run(
    path: pathlib.Path,
    ratio: Mapping[str, int] = CLONES,
    *,
    steps: int = 1000,
    until: int = 0,
    log_every: int = 10,
    eval_every: int = 50,
) -> RunDirectory:
    """Writes a run directory with curves like those of a real run, up to a step.

    Those of a rare language are those of a frequent one, later.
    """
    until = until or steps
    noise = random.Random(0)
    config = make_config(ratio, steps)
    run = RunDirectory(path)
    run.claim(config)
    run.write_json("provenance.json", provenance())
    tokens_per_step = config.batch_size * config.model.L
    parts = {tag: count / sum(ratio.values()) for tag, count in ratio.items()}

    def loss_own(tag: str, step: int) -> float:
        return 2.4 + 5.0 * (1 + step * parts[tag] / 8) ** -0.45

    def language_nats(tag: str, step: int) -> float:
        return 0.004 - 0.9 * math.log(parts[tag]) * math.exp(-step / 60) + 0.02 / (1 + step)

    def evaluated(tag: str, step: int) -> dict[str, float]:
        own, nats = loss_own(tag, step), language_nats(tag, step)
        return {
            "loss": own + nats,
            "ppl": math.exp(own + nats),
            "bits_per_byte": (own + nats) / 3.1,
            "language_nats": nats,
            "loss_own": own,
            "leak": 1 - math.exp(-nats),
            "top1": 0.6 / own,
        }

    for step in range(log_every, until + 1, log_every):
        record: dict[str, Any] = {
            "train/loss": noise.gauss(loss_own("en1", step), 0.05),
            "train/grad_norm": 0.4 + 4 * math.exp(-step / 40) + abs(noise.gauss(0, 0.06)),
            "train/learning_rate": 6e-4 * min(1, step / 20) * (1 - 0.99 * step / steps),
            "perf/tokens_per_second": noise.gauss(41_000, 900),
            "perf/data_wait_fraction": 0.004,
        }
        record["perf/mfu"] = record["perf/tokens_per_second"] * 8e-6
        for tag in ratio:
            # A rare language may be absent from a record.
            if noise.random() < parts[tag] * 60:
                wide = 0.04 / math.sqrt(parts[tag])
                record[f"train/loss/{tag}"] = noise.gauss(loss_own(tag, step), wide)
            record[f"train/tokens/{tag}"] = step * tokens_per_step * parts[tag]
        for part, value in seconds(step).items():
            record[f"time/{part}"] = value
        run.log(step, record)
        if step % eval_every == 0:
            results = {tag: evaluated(tag, step) for tag in ratio}
            run.log(
                step,
                {f"eval/{name}/{tag}": v for tag in ratio for name, v in results[tag].items()},
            )
    sequences = until * config.batch_size
    run.write_csv(
        "mixture.csv",
        [
            {
                "first_step": 0,
                "last_step": until,
                "language": tag,
                "pool": "en",
                "ratio": ratio[tag],
                "requested_sequences": round(sequences * part),
                "realised_sequences": round(sequences * part),
                "requested_tokens": round(sequences * part) * config.model.L,
                "realised_tokens": round(sequences * part) * config.model.L,
                "cross_language_repeats": 0,
                "pool_windows": 18_211,
                "pool_epochs": sequences / 18_211,
            }
            for tag, part in parts.items()
        ],
    )
    if until == steps:
        scored = {"tokens": 24_311, "bytes": 102_455}
        languages = {tag: {**evaluated(tag, steps), **scored} for tag in ratio}
        run.write_json(
            "evaluation.json",
            {"step": steps, "split": "test", "stride": 32, "languages": languages},
        )
        run.finish()
    return run


def seconds(step: int) -> dict[str, float]:
    parts = {"setup": 3.1, "compile": 8.2, "train": 0.061 * step, "data": 0.0004 * step}
    parts |= {"evaluate": 0.006 * step, "checkpoint": 1.4}
    return {**parts, "total": 1.5 + sum(parts.values())}


def provenance() -> dict[str, Any]:
    splits = {"train": 9_412, "validation": 97, "test": 101}
    return {
        "git": "1f2e3d4c5b6a79880716253443526170f9e8d7c6",
        "python": "3.11.9",
        "packages": {"jax": "0.7.1", "flax": "0.11.2", "numpy": "2.3.2", "optax": "0.2.5"},
        "device": {"platform": "cpu", "kind": "cpu", "count": 1, "processes": 1},
        "mesh": {"data": 1, "fsdp": 1, "tensor": 1},
        "order_version": 1,
        "parameters": 1_118_304,
        "vocab_size": 4_096,
        "flops_per_token": 6.9e6,
        "peak_flops": {
            "value": 1.45e11,
            "source": "measured: best float32 matmul of 2048^3 in this process",
        },
        "flop_convention": "Six FLOPs per parameter of a matrix product, and attention's own.",
        "sources": {
            "en": {
                "kind": "docstrings",
                "fingerprint": "9c1f0b7e52d4a6388e1d",
                "vocab_size": 2_048,
                "documents": splits,
                "tokens": {name: 251 * count for name, count in splits.items()},
                "bytes": {name: 1_000 * count for name, count in splits.items()},
                "lost_bytes": {name: 25 * count for name, count in splits.items()},
                "left_out": {"where": 12, "bad_lines": 0},
                "duplicates": {"train": 3, "held_out": 2},
            }
        },
    }


def page_of(run: RunDirectory) -> str:
    return page.write_run_page(run).read_text()


def words_of(text: str) -> str:
    """Returns what a reader sees of a page, in one line."""
    body = re.sub(r"<(style|title).*?</\1>", "", text, flags=re.S)
    return html.unescape(" ".join(re.sub(r"<[^>]*>", " ", body).split()))


class Structure(html.parser.HTMLParser):
    """Collects what a browser would have to repair or to load."""

    VOID = ("meta", "link", "br", "hr", "img", "input")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.tags: set[str] = set()

    def handle_startendtag(self, tag, attrs):
        self._attributes(tag, attrs)

    def handle_starttag(self, tag, attrs):
        self._attributes(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"</{tag}> at {self.getpos()}")

    def _attributes(self, tag, attrs):
        self.tags.add(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
                self.references.append(value)
            self.references += re.findall(r"url\(([^)]*)\)", value or "")


def structure_of(text: str) -> Structure:
    structure = Structure()
    structure.feed(text)
    structure.close()
    return structure
