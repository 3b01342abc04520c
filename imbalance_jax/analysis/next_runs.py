"""Which further runs would say most of a quantity that varies over draws of the present ones."""

import numpy as np
import numpy.typing as npt

from imbalance_jax.analysis.laws import Floats


def rank_next_runs(
    wanted_RG: Floats,
    loss_RXG: Floats,
    noise_GG: Floats,
    count: int,
    alike_XX: npt.NDArray[np.bool_] | None = None,
) -> list[tuple[int, float]]:
    """Returns the place of each run that is worth most, and the part of the variance left after it.

    Over the draws, what a run would measure varies together with what is wanted. As in a regression
    on its losses, a run removes what these explain, and so it does for the runs after it. The
    variance is that of all that is wanted, added up.

    Args:
      wanted_RG: what is wanted, in each draw.
      loss_RXG: what each run would measure, but for its scatter.
      noise_GG: the covariance of that scatter.
      count: runs, each of which is chosen beside those before it.
      alike_XX: which runs are so alike that one at most is chosen; by default none are.
    """
    draws, runs, languages = loss_RXG.shape
    values = np.concatenate([wanted_RG, loss_RXG.reshape(draws, runs * languages)], axis=1)
    covariance = np.cov(values.T)
    first = wanted_RG.shape[1]
    whole = np.trace(covariance[:first, :first])
    ranked: list[tuple[int, float]] = []
    left_X = np.ones(runs, bool)
    for _ in range(count):
        place_XG = first + np.arange(runs * languages).reshape(runs, languages)
        together_XWG = covariance[:first, place_XG].transpose(1, 0, 2)
        own_XGG = covariance[place_XG[:, :, None], place_XG[:, None, :]] + noise_GG
        # A scatter of 0 leaves losses that are known already without an inverse.
        inverse_XGG = np.linalg.pinv(own_XGG, rcond=1e-9, hermitian=True)
        explained_X = np.einsum("xwg,xgh,xwh->x", together_XWG, inverse_XGG, together_XWG)
        if not left_X.any():
            break
        best = int(np.argmax(np.where(left_X, explained_X, -1.0)))
        if alike_XX is not None:
            left_X &= ~alike_XX[best]
        columns = covariance[:, place_XG[best]]
        covariance = covariance - columns @ inverse_XGG[best] @ columns.T
        left = max(0.0, float(np.trace(covariance[:first, :first]) / whole))
        ranked.append((best, left))
    return ranked
