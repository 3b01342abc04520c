"""Losses of two languages at several ratios, sizes and lengths, by a law that a test knows."""

import numpy as np

from imbalance_jax.analysis import mixture_laws
from imbalance_jax.analysis.mixture_cells import MixtureCells
from imbalance_jax.analysis.mixture_forms import Mixtures

# Parameters of all forms.
TRUE = {"E": 1.8, "A": 0.6, "B": 1.0, "a": 0.4, "b": 0.4, "g": 0.12, "t": 3.0, "r": 0.3}
TRUE |= {"t0": 0.15, "t1": 0.15}
SHARES = (0.03, 0.1, 0.25, 0.5, 0.75, 0.9)
TEXT = np.array([4e6, 4e8])  # the first language's is read many times


def make_mixtures(name, sizes=(1e6, 4e6, 16e6)):
    """Returns six ratios; but for the exponential at several sizes and three lengths."""
    lengths = (1e7, 4e7, 16e7)
    if name == "ratio_exponential":
        sizes, lengths = sizes[:1], lengths[:1]
    rows = [(N, D, p) for N in sizes for D in lengths for p in SHARES]
    N, D, p = map(np.array, zip(*rows, strict=True))
    tokens = np.stack([p, 1 - p], axis=1) * D[:, None]
    return Mixtures(N, tokens, tokens / TEXT)


def make_truth(name, mixtures):
    """Returns the losses of both languages, as (C, G), by the form of that name."""
    return np.stack([_predict(name, mixtures, g) for g in range(2)], axis=1)


def _predict(name, mixtures, g):
    kind = next(kind for kind in mixture_laws.FORMS if kind.name == name)
    form = kind(mixtures, g, mixture_laws.Centre.of(mixtures))
    return form.predict(np.array([[TRUE[n] for n in form.names]]), mixtures)[0]


def make_cells(name, rng, *, sd=0.01, common=0.01, seeds=3, mixtures=None, truth=None):
    """Returns cells whose runs scatter by sd, and by what a seed does to all alike."""
    mixtures = make_mixtures(name) if mixtures is None else mixtures
    truth = make_truth(name, mixtures) if truth is None else truth
    shift = common * rng.normal(size=(seeds, 2))
    losses = tuple(
        {seed: of_cell + shift[seed] + sd * rng.normal(size=2) for seed in range(seeds)}
        for of_cell in truth
    )
    names = tuple(f"c{place}" for place in range(len(truth)))
    runs = tuple(f"{cell}_s{seed}" for cell in names for seed in range(seeds))
    bits = np.array([0.4, 0.35])
    return MixtureCells(("en", "fr"), ("en", "fr"), names, mixtures, losses, runs, TEXT, bits, ())
