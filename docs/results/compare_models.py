"""Says how alike the states of two languages are, in one model and in two trained apart.

    python docs/results/compare_models.py studies/grammar r90_10:toy1 r90_10:toy2
    python docs/results/compare_models.py studies/grammar mono_toy1_100:toy1 mono_toy1_100:toy1

The states are means over 256 windows of test text, the same windows on both sides, of the
embeddings, each block and the final norm. Two measures do not change when one side is rotated, so
that they compare models too: debiased linear CKA (Kornblith et al. 2019; HSIC by Song et al. 2012,
equation 5), and the cosine after the best rotation, which is found on the other half of the
windows, above that of shuffled windows. Both cells are of one synthetic source, or of its clones.
"One model" is a run against itself, "two models" are runs of different seeds: they have nothing in
common but their text. Each number is a mean over runs or pairs of runs, with the least and the
greatest. p is that of a permutation test: the part of all ways to pair runs with runs whose mean is
as great as that of each run with itself (of 20,000 random ways where runs are more than seven). All
is computed in NumPy, apart from what `evaluate` does.
"""

import functools
import itertools
import sys

import numpy as np
import scipy.linalg

from imbalance_jax.data import word_order
from imbalance_jax.data.text.toy_languages import SyntheticLanguage
from imbalance_jax.runs.run_directory import RunDirectory
from imbalance_jax.study.study_directory import StudyDirectory
from imbalance_jax.training.loading import load
from imbalance_jax.training.reopening import open_run

WINDOWS = 256


def compare_cells(path: str, first: str, second: str) -> dict[str, np.ndarray]:
    """Returns each measure of every run of the one cell against every run of the other.

    Args:
      path: of the study.
      first: a cell and a language of it, such as r90_10:toy1.
      second: another, or the same one.

    Returns:
      By measure (E, E, N + 2), in the order of seeds; NaN for a language against itself.
    """
    directory = StudyDirectory(path)
    sides = []
    for side in (first, second):
        cell, tag = side.split(":")
        sides.append([compute_mean_states(run, tag) for run in list_runs(directory, cell)])
    rows = [[compare_states(a, b) for b in sides[1]] for a in sides[0]]
    found = {name: np.array([[one[name] for one in row] for row in rows]) for name in rows[0][0]}
    if first == second:
        for values in found.values():
            values[np.tril_indices(len(values))] = np.nan  # each pair once
    return found


def list_runs(directory: StudyDirectory, cell: str) -> list[RunDirectory]:
    """Returns the finished runs of a cell, in the order of their seeds."""
    specs = directory.study().runs.items()
    of_cell = sorted((spec.config.seed, name) for name, spec in specs if spec.cell == cell)
    runs = [run for run in (directory.run(name) for _, name in of_cell) if run.done]
    if not runs:
        raise SystemExit(f"{directory} has no finished run of a cell {cell}.")
    return runs


def compare_states(a_NPD: np.ndarray, b_NPD: np.ndarray) -> dict[str, np.ndarray]:
    """Returns each measure of P pairs of states, for each of N layers: (N,)."""
    layers = [*zip(a_NPD, b_NPD, strict=True)]
    return {
        "debiased CKA": np.array([compute_debiased_cka(*layer) for layer in layers]),
        "cosine after rotation": np.array([score_rotated(*layer) for layer in layers]),
    }


def compute_debiased_cka(a_PD: np.ndarray, b_PD: np.ndarray) -> float:
    """Returns debiased linear CKA of P pairs of states."""

    def hsic(x_PP: np.ndarray, y_PP: np.ndarray) -> float:
        P, x_P, y_P = len(x_PP), x_PP.sum(axis=1), y_PP.sum(axis=1)
        mixed = 2 / (P - 2) * (x_P @ y_P)
        return (np.sum(x_PP * y_PP) + x_P.sum() * y_P.sum() / ((P - 1) * (P - 2)) - mixed) / (
            P * (P - 3)
        )

    a_PP, b_PP = (x_PD @ x_PD.T for x_PD in (a_PD - a_PD.mean(axis=0), b_PD - b_PD.mean(axis=0)))
    for gram_PP in (a_PP, b_PP):
        np.fill_diagonal(gram_PP, 0)
    return float(hsic(a_PP, b_PP) / np.sqrt(hsic(a_PP, a_PP) * hsic(b_PP, b_PP)))


def score_rotated(a_PD: np.ndarray, b_PD: np.ndarray) -> float:
    """Returns the mean cosine of P pairs after a rotation, above that of shuffled pairs."""
    found = []
    for fold in range(2):
        fit = np.arange(len(a_PD)) % 2 != fold
        a_QD, b_QD = a_PD - a_PD[fit].mean(axis=0), b_PD - b_PD[fit].mean(axis=0)
        rotation_DD, _ = scipy.linalg.orthogonal_procrustes(a_QD[fit], b_QD[fit])
        a_QD, b_QD = a_QD[~fit] @ rotation_DD, b_QD[~fit]
        a_QD, b_QD = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a_QD, b_QD))
        found += [np.sum(a_QD * b_QD, axis=1) - np.sum(a_QD * np.roll(b_QD, 1, axis=0), axis=1)]
    return float(np.concatenate(found).mean())


def compute_mean_states(run: RunDirectory, tag: str, step: int | None = None) -> np.ndarray:
    """Returns the mean states of windows of a language's test text: (N + 2, P, D).

    Args:
      run: of a synthetic language.
      tag: of the language.
      step: of the checkpoint; None is the newest.
    """
    loaded = load(run.path, step)
    row = loaded.vocabulary.index(tag)
    states_NPLD = loaded.hidden_states(loaded.vocabulary.map_GU[row, cut_windows(run, tag)])
    return np.asarray(states_NPLD, np.float64).mean(axis=2)


@functools.cache
def cut_windows(run: RunDirectory, tag: str) -> np.ndarray:
    """Returns windows of a language's test text in ids of its source: (P, L)."""
    config = run.config()
    experiment, _ = open_run(run, config)
    name = config.source_of(tag)
    ids_n = word_order.load_held_out_tokens(experiment.sources[name], "test", config.languages[tag])
    toy, L = SyntheticLanguage(config.sources[name].synthetic), config.model.L
    stride = -(-L // toy.document_length) * toy.document_length  # windows begin with documents
    starts_n = np.arange(0, len(ids_n) - L, stride)
    starts_P = starts_n[np.linspace(0, len(starts_n) - 1, WINDOWS).astype(int)]
    return np.asarray(ids_n)[starts_P[:, None] + np.arange(L)].astype(np.int64)


def compute_pairing_p_value(values_EE: np.ndarray) -> float:
    """Returns the part of all pairings of runs whose mean is at least that of the diagonal.

    Of more than seven runs it is that of 20,000 pairings drawn at random, and the diagonal.
    """
    E = len(values_EE)
    if E <= 7:
        pairings_nE = np.array([*itertools.permutations(range(E))])  # the first is the diagonal
    else:
        pairings_nE = np.tile(np.arange(E), (20_001, 1))
        pairings_nE[1:] = np.random.default_rng(0).permuted(pairings_nE[1:], axis=1)
    means_n = values_EE[np.arange(E), pairings_nE].mean(axis=1)
    return float(np.mean(means_n >= means_n[0] - 1e-12))


def main(path: str, first: str, second: str) -> None:
    found = compare_cells(path, first, second)
    one_cell = first.split(":")[0] == second.split(":")[0]
    for name, values_EEN in found.items():
        rows, columns = np.indices(values_EEN.shape[:2])
        diagonal = (rows == columns) if one_cell else np.zeros_like(rows, bool)
        layers: dict[str, np.ndarray] = {"embeddings": values_EEN[..., 0]}
        layers |= {f"block {n}": values_EEN[..., n] for n in range(1, values_EEN.shape[2] - 1)}
        layers |= {"final norm": values_EEN[..., -1], "all blocks": values_EEN[..., 1:-1].mean(-1)}
        print(f"{first} and {second}: {name}")
        for layer, values_EE in layers.items():
            cells = [describe_values("two models", values_EE[~diagonal])]
            if one_cell and first != second:
                p = compute_pairing_p_value(values_EE)
                cells = [describe_values("one model", values_EE[diagonal]), *cells, f"p {p:.3f}"]
            print(f"  {layer:12s}" + "   ".join(cells))


def describe_values(name: str, values: np.ndarray) -> str:
    values = values[np.isfinite(values)]
    low, high = values.min(), values.max()
    return f"{name} {values.mean():.3f} ({low:.3f} to {high:.3f}, {len(values)} pairs)"


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
