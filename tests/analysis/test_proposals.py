"""Proposed ratios: against optima in closed form, and limits that are counted by hand."""

import dataclasses
import itertools
import math

import made_studies
import numpy as np
import pytest
from made_mixtures import make_cells

from imbalance_jax.analysis import (
    mixture_cells,
    proposal_files,
    proposals,
    ratio_search,
    study_table,
)
from imbalance_jax.analysis.mixture_cells import MixtureCells, collect_mixture_cells
from imbalance_jax.analysis.mixture_forms import Mixtures
from imbalance_jax.analysis.mixture_resamples import resample_mixture_laws
from imbalance_jax.analysis.next_runs import rank_next_runs
from imbalance_jax.runs.damaged_files import DamagedFileError
from imbalance_jax.study import grid
from imbalance_jax.study.objective import Objective

EXPONENT, SCALES = 0.3, np.array([1.2, 0.6])
SHARES = np.array([0.05, 0.15, 0.35, 0.65, 0.85, 0.95])


def lose(share_CG):
    return np.array([2.0, 1.7]) + SCALES * share_CG**-EXPONENT


def make_laws(seed=0, *, sd=0.01, forms=(), draws=99, tokens=1e7, text=(math.nan, math.nan)):
    """Returns the laws of a study of one size and length, whose losses follow `lose`."""
    share = np.stack([SHARES, 1 - SHARES], axis=1)
    mixtures = Mixtures(np.full(6, 1e6), share * tokens, np.zeros((6, 2)))
    rng = np.random.default_rng([seed, 9])
    cells = make_cells("", rng, sd=sd, common=sd, seeds=2, mixtures=mixtures, truth=lose(share))
    cells = dataclasses.replace(cells, text_G=np.array(text))
    return resample_mixture_laws(cells, forms=forms, draws=draws)


@pytest.fixture(scope="module")
def laws():
    return make_laws(sd=1e-5, forms=("own_tokens",), draws=19, text=(4e6, 9e6))


def find_share(laws, objective):
    ratio = proposals.propose_ratio("x", objective, laws).ratio
    return ratio["en"] / sum(ratio.values())


@pytest.mark.parametrize("weights", [{}, {"en": 3.0, "fr": 1.0}])
def test_the_least_mean_is_where_both_slopes_are_equal(laws, weights):
    w = np.array([weights.get("en", 1.0), weights.get("fr", 1.0)])
    odds = (w * SCALES)[0] / (w * SCALES)[1]
    best = 1 / (1 + odds ** (-1 / (1 + EXPONENT)))
    assert find_share(laws, Objective(weights=weights)) == pytest.approx(best, abs=0.006)


@pytest.mark.parametrize("unit", ["nats", "bits_per_byte"])
def test_the_least_of_the_largest_is_where_both_are_equal(laws, unit):
    share = np.linspace(0.01, 0.99, 9801)
    factors = np.array([0.4, 0.35]) if unit == "bits_per_byte" else np.ones(2)
    loss = lose(np.stack([share, 1 - share], axis=1)) * factors
    best = share[np.argmin(np.abs(loss[:, 0] - loss[:, 1]))]
    found = find_share(laws, Objective(kind="minimax", unit=unit))
    assert found == pytest.approx(best, abs=0.006)


def test_the_least_loss_of_one_leaves_the_other_within_its_limit(laws):
    objective = Objective(kind="least", language="fr", worse=0.1, than={"en": 1, "fr": 1})
    # lose(p) = lose(0.5) + 0.1
    limit = (0.5**-EXPONENT + 0.1 / SCALES[0]) ** (-1 / EXPONENT)
    assert find_share(laws, objective) == math.ceil(100 * limit) / 100


def test_no_text_is_read_more_often_than_allowed(laws):
    # 10 M tokens, of which at most 4 M are English, or at most 1.5 M French where that is said.
    assert find_share(laws, Objective(most_epochs={"en": 1})) == 0.4
    assert find_share(laws, Objective(most_epochs={"fr": 2}, text={"fr": 0.75e6})) == 0.85


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"most_epochs": {"en": 1, "fr": 0.5}}, "at most en 40 %, fr 45 %.*Allow more epochs"),
        ({"tokens": 20_000_000}, "all mixtures of the study are of one length .*leave tokens out"),
        ({"parameters": 5}, "of one size .*Add runs of another size"),
        (
            {"kind": "least", "language": "fr", "than": {"en": 9, "fr": 1}}
            | {"most_epochs": {"en": 1}},
            "no ratio within the limits keeps the others within 0 nats .*at 9:1",
        ),
    ],
)
def test_what_cannot_be_had_is_one_line(laws, fields, message):
    with pytest.raises(ValueError, match=rf"config\.objectives\.x.*{message}") as error:
        proposals.propose_ratio("x", Objective(**fields), laws)
    assert "\n" not in str(error.value)


def test_text_of_which_nobody_knows_how_much_there_is_is_asked_for():
    laws = make_laws(forms=("own_tokens",), draws=9)
    with pytest.raises(ValueError, match=r"Set config\.objectives\.x\.text\.en to its tokens"):
        proposals.propose_ratio("x", Objective(most_epochs={"en": 1}), laws)


@pytest.mark.parametrize(
    ("studies", "forms"),
    [(12, ("own_tokens",)), pytest.param(100, (), marks=pytest.mark.slow)],
)
def test_the_best_ratio_lies_in_its_interval(studies, forms):
    share = ratio_search.list_ratios(2, 0) / 100
    best = {
        "mean": share[np.argmin(lose(share).mean(axis=1)), 0],
        "minimax": share[np.argmin(lose(share).max(axis=1)), 0],
    }
    inside = dict.fromkeys(best, 0)
    losses = later = 0
    rng = np.random.default_rng(4)
    shifts = [
        0.01 * np.random.default_rng([s, 9]).normal(size=(2, 2)).mean(axis=0)
        for s in range(studies)
    ]
    for seed in range(studies):
        laws = make_laws(seed, forms=forms)
        for name, objective in (("mean", Objective()), ("minimax", Objective(kind="minimax"))):
            found = proposals.propose_ratio(name, objective, laws)
            low, high = found.shares["en"]
            inside[name] += low <= best[name] <= high
            at = np.array([*found.ratio.values()]) / sum(found.ratio.values())
            for true, loss in zip(lose(at), found.losses.values(), strict=True):
                losses += loss.interval[0] <= true <= loss.interval[1]
            # What the same seeds come to at the proposal, one cell more.
            shift, sd = shifts[seed], 0.01
            again = lose(at) + shift + sd / math.sqrt(2) * rng.normal(size=2)
            for true, loss in zip(again, found.losses.values(), strict=True):
                later += loss.same_seeds_interval[0] <= true <= loss.same_seeds_interval[1]
    assert min(inside.values()) >= 0.95 * studies - (studies < 100)
    assert min(losses, later) >= 0.9 * 4 * studies


def test_all_ratios_of_whole_numbers_are_searched():
    assert ratio_search.list_ratios(2, 4).tolist() == [[1, 3], [2, 2], [3, 1]]
    assert len(ratio_search.list_ratios(3, 10)) == math.comb(9, 2)
    assert ratio_search.list_ratios(2, 0).sum(axis=1).tolist() == [100] * 99
    assert len(ratio_search.list_ratios(4, 0)) <= 2000 <= 2 * len(ratio_search.list_ratios(4, 0))


def test_further_runs_are_ranked_as_a_regression_ranks_them():
    rng = np.random.default_rng(2)
    first, second, third = rng.normal(size=(3, 20000))
    wanted = (2 * first + second)[:, None]
    noise = 0.5
    loss = np.stack([third, second, first + 3 * third, first], axis=1)[:, :, None]
    ranked = rank_next_runs(wanted, loss, np.array([[noise]]), 3)
    # What is left of 4 + 1 after seeing first, with its noise, and then second.
    after_first = 5 - 4 / (1 + noise)
    after_second = after_first - 1 / (1 + noise)
    assert [place for place, _ in ranked[:2]] == [3, 1]
    found = [left for _, left in ranked[:2]]
    assert found == pytest.approx([after_first / 5, after_second / 5], rel=0.03)
    assert ranked[2][1] < ranked[1][1]


@pytest.mark.parametrize("parts", [100, 1000])
def test_no_further_run_is_one_that_the_study_has_or_that_was_named(parts):
    made = proposals.propose_ratio("x", Objective(parts=parts), make_laws(forms=("own_tokens",)))
    assert made.next_runs
    shares = [run.ratio["en"] / sum(run.ratio.values()) for run in made.next_runs]
    for place, (share, run) in enumerate(zip(shares, made.next_runs, strict=True)):
        assert run.again == any(abs(share - SHARES) < 1e-9)
        assert run.again or np.abs(share - SHARES).min() >= 0.03 - 1e-9
        assert all(abs(share - before) >= 0.03 - 1e-9 for before in shares[:place])
        assert not run.again or sum(run.ratio.values()) == 20
    widths = [1.0, *(run.width for run in made.next_runs)]
    assert all(after < 0.97 * before for before, after in itertools.pairwise(widths))
    text = proposal_files.describe_proposal(made.to_dict())
    assert text.count("more seeds at") == sum(run.again for run in made.next_runs)


def test_a_ratio_without_width_says_that_more_runs_do_not_narrow_it(laws):
    made = proposals.propose_ratio(
        "x", Objective(most_epochs={"en": 1.0}, weights={"en": 1.0}), laws
    )
    assert made.shares["en"][0] == made.shares["en"][1] and not made.next_runs
    text = proposal_files.describe_proposal(made.to_dict())
    assert "next: the interval of the ratio is within one of its 100 parts, and more runs" in text


def test_what_is_compared_is_said_in_its_unit_and_how_often_each_text_is_read(laws):
    made = proposals.propose_ratio("x", Objective(kind="minimax", unit="bits_per_byte"), laws)
    share = made.ratio["en"] / sum(made.ratio.values())
    assert made.epochs == pytest.approx({"en": share * 1e7 / 4e6, "fr": (1 - share) * 1e7 / 9e6})
    text = proposal_files.describe_proposal(made.to_dict())
    for tag, factor in (("en", 0.4), ("fr", 0.35)):
        loss = made.losses[tag]
        assert loss.compared == pytest.approx(factor * loss.value)
        assert loss.compared_interval == pytest.approx([factor * end for end in loss.interval])
        assert f"{loss.compared:.4f} bits per byte" in text
        assert f", {made.epochs[tag]:.3g} epochs" in text


@pytest.mark.parametrize(
    ("fields", "warned"),
    [({}, True), ({"unit": "bits_per_byte"}, False), ({"weights": {"en": 1.0}}, False)],
)
def test_a_mean_of_nats_of_different_tokenizers_is_warned_of(laws, fields, warned):
    cells = dataclasses.replace(laws.cells, own_tokenizers=True)
    own = dataclasses.replace(laws, cells=cells)
    for given, said in ((own, warned), (laws, False)):
        made = proposals.propose_ratio("x", Objective(**fields), given)
        text = proposal_files.describe_proposal(made.to_dict())
        assert ("note: The languages have tokenizers of their own" in text) == said


# In a study's directory.


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A made study of clones at five ratios, and a later run of 64:36."""
    path = tmp_path_factory.mktemp("study") / "mix"
    made = grid.Grid("Clones.", unit=made_studies.mixture("50:50"))
    for ratio in ("95:5", "80:20", "50:50", "20:80", "5:95"):
        made.add(made_studies.cell_of(ratio), made_studies.mixture(ratio), seeds=range(2))
    made.objective("even", weights={"en1": 1.0, "en2": 1.0})
    made.objective("held", kind="least", language="en1", worse=0.1, than={"en1": 1, "en2": 1})
    return made_studies.make(path, made.to_config(), noise=0.01), made


def test_a_proposal_is_read_as_it_was_written_and_held_against_later_runs(study):
    directory, made = study
    table = study_table.read_study_table(directory)
    cells = collect_mixture_cells(table)
    assert cells.languages == ("en1", "en2") and len(cells.runs) == 10
    assert cells.text_G == pytest.approx([2 * table.unit_tokens] * 2)
    laws = resample_mixture_laws(cells, forms=("own_tokens",), draws=39)
    found = proposals.propose_ratio("even", directory.study().objectives["even"], laws)
    assert found.shares["en1"][0] <= 0.5 <= found.shares["en1"][1]
    found = dataclasses.replace(found, ratio={"en1": 16, "en2": 9})
    proposal_files.write_proposal(directory, found, table)
    (read,) = proposal_files.read_proposals(directory)
    assert read["losses"]["en1"]["value"] == found.losses["en1"].value
    assert read["runs"] == list(cells.runs)
    assert not proposal_files.list_outcomes(read, table)
    text = proposal_files.describe_proposal(read)
    assert text == proposal_files.describe_proposal(found.to_dict())
    assert "en1:en2 = 16:9, at 320,000 tokens" in text and "rests on 10 runs" in text
    made.add("later", made_studies.mixture("64:36"), seeds=[0, 1, 7])
    directory = made_studies.make(directory.path, made.to_config(), noise=0.01)
    table = study_table.read_study_table(directory)
    outcomes = proposal_files.list_outcomes(read, table)
    assert [(o.cell, o.language, o.seeds, o.same_seeds) for o in outcomes] == [
        ("later", "en1", (0, 1), True),
        ("later", "en1", (7,), False),
        ("later", "en2", (0, 1), True),
        ("later", "en2", (7,), False),
    ]
    loss = {(row.run, row.language): row.loss for row in table.observations}
    assert outcomes[0].loss == (loss["later_s0", "en1"] + loss["later_s1", "en1"]) / 2
    predicted = found.losses["en1"]
    assert outcomes[0].interval == predicted.same_seeds_interval
    assert (
        outcomes[1].interval == predicted.run_interval
        and outcomes[1].loss == (loss["later_s7", "en1"])
    )


@pytest.fixture
def tested(tmp_path):
    """A made study with a proposal of 64:36, its grid, and what was proposed."""
    made = grid.Grid("Clones.", unit=made_studies.mixture("50:50"))
    for ratio in ("95:5", "70:30", "30:70", "5:95"):
        made.add(made_studies.cell_of(ratio), made_studies.mixture(ratio), seeds=range(2))
    directory = made_studies.make(tmp_path / "mix", made.to_config())
    table = study_table.read_study_table(directory)
    laws = resample_mixture_laws(collect_mixture_cells(table), forms=("own_tokens",), draws=9)
    found = proposals.propose_ratio("even", Objective(), laws)
    found = dataclasses.replace(found, ratio={"en1": 16, "en2": 9})
    (path,) = proposal_files.write_proposal(directory, found, table)
    return directory, made, found, path


def test_a_proposal_is_kept_once_the_study_has_a_run_of_it(tested):
    directory, made, found, path = tested
    table = study_table.read_study_table(directory)
    assert proposal_files.write_proposal(directory, found, table) == [path]
    text = path.read_text()
    made.add("later", made_studies.mixture("64:36"), seeds=[0, 1])
    directory = made_studies.make(directory.path, made.to_config())
    table = study_table.read_study_table(directory)
    newer = dataclasses.replace(found, runs=[*found.runs, "later_s0", "later_s1"])
    _, kept = proposal_files.write_proposal(directory, newer, table)
    assert kept.name == "even-1.json" and kept.read_text() == text
    assert proposal_files.write_proposal(directory, newer, table) == [path]
    earlier, latest = proposal_files.read_proposals(directory)
    assert (earlier["name"], latest["name"]) == ("even-1", "even")
    assert len(proposal_files.list_outcomes(earlier, table)) == 2
    assert not proposal_files.list_outcomes(latest, table)
    path.write_text(text[:99])
    with pytest.raises(DamagedFileError, match="Delete it, and propose again"):
        proposal_files.write_proposal(directory, newer, table)


def test_runs_that_differ_in_more_than_ratio_size_and_length_are_apart(tested):
    directory, made, *_ = tested
    others = {
        name: made_studies.mixture("64:36") for name in ("anchored", "rate", "batch", "llama")
    }
    others["anchored"].languages.en2.anchors = 0.2
    others["rate"].optimizer.peak_lr *= 3
    others["batch"].update(steps=2 * made_studies.UNIT_STEPS, batch_size=10)
    others["llama"].model.preset = "llama"
    for name, config in others.items():
        made.add(name, config, seeds=[0, 1])
    directory = made_studies.make(directory.path, made.to_config())
    table = study_table.read_study_table(directory)
    (read,) = proposal_files.read_proposals(directory)
    assert not proposal_files.list_outcomes(read, table)
    cells = collect_mixture_cells(table)
    assert set(cells.left_out) == set(others) and len(cells.names) == 4


def test_runs_of_mixtures_that_no_law_has_are_named(tested):
    directory, made, *_ = tested
    made.add("alone", made_studies.mixture("100:0"), seeds=[0])
    directory = made_studies.make(directory.path, made.to_config())
    run = directory.run("r5_95_s1")  # as on_exhaustion=stop ends it
    parts = [
        row | {"realised_tokens": float(row["realised_tokens"]) / 2}
        for row in run.read_csv("mixture.csv")
    ]
    run.write_csv("mixture.csv", parts)
    for name, fails in (("r70_30_s0", True), ("r30_70_s1", False)):
        run = directory.run(name)
        (run.path / "DONE").unlink()
        if fails:
            run.fail(3, OSError("The disk is full."))
    table = study_table.read_study_table(directory)
    cells = collect_mixture_cells(table)
    assert len(cells.runs) == 5
    assert sorted(mixture_cells.describe_missing_runs(table, cells)) == [
        "Without alone_s0: a language has no part, which a law cannot say anything of.",
        "Without r30_70_s1: not done.",
        "Without r5_95_s1: ended before the steps that were set, as the text did.",
        "Without r70_30_s0: failed; python -m imbalance_jax.study status says why.",
    ]


def test_of_ratios_that_are_equally_good_the_one_with_the_least_mean_is_taken():
    share = np.random.default_rng(2).dirichlet(np.full(3, 1.5), 8)
    mixtures = Mixtures(np.full(8, 1e6), share * 1e7, np.zeros((8, 3)))
    losses = tuple({0: 2 + of_cell**-EXPONENT} for of_cell in share)
    tags, names = ("en", "fr", "de"), tuple(f"c{place}" for place in range(8))
    cells = MixtureCells(
        tags, tags, names, mixtures, losses, names, np.full(3, 4e6), np.ones(3), ()
    )
    laws = resample_mixture_laws(cells, forms=("own_tokens",), draws=9)
    # The loss of French hangs on its own share alone, which the limit makes 12 of 60.
    objective = Objective(weights={"fr": 1.0}, most_epochs={"fr": 0.5}, parts=60)
    made = proposals.propose_ratio("x", objective, laws)
    assert made.ratio == {"en": 2, "fr": 1, "de": 2}


def test_clones_go_through_their_text_together(tested):
    directory, *_ = tested
    cells = collect_mixture_cells(study_table.read_study_table(directory))
    laws = resample_mixture_laws(cells, forms=("own_tokens",), draws=9)
    with pytest.raises(ValueError, match="Languages of one text share its limit"):
        proposals.propose_ratio("x", Objective(most_epochs={"en1": 0.3, "en2": 0.3}), laws)
    assert proposals.propose_ratio("x", Objective(most_epochs={"en1": 0.5}), laws).ratio


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "best"}, r"kind='best' is not one of weights, least, minimax"),
        ({"weights": {"de": 1.0}}, "no mixture of the study has a language 'de'. It has: en1, en2"),
        ({"kind": "minimax", "weights": {"en1": 1.0}}, "weights is of kind=weights alone"),
        ({"kind": "least", "language": "en1"}, "than has no part of en1, en2"),
        ({"weights": {"en1": 0.0}}, "are all 0"),
        ({"most_epochs": {"en1": 0.0}}, "must be above 0"),
        ({"text": {"en1": 0.0}}, r"text\.en1 must be above 0"),
        ({"parts": 1}, "fewer than the 2 languages"),
    ],
)
def test_an_objective_of_what_the_study_has_not_is_refused(fields, message):
    made = grid.Grid("Clones.", unit=made_studies.mixture("50:50"))
    made.add("r50_50", made_studies.mixture("50:50"), seeds=[0])
    made.objective("x", **fields)
    with pytest.raises(ValueError, match=rf"config\.objectives\.x.*{message}"):
        grid.resolve_study(made.to_config())
