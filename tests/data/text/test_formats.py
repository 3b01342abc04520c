"""Corpora as their authors lay them out, in small, read as their users would expect.

Each corpus is written here in its own layout by the libraries that know the format: json, pyarrow,
gzip, lzma, bz2. What it should yield stands beside it.
"""

import bz2
import dataclasses
import gzip
import json
import lzma
import pathlib
import re
from collections.abc import Callable

import pyarrow
import pytest
from pyarrow import ipc, parquet

from imbalance_jax.config import SourceConfig, TokenizerConfig
from imbalance_jax.data import prepare
from imbalance_jax.data.text import columns, fields, formats, reading
from imbalance_jax.data.text.documents import SPLITS
from imbalance_jax.data.tokenizer import parse_tokenizer

# Line ends, text that is not ASCII, and characters that other programs take for line ends.
TEXTS = ("Un chat dort.\nIl rêve.", "Deux chiens\u2028courent\x85 vite. 犬", "Trois oiseaux.")
LINES = tuple(text.replace("\n", " ") for text in TEXTS)
SENTENCES = ("Un chat dort.", "Il rêve de 犬.", "Deux chiens.")
COMPRESS = {
    ".gz": gzip.compress,
    ".xz": lambda data: lzma.compress(data[:9]) + lzma.compress(data[9:]),  # as xz --block-size
    ".bz2": lambda data: bz2.compress(data[:9]) + bz2.compress(data[9:]),  # as pbzip2
    ".zst": lambda data: _compress_zstd(data),
}
IDS = ["a", "b", "c"]


def _compress_zstd(data):
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(COMPRESS.get(path.suffix, bytes)(text.encode()))


def write_lines(path, rows):
    write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_table(path, columns_):
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns_), path)


def write_rows(path, **columns_):
    write_lines(
        path,
        [dict(zip(columns_, row, strict=True)) for row in zip(*columns_.values(), strict=True)],
    )


@dataclasses.dataclass
class Corpus:
    """How a corpus is written into a folder, the fields that read it, and what is to be read."""

    write: Callable[[pathlib.Path], None]
    fields: dict[str, str]  # train is within the folder
    texts: tuple[str, ...] = TEXTS
    ids: list[str] | None = None  # None: made up


def write_oscar(folder):
    rows = [
        {
            "content": text,
            "warc_headers": {"warc-record-id": f"<urn:uuid:{id_}>", "content-length": "12"},
            "metadata": {
                "quality_warnings": None,
                "sentence_identifications": [{"label": "fr", "prob": 0.9}, None],
            },
        }
        for id_, text in zip(IDS, TEXTS, strict=True)
    ]
    write_lines(folder / "fr_meta" / "fr_meta_part_1.jsonl.zst", rows)


def write_fineweb(folder):
    for split, rows in {"train": slice(0, 2), "test": slice(2, 3)}.items():
        table = {
            "text": TEXTS[rows],
            "id": [f"<urn:uuid:{id_}>" for id_ in IDS[rows]],
            "language_score": [0.9] * len(IDS[rows]),
            "top_langs": ["{}"] * len(IDS[rows]),
        }
        write_table(folder / "data" / "fra_Latn" / split / "000_00000.parquet", table)


def write_madlad(folder):
    write_rows(folder / "data/fr/fr_clean_0000.jsonl.gz", text=TEXTS)
    write_rows(folder / "data/fr/fr_noisy_0000.jsonl.gz", text=["bruit"])


def write_hplt(folder):
    for number, text in enumerate(TEXTS, start=1):
        row = {"f": "w.warc", "o": 3, "lang": ["fra"], "text": text, "id": IDS[number - 1]}
        write_lines(folder / f"fra_Latn/{number}.jsonl.zst", [row | {"doc_scores": [8.1, 2]}])


def write_wikipedia(folder):
    articles = [
        f'<doc id="{id_}" url="https://x/?curid={id_}" title="Le &quot;{id_}&quot;">\n'
        f'Le "{id_}"\n\n{text}\n\n</doc>\n'
        for id_, text in zip([*IDS, "d"], [*TEXTS, ""], strict=True)
    ]
    write(folder / "text/AA/wiki_00", "".join(articles[:2]))
    write(folder / "text/AB/wiki_00.bz2", "".join(articles[2:]))


def write_leipzig(folder):
    for part, cells in {"sentences": LINES, "words": LINES[:1], "sources": LINES[:1]}.items():
        lines = (f"{number}\t{cell}\n" for number, cell in enumerate(cells, start=1))
        write(folder / f"fra_news_2020_10K/fra_news_2020_10K-{part}.txt", "".join(lines))


def write_treebank(folder):
    words = "1-2\tUn\t_\t_\t_\t_\t_\t_\t_\t_\n1\tUn\t_\t_\t_\t_\t0\t_\t_\t_\n3.1\tx" + "\t_" * 8
    sentences = [f"# sent_id = {n}\n# text = {s}\n{words}\n\n" for n, s in enumerate(SENTENCES)]
    named = f"# newdoc id = a\n{sentences[0]}{sentences[1]}# newdoc id = b\n{sentences[2]}"
    write(folder / "fr_x-ud-train.conllu", named)


def write_arrow(folder):
    table = pyarrow.table({"id": IDS, "text": pyarrow.array(TEXTS, pyarrow.large_string())})
    folder = folder / "train"
    folder.mkdir()
    (folder / "dataset_info.json").write_text("{}")
    with ipc.new_stream(folder / "data-00000-of-00002.arrow", table.schema) as stream:
        stream.write_table(table.slice(0, 2))
    with ipc.new_file(folder / "data-00001-of-00002.arrow", table.schema) as file:
        file.write_table(table.slice(2, 1))


def write_tmx(folder):
    units = "".join(
        f'<tu tuid="{n}"><tuv xml:lang="en"><seg>x</seg></tuv>'
        f'<tuv {attribute}="fr"><seg>{text}</seg></tuv></tu>\n'
        for n, (text, attribute) in enumerate(zip(LINES, ["xml:lang", "lang", "lang"], strict=True))
    )
    head = '<?xml version="1.0" encoding="UTF-8" ?>\n<tmx version="1.4"><header/>\n<body>'
    write(folder / "en-fr.tmx.gz", f"{head}{units}</body></tmx>")


def write_nested(folder):
    rows = [
        {"id": id_, "translation": {"en": "x", "fr": t}} for id_, t in zip(IDS, TEXTS, strict=True)
    ]
    write_lines(folder / "opus.jsonl", rows)


CORPORA = {
    "OSCAR 23.01": Corpus(
        write_oscar,
        {
            "train": "fr_meta/*.jsonl.zst",
            "field": "content",
            "id_field": "warc_headers.warc-record-id",
        },
        ids=[f"<urn:uuid:{id_}>" for id_ in IDS],
    ),
    "mC4": Corpus(
        lambda folder: write_rows(
            folder / "multilingual/c4-fr.tfrecord-00000-of-02048.json.gz", text=TEXTS, url=IDS
        ),
        {"train": "multilingual/c4-fr.*.json.gz", "id_field": "url"},
        ids=IDS,
    ),
    "CulturaX": Corpus(
        lambda folder: write_table(
            folder / "fr/fr_part_00000.parquet",
            {"text": TEXTS, "timestamp": IDS, "url": IDS, "source": IDS},
        ),
        {"train": "fr/*.parquet", "id_field": "url"},
        ids=IDS,
    ),
    "FineWeb2": Corpus(
        write_fineweb,
        {"train": "data/fra_Latn/train/*.parquet", "test": "data/fra_Latn/test/*.parquet"},
        ids=[f"<urn:uuid:{id_}>" for id_ in IDS],
    ),
    "CC-100": Corpus(
        lambda folder: write(folder / "fr.txt.xz", "\n\n".join(TEXTS) + "\n\n"),
        {"train": "fr.txt.xz", "documents": "blank_line"},
    ),
    "MADLAD-400": Corpus(write_madlad, {"train": "data/fr/fr_clean_*.jsonl.gz"}),
    "MADLAD-400 v1.5": Corpus(
        lambda folder: write_rows(
            folder / "data-v1p5/fra/clean_docs_v2-00003-of-00010.jsonl.gz", text=TEXTS
        ),
        {"train": "data-v1p5/fra/clean_docs_*.jsonl.gz"},
    ),
    "HPLT v2": Corpus(write_hplt, {"train": "fra_Latn/{1..3}.jsonl.zst"}, ids=IDS),
    "WikiExtractor": Corpus(
        write_wikipedia,
        {"train": "text/*/wiki_*", "format": "wiki_extractor"},
        ids=IDS,
    ),
    "WikiExtractor --json": Corpus(
        lambda folder: write_rows(folder / "text/AA/wiki_00", id=IDS, title=IDS, text=TEXTS),
        {"train": "text/*/wiki_*", "format": "jsonl"},
        ids=IDS,
    ),
    "Wikipedia of the hub": Corpus(
        lambda folder: write_table(
            folder / "20231101.fr/train-00000-of-00017.parquet",
            {"id": IDS, "url": IDS, "title": IDS, "text": TEXTS},
        ),
        {"train": "20231101.fr/train-*.parquet"},
        ids=IDS,
    ),
    "Leipzig": Corpus(
        write_leipzig,
        {"train": "*/*-sentences.txt", "format": "tsv", "field": "2", "id_field": "1"},
        LINES,
        ids=["1", "2", "3"],
    ),
    "a table with a header": Corpus(
        lambda folder: write(
            folder / "a.tsv",
            "".join(f"{a}\t{b}\n" for a, b in zip(["id", *IDS], ["body", *LINES], strict=True)),
        ),
        {"train": "a.tsv", "field": "body"},
        LINES,
        ids=IDS,
    ),
    "Europarl": Corpus(
        lambda folder: write(folder / "europarl-v7.fr-en.fr", "".join(f"{t}\n" for t in LINES)),
        {"train": "europarl-v7.fr-en.fr", "format": "text", "documents": "line"},
        LINES,
    ),
    "OPUS of the hub": Corpus(
        write_nested, {"train": "opus.jsonl", "field": "translation.fr"}, ids=IDS
    ),
    "OPUS TMX": Corpus(write_tmx, {"train": "en-fr.tmx.gz", "field": "fr"}, LINES),
    "FLORES-200": Corpus(
        lambda folder: write(folder / "dev/fra_Latn.dev", "\r\n".join(LINES)),
        {"train": "dev/fra_Latn.dev", "format": "text", "documents": "line"},
        LINES,
    ),
    "Universal Dependencies": Corpus(
        write_treebank,
        {"train": "*-ud-train.conllu"},
        ("\n".join(SENTENCES[:2]), SENTENCES[2]),
        ids=IDS[:2],
    ),
    "BabyLM": Corpus(
        lambda folder: write(folder / "train_10M/childes.train", "\n\n".join(LINES)),
        {"train": "train_10M/*.train", "format": "text", "documents": "line"},
        LINES,
    ),
    "datasets' save_to_disk": Corpus(write_arrow, {"train": "train/*.arrow"}, ids=IDS),
}


def locate(folder, **fields_):
    for split in ("train", "test"):
        if split in fields_:
            fields_[split] = f"{folder}/{fields_[split]}"
    return SourceConfig(kind="files", **fields_)


def read(source):
    return [document for _, document in reading.read_documents("fr", source)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "bytes.model"
    config = TokenizerConfig(vocab_size=300)
    path.write_bytes(prepare.train_tokenizer("fr", config, [*TEXTS, *LINES, *SENTENCES] * 3))
    return path


@pytest.mark.parametrize("name", CORPORA)
def test_a_corpus_is_read_as_its_users_expect(name, tmp_path, model):
    corpus = CORPORA[name]
    corpus.write(tmp_path)
    source = locate(tmp_path, **corpus.fields, tokenizer=TokenizerConfig(path=str(model)))
    reading.check_source_text("fr", source)
    documents = read(source)
    assert tuple(document.text for document in documents) == corpus.texts
    if corpus.ids is None:
        assert all(document.named_by == "fr" for document in documents)
        assert len({document.id for document in documents}) == len(documents)
    else:
        assert [document.id for document in documents] == corpus.ids

    prepared = prepare.prepare_source("fra_Latn", source, str(tmp_path / "data"))
    expected = sum(len(text.encode()) for text in corpus.texts)
    assert sum(prepared.about["bytes"].values()) == expected
    assert sum(len(prepared.tokens(split)) for split in SPLITS) == sum(
        prepared.count(split) for split in SPLITS
    )
    tokenizer = parse_tokenizer(model.read_bytes())
    for text in corpus.texts:
        assert tokenizer.decode(tokenizer.encode(text)) == text


WRONG = {
    # name: what is written, the fields, and what the refusal names
    "a list over the whole file": (
        {"a.json.gz": '[{"text": "x"},\n {"text": "y"}]'},
        {"train": "a.json.gz"},
        r"one JSON array .*gzip -dc .*/a\.json\.gz \| jq -c '\.\[\]' > .*/a\.lines\.jsonl",
    ),
    "an object over the whole file": (
        {"a.json": '{\n "text": "x"\n}\n'},
        {"train": "a.json"},
        r"one JSON object .*cat .*/a\.json \| jq -c \. > ",
    ),
    "an ending that says nothing": (
        {"childes.train": "x"},
        {"train": "*.train"},
        r"childes\.train does not end in .*config\.sources\.fr\.format=text with documents=line",
    ),
    "no ending": ({"wiki_00": "x"}, {"train": "wiki_*"}, "wiki_extractor"),
    "a Parquet file that is compressed": (
        {"a.parquet.gz": "x"},
        {"train": "a.parquet.gz"},
        r"gzip -dc .*/a\.parquet\.gz > .*/a\.parquet$",
    ),
    "what WikiExtractor writes with --json": (
        {"wiki_00": '{"text": "x"}\n'},
        {"train": "wiki_00", "format": "wiki_extractor"},
        "line 1: stands outside of <doc .*set format=jsonl",
    ),
    "half an article": (
        {"wiki_00": '\n<doc id="1" url="u" title="t">\nt\n'},
        {"train": "wiki_00", "format": "wiki_extractor"},
        "line 2: its <doc> has no </doc>",
    ),
    "a treebank without its text": (
        {"a.conllu": "# newdoc\n# text = _ _\n1\t_\n\n# text = _\n1\t_\n\n"},
        {"train": "a.conllu"},
        "line 1: the text is left out, with _ in place of words",
    ),
    "a treebank without lines of text": (
        {"a.conllu": "# sent_id = 1\n1\tUn\n\n"},
        {"train": "a.conllu"},
        "line 2: the sentence has no line '# text = '",
    ),
    "a column that is not there": (
        {"a.tsv": "1\tx\n"},
        {"train": "a.tsv", "field": "3"},
        r"line 1: has no field '3'; it has: 1, 2\. Set config\.sources\.fr\.field",
    ),
    "documents of what is no plain text": (
        {"a.jsonl": '{"text": "x"}'},
        {"train": "a.jsonl", "documents": "line"},
        r"documents='line' is for plain text, and the files of the source are jsonl",
    ),
    "half a TMX": (
        {"a.tmx": "<tmx><body><tu>"},
        {"train": "a.tmx", "field": "fr"},
        "is not valid XML",
    ),
    "UTF-16": (
        {"a.dev": "x\0y\0"},
        {"train": "a.dev", "format": "text", "documents": "line"},
        "line 1: has a NUL byte",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_read_is_refused_with_what_to_do(name, tmp_path):
    written, fields_, message = WRONG[name]
    for path, text in written.items():
        write(tmp_path / path, text)
    source = locate(tmp_path, **fields_)
    for call in (reading.check_source_text, lambda name, source: read(source)):
        with pytest.raises(ValueError, match=message):
            call("fr", source)


def test_a_window_of_zstandard_that_is_too_large_is_named(tmp_path):
    text = b'{"text": "x"}\n'
    for log, is_read in ((27, True), (31, False)):
        # A frame of one raw block, as RFC 8878 has it.
        block = (len(text) << 3 | 1).to_bytes(3, "little") + text
        frame = b"\x28\xb5\x2f\xfd\x00" + bytes([(log - 10) << 3]) + block
        (tmp_path / "a.jsonl.zst").write_bytes(frame)
        source = locate(tmp_path, train="a.jsonl.zst")
        if is_read:
            assert [document.text for document in read(source)] == ["x"]
        else:
            with pytest.raises(ValueError, match=r"window .*zstd -dc --long=31 .*a\.jsonl\.zst"):
                read(source)


@pytest.mark.parametrize("ending", [".xz", ".bz2"])
def test_truncated_xz_and_bzip2_are_named_after_what_could_be_read(tmp_path, ending):
    path = tmp_path / f"a.txt{ending}"
    write(path, "".join(f"{number:x}\n" for number in range(9999)))
    path.write_bytes(path.read_bytes()[:-9])
    source = locate(tmp_path, train=path.name, documents="line")
    with pytest.raises(ValueError, match=r"after line \d+: the (xz|bzip2) data is truncated"):
        read(source)


def test_documents_are_named_after_the_line_that_they_begin_with(tmp_path):
    write(tmp_path / "a.txt", "\none\nmore\n \n\n\ntwo")
    named = {
        documents: [document.id for document in read(locate(tmp_path, train="a.txt", **fields_))]
        for documents, fields_ in {
            "file": {},
            "line": {"documents": "line"},
            "blank_line": {"documents": "blank_line"},
        }.items()
    }
    assert named == {
        "file": ["a.txt"],
        "line": ["a.txt:2", "a.txt:3", "a.txt:7"],
        "blank_line": ["a.txt:2", "a.txt:7"],
    }


def test_fields_that_say_how_a_file_is_read_are_part_of_its_fingerprint(tmp_path):
    write(tmp_path / "a.txt", "one\n\ntwo\n")
    stated = [{}, {"documents": "line"}, {"documents": "blank_line"}, {"format": "text"}]
    found = [
        reading.compute_text_fingerprint("fr", locate(tmp_path, train="a.txt", **each))
        for each in stated
    ]
    assert len(set(found)) == len(stated)


def test_values_of_lists_have_names_in_lines_and_in_columns(tmp_path):
    rows = [{"text": "x", "doc_scores": [8.5, 2.0], "of": {"langs": [{"p": 0.5}]}}]
    rows.append({"text": "y", "doc_scores": [], "of": {"langs": [{"p": 0.25}, {"p": 0.1}]}})
    write_lines(tmp_path / "a.jsonl", rows)
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    wanted = [
        fields.WantedField(name, "where", "value")
        for name in ("doc_scores.0", "of.langs.0.p", "of.langs.1.p", "no.0")
    ]
    for name in ("a.jsonl", "a.parquet"):
        path, format_ = str(tmp_path / name), name.partition(".")[2]
        found = [
            [formats.get_wanted_value(record, each, path, format_) for each in wanted]
            for record in formats.read_records(path, format_, "file", wanted)
        ]
        assert found == [[8.5, 0.5, None, None], [None, 0.25, 0.1, None]]
    assert columns.find_columns(path, "parquet", wanted)["of.langs.0.p"].path == ("of", "langs")


def test_bad_lines_can_be_left_out_and_counted(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "x"}\n{"te\n\xff\n["y"]\n{"text": "z"}\n')
    errors: list[ValueError] = []
    wanted = [fields.WantedField("text", "field")]
    path = str(tmp_path / "a.jsonl")
    records = formats.read_records(path, "jsonl", "file", wanted, errors.append)
    assert [record.values for record in records] == [{"text": "x"}, {"text": "z"}]
    assert [re.findall(r"line (\d):", str(error)) for error in errors] == [["2"], ["3"], ["4"]]


def test_what_people_trip_over_is_said_once(tmp_path, capsys):
    write_rows(tmp_path / "fr_clean_0.jsonl", text=[r"Un.\nDeux.", r"Trois.\nQuatre.", "Cinq."])
    write_rows(tmp_path / "fr_noisy_0.jsonl", text=[])
    (tmp_path / "fr_noisy_0.jsonl").write_text("\n")
    source = locate(tmp_path, train="*.jsonl")
    for _ in range(2):
        reading.check_source_text("fr", source)
        read(source)
    said = capsys.readouterr().out
    assert said.count("1 files named clean and 1 files named noisy") == 1
    assert said.count(r"2 of the first 3 documents have the two characters \n and no line") == 1
