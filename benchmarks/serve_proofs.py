"""The parts of `serve.py` that must come out right whatever the speed: overload, swaps and the end under load."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bmtpt.artifacts.saved import Prompt
from open_loop import LOST, Address, Reply, ask, figures, fire, percentile, poisson, request
from serve_bench import Bench, Line, exactness
from served import PREDICT, Server, ServerProcess, Traffic, difference, offline, prompt_of

VERSIONS = 8
"""Prompts that take each other's place."""
MARGIN = 0.25
"""Seconds before SIGTERM until which a request that was sent must have been taken."""


def sustained(bench: Bench) -> Iterator[Line]:
    """Twice the capacity for minutes: what is answered, and whether memory grows."""
    traffic, minutes = bench.traffic(bench.options.compared), bench.options.minutes
    with bench.server(traffic) as server:
        capacity = bench.capacity(server, traffic)
        times = poisson(2 * capacity, 60 * minutes, seed=0)
        replies, resident = asyncio.run(_watched(server, traffic, times, 60 * minutes / 40))
    quarter = max(1, len(resident) // 4)
    yield {
        "tasks": traffic.tasks,
        "minutes": minutes,
        "capacity": round(capacity, 2),
        "rate": round(2 * capacity, 2),
        **figures(replies, 60 * minutes),
        **exactness(traffic.differences(replies)),
        "resident_mib": resident[:: max(1, len(resident) // 10)],
        "growth_mib": round(max(resident[-quarter:]) - max(resident[quarter : 2 * quarter] or resident), 1),
    }


async def _watched(
    server: Server, traffic: Traffic, times: Sequence[float], every: float
) -> tuple[list[Reply], list[float]]:
    """Send requests, and look at the server's memory meanwhile."""
    asking = asyncio.create_task(fire(server.address, traffic.messages, times))
    resident = []
    while not asking.done():
        resident.append(round(await asyncio.to_thread(lambda: server.resident), 1))
        await asyncio.wait([asking], timeout=every)
    return await asking, resident


# Swaps


def swaps(bench: Bench) -> Iterator[Line]:
    """Replace one prompt again and again while rows are asked; each answer must be of a prompt of its time."""
    own = bench.options
    traffic = bench.traffic(own.compared)
    versions = [prompt_of(bench.backbone, 0, own.prompt_tokens, seed) for seed in range(VERSIONS)]
    truth = [_answers(bench, traffic, version) for version in versions]
    uploads = [_upload(version, bench.root / f"version{number}") for number, version in enumerate(versions)]
    with bench.server(traffic) as server:
        capacity = bench.capacity(server, traffic)
        times = poisson(0.5 * capacity, own.seconds + own.swaps, seed=0)
        replies, changes = asyncio.run(_with_swaps(server.address, traffic, times, uploads, own.swaps))
    answered = [reply for reply in replies if reply.status == 200]
    possible = [versions_of(changes, reply) for reply in answered]
    yield {
        "tasks": traffic.tasks,
        "swaps": len(changes),
        "capacity": round(capacity, 2),
        "of_the_swapped_prompt": sum(traffic.rows[reply.row][0] == "task0" for reply in answered),
        "versions_possible": round(statistics.mean(map(len, possible)), 2),
        "swap_p50_ms": percentile([1000 * (done - begun) for begun, done in changes], 50),
        **figures(replies, changes[-1][1]),
        **exactness(
            [
                min(difference(reply.body, truth[version % VERSIONS][reply.row]) for version in each)
                for reply, each in zip(answered, possible, strict=True)
            ]
        ),
    }


def _answers(bench: Bench, traffic: Traffic, version: Prompt) -> list[Mapping[str, float]]:
    """Return the offline answers to all rows with a version of the swapped prompt."""
    swapped = [row for row in traffic.rows if row[0] == "task0"]
    own = iter(offline(bench.backbone, {"task0": version}, swapped))
    return [next(own) if row[0] == "task0" else old for row, old in zip(traffic.rows, traffic.expected, strict=True)]


def _upload(version: Prompt, folder: Path) -> bytes:
    version.save(folder)
    card = json.loads((folder / "card.json").read_text())
    weights = base64.b64encode((folder / "prompt.safetensors").read_bytes()).decode()
    return request("PUT", "/admin/prompts/task0", {"card": card, "weights": weights})


async def _with_swaps(
    address: Address, traffic: Traffic, times: Sequence[float], uploads: Sequence[bytes], count: int
) -> tuple[list[Reply], list[tuple[float, float]]]:
    """Send requests, every other one for the swapped prompt, until all swaps are done; return when each was, too."""
    swapped = [row for row, (task, _) in enumerate(traffic.rows) if task == "task0"]
    rows = [swapped[n % len(swapped)] if n % 2 else n % len(traffic.rows) for n in range(len(times))]
    enough, changes, start = asyncio.Event(), [], time.perf_counter()
    asking = asyncio.create_task(fire(address, traffic.messages, times, rows, enough, start))
    for number in range(1, count + 1):
        begun = time.perf_counter() - start
        status, body = await ask(address, uploads[number % len(uploads)])
        if status != 200:
            raise SystemExit(f"swap {number} was refused: {status} {body.decode()}")
        changes.append((begun, time.perf_counter() - start))
    enough.set()
    return await asking, changes


def versions_of(changes: Sequence[tuple[float, float]], reply: Reply) -> list[int]:
    """Return the versions that may have been in place while a request was under way; version 0 was at the start.

    Args:
        changes: When each change was asked for, and when it was confirmed.
    """
    begun = [float("-inf"), *(begin for begin, _ in changes)]
    replaced = [*(end for _, end in changes), float("inf")]
    places = enumerate(zip(begun, replaced, strict=True))
    return [version for version, (begin, end) in places if begin <= reply.done and reply.sent <= end]


# The end


def stop(bench: Bench) -> Iterator[Line]:
    """SIGTERM at 1.5 × the capacity: every request that was accepted gets its answer."""
    traffic, seconds = bench.traffic(bench.options.compared), bench.options.seconds
    with bench.server(traffic) as server:
        capacity = bench.capacity(server, traffic)
        times = poisson(1.5 * capacity, seconds, seed=0)
        rows = [number % len(traffic.rows) for number in range(len(times))]
        asked = [_named(traffic, row, number) for number, row in enumerate(rows)]
        replies, told = asyncio.run(_with_signal(server, asked, times, seconds / 2))
        code = server.process.wait(timeout=60)
        log = [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]
    answered = [reply for reply in replies if reply.status == 200]
    logged = {line["request"] for line in log if line["event"] == "request" and line["status"] == 200}
    found = figures(replies, seconds)
    yield {
        "tasks": traffic.tasks,
        "capacity": round(capacity, 2),
        "exit": code,
        **found,
        **exactness(traffic.differences([reply._replace(row=rows[reply.row]) for reply in replies])),
        # A request that comes when the socket is about to close, or later, was never accepted.
        "not_accepted": found["lost"],
        "lost": sum(reply.status == LOST and reply.sent < told - MARGIN for reply in replies),
        "answered_after": sum(reply.done > told for reply in answered),
        "answered_and_not_received": len(logged & {f"stop{reply.row}" for reply in replies if reply.status == LOST}),
        "last_answer_after_s": round(max((reply.done for reply in answered), default=told) - told, 2),
    }


def _named(traffic: Traffic, row: int, number: int) -> bytes:
    """Return a request with an id, by which the server's log calls it."""
    task, text = traffic.rows[row]
    return request("POST", PREDICT, {"task": task, "rows": [text]}, f"stop{number}")


async def _with_signal(
    server: ServerProcess, asked: Sequence[bytes], times: Sequence[float], after: float
) -> tuple[list[Reply], float]:
    """Send requests, and SIGTERM after some seconds; return when that was, too."""
    start = time.perf_counter()
    asking = asyncio.create_task(fire(server.address, asked, times, start=start))
    await asyncio.sleep(after)
    server.process.send_signal(signal.SIGTERM)
    told = time.perf_counter() - start
    return await asking, told
