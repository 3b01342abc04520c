"""Finding and loading the config file that a command line names."""

import difflib
import os
import pathlib
import runpy

import ml_collections

from imbalance_jax.cli.exits import exit_with_error


def list_config_folders() -> list[pathlib.Path]:
    """Returns the folders in which a config is found by its name, such as 90_10.

    They are configs/ here, and the package's own: a wheel has them in imbalance_jax/configs, and an
    editable install in its checkout.
    """
    package = pathlib.Path(__file__).parents[1]
    own = package / "configs"
    if not own.is_dir():
        own = package.parent / "configs"
    folders = dict.fromkeys((pathlib.Path("configs"), own))
    return [folder for folder in folders if folder.is_dir()]


def find_config_file(name: str) -> str:
    """Returns the path of a config file that is named by its path or by its name in configs/.

    A file with that path is taken first.

    Raises:
      ValueError: there is no such file; the message names the nearest one.
    """
    folders = list_config_folders()
    below = name.removeprefix("configs/")
    paths = [pathlib.Path(name), *(folder / below for folder in folders)]
    for path in (*paths, *(path.with_name(f"{path.name}.py") for path in paths if path.name)):
        if path.is_file():
            return os.fspath(path)
    known: dict[str, str] = {}  # name -> where it is
    for folder in folders:
        for file in sorted(folder.rglob("*.py")):
            relative = file.relative_to(folder).with_suffix("").as_posix()
            known.setdefault(file.stem, relative)
            known[relative] = relative
    wanted = name.removeprefix("configs/").removesuffix(".py")
    (nearest,) = difflib.get_close_matches(wanted, known, n=1) or [""]
    hint = f" Did you mean {known[nearest]}?" if nearest else ""
    raise ValueError(f"there is no file {name}, and no config of that name in configs/.{hint}")


def load_config_file(value: str, flag: str = "config") -> ml_collections.ConfigDict:
    """Returns the config of a `--config=FILE[:CHOICES]`, without overrides."""
    name, _, choices = value.partition(":")
    try:
        path = find_config_file(name)
    except ValueError as error:
        exit_with_error(f"--{flag}={value}: {error}")
    try:
        names = runpy.run_path(path)
        if "get_config" not in names:
            exit_with_error(f"--{flag}={value}: {path} defines no function get_config().")
        get_config = names["get_config"]
        return get_config(choices) if choices else get_config()
    except (ValueError, FileNotFoundError) as error:
        exit_with_error(str(error))
    except Exception as error:
        exit_with_error(f"--{flag}={value}: {path} fails with {type(error).__name__}: {error}")
