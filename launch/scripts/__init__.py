"""The shell scripts that run jobs. They are static: what differs between jobs is given to them."""

import importlib.resources


def read_script(name: str) -> str:
    """Returns the text of a script."""
    return importlib.resources.files(__name__).joinpath(name).read_text(encoding="utf-8")
