"""Runs of a study on the parts of one machine: a process for each, with devices of its own.

    python -m launch.pack --study=DIR --members=r50_s0,r90_s0 --devices=1 --family=h100

The members are independent: one that fails does not end the others. A pack that is started again
leaves out the runs that are done.
"""

import sys

from absl import flags

from imbalance_jax import cli
from imbalance_jax.runs import children
from imbalance_jax.study.study_directory import StudyDirectory
from launch import hardware, processes
from launch.plan import RESTART
from launch.processes import ProcessSpec

FLAGS = flags.FLAGS


def define_flags() -> None:
    flags.DEFINE_string("study", None, "DIR: The study's directory.", required=True)
    flags.DEFINE_list("members", None, "RUN,RUN: The runs, by their ids.", required=True)
    flags.DEFINE_integer("devices", None, "Devices of each run.", lower_bound=1, required=True)
    flags.DEFINE_string("family", "cpu", "What they are; see launch/hardware.py.")
    flags.DEFINE_string("mesh", None, "Of each run, as for imbalance_jax.main.")
    flags.DEFINE_string("data_dir", None, "As for imbalance_jax.main.")


def main() -> int:
    directory = StudyDirectory(FLAGS.study)
    left = [name for name in FLAGS.members if not directory.run(name).done]
    for name in set(FLAGS.members) - set(left):
        print(f"{name} is done.")
    ended = processes.run_processes(
        [_make_member_process(directory, name, index) for index, name in enumerate(left)],
        together=False,
    )
    for name, code in zip(left, ended, strict=True):
        print(f"{name}: {children.describe_exit(code)}")
    codes = [processes.convert_exit_code(code, alone=True) for code in ended]
    return combine_exit_codes(codes)


def _make_member_process(directory: StudyDirectory, name: str, index: int) -> ProcessSpec:
    command = [sys.executable, "-m", "imbalance_jax.main"]
    command += [f"--study={FLAGS.study}", f"--members={name}", f"--devices={FLAGS.devices}"]
    for flag in ("mesh", "data_dir"):
        if getattr(FLAGS, flag):
            command.append(f"--{flag}={getattr(FLAGS, flag)}")
    platform = "tpu" if FLAGS.family in hardware.TPUS else FLAGS.family
    platform = platform if platform in ("cpu", "tpu") else "cuda"
    (alone,) = processes.make_peer_environments(1)
    env = processes.make_device_environment(platform, index, FLAGS.devices) | alone
    # Object stores have no files to append to; there, the output of all is the job's own.
    log = "" if "://" in FLAGS.study else str(directory.log(name))
    return ProcessSpec(command, env, log)


def combine_exit_codes(codes: list[int]) -> int:
    """Returns the exit code of a pack, by which the engine starts it again or not.

    It is started again if that would help a member and no member has failed for good.
    """
    if any(code not in (cli.DONE, *RESTART) for code in codes):
        return cli.FAILED
    return cli.PREEMPTED if any(codes) else cli.DONE


if __name__ == "__main__":
    define_flags()
    cli.run_command(main)
