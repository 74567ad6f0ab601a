"""How the packed engine uses a device: which functions, how rows are padded, and what is kept in memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from bmtpt.backbone.execution import Memory
from bmtpt.backbone.model.frozen import FrozenModel
from bmtpt.backbone.passes.packing import PASS_COST, TOKEN_BUDGET

FREE_SHARE = 0.4
"""Share of the free device memory that a pass's saved activations may take; the rest is for what lives shortly."""

LONGEST_BUDGET = 2**18
"""Most tokens in a pass on any device: [tokens, 2·f] then stays below 2³¹ elements, where 32-bit indices end."""


@dataclass(frozen=True)
class Plan:
    """How the packed engine uses a device. The defaults are those of a CPU.

    Attributes:
        layers: ``written`` (`layers.py`, made for CPUs) or ``autograd`` (`autograd_layers.py`, made for GPUs).
        memory: ``keep`` what the backward pass needs, or keep each layer's input only and ``recompute`` the rest:
            the same gradient from less memory in more time.
        length_multiple: Rows are padded to a multiple of this: few shapes, and masks aligned for fused kernels.
        label_multiple: Targets likewise.
        token_budget: Most padded tokens in a pass; None is `packing.TOKEN_BUDGET`, on CUDA `budget_for`.
        pass_cost: Fixed cost of one more pass, in tokens.
        attention: Kernels of the ``autograd`` layers' self-attention on CUDA: ``efficient`` is torch's memory-efficient
            one, ``any`` whichever torch prefers.
        graphs: Replay passes of the ``autograd`` layers as CUDA graphs (`graphs.py`).
        keep_freed: Keep freed memory from pass to pass while a call runs (`allocator.py`); CPU only.
        matmul: fp32 products on a CPU: ``auto`` takes oneDNN where it multiplies in true fp32, ``rounded`` also where
            it rounds to bfloat16 (errors near 2e-3), ``plain`` leaves torch's setting as it is.
    """

    layers: Literal["written", "autograd"] = "written"
    memory: Memory = "keep"
    length_multiple: int = 1
    label_multiple: int = 1
    token_budget: int | None = None
    pass_cost: int = PASS_COST
    attention: Literal["efficient", "any"] = "any"
    graphs: bool = False
    keep_freed: bool = True
    matmul: Literal["auto", "rounded", "plain"] = "auto"


# The pass costs are reckoned, not measured, for T5-base at 0.8 µs a token: some 2,500 kernels cost 4 µs each where the
# host launches them one by one, and about 0.5 µs each between the nodes of a graph. Too high a cost pads the gain away:
# at B = 1, 12,000 makes 1.89 padded tokens of a useful one, 1,500 makes 1.26.
# Left to itself, torch prefers cuDNN's attention on the newest GPUs, whose backward pass with a mask has given NaN
# (pytorch issue 196678); nobody has measured here whether it would be faster.
ACCELERATOR = Plan(layers="autograd", length_multiple=64, label_multiple=8, pass_cost=12_000, attention="efficient")
CUDA = replace(ACCELERATOR, graphs=True, pass_cost=1_500)


def plan_for(device: torch.device) -> Plan:
    """Return the default plan for a device."""
    return {"cpu": Plan(), "cuda": CUDA}.get(device.type, ACCELERATOR)


@dataclass
class DeviceBudget:
    """Most padded tokens of a pass on a device, learned from what memory was too small for."""

    tokens: int

    def halve(self) -> None:
        """Take half from now on, or every later step would run out of memory again."""
        self.tokens = max(TOKEN_BUDGET, self.tokens // 2)


def budget_for(backbone: FrozenModel, plan: Plan) -> DeviceBudget | None:
    """Return how many tokens of a pass fit into the free memory of a CUDA device, as a power of two; else None.

    A power of two, so that a little more or less free memory cuts a run's passes as before.
    """
    if backbone.device.type != "cuda":
        return None
    free = torch.cuda.mem_get_info(backbone.device)[0]
    idle = torch.cuda.memory_reserved(backbone.device) - torch.cuda.memory_allocated(backbone.device)
    tokens = int(FREE_SHARE * (free + idle) / bytes_per_token(backbone.model.config, backbone.dtype, plan.memory))
    return DeviceBudget(max(TOKEN_BUDGET, min(LONGEST_BUDGET, 1 << (max(tokens, 1).bit_length() - 1))))


def bytes_per_token(config: Any, dtype: torch.dtype, memory: Memory) -> int:
    """Return what one encoder token leaves in memory for the backward pass, bias of a 512-token row included."""
    D, f, a = config.d_model, config.d_ff, config.num_heads * config.d_kv
    inside = 2 * D + 4 * a + 3 * f  # both norms' inputs, q k v and what was mixed, gate linear and their product
    kept = config.num_layers * (D if memory == "recompute" else inside)
    return int((kept + inside + 512 * config.num_heads) * dtype.itemsize)
