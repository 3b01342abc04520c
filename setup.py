"""Puts configs/ into a wheel, as imbalance_jax/configs. Everything else is in setup.cfg."""

import pathlib
import shutil

import setuptools
from setuptools.command import build_py


class BuildWithConfigs(build_py.build_py):
    """Builds the package, and copies the config files that the commands of the docs name."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:  # An editable install reads the files of the checkout.
            target = pathlib.Path(self.build_lib, "imbalance_jax", "configs")
            shutil.rmtree(target, ignore_errors=True)  # A folder build/ may hold earlier files.
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree("configs", target, ignore=ignored)


setuptools.setup(cmdclass={"build_py": BuildWithConfigs})
