"""English and French, each with a tokenizer of its own.

    python -m imbalance_jax.main --config=configs/en_fr.py --workdir=runs/en_fr
    python -m imbalance_jax.main --config=configs/en_fr.py:files=DIR,ratio=90:10,layout=joint

The text is wiki40b of TFDS; preparing it needs the extra `tfds` and a download. With files=DIR
it is DIR/{en,fr}.train.jsonl.gz and DIR/{en,fr}.test.jsonl.gz, and sentences that say the same
are DIR/parallel.jsonl.gz, with the fields en and fr. Any other place is an override of a field,
such as --config.sources.fr.train=PATTERN.

languages=fr,ratio=1 is French alone, under the same tokenizer. With joins=0.5 French has no
sequence in the first half of the run, and joins English at its ratio in the second.

layout is disjoint, merged or joint. content=disjoint gives a page that exists in both languages
(the same id, which both texts must have then) to one of them. stages=0.1_0.9 is French in a
tenth of the first half of the run and in nine tenths of the second, in place of the ratio. scale
is as in configs/90_10.py.
"""

import os

import ml_collections

from imbalance_jax import config as config_lib
from imbalance_jax.config import ParallelConfig, SourceConfig


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    choice = config_lib.parse_arg(
        arg,
        scale="pico",
        languages="en_fr",
        ratio="50:50",
        layout="merged",
        content="shared",
        stages="",
        joins="",
        files="",
    )
    make = _file_source if choice.files else _wiki40b
    names = choice.languages.split("_")
    if not names or not set(names) <= {"en", "fr"}:
        raise ValueError(f"languages={choice.languages}: choose en_fr, en or fr.")
    sources = {name: make(name, choice.files) for name in names}
    config = config_lib.spoken(sources, scale=choice.scale, ratio=choice.ratio)
    config.vocabulary.layout = choice.layout
    config.mixture.content = choice.content
    if choice.stages and (choice.joins or len(sources) < 2):
        raise ValueError(f"stages={choice.stages} is for two languages, and without joins.")
    if choice.content == "disjoint":
        for name in sources:
            config.sources[name].ids = "shared"
    if choice.stages:
        config.mixture.stages = config_lib.equal_stages(choice.stages, "en", "fr")
    if choice.joins:
        config.mixture.stages = config_lib.joining_stages(choice.joins, config.mixture.ratio)
    if choice.files and len(sources) > 1:
        config.parallel.en_fr = config_lib.declared(
            ParallelConfig,
            sources=("en", "fr"),
            path=os.path.join(choice.files, "parallel.jsonl.gz"),
        )
    return config


def _wiki40b(name: str, _: str) -> ml_collections.ConfigDict:
    return config_lib.declared(
        SourceConfig,
        kind="tfds",
        dataset=f"wiki40b/{name}",
        markup="wiki40b",
        # The same article has the same one in every language.
        id_field="wikidata_id",
    )


def _file_source(name: str, folder: str) -> ml_collections.ConfigDict:
    return config_lib.declared(
        SourceConfig,
        kind="files",
        train=os.path.join(folder, f"{name}.train.jsonl.gz"),
        test=os.path.join(folder, f"{name}.test.jsonl.gz"),
    )
