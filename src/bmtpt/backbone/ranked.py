"""Share the passes of one call among the ranks of a run, and put together what they find.

Which passes there are depends on the call alone, not on how many ranks share them. What they find, and by default the
gradients too, is put together in the order of the passes, so that any number of ranks ends in the bits of one process.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from bmtpt.backbone.passes import PASS_COST, Pass, run_passes
from bmtpt.parallel.ranks import Ranks, require_equal

Found = TypeVar("Found")


def shared_out(costs: Sequence[int], size: int) -> list[int]:
    """Return the rank of each pass: the costliest first, each to the rank that has least to do.

    >>> shared_out([9, 4, 5, 1], 2)
    [0, 1, 1, 0]
    """
    loads, owners = [0] * size, [0] * len(costs)
    for i in sorted(range(len(costs)), key=lambda i: -costs[i]):
        owners[i] = loads.index(min(loads))
        loads[owners[i]] += costs[i]
    return owners


def run_shared(
    parts: Sequence[Pass],
    one_pass: Callable[[Pass, tuple[Tensor, ...]], Found],
    sums: tuple[Tensor, ...],
    ranks: Ranks,
    device: torch.device,
    *,
    disjoint: bool,
) -> Generator[tuple[Pass, Found], None, bool]:
    """Run this rank's passes; yield those of all ranks, in order, with what they found.

    Args:
        one_pass: Adds to the tensors that it is given, shaped as ``sums``; returns tensors, tuples of them, or texts.
        sums: Zeros that receive the sum over all passes before the first of them is yielded.
        disjoint: No two passes add to the same number, so that the order of the sum makes no difference.

    Returns:
        Whether memory was too small for a pass on any rank.

    Raises:
        RankError: Another rank has ended, or was asked something else.
    """
    if sums and len(parts) < ranks.size:
        logging.getLogger("bmtpt").info(
            "steps have fewer passes than there are ranks, so some ranks wait: a smaller token_budget makes more passes"
        )
    owners = shared_out([PASS_COST + part.tokens for part in parts], ranks.size)
    mine = [i for i, owner in enumerate(owners) if owner == ranks.rank]
    in_order = ranks.reduce == "exact" and not disjoint
    width, dtype = sum(each.numel() for each in sums), sums[0].dtype if sums else None
    rows = torch.zeros(len(mine) if in_order else 1, width, dtype=dtype, device=device)

    def run(part: Pass, into: tuple[Tensor, ...]) -> list[tuple[Pass, Found]]:
        return list(run_passes([part], lambda part: one_pass(part, into), device, halve=not ranks.lockstep))

    found = {i: run(parts[i], _shaped(rows[at if in_order else 0], sums)) for at, i in enumerate(mine)}
    if ranks.lockstep:  # the others wait for this rank until it has run as many passes as any
        for _ in range(max(map(owners.count, owners)) - len(mine)):
            run(min(parts, key=lambda part: part.tokens), tuple(map(torch.zeros_like, sums)))
    asked = zlib.crc32(repr(parts).encode())
    digests, shares = zip(*ranks.gathered((asked, _moved(found, torch.device("cpu")))), strict=True)
    require_equal(digests, "passes in a step")
    if sums:
        total = ranks.added(rows, owners) if in_order else ranks.summed(rows[0])
        for whole, own in zip(sums, _shaped(total, sums), strict=True):
            whole.copy_(own)
    for i, owner in enumerate(owners):
        yield from _moved(shares[owner][i], device)
    return any(len(each) > 1 for share in shares for each in share.values())


def _shaped(row: Float[Tensor, " W"], like: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return parts of a row as tensors of these shapes."""
    parts = torch.split(row, [each.numel() for each in like])
    return tuple(part.view_as(each) for part, each in zip(parts, like, strict=True))


def _moved(found: Any, device: torch.device) -> Any:
    """Return the same with its tensors on a device."""
    if isinstance(found, Tensor):
        return found.to(device)
    if isinstance(found, dict):
        return {key: _moved(each, device) for key, each in found.items()}
    if type(found) in (list, tuple):
        return type(found)(_moved(each, device) for each in found)
    return found
