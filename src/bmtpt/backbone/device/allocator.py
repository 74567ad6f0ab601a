"""Keep freed memory for the next pass, instead of handing it to the kernel and faulting it in again page by page."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

# From malloc.h. While they last: nothing is allocated by mmap, and nothing is trimmed from the heap.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_WHILE_KEPT = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1}
# mallopt can set but not read, and glibc no longer moves its thresholds once anybody has set one. So "before" is where
# they stand in any process that has freed one large tensor: 32 MiB, the most the mmap threshold moves to, and twice it.
_AFTERWARDS = {_MMAP_MAX: 65_536, _MMAP_THRESHOLD: 32 * 2**20, _TRIM_THRESHOLD: 64 * 2**20}

_OF_THE_USER = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")

_depth = 0


@contextmanager
def kept_memory() -> Iterator[None]:
    """Keep freed blocks in the process for the duration (what it is worth: `memory_given_back` in docs/performance.md).

    Does nothing where `not_kept` says why. May be nested: what is outermost decides. What remains changed: glibc's
    thresholds stay for good where its own rule moves them once a block of nearly 32 MiB is freed.
    """
    global _depth
    _depth += 1
    try:
        if _depth == 1:
            _set(_WHILE_KEPT)
        yield
    finally:
        _depth -= 1
        if _depth == 0:
            _set(_AFTERWARDS)


@cache
def not_kept() -> str | None:
    """Return why `kept_memory` leaves the allocator alone, or None if it does not."""
    if platform.libc_ver()[0] != "glibc":
        return "the C library is not glibc"
    if found := [name for name in _OF_THE_USER if name in os.environ]:
        return f"you have set {found[0]}"
    return "you have set GLIBC_TUNABLES" if "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", "") else None


def _set(options: dict[int, int]) -> None:
    mallopt = _mallopt()
    if mallopt:
        for name, value in options.items():
            mallopt(name, value)


@cache
def _mallopt() -> Callable[[int, int], int] | None:
    return None if not_kept() else ctypes.CDLL(None).mallopt
