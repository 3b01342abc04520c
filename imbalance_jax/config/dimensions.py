"""The dimensions that a parameter's name ends in; `imbalance_jax/__init__.py` has their key."""


def parse_dimensions(name: str, stacked: bool = False) -> str:
    """Returns the dimensions of an array, one letter each: DHK of `w_q_DHK`.

    Args:
      name: the parameter's.
      stacked: whether those of all blocks are one array, with N in front.
    """
    return "N" * stacked + name.rpartition("_")[2]
