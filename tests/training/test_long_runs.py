"""A long run holds and reads no more late than early: counted, since times are noisy."""

import dataclasses
import os
import pathlib
import threading

import jax
import pytest
from helpers import list_parsed_json, tiny_config

from imbalance_jax.compute import hosts as distributed
from imbalance_jax.compute import sharding
from imbalance_jax.compute.checkpoint import Checkpoints
from imbalance_jax.runs.run_directory import RunDirectory
from imbalance_jax.training import experiment, loop, pack, recorder

STEPS, EVERY = 120, 4


@dataclasses.dataclass(frozen=True)
class Held:
    """What the process holds and has done so far, at a save."""

    step: int
    files: int
    threads: int
    arrays: int
    compiled: int
    parsed: int  # JSON texts
    read: int  # bytes


@pytest.mark.slow
def test_a_save_late_in_a_run_takes_no_more_than_an_early_one(
    tmp_path, data_dir, english, monkeypatch
):
    align = {f"evaluation__alignment__{k}": v for k, v in {"pairs": 8, "budget": 1.0}.items()}
    config = tiny_config(
        data_dir,
        steps=STEPS,
        log_every=1,
        model__N=1,
        checkpoint__every=EVERY,
        evaluation__every=EVERY,
        evaluation__alignment__every=10 * EVERY,
        **align,
    )
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    trainer = experiment.Experiment.make(config, {"en": english}, mesh)
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
    )
    parsed, saves = list_parsed_json(monkeypatch), list[Held]()
    save = Checkpoints.save

    def count_and_save(self: Checkpoints, state) -> None:
        self.wait()  # what is saved in the background holds files and threads meanwhile
        io = pathlib.Path("/proc/self/io").read_text()
        saves.append(
            Held(
                int(state.step),
                len(os.listdir("/proc/self/fd")),
                threading.active_count(),
                len(jax.live_arrays()),
                len(compiled),
                len(parsed),
                int(io.split()[1]),
            )
        )
        save(self, state)

    monkeypatch.setattr(Checkpoints, "save", count_and_save)
    run = RunDirectory(tmp_path / "run")
    alone = pack.Pack([pack.PackMember("", trainer, run)], mesh)
    interrupts = distributed.SharedInterrupts()
    assert loop.train_members(alone, recorder.RunTimer(), interrupts) == {}

    # A third is enough for every program to be compiled and every pool of threads to be full.
    early, late = (
        [held for held in saves if low <= held.step < high] for low, high in ((40, 80), (80, STEPS))
    )
    for name in ("files", "threads", "arrays"):
        most = [max(getattr(held, name) for held in part) for part in (early, late)]
        assert most[1] <= most[0], name
    assert late[-1].compiled == early[0].compiled
    spent = {
        name: [getattr(part[-1], name) - getattr(part[0], name) for part in (early, late)]
        for name in ("parsed", "read")
    }
    assert spent["parsed"][1] <= spent["parsed"][0] and spent["read"][1] < 1.2 * spent["read"][0]
