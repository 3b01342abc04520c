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
greatest. All is computed in NumPy, apart from what `evaluate` does.
"""

import functools
import sys
from collections.abc import Mapping

import numpy as np
import scipy.linalg

from imbalance_jax.data import word_order
from imbalance_jax.data.text.toy_languages import SyntheticLanguage
from imbalance_jax.runs.run_directory import RunDirectory
from imbalance_jax.study.study_directory import StudyDirectory
from imbalance_jax.training.loading import load
from imbalance_jax.training.reopening import open_run

WINDOWS = 256


def compare_cells(path: str, first: str, second: str) -> dict[str, dict[str, np.ndarray]]:
    """Returns each measure, (pairs of runs, N + 2), of one model and of two models.

    Args:
      path: of the study.
      first: a cell and a language of it, such as r90_10:toy1.
      second: another, or the same one.
    """
    directory = StudyDirectory(path)
    (cell_a, tag_a), (cell_b, tag_b) = (side.split(":") for side in (first, second))
    seeds = {cell: list_runs(directory, cell) for cell in (cell_a, cell_b)}
    states = functools.cache(compute_mean_states)
    found: dict[str, list[Mapping[str, np.ndarray]]] = {"one model": [], "two models": []}
    for seed_a, run_a in seeds[cell_a].items():
        for seed_b, run_b in seeds[cell_b].items():
            if first == second and seed_a >= seed_b:
                continue  # each pair once, and no language with itself
            which = "one model" if (cell_a, seed_a) == (cell_b, seed_b) else "two models"
            found[which].append(compare_states(states(run_a, tag_a), states(run_b, tag_b)))
    return {
        which: {name: np.stack([one[name] for one in pairs]) for name in pairs[0]}
        for which, pairs in found.items()
        if pairs
    }


def list_runs(directory: StudyDirectory, cell: str) -> dict[int, RunDirectory]:
    """Returns the finished runs of a cell by seed."""
    specs = directory.study().runs.items()
    runs = {spec.config.seed: directory.run(name) for name, spec in specs if spec.cell == cell}
    runs = {seed: run for seed, run in runs.items() if run.done}
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


def main(path: str, first: str, second: str) -> None:
    for which, measures in compare_cells(path, first, second).items():
        pairs = len(next(iter(measures.values())))
        print(f"\n{first} and {second}, {which}, {pairs} pairs\n")
        print(f"{'':12s}" + "".join(f"{name:>32s}" for name in measures))
        blocks = next(iter(measures.values())).shape[1] - 2
        rows: dict[str, int | slice] = {"embeddings": 0}
        rows |= {f"block {n}": n for n in range(1, blocks + 1)}
        rows |= {"final norm": -1, "all blocks": slice(1, -1)}
        for row, layers in rows.items():
            values = (np.atleast_2d(v.T[layers]).mean(axis=0) for v in measures.values())
            cells = (f"{v.mean():.3f} ({v.min():.3f} to {v.max():.3f})" for v in values)
            print(f"{row:12s}" + "".join(f"{cell:>32s}" for cell in cells))


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
