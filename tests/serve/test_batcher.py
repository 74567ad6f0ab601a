"""Under overload, batches stay full: what the server gets done does not depend on how many it must refuse."""

from __future__ import annotations

import asyncio
import time
from typing import NamedTuple

import pytest

from bmtpt.serve.batcher import Batcher
from bmtpt.serve.errors import Busy

PASS, ROW = 0.01, 0.0005
"""Seconds of a pass, and of each row in it."""


class Ran(NamedTuple):
    """What happened.

    Attributes:
        rows: Mean of a batch.
        refused: Requests.
    """

    rows: float
    refused: int


def ran(clients: int, seconds: float = 0.5) -> Ran:
    """Let clients ask on and on."""
    sizes, refused = [], 0

    def work(rows):
        time.sleep(PASS + ROW * len(rows))
        sizes.append(len(rows))
        return rows

    batcher = Batcher(work, max_batch=16, queue=64)

    async def client():
        nonlocal refused
        while time.monotonic() < end:
            try:
                assert await batcher.answer([1], 10) == [1]
            except Busy:
                refused += 1
                await asyncio.sleep(0.001)  # an impatient client: it does not heed Retry-After

    async def crowd():
        await asyncio.gather(*(client() for _ in range(clients)))

    end = time.monotonic() + seconds
    asyncio.run(crowd())
    batcher.drain()
    return Ran(sum(sizes) / len(sizes), refused)


def test_refusing_leaves_batches_full():
    enough, too_many = ran(60), ran(200)
    assert enough.refused == 0
    assert too_many.refused > 100
    assert too_many.rows > 0.9 * 16


def test_a_busy_model_does_not_wait_for_company():
    batcher = Batcher(lambda rows: rows, max_batch=16, queue=64, max_wait=5)
    begun = time.monotonic()
    assert asyncio.run(batcher.answer([1] * 64, 10)) == [1] * 64
    assert time.monotonic() - begun < 4
    batcher.drain()


@pytest.mark.parametrize("rows", [1, 100])
def test_the_time_to_ask_again_follows_from_the_measured_speed(rows):
    took = []

    def work(batch):
        begun = time.monotonic()
        time.sleep(0.02)
        took.append(time.monotonic() - begun)
        return batch

    batcher = Batcher(work, max_batch=1, queue=150)

    async def ask():
        await asyncio.gather(*(batcher.answer([1], 10) for _ in range(5)))
        slowest, fastest = max(took), min(took)
        waiting = [asyncio.create_task(batcher.answer([1] * rows, 10)) for _ in range(150 // rows)]
        await asyncio.sleep(0)
        with pytest.raises(Busy) as caught:
            await batcher.answer([1] * 60, 10)
        for each in waiting:
            each.cancel()
        return caught.value.retry_after / (150 // rows * rows), fastest, slowest

    a_row, fastest, slowest = asyncio.run(ask())
    assert 0.7 * fastest < a_row < 1.3 * slowest
    batcher.drain()


@pytest.mark.parametrize("fault", [SystemExit(3), MemoryError("no memory")])
def test_a_fault_of_the_model_or_of_what_watches_it_is_told_and_the_next_row_is_answered(fault):
    faults = [fault]

    def work(rows):
        if faults:
            raise faults.pop()
        return rows

    batcher = Batcher(work)
    with pytest.raises((RuntimeError, MemoryError), match=str(fault)):
        asyncio.run(batcher.answer([1], 10))
    batcher.observe = lambda rows, seconds: faults.pop()  # as broken as a metric can be
    with pytest.raises(IndexError):
        asyncio.run(batcher.answer([2], 10))
    batcher.observe = lambda rows, seconds: None
    assert batcher.alive
    assert asyncio.run(batcher.answer([3], 10)) == [3]
    batcher.drain()
    assert not batcher.alive
