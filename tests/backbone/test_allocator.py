"""`kept_memory`: on for the duration, off afterwards, whatever is nested or raised in between."""

from __future__ import annotations

import pytest

from bmtpt.backbone import allocator


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
    assert len(calls) == 2 * len(before) > 0
    assert {name for name, _ in calls[: len(before)]} == {name for name, _ in calls[len(before) :]}


def test_an_error_inside_restores_too(calls: list[tuple[int, int]]) -> None:
    def fail() -> None:
        with allocator.kept_memory():
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert dict(calls) == allocator._AFTERWARDS  # the last word on each option


def test_without_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(allocator, "_mallopt", allocator._mallopt.__wrapped__)
    with allocator.kept_memory():
        assert allocator._mallopt() is None
