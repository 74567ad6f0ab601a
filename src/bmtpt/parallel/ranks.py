"""What the ranks of one run tell each other. A process alone has nothing to tell, and needs no process group.

Every rank holds the same prompts, rows and optimiser state. The ranks share the passes of an engine's call
(`backbone/ranked.py`), and rank 0 alone writes. torchrun tells each its place by the environment.

Backends: gloo on CPUs; where there are GPUs also NCCL, which no test of ours has run.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float
from torch import Tensor

from bmtpt.errors import BmtptError, RankError, is_out_of_memory
from bmtpt.parallel.torchrun import Reduce, place

LOST = (
    "one of the {size} ranks of this run has ended or cannot be reached, so the others have stopped; what was written "
    "is whole: give the same command again, with --resume for a training run"
)

Value = TypeVar("Value")
Item = TypeVar("Item")


@dataclass(frozen=True)
class Ranks:
    """This process among those of its run.

    Attributes:
        rank: Its number; rank 0 alone writes.
        size: How many there are.
        reduce: How gradients are added.
        lockstep: The model's weights are spread over the ranks, so that all of them must run it equally often.
    """

    rank: int = 0
    size: int = 1
    reduce: Reduce = "exact"
    lockstep: bool = False

    def only_first(self, value: Value) -> Value | None:
        """Return a value on rank 0, such as the folder to write into, and None on the others."""
        return value if self.rank == 0 else None

    def first(self, value: Value) -> Value:
        """Return rank 0's value on all ranks."""
        if self.size == 1:
            return value
        held = [value]
        with _all_there(self.size):
            dist.broadcast_object_list(held)
        return held[0]

    def gathered(self, value: Value) -> list[Value]:
        """Return every rank's value, in the order of the ranks."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        with _all_there(self.size):
            dist.all_gather_object(found, value)
        return found

    def require_same(self, value: object, what: str) -> None:
        """Raise a RankError if ranks have different values; ``what`` names them in the sentence."""
        require_equal(self.gathered(value), what)

    def after_step(self, tensors: Sequence[Tensor], stop: bool) -> bool:
        """Return whether any rank asks to stop.

        Raises:
            RankError: The trained tensors differ between ranks.
        """
        if self.size == 1:
            return stop
        digest = 0
        for tensor in tensors:
            digest = zlib.crc32(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data, digest)
        digests, asked = zip(*self.gathered((digest, stop)), strict=True)
        require_equal(digests, "numbers after a step")
        return any(asked)

    def added(self, rows: Float[Tensor, "n W"], owners: Sequence[int]) -> Float[Tensor, " W"]:
        """Add up the rows of all ranks in the order of their numbers, as one process does; every rank gets the sum.

        Each rank adds one slice of the width, so little more is sent than by `summed`.

        Args:
            rows: This rank's, in order.
            owners: The rank that holds each row.
        """
        width = -(-rows.shape[1] // self.size)
        slices = F.pad(rows, (0, width * self.size - rows.shape[1])).view(len(rows), self.size, width)
        received, whole = rows.new_empty(len(owners), width), rows.new_empty(self.size, width)
        sizes = [owners.count(rank) for rank in range(self.size)], [len(rows)] * self.size
        with _all_there(self.size):
            dist.all_to_all_single(received, slices.transpose(0, 1).flatten(0, 1).contiguous(), *sizes)
            place_of = {row: at for at, row in enumerate(sorted(range(len(owners)), key=owners.__getitem__))}
            total = rows.new_zeros(width)
            for row in range(len(owners)):
                total += received[place_of[row]]
            dist.all_gather(list(whole.unbind()), total)
        return whole.flatten()[: rows.shape[1]]

    def summed(self, row: Float[Tensor, " W"]) -> Float[Tensor, " W"]:
        """Add up one row of every rank, in place and in any order."""
        with _all_there(self.size):
            dist.all_reduce(row)
        return row

    def turns(self, items: Iterator[Item]) -> Iterator[list[Item]]:
        """Yield what rank 0 reads to all ranks, as many items at a time as `spread` works on together.

        Items of other ranks stay unread. If reading fails, what was read before comes first.
        """
        most, more = 1 if self.lockstep else self.size, True
        while more:
            found, error = self.first(_read(items, most) if self.rank == 0 else ([], None))
            if found:
                yield found
            if error:
                raise error
            more = len(found) == most

    def spread(self, items: Sequence[Item], work: Callable[[Item], Value]) -> list[Value]:
        """Return what ``work`` makes of each item of a turn, one item a rank."""
        if self.size == 1 or self.lockstep:
            return [work(item) for item in items]
        mine = work(items[self.rank]) if self.rank < len(items) else None
        return [value for value in self.gathered(mine)[: len(items)] if value is not None]


ALONE = Ranks()
"""One process."""


def joined(reduce: Reduce = "exact", *, lockstep: bool = False) -> Ranks:
    """Return this process's place in its run, and join the others' process group; `ALONE` without torchrun.

    Raises:
        RankError: The other ranks cannot be reached.
    """
    here = place()
    if here.size == 1:
        return ALONE
    if not dist.is_initialized():
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(here.local)
        if not here.first:  # what all ranks would warn of, rank 0 does
            logging.getLogger("bmtpt").setLevel(logging.ERROR)
        with _all_there(here.size):
            dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    return Ranks(here.rank, here.size, reduce, lockstep)


def device_of_rank(name: str) -> str:
    """Return the device of this rank for what a user asks for: of CUDA devices, each rank of a machine has its own."""
    here = place()
    return f"cuda:{here.local}" if here.size > 1 and name in ("auto", "cuda") and torch.cuda.is_available() else name


def leave() -> None:
    """Leave the process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _read(items: Iterator[Item], most: int) -> tuple[list[Item], BmtptError | None]:
    """Read some items; return them, and what kept the next from being read."""
    found: list[Item] = []
    try:
        found.extend(islice(items, most))
    except BmtptError as error:
        return found, error
    return found, None


def require_equal(values: Sequence[object], what: str) -> None:
    """Raise a RankError if ranks have different values, given in their order; ``what`` names them in the sentence."""
    for rank, value in enumerate(values):
        if value != values[0]:
            raise RankError(
                f"rank {rank} has other {what} than rank 0; all ranks need the same options, files, versions, number "
                "of threads and kind of processor"
            )


@contextmanager
def _all_there(size: int) -> Iterator[None]:
    """Say in a sentence that another rank has ended: torch says it in many ways, all of them a RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise RankError(LOST.format(size=size)) from error
