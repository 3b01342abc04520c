"""Behaviours of data/text/reading.py: what all kinds of sources have in common."""

import gzip
import json

import pytest

from imbalance_jax.config import SourceConfig
from imbalance_jax.data.text import reading as text
from imbalance_jax.data.text.documents import SPLITS, Document


def files(train, **fields):
    return SourceConfig(kind="files", train=str(train), **fields)


def write_lines(path, rows):
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def read(source, name="en"):
    return list(text.read_documents(name, source))


def splits_by_id(source):
    return {document.id: split for split, document in read(source)}


# Splits


def test_files_of_a_split_are_in_that_split(tmp_path):
    for split in SPLITS:
        rows = [{"id": f"{split}{i}", "text": "Text."} for i in range(500)]
        write_lines(tmp_path / f"{split}.jsonl", rows)
    paths = {split: f"{tmp_path}/{split}.jsonl" for split in SPLITS}
    found = splits_by_id(SourceConfig(kind="files", **paths))
    assert len(found) == 1500
    assert all(document_id.startswith(split) for document_id, split in found.items())


def test_a_carved_split_gets_a_hundredth_of_the_documents(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"id": i, "text": "Text."} for i in range(20_000)])
    splits = list(splits_by_id(files(path)).values())
    counts = {split: splits.count(split) for split in SPLITS}
    # 200 expected, with a standard deviation of 14.
    assert 140 < counts["validation"] < 260 and 140 < counts["test"] < 260
    assert sum(counts.values()) == 20_000


def test_documents_of_equal_id_share_a_split_whatever_their_source(tmp_path):
    ids = [f"page/{i}" for i in range(5000)]
    english = write_lines(tmp_path / "en.jsonl", [{"id": i, "text": "Text."} for i in ids])
    rows = [{"id": i, "text": "Autre texte."} for i in reversed(ids[::2])]
    french = write_lines(tmp_path / "fr.jsonl.gz", rows)
    in_english, in_french = splits_by_id(files(english)), splits_by_id(files(french))
    assert {in_english[i] == in_french[i] for i in in_french} == {True}
    assert set(in_french.values()) == set(SPLITS)


def test_which_documents_are_validation_does_not_depend_on_where_test_comes_from(tmp_path):
    rows = [{"id": i, "text": "Text."} for i in range(5000)]
    path = write_lines(tmp_path / "a.jsonl", rows)
    other = write_lines(tmp_path / "b.jsonl", [{"id": "b", "text": "Text."}])
    both, one = splits_by_id(files(path)), splits_by_id(files(path, test=str(other)))
    assert {i for i in both if both[i] == "validation"} == {
        i for i in one if one[i] == "validation"
    }
    assert [i for i in one if one[i] == "test"] == ["b"]


# Markup

# As the articles of the dataset are written: markers on lines of their own, but between the
# paragraphs of a section.
ARTICLE = """
_START_ARTICLE_
Nils Holgersson
_START_PARAGRAPH_
Nils est un garçon._NEWLINE_Il vole sur le dos d'une oie.
_START_SECTION_
Le voyage
_START_PARAGRAPH_
De la Scanie à la Laponie. _NEWLINE_Et retour.
"""


def test_an_article_of_wiki40b_becomes_a_line_for_each_title_and_paragraph(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"id": 1, "text": ARTICLE}])
    [(_, document)] = read(files(path, markup="wiki40b"))
    assert document == Document(
        "1",
        "Nils Holgersson\n"
        "Nils est un garçon.\n"
        "Il vole sur le dos d'une oie.\n"
        "Le voyage\n"
        "De la Scanie à la Laponie.\n"
        "Et retour.",
    )


def test_markers_alone_are_no_text_and_leave_no_empty_lines(tmp_path):
    empty = "\n_START_ARTICLE_\n\n_START_PARAGRAPH_\n_NEWLINE_"
    doubled = "\n_START_ARTICLE_\nTitre\n_START_PARAGRAPH_\nUn._NEWLINE__NEWLINE_\nDeux.\n"
    path = write_lines(tmp_path / "a.jsonl", [{"text": empty}, {"text": doubled}])
    assert [d for _, d in read(files(path, markup="wiki40b"))] == [
        Document("a.jsonl:2", "Titre\nUn.\nDeux.")
    ]


def test_text_without_markup_to_take_out_is_left_as_it_is(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"text": ARTICLE}])
    [(_, document)] = read(files(path))
    assert document.text == ARTICLE


def test_the_markup_is_part_of_the_fingerprint(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"text": ARTICLE}])
    plain = text.compute_text_fingerprint("fr", files(path))
    assert plain == text.compute_text_fingerprint("fr", files(path, markup="none"))
    assert plain != text.compute_text_fingerprint("fr", files(path, markup="wiki40b"))


@pytest.mark.parametrize("documents", [3, 1500])
def test_markup_that_no_document_has_is_refused(tmp_path, documents):
    rows = [{"text": "Plain text."}] * documents
    path = write_lines(tmp_path / "a.jsonl", rows)
    stream, count = text.read_documents("fr", files(path, markup="wiki40b")), 0
    with pytest.raises(ValueError, match=r"config\.sources\.fr\.markup='wiki40b'.*markup=none"):
        for _ in stream:
            count += 1
    assert count < 1000
    write_lines(path, [*rows[:10], {"text": ARTICLE}])
    assert len(read(files(path, markup="wiki40b"))) == min(documents, 10) + 1


# Fingerprints


def test_the_fingerprint_of_a_text_stays_what_it_was(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "One."}\n')
    (tmp_path / "b.txt").write_text("Two.")
    source = files(tmp_path / "a.jsonl", test=str(tmp_path / "b.txt"))
    # Of the second version: another value would have every prepared source prepared again.
    assert text.compute_text_fingerprint("en", source) == (
        "1d417dff362b625b6476aa1e6c7b93a81a04b61e62090d3b91cb858f3a51e14e"
    )


# Kinds


def test_synthetic_text_is_not_asked_for_here():
    with pytest.raises(AssertionError, match="synthetic"):
        text.check_source_text("en", SourceConfig(kind="synthetic"))
