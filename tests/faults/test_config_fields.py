"""Any value of any field is resolved and described, or refused by one line that names a field."""

import json
from typing import Any

from faults.ledger import Case, Fault, Ledger, judge
from faults.undisturbed import write_tiny_config
from faults.values import BASES, draw_changes, draw_examples, is_beyond_bounds, list_typed_fields


def apply_changes(base: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Returns the plain values of a config, with those of some fields replaced."""
    values = BASES[base]().to_dict()
    for name, value in changes.items():
        *groups, field = name.split(".")[1:]
        target = values
        for group in groups:
            target = target[group]
        target[field] = value
    return values


def names_of(changes: dict[str, Any]) -> list[str]:
    """Returns what the message of a refusal may name: a field that was changed, or its group."""
    groups, fields = zip(*(name.rsplit(".", 1) for name in changes), strict=True)
    return [*changes, *(f"{group}." for group in groups), *(f" {name}" for name in fields)]


def test_values(ledger: Ledger, light_server) -> None:
    short, full = 15, 3500
    examples = draw_examples(draw_changes(), ledger.length(short, full), ledger.seed)

    def check(case: Case) -> str:
        base, changes = examples[case.number]
        text = json.dumps(apply_changes(base, changes))
        ended = light_server.run("resolve_values", [text], limits={"AS": 8 << 30})
        outcome = judge(ended, names_of(changes), about=f"{base} with {changes!r}")
        if outcome == "done" and any(is_beyond_bounds(*change) for change in changes.items()):
            raise Fault("taken beyond its bounds", f"{base} with {changes!r}")
        return outcome

    ledger.run(check, short=short, full=full)


# What the command line takes for a value, and what looks like one.
_GARBAGE = ("", " ", "nan", "inf", "-inf", "1e999", "1_000", "0x10", "\u0665", "None", "()", "{}")


def format_override(name: str, value: Any) -> str:
    text = repr(tuple(value)) if isinstance(value, list) else str(value)
    return f"--{name}={text}".replace("\0", "")  # which no argument of a program can have


def test_overrides(ledger: Ledger, light_server, tmp_path) -> None:
    short, full = 8, 1500
    examples = draw_examples(draw_changes(), ledger.length(short, full), ledger.seed + 1)
    files = {}
    for base in BASES:
        files[base] = tmp_path / f"{base}.py"
        values = f"ml_collections.ConfigDict({BASES[base]().to_dict()!r})"
        files[base].write_text(f"import ml_collections\nget_config = lambda: {values}\n")

    def check(case: Case) -> str:
        base, changes = examples[case.number]
        garbage = {name: case.random.choice(_GARBAGE) for name in changes}
        chosen = garbage if case.random.random() < 0.2 else changes
        args = [format_override(name, value) for name, value in chosen.items()]
        ended = light_server.run(
            "imbalance_jax.config", [f"--config={files[base]}", *args, "--json"]
        )
        outcome = judge(ended, names_of(changes), about=f"{base} with {args!r}")
        if outcome == "done":
            shown = json.loads(ended.out)
            missing = set(list_typed_fields(base)) - set(shown)
            if missing:
                raise Fault("a field is not shown", str(missing))
        return outcome

    ledger.run(check, short=short, full=full)


def test_dry_runs(ledger: Ledger, heavy_server, tmp_path) -> None:
    """What is valid and tiny is planned, or refused by what only the devices know."""
    ledger.skip_short("each takes as long as the start of a run")
    config = write_tiny_config(tmp_path)
    choices = {
        "model.N": (1, 2, 3),
        "model.D": (8, 24, 32),
        "model.H": (1, 2, 3),
        "model.K": (1, 8, 10),
        "model.F": (1, 24),
        "model.L": (1, 8, 33),
        "model.dtype": ("float32", "bfloat16"),
        "model.attention": ("auto", "einsum", "blockwise", "fused", "cudnn", "splash"),
        "model.remat": ("none", "dots", "full"),
        "model.scan_layers": (True, False),
        "model.tied": (True, False),
        "model.loss_chunk": (0, 1, 8),
        "model.loss_tile": (0, 1, 2**31 - 1),
        "batch_size": (1, 6, 8),
        "steps": (1, 7, 2**31 - 1),
        "seed": (0, 2**31 - 1, 2**31, 2**32, 2**63 - 1),
        "log_every": (1, 1000),
        "optimizer.accumulate": (1, 2),
        "optimizer.peak_lr": (0.0, 1e-45, 1e30),
        "optimizer.schedule": ("cosine", "warmup_stable_decay", "constant"),
        "optimizer.warmup": (0.0, 0.5, 3.0, 1e9),
        "mixture.order": ("shuffled", "sequential"),
        "mixture.sampler": ("exact", "bernoulli"),
        "mixture.reuse": ("any", "same_language"),
        "mixture.text_share": (0.001, 0.5, 1.0),
        "evaluation.max_windows": (0, 1, 6),
        "evaluation.stride": (0, 1, 99),
        "checkpoint.every": (0, 1),
        "checkpoint.keep": (1, 1000),
        "mesh.data": (-1, 1, 2),
        "mesh.fsdp": (1, 2),
    }

    def check(case: Case) -> str:
        names = case.random.sample(sorted(choices), case.random.randint(1, 6))
        args = [f"--config.{name}={case.random.choice(choices[name])}" for name in names]
        ended = heavy_server.run(
            "imbalance_jax.main",
            [f"--config={config}", f"--workdir={tmp_path}/run", *args, "--dry_run"],
        )
        outcome = judge(ended, ["config."], about=repr(args))
        if (tmp_path / "run").exists():
            raise Fault("a dry run left something", repr(args))
        return outcome

    ledger.run(check, short=0, full=24)
