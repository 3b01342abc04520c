"""What is timed: a model, a vocabulary and a batch, on made-up text without end.

A case is written `scale:languages:batch`, such as `small:2:16`; the last two can be left out.
Fields of the config can follow: `small:2:16 model.dtype=bfloat16 model.scan_layers=False`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ml_collections

from imbalance_jax import config as config_lib
from imbalance_jax.config import SCALES, Config
from imbalance_jax.data.text import synthetic

if TYPE_CHECKING:
    import jax

    from imbalance_jax.training.experiment import Experiment

# GPT-2 124M with its own length and head, as in tables that others have published. Its
# vocabulary of 50,257 is filled up to a multiple of 128, as theirs is.
_GPT2: Mapping[str, Any] = {
    "tokenizer.vocab_size": 50304,
    "batch_size": 64,
    **{"model.L": 1024, "model.D": 768, "model.H": 12, "model.K": 64, "model.F": 3072},
    **{"model.N": 12, "model.tied": True},
}


@dataclasses.dataclass(frozen=True)
class BenchmarkCase:
    """A config on one made-up language and clones of it."""

    name: str
    config: Config

    @property
    def vocab_size(self) -> int:
        """Returns the ids of all languages together; clones share none."""
        pieces = self.config.sources["en"].tokenizer.vocab_size
        return pieces * len(self.config.languages)


def parse_case(text: str) -> BenchmarkCase:
    """Returns the case that a text such as `small:2:16` stands for.

    Without its numbers a case has 2 languages (gpt2 has 1) and the batch of its scale.

    Raises:
      ValueError: it cannot be read, or there is no such field.
    """
    name, *changes = text.split() or [""]
    scale, *numbers = name.split(":")
    wrong = len(numbers) > 2 or any(not n.isdecimal() or n == "0" for n in numbers)
    known = scale in (*SCALES, "gpt2")
    if not known or wrong:
        part = "no such scale" if not known else "languages and batch are whole numbers from 1"
        raise ValueError(
            f"case {text}: {part}. Write scale:languages:batch, such as small:2:16. The scales "
            f"are {', '.join(SCALES)} and gpt2."
        )
    gpt2 = scale == "gpt2"
    count = int(numbers[0]) if numbers else 1 if gpt2 else 2
    config = config_lib.cloned(scale="small" if gpt2 else scale, ratio=":".join("1" * count))
    for field, value in (_GPT2 if gpt2 else {}).items():
        _set_config_field(config, field, value)
    if len(numbers) == 2:
        config.batch_size = int(numbers[1])
    for change in changes:
        field, given, value = change.partition("=")
        if not given:
            raise ValueError(f"case {text}: {change!r} has no value. Write {change}=VALUE.")
        _set_config_field(config, field, value)
    source = config.sources.en
    source.kind = "synthetic"
    source.synthetic.lemmas = source.tokenizer.vocab_size - synthetic.FIRST_WORD - 1
    source.synthetic.topics = max(t for t in range(1, 33) if source.synthetic.lemmas % t == 0)
    return BenchmarkCase(text, config_lib.resolve_config(config))


def _set_config_field(config: ml_collections.ConfigDict, name: str, value: Any) -> None:
    """Sets a field by its dotted name, to a value of the kind that it has."""
    *groups, field = name.split(".")
    if groups == ["tokenizer"]:
        groups = ["sources", "en", "tokenizer"]
    target = config
    for group in groups:
        target = target.get(group, {})
    if field not in target:
        raise ValueError(f"case with {name}={value}: there is no field config.{name}.")
    kind = type(target[field])
    if kind is bool and isinstance(value, str):
        if value.lower() not in ("true", "false"):
            raise ValueError(f"case with {name}={value}: write True or False.")
        value = value.lower() == "true"
    try:
        target[field] = kind(value)
    except ValueError:
        raise ValueError(
            f"case with {name}={value}: config.{name} is of another kind, such as "
            f"{target[field]!r}."
        ) from None


def build_experiment(config: Config, devices: "Sequence[jax.Device] | None" = None) -> "Experiment":
    """Returns what trains a config on some devices, which are all that there are by default."""
    import jax

    from imbalance_jax.compute import sharding
    from imbalance_jax.data import prepare
    from imbalance_jax.training.experiment import Experiment

    mesh = sharding.make_mesh(config.mesh, devices or jax.devices())
    return Experiment.make(config, prepare.prepare_run_sources(config), mesh)
