import pytest

from imbalance_jax.config.dimensions import parse_dimensions


@pytest.mark.parametrize(
    ("name", "stacked", "dimensions"),
    [
        ("w_q_DHK", False, "DHK"),
        ("w_q_DHK", True, "NDHK"),
        ("b_up_F", True, "NF"),
        ("embed_VD", False, "VD"),
    ],
)
def test_the_dimensions_of_a_parameter_are_the_letters_that_its_name_ends_in(
    name, stacked, dimensions
):
    assert parse_dimensions(name, stacked) == dimensions
