"""Behaviours of languages.py, held against the formulas and facts of the reference study."""

import fractions
import random

import numpy as np
import pytest

from imbalance_jax import config as config_lib
from imbalance_jax import languages
from imbalance_jax.config import LanguageConfig, VocabularyConfig
from imbalance_jax.languages import Pieces

REFERENCE = 16384


def pieces(size=40, pad_id=0):
    """A tokenizer of our usual layout: padding, unknown, separator, then text."""
    bytes_U = np.arange(size, dtype=np.int32) % 7 + 1
    bytes_U[:3] = 0
    return Pieces(size, pad_id, (1, 2), bytes_U)


def config_of(tags, *, sources=("en",), **vocabulary):
    """Returns a config of languages: tag -> the fields of its LanguageConfig."""
    config = config_lib.default()
    for name in sources:
        config.sources[name] = config_lib.declared(config_lib.SourceConfig)
    for tag, fields in tags.items():
        config.languages[tag] = config_lib.declared(LanguageConfig, **fields)
        config.mixture.ratio[tag] = 1
    config.vocabulary.update(vocabulary)
    return config_lib.resolve(config)


def clones(n, *, anchors=0.0, **vocabulary):
    tags = {"en1": {"source": "en"}}
    tags |= {f"en{i}": {"clone_of": "en1", "anchors": anchors} for i in range(2, n + 1)}
    return config_of(tags, **vocabulary)


def cloned(share_of_anchors, anchor_specials="reference", size=REFERENCE):
    language = LanguageConfig(clone_of="en1", anchors=share_of_anchors)
    vocabulary = VocabularyConfig(anchor_specials=anchor_specials)
    return languages.cloned_ids(pieces(size), language, vocabulary)


# Clones


@pytest.mark.parametrize("n, size", [(1, 16384), (2, 32768), (10, 163840)])
def test_every_clone_widens_the_vocabulary_by_its_whole_source(n, size):
    made = languages.vocabulary(clones(n), {"en": pieces(REFERENCE)})
    assert made.size == size and made.own_GV.shape == (n, size)


@pytest.mark.parametrize("anchors", [0.0, 0.1, 0.5])
def test_the_size_of_the_vocabulary_does_not_depend_on_anchors(anchors):
    assert languages.vocabulary(clones(2, anchors=anchors), {"en": pieces()}).size == 80


def test_a_full_clone_shifts_every_id_but_padding():
    made = languages.vocabulary(clones(10), {"en": pieces()})
    for clone in range(10):
        expected = [t + clone * 40 if t > 0 else 0 for t in range(40)]
        assert made.map_GU[clone].tolist() == expected


def test_only_padding_is_shared_between_full_clones():
    made = languages.vocabulary(clones(3), {"en": pieces()})
    assert np.nonzero(made.own_GV.sum(axis=0) > 1)[0].tolist() == [0]
    # Slots 40 and 80 would be the clones' padding, and stay unused.
    assert np.nonzero(made.own_GV.sum(axis=0) == 0)[0].tolist() == [40, 80]


def test_without_a_padding_piece_nothing_is_shared():
    made = languages.vocabulary(clones(2), {"en": pieces(pad_id=-1)})
    assert (made.own_GV.sum(axis=0) == 1).all()


@pytest.mark.parametrize("anchors", [0.0, 0.25, 0.9, 1.0])
@pytest.mark.parametrize("anchor_specials", ["reference", "never", "always"])
def test_a_clone_map_is_a_bijection_off_the_anchors_and_decodes_to_the_same_text(
    anchors, anchor_specials
):
    config = clones(3, anchors=anchors, anchor_specials=anchor_specials)
    made = languages.vocabulary(config, {"en": pieces()})
    text = np.arange(40)
    for g in range(3):
        ids = made.map_GU[g]
        assert len(set(ids.tolist())) == 40
        assert made.base_ids(g, ids).tolist() == text.tolist()
        assert set(np.nonzero(made.own_GV[g])[0].tolist()) == set(ids.tolist())
    parent, clone = made.map_GU[0], made.map_GU[1]
    shared = parent == clone
    assert (clone[~shared] >= 40).all()
    # What two languages both own is exactly what the map leaves in place.
    assert np.nonzero(made.own_GV[0] & made.own_GV[1])[0].tolist() == parent[shared].tolist()


def test_ids_of_another_language_have_no_base_id():
    made = languages.vocabulary(clones(2), {"en": pieces()})
    assert made.base_ids(0, np.array([0, 5, 45, 79])).tolist() == [0, 5, -1, -1]
    assert made.base_ids(1, np.array([0, 5, 45, 79, 40])).tolist() == [0, -1, 5, 39, -1]


def test_bytes_of_a_base_id_are_those_of_its_piece_in_every_clone():
    made = languages.vocabulary(clones(2, anchors=0.5), {"en": pieces()})
    assert made.bytes_GU.tolist() == [pieces().bytes_U.tolist()] * 2


# Anchors


def test_the_reference_shuffle_is_the_published_one():
    shuffled = list(range(REFERENCE))
    random.Random(0).shuffle(shuffled)
    assert shuffled[:5] == [8644, 6017, 7260, 10306, 15808]
    # The smallest sets of clones are made of the first ids of the shuffle.
    for n in range(1, 6):
        few = cloned(float(1 - fractions.Fraction(n, REFERENCE)))
        assert np.nonzero(few)[0].tolist() == sorted([8644, 6017, 7260, 10306, 15808][:n])


@pytest.mark.parametrize(
    "share, count",
    [(0.95, 15564), (0.9, 14745), (0.75, 12288), (0.5, 8192), (0.2, 3276), (0.1, 1638)],
)
def test_as_many_ids_are_cloned_as_in_the_reference(share, count):
    anchors = float(1 - fractions.Fraction(str(share)))
    assert np.count_nonzero(cloned(anchors)) == count


def test_the_separator_and_the_unknown_piece_are_cloned_from_their_ranks_on():
    for special, rank in ((2, 11924), (1, 15974), (0, 8067)):
        # rank ids before it are cloned; it is the next one.
        before = float(1 - fractions.Fraction(rank, REFERENCE))
        with_it = float(1 - fractions.Fraction(rank + 1, REFERENCE))
        assert not cloned(before)[special] and cloned(with_it)[special]


@pytest.mark.parametrize("share, separator", [(0.1, 0), (0.2, 0), (0.5, 0), (0.75, 1), (0.9, 1)])
def test_the_reference_clones_the_separator_from_three_quarters_on(share, separator):
    assert cloned(1 - share)[2] == separator


def test_more_anchors_contain_all_anchors_of_fewer():
    shares = [0.0, 0.05, 0.1, 0.25, 0.5, 0.8, 0.9, 1.0]
    sets = [set(np.nonzero(~cloned(share))[0].tolist()) for share in shares]
    assert all(fewer < more for fewer, more in zip(sets, sets[1:], strict=False))
    assert not sets[0] and len(sets[-1]) == REFERENCE


@pytest.mark.parametrize("anchors", [0.05, 0.5, 0.9])
def test_anchor_specials_decides_for_the_specials_and_for_nothing_else(anchors):
    reference = cloned(anchors)
    never, always = cloned(anchors, "never"), cloned(anchors, "always")
    assert never[[1, 2]].all() and not always[[1, 2]].any()
    others = np.delete(np.arange(REFERENCE), [1, 2])
    assert np.array_equal(never[others], reference[others])
    assert np.array_equal(always[others], reference[others])


@pytest.mark.parametrize("anchor_specials", ["reference", "never", "always"])
def test_without_anchors_everything_is_cloned_whatever_anchor_specials_says(anchor_specials):
    assert cloned(0.0, anchor_specials).all()


# Languages together


def test_languages_are_laid_out_in_natural_order_whatever_order_the_config_has():
    names = ["en10", "en2", "en1", "en9"]
    fields = {tag: {"clone_of": "en1"} for tag in names} | {"en1": {"source": "en"}}
    for order in (names, sorted(names), names[::-1]):
        made = languages.vocabulary(config_of({t: fields[t] for t in order}), {"en": pieces()})
        assert made.tags == ("en1", "en2", "en9", "en10")
        assert made.map_GU[:, 5].tolist() == [5, 45, 85, 125]


def test_tags_whose_numbers_are_equal_still_have_one_order():
    fields = {"en2": {"source": "en"}, "en02": {"clone_of": "en2"}}
    forward = config_of(fields).tags
    assert config_of(dict(reversed(fields.items()))).tags == forward


def test_sources_of_different_sizes_each_have_a_slot_of_their_own_size():
    tags = {"en": {"source": "en"}, "fr": {"source": "fr"}, "fr2": {"clone_of": "fr"}}
    config = config_of(tags, sources=("en", "fr"))
    made = languages.vocabulary(config, {"en": pieces(40), "fr": pieces(29)})
    assert made.size == 40 + 29 + 29 and made.map_GU.shape == (3, 40)
    assert made.map_GU[0].tolist() == list(range(40))
    assert made.map_GU[1].tolist() == [0, *range(41, 69)] + [-1] * 11
    assert made.map_GU[2].tolist() == [0, *range(70, 98)] + [-1] * 11
    assert made.own_GV.sum(axis=1).tolist() == [40, 29, 29]
    assert made.bytes_GU[1, 29:].tolist() == [0] * 11
    for g, size in enumerate((40, 29, 29)):
        assert made.base_ids(g, made.map_GU[g, :size]).tolist() == list(range(size))


def test_a_clone_keeps_the_anchors_of_its_own_parent():
    tags = {
        "en": {"source": "en"},
        "fr": {"source": "fr"},
        "fr2": {"clone_of": "fr", "anchors": 1.0},
    }
    config = config_of(tags, sources=("en", "fr"), anchor_specials="reference")
    made = languages.vocabulary(config, {"en": pieces(40), "fr": pieces(29)})
    assert made.map_GU[2].tolist() == made.map_GU[1].tolist()


def test_a_clone_is_written_in_the_text_of_its_parent():
    config = config_of(
        {"en": {"source": "en"}, "x": {"source": "fr"}, "x2": {"clone_of": "x"}},
        sources=("en", "fr"),
    )
    assert [languages.source_of(config, tag) for tag in ("en", "x", "x2")] == ["en", "fr", "fr"]


def test_a_language_that_a_model_lacks_is_refused_with_those_it_has():
    made = languages.vocabulary(clones(2), {"en": pieces()})
    assert made.index("en2") == 1
    with pytest.raises(ValueError, match=r"'fr'.*en1, en2"):
        made.index("fr")
