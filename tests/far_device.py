"""A second device without a GPU: CPU numbers behind torch's PrivateUse1 key, where mixing it with the CPU fails.

What CUDA refuses, this refuses: an operation on tensors of two devices (zero-dimensional CPU tensors may join in), and
a `.numpy()` without `.cpu()`. Importing this changes the process for good, so it belongs in a process of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("far")
DEVICE = torch.device("far:0")


class Far(torch.Tensor):
    """A tensor that says it is on `DEVICE`; ``near`` holds its numbers."""

    near: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, near: torch.Tensor) -> Far:
        shape = {"strides": near.stride(), "storage_offset": near.storage_offset(), "dtype": near.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, near.size(), **shape, device=DEVICE)
        made.near = near
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(function, args, kwargs or {})

    def tolist(self) -> Any:
        return self.near.tolist()


class Factories(TorchDispatchMode):
    """Catches what makes a tensor from nothing, which no `Far` argument announces."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(function, args, kwargs or {})


def _call(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
    name, target = function.__name__, kwargs.get("device")
    copies = name.startswith(("_to_copy", "copy_"))
    if not copies and any(map(_is_far, tensors)) and any(each.dim() for each in tensors if not _is_far(each)):
        raise RuntimeError(f"{function}: tensors on two devices")
    joins = [args[0]] if name.startswith("copy_") else tensors
    stays_far = torch.device(target).type == DEVICE.type if target is not None else any(map(_is_far, joins))
    if target is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    found = function(*tree_map(_near, args), **tree_map(_near, kwargs))
    known = {id(_near(each)): each for each in tensors}

    def labelled(each: Any) -> Any:
        if not isinstance(each, torch.Tensor):
            return each
        return known.get(id(each)) if id(each) in known else Far(each) if stays_far else each

    return tree_map(labelled, found)


def _is_far(each: torch.Tensor) -> bool:
    return isinstance(each, Far)


def _near(each: Any) -> Any:
    return each.near if isinstance(each, Far) else each


def _copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    _near(target).copy_(_near(source))
    return target


_kernels = torch.library.Library("aten", "IMPL")
_kernels.impl("empty.memory_format", lambda size, **k: Far(torch.empty(size, dtype=k.get("dtype"))), "PrivateUse1")
_kernels.impl(
    "empty_strided",
    lambda size, stride, **k: Far(torch.empty_strided(size, stride, dtype=k.get("dtype"))),
    "PrivateUse1",
)
_kernels.impl("_copy_from", _copy_from, "PrivateUse1")
