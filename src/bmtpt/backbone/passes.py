"""Group examples × prompts into forward passes with little padding, and run them in the memory that there is.

All M copies of one example have the same length, so a pass over one example needs neither padding nor a mask. Short
examples are joined, at the price of padding them to a common length, only where that is cheaper than another pass.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from bmtpt.backbone.execution import TOKEN_BUDGET
from bmtpt.errors import is_out_of_memory

PASS_COST = 256
"""Fixed cost of one more pass, in tokens (measured on 2 cores: about 55 ms against 0.2 ms a token)."""

CUDA_FACTOR = 4
"""How many times as many tokens a pass may have on a GPU (not measured yet)."""

IGNORED = -100
"""Target id that counts for nothing (padding)."""

Kind = TypeVar("Kind", bound=Hashable)
Found = TypeVar("Found")


class Pass(NamedTuple):
    """What goes through the model together: some prompts, each with some examples.

    Attributes:
        prompts: Which of the M prompts, as a range.
        rows: Indices of the examples.
        tokens: What it costs, padding included.
    """

    prompts: slice
    rows: list[int]
    tokens: int = 0

    def halves(self) -> list[Pass]:
        """Cut the examples in two, or the prompts if there is one example; nothing if there is one of each."""
        middle, half = len(self.rows) // 2, self.tokens // 2
        if middle:
            return [Pass(self.prompts, self.rows[:middle], half), Pass(self.prompts, self.rows[middle:], half)]
        start, stop = self.prompts.start, self.prompts.stop
        middle = (start + stop) // 2
        if middle == start:
            return []
        return [Pass(slice(start, middle), self.rows, half), Pass(slice(middle, stop), self.rows, half)]


def passes(lengths: Sequence[int], copies: int, budget: int = TOKEN_BUDGET, pass_cost: int = PASS_COST) -> list[Pass]:
    """Split M prompts × N examples into passes within the budget.

    Prompts are parted only where all copies of one example exceed the budget. Arguments as for `micro_batches`.
    """
    found = []
    for rows in micro_batches(lengths, copies, budget, pass_cost):
        together = copies if len(rows) > 1 else max(1, min(copies, budget // lengths[rows[0]]))
        blocks = -(-copies // together)
        together = -(-copies // blocks)  # blocks of one size: 9 prompts of which 8 fit go as 5 + 4
        longest = max(lengths[i] for i in rows)
        for m in range(0, copies, together):
            prompts = range(m, min(m + together, copies))
            found.append(Pass(slice(m, prompts.stop), rows, len(prompts) * len(rows) * longest))
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
    runs: list[list[int]] = []
    end = len(order)
    while end:
        runs.append(order[cut[end] : end])
        end = cut[end]
    return runs[::-1]


def grouped(kinds: Sequence[Kind | None]) -> dict[Kind, list[int]]:
    """Return the positions of each kind, in order; those of None are left out."""
    groups: dict[Kind, list[int]] = {}
    for position, kind in enumerate(kinds):
        if kind is not None:
            groups.setdefault(kind, []).append(position)
    return groups


def run_passes(
    parts: Sequence[Pass], one_pass: Callable[[Pass], Found], device: torch.device, *, halve: bool = True
) -> Iterator[tuple[Pass, Found]]:
    """Run passes in order; yield each with what it found.

    Args:
        one_pass: If it fails midway, it must have changed nothing that a second run of the same examples would add to.
        device: Where they run.
        halve: Whether one that memory is too small for is cut in two and tried again: its halves are then yielded.
    """
    waiting = list(parts)[::-1]
    while waiting:
        part = waiting.pop()
        if found := _fitting(one_pass, part, device, halve=halve):
            yield part, found[0]
            continue
        if device.type == "cuda":
            torch.cuda.empty_cache()
        waiting += part.halves()[::-1]
        prompts = part.prompts.stop - part.prompts.start
        logging.getLogger("bmtpt").info(
            "memory is too small for %d examples × %d prompts: halved", len(part.rows), prompts
        )


def _fitting(
    one_pass: Callable[[Pass], Found], part: Pass, device: torch.device, *, halve: bool
) -> tuple[Found] | tuple[()]:
    """Run a pass; return what it found, or nothing if memory ran out and the pass can be halved."""
    try:
        with sound_attention(device):
            return (one_pass(part),)
    except (MemoryError, RuntimeError) as error:
        if not halve or not is_out_of_memory(error) or not part.halves():
            raise
        return ()  # leaving this function lets go of the pass's tensors, which the traceback holds


def sound_attention(device: torch.device) -> AbstractContextManager[None]:
    """Return a context without cuDNN's attention, whose backward pass with a mask has given NaN (pytorch 196678)."""
    kernels = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return sdpa_kernel(kernels) if device.type == "cuda" else nullcontext()


def at_least_fp32(logits: Tensor) -> Tensor:
    """bfloat16 keeps 8 bits, too few for a log-probability."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def summed_nll(logits: Float[Tensor, "R T V"], labels: Int[Tensor, "R T"]) -> Float[Tensor, " R"]:
    """Return each row's cross-entropy, summed over its labels, in fp32; IGNORED labels count for nothing."""
    loss = F.cross_entropy(at_least_fp32(logits).transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
    return loss.sum(dim=1)
