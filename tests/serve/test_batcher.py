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
        busy: Share of the time in which the model ran.
        refused: Requests.
    """

    rows: float
    busy: float
    refused: int


def ran(clients: int, seconds: float = 0.5, max_wait: float = 0.0) -> Ran:
    """Let clients ask on and on."""
    sizes, spent, refused = [], 0.0, 0

    def work(rows):
        nonlocal spent
        begun = time.monotonic()
        time.sleep(PASS + ROW * len(rows))
        spent += time.monotonic() - begun
        sizes.append(len(rows))
        return rows

    batcher = Batcher(work, max_batch=16, queue=64, max_wait=max_wait)

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

    begun = time.monotonic()
    end = begun + seconds
    asyncio.run(crowd())
    batcher.drain()
    return Ran(sum(sizes) / len(sizes), spent / (time.monotonic() - begun), refused)


def test_refusing_leaves_batches_full_and_the_model_busy():
    enough, too_many = ran(60), ran(200)
    assert enough.refused == 0
    assert too_many.refused > 100
    assert too_many.rows > 0.9 * 16
    assert too_many.busy > 0.7


def test_a_busy_model_does_not_wait_for_company():
    assert ran(60, max_wait=0.05).busy > 0.7


@pytest.mark.parametrize("rows", [1, 100])
def test_the_time_to_ask_again_follows_from_the_measured_speed(rows):
    batcher = Batcher(lambda rows: time.sleep(0.02 * len(rows)) or rows, max_batch=1, queue=150)

    async def ask():
        await asyncio.gather(*(batcher.answer([1], 10) for _ in range(5)))  # 50 rows a second
        waiting = [asyncio.create_task(batcher.answer([1] * rows, 10)) for _ in range(150 // rows)]
        await asyncio.sleep(0)
        with pytest.raises(Busy) as caught:
            await batcher.answer([1] * 60, 10)
        for each in waiting:
            each.cancel()
        return caught.value.retry_after

    assert asyncio.run(ask()) == pytest.approx((150 // rows) * rows / 50, rel=0.5)
    batcher.drain()
