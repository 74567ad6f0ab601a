"""Group examples × prompts into forward passes with little padding.

All M copies of one example have the same length, so a pass over one example needs neither padding nor a mask. Short
examples are joined, at the price of padding them to a common length, only where that is cheaper than another pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

PASS_COST = 256
"""Fixed cost of one more pass, in tokens (measured on 2 cores: about 55 ms against 0.2 ms a token)."""

TOKEN_BUDGET = 4_096
"""Most padded tokens in one pass: it bounds the memory; on a CPU larger passes were hardly faster."""

CUDA_FACTOR = 4
"""How many times as many tokens a pass may have on a GPU (not measured yet)."""


def budget_on(device: torch.device, budget: int) -> int:
    """Return the most padded tokens of a pass on a device, given those on a CPU."""
    return budget * CUDA_FACTOR if device.type == "cuda" else budget


class Pass(NamedTuple):
    """What goes through the model together: some prompts, each with some examples.

    Attributes:
        prompts: Which of the M prompts, as a range.
        rows: Indices of the examples.
    """

    prompts: slice
    rows: list[int]

    def halves(self) -> list[Pass]:
        """Cut the examples in two, or the prompts if there is one example; nothing if there is one of each."""
        middle = len(self.rows) // 2
        if middle:
            return [Pass(self.prompts, self.rows[:middle]), Pass(self.prompts, self.rows[middle:])]
        start, stop = self.prompts.start, self.prompts.stop
        middle = (start + stop) // 2
        return [Pass(slice(start, middle), self.rows), Pass(slice(middle, stop), self.rows)] if middle > start else []


def passes(lengths: Sequence[int], copies: int, budget: int = TOKEN_BUDGET, pass_cost: int = PASS_COST) -> list[Pass]:
    """Split M prompts × N examples into passes within the budget.

    Prompts are parted only where all copies of one example exceed the budget. Arguments as for `micro_batches`.
    """
    found = []
    for rows in micro_batches(lengths, copies, budget, pass_cost):
        together = copies if len(rows) > 1 else max(1, min(copies, budget // lengths[rows[0]]))
        blocks = -(-copies // together)
        together = -(-copies // blocks)  # blocks of one size: 9 prompts of which 8 fit go as 5 + 4
        found += [Pass(slice(m, min(m + together, copies)), rows) for m in range(0, copies, together)]
    return found


def micro_batches(
    lengths: Sequence[int], copies: int, budget: int = TOKEN_BUDGET, pass_cost: int = PASS_COST
) -> list[list[int]]:
    """Split examples into runs so that ``runs · pass_cost + padded tokens`` is least.

    Examples are sorted by length and cut into consecutive runs (dynamic programming over the cut points).

    Args:
        lengths: Tokens of each example, prompt included.
        copies: M, the prompts that every example is paired with.
        budget: Most padded tokens in a run of two or more examples.
        pass_cost: Fixed cost of one more run, in tokens.

    Returns:
        Lists of example indices; every index is in exactly one of them.
    """
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    cost = [0] + [0] * len(order)
    cut = [0] * (len(order) + 1)
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        most = max(1, budget // (copies * longest)) if copies * longest else end
        cost[end], cut[end] = min(
            (cost[start] + pass_cost + (end - start) * copies * longest, start)
            for start in range(max(0, end - most), end)
        )
    return _runs(order, cut)


def _runs(order: list[int], cut: list[int]) -> list[list[int]]:
    runs: list[list[int]] = []
    end = len(order)
    while end:
        runs.append(order[cut[end] : end])
        end = cut[end]
    return runs[::-1]
