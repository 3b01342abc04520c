"""Losses that tell what one language is worth to another: windows by brute force, scores by hand.

Sequences are put together one by one and scored with the model's logits and NumPy. In a model
whose second half of rows copies the first, two languages are one, whatever is measured.
"""

import dataclasses
import types
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import make_mesh, random_params, tiny_config

from imbalance_jax import config as config_lib
from imbalance_jax.compute import model as model_lib
from imbalance_jax.config import ModelConfig
from imbalance_jax.data.order.stream import Stream
from imbalance_jax.data.sources import DOCUMENT
from imbalance_jax.evaluation import after_text as behaviour
from imbalance_jax.evaluation import hidden
from imbalance_jax.evaluation.hidden import SequencePairs
from imbalance_jax.evaluation.programs import MeasurementPrograms, Measuring

# Every dimension has a size of its own.
L, B, U = 12, 8, 20
V = 2 * U
MODEL = ModelConfig(L=L, D=16, H=2, K=7, F=22, N=3, attention="einsum")
MAPS = (np.arange(U), U + np.arange(U))
# An odd one, so that the two halves of a sequence differ.
WIDTH, HALF = 11, 5


@pytest.fixture(scope="module")
def programs() -> MeasurementPrograms:
    return MeasurementPrograms(make_mesh(1), batch_size=4)


@pytest.fixture(scope="module")
def params() -> model_lib.Params:
    """Parameters that are sure of something, and differ in every row."""
    return random_params(MODEL, V, spread=0.6)


@pytest.fixture(scope="module")
def copied(params) -> model_lib.Params:
    """A model to which both languages are one: the rows of the second copy those of the first."""
    twice = {name: np.tile(params[name][:U], (2, 1)) for name in ("embed_VD", "head_VD")}
    return params | twice


@jax.jit
def logits_of(params: model_lib.Params, ids_L: jax.Array) -> jax.Array:
    return model_lib.compute_next_token_logits(params, MODEL, ids_L[None])[0]


def score(params: model_lib.Params, ids: Sequence[int]) -> np.ndarray:
    """Returns the loss of every id of a sequence but the first, in nats."""
    ids_W = np.pad(np.array(ids, np.int32), (0, L + 1 - len(ids)))
    logits_LV = np.asarray(logits_of(params, jnp.asarray(ids_W[:-1])), np.float64)
    top_L = logits_LV.max(axis=1)
    log_sum_L = top_L + np.log(np.exp(logits_LV - top_L[:, None]).sum(axis=1))
    return (log_sum_L - logits_LV[np.arange(L), ids_W[1:]])[: len(ids) - 1]


def test_a_loss_is_the_mean_over_the_targets_that_have_a_weight(programs, params):
    rng = np.random.default_rng(1)
    ids_nW = rng.integers(0, V, (11, L + 1))  # no multiple of the batch size
    weight_nL = rng.random((11, L)) < 0.4
    weight_nL[:, 3] = True
    weight_nL[0], weight_nL[1] = True, np.arange(L) == 7
    given = (ids_nW[:, :-1], ids_nW[:, 1:], weight_nL)
    found_n = behaviour.compute_sequence_losses(Measuring(programs, params, MODEL), *given)
    expected_n = [
        score(params, ids_W)[weight_L].mean()
        for ids_W, weight_L in zip(ids_nW, weight_nL, strict=True)
    ]
    np.testing.assert_allclose(found_n, expected_n, rtol=1e-5)


# Prefixes.


def make_sequences(aligned: bool) -> SequencePairs:
    """Returns sequences of many lengths: of one text in two ids for each, or of two texts."""
    rng = np.random.default_rng(2)
    lengths_a = np.array([11, 9, 3, 10, 8, 11, 9, 5, 11, 4, 10])
    lengths_b = lengths_a if aligned else np.array([4, 11, 9, 3, 10, 6, 11, 7, 8, 11, 5])
    base_a = rng.integers(1, U, (len(lengths_a), WIDTH))
    base_b = base_a if aligned else rng.integers(1, U, base_a.shape)
    ids, text = [], []
    for map_U, base, lengths in zip(MAPS, (base_a, base_b), (lengths_a, lengths_b), strict=True):
        text.append(np.arange(WIDTH) < lengths[:, None])
        ids.append(np.where(text[-1], map_U[base], 0).astype(np.int32))
    both = (text[0], text[1])
    return SequencePairs((ids[0], ids[1]), both, both, aligned)


def turned(sequences: SequencePairs) -> SequencePairs:
    ids, text, own = (x[::-1] for x in (sequences.ids, sequences.text, sequences.own))
    return SequencePairs(ids, text, own, sequences.aligned)


def layouts(sequences: SequencePairs) -> dict[str, list[tuple[list[int], list[int]]]]:
    """Returns the prefix and the rest of every sequence that is long enough, for each question."""
    a, b = (
        [ids_L[text_L].tolist() for ids_L, text_L in zip(ids, text, strict=True)]
        for ids, text in zip(sequences.ids, sequences.text, strict=True)
    )
    if sequences.aligned:  # four ids at least behind the prefix
        kept = [p for p in range(len(a)) if len(a[p]) >= HALF + 4]
        rest = [b[p][HALF:] for p in kept]
    else:  # the text itself in the second language, behind its translation
        kept = [p for p in range(len(a)) if len(a[p]) >= 4 and len(b[p]) >= 4]
        rest = [b[p][: WIDTH - HALF] for p in kept]
    before = {"": [a[p][:HALF] for p in kept], "_own": [b[p][:HALF] for p in kept]}
    lengths = tuple(np.array([len(x) for x in before[own]]) for own in ("", "_own"))
    other = hidden.choose_partners(lengths)
    found: dict[str, list] = {"none": [([], behind) for behind in rest]}
    for own in ("", "_own") if sequences.aligned else ("",):
        mine = before[own]
        theirs = [mine[p] for p in other]
        # As many ids of either, so that the rest stands at the same positions.
        size = [min(len(x), len(y)) for x, y in zip(mine, theirs, strict=True)]
        for name, prefix in (("related", mine), ("unrelated", theirs)):
            found[name + own] = [
                (x[:n], behind) for x, n, behind in zip(prefix, size, rest, strict=True)
            ]
    return found


BOTH = pytest.mark.parametrize("aligned", [True, False], ids=["one text", "two texts"])


@pytest.mark.parametrize("back", [False, True], ids=["forth", "back"])
@BOTH
def test_prefixes_are_scored_as_sequences_put_together_by_hand(programs, params, aligned, back):
    sequences = make_sequences(aligned)
    sequences = turned(sequences) if back else sequences
    found = behaviour.measure_prefix_losses(Measuring(programs, params, MODEL), sequences)
    asked = layouts(sequences)
    expected = {"sequences": 7 if aligned else 9}
    loss = {
        name: np.array(
            [
                # The first id of the rest is not scored: without a prefix it has no context.
                score(params, [*before, *rest])[len(before) :][-len(rest) + 1 :].mean()
                for before, rest in rows
            ]
        )
        for name, rows in asked.items()
    }
    for name, loss_P in loss.items():
        assert len(loss_P) == expected["sequences"]
        expected[name] = loss_P.mean()
    for own in ("", "_own") if aligned else ("",):
        gain_P = loss[f"unrelated{own}"] - loss[f"related{own}"]
        expected[f"gain{own}"] = gain_P.mean()
        error = np.sqrt(np.sum((gain_P - gain_P.mean()) ** 2) / (len(gain_P) - 1) / len(gain_P))
        expected[f"gain{own}_error"] = error
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    # What is told apart differs, so that one in the other's place would show.
    assert len({round(value, 3) for value in expected.values()}) == len(expected)


@BOTH
def test_the_same_ids_are_scored_after_every_prefix(monkeypatch, aligned):
    seen = []

    def losses(measuring, ids_PL, target_PL, weight_PL, context):
        assert ids_PL.shape == target_PL.shape == weight_PL.shape
        np.testing.assert_array_equal(ids_PL[:, 1:], target_PL[:, :-1])
        seen.append([(weight_PL[p], target_PL[p, weight_PL[p]]) for p in range(len(ids_PL))])
        return np.zeros(len(ids_PL))

    monkeypatch.setattr(behaviour, "compute_sequence_losses", losses)
    sequences = make_sequences(aligned)
    behaviour.measure_prefix_losses(None, sequences)
    rows = layouts(sequences)
    assert len(seen) == len(rows) == (5 if aligned else 3)
    none, related, unrelated = seen[:3]
    for p, (_, rest) in enumerate(rows["none"]):
        for scored in seen:
            assert scored[p][1].tolist() == rest[1:]
        # And behind prefixes at the same positions.
        assert related[p][0].tolist() == unrelated[p][0].tolist() != none[p][0].tolist()


def test_where_rows_are_copies_a_prefix_in_the_other_language_is_as_good_as_ones_own(
    programs, copied
):
    measuring = Measuring(programs, copied, MODEL)
    found = behaviour.measure_prefix_losses(measuring, make_sequences(True))
    for name in ("related", "unrelated", "gain"):
        assert found[name] == pytest.approx(found[f"{name}_own"], rel=1e-4, abs=1e-5)
    assert found["gain_error"] == pytest.approx(found["gain_own_error"], rel=1e-3)
    # Neither prefix is no prefix, and one text is not another.
    assert len({round(found[name], 3) for name in ("none", "related", "unrelated")}) == 3


def test_where_rows_are_copies_a_translations_language_does_not_matter(programs, params, copied):
    sequences = make_sequences(aligned=False)
    # The same texts before the second language's, once in its own ids.
    ids = (sequences.ids[0] + U * sequences.text[0], sequences.ids[1])
    in_own_ids = dataclasses.replace(sequences, ids=ids)
    results = {
        name: [
            behaviour.measure_prefix_losses(Measuring(programs, model, MODEL), x)
            for x in (sequences, in_own_ids)
        ]
        for name, model in (("copied", copied), ("random", params))
    }
    assert results["copied"][0] == pytest.approx(results["copied"][1], rel=1e-4, abs=1e-5)
    assert results["random"][0] != pytest.approx(results["random"][1], rel=1e-2, abs=1e-5)


def test_a_few_sequences_are_too_few_for_prefixes():
    sequences = make_sequences(aligned=True)
    short = [np.where(np.arange(len(x))[:, None] < 4, x, False) for x in sequences.text]
    few = dataclasses.replace(sequences, text=(short[0], short[1]))
    assert behaviour.measure_prefix_losses(None, few) == {"sequences": 3}


# Seen and unseen text.


class Text:
    """A source of random ids, in documents of three windows."""

    def __init__(self, windows: int, name: str = "en", seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self._tokens = rng.integers(1, U, windows * L + 1).astype(np.uint16)
        self.name, self.fingerprint = name, f"{windows} windows"

    def tokens(self, split: str) -> np.ndarray:
        return self._tokens

    def count(self, split: str) -> int:
        return len(self._tokens)

    def documents(self, split: str) -> np.ndarray:
        starts = np.arange(0, len(self._tokens), 3 * L)
        return np.array([(start, n, 0) for n, start in enumerate(starts)], DOCUMENT)


def make_stream(path: Any, windows: int, **changes: Any) -> Stream:
    """Returns a stream of two clones, three sequences of the first to one of the second."""
    return Stream(tiny_config(path, model__L=L, **changes), {"en": Text(windows)})


def make_wider_stream(path: Any, windows: int, ratio: Sequence[int], **changes: Any) -> Stream:
    """Returns a stream of three clones, en1 to en3, and a language of another source."""
    config = config_lib.to_dict(tiny_config(path, model__L=L, **changes))
    config["sources"]["fr"] = config["sources"]["en"]
    clone = {"clone_of": "en1"}
    config["languages"] = {"en1": {"source": "en"}, "en2": clone, "en3": clone}
    config["languages"]["fr"] = {"source": "fr"}
    config["mixture"]["ratio"] = dict(zip(config["languages"], ratio, strict=True))
    sources = {"en": Text(windows), "fr": Text(windows, "fr", seed=1)}
    return Stream(config_lib.resolve_config(config), sources)


def shown(stream: Stream, steps: int) -> dict[int, set[int]]:
    """Returns which windows of English each language was shown in, read off the batches' ids."""
    tokens = Text(1000)._tokens
    place = {tuple(tokens[w * L : (w + 1) * L + 1].tolist()): w for w in range(1000)}
    found: dict[int, set[int]] = {}
    for step in range(steps):
        batch = stream.batch(step)
        for ids_W, language in zip(batch.ids_BW.tolist(), batch.language_B.tolist(), strict=True):
            window = place.get(tuple(ids_W))  # none of another source
            if window is not None:
                found.setdefault(language, set()).add(window)
    return found


def check_exposed(stream: Stream, first: int, second: int, steps: int, windows: int) -> None:
    found = behaviour.find_exposed_windows(stream, (first, second), steps)
    by_language = shown(stream, steps)
    mine = by_language.pop(first, set())
    others = set().union(*by_language.values())
    assert found["seen"].tolist() == sorted(mine - others)
    assert found["unseen"].tolist() == sorted(set(range(windows)) - mine - others)
    assert not set(found["seen"]) & set(found["unseen"])
    assert not set(found["seen"]) & others


@pytest.mark.parametrize("steps", [0, 1, 7, 20])
@pytest.mark.parametrize(("first", "second"), [(0, 1), (1, 0)])
def test_windows_seen_in_one_language_only_are_those_of_its_batches(tmp_path, first, second, steps):
    check_exposed(make_stream(tmp_path, 200), first, second, steps, 200)


@pytest.mark.parametrize("reuse", ["any", "same_language"])
def test_what_comes_again_in_another_language_is_not_seen_in_one_only(tmp_path, reuse):
    stream = make_stream(tmp_path, 100, mixture__reuse=reuse, mixture__sampler="bernoulli")
    twice = set.intersection(*shown(stream, 20).values())
    assert bool(twice) == (reuse == "any")
    for first in (0, 1):
        for steps in (11, 20):
            check_exposed(stream, first, 1 - first, steps, 100)


def test_a_third_language_of_the_same_text_counts_and_one_of_another_does_not(tmp_path):
    stream = make_wider_stream(tmp_path, 150, ratio=(3, 1, 2, 2))
    for first, second in ((0, 1), (1, 0), (2, 1)):
        check_exposed(stream, first, second, 18, 150)


def test_languages_of_different_texts_have_no_windows_in_common(tmp_path):
    apart = [(make_wider_stream(tmp_path, 200, ratio=(3, 1, 2, 2)), (0, 3))]
    apart.append((make_stream(tmp_path, 400, mixture__switch="document"), (0, 1)))
    for stream, languages in apart:
        with pytest.raises(
            behaviour.MissingWindows, match="the languages draw from different texts"
        ):
            behaviour.find_exposed_windows(stream, languages, 5)


def test_windows_have_no_fixed_place_in_sequence_or_in_text_without_end(tmp_path):
    # Its end would be further than any list of windows reaches.
    endless = make_stream(tmp_path, 200)
    endless.windows["en"] = 10**12
    for stream in (make_stream(tmp_path, 400, mixture__order="sequential"), endless):
        with pytest.raises(
            behaviour.MissingWindows, match="fixed place in shuffled order .* an end"
        ):
            behaviour.find_exposed_windows(stream, (0, 1), 5)


def test_a_text_that_no_language_is_trained_on_has_no_windows(tmp_path):
    stream = make_wider_stream(tmp_path, 200, ratio=(0, 0, 0, 1))
    with pytest.raises(behaviour.MissingWindows, match="not trained on"):
        behaviour.find_exposed_windows(stream, (0, 1), 5)


def measure(programs: Any, params: Any, stream: Stream, **changes: Any) -> dict[str, Any]:
    given = {"languages": (0, 1), "steps": 20, "most": 1000} | changes
    return behaviour.measure_seen_losses(Measuring(programs, params, MODEL), stream, MAPS, **given)


@pytest.mark.parametrize(
    ("windows", "changes", "why"),
    [
        (100, {}, "fewer than two windows of the training text were never seen"),
        (200, {"steps": 0}, "fewer than two windows .* were seen in that language only"),
    ],
)
def test_without_windows_of_both_kinds_there_is_no_answer(tmp_path, windows, changes, why):
    with pytest.raises(behaviour.MissingWindows, match=why):
        measure(None, None, make_stream(tmp_path, windows), **changes)


def test_seen_and_unseen_windows_are_scored_in_either_language(programs, params, tmp_path):
    stream = make_stream(tmp_path, 200)
    found = measure(programs, params, stream)
    by_language, tokens = shown(stream, 20), Text(200)._tokens
    seen = by_language[0] - by_language[1]
    windows = {"seen": seen, "unseen": set(range(200)) - by_language[0] - by_language[1]}
    assert {name: found.pop(name) for name in windows} == {"seen": 120, "unseen": 40}
    assert found.keys() == {"in_first", "in_second"}
    for name, map_U in zip(("in_first", "in_second"), MAPS, strict=True):
        loss = {
            kind: np.array(
                [score(params, map_U[tokens[w * L : (w + 1) * L + 1]]).mean() for w in numbers]
            )
            for kind, numbers in windows.items()
        }
        # Two independent samples, each with a variance of its own.
        error = np.sqrt(
            sum(np.sum((x - x.mean()) ** 2) / (len(x) - 1) / len(x) for x in loss.values())
        )
        expected = {kind: x.mean() for kind, x in loss.items()}
        expected |= {"gain": loss["unseen"].mean() - loss["seen"].mean(), "gain_error": error}
        assert found[name] == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert found["in_first"]["seen"] != pytest.approx(found["in_second"]["seen"], rel=1e-2)


def test_where_rows_are_copies_all_that_one_language_shows_is_seen_in_the_other(
    programs, copied, tmp_path
):
    found = measure(programs, copied, make_stream(tmp_path, 200), most=15)
    assert found["in_first"] == pytest.approx(found["in_second"], rel=1e-4, abs=1e-5)


def test_no_more_windows_are_scored_than_asked_for_and_each_once(monkeypatch, tmp_path):
    stream, read = make_stream(tmp_path, 200), []

    def windows_at(language: int, window_n: np.ndarray) -> np.ndarray:
        read.append(window_n.tolist())
        return stream.windows_at(language, window_n)

    monkeypatch.setattr(behaviour, "compute_sequence_losses", lambda *args: np.zeros(len(args[1])))
    names = ("pools", "sequential", "windows", "order_of")
    spied = types.SimpleNamespace(**{name: getattr(stream, name) for name in names})
    spied.windows_at = windows_at
    found = measure(None, None, spied, most=15)
    assert (found["seen"], found["unseen"]) == (15, 15)
    all_of = behaviour.find_exposed_windows(stream, (0, 1), 20)
    for window_n, name in zip(read, ("seen", "unseen"), strict=True):
        assert len(set(window_n)) == 15 and set(window_n) <= set(all_of[name].tolist())
        # From all over the text rather than from its beginning.
        assert max(window_n) > 100
