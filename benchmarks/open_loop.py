"""An open-loop HTTP client: requests leave at times fixed beforehand, whatever the server does.

A closed loop waits for a slow server before it asks again, so that the requests that would have suffered most are never
sent. Here latency counts from the planned time. Each request has a connection of its own, as those of strangers have;
plain sockets, because on two cores a client of a millisecond a request would slow the server that it measures.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Address = tuple[str, int]

LOST = 0
"""Status of a request that got no reply."""
PATIENCE = 60.0
"""Seconds after which a reply counts as lost."""
MOST = 200_000
"""Requests of a schedule, at most."""
WARM_UP = 0.2
"""Share of a schedule that does not count for throughput: the queue fills first."""


class Reply(NamedTuple):
    """What came of a request.

    Attributes:
        row: Which of the rows was asked.
        planned, sent, done: Seconds since the schedule began.
    """

    row: int
    planned: float
    sent: float
    done: float
    status: int
    body: bytes


def poisson(rate: float, seconds: float, seed: int) -> list[float]:
    """Draw the times of independent arrivals, so many a second on average."""
    rng = np.random.default_rng(seed)
    count = min(MOST, int(rate * seconds + 6 * (rate * seconds) ** 0.5) + 10)
    times = rng.exponential(1 / rate, count).cumsum()
    return times[times < seconds].tolist()


def request(method: str, path: str, body: object, identity: str = "", *, keep: bool = False) -> bytes:
    """Return the bytes of a request with a JSON body, after which the connection is closed unless it is to be kept."""
    content = json.dumps(body).encode()
    named = f"x-request-id: {identity}\r\n" if identity else ""
    closing = "" if keep else "connection: close\r\n"
    head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\n{closing}content-type: application/json\r\n"
    return f"{head}{named}content-length: {len(content)}\r\n\r\n".encode() + content


def exchange(connection: socket.socket, message: bytes) -> bytes:
    """Send a request on a connection that is kept, and return the body of the reply."""
    connection.sendall(message)
    reply = connection.recv(2**16)
    while b"\r\n\r\n" not in reply:
        reply += connection.recv(2**16)
    head, _, body = reply.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].split(None, 1)[0])
    while len(body) < length:
        body += connection.recv(2**16)
    return body


async def ask(address: Address, message: bytes) -> tuple[int, bytes]:
    """Send a request and return status and body; status `LOST` if there is no whole reply."""
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection(*address)
            try:
                writer.write(message)
                head, _, body = (await reader.read()).partition(b"\r\n\r\n")  # the server closes
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return LOST, b""
    said = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
    return (int(head[9:12]), body) if said and len(body) == int(said) else (LOST, b"")


async def fire(
    address: Address,
    messages: Sequence[bytes],
    times: Sequence[float],
    rows: Sequence[int] | None = None,
    enough: asyncio.Event | None = None,
    start: float | None = None,
) -> list[Reply]:
    """Send requests at their times and return what came of them, when all have ended.

    Args:
        messages: One for each row; row by row over and over, unless `rows` says which.
        enough: Once it is set, nothing more is sent.
        start: When the schedule begins, of `time.perf_counter`; None is now.
    """
    start, under_way = time.perf_counter() if start is None else start, []

    async def one(row: int, message: bytes, planned: float) -> Reply:
        sent = time.perf_counter() - start
        status, body = await ask(address, message)
        return Reply(row, planned, sent, time.perf_counter() - start, status, body)

    for number, planned in enumerate(times):
        await asyncio.sleep(max(0.0, start + planned - time.perf_counter()))
        if enough and enough.is_set():
            break
        row = rows[number] if rows else number % len(messages)
        under_way.append(asyncio.create_task(one(row, messages[row], planned)))
    return list(await asyncio.gather(*under_way))


async def saturate(address: Address, messages: Sequence[bytes], waiting: int, seconds: float) -> list[Reply]:
    """Keep so many requests waiting: a closed loop, which tells what the server can do and nothing of latency."""
    start, replies = time.perf_counter(), []

    async def client(number: int) -> None:
        while (sent := time.perf_counter() - start) < seconds:
            row = number % len(messages)
            status, body = await ask(address, messages[row])
            replies.append(Reply(row, sent, sent, time.perf_counter() - start, status, body))
            number += waiting

    await asyncio.gather(*(client(number) for number in range(waiting)))
    return replies


def throughput(replies: Sequence[Reply], seconds: float) -> float:
    """Return answers a second, from the last one of the warm-up to the last one of the schedule.

    Answers of a batch come together: between two of them there are whole batches, whatever the window's edges cut.
    """
    done = np.sort([reply.done for reply in replies if reply.status == 200])
    inside = done[done <= seconds]
    first = int(np.searchsorted(inside, WARM_UP * seconds, side="right"))
    if first == len(inside):  # too short a schedule: all that was answered, until it was
        return float(len(done) / done[-1]) if len(done) else 0.0
    return float((len(inside) - first) / (inside[-1] - (inside[first - 1] if first else 0.0)))


def figures(replies: Sequence[Reply], seconds: float) -> dict[str, object]:
    """Return what a schedule's line says: counts, answers a second, latencies of what was answered."""
    statuses = Counter(reply.status for reply in replies)
    latencies = [1000 * (reply.done - reply.planned) for reply in replies if reply.status == 200]
    late = [1000 * (reply.sent - reply.planned) for reply in replies]
    return {
        "sent": len(replies),
        "answered": statuses[200],
        "refused": statuses[429],
        "lost": statuses[LOST],
        "other": {str(status): count for status, count in statuses.items() if status not in (200, 429, LOST)},
        "answered_per_second": round(throughput(replies, seconds), 2),
        **{f"p{share}_ms": percentile(latencies, share) for share in (50, 95, 99)},
        "refusal_p99_ms": percentile([1000 * (r.done - r.sent) for r in replies if r.status == 429], 99),
        "client_late_p99_ms": percentile(late, 99),
    }


def percentile(values: Sequence[float], share: float) -> float | None:
    """Return a percentile, None of nothing."""
    return round(float(np.percentile(values, share)), 2) if len(values) else None
