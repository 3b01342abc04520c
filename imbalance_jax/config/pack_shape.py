"""The fields that runs must have in common to train as one program.

training/pack.py stacks such runs, and study/study_runner.py groups a study's runs by them.
"""

from typing import Any

from imbalance_jax import config as config_lib
from imbalance_jax.config import Config

# Fields in which the members of a pack may differ, whatever their text.
_OWN = ("seed", "data_dir", "init_from", "log_every", "mirrors", "parallel")
_OWN_OF_OPTIMIZER = ("peak_lr", "final_lr", "schedule", "warmup", "decay")
# Fields that may differ as long as the size of the vocabulary, the dtype of the ids and the number
# of steps are the same. The tags of the languages must be the same.
_TEXT = ("sources", "vocabulary", "languages", "mixture")


def extract_pack_shape(config: Config) -> dict[str, Any]:
    """Returns the fields of a config that must be equal in all members of a pack."""
    plain = config_lib.to_dict(config)
    shape = {name: value for name, value in plain.items() if name not in (*_OWN, *_TEXT)}
    for name in _OWN_OF_OPTIMIZER:
        del shape["optimizer"][name]
    return shape | {"languages": list(config.tags)}


def find_packing_obstacle(config: Config) -> str:
    """Returns why a run can only be trained alone; "" if it can be packed."""
    if "wandb" in config.mirrors:
        return (
            "config.mirrors has 'wandb', which follows one run in a process. Set it to "
            "('tensorboard',) or () for the members of a pack, or train them one by one."
        )
    return ""


def compute_pack_key(config: Config) -> str:
    """Returns a key that two runs share only if they can be packed, whatever their text is.

    Runs whose text would have to decide it have different keys.
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
