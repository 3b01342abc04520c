"""Writes a few lines in a language of a trained run.

    python -m imbalance_jax.generate --workdir=runs/90_10 --language=en2 --prompt="Returns the"

By default only the language's own ids are drawn. --any_language lets the model choose among all
ids, and shows where it leaves the language.
"""

from typing import TYPE_CHECKING

from absl import flags

from imbalance_jax import cli
from imbalance_jax.runs.divergence import describe_divergence
from imbalance_jax.runs.run_directory import RunDirectory

if TYPE_CHECKING:
    import jax
    import numpy as np

    from imbalance_jax.training.loading import LoadedRun

FLAGS = flags.FLAGS
# Below it the division of logits leaves float32, and the most probable piece is drawn anyway.
_LOWEST_TEMPERATURE = 1e-6


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "DIR: The run's directory.")
    flags.DEFINE_integer(
        "step", -1, "Step of the checkpoint; by default the newest.", lower_bound=-1
    )
    flags.DEFINE_string("language", None, "TAG: The language; by default the first one.")
    flags.DEFINE_string("prompt", "", "Text to go on from.")
    flags.DEFINE_integer("tokens", 120, "Pieces to write.", 1, 1_000_000)
    flags.DEFINE_integer("samples", 3, "Texts to write.", 1, 100_000)
    flags.DEFINE_float("temperature", 0.8, "0 takes the most probable piece.", lower_bound=0)
    flags.DEFINE_integer("seed", 0, "Seed of the draws.", 0, 2**32 - 1)
    flags.DEFINE_bool("any_language", False, "Draw from the whole vocabulary.")


def generate_ids(
    run: "LoadedRun",
    prompt: str,
    language: str,
    *,
    tokens: int,
    samples: int = 1,
    temperature: float = 0.8,
    seed: int = 0,
    any_language: bool = False,
) -> "np.ndarray":
    """Returns the model's ids of new text, prompt included: (samples, prompt + tokens).

    The model sees the last L ids. Without a prompt it begins after a separator.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from imbalance_jax.compute import model as model_lib

    row = run.vocabulary.index(language)
    prompt_ids = np.array([run.separator(language), *run.encode(prompt, language)], np.int32)
    allowed_V = jnp.asarray(any_language | run.vocabulary.own_GV[row])
    L, context = run.config.model.L, run.context(language)

    @jax.jit
    def draw(ids_BL: "jax.Array", last: "jax.Array", key: "jax.Array") -> "jax.Array":
        logits_BLV = model_lib.compute_next_token_logits(
            run.params, run.config.model, ids_BL, context
        )
        logits_BV = jnp.where(allowed_V, logits_BLV[:, last], -jnp.inf)
        if temperature < _LOWEST_TEMPERATURE:
            return jnp.argmax(logits_BV, axis=-1)
        return jax.random.categorical(key, logits_BV / temperature)

    ids_BT = np.tile(prompt_ids, (samples, 1))
    for key in jax.random.split(jax.random.key(seed), tokens):
        seen = ids_BT[:, -L:]
        # Padded to one length, so that it compiles once. Causal attention does not see the padding.
        padded_BL = np.pad(seen, ((0, 0), (0, L - seen.shape[1])))
        new_B = np.asarray(draw(padded_BL, seen.shape[1] - 1, key))
        ids_BT = np.concatenate([ids_BT, new_B[:, None].astype(np.int32)], axis=1)
    return ids_BT[:, 1:]


def _count_logit_bytes(run: "LoadedRun", samples: int) -> int:
    return 4 * samples * run.config.model.L * run.vocabulary.size


def main() -> int:
    if not FLAGS.workdir:
        raise ValueError("Give --workdir=RUN, the directory of a trained run.")
    import numpy as np

    from imbalance_jax.compute import hardware
    from imbalance_jax.training import loading

    diverged = describe_divergence(RunDirectory(FLAGS.workdir)) if FLAGS.step < 0 else ""
    if diverged:
        raise ValueError(diverged)
    run = loading.load(FLAGS.workdir, None if FLAGS.step < 0 else FLAGS.step)
    language = FLAGS.language or run.config.tags[0]
    need, limit = _count_logit_bytes(run, FLAGS.samples), hardware.get_device_memory()
    if limit is not None and need > limit:
        raise ValueError(
            f"--samples={FLAGS.samples}: the logits of so many texts at once take "
            f"{need / 1e9:,.0f} GB, and the device has {limit / 1e9:,.0f} GB. Write fewer."
        )
    ids_BT = generate_ids(
        run,
        # A job without a locale reads its command line as bytes, which are UTF-8 nevertheless.
        FLAGS.prompt.encode("utf-8", "surrogateescape").decode(errors="replace"),
        language,
        tokens=FLAGS.tokens,
        samples=FLAGS.samples,
        temperature=FLAGS.temperature,
        seed=FLAGS.seed,
        any_language=FLAGS.any_language,
    )
    own_V = run.vocabulary.own_GV[run.vocabulary.index(language)]
    for number, ids in enumerate(ids_BT, 1):
        print(f"--- {language} {number}")
        print(run.decode(ids, language))
        if not own_V[ids].all():
            print(f"({np.count_nonzero(~own_V[ids])} pieces of other languages left out)")
    return cli.DONE


if __name__ == "__main__":
    define_flags()
    cli.run_command(main, computes=True)
