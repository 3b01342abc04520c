"""How processes find each other, which rows each reads, and what one does for all."""

import jax
import numpy as np
import pytest
from helpers import make_mesh
from jax.sharding import NamedSharding, PartitionSpec

from imbalance_jax.compute import hosts as distributed
from imbalance_jax.compute import sharding

OURS = {"IMB_COORDINATOR": "host-0:1234", "IMB_NUM_PROCESSES": "4", "IMB_PROCESS_ID": "3"}
# What srun sets for a step of two tasks on two nodes.
SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}
SKY = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"}
SKY |= {"SKYPILOT_NODE_RANK": "1"}


def test_the_projects_own_variables_come_first_and_name_everything():
    job = distributed.detect_cluster(OURS | SLURM | SKY, tpu=True)
    assert job.arguments == {
        "coordinator_address": "host-0:1234",
        "num_processes": 4,
        "process_id": 3,
        "cluster_detection_method": "deactivate",
    }


@pytest.mark.parametrize("name", sorted(OURS))
def test_a_part_of_them_is_refused_by_the_missing_names(name):
    with pytest.raises(ValueError, match=f"{name} not set"):
        distributed.detect_cluster({n: v for n, v in OURS.items() if n != name}, tpu=False)


@pytest.mark.parametrize(
    ("name", "value"),
    [("IMB_PROCESS_ID", "4"), ("IMB_NUM_PROCESSES", "x"), ("IMB_COORDINATOR", "host-0")],
)
def test_numbers_that_make_no_sense_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}='?{value}"):
        distributed.detect_cluster(OURS | {name: value}, tpu=False)


def test_one_process_of_one_is_alone():
    alone = OURS | {"IMB_NUM_PROCESSES": "1", "IMB_PROCESS_ID": "0"}
    assert distributed.detect_cluster(alone, tpu=False) is None
    assert distributed.detect_cluster({}, tpu=False) is None


def test_nodes_of_a_skypilot_task_meet_at_the_first():
    job = distributed.detect_cluster(SKY, tpu=False)
    assert job.arguments["coordinator_address"].startswith("10.0.0.1:")
    assert (job.arguments["num_processes"], job.arguments["process_id"]) == (2, 1)
    assert (
        distributed.detect_cluster(SKY, tpu=True).engine == "TPU"
    )  # jax finds a slice's hosts itself


def test_a_slurm_step_is_joined_and_a_batch_script_without_srun_is_alone():
    assert distributed.detect_cluster(SLURM, tpu=False).engine == "SLURM"
    batch = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_TASKS_PER_NODE": "1(x2)"}
    assert distributed.detect_cluster(batch, tpu=False) is None
    assert distributed.detect_cluster(SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, tpu=False) is None


@pytest.mark.parametrize(
    ("environ", "devices"),
    [
        ({}, None),  # no GPUs
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, [0, 1, 2, 3]),  # one task a node has them all
        (
            {"CUDA_VISIBLE_DEVICES": "0,1,2,3", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"},
            None,  # jax takes the one whose number is the task's
        ),
        (
            {"CUDA_VISIBLE_DEVICES": "2", "SLURM_STEP_TASKS_PER_NODE": "4"},
            [0],  # bound to its task, where it is the only one
        ),
        (
            {
                "CUDA_VISIBLE_DEVICES": "2,3",
                "SLURM_STEP_TASKS_PER_NODE": "2",
                "SLURM_GPUS_PER_TASK": "2",
            },
            [0, 1],
        ),
    ],
)
def test_a_slurm_task_takes_the_gpus_that_are_its_own(environ, devices):
    job = distributed.detect_cluster(SLURM | environ, tpu=False)
    assert job.arguments["local_device_ids"] == devices


@pytest.mark.parametrize("sizes", [{}, {"tensor": 4}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_rows_that_a_process_reads_become_the_batch(sizes):
    mesh = make_mesh(**sizes)
    batch = np.arange(16 * 3).reshape(16, 3)
    rows = distributed.HostRows(sharding.make_batch_sharding(mesh), 16)
    assert rows.index_B.tolist() == list(range(16))  # of one process, all
    placed = rows.place(batch[rows.index_B])
    assert placed.sharding == sharding.make_batch_sharding(mesh)
    np.testing.assert_array_equal(placed, batch)


def test_a_process_reads_only_the_rows_of_its_devices(monkeypatch):
    mesh = make_mesh(data=4, tensor=2)
    placed = sharding.make_batch_sharding(mesh)
    everything = placed.addressable_devices_indices_map((16,))
    # As in a process with the devices 2, 3 and 6: of the second and the fourth part of the rows.
    here = {device: everything[device] for device in everything if device.id in (2, 3, 6)}
    monkeypatch.setattr(NamedSharding, "addressable_devices_indices_map", lambda self, shape: here)
    rows = distributed.HostRows(placed, 16)
    assert rows.index_B.tolist() == [4, 5, 6, 7, 12, 13, 14, 15]
    monkeypatch.setattr(
        jax, "make_array_from_callback", lambda shape, s, part: [part(i) for i in here.values()]
    )
    values = np.arange(16)[rows.index_B]
    assert [part.tolist() for part in rows.place(values)] == [
        [4, 5, 6, 7],
        [4, 5, 6, 7],
        [12, 13, 14, 15],
    ]


def test_what_every_process_has_is_placed_as_its_sharding_says(monkeypatch):
    mesh = make_mesh()
    values = {"a": np.arange(8.0), "b": np.arange(6).reshape(2, 3)}
    whole, cut = sharding.make_replicated_sharding(mesh), NamedSharding(mesh, PartitionSpec("data"))
    alone = distributed.place_whole_arrays(values, {"a": cut, "b": whole})
    monkeypatch.setattr(jax, "process_count", lambda: 2)  # the way of several
    several = distributed.place_whole_arrays(values, {"a": cut, "b": whole})
    for name, value in values.items():
        assert alone[name].sharding == several[name].sharding
        np.testing.assert_array_equal(alone[name], value)
        np.testing.assert_array_equal(several[name], value)


def test_another_number_of_devices_than_was_asked_for_is_refused():
    with pytest.raises(ValueError, match=r"--devices=16, but this run found 8 \(cpu\)"):
        distributed.join_processes(expected=16)
    distributed.join_processes(expected=8)


@pytest.mark.parametrize(
    ("message", "lost"),
    [
        ("INTERNAL: Gloo all-reduce failed: Connection closed by peer [127.0.0.1]:41", True),
        ("UNAVAILABLE: The coordination service has stopped", True),
        ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 12 bytes", False),
    ],
)
def test_errors_of_a_lost_process_are_told_from_others(monkeypatch, message, lost):
    error = jax.errors.JaxRuntimeError(message)
    assert not distributed.is_lost_peer(error)  # a process alone has none to lose
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert distributed.is_lost_peer(error) == lost
    assert not distributed.is_lost_peer(FloatingPointError(message))


def test_a_lost_process_may_be_noticed_by_what_raises_its_status_as_a_value_error(monkeypatch):
    monkeypatch.setattr(distributed.jax, "process_count", lambda: 2)
    status = (
        "UNKNOWN: Gloo AllGather failed: Read error [127.0.0.1]:10369: Connection reset by peer"
    )
    assert distributed.is_lost_peer(ValueError(status))
    assert not distributed.is_lost_peer(ValueError("config.data_dir is unavailable here."))
