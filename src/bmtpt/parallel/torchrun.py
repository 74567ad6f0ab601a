"""What torchrun tells a process: which of how many ranks of one run it is. Imports no torch, so that help is quick."""

from __future__ import annotations

import os
from typing import Literal, NamedTuple

Reduce = Literal["exact", "fast"]
"""How ranks add their gradients: in the order of one process, to the same bits, or in any order (`all_reduce`)."""


class Place(NamedTuple):
    """A process among the ranks of its run; the only one if torchrun did not start it.

    Attributes:
        rank: Its number.
        size: How many there are.
        local: Its number on its machine.
    """

    rank: int = 0
    size: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which alone prints and writes."""
        return self.rank == 0


def place() -> Place:
    """Return this process's place, from torchrun's RANK, WORLD_SIZE and LOCAL_RANK."""
    values = [os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
    return Place(*map(int, values)) if all(value.isdecimal() for value in values) else Place()
