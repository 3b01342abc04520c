"""Counts documents to train on that have the text of a held-out one, in one pass over a corpus.

Which documents are held out is known at the end of a pass, and hashes of all others need not fit
into memory. They are written to a file that has no name, and read once.
"""

import os
import pathlib
import sys
import tempfile
from array import array

import numpy as np

from imbalance_jax.runs import storage

_IN_MEMORY = 1 << 25  # bytes of hashes, of 8 bytes each, that are not written to the disk
_READ = 1 << 20  # hashes that are read at once


class DuplicateCounter:
    """Hashes of the texts of a source's documents, by whether they are trained on."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder  # where the file is made once there are many
        with storage.name_file_in_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._held_out = array("Q")
        self._trained_on = tempfile.SpooledTemporaryFile(  # noqa: SIM115  closed by `count`
            _IN_MEMORY, dir=os.fspath(folder)
        )

    def add(self, split: str, text_hash: int) -> None:
        if split != "train":
            self._held_out.append(text_hash)
            return
        with storage.name_file_in_errors(self._folder):
            self._trained_on.write(text_hash.to_bytes(8, sys.byteorder))

    def count(self) -> dict[str, int]:
        """Returns how many documents of each kind have the text of one of the other kind."""
        held_out = np.array(self._held_out, np.uint64)
        found, trained_on = np.zeros(len(held_out), bool), 0
        with storage.name_file_in_errors(self._folder), self._trained_on as file:
            file.seek(0)
            while content := file.read(8 * _READ):
                hashes = np.frombuffer(content, np.uint64)
                trained_on += int(np.isin(hashes, held_out).sum())
                found |= np.isin(held_out, hashes)
        return {"train": trained_on, "held_out": int(found.sum())}
