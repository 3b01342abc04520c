"""Measurements over rows: neither batches nor devices show in them, and each compiles once."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import make_mesh

from imbalance_jax.compute import sharding
from imbalance_jax.evaluation.programs import MeasurementPrograms

ROWS = 11  # no batch size below divides it


ONE = make_mesh(1)


def weigh(
    table_VD: jax.Array, rows: Mapping[str, jax.Array], real_B: jax.Array, *, power: int
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Something of each row, and sums of the real ones: of a number and of a vector."""
    found_BD = table_VD[rows["id"]] * rows["weight"][:, None] ** power
    added = {"rows": jnp.sum(real_B), "found_D": jnp.sum(found_BD * real_B[:, None], axis=0)}
    return {"found": found_BD, "id": rows["id"]}, added


def double(x: jax.Array) -> jax.Array:
    return 2 * x


@pytest.fixture(scope="module")
def table_VD() -> np.ndarray:
    return np.float32(np.random.default_rng(0).standard_normal((7, 3)))


@pytest.fixture(scope="module")
def rows() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        "id": rng.integers(0, 7, ROWS).astype(np.int32),
        "weight": np.float32(rng.uniform(1, 2, ROWS)),
    }


@pytest.mark.parametrize(
    ("mesh", "batch_size"),
    [(ONE, 1), (ONE, 4), (ONE, 16), (make_mesh(8), 8), (make_mesh(8, fsdp=2, tensor=2), 8)],
    ids=["one by one", "four", "more than there are", "eight devices", "cut three ways"],
)
def test_rows_come_back_in_order_and_sums_leave_out_what_fills_the_last_batch(
    table_VD, rows, mesh, batch_size
):
    programs = MeasurementPrograms(mesh, batch_size)
    assert programs.batch_size == batch_size
    found, sums = programs.rows(weigh, (table_VD,), rows, power=2)
    expected_nD = np.float64(table_VD)[rows["id"]] * np.float64(rows["weight"])[:, None] ** 2
    np.testing.assert_array_equal(found["id"], rows["id"])
    np.testing.assert_allclose(found["found"], expected_nD, rtol=1e-5)
    assert sums["rows"] == ROWS
    np.testing.assert_allclose(sums["found_D"], expected_nD.sum(axis=0), rtol=1e-5)


def test_a_whole_number_of_batches_has_no_row_twice(table_VD, rows):
    eight = {name: values[:8] for name, values in rows.items()}
    found, sums = MeasurementPrograms(ONE, 4).rows(weigh, (table_VD,), eight, power=1)
    np.testing.assert_array_equal(found["id"], eight["id"])
    assert sums["rows"] == 8


def test_a_batch_is_rounded_up_to_what_devices_share_evenly():
    assert MeasurementPrograms(ONE, 5).batch_size == 5
    assert MeasurementPrograms(make_mesh(8), 5).batch_size == 8
    assert MeasurementPrograms(make_mesh(8), 17).batch_size == 24
    assert (
        MeasurementPrograms(make_mesh(8, tensor=4), 5).batch_size == 6
    )  # rows are cut over two only


def test_a_call_may_have_a_batch_size_of_its_own(table_VD, rows):
    shares: list[float] = []
    programs = MeasurementPrograms(ONE, 16)
    found, _ = programs.rows(weigh, (table_VD,), rows, poll=shares.append, batch_size=5, power=1)
    np.testing.assert_array_equal(found["id"], rows["id"])
    assert shares == pytest.approx([5 / 11, 10 / 11, 1])


def test_sums_over_batches_are_kept_in_double_precision():
    # 2^24 + 1 does not exist in fp32.
    rows = {"id": np.zeros(2, np.int32), "weight": np.float32([2.0**24, 1.0])}
    _, sums = MeasurementPrograms(ONE, 1).rows(weigh, (np.ones((1, 3), np.float32),), rows, power=1)
    np.testing.assert_array_equal(sums["found_D"], [2**24 + 1] * 3)


def test_each_function_compiles_once_for_what_it_is_called_with(table_VD, rows):
    programs = MeasurementPrograms(ONE, 4)
    assert programs.compile_seconds == 0
    programs.rows(weigh, (table_VD,), rows, power=1)
    spent = programs.compile_seconds
    assert len(programs._compiled) == 1 and spent > 0
    # Other values, and another number of rows, need no other program.
    fewer = {name: values[3:5] for name, values in rows.items()}
    found, _ = programs.rows(weigh, (table_VD + 1,), fewer, power=1)
    np.testing.assert_allclose(
        found["found"], (table_VD + 1)[fewer["id"]] * fewer["weight"][:, None], rtol=1e-6
    )
    assert len(programs._compiled) == 1 and programs.compile_seconds == spent
    # What is static, another batch size and another shape do.
    programs.rows(weigh, (table_VD,), rows, power=2)
    programs.rows(weigh, (table_VD,), rows, power=2, batch_size=2)
    programs.rows(weigh, (table_VD[:, :2],), rows, power=2)
    assert len(programs._compiled) == 4 and programs.compile_seconds > spent


def test_a_function_of_whole_arrays_is_answered_whole_on_every_device():
    mesh = make_mesh(8)
    programs = MeasurementPrograms(mesh, 8)
    x = np.arange(16, dtype=np.float32)
    cut = jax.device_put(x, sharding.make_batch_sharding(mesh))
    for given in (x, cut, jnp.asarray(x)):
        answer = programs.run(double, given)
        np.testing.assert_array_equal(answer, 2 * x)
        assert answer.sharding.is_fully_replicated and len(answer.sharding.device_set) == 8
    # Arrays without a place of their own are placed alike; that which is cut stays cut.
    assert len(programs._compiled) == 2


@pytest.mark.parametrize("devices", [1, 3, 8])
def test_rows_are_filled_up_to_what_any_number_of_devices_shares_and_marked(rows, devices):
    placed, real_B = MeasurementPrograms(make_mesh(devices), 4).place_filled(rows)
    assert real_B.shape == (-(-ROWS // devices) * devices,)
    assert np.asarray(real_B).tolist() == [True] * ROWS + [False] * (-ROWS % devices)
    for name, values in rows.items():
        np.testing.assert_array_equal(placed[name][:ROWS], values)
        assert (np.asarray(placed[name][ROWS:]) == values[0]).all()


def test_progress_grows_up_to_its_end_and_may_stop_the_measurement(table_VD, rows):
    programs, shares = MeasurementPrograms(ONE, 4), []
    programs.rows(weigh, (table_VD,), rows, poll=shares.append, power=1)
    assert shares == pytest.approx([4 / 11, 8 / 11, 1])

    def stop(share: float) -> None:
        shares.append(share)
        if share > 0.5:
            raise InterruptedError

    shares.clear()
    with pytest.raises(InterruptedError):
        programs.rows(weigh, (table_VD,), rows, poll=stop, power=1)
    assert len(shares) == 2
