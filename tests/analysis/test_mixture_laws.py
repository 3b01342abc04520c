"""Laws over mixtures: against plain loops, on made tables whose parameters are known."""

import math

import numpy as np
import pytest
import scipy.stats
from made_mixtures import TRUE, make_cells, make_mixtures, make_truth

from imbalance_jax.analysis import mixture_choice, mixture_laws, resampling
from imbalance_jax.analysis.mixture_forms import FORMS, Mixtures
from imbalance_jax.analysis.mixture_resamples import resample_mixture_laws

NAMES = [form.name for form in FORMS]


def loss_in_words(name, values, centre, mixtures, c, g):
    """One loss by the formula of a form, number by number."""
    N = mixtures.parameters_C[c] / centre.parameters
    tokens, epochs = mixtures.tokens_CG[c], mixtures.epochs_CG[c]
    D, p = sum(tokens) / centre.tokens, tokens[g] / sum(tokens)
    size = values["A"] * N ** -values["a"] if "a" in values else 0.0
    if name == "ratio_exponential":
        return values["E"] + values["B"] * math.exp(-values["t"] * p)
    if name == "ratio_power":
        return (values["E"] + size + values["B"] * D ** -values["b"]) * p ** -values["g"]
    own = tokens[g]
    if name == "effective_tokens":
        own, r = 0.0, values["r"]
        for other, (read, times) in enumerate(zip(tokens, epochs, strict=True)):
            unique = read / max(times, 1)
            worth = unique * (1 + (1 - math.exp(-r * (max(times, 1) - 1))) / r)
            own += worth * (1.0 if other == g else values[f"t{other}"])
    return values["E"] + size + values["B"] * (own / centre.tokens) ** -values["b"]


@pytest.mark.parametrize("name", NAMES)
def test_a_form_is_its_formula(name):
    mixtures = make_mixtures(name)
    form = next(f for f in mixture_laws.list_forms(mixtures, 0) if f.name == name)
    values = {n: TRUE[n] for n in form.names}
    found = form.predict(np.array([list(values.values())]), mixtures)[0]
    wanted = [loss_in_words(name, values, form.centre, mixtures, c, 0) for c in range(len(found))]
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_a_law_is_found_again_and_chosen_where_nothing_scatters(name):
    mixtures = make_mixtures(name, sizes=(1e6, 3e6, 9e6, 27e6))
    loss_C = make_truth(name, mixtures)[:, 1]
    choice = mixture_choice.choose_mixture_law(mixtures, 1, loss_C, np.ones(len(loss_C)))
    law = choice.laws[name]
    assert law.parameters == pytest.approx({n: TRUE[n] for n in law.form.names}, rel=0.01)
    assert choice.law.form.name == name
    assert choice.error.ratios < 1e-4
    # A curve of log loss over log share is a power of the share, and of nothing else.
    assert (choice.interpolation.ratios < 1e-4) == (name == "ratio_power")
    if name == "ratio_exponential":
        assert math.isnan(choice.error.sizes)
    else:
        assert choice.error.sizes < 1e-4 < choice.interpolation.sizes
        assert choice.error.largest < 1e-4 < choice.interpolation.largest


def find_coverage(name, repeats):
    """Returns how many of all parameters lie in their intervals, and how many there are."""
    inside = []
    for number in range(repeats):
        cells = make_cells(name, np.random.default_rng([number, 5]))
        laws = resample_mixture_laws(cells, forms=(name,), draws=79)
        for g in range(2):
            for parameter, (low, high) in laws.parameter_intervals(g).items():
                inside.append(low <= TRUE[parameter] <= high)
    return sum(inside), len(inside)


@pytest.mark.parametrize(
    ("name", "repeats"),
    [
        ("ratio_exponential", 4),
        ("effective_tokens", 2),
        *[pytest.param(name, 100, marks=pytest.mark.slow) for name in NAMES],
    ],
)
def test_intervals_of_parameters_cover_them_as_often_as_they_say(name, repeats):
    covered, count = find_coverage(name, repeats)
    # Parameters of one fit miss together, so that they count as one language's half.
    least = scipy.stats.binom.ppf(0.01, 2 * repeats, 0.95) / (2 * repeats)
    assert covered >= least * count


def test_refits_in_rows_are_those_of_single_fits():
    cells = make_cells("own_tokens", np.random.default_rng(0), sd=0.02)
    forms = mixture_laws.list_forms(cells.mixtures, 0)
    loss_C, weight_C = cells.mean_CG[:, 0], cells.runs_C
    drawn = loss_C + 0.01 * np.random.default_rng(1).normal(size=(3, len(loss_C)))
    for form in forms:
        law = mixture_laws.fit_mixture_law(form, loss_C, weight_C)
        rows = mixture_laws.refit_mixture_laws(law, drawn, np.tile(weight_C, (3, 1)))
        for row, theta_K in zip(drawn, rows, strict=True):
            single = mixture_laws.fit_mixture_law(form, row, weight_C)
            np.testing.assert_allclose(
                form.predict(theta_K[None], cells.mixtures)[0],
                single.loss(cells.mixtures),
                atol=1e-4,
            )


def test_a_draw_that_no_law_reaches_leaves_what_moves_no_loss_where_it_is():
    cells = make_cells("own_tokens", np.random.default_rng(0))
    form = next(f for f in mixture_laws.list_forms(cells.mixtures, 0) if f.name == "own_tokens")
    law = mixture_laws.fit_mixture_law(form, cells.mean_CG[:, 0], cells.runs_C)
    drawn = np.full((1, len(cells.names)), -5.0)  # few repeats draw losses far below 0
    (theta_K,) = mixture_laws.refit_mixture_laws(law, drawn, np.ones_like(drawn))
    assert np.allclose(law.form.predict(theta_K[None], cells.mixtures), 0, atol=1e-6)


def test_left_out_ratios_are_predicted_from_the_others_alone():
    mixtures = make_mixtures("ratio_exponential")
    loss_C = make_truth("own_tokens", mixtures)[:, 0]
    spoiled = loss_C.copy()
    spoiled[2] += 1.0  # which its own prediction must not see
    clean, found = (
        mixture_choice.choose_mixture_law(mixtures, 0, loss, np.ones(len(loss)), ("own_tokens",))
        for loss in (loss_C, spoiled)
    )
    assert clean.error.ratios < 1e-4
    missed = len(mixture_choice.LeftOut.of(mixtures, 0).ratios) * found.error.ratios**2
    assert missed >= 1.0**2


def test_too_few_ratios_are_one_line():
    mixtures = make_mixtures("ratio_exponential")
    few = mixtures.select([0, 3])
    with pytest.raises(ValueError, match="too few ratios.*2 ratios are done.*needs 3.*Add ratios"):
        mixture_laws.list_forms(few, 0)


def test_languages_that_always_come_together_have_one_transfer_coefficient():
    share = np.array([[p, (1 - p) / 2, (1 - p) / 2] for p in np.linspace(0.1, 0.9, 12)])
    together = Mixtures(np.ones(12), share * 1e6, np.zeros((12, 3)))
    form = next(f for f in mixture_laws.list_forms(together, 0) if f.name == "effective_tokens")
    assert form.names == ("E", "B", "b", "t")
    share[::2, 1:] *= (0.5, 1.5)
    apart = Mixtures(np.ones(12), share * 1e6, np.zeros((12, 3)))
    form = next(f for f in mixture_laws.list_forms(apart, 0) if f.name == "effective_tokens")
    assert form.names == ("E", "B", "b", "t1", "t2")


def test_a_cell_that_lacks_a_seed_is_moved_by_what_the_seed_does_to_the_others():
    rng = np.random.default_rng(4)
    shift = rng.normal(size=(3, 2))
    truth = rng.normal(size=(6, 2))
    whole = [{s: loss + shift[s] for s in range(3)} for loss in truth]
    lacking = [dict(cell) for cell in whole]
    del lacking[1][2], lacking[4][0], lacking[4][1]
    found = resampling.average_runs(lacking)
    np.testing.assert_allclose(found, truth + shift.mean(axis=0), atol=1e-12)
    assert np.max(resampling.measure_scatter(lacking).covariance_GG) < 1e-20
    # Another seed, or too few repeats to tell a seed from a run: the mean of what there is.
    other = [*whole, {7: np.ones(2)}]
    np.testing.assert_array_equal(resampling.average_runs(other)[-1], np.ones(2))
    few = [{0: np.zeros(2), 1: np.ones(2)}, {0: np.zeros(2)}]
    np.testing.assert_array_equal(resampling.average_runs(few), [[0.5, 0.5], [0, 0]])


def test_what_seeds_share_is_told_from_what_they_do_not():
    rng = np.random.default_rng(3)
    shift = rng.normal(size=(40, 2))
    losses = [{s: 3 + shift[s] + 0.1 * rng.normal(size=2) for s in range(40)} for _ in range(6)]
    scatter = resampling.measure_scatter(losses)
    assert (scatter.own_df, scatter.common_df) == (195, 39)
    np.testing.assert_allclose(scatter.covariance_GG, 0.01 * np.eye(2), atol=0.003)
    own = scatter.draw_own(np.full(6, 40.0), 4000, rng)
    np.testing.assert_allclose(own.std(axis=0), 0.1 / math.sqrt(40), rtol=0.15)
    of_mean, new = scatter.draw_common(4000, rng)
    np.testing.assert_allclose(of_mean.std(axis=0), shift.std(axis=0) / math.sqrt(40), rtol=0.2)
    np.testing.assert_allclose(new.std(axis=0), shift.std(axis=0), rtol=0.2)
    assert resampling.measure_scatter([{0: np.zeros(2)}, {1: np.ones(2)}]) is None
