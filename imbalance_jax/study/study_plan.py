"""What a study would take, and how far it is, in words."""

import dataclasses
import fractions
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from etils import epath

from imbalance_jax import config as config_lib
from imbalance_jax.config import Config, costs
from imbalance_jax.config.size import describe_size
from imbalance_jax.runs import children
from imbalance_jax.runs.progress import format_duration
from imbalance_jax.runs.run_directory import RunDirectory
from imbalance_jax.study import grid, study_runner
from imbalance_jax.study.run_spec import BASELINES, NEAR
from imbalance_jax.study.study_directory import RunState, StudyDirectory, describe_losses

_FEWEST_RATIOS = 3  # that a law over the ratio needs
_MOST_TIMES = 4  # a batch, that a batch which divides may have


@dataclasses.dataclass(frozen=True)
class TrainingSpeed:
    """How fast models of a size were trained, everything but compilation included."""

    flops_per_second: float
    source: str


def make_size_key(config: Config) -> str:
    """Returns what decides how fast a run trains: model, optimizer, batch and vocabulary."""
    each = ", moments=per_language" * (config.optimizer.moments == "per_language")
    return (
        f"{describe_size(config)}{each}, F={config.model.F} L={config.model.L} "
        f"B={config.batch_size} V={costs.compute_vocab_size(config)}"
    )


def read_measured_speeds(
    directory: StudyDirectory, study: grid.StudyConfig
) -> dict[str, TrainingSpeed]:
    """Returns the speeds that the study's finished runs had, by `make_size_key`."""
    rates = defaultdict(list)
    for name, spec in study.runs.items():
        run, _ = directory.find_run(name, study)
        newest = run.newest_with("time/total") if run.done else {}
        if "time/total" in newest:
            seconds = newest["time/total"] - newest["time/compile"] - newest["time/setup"]
            rate = costs.compute_training_flops(spec.config) / max(seconds, 1e-9)
            rates[make_size_key(spec.config)].append(rate)
    return {
        size: TrainingSpeed(statistics.median(of_size), "measured in runs of this study")
        for size, of_size in rates.items()
    }


def estimate_training_seconds(config: Config, speeds: Mapping[str, TrainingSpeed]) -> float | None:
    """Returns the seconds of a run at the speed of its size, or None if that is not known."""
    speed = speeds.get(make_size_key(config))
    return costs.compute_training_flops(config) / speed.flops_per_second if speed else None


def measure_trial_speeds(
    study: grid.StudyConfig, sizes: Iterable[str], options: Sequence[str] = ()
) -> dict[str, TrainingSpeed]:
    """Returns speeds from a few steps of a run of each size, on this machine.

    Sizes are named by `make_size_key`; `options` are the flags of `imbalance_jax.main` that the
    study's runs will be trained with.

    Raises:
      ValueError: a run cannot be made.
    """
    speeds = {}
    for size in sizes:
        name = next(n for n, spec in study.runs.items() if make_size_key(spec.config) == size)
        print(f"Trying a few steps of {size} ...", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            directory = StudyDirectory(epath.Path(folder) / "study")
            directory.claim(dataclasses.replace(study, runs={name: study.runs[name]}, claims={}))
            command = [sys.executable, "-m", "imbalance_jax.main", f"--study={directory}"]
            command += [f"--members={name}", "--dry_run", *options]
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                **children.make_tied_popen_arguments(os.environ),
            )
        step = re.search(r"^([\d.e+-]+) s a step \((.*)\): ", done.stdout, re.MULTILINE)
        if not step:
            raise ValueError(f"Run {name} cannot be tried: {done.stderr.strip()}")
        config = study.runs[name].config
        per_step = costs.compute_training_flops(config) / config.steps
        speeds[size] = TrainingSpeed(per_step / float(step[1]), step[2])
    return speeds


def describe_study_plan(
    name: str,
    study: grid.StudyConfig,
    states: Mapping[str, RunState],
    speeds: Mapping[str, TrainingSpeed],
    pack: int,
) -> str:
    """Returns the plan of a study: its cells, and what is left to train and what that takes."""
    lines = [f"{name}: {study.description}", ""]
    cells = defaultdict(list)
    for member, spec in study.runs.items():
        cells[spec.cell].append(member)
    width = max(map(len, cells))
    lines.append(
        f"{'cell':<{width}} {'kind':<12} {'seeds':>5} {'done':>5} {'steps':>8} {'batch':>6} "
        f"{'tokens each':>15} {'of 1x':>7} {'FLOPs each':>11}"
    )
    for cell, members in cells.items():
        spec = study.runs[members[0]]
        tokens = spec.tokens
        done = sum(states[member].state == "done" for member in members)
        lines.append(
            f"{cell:<{width}} {spec.kind:<12} {len(members):>5} {done:>5} {spec.config.steps:>8,} "
            f"{spec.config.batch_size:>6} {tokens:>15,} {tokens / study.unit_tokens:>7.3g} "
            f"{costs.compute_training_flops(spec.config):>11.2e}"
        )
    lines += ["", *_describe_rounding(study)]
    left = [n for n in study.runs if states[n].state != "done"]
    lines += [*_describe_totals(study, states, left), _describe_time(study, left, states, speeds)]
    if pack > 1:
        programs = len(study_runner.group_into_packs(study, left, pack))
        lines.append(f"in packs of {pack}: {programs} programs for {len(left)} runs")
    lines += _describe_proposing(study)
    disk = sum(costs.estimate_checkpoint_bytes(study.runs[n].config) for n in left)
    lines.append(f"disk: {disk / 1e9:,.2f} GB of checkpoints")
    return "\n".join(lines)


def _describe_rounding(study: grid.StudyConfig) -> list[str]:
    """Returns a line on each batch of which a matched baseline has a rounded part.

    Only languages are named that are held against one: those of which a baseline has about, and
    none has exactly, the tokens.
    """
    alone = defaultdict(set)  # steps -> batches of baselines
    shares: defaultdict[tuple[int, int], dict[str, fractions.Fraction]] = defaultdict(dict)
    for spec in study.runs.values():
        config = spec.config
        if spec.kind in ("matched", "epochs"):
            alone[config.steps].add(config.batch_size)
        elif spec.kind not in (*BASELINES, "sweep") and not config.mixture.follows_text:
            for tag, sequences in config_lib.compute_sequence_totals(config).items():
                share = sequences / (config.steps * config.batch_size)
                shares[config.steps, config.batch_size][f"{spec.cell} {tag}"] = share
    lines = []
    for (steps, batch), of_batch in shares.items():
        off = {}
        for name, share in of_batch.items():
            near = min(alone[steps], key=lambda n: abs(n - share * batch), default=0)
            part = float(near / (share * batch) - 1) if share else 0.0
            if part and abs(part) <= NEAR:
                off[name] = (abs(part), part, near)
        if not off:
            continue
        worst = max(off, key=lambda name: off[name][0])
        _, part, near = off[worst]
        more = f", as of {len(off) - 1} languages more" if len(off) > 1 else ""
        divisor = math.lcm(*(of_batch[name].denominator for name in off))
        sizes = [n for n in (batch // divisor * divisor, (batch // divisor + 1) * divisor) if n]
        mend = f"config.batch_size={' or '.join(map(str, sizes))} would divide."
        if divisor > _MOST_TIMES * batch:
            mend = "No batch size near it would divide."
        exact = float(of_batch[worst] * batch)
        lines.append(
            f"batch {batch}: {near} sequences a step stand for the {exact:g} of {worst} in a "
            f"matched baseline ({100 * part:+.2g} % of its tokens){more}. Claims are corrected "
            f"for it by the law, if there is one. {mend}"
        )
    return [*lines, ""] if lines else []


def _describe_totals(
    study: grid.StudyConfig, states: Mapping[str, RunState], left: Sequence[str]
) -> list[str]:
    kinds = Counter(spec.kind for spec in study.runs.values())
    tokens = sum(spec.tokens for spec in study.runs.values())
    flops = sum(costs.compute_training_flops(spec.config) for spec in study.runs.values())
    lines = [
        f"{len(study.runs)} runs ({', '.join(f'{n} {kind}' for kind, n in kinds.items())}), "
        f"{tokens:,} tokens, {flops:.3g} FLOPs. {costs.FLOP_CONVENTION}"
    ]
    reused = Counter(s.reused_from for s in states.values() if s.reused_from)
    lines += [f"{count} runs are those of {path}" for path, count in reused.items()]
    rest = sum(study.runs[n].tokens * _compute_remaining_part(states[n]) for n in left)
    lines.append(f"left: {len(left)} runs, {rest:,.0f} tokens")
    return lines


def _describe_proposing(study: grid.StudyConfig) -> list[str]:
    """Returns a line on each reason why `propose` would refuse what the study asks for."""
    mixtures = [
        spec.config
        for spec in study.runs.values()
        if spec.kind == "mixture" and not spec.config.mixture.stages and len(spec.config.tags) > 1
    ]
    if not study.objectives or any(config.mixture.follows_text for config in mixtures):
        return []
    ratios = {
        tuple(config_lib.reduce_ratio(config.mixture.ratio).items())
        for config in mixtures
        if all(config.mixture.ratio.values())
    }
    lines = []
    if len(ratios) < _FEWEST_RATIOS:
        lines.append(
            f"propose will be refused: a law over the ratio needs {_FEWEST_RATIOS} ratios in which "
            f"every language has a part, and the study has {len(ratios)}. Add ratios."
        )
    lengths = {costs.count_training_tokens(config) for config in mixtures}
    for name, objective in study.objectives.items():
        asked = objective.tokens
        if asked and len(lengths) == 1 and not math.isclose(asked, min(lengths), rel_tol=0.01):
            lines.append(
                f"propose will be refused: config.objectives.{name}.tokens={asked}, and all "
                f"mixtures have {min(lengths)} tokens. Add runs of another length, or leave tokens "
                "out."
            )
    return lines


def _compute_remaining_part(state: RunState) -> float:
    """Returns the part of a run that is left."""
    return 1 - state.step / state.steps


def _describe_time(
    study: grid.StudyConfig,
    left: Sequence[str],
    states: Mapping[str, RunState],
    speeds: Mapping[str, TrainingSpeed],
) -> str:
    if not left:
        return "time: none, all is done"
    seconds, unknown, sources = 0.0, Counter[str](), dict[str, None]()
    for name in left:
        config = study.runs[name].config
        whole = estimate_training_seconds(config, speeds)
        if whole is None:
            unknown[make_size_key(config)] += 1
        else:
            seconds += whole * _compute_remaining_part(states[name])
            sources[speeds[make_size_key(config)].source] = None
    lines = []
    if seconds:
        lines.append(
            f"time: {format_duration(seconds)} one after another ({'; '.join(sources)}), and on "
            "top what it takes to start, compile and score each"
        )
    if unknown:
        lines.append(
            f"time: no speed is known yet for {unknown.total()} runs, of {len(unknown)} shapes. "
            "Add --measure to try a few steps of each on this machine."
        )
    return "\n".join(lines)


def describe_states(study: grid.StudyConfig, directory: StudyDirectory) -> str:
    """Returns a line for each run that is begun or has ended, and a count of all."""
    lines, states = [], directory.states(study)
    for name, state in states.items():
        if state.state == "absent":
            continue
        run, _ = directory.find_run(name, study)
        progress = f"{state.state:<7} {name:<28} {state.step:>8,} of {state.steps:,}"
        lines.append(f"{progress}   {_describe_run_state(state, run)}")
    counts = Counter(state.state for state in states.values())
    lines.append(", ".join(f"{count} {state}" for state, count in counts.items()))
    return "\n".join(lines)


def _describe_run_state(state: RunState, run: RunDirectory) -> str:
    if state.state in ("failed", "damaged"):
        return state.error
    if state.state == "done":
        return describe_losses(run) + (f"   (of {state.reused_from})" if state.reused_from else "")
    newest = run.newest_with("perf/tokens_per_second")
    speed = newest.get("perf/tokens_per_second")
    return f"loss {newest['train/loss']:.4f}   {speed:,.0f} tokens/s" if speed else ""
