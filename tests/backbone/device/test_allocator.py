"""`kept_memory`: on for the duration, off afterwards, whatever is nested or raised in between."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys

import pytest

from bmtpt.backbone.device import allocator

needs_glibc = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallinfo2"),
    reason="this C library does not count its mmaps",
)
SIZES = (1, 8, 30, 100)
"""MiB. glibc's own rule never moves its thresholds beyond 32 MiB for mmaps and 64 MiB for what it keeps."""

PROGRAM = f"""
import ctypes, json, sys
from bmtpt.backbone.device.allocator import kept_memory

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
                "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]

libc.mallinfo2.restype = Info

def mapped(mib):
    before = libc.mallinfo2().hblks
    block = libc.malloc(mib * 2**20)
    found = libc.mallinfo2().hblks - before
    libc.free(block)
    return found

def each():
    return [mapped(mib) for mib in {SIZES}]

def kept():
    with kept_memory():
        return each()

print(json.dumps({{
    "fresh": lambda: [mapped(1)],
    "large one freed": lambda: [mapped(31), each()],
    "kept": lambda: [kept(), each(), kept(), each()],
}}[sys.argv[1]]()))
"""


def mmaps(what: str, **environment: str) -> list[object]:
    """Count, in a process of its own, the mmaps that blocks of `SIZES` take."""
    command = [sys.executable, "-c", PROGRAM, what]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **environment})
    return list(json.loads(done.stdout))


@needs_glibc
def test_afterwards_blocks_are_allocated_as_in_a_process_that_has_freed_a_large_one() -> None:
    assert mmaps("fresh") == [1]
    usual = [0, 0, 0, 1]
    assert mmaps("large one freed") == [1, usual]
    assert mmaps("kept") == [[0, 0, 0, 0], usual, [0, 0, 0, 0], usual]


@needs_glibc
@pytest.mark.parametrize(
    "environment",
    [{"MALLOC_MMAP_THRESHOLD_": "4194304"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=4194304"}],
    ids=lambda environment: next(iter(environment)),
)
def test_an_allocator_that_the_user_has_set_is_left_alone(environment: dict[str, str]) -> None:
    theirs = [0, 1, 1, 1]
    assert mmaps("kept", **environment) == [theirs] * 4


@pytest.mark.parametrize("name", allocator._OF_THE_USER)
def test_each_of_the_users_settings_is_named_as_the_reason(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setenv(name, "1")
    assert allocator.not_kept.__wrapped__() == f"you have set {name}"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(allocator, "_mallopt", lambda: lambda name, value: seen.append((name, value)))
    return seen


def test_only_the_outermost_use_sets_and_restores(calls: list[tuple[int, int]]) -> None:
    with allocator.kept_memory():
        before = list(calls)
        with allocator.kept_memory():
            assert calls == before
        assert calls == before
    assert dict(before) == allocator._WHILE_KEPT
    assert dict(calls[len(before) :]) == allocator._AFTERWARDS
    assert set(allocator._WHILE_KEPT) <= set(allocator._AFTERWARDS)


def test_an_error_inside_restores_too(calls: list[tuple[int, int]]) -> None:
    def fail() -> None:
        with allocator.kept_memory():
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert dict(calls) == allocator._AFTERWARDS  # the last word on each option


def test_without_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(allocator, "not_kept", allocator.not_kept.__wrapped__)
    monkeypatch.setattr(allocator, "_mallopt", allocator._mallopt.__wrapped__)
    with allocator.kept_memory():
        assert allocator._mallopt() is None
