"""Spread a model's weights over the ranks of a run, block by block (torch's FSDP2), where one device cannot hold them.

A block's weights are gathered while it runs and let go after it. Embeddings and head stay whole on every rank: they may
be tied, and prompts are joined with what the embeddings return.
"""

from __future__ import annotations

from typing import Any

import torch

from bmtpt.errors import BackboneError
from bmtpt.parallel.ranks import Ranks


def spread_weights(model: Any, name: str, ranks: Ranks, device: torch.device) -> None:
    """Leave on each rank its share of every block's weights, and the rest of the model, on ``device``.

    Raises:
        BackboneError: The model says nothing of blocks, or its weights are quantised.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    kinds = set(getattr(model, "_no_split_modules", None) or ())
    blocks = [module for module in model.modules() if type(module).__name__ in kinds]
    if not blocks or not all(weight.is_floating_point() for weight in model.parameters()):
        why = "its weights are quantised" if blocks else "it does not say which of its layers are blocks"
        raise BackboneError(f"the weights of backbone '{name}' cannot be spread over ranks: {why}; leave it out")
    mesh = init_device_mesh(device.type, (ranks.size,))
    for block in blocks:
        # Each is the root of itself, and a root would by default keep its weights gathered after a forward pass.
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
        _keep_order_of_sums(block)
    model.to(device)


def _keep_order_of_sums(block: Any) -> None:
    """Let FSDP see a block's first input alone, so that gradients are added up in the order that they have without it.

    It makes each input that it sees a node of the graph. What every block of a decoder reads from the encoder would
    then be summed block by block, and no longer use by use.
    """
    kept: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def hide(_: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        kept.append((inputs[1:], named))
        return inputs[:1], {}

    def show(_: Any, inputs: tuple[Any, ...], __: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        rest, named = kept.pop()
        return (*inputs, *rest), named

    block.register_forward_pre_hook(hide, prepend=True, with_kwargs=True)
    block.register_forward_pre_hook(show, with_kwargs=True)
