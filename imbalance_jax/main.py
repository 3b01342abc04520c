"""Trains a model at a chosen language ratio.

    python -m imbalance_jax.main --config=configs/90_10.py --workdir=runs/90_10

Text that is not prepared yet is prepared first. Started again with the same work directory,
a run goes on from its newest checkpoint. Any field can be set from the command line, as in
--config.optimizer.peak_lr=1e-3.
"""

import os
import shlex
import sys
from typing import TYPE_CHECKING

from absl import flags

from imbalance_jax import cli
from imbalance_jax import config as config_lib
from imbalance_jax.runs import RunDirectory

if TYPE_CHECKING:
    from imbalance_jax.train import Clock, Trainer

FLAGS = flags.FLAGS


def define_flags() -> None:
    cli.define_config()
    flags.DEFINE_string("workdir", None, "The run's directory; by default runs/<config name>.")
    flags.DEFINE_bool("dry_run", False, "Say what the run would take, and stop.")
    flags.DEFINE_bool("extend", False, "Allow more config.steps than the run was started with.")
    flags.DEFINE_string("export", None, "Write the final parameters there, as safetensors.")


def main() -> int:
    run = _run_directory()
    known = FLAGS.config is None and (run.path / "config.json").exists()
    config = run.config() if known else config_lib.resolve(cli.required_config())
    run.check(config, extend=FLAGS.extend)
    if run.done and config.steps == run.config().steps and not FLAGS.dry_run:
        print(f"{run} is done. See {run.path / 'report.html'}.")
        return _export(run)

    import jax

    from imbalance_jax import hardware, loading, mirrors, planning, sharding
    from imbalance_jax.data import parallel, prepare, sources
    from imbalance_jax.data.mixture import ORDER_VERSION
    from imbalance_jax.train import Clock, Trainer

    hardware.use_compilation_cache(sources.cache_dir(config.data_dir) / "compiled")
    times = Clock()
    with times("setup"):
        # What can be wrong without the text is found before its preparation takes minutes.
        mesh = sharding.make_mesh(config.mesh, jax.devices())
        sharding.check_batch(config, mesh)
        loading.check_init_from(config)
        mirrors.check(config.mirrors)
        for name, texts in config.parallel.items():
            parallel.check(name, texts)
        prepared = prepare.prepare_all(config)
        trainer = Trainer.make(config, prepared, mesh, parallel.prepare_all(config, prepared))
        run.check_text(trainer.fingerprints(), ORDER_VERSION)
        print(planning.describe(trainer))
    if FLAGS.dry_run:
        print(planning.forecast(trainer))
        return cli.DONE
    if FLAGS.extend and run.path.exists():
        print(planning.describe_extension(run.config(), trainer))
    return _train(trainer, run, times)


def _run_directory() -> RunDirectory:
    if FLAGS.workdir:
        return RunDirectory(FLAGS.workdir)
    cli.required_config()
    file = FLAGS["config"].config_filename  # type: ignore[attr-defined]
    return RunDirectory(os.path.join("runs", os.path.basename(file).removesuffix(".py")))


def _train(trainer: "Trainer", run: RunDirectory, times: "Clock") -> int:
    from imbalance_jax import distributed
    from imbalance_jax.train import Failed, Preempted, train

    with distributed.Interrupts() as interrupts:
        try:
            train(trainer, run, times, interrupts)
        except Preempted as stop:
            again = shlex.join([os.path.basename(sys.executable), "-m", "imbalance_jax.main"])
            again += " " + shlex.join(sys.argv[1:])
            print(f"Saved step {stop.step} in {run}. To go on:\n    {again}")
            return cli.PREEMPTED
        except Failed as error:
            print(f"error: {error}\n{run.path / 'FAILED.json'} has the details.", file=sys.stderr)
            return cli.FAILED
    if distributed.is_writer():
        from imbalance_jax.analysis import page

        print(f"Done. See {page.write_run_page(run)}; for some text of its own:")
        print(f"    python -m imbalance_jax.generate --workdir={run}")
    return _export(run)


def _export(run: RunDirectory) -> int:
    if FLAGS.export:
        from imbalance_jax import exporting

        print(f"Wrote {exporting.export(run, FLAGS.export)}.")
    return cli.DONE


if __name__ == "__main__":
    define_flags()
    cli.run(main)
