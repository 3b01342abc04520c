"""Behaviours of languages.py, held against the formulas and facts of the reference study."""

import dataclasses
import fractions
import io
import itertools
import os
import pathlib
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imbalance_jax import config as config_lib
from imbalance_jax.config import LanguageConfig, TokenizerConfig, VocabularyConfig
from imbalance_jax.data import languages, prepare
from imbalance_jax.data.languages import Pieces
from imbalance_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer

REFERENCE = 16384

# The first articles of the Universal Declaration of Human Rights.
TEXTS = {
    "en": """All human beings are born free and equal in dignity and rights. They are endowed with
reason and conscience and should act towards one another in a spirit of brotherhood.
Everyone is entitled to all the rights and freedoms set forth in this Declaration, without
distinction of any kind, such as race, colour, sex, language, religion, political or other opinion,
national or social origin, property, birth or other status.
Everyone has the right to life, liberty and security of person.
No one shall be held in slavery or servitude; slavery and the slave trade shall be prohibited.
No one shall be subjected to torture or to cruel, inhuman or degrading treatment or punishment.
Everyone has the right to recognition everywhere as a person before the law.""",
    "fr": """Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués
de raison et de conscience et doivent agir les uns envers les autres dans un esprit de fraternité.
Chacun peut se prévaloir de tous les droits et de toutes les libertés proclamés dans la présente
Déclaration, sans distinction aucune, notamment de race, de couleur, de sexe, de langue, de
religion, d'opinion politique ou de toute autre opinion, d'origine nationale ou sociale, de fortune.
Tout individu a droit à la vie, à la liberté et à la sûreté de sa personne.
Nul ne sera tenu en esclavage ni en servitude; l'esclavage et la traite des esclaves sont interdits.
Nul ne sera soumis à la torture, ni à des peines ou traitements cruels, inhumains ou dégradants.
Chacun a le droit à la reconnaissance en tous lieux de sa personnalité juridique.""",
    "es": """Todos los seres humanos nacen libres e iguales en dignidad y derechos y, dotados como
están de razón y conciencia, deben comportarse fraternalmente los unos con los otros.
Toda persona tiene todos los derechos y libertades proclamados en esta Declaración, sin distinción
alguna de raza, color, sexo, idioma, religión, opinión política o de cualquier otra índole, origen
nacional o social, posición económica, nacimiento o cualquier otra condición.
Todo individuo tiene derecho a la vida, a la libertad y a la seguridad de su persona.
Nadie estará sometido a esclavitud ni a servidumbre; la trata de esclavos está prohibida.
Nadie será sometido a torturas ni a penas o tratos crueles, inhumanos o degradantes.
Todo ser humano tiene derecho al reconocimiento de su personalidad jurídica.""",
}
SIZES = {"en": 400, "fr": 420, "es": 390}


def pieces(size=40, pad_id=0, counts=None):
    """A tokenizer of our usual layout: padding, unknown, separator, then text."""
    bytes_U = np.arange(size, dtype=np.int32) % 7 + 1
    bytes_U[:3] = 0
    strings = ("<pad>", "<unk>", "<D>", *(f"piece{n}" for n in range(3, size)))
    counts_U = None if counts is None else np.array(counts, np.int64)
    return Pieces(size, pad_id, (1, 2), bytes_U, strings, counts_U)


def opened(model):
    return SentencePieceTokenizer(model)


@pytest.fixture(scope="module")
def tokenizers():
    """A tokenizer of its own for each of three real languages, and one of all, `joint`."""

    def trained(size, paragraphs):
        return opened(prepare.train_tokenizer("", TokenizerConfig(vocab_size=size), paragraphs))

    lines = {name: text.split("\n") for name, text in TEXTS.items()}
    own = {name: trained(SIZES[name], lines[name]) for name in TEXTS}
    return own | {"joint": trained(600, sum(lines.values(), []))}


def real_pieces(tokenizers, joint=False):
    """Returns the pieces of each source, with how often they occur in its text."""
    found = {}
    for name, text in TEXTS.items():
        tokenizer = tokenizers["joint" if joint else name]
        # A separator is the most frequent id where documents are short.
        ids = [i for line in text.split("\n") for i in [*tokenizer.encode(line), 2, 2]]
        counts_U = np.bincount(ids, minlength=tokenizer.size)
        found[name] = tokenizer.pieces(counts_U)
    return found


def config_of(tags, *, sources=("en",), **vocabulary):
    """Returns a config of languages: tag -> the fields of its LanguageConfig."""
    config = config_lib.default()
    for name in sources:
        config.sources[name] = config_lib.declared(config_lib.SourceConfig)
    for tag, fields in tags.items():
        config.languages[tag] = config_lib.declared(LanguageConfig, **fields)
        config.mixture.ratio[tag] = 1
    config.vocabulary.update(vocabulary)
    return config_lib.resolve_config(config)


def clones(n, *, anchors=0.0, **vocabulary):
    tags = {"en1": {"source": "en"}}
    tags |= {f"en{i}": {"clone_of": "en1", "anchors": anchors} for i in range(2, n + 1)}
    return config_of(tags, **vocabulary)


def cloned(share_of_anchors, anchor_specials="reference", size=REFERENCE):
    return cloned_of(pieces(size), share_of_anchors, anchor_specials)


def cloned_of(source, anchors, anchor_specials="never", choice="reference", measure="ids"):
    language = LanguageConfig(
        clone_of="en1", anchors=anchors, anchor_choice=choice, anchor_measure=measure
    )
    vocabulary = VocabularyConfig(anchor_specials=anchor_specials)
    return languages.select_cloned_ids(source, language, vocabulary)


# Clones


@pytest.mark.parametrize("n, size", [(1, 16384), (2, 32768), (10, 163840)])
def test_every_clone_widens_the_vocabulary_by_its_whole_source(n, size):
    made = languages.build_vocabulary(clones(n), {"en": pieces(REFERENCE)})
    assert made.size == size and made.own_GV.shape == (n, size)


@pytest.mark.parametrize("anchors", [0.0, 0.1, 0.5])
def test_the_size_of_the_vocabulary_does_not_depend_on_anchors(anchors):
    assert languages.build_vocabulary(clones(2, anchors=anchors), {"en": pieces()}).size == 80


def test_a_full_clone_shifts_every_id_but_padding():
    made = languages.build_vocabulary(clones(10), {"en": pieces()})
    for clone in range(10):
        expected = [t + clone * 40 if t > 0 else 0 for t in range(40)]
        assert made.map_GU[clone].tolist() == expected


def test_only_padding_is_shared_between_full_clones():
    made = languages.build_vocabulary(clones(3), {"en": pieces()})
    assert np.nonzero(made.own_GV.sum(axis=0) > 1)[0].tolist() == [0]
    # Slots 40 and 80 would be the clones' padding, and stay unused.
    assert np.nonzero(made.own_GV.sum(axis=0) == 0)[0].tolist() == [40, 80]


def test_without_a_padding_piece_nothing_is_shared():
    made = languages.build_vocabulary(clones(2), {"en": pieces(pad_id=-1)})
    assert (made.own_GV.sum(axis=0) == 1).all()


@pytest.mark.parametrize("anchors", [0.0, 0.25, 0.9, 1.0])
@pytest.mark.parametrize("anchor_specials", ["reference", "never", "always"])
def test_a_clone_map_is_a_bijection_off_the_anchors_and_decodes_to_the_same_text(
    anchors, anchor_specials
):
    config = clones(3, anchors=anchors, anchor_specials=anchor_specials)
    made = languages.build_vocabulary(config, {"en": pieces()})
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
    made = languages.build_vocabulary(clones(2), {"en": pieces()})
    assert made.base_ids(0, np.array([0, 5, 45, 79])).tolist() == [0, 5, -1, -1]
    assert made.base_ids(1, np.array([0, 5, 45, 79, 40])).tolist() == [0, -1, 5, 39, -1]


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


@pytest.mark.parametrize("tenths", range(1, 10))
def test_a_tenth_of_the_ids_is_a_tenth_of_them(tenths):
    for size in (10, 20, 1000):
        assert np.count_nonzero(~cloned(tenths / 10, size=size)) == tenths * size // 10


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


CHOICES = ("reference", "frequent", "rare")


def slow_anchors(counts, anchors, anchor_specials, choice, measure):
    """The anchors of a tokenizer as `pieces` makes it, by lists, loops and exact numbers."""
    share, size = fractions.Fraction(str(anchors)), len(counts)
    text = [0 if t in (1, 2) else count for t, count in enumerate(counts)]
    shuffled = list(range(size))
    random.Random(0).shuffle(shuffled)
    by_count = sorted(range(size), key=lambda t: text[t])
    order = {
        "reference": shuffled[::-1],
        "frequent": sorted(range(size), key=lambda t: -text[t]),
        "rare": [t for t in by_count if text[t]] + [t for t in by_count if not text[t]],
    }[choice]
    if share == 0:
        return set()
    if share == 1:
        number = size
    elif measure == "ids":
        number = size - int((1 - share) * size)
    else:
        wanted = share * sum(text)
        masses = [sum(text[t] for t in order[:n]) for n in range(size + 1)]
        number = min(range(size + 1), key=lambda n: abs(masses[n] - wanted))
    found = set(order[:number])
    if anchor_specials == "never":
        found -= {1, 2}
    elif anchor_specials == "always":
        found |= {1, 2}
    return found


@settings(max_examples=150, deadline=None)
@given(
    counts=st.lists(st.integers(0, 9) | st.integers(0, 10**6), min_size=4, max_size=40),
    anchors=st.sampled_from([0.0, 0.001, 0.05, 0.1, 1 / 3, 0.5, 0.7, 0.9, 0.999, 1.0]),
    anchor_specials=st.sampled_from(["reference", "never", "always"]),
    choice=st.sampled_from(CHOICES),
    measure=st.sampled_from(["ids", "tokens"]),
)
def test_anchors_are_those_of_a_plain_implementation(
    counts, anchors, anchor_specials, choice, measure
):
    made = cloned_of(pieces(len(counts), counts=counts), anchors, anchor_specials, choice, measure)
    expected = slow_anchors(counts, anchors, anchor_specials, choice, measure)
    assert set(np.nonzero(~made)[0].tolist()) == expected


@pytest.mark.parametrize("measure", ["ids", "tokens"])
@pytest.mark.parametrize("choice", CHOICES)
def test_no_anchors_are_none_and_all_are_all_however_they_are_chosen(tokenizers, choice, measure):
    source = real_pieces(tokenizers)["fr"]
    for anchor_specials in ("reference", "never", "always"):
        assert cloned_of(source, 0.0, anchor_specials, choice, measure).all()
        left = np.nonzero(cloned_of(source, 1.0, anchor_specials, choice, measure))[0]
        assert left.tolist() == ([1, 2] if anchor_specials == "never" else [])


@pytest.mark.parametrize("anchor_specials", ["reference", "never", "always"])
@pytest.mark.parametrize("measure", ["ids", "tokens"])
@pytest.mark.parametrize("choice", CHOICES)
def test_a_larger_share_has_all_anchors_of_a_smaller_one(
    tokenizers, choice, measure, anchor_specials
):
    source = real_pieces(tokenizers)["en"]
    shares = [n / 40 for n in range(41)]
    sets = [~cloned_of(source, share, anchor_specials, choice, measure) for share in shares]
    assert not any((fewer & ~more).any() for fewer, more in itertools.pairwise(sets))
    assert len({mask.sum() for mask in sets}) > 20


@pytest.mark.parametrize("share", [0.02, 0.05, 0.2, 0.5, 0.8, 0.95])
def test_frequent_and_rare_anchors_hold_the_same_share_of_the_text(tokenizers, share):
    source = real_pieces(tokenizers)["en"]
    counts = np.where(np.isin(np.arange(source.size), source.special_ids), 0, source.counts_U)
    sizes = {}
    for choice in CHOICES:
        chosen = ~cloned_of(source, share, "never", choice, "tokens")
        # Nearer to the share than half of what one more or one less of them would change.
        near = max(counts[chosen].max(), counts[~chosen].max()) / 2
        assert abs(counts[chosen].sum() - share * counts.sum()) <= near
        sizes[choice] = chosen.sum()
    assert sizes["frequent"] < sizes["rare"]
    # Frequent ones are those above all others, rare ones those below, but not without text.
    frequent = ~cloned_of(source, share, "never", "frequent", "tokens")
    rare = ~cloned_of(source, share, "never", "rare", "tokens")
    assert counts[frequent].min() >= counts[~frequent].max()
    assert counts[rare].min() > 0 and (~rare & (counts > 0)).sum() > 0
    assert counts[rare].max() <= counts[~rare & (counts > 0)].min()


def test_the_reference_s_share_of_ids_does_not_look_at_the_text(tokenizers):
    source = real_pieces(tokenizers)["en"]
    blind = dataclasses.replace(source, counts_U=None)
    for share in (0.05, 0.5, 0.9):
        assert np.array_equal(cloned_of(source, share), cloned_of(blind, share))


def test_counting_anchors_does_not_change_the_counts(tokenizers):
    source = real_pieces(tokenizers)["en"]
    before = source.counts_U.copy()
    cloned_of(source, 0.3, "never", "frequent", "tokens")
    languages.compute_token_share(source, np.ones(source.size, bool))
    assert np.array_equal(source.counts_U, before) and before[2] > 0


def test_the_share_of_tokens_is_that_of_the_text_without_specials(tokenizers):
    source = real_pieces(tokenizers)["en"]
    text = [i for line in TEXTS["en"].split("\n") for i in tokenizers["en"].encode(line)]
    chosen = np.arange(source.size) % 3 == 0
    share = languages.compute_token_share(source, chosen)
    assert share == sum(i % 3 == 0 for i in text) / len(text)
    everything = np.ones(source.size, bool)
    assert languages.compute_token_share(source, everything) == 1
    assert languages.compute_token_share(source, ~everything) == 0
    assert languages.compute_token_share(pieces(counts=[0] * 40), np.ones(40, bool)) == 0


# Languages together


def test_languages_are_laid_out_in_natural_order_whatever_order_the_config_has():
    names = ["en10", "en2", "en1", "en9"]
    fields = {tag: {"clone_of": "en1"} for tag in names} | {"en1": {"source": "en"}}
    for order in (names, sorted(names), names[::-1]):
        made = languages.build_vocabulary(
            config_of({t: fields[t] for t in order}), {"en": pieces()}
        )
        assert made.tags == ("en1", "en2", "en9", "en10")
        assert made.map_GU[:, 5].tolist() == [5, 45, 85, 125]


def test_tags_whose_numbers_are_equal_still_have_one_order():
    fields = {"en2": {"source": "en"}, "en02": {"clone_of": "en2"}}
    forward = config_of(fields).tags
    assert config_of(dict(reversed(fields.items()))).tags == forward


def test_sources_of_different_sizes_each_have_a_slot_of_their_own_size():
    tags = {"en": {"source": "en"}, "fr": {"source": "fr"}, "fr2": {"clone_of": "fr"}}
    config = config_of(tags, sources=("en", "fr"))
    made = languages.build_vocabulary(config, {"en": pieces(40), "fr": pieces(29)})
    assert made.size == 40 + 29 + 29 and made.map_GU.shape == (3, 40)
    assert made.map_GU[0].tolist() == list(range(40))
    assert made.map_GU[1].tolist() == [0, *range(41, 69)] + [-1] * 11
    assert made.map_GU[2].tolist() == [0, *range(70, 98)] + [-1] * 11
    assert made.own_GV.sum(axis=1).tolist() == [40, 29, 29]
    for g, size in enumerate((40, 29, 29)):
        assert made.base_ids(g, made.map_GU[g, :size]).tolist() == list(range(size))


def test_a_clone_keeps_the_anchors_of_its_own_parent():
    tags = {
        "en": {"source": "en"},
        "fr": {"source": "fr"},
        "fr2": {"clone_of": "fr", "anchors": 1.0},
    }
    config = config_of(tags, sources=("en", "fr"), anchor_specials="reference")
    made = languages.build_vocabulary(config, {"en": pieces(40), "fr": pieces(29)})
    assert made.map_GU[2].tolist() == made.map_GU[1].tolist()


def test_a_clone_is_written_in_the_text_of_its_parent():
    config = config_of(
        {"en": {"source": "en"}, "x": {"source": "fr"}, "x2": {"clone_of": "x"}},
        sources=("en", "fr"),
    )
    assert [config.source_of(tag) for tag in ("en", "x", "x2")] == [
        "en",
        "fr",
        "fr",
    ]


def test_a_language_that_a_model_lacks_is_refused_with_those_it_has():
    made = languages.build_vocabulary(clones(2), {"en": pieces()})
    assert made.index("en2") == 1
    with pytest.raises(ValueError, match=r"'fr'.*en1, en2"):
        made.index("fr")


# Merged and joint vocabularies, of real tokenizers


def originals(names, **vocabulary):
    return config_of({n: {"source": n} for n in names}, sources=names, **vocabulary)


@pytest.mark.parametrize("names", [("en", "fr"), ("en", "es", "fr")])
def test_a_merged_vocabulary_is_the_union_of_the_pieces(tokenizers, names):
    source = real_pieces(tokenizers)
    made = languages.build_vocabulary(originals(names, layout="merged"), source)
    union = set()
    for row, name in enumerate(names):
        ids = made.map_GU[row, : SIZES[name]].tolist()
        strings = [tokenizers[name].strings[t] for t in range(SIZES[name])]
        old = [t for t in range(SIZES[name]) if strings[t] in union]
        new = [t for t in range(SIZES[name]) if strings[t] not in union]
        # Its own pieces follow those there are, in their order.
        assert [ids[t] for t in new] == list(range(len(union), len(union) + len(new)))
        assert all(ids[t] < len(union) for t in old)
        union |= set(strings)
    assert made.size == len(union) == made.own_GV.shape[1]
    assert made.map_GU[0, : SIZES["en"]].tolist() == list(range(SIZES["en"]))
    for a, b in itertools.combinations(range(len(names)), 2):
        pieces_a, pieces_b = set(source[names[a]].strings), set(source[names[b]].strings)
        common = pieces_a & pieces_b
        assert 259 < len(common) < min(len(pieces_a), len(pieces_b))
        assert np.count_nonzero(made.own_GV[a] & made.own_GV[b]) == len(common)
        # A shared id is a shared string, and a shared string a shared id.
        for string in common:
            t_a = tokenizers[names[a]].processor.piece_to_id(string)
            t_b = tokenizers[names[b]].processor.piece_to_id(string)
            assert made.map_GU[a, t_a] == made.map_GU[b, t_b]


def test_the_reference_s_two_tokenizers_share_3728_of_29040_pieces():
    folder = os.environ.get("IMBALANCE_JAX_REFERENCE_TOKENIZERS")
    if not folder:
        pytest.skip(
            "the study's tokenizers are not here: set IMBALANCE_JAX_REFERENCE_TOKENIZERS to a "
            "folder that holds its books_16384.model and french_books_16384.model"
        )
    files = {"en": "books_16384.model", "fr": "french_books_16384.model"}
    tokenizers = {
        name: opened((pathlib.Path(folder) / file).read_bytes()) for name, file in files.items()
    }
    source = {name: tokenizer.pieces() for name, tokenizer in tokenizers.items()}
    merged = languages.build_vocabulary(originals(("en", "fr"), layout="merged"), source)
    assert merged.size == 29040
    shared = merged.own_GV.all(axis=0)
    assert shared.sum() == 3728 and shared[:259].all()
    assert merged.map_GU[0].tolist() == list(range(REFERENCE))
    new = merged.map_GU[1][merged.map_GU[1] >= REFERENCE]
    assert new.tolist() == list(range(REFERENCE, 29040))
    disjoint = languages.build_vocabulary(originals(("en", "fr")), source)
    assert disjoint.size == 32768
    assert disjoint.map_GU[1].tolist() == [0, *range(REFERENCE + 1, 32768)]
    for name, text in TEXTS.items():
        if name in tokenizers:
            assert_decodes(merged, merged.index(name), tokenizers[name], text)


def assert_decodes(made, row, tokenizer, text):
    """Every id of a language, and a text of it, comes back through the language."""
    size = tokenizer.size
    ids = made.map_GU[row, :size]
    assert made.base_ids(row, ids).tolist() == list(range(size))
    assert set(np.nonzero(made.own_GV[row])[0].tolist()) == set(ids.tolist())
    for t, back in enumerate(made.base_ids(row, ids).tolist()):
        assert tokenizer.decode([back]) == tokenizer.decode([t])
    encoded = made.map_GU[row, tokenizer.encode(text)]
    assert made.own_GV[row, encoded].all() and (encoded < made.size).all()
    assert tokenizer.decode(made.base_ids(row, encoded).tolist()) == text


FAMILY = {
    "en": {"source": "en"},
    "es": {"source": "es"},
    "fr": {"source": "fr"},
    "en2": {"clone_of": "en"},
    "en3": {"clone_of": "en", "anchors": 0.3, "anchor_choice": "frequent"},
    "fr2": {"clone_of": "fr", "anchors": 0.1, "anchor_measure": "tokens"},
    # Sorted before its parent.
    "a": {"clone_of": "es", "anchors": 0.5},
}


def family(tokenizers, **vocabulary):
    config = config_of(FAMILY, sources=tuple(TEXTS), **vocabulary)
    source = real_pieces(tokenizers, joint=vocabulary["layout"] == "joint")
    return config, source, languages.build_vocabulary(config, source)


@pytest.mark.parametrize("separator", ["layout", "own", "shared"])
@pytest.mark.parametrize("layout", ["disjoint", "merged", "joint"])
def test_every_id_of_every_language_decodes_to_the_same_text(tokenizers, layout, separator):
    config, _, made = family(tokenizers, layout=layout, separator=separator)
    assert made.tags == ("a", "en", "en2", "en3", "es", "fr", "fr2")
    for row, tag in enumerate(made.tags):
        name = config.source_of(tag)
        tokenizer = tokenizers["joint" if layout == "joint" else name]
        assert_decodes(made, row, tokenizer, TEXTS[name])


def test_a_piece_of_text_that_spells_a_special_of_another_tokenizer_is_not_that():
    def with_strings(separator, *strings):
        made = pieces(3 + len(strings))
        return dataclasses.replace(made, strings=("<pad>", "<unk>", separator, *strings))

    source = {"en": with_strings("</s>", "a", "b"), "fr": with_strings("<D>", "b", "</s>")}
    made = languages.build_vocabulary(originals(("en", "fr"), layout="merged"), source)
    assert made.map_GU.tolist() == [[0, 1, 2, 3, 4], [0, 1, 5, 4, 6]]


@pytest.mark.parametrize("layout", ["disjoint", "merged", "joint"])
def test_padding_is_one_id_in_every_layout(tokenizers, layout):
    _, _, made = family(tokenizers, layout=layout)
    assert made.map_GU[:, 0].tolist() == [0] * 7


@pytest.mark.parametrize("layout", ["merged", "joint"])
def test_clones_follow_the_languages_with_a_source_of_their_own(tokenizers, layout):
    config, source, made = family(tokenizers, layout=layout)
    union = len(set().union(*(set(p.strings) for p in source.values())))
    clones_ = [tag for tag in made.tags if config.languages[tag].clone_of]
    slot = union
    for tag in clones_:
        parent, own = config.languages[tag].clone_of, source[config.source_of(tag)]
        ids = made.map_GU[made.index(tag), : own.size]
        kept = ~languages.select_cloned_ids(own, config.languages[tag], config.vocabulary)
        kept[0] = True
        parents = made.map_GU[made.index(parent), : own.size]
        assert (parents < union).all()
        assert ids.tolist() == np.where(kept, parents, slot + np.arange(own.size)).tolist()
        slot += own.size
    assert made.size == slot


def test_with_a_joint_tokenizer_all_languages_are_equal_but_for_clones(tokenizers):
    config, source, made = family(tokenizers, layout="joint")
    for tag in ("en", "es", "fr"):
        assert made.map_GU[made.index(tag)].tolist() == list(range(600))
    shifted = made.map_GU[made.index("en2"), 1:] - np.arange(1, 600)
    assert len(set(shifted.tolist())) == 1 and shifted[0] >= 600
    assert made.size == 600 * 5


@pytest.mark.parametrize("layout", ["merged", "joint"])
def test_without_clones_no_id_is_left_unused(tokenizers, layout):
    source = real_pieces(tokenizers, joint=layout == "joint")
    made = languages.build_vocabulary(originals(("en", "es", "fr"), layout=layout), source)
    assert made.own_GV.any(axis=0).all()
    assert made.size < 400 + 420 + 390


def test_the_order_of_a_config_does_not_change_a_merged_vocabulary(tokenizers):
    source = real_pieces(tokenizers)
    made = []
    for order in (list(FAMILY), list(FAMILY)[::-1]):
        fields = {tag: FAMILY[tag] for tag in order}
        config = config_of(fields, sources=("fr", "en", "es"), layout="merged")
        made.append(languages.build_vocabulary(config, source))
    assert np.array_equal(made[0].map_GU, made[1].map_GU)


@pytest.mark.parametrize("layout", ["disjoint", "merged"])
@pytest.mark.parametrize("first", ["ours", "theirs"])
@pytest.mark.parametrize("pad", [3, 29])
def test_padding_is_shared_wherever_a_tokenizer_has_it(layout, first, pad):
    strings = ["<unk>", "<s>", "</s>", *(f"piece{n}" for n in range(3, 30))]
    strings[pad] = "[PAD]"
    theirs = dataclasses.replace(pieces(30, pad_id=pad), special_ids=(0, 2), strings=tuple(strings))
    both = {"a": pieces(40), "b": theirs} if first == "ours" else {"a": theirs, "b": pieces(40)}
    made = languages.build_vocabulary(originals(("a", "b"), layout=layout), both)
    row = list(both.values()).index(theirs)
    shared = made.map_GU[row, pad]
    assert shared == made.map_GU[1 - row, 0]
    assert shared == (pad if first == "theirs" else 0)  # the first of the two ids
    for row, source in enumerate(both.values()):
        ids = made.map_GU[row, : source.size]
        assert made.base_ids(row, ids).tolist() == list(range(source.size))
    common = {"<unk>", *(f"piece{n}" for n in range(3, 30))} - {f"piece{pad}"}
    assert made.own_GV.all(axis=0).sum() == 1 + (len(common) if layout == "merged" else 0)


def test_a_clone_shares_a_padding_that_is_not_the_first_id():
    made = languages.build_vocabulary(clones(2), {"en": pieces(pad_id=3)})
    assert np.nonzero(made.own_GV.all(axis=0))[0].tolist() == [3]
    assert made.map_GU[1, :5].tolist() == [40, 41, 42, 3, 44]


@pytest.mark.parametrize("layout", ["disjoint", "merged"])
@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_a_tokenizer_without_padding_keeps_its_first_id_to_itself(layout, first):
    theirs = dataclasses.replace(
        pieces(30, pad_id=-1),
        special_ids=(0, 2),
        strings=("<unk>", "<s>", "</s>", *(f"piece{n}" for n in range(3, 30))),
    )
    both = {"a": pieces(40), "b": theirs} if first == "ours" else {"a": theirs, "b": pieces(40)}
    made = languages.build_vocabulary(originals(("a", "b"), layout=layout), both)
    for row, source in enumerate(both.values()):
        ids = made.map_GU[row, : source.size]
        assert made.base_ids(row, ids).tolist() == list(range(source.size))
    common = {"<unk>", *(f"piece{n}" for n in range(3, 30))}
    assert made.own_GV.all(axis=0).sum() == (len(common) if layout == "merged" else 0)


# Separators of documents


def separators(made, source, config):
    rows = enumerate(made.tags)
    return [int(made.map_GU[row, source[config.source_of(tag)].separator]) for row, tag in rows]


@pytest.mark.parametrize("specials", ["never", "always"])
@pytest.mark.parametrize("layout", ["disjoint", "merged", "joint"])
@pytest.mark.parametrize("separator", ["own", "shared"])
def test_a_separator_is_own_or_shared_in_every_layout_and_no_other_id_moves(
    tokenizers, layout, separator, specials
):
    changed = {"layout": layout, "anchor_specials": specials}
    config, source, plain = family(tokenizers, **changed)
    _, _, made = family(tokenizers, separator=separator, **changed)
    before, after = separators(plain, source, config), separators(made, source, config)
    if separator == "own":
        assert len(set(after)) == len(after)
        # The first to have an id keeps it; only those after it need another.
        assert made.size == plain.size + len(before) - len(set(before))
        new = [id_ for id_ in after if id_ not in before]
        assert sorted(new) == list(range(plain.size, made.size))
    else:
        assert len(set(after)) == 1 and after[0] in before
        assert made.size == plain.size
    assert np.count_nonzero(made.map_GU != plain.map_GU) == sum(map(int.__ne__, before, after))
    for row in range(len(made.tags)):
        owned = made.map_GU[row][made.map_GU[row] >= 0]
        assert np.nonzero(made.own_GV[row])[0].tolist() == sorted(owned.tolist())
        assert len(set(owned.tolist())) == len(owned)
    assert made.own_GV[:, after].sum() == (len(after) if separator == "own" else len(after) ** 2)


@pytest.mark.parametrize(
    "layout, anchor_specials, groups",
    [
        # Every language has a slot of its own, and so a separator.
        ("disjoint", "never", ["a", "en", "en2", "en3", "es", "fr", "fr2"]),
        # <D> is one piece in all sources; clones shift it.
        ("merged", "never", ["a", "en es fr", "en2", "en3", "fr2"]),
        ("joint", "never", ["a", "en es fr", "en2", "en3", "fr2"]),
        # A full clone has no anchors at all.
        ("merged", "always", ["a en en3 es fr fr2", "en2"]),
        ("disjoint", "always", ["a es", "en en3", "en2", "fr fr2"]),
    ],
)
def test_a_layout_by_itself_shares_the_separators_that_its_pieces_share(
    tokenizers, layout, anchor_specials, groups
):
    config, source, made = family(tokenizers, layout=layout, anchor_specials=anchor_specials)
    found = {}
    for tag, id_ in zip(made.tags, separators(made, source, config), strict=True):
        found.setdefault(id_, []).append(tag)
    assert [" ".join(tags) for tags in found.values()] == groups


def test_two_full_clones_share_a_separator_or_have_their_own():
    source = {"en": pieces()}
    own = languages.build_vocabulary(clones(3, separator="own"), source)
    assert own.map_GU[:, 2].tolist() == [2, 42, 82] and own.size == 120
    shared = languages.build_vocabulary(clones(3, separator="shared"), source)
    assert shared.map_GU[:, 2].tolist() == [2, 2, 2] and shared.size == 120
    assert shared.own_GV[:, [42, 82]].sum() == 0
    # Their other ids are still their own.
    assert np.nonzero(shared.own_GV.sum(axis=0) > 1)[0].tolist() == [0, 2]


def test_the_separator_of_a_tokenizer_is_where_its_pieces_say():
    ends = dataclasses.replace(pieces(30), special_ids=(0, 7), pad_id=-1)
    source = {"en": pieces(40), "fr": ends}
    made = languages.build_vocabulary(originals(("en", "fr"), separator="shared"), source)
    assert made.map_GU[0, 2] == made.map_GU[1, 7] == 2
    assert made.map_GU[1, 2] == 42


# Kept with a run


def test_a_vocabulary_is_read_back_as_it_was_written(tokenizers):
    _, _, made = family(tokenizers, layout="merged", separator="own")
    content = made.to_bytes()
    back = languages.Vocabulary.from_bytes(made.tags, content)
    assert (back.tags, back.size) == (made.tags, made.size)
    for name in ("map_GU", "own_GV"):
        ours, theirs = getattr(made, name), getattr(back, name)
        assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs)
    assert isinstance(content, bytes) and len(content) < 50_000
    assert back.to_bytes() == content


def test_a_vocabulary_that_was_written_with_the_bytes_of_pieces_is_still_read():
    made = languages.build_vocabulary(clones(2), {"en": pieces()})
    tables = {"map_GU": made.map_GU, "own_GV": made.own_GV, "bytes_GU": made.map_GU}
    file = io.BytesIO()
    np.savez_compressed(file, **tables)
    back = languages.Vocabulary.from_bytes(made.tags, file.getvalue())
    assert back.size == made.size and np.array_equal(back.map_GU, made.map_GU)


def test_a_clone_with_copied_rows_begins_with_its_parents_and_no_other_id_moves():
    config = config_lib.cloned(scale="demo", ratio="1:1:1")
    config.languages.en3.rows = "copied"
    resolved = config_lib.resolve_config(config)
    pieces = {"en": Pieces(size=300, pad_id=0, special_ids=(1, 2), bytes_U=np.ones(300, int))}
    vocabulary = languages.build_vocabulary(resolved, pieces)
    row_V = languages.find_initial_rows(resolved, vocabulary)
    en1_U, en2_U, en3_U = vocabulary.map_GU
    assert np.array_equal(row_V[en3_U], en1_U)
    assert np.array_equal(row_V[en1_U], en1_U) and np.array_equal(row_V[en2_U], en2_U)


def test_only_a_clone_can_begin_with_rows_of_a_parent():
    config = config_lib.cloned(scale="demo", ratio="1:1")
    config.languages.en1.rows = "copied"
    with pytest.raises(
        ValueError, match=r"config\.languages\.en1\.rows='copied' applies to clones"
    ):
        config_lib.resolve_config(config)
