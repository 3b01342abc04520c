"""Loads a run as a notebook does, and prints a digest of its logits and its losses.

python load_run.py RUN
"""

import hashlib

import numpy as np

from imbalance_jax import cli


def main(names: list[str]) -> int:
    from imbalance_jax.training import loading

    run = loading.load(names[0])
    digest = hashlib.sha256()
    for tag in run.config.tags:
        ids = run.encode("The function returns a value of its own.", tag)
        digest.update(np.asarray(run.forward(ids[:12])).tobytes())
        digest.update(run.decode(ids, tag).encode())
    print(f"step {run.step}: {digest.hexdigest()}")
    return cli.DONE


if __name__ == "__main__":
    cli.run_command(main, names=True)
