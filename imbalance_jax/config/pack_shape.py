"""What runs must have in common to train as one program. Needs no jax, and no text.

training/pack.py stacks runs whose `describe_pack_shape` is the same, and study_runner.py sorts a
study's runs by `compute_pack_key`: runs of one key have one shape, whatever their text is.
"""

from typing import Any

from imbalance_jax import config as config_lib
from imbalance_jax.config import Config

# Fields in which the members of a pack may differ, whatever their text.
_OWN = ("seed", "data_dir", "init_from", "log_every", "mirrors", "parallel")
_OWN_OF_OPTIMIZER = ("peak_lr", "final_lr", "schedule", "warmup", "decay")
# Fields that may differ as far as the same shapes follow from them and the text.
_TEXT = ("sources", "vocabulary", "languages", "mixture")


def describe_pack_shape(
    config: Config, *, steps: int, vocab_size: int, largest_source: int, id_dtype: str
) -> dict[str, Any]:
    """Returns what must be equal in all members of a pack, by the field that a user would look at.

    Args:
      config: of a member.
      steps: that it has, which are fewer than the config's where its text ends.
      vocab_size: ids of all its languages.
      largest_source: ids of the source that has most.
      id_dtype: of the ids of its batches.
    """
    vocabulary = {"size": vocab_size, "largest_source": largest_source, "dtype_of_ids": id_dtype}
    return _list_common_fields(config) | {"steps": steps, "vocabulary": vocabulary}


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
    if config.vocabulary.separator == "own":  # anchored ones get an id more
        text["languages"] = plain["languages"]
    if config.mixture.on_exhaustion == "stop":  # a run has as many steps as its text lasts
        text["mixture"], text["seed"] = plain["mixture"], config.seed
    return config_lib.hash_plain_values(_list_common_fields(config) | {"text": text})


def _list_common_fields(config: Config) -> dict[str, Any]:
    """Returns the fields that must be equal whatever the text, and the tags of the languages."""
    plain = config_lib.to_dict(config)
    shape = {name: value for name, value in plain.items() if name not in (*_OWN, *_TEXT)}
    for name in _OWN_OF_OPTIMIZER:
        del shape["optimizer"][name]
    weighted = {"mixture.loss_weights": "some" if config.mixture.loss_weights else "none"}
    return shape | weighted | {"languages": list(config.tags)}
