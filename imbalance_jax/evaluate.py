"""Measures a trained run on the test split: losses, alignment, and where languages are told apart.

    python -m imbalance_jax.evaluate --workdir=runs/90_10
    python -m imbalance_jax.evaluate --workdir=runs/90_10 --step=1000 --pairs=100

The results of a run's last step go into its evaluation.json, and report.html is written anew;
those of an earlier step go into evaluation-STEP.json beside it. Any number of devices and
processes will do, whatever the run was trained on. It needs the run's text, in config.data_dir.
"""

import dataclasses
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from imbalance_jax import cli
from imbalance_jax.progress import Progress
from imbalance_jax.runs import RunDirectory

if TYPE_CHECKING:
    from imbalance_jax.evaluation.alignment import Alignment
    from imbalance_jax.evaluation.programs import Poll
    from imbalance_jax.step import TrainState
    from imbalance_jax.train import Trainer

FLAGS = flags.FLAGS


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "The run's directory.")
    flags.DEFINE_integer("step", -1, "The checkpoint; -1 is the newest.")
    flags.DEFINE_integer(
        "pairs", 512, "Sequences that two languages are compared on.", lower_bound=8
    )
    flags.DEFINE_list("languages", [], "Tags whose pairs are measured; by default all.")
    flags.DEFINE_bool("losses", True, "Score the test split; otherwise keep what is there.")
    flags.DEFINE_string("data_dir", None, "Where the text is kept, if not in config.data_dir.")


def main() -> int:
    if not FLAGS.workdir:
        cli.refuse("--workdir is missing. Give the directory of a run, such as runs/90_10.")
    run = RunDirectory(FLAGS.workdir)
    trainer, state = open_run(
        run,
        step=None if FLAGS.step < 0 else FLAGS.step,
        languages=FLAGS.languages,
        data_dir=FLAGS.data_dir,
    )
    from imbalance_jax import distributed

    step = int(state.step)
    name = "evaluation.json" if step == trainer.stream.steps else f"evaluation-{step}.json"
    before = run.read_json(name) or {}
    if not FLAGS.losses and "languages" not in before:
        cli.refuse(
            f"--nolosses keeps those in {run.path / name}, and there are none. Run it once "
            "without --nolosses."
        )
    run.check_writable()
    results = before | measure(trainer, state, FLAGS.pairs, losses=FLAGS.losses)
    if FLAGS.languages and "alignment" in before:
        # What was measured of other pairs before is still true.
        pairs = before["alignment"]["pairs"] | results["alignment"]["pairs"]
        results["alignment"]["pairs"] = pairs
    if not distributed.is_writer():
        return cli.DONE
    run.write_results(results, name)
    from imbalance_jax.analysis import page

    print("\n".join(describe(results)))
    report = f" See {page.write_run_page(run)}." if name == "evaluation.json" else ""
    print(f"Wrote {run.path / name}.{report}")
    return cli.DONE


def open_run(
    run: RunDirectory,
    *,
    step: int | None = None,
    languages: Sequence[str] = (),
    data_dir: str | None = None,
) -> "tuple[Trainer, TrainState]":
    """Returns a run's parts and a state that it saved, on the devices at hand.

    Args:
      run: a directory.
      step: of the checkpoint; None is the newest.
      languages: whose pairs are to be measured; none is all.
      data_dir: where the text is kept, if not where the run's config says.

    Raises:
      FileNotFoundError: this is not a run directory.
      ValueError: it has no such checkpoint or language, or the text is another one by now.
    """
    config = run.config()
    for tag in languages:
        if tag not in config.tags:
            raise ValueError(f"--languages has {tag!r}, and the run has {', '.join(config.tags)}.")
    if len(set(languages)) == 1:
        raise ValueError(f"--languages={languages[0]} names one language; alignment takes two.")
    chosen = dataclasses.replace(
        config.evaluation.alignment, languages=tuple(dict.fromkeys(languages))
    )
    config = dataclasses.replace(
        config,
        data_dir=data_dir or config.data_dir,
        evaluation=dataclasses.replace(config.evaluation, alignment=chosen),
    )
    if not run.checkpoints.exists():
        raise ValueError(f"{run} has no checkpoint yet.")

    import jax

    from imbalance_jax import config as config_lib
    from imbalance_jax import distributed, hardware, sharding
    from imbalance_jax.checkpoint import Checkpoints
    from imbalance_jax.data import sources
    from imbalance_jax.train import Trainer

    distributed.join()
    checkpoints = Checkpoints(run.checkpoints, keep=config.checkpoint.keep)
    try:
        saved = checkpoints.steps()
        if not saved or (step is not None and step not in saved):
            wanted = "checkpoint yet" if step is None else f"checkpoint of step {step}"
            kept = ", ".join(map(str, saved)) or "none"
            raise ValueError(f"{run} has no {wanted}. It has: {kept}.")
        hardware.use_compilation_cache(sources.cache_dir(config.data_dir) / "compiled")
        try:
            mesh = sharding.make_mesh(config.mesh, jax.devices())
        except ValueError:  # it was trained on another number of devices
            mesh = sharding.make_mesh(config_lib.MeshConfig(), jax.devices())
        trainer = Trainer.of_run(config, run, mesh, training=False)
        newest = saved[-1] if step is None else step
        return trainer, checkpoints.restore(newest, trainer.abstract_state())
    finally:
        checkpoints.close()


def measure(
    trainer: "Trainer", state: "TrainState", most: int, *, losses: bool = True
) -> dict[str, Any]:
    """Returns all results of a state, as evaluation.json has them.

    Args:
      trainer: of the run.
      state: after some updates.
      most: sequences that two languages are compared on.
      losses: whether to score the test split as well.

    Raises:
      ValueError: of the languages that were asked for no two say the same anywhere.
    """
    from imbalance_jax import hardware

    alignment = trainer.alignment("test", most)
    if trainer.config.evaluation.alignment.languages and not alignment.pairs:
        raise ValueError(" ".join(alignment.skipped.values()))
    results: dict[str, Any] = {"step": int(state.step)}
    if losses:
        with Progress("Losses on the test split", 1) as progress:
            results |= trainer.score(state, progress.show)
    began = time.monotonic()
    found = _align(trainer, alignment, state)
    compiling = alignment.programs.compile_seconds
    found["device"] = hardware.describe()
    found["compile_seconds"] = round(compiling, 1)
    found["seconds"] = round(time.monotonic() - began - compiling, 1)
    return results | {"alignment": found}


def _align(trainer: "Trainer", alignment: "Alignment", state: "TrainState") -> dict[str, Any]:
    parts = alignment.parts()
    with Progress("Alignment", parts) as progress:
        for line in (*alignment.notes, *alignment.skipped.values()):
            progress.line(line)

        def begin(number: int, what: str) -> "Poll":
            progress.show(number, what)
            return lambda share: progress.show(min(number + share, parts), what)

        found = alignment.everything(state, trainer.stream, begin)
        progress.show(parts, "done")
    return found


def describe(results: dict[str, Any]) -> list[str]:
    """Returns the main results in a few lines."""
    alignment = results["alignment"]
    lines = [
        f"Alignment took {alignment['seconds']:,.0f} s, and compiling "
        f"{alignment['compile_seconds']:,.0f} s."
    ]
    lines += [
        f"{tag}: loss {found['loss']:.3f}, perplexity {found['ppl']:,.1f}"
        for tag, found in results["languages"].items()
    ]
    for name, pair in results["alignment"]["pairs"].items():
        lines.append(f"{name}, {pair['sequences']} sequences ({pair['origin']}):")
        for where in ("embed_in", "embed_out"):
            rows = pair.get(where, {})
            if "cosine" in rows:
                lines.append(
                    f"  {where}: cosine {rows['cosine']:.3f} of {rows['pairs']:,} pairs of pieces, "
                    f"{rows['between']:.3f} of all; P@1 by CSLS "
                    f"{rows['retrieval']['csls_forth']:.1%} and "
                    f"{rows['retrieval']['csls_back']:.1%}, by chance "
                    f"{rows['retrieval']['chance']:.2%}"
                )
        for kind in ("positions", "matched"):
            if kind in pair["hidden"]:
                found = pair["hidden"][kind]
                lines.append(f"  hidden states, {kind}, layers 0 to N + 1:")
                lines.append(f"    cosine   {_row(found['cosine'])}")
                lines.append(f"    shuffled {_row(found['cosine_shuffled'])}")
        pulls = pair["gradients"]
        if "mean" in pulls:
            lines.append(
                f"  gradients: cosine {pulls['mean']:.3f} ± {pulls['mean_error']:.3f} of single "
                f"pairs, {_optional(pulls['corrected_mean'])} freed of noise (halves "
                f"{', '.join(map(_optional, pulls['corrected_halves']))})"
            )
    return lines


def _row(values: list[float]) -> str:
    return " ".join(f"{value:6.3f}" for value in values)


def _optional(value: float | None) -> str:
    return "not known" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    define_flags()
    cli.run(main)
