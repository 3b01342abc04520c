"""Prepares the text of a run or of a study.

    python -m imbalance_jax.data.prepare --config=90_10
    python -m imbalance_jax.data.prepare --config=studies/en_fr:files=DIR --data_dir=data

It trains the tokenizers and writes the ids of each source, and those of parallel texts, under the
data directory. Text that is prepared already stays. A copy of the data directory, all but
data/cache, is what another machine needs to train without the text.
"""

import dataclasses
import shlex
import sys

from absl import flags

from imbalance_jax import cli
from imbalance_jax.config import Config
from imbalance_jax.data.prepare import collect_fingerprints, prepare_runs
from imbalance_jax.study import grid
from imbalance_jax.study.study_directory import StudyDirectory

FLAGS = flags.FLAGS


def define_flags() -> None:
    cli.define_config_flag()
    flags.DEFINE_string("study", None, "DIR: A study's directory, in place of --config.")
    flags.DEFINE_string("data_dir", None, "DIR: Where to; by default config.data_dir.")


def main() -> int:
    if FLAGS.study:
        directory = StudyDirectory(FLAGS.study)
        study = directory.study()
        by_run = prepare_runs(_collect_run_configs(study), directory.binding_texts())
        directory.claim(study, collect_fingerprints(by_run))
    elif "runs" in cli.require_config():
        by_run = prepare_runs(_collect_run_configs(grid.resolve_study(cli.require_config())))
    else:
        config = _set_data_dir(cli.require_run_config())
        by_run = prepare_runs({"": config})
    different = {(n, s.fingerprint): s for sources in by_run.values() for n, s in sources.items()}
    for (name, _), source in sorted(different.items()):
        print(f"{name}: {source.fingerprint}, {source.count('train'):,} tokens to train on")
    print(_describe_next_step("" not in by_run))
    return cli.DONE


def _describe_next_step(study: bool) -> str:
    """Returns how to train on the text: a line, and for a study another one for clusters."""
    if FLAGS.data_dir:
        line = f"The text is ready. Runs read it with config.data_dir={FLAGS.data_dir}."
    else:
        args = shlex.join(sys.argv[1:]).replace("--study", "--workdir")
        command = f"{'study run' if study else 'main'} {args}"
        line = f"The text is ready. To train: python -m imbalance_jax.{command}"
    if study:
        line += f"\nOn a cluster: python -m launch plan {_format_launch_flags()} --profile=FILE"
    return line


def _format_launch_flags() -> str:
    """Returns the flags by which `launch` opens the same study."""
    if FLAGS.study:
        return f"--workdir={shlex.quote(FLAGS.study)}"
    args = [f"--study={FLAGS['config'].config_filename}"]  # type: ignore[attr-defined]
    args += [
        arg.replace("--config.", "--study.", 1) for arg in sys.argv if arg.startswith("--config.")
    ]
    return shlex.join(args)


def _collect_run_configs(study: grid.StudyConfig) -> dict[str, Config]:
    return {name: _set_data_dir(spec.config) for name, spec in study.runs.items()}


def _set_data_dir(config: Config) -> Config:
    """Returns a run's config with the place that --data_dir names."""
    return dataclasses.replace(config, data_dir=FLAGS.data_dir or config.data_dir)


if __name__ == "__main__":
    define_flags()
    cli.run_command(main)
