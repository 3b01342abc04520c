"""Trains word2vec on a run's tokens, to compare alignment.

    python -m imbalance_jax.word2vec --workdir=runs/90_10
    python -m imbalance_jax.word2vec --config=configs/90_10.py:scale=pico --workdir=runs/shallow

With the directory of a run, its own config is used, so that both models learn from the same tokens.
Otherwise the directory becomes one of the config's. The defaults are the reference study's. gensim
trains the vectors (pip install gensim). The results go into word2vec.json, word2vec-METHOD.npz and
report.html. docs/word2vec.md has what came out.
"""

import dataclasses
import importlib.metadata
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from absl import flags

from imbalance_jax import cli
from imbalance_jax import config as config_lib
from imbalance_jax.runs import storage
from imbalance_jax.runs.progress import Progress
from imbalance_jax.runs.run_directory import RunDirectory

if TYPE_CHECKING:
    import numpy as np

    from imbalance_jax.data.inspect import TrainingData
    from imbalance_jax.data.languages import Vocabulary
    from imbalance_jax.evaluation.embeddings import PiecePairs
    from imbalance_jax.word2vec.vectors import PieceVectors, Word2VecSettings

FLAGS = flags.FLAGS
RESULTS = "word2vec.json"
# Of a trainer that learnt from many positions at once, in groups that shared their negatives.
_EARLIER_FLAGS = ("positions", "group")


def define_flags() -> None:
    cli.define_config_flag()
    flags.DEFINE_string("workdir", None, "DIR: The run's directory; by default runs/<config name>.")
    flags.DEFINE_string("data_dir", None, "DIR: Where the text is; by default config.data_dir.")
    flags.DEFINE_enum("method", "cbow", ["cbow", "skipgram"], "What predicts what.")
    flags.DEFINE_integer("dimension", 768, "Numbers in a vector.", None, 65_536)
    flags.DEFINE_integer("window", 5, "Ids on either side of a position, at most.", None, 65_536)
    flags.DEFINE_integer("negatives", 20, "Negatives drawn for each position.", None, 65_536)
    flags.DEFINE_float("exponent", 0.75, "Exponent of the counts that negatives are drawn by.")
    flags.DEFINE_float(
        "sample",
        1e-3,
        "Ids with a larger share of the tokens are left out at times; 0 keeps all.",
    )
    flags.DEFINE_integer("min_count", 1, "Rarer ids are left out.")
    flags.DEFINE_integer("epochs", 1, "Times that the run's tokens are gone through.")
    flags.DEFINE_float("start_rate", 0.025, "Learning rate at the first token.")
    flags.DEFINE_float("end_rate", 1e-4, "Learning rate at the last token; linear in between.")
    flags.DEFINE_integer("seed", 0, "Seed of all draws but the run's own.", 0, 2**32 - 1)
    for name in _EARLIER_FLAGS:
        flags.DEFINE_integer(name, None, None)  # without help, so that --help has none
    flags.DEFINE_bool("overwrite", False, "Replace what is known of this method.")


def main() -> int:
    from imbalance_jax.report import run_page
    from imbalance_jax.word2vec import vectors as vectors_lib

    for name in _EARLIER_FLAGS:
        if getattr(FLAGS, name) is not None:
            cli.exit_with_error(
                f"--{name} was of an earlier version's own trainer. gensim updates after each "
                f"position: leave out --{name}."
            )
    names = [field.name for field in dataclasses.fields(vectors_lib.Word2VecSettings)]
    settings = vectors_lib.Word2VecSettings(**{name: getattr(FLAGS, name) for name in names})
    run, opened = _open_run()
    # The results of another method stay.
    results = run.read_json(RESULTS) or {}
    result = None if FLAGS.overwrite else results.get(settings.method)
    if result:
        now = {**dataclasses.asdict(settings), "steps": opened.stream.steps}
        before = {**result.get("settings", {}), "steps": result.get("steps")}
        cli.check_same_measurement(f"{RESULTS} has {settings.method}", before, now)
        print(f"{settings.method} is known already; --overwrite trains it again.")
    else:
        vectors_lib.import_gensim()  # or refuses, before anything is read
        run.check_writable()
        result, vectors, count_V = train_and_measure_vectors(opened, settings)
        _save_vectors(run, f"word2vec-{settings.method}.npz", vectors, count_V)
        run.write_json(RESULTS, results | {settings.method: result})
    print("\n".join(describe_word2vec_results(result)))
    print(f"Wrote {run.path / RESULTS}. See {run_page.write_run_page(run)}.")
    return cli.DONE


def _open_run() -> "tuple[RunDirectory, TrainingData]":
    """Returns the run's directory, and what its config says that it is trained on.

    Raises:
      ValueError: the directory belongs to another run, or its text is another one by now.
    """
    if not FLAGS.workdir and FLAGS.config is None:
        cli.exit_with_error("Give --workdir=RUN, the directory of a run, or --config=FILE.")
    run = RunDirectory(FLAGS.workdir or os.path.join("runs", cli.get_config_name()))
    begun = (run.path / "config.json").exists()
    if FLAGS.config is None and not begun:
        cli.exit_with_error(
            f"--workdir={run} holds no run. Give one that does, or --config=FILE as well."
        )
    config = run.config() if FLAGS.config is None else cli.require_run_config()
    run.check(config)
    run.check_format()

    from imbalance_jax.data.inspect import TrainingData
    from imbalance_jax.data.order.audit import check_begun_text

    if FLAGS.data_dir:
        config = dataclasses.replace(config, data_dir=FLAGS.data_dir)
    opened = TrainingData.of(config, run.begun(), run.texts())
    fingerprints = {name: source.fingerprint for name, source in opened.sources.items()}
    line = check_begun_text(run, opened.config, opened.stream, fingerprints)
    if line:
        print(line)
    if not begun:
        run.claim(opened.config)
        run.release()
    return run, opened


def train_and_measure_vectors(
    opened: "TrainingData", settings: "Word2VecSettings"
) -> "tuple[dict[str, Any], PieceVectors, np.ndarray]":
    """Returns what word2vec.json has of a method, the vectors, and the count of each id.

    Args:
      opened: a run's stream, and its text.
      settings: of the vectors.

    Raises:
      ValueError: nothing is left to train on.
    """
    import numpy as np

    from imbalance_jax.compute import hardware
    from imbalance_jax.data import languages
    from imbalance_jax.word2vec import vectors as vectors_lib

    config, stream = opened.config, opened.stream
    pieces = {name: source.pieces for name, source in opened.sources.items()}
    vocabulary = languages.build_vocabulary(config, pieces)

    def sentences() -> "Iterator[np.ndarray]":
        for step in range(stream.steps):
            batch = stream.batch(step)
            # The inputs: what a model predicts from.
            base_BL = batch.ids_BW[:, :-1].astype(int)
            yield vocabulary.map_GU[batch.language_B[:, None], base_BL]

    began = time.monotonic()
    count_V = vectors_lib.count_ids(sentences, vocabulary.size)
    counted = time.monotonic() - began
    with Progress(f"word2vec ({settings.method})", 1) as progress:
        vectors = vectors_lib.train_vectors(sentences, count_V, settings, progress.show)
    seconds = time.monotonic() - began
    tokens = int(count_V.sum()) * settings.epochs
    result = {
        "settings": dataclasses.asdict(settings),
        "trainer": f"gensim {importlib.metadata.version('gensim')}",
        "steps": stream.steps,
        "tokens": tokens,
        "kept": vectors.kept,
        "pieces": int((count_V > 0).sum()),
        "seconds": round(seconds, 1),
        "seconds_counting": round(counted, 1),
        "tokens_per_second": round(tokens / seconds),
        "device": hardware.describe_devices(),
    }
    trained_V = count_V >= settings.min_count
    result |= _measure_alignment(opened, vocabulary, vectors, np.where(trained_V, count_V, 0))
    return result, vectors, count_V


def _measure_alignment(
    opened: "TrainingData", vocabulary: "Vocabulary", vectors: "PieceVectors", count_V: "np.ndarray"
) -> dict[str, Any]:
    """Returns the pairs of languages, each with its measures of input and output vectors.

    They are those of a model's embeddings, over the ids that were trained on, and `shuffled`.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from imbalance_jax.compute import sharding
    from imbalance_jax.data import parallel
    from imbalance_jax.evaluation import embeddings
    from imbalance_jax.evaluation.alignment import AlignmentEvaluator

    config, seen_V = opened.config, count_V > 0
    mesh = sharding.make_mesh(config_lib.MeshConfig(), jax.devices()[:1])
    sets = parallel.prepare_all_parallel_sets(config, opened.sources)
    alignment = AlignmentEvaluator(
        config, opened.sources, sets, vocabulary, mesh, split="test", most=8
    )
    pairs: dict[str, Any] = {}
    for pair in alignment.pairs:
        maps = [
            vocabulary.map_GU[g, base] for g, base in zip(pair.languages, pair.bases, strict=True)
        ]
        both = seen_V[maps[0]] & seen_V[maps[1]]
        ids = (maps[0][both], maps[1][both])
        blocks = [np.flatnonzero(vocabulary.own_GV[g] & seen_V) for g in pair.languages]
        others = [block[~np.isin(block, np.concatenate(ids))] for block in blocks]
        pieces = embeddings.PiecePairs(
            ids,
            np.minimum(count_V[ids[0]], count_V[ids[1]]),
            "suggested" if pair.set else "clones",
            (others[0], others[1]),
        )
        tables: dict[str, Any] = {}
        for where, table_VD in (("input", vectors.input_VD), ("output", vectors.output_VD)):
            tables[where] = embeddings.measure_embeddings(
                alignment.programs,
                jnp.asarray(table_VD),
                pieces,
                (blocks[0], blocks[1]),
                candidates=0,
            )
            tables[where]["shuffled"] = _compute_shuffled_cosine(table_VD, pieces)
        pairs[pair.name] = tables
    return {"pairs": pairs, "skipped": alignment.skipped}


def _compute_shuffled_cosine(table_VD: "np.ndarray", pieces: "PiecePairs") -> float | None:
    """Returns the mean cosine of pieces to the counterpart of the next less frequent one.

    The rows of word2vec differ most by frequency, which clones have in common. Only the excess
    of their cosine over this one says more than that. None where there are no two pairs.
    """
    import numpy as np

    order = np.flatnonzero(pieces.distinct)
    if len(order) < 2:
        return None
    order = order[np.argsort(-pieces.count_n[order], kind="stable")]
    rows_a = table_VD[pieces.ids[0][order]]
    rows_b = table_VD[pieces.ids[1][np.roll(order, -1)]]
    norms = np.linalg.norm(rows_a, axis=1) * np.linalg.norm(rows_b, axis=1)
    return float(np.mean(np.sum(rows_a * rows_b, axis=1) / np.maximum(norms, 1e-30)))


def _save_vectors(
    run: RunDirectory, name: str, vectors: "PieceVectors", count_V: "np.ndarray"
) -> None:
    """Writes the vectors, whole or not at all."""
    import numpy as np

    unfinished = run.path / f".{name}.tmp"
    with storage.name_file_in_errors(run.path / name), unfinished.open("wb") as file:
        np.savez(file, input_VD=vectors.input_VD, output_VD=vectors.output_VD, count_V=count_V)
    unfinished.replace(run.path / name)


def describe_word2vec_results(result: dict[str, Any]) -> list[str]:
    """Returns the main results in a few lines."""
    lines = [
        f"{result['tokens']:,} tokens in {result['seconds']:,.1f} s: "
        f"{result['tokens_per_second']:,} a second; {result['kept']:,} were left by subsampling."
    ]
    lines += result["skipped"].values()
    for name, tables in result["pairs"].items():
        for where, rows in tables.items():
            if "cosine" in rows:
                retrieval = rows["retrieval"]
                lines.append(
                    f"{name}, {where} vectors: cosine {rows['cosine']:.3f} of {rows['pairs']:,} "
                    f"pairs of pieces, {rows['shuffled']:.3f} shuffled among equally frequent "
                    f"ones, {rows['between']:.3f} of all; P@1 {retrieval['forth']:.2%} "
                    f"and {retrieval['back']:.2%}, by chance {retrieval['chance']:.2%}"
                )
    return lines


if __name__ == "__main__":
    define_flags()
    cli.run_command(main, computes=True)
