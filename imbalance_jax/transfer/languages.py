"""The languages of a run that a task is trained in and scored in."""

from collections.abc import Sequence

from imbalance_jax.config import Config


def choose_languages(
    config: Config, trained: str = "", languages: Sequence[str] = ()
) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Returns the language to train in, all to score in (it first), and notes on what is left out.

    It trains in the first language and scores in all of them where nothing else is asked for.

    Raises:
      ValueError: the run has no such language, or cannot be trained in it.
    """
    for flag, tags in (("train_language", [trained] if trained else []), ("languages", languages)):
        for tag in tags:
            if tag not in config.tags:
                raise ValueError(
                    f"--{flag}={tag}: the run has no such language. It has: "
                    f"{', '.join(config.tags)}."
                )
    trained = trained or config.tags[0]
    # Their examples would have to be put in their order, which is not done.
    reordered = [tag for tag in config.tags if config.languages[tag].words != "as_written"]
    if trained in reordered:
        raise ValueError(
            f"--train_language={trained}: its words are {config.languages[trained].words}, and "
            "those of examples are as written. Use another language."
        )
    wanted = [tag for tag in languages or config.tags if tag != trained]
    notes = tuple(
        f"{tag} is left out: its words are {config.languages[tag].words}, and those of "
        "examples are as written."
        for tag in wanted
        if tag in reordered
    )
    return trained, (trained, *(tag for tag in wanted if tag not in reordered)), notes
