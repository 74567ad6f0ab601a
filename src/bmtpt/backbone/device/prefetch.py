"""What a pass reads beside the prompts, sent one pass ahead, so that no pass makes the device wait for the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

from bmtpt.backbone.passes.packing import Pass

Loaded = TypeVar("Loaded")


class Texts(NamedTuple):
    """The texts of a pass, on the device.

    Attributes:
        rows: Indices of the examples: with a list, torch would send them when it indexes, and wait.
        ids: Padded token ids.
        mask: 0 where a position is padded; None if every position counts.
    """

    rows: Int[Tensor, " n"]
    ids: Int[Tensor, "n L"]
    mask: Int[Tensor, "n S"] | None


class Labelled(NamedTuple):
    """The texts of a pass with their targets."""

    texts: Texts
    targets: Int[Tensor, "n 1 T"]


def one_ahead(
    parts: Sequence[Pass], load: Callable[[Pass], Loaded], one_pass: Callable[[Pass, Loaded], None]
) -> Callable[[Pass], None]:
    """Return a pass for `run_passes` that gets what `load` returns; each is loaded before the pass in front of it runs.

    A pass that is none of ``parts`` (half of one that memory was too small for) is loaded at its turn.
    """
    following = {id(part): later for part, later in pairwise(parts)}  # `parts` lives as long: no id comes twice
    ready: dict[int, Loaded] = {}

    def run(part: Pass) -> None:
        own = ready.pop(id(part)) if id(part) in ready else load(part)
        later = following.get(id(part))
        if later is not None:
            ready[id(later)] = load(later)
        one_pass(part, own)

    return run


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Send a tensor to a device without waiting for it."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
