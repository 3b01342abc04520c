"""Configs that several tests start from."""

from helpers import ROOT

from imbalance_jax import cli
from imbalance_jax import config as config_lib

REFERENCE = str(ROOT / "configs" / "90_10.py")


def two_clones(ratio="3:1", scale="demo"):
    return config_lib.cloned(scale=scale, ratio=ratio)


def spoken():
    """Returns a run on two languages, from files, with a set of parallel texts."""
    return cli.load_config_file(f"{ROOT}/configs/en_fr.py:scale=demo,files=DIR")


def toys():
    """Returns a run on two toy languages, which are parallel."""
    return cli.load_config_file(f"{ROOT}/configs/toy.py")


def changed(made=two_clones, **changes):
    """Returns the plain values of a run, on two clones; changes are fields joined by __."""
    values = made().to_dict()
    for name, value in changes.items():
        *groups, field = name.split("__")
        target = values
        for group in groups:
            target = target[group]
        target[field] = value
    return values


def resolved(made=two_clones, **changes):
    return config_lib.resolve_config(changed(made, **changes))


def field_of(plain, name):
    for part in name.split("."):
        plain = plain[part]
    return plain


def stages(*firsts, **ratio):
    return [[first, {"en1": 1, "en2": 1} | ratio] for first in firsts]


FRACTIONS, STEPS = stages(0, 0.25, 0.5, en1=3), stages(0, 250, 500, en1=3)
