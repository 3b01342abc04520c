"""The table of accelerators, held against the tables of others where they are installed."""

import subprocess
import sys

import pytest

from launch import hardware

ALL = [(family, t) for family, tpu in hardware.TPUS.items() for t in tpu.topologies]


@pytest.mark.parametrize(("family", "topology"), ALL)
def test_the_chips_of_a_slice_are_those_of_its_hosts(family, topology):
    size = hardware.compute_job_size(family, topology, num_slices=3)
    product = 1
    for part in topology.split("x"):
        product *= int(part)
    assert size.hosts * size.devices_per_host == product
    assert size.devices == 3 * product and size.processes == 3 * size.hosts


@pytest.mark.parametrize(
    ("family", "topology", "accelerator"),
    [
        ("v5e", "4x4", "v5litepod-16"),
        ("v6e", "4x4", "v6e-16"),
        ("v5p", "2x2x2", "v5p-16"),  # whose number counts cores: 8 chips
        ("v4", "2x2x1", "v4-8"),
    ],
)
def test_a_size_has_the_name_that_the_tpu_api_gives_it(family, topology, accelerator):
    size = hardware.compute_job_size(family, topology)
    assert size.accelerator_type == accelerator and size.sky == f"tpu-{accelerator}"


def test_an_accelerator_type_stands_for_one_topology_of_a_family():
    for family, tpu in hardware.TPUS.items():
        names = [
            hardware.compute_job_size(family, topology).accelerator_type
            for topology in tpu.topologies
        ]
        assert len(set(names)) == len(names)


def test_a_tpu_vm_of_eight_chips_is_one_host():
    assert hardware.compute_job_size("v6e", "2x4").hosts == 2
    assert hardware.compute_job_size("v6e", "2x4", chips_per_host=8).hosts == 1
    assert hardware.convert_to_tpu_vm(hardware.compute_job_size("v6e", "2x4")).hosts == 1
    assert hardware.convert_to_tpu_vm(hardware.compute_job_size("v6e", "4x4")).hosts == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("v5e", "3x5"), r"hardware\.topology='3x5' does not exist for v5e\. It has: 1x1, 2x2"),
        (("v7", "2x2"), r"hardware\.family='v7' is not one of v4, v5e"),
        (("v6e", "4x4", 0), r"hardware\.num_slices=0"),
        (("v6e", "4x4", 1, 8), r"a host of v6e 4x4 has 4"),
        (("h100", "8"), r"must be machines x devices"),
        (("h100", "1x3"), r"1, 2, 4 or 8 h100, not 3"),
        (("h100", "2x8", 2), r"are of TPUs"),
    ],
)
def test_a_size_that_does_not_exist_is_refused_with_those_that_do(arguments, message):
    with pytest.raises(ValueError, match=message):
        hardware.compute_job_size(*arguments)


def test_xpk_has_the_same_table():
    table = pytest.importorskip(
        "xpk.core.system_characteristics", reason="pip install xpk, in an environment of its own"
    )
    compared = 0
    for family, topology in ALL:
        size = hardware.compute_job_size(family, topology)
        theirs, code = table.get_system_characteristics_by_device_type(size.xpk)
        if code:
            continue  # xpk has no machines of one chip, and no hosts of four v5e
        assert theirs.gke_accelerator == hardware.TPUS[family].gke
        assert (theirs.vms_per_slice, theirs.chips_per_vm) == (size.hosts, size.devices_per_host)
        short, code = table.get_system_characteristics_by_device_type(size.accelerator_type)
        assert not code and short.topology == topology
        compared += 1
    assert compared > 30


LIBTPU = """
import sys
from jax.experimental import topologies
for name in sys.argv[1:]:
    devices = topologies.get_topology_desc(name, "tpu").devices
    print(name, len(devices), len({device.process_index for device in devices}))
"""


def test_libtpu_has_the_same_topologies():
    pytest.importorskip("libtpu", reason="pip install -e '.[tpu]'")
    # Of v4 libtpu counts the two cores of a chip.
    sizes = [hardware.compute_job_size(f, t) for f, t in ALL if f != "v4"]
    sizes = [size for size in sizes if size.devices <= 256]
    done = subprocess.run(
        [sys.executable, "-c", LIBTPU, *(size.libtpu for size in sizes)],
        capture_output=True,
        text=True,
        env={"PATH": "", "TPU_SKIP_MDS_QUERY": "1", "JAX_PLATFORMS": "cpu", **_pythonpath()},
    )
    assert done.returncode == 0, done.stderr
    expected = [f"{size.libtpu} {size.devices} {size.hosts}" for size in sizes]
    assert done.stdout.split("\n")[:-1] == expected


def _pythonpath() -> dict[str, str]:
    return {"PYTHONPATH": ":".join(sys.path)}
