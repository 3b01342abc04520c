"""What runs must have in common to train as one program. Needs no jax, and no text.

pack.py stacks runs that have it in common, and study_runner.py sorts a study's runs by it.
"""

from typing import Any

from imbalance_jax import config as config_lib
from imbalance_jax.config import Config

# Fields in which the members of a pack may differ, whatever their text.
_OWN = ("seed", "data_dir", "init_from", "log_every", "mirrors", "parallel")
_OWN_OF_OPTIMIZER = ("peak_lr", "final_lr", "schedule", "warmup", "decay")
# What may differ as far as the same follows from it: the vocabulary's size, the dtype of ids
# and the number of steps. Of the languages, the tags must be the same.
_TEXT = ("sources", "vocabulary", "languages", "mixture")


def extract_pack_shape(config: Config) -> dict[str, Any]:
    """Returns the fields of a config that must be equal in all members of a pack."""
    plain = config_lib.to_dict(config)
    shape = {name: value for name, value in plain.items() if name not in (*_OWN, *_TEXT)}
    for name in _OWN_OF_OPTIMIZER:
        del shape["optimizer"][name]
    return shape | {"languages": list(config.tags)}


def find_packing_obstacle(config: Config) -> str:
    """Returns why a run can only be trained alone, or nothing where it can be packed."""
    if "wandb" in config.mirrors:
        return (
            "config.mirrors has 'wandb', which follows one run in a process. Set it to "
            "('tensorboard',) or () for the members of a pack, or train them one by one."
        )
    return ""


def compute_pack_key(config: Config) -> str:
    """Returns what two runs that can be packed have in common, judged without their text.

    Where the text would have to say whether two runs can be, their keys differ.
    """
    plain = config_lib.to_dict(config)
    text: dict[str, Any] = {name: plain[name] for name in ("sources", "vocabulary")}
    text["languages"] = {
        tag: [language["source"], language["clone_of"]]
        for tag, language in sorted(plain["languages"].items())
    }
    if config.mixture.on_exhaustion == "stop":  # a run has as many steps as its text lasts
        text["mixture"], text["seed"] = plain["mixture"], config.seed
    return config_lib.hash_plain_values(extract_pack_shape(config) | {"text": text})
