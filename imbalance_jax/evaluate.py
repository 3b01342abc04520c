"""Measures a trained run: losses, alignment, minimal pairs.

    python -m imbalance_jax.evaluate --workdir=runs/90_10
    python -m imbalance_jax.evaluate --workdir=runs/90_10 --step=1000 --pairs=100
    python -m imbalance_jax.evaluate --workdir=runs/90_10 --minimal_pairs=own

It scores the test split, compares each two languages, and finds where languages are told apart. The
results of a run's last step go into its evaluation.json, and report.html is written anew. The
results of an earlier step go into evaluation-STEP.json beside it. They are written part by part,
and what is there already is not measured again, so an interrupted command goes on where it was. A
command with other --pairs is refused, unless --overwrite is given. It takes any number of devices
and processes, and the run's text, in config.data_dir. With --minimal_pairs it measures how often
the model finds the good sentence of two likelier, and no alignment.
"""

import copy
import dataclasses
import time
import types
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from imbalance_jax import cli
from imbalance_jax.data.minimal_pairs import find_pair_files, read_run_pairs
from imbalance_jax.runs import divergence
from imbalance_jax.runs.progress import Progress
from imbalance_jax.runs.run_directory import RunDirectory

if TYPE_CHECKING:
    from imbalance_jax.compute.step import TrainState
    from imbalance_jax.config import Config
    from imbalance_jax.data.minimal_pairs import PairSet
    from imbalance_jax.evaluation.alignment import AlignmentEvaluator, AlignmentPart
    from imbalance_jax.training.experiment import Experiment

FLAGS = flags.FLAGS


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "DIR: The run's directory.")
    flags.DEFINE_integer(
        "step", -1, "Step of the checkpoint; by default the newest.", lower_bound=-1
    )
    flags.DEFINE_integer(
        "pairs", 512, "Sequences that two languages are compared on, 8 or more.", 8, 1_000_000
    )
    flags.DEFINE_list("languages", [], "TAG,TAG: Whose pairs are measured; by default all.")
    flags.DEFINE_string("minimal_pairs", "", "own, FILES or DIR: Score minimal pairs instead.")
    flags.DEFINE_bool("losses", True, "Score the test split, unless its losses are known.")
    flags.DEFINE_bool("overwrite", False, "Measure again what is known, and replace it.")
    flags.DEFINE_string("data_dir", None, "DIR: Where the text is; by default config.data_dir.")


def main() -> int:
    if not FLAGS.workdir:
        cli.exit_with_error(
            "--workdir is missing. Give the directory of a run, such as runs/90_10."
        )
    run = RunDirectory(FLAGS.workdir)
    config = configure_evaluation(
        run,
        languages=FLAGS.languages,
        data_dir=FLAGS.data_dir,
        minimal_pairs=FLAGS.minimal_pairs,
    )
    run.check_writable()
    from imbalance_jax.compute import hosts as distributed
    from imbalance_jax.report import record
    from imbalance_jax.training.reopening import open_run

    experiment, state = open_run(run, config, step=None if FLAGS.step < 0 else FLAGS.step)

    step, last = int(state.step), experiment.stream.steps
    name = "evaluation.json" if step == last else f"evaluation-{step}.json"
    known = read_results(run, name, step)
    if name == "evaluation.json":  # what its page cannot be made of is found before it is measured
        record.read_run_contents(run)
    if not FLAGS.losses and "languages" not in known:
        cli.exit_with_error(
            f"--nolosses keeps those in {run.path / name}, and there are none. Run it once "
            "without --nolosses."
        )

    def write(results: Mapping[str, Any]) -> None:
        if distributed.is_writer():
            for line in run.keep_results(last) if name == "evaluation.json" else ():
                print(line)
            run.write_results(results, name)

    if FLAGS.minimal_pairs:
        results = evaluate_minimal_pairs(
            experiment,
            state,
            read_run_pairs(
                config, experiment.sources, FLAGS.minimal_pairs, "--minimal_pairs", FLAGS.languages
            ),
            losses=FLAGS.losses,
            known=known,
            overwrite=FLAGS.overwrite,
            write=write,
        )
    else:
        results = evaluate_state(
            experiment,
            state,
            FLAGS.pairs,
            losses=FLAGS.losses,
            known=known,
            overwrite=FLAGS.overwrite,
            write=write,
        )
    if not distributed.is_writer():
        return cli.DONE
    from imbalance_jax.report import run_page as page

    print("\n".join(describe_results(results)))
    report = f" See {page.write_run_page(run)}." if name == "evaluation.json" else ""
    print(f"Wrote {run.path / name}; docs/metrics.md says what its names mean.{report}")
    return cli.DONE


def read_results(run: RunDirectory, name: str, step: int) -> dict[str, Any]:
    """Returns the results of a step in a file of a run; {} if it is absent or of another step.

    Raises:
      DamagedFileError: it is damaged.
    """
    results = run.read_json(name) or {}
    return results if results.get("step") == step else {}


def configure_evaluation(
    run: RunDirectory,
    *,
    languages: Sequence[str] = (),
    data_dir: str | None = None,
    minimal_pairs: str = "",
) -> "Config":
    """Returns the config of a trained run with the languages to evaluate now.

    Args:
      languages: whose pairs are to be measured; none is all.
      data_dir: where the text is kept, if not where the run's config says.
      minimal_pairs: what is measured in place of alignment, if anything.

    Raises:
      FileNotFoundError: this is not a run directory.
      ValueError: it has no checkpoint or no such language.
    """
    config = run.config()
    for tag in languages:
        if tag not in config.tags:
            raise ValueError(f"--languages has {tag!r}, and the run has {', '.join(config.tags)}.")
    if minimal_pairs:
        find_pair_files(config, minimal_pairs, "--minimal_pairs", languages)
    elif len(set(languages)) == 1:
        raise ValueError(f"--languages={languages[0]} names one language; alignment takes two.")
    if not run.checkpoints.exists():
        raise ValueError(f"{run} has no checkpoint yet.")
    chosen = dataclasses.replace(
        config.evaluation.alignment,
        languages=() if minimal_pairs else tuple(dict.fromkeys(languages)),
    )
    return dataclasses.replace(
        config,
        data_dir=data_dir or config.data_dir,
        # What the run itself scored at its end may not be here.
        evaluation=dataclasses.replace(config.evaluation, alignment=chosen, minimal_pairs=""),
    )


def evaluate_state(
    experiment: "Experiment",
    state: "TrainState",
    most: int,
    *,
    losses: bool = True,
    known: Mapping[str, Any] = types.MappingProxyType({}),
    overwrite: bool = False,
    write: Callable[[Mapping[str, Any]], None] = lambda results: None,
) -> dict[str, Any]:
    """Returns all results of a state, as evaluation.json has them.

    Args:
      most: sequences that two languages are compared on.
      losses: whether to score the test split as well.
      known: earlier results of this state, which stay as they are.
      overwrite: whether to measure them again all the same.
      write: called with the results so far after each part.

    Raises:
      ValueError: of the languages that were asked for no two say the same anywhere, or what is
        known was measured on other sequences.
    """
    alignment = experiment.alignment("test", most)
    if experiment.config.evaluation.alignment.languages and not alignment.pairs:
        raise ValueError(" ".join(alignment.skipped.values()))
    results: dict[str, Any] = {**known, "step": int(state.step)}
    measured = copy.deepcopy(results.get("alignment", {}))
    parts = alignment.parts(state, experiment.stream)
    if overwrite:
        for part in parts:
            _drop_part_results(measured, part)
    _check_same_sequences(measured, alignment)
    _score_missing_losses(experiment, state, results, write, losses=losses, again=overwrite)
    results["alignment"] = measured
    _measure_missing_parts(alignment, parts, measured, lambda: write(results))
    return results


def evaluate_minimal_pairs(
    experiment: "Experiment",
    state: "TrainState",
    sets: Mapping[str, "PairSet"],
    *,
    losses: bool = True,
    known: Mapping[str, Any] = types.MappingProxyType({}),
    overwrite: bool = False,
    write: Callable[[Mapping[str, Any]], None] = lambda results: None,
) -> dict[str, Any]:
    """Returns all results of a state, with the accuracy of each language that has minimal pairs.

    The arguments are those of `evaluate_state`; `sets` are the pairs.

    Raises:
      ValueError: a language is known to be measured on other pairs.
    """
    from imbalance_jax.training import scoring

    results: dict[str, Any] = {**known, "step": int(state.step)}
    measured = {} if overwrite else results.get("minimal_pairs", {})
    for tag, pairs in sets.items():
        if tag in measured and measured[tag].get("digest") != pairs.digest:
            now = {"file": pairs.file, "digest": pairs.digest}
            cli.check_same_measurement(f"Minimal pairs of {tag} are measured", measured[tag], now)
    _score_missing_losses(experiment, state, results, write, losses=losses, again=False)
    missing = {tag: pairs for tag, pairs in sets.items() if tag not in measured}
    if not missing:
        print("All of it is known already; --overwrite measures it again.")
        return results
    windows = experiment.pair_windows(missing)
    with Progress("Minimal pairs", 1) as progress:
        found = scoring.score_minimal_pairs(
            experiment, experiment.evaluator(), state, missing, windows, progress.show
        )
    results["minimal_pairs"] = results.get("minimal_pairs", {}) | found
    write(results)
    return results


def _score_missing_losses(
    experiment: "Experiment",
    state: "TrainState",
    results: dict[str, Any],
    write: Callable[[Mapping[str, Any]], None],
    *,
    losses: bool,
    again: bool,
) -> None:
    """Adds the losses on the test split to results that have none, and writes them.

    Args:
      losses: whether to score them at all; `again`, whether known ones too.

    Raises:
      ValueError: one is not finite, by now or as it is known.
    """
    from imbalance_jax.training import scoring

    known = set(experiment.config.tags) <= set(results.get("languages", ()))
    missing = losses and (again or not known)
    if missing:
        with Progress("Losses on the test split", 1) as progress:
            results |= scoring.score_state(experiment, state, progress.show)
    found = divergence.find_nonfinite_loss(results.get("languages", {}))
    if found:
        raise ValueError(
            f"The test {found} at step {results['step']}: the run had diverged by then, and "
            "nothing else is measured of it. Take an earlier checkpoint, if it has one, as "
            "--step=STEP."
        )
    if missing:
        write(results)


def _get_part_results(measured: Mapping[str, Any], part: "AlignmentPart") -> Mapping[str, Any]:
    """Returns the results among which those of a part would stand."""
    return measured if part.pair is None else measured.get("pairs", {}).get(part.pair.name, {})


def _drop_part_results(measured: dict[str, Any], part: "AlignmentPart") -> None:
    """Takes the results of a part away."""
    if part.pair is None:
        for name in part.names:
            measured.pop(name, None)
    else:
        measured.get("pairs", {}).pop(part.pair.name, None)


def _check_same_sequences(measured: Mapping[str, Any], alignment: "AlignmentEvaluator") -> None:
    """Raises ValueError if the known results are of other sequences than this command's."""
    for pair in alignment.pairs:
        before = measured.get("pairs", {}).get(pair.name)
        if before:
            now = alignment.describe_pair(pair)
            cli.check_same_measurement(f"{pair.name} is measured", before, now)
    if "leak" in measured:
        windows = {tag: leak.get("windows") for tag, leak in measured["leak"].items()}
        now = alignment.describe_windows()
        cli.check_same_measurement("The leak is measured", {"windows": windows}, {"windows": now})


def _measure_missing_parts(
    alignment: "AlignmentEvaluator",
    parts: Sequence["AlignmentPart"],
    measured: dict[str, Any],
    write: Callable[[], None],
) -> None:
    """Adds to the results of alignment the parts that are missing, and writes each down."""
    from imbalance_jax.compute import hardware

    measured["split"] = "test"
    measured.setdefault("pairs", {})
    measured["skipped"] = {**measured.get("skipped", {}), **alignment.skipped}
    missing = [
        part for part in parts if not set(part.names) <= set(_get_part_results(measured, part))
    ]
    if not missing:
        print("All of it is known already; --overwrite measures it again.")
        return
    if len(missing) < len(parts):
        print(f"{len(parts) - len(missing)} of {len(parts)} parts are known already.")
    before = {name: measured.get(name, 0.0) for name in ("compile_seconds", "seconds")}
    measured["device"], began = hardware.describe_devices(), time.monotonic()
    with Progress("Alignment", len(missing)) as progress:
        for line in (*alignment.notes, *alignment.skipped.values()):
            progress.line(line)
        for number, part in enumerate(missing):

            def poll(share: float, done: int = number, title: str = part.title) -> None:
                progress.show(min(done + share, len(missing)), title)

            poll(0.0)
            values = part.measure(poll)
            if part.pair is None:
                measured |= values
            else:
                pair = measured["pairs"].setdefault(part.pair.name, {})
                pair |= alignment.describe_pair(part.pair) | values
            compiling = alignment.programs.compile_seconds
            measured["compile_seconds"] = round(before["compile_seconds"] + compiling, 1)
            spent = time.monotonic() - began - compiling
            measured["seconds"] = round(before["seconds"] + spent, 1)
            write()
        progress.show(len(missing), "done")


def describe_results(results: dict[str, Any]) -> list[str]:
    """Returns the main results in a few lines."""
    alignment = results.get("alignment", {})
    lines = []
    if "seconds" in alignment:
        lines.append(
            f"Alignment took {alignment['seconds']:,.0f} s, and compiling "
            f"{alignment['compile_seconds']:,.0f} s."
        )
    lines += [
        f"{tag}: loss {losses['loss']:.3f}, perplexity {losses['ppl']:,.1f}"
        for tag, losses in results["languages"].items()
    ]
    if "minimal_pairs" in results:
        from imbalance_jax.evaluation.minimal_pairs import describe_accuracies

        lines.append(describe_accuracies(results["minimal_pairs"]))
    for name, pair in alignment.get("pairs", {}).items():
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
                layers = pair["hidden"][kind]
                lines.append(f"  hidden states, {kind}, layers 0 to N + 1:")
                lines.append(f"    cosine   {_format_layer_values(layers['cosine'])}")
                lines.append(f"    shuffled {_format_layer_values(layers['cosine_shuffled'])}")
        pulls = pair["gradients"]
        if "mean" in pulls:
            lines.append(
                f"  gradients: cosine {pulls['mean']:.3f} ± {pulls['mean_error']:.3f} of single "
                f"pairs, {_format_optional_value(pulls['corrected_mean'])} freed of noise (halves "
                f"{', '.join(map(_format_optional_value, pulls['corrected_halves']))})"
            )
    return lines


def _format_layer_values(values: list[float]) -> str:
    return " ".join(f"{value:6.3f}" for value in values)


def _format_optional_value(value: float | None) -> str:
    return "not known" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    define_flags()
    cli.run_command(main, computes=True)
