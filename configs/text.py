"""Languages of your own, from a folder with the text of each, at any ratio.

    python -m imbalance_jax.main --config=configs/text.py:files=text,ratio=90:10 --workdir=runs/text
    python -m imbalance_jax.main --config=configs/text.py:files=text,languages=en_sw_zu,ratio=8:1:1

files is the folder, and languages the names of the texts in it, with _ between them; without
languages they are en_fr. The text of en is text/en.jsonl, text/en.txt.gz or any other text/en.*,
all of them if there are several, or the files of the folder text/en. A hundredth of its documents
is held out for validation and another for the test. Files with names such as text/en.train.jsonl
are training text, and text/en.validation.* and text/en.test.* are held out in its place. If there
is a file text/parallel.jsonl.gz, with a field for each language, its sentences are compared.

ratio has a part for each language, in their order. layout is disjoint, merged (equal pieces have
one id) or joint (one tokenizer), and scale as in configs/90_10.py.
"""

import os

import ml_collections

from imbalance_jax import config as config_lib
from imbalance_jax.config import ParallelConfig, SourceConfig
from imbalance_jax.data.text import patterns


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    choice = config_lib.parse_arg(
        arg, files="", languages="en_fr", ratio="90:10", layout="merged", scale="demo"
    )
    if not choice.files:
        raise ValueError("files= is missing. Name a folder that holds text of each language.")
    names = choice.languages.split("_")
    sources = {
        name: config_lib.declared(
            SourceConfig, kind="files", **patterns.find_language_files(choice.files, name)
        )
        for name in names
    }
    config = config_lib.spoken(sources, scale=choice.scale, ratio=choice.ratio)
    config.vocabulary.layout = choice.layout if len(names) > 1 else "disjoint"
    parallel = os.path.join(choice.files, "parallel.jsonl.gz")
    if len(names) == 2 and os.path.isfile(parallel):
        config.parallel["_".join(names)] = config_lib.declared(
            ParallelConfig, sources=tuple(names), path=parallel
        )
    return config
