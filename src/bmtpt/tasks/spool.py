"""Rows of any length in bounded memory: written to a temporary file as they come, fetched by position."""

from __future__ import annotations

import pickle
import tempfile
from array import array
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from bmtpt.errors import DataError

BLOCK = 32
"""Rows that are read and written together."""

IN_MEMORY = 2**22
"""Bytes from which rows lie on the disk."""


class Spool:
    """Objects in the order in which they came.

    The file has no name, so that nothing of it is left when the process ends, however it ends; and nothing but this
    process writes the pickles that it reads.
    """

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115 (open as long as the rows are used)
        self._starts = array("q")
        self._last: list[Any] = []  # not yet a block

    def __len__(self) -> int:
        return len(self._starts) * BLOCK + len(self._last)

    def append(self, item: Any) -> None:
        """Add an object; raise a DataError if the disk is full."""
        self._last.append(item)
        if len(self._last) < BLOCK:
            return
        try:
            self._starts.append(self._file.seek(0, 2))
            pickle.dump(self._last, self._file, protocol=pickle.HIGHEST_PROTOCOL)
        except OSError as error:
            raise DataError(
                f"many rows are kept on the disk, and not in {tempfile.gettempdir()} ({error.strerror or error}); "
                "set TMPDIR to a folder with as much room as the rows take"
            ) from error
        self._last = []

    def fetch(self, index: Sequence[int]) -> list[Any]:
        """Return the objects at some positions, each block read once."""
        wanted: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for at, position in enumerate(index):
            wanted[position // BLOCK].append((at, position % BLOCK))
        found: list[Any] = [None] * len(index)
        for number in sorted(wanted):
            block = self._block(number)
            for at, offset in wanted[number]:
                found[at] = block[offset]
        return found

    def _block(self, number: int) -> list[Any]:
        if number == len(self._starts):
            return self._last
        self._file.seek(self._starts[number])
        block: list[Any] = pickle.load(self._file)
        return block
