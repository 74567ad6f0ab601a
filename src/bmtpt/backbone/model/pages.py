"""Weights that are mapped from their file, as transformers loads them on a CPU in the dtype of the file."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterable

from torch import Tensor

PAGE_OUT = 21
"""MADV_PAGEOUT of Linux 5.4 and later."""


def leave_memory(weights: Iterable[Tensor]) -> None:
    """Let weights on the CPU that are not needed for now leave memory, if they are mapped from a file.

    They are read again where they are used. Linux alone is asked, and what has no file stays.
    """
    if sys.platform != "linux":
        return
    system = ctypes.CDLL(None)
    for weight in weights:
        if weight.device.type == "cpu":
            start = -(-weight.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE  # whole pages of this weight alone
            size = (weight.data_ptr() + weight.nbytes - start) // mmap.PAGESIZE * mmap.PAGESIZE
            if size > 0:
                system.madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), PAGE_OUT)  # advice: it may be refused
