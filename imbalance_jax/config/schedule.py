"""What follows from a config over its steps: learning rate, stages and totals of sequences."""

import dataclasses
import fractions
import math
import types
from collections.abc import Mapping
from typing import Any

from imbalance_jax.config.schema import Config, OptimizerConfig, Schedule


def compute_learning_rate(config: OptimizerConfig, steps: int, t: Any, xp: types.ModuleType) -> Any:
    """Returns the learning rate of update t, for t = 1 .. steps.

    With w warm-up updates, d updates of decay, peak p and final f:

        cosine               min(t, w) / w * (f + (p - f) (1 + cos(pi t / steps)) / 2)
        linear               min(t, w) / w * (f + (p - f) (1 - t / steps))
        warmup_stable_decay  min(t, w) / w * (f + (p - f) min((steps - t) / d, 1))
        constant             min(t, w) / w * p

    The warm-up multiplies the cosine rather than going before it, as in the reference.

    Args:
      config: of the optimizer.
      steps: all updates of the run.
      t: an array of `xp` or a number.
      xp: numpy, or jax.numpy.
    """
    peak, final = config.peak_lr, config.final_lr
    warmup = config.warmup if config.warmup >= 1 else max(1.0, config.warmup * steps)
    ramp = xp.minimum(t, warmup) / warmup
    if config.schedule == "constant":
        return ramp * peak
    if config.schedule == "cosine":
        return ramp * (final + (peak - final) * (1 + xp.cos(xp.pi * t / steps)) / 2)
    if config.schedule == "linear":
        return ramp * (final + (peak - final) * (1 - t / steps))
    decay = max(1.0, config.decay * steps)
    return ramp * (final + (peak - final) * xp.clip((steps - t) / decay, 0, 1))


def list_stages(
    config: Config, schedule: Schedule | None = None
) -> tuple[tuple[int, Mapping[str, int]], ...]:
    """Returns (first step, ratio) of every stage; a config without stages has one.

    Args:
      config: of the run.
      schedule: in place of `config.mixture.stages`.
    """
    schedule = config.mixture.stages if schedule is None else schedule
    if not schedule:
        return ((0, config.mixture.ratio),)
    return tuple((resolve_first_step(first, config.steps), ratio) for first, ratio in schedule)


def compute_loss_weights(config: Config, steps: int | None = None) -> tuple[float, ...]:
    """Returns the weight of each language's loss, in the order of the tags.

    Their mean over all sequences of the run is 1, so that weights change the proportions of the
    languages and not the size of the loss.

    Args:
      config: of the run.
      steps: that it has, where its text ends before those of the config.

    Raises:
      ValueError: the weight of all that is trained on by then is 0.
    """
    weights = [config.mixture.loss_weights.get(tag, 1.0) for tag in config.tags]
    totals = [float(n) for n in compute_sequence_totals(config, before=steps).values()]
    mean = math.fsum(map(math.prod, zip(weights, totals, strict=True))) / math.fsum(totals)
    if not mean:
        raise ValueError(
            "config.mixture.loss_weights is zero for every language that is trained on before the "
            f"text ends at step {steps}. Give one of them 1, or use more text."
        )
    return tuple(weight / mean for weight in weights)


def resolve_stage_steps(config: Config) -> Config:
    """Returns the config with stages that begin at a step, not at a fraction of all steps."""
    mixture = config.mixture
    schedules: dict[str, Any] = {
        name: list_stages(config, getattr(mixture, name))
        for name in ("stages", "same_total_as")
        if getattr(mixture, name)
    }
    return dataclasses.replace(config, mixture=dataclasses.replace(mixture, **schedules))


def compute_sequence_totals(
    config: Config, schedule: Schedule | None = None, *, before: int | None = None
) -> dict[str, fractions.Fraction]:
    """Returns the sequences that a schedule asks for, per language.

    Args:
      config: of the run.
      schedule: in place of `config.mixture.stages`.
      before: the step to count up to; None is the end of the run.
    """
    stages = list_stages(config, schedule)
    last = config.steps if before is None else before
    ends = [first for first, _ in stages[1:]] + [last]
    total = dict.fromkeys(config.tags, fractions.Fraction(0))
    for (first, ratio), end in zip(stages, ends, strict=True):
        sequences = max(0, min(end, last) - first) * config.batch_size
        for tag in config.tags:
            total[tag] += fractions.Fraction(sequences * ratio[tag], sum(ratio.values()))
    return total


def reduce_ratio(ratio: Mapping[str, int]) -> dict[str, int]:
    """Returns a ratio divided by its greatest common divisor: the counts of one block."""
    divisor = math.gcd(*ratio.values())
    return {tag: count // divisor for tag, count in ratio.items()}


def resolve_first_step(first: int | float, steps: int) -> int:
    """Returns the step at which a stage begins, given as a step or as a fraction of all steps."""
    if isinstance(first, float):
        # So that 0.7 is seven tenths exactly, and 1 / 3 a third.
        return int(fractions.Fraction(first).limit_denominator(1_000_000) * steps)
    return first
