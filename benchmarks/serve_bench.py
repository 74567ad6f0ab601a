"""What the parts of `serve.py` share: options, a model, rows, and how repeats become a line."""

from __future__ import annotations

import asyncio
import statistics
from argparse import Namespace
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bmtpt.backbone import Backbone
from open_loop import figures, fire, poisson, saturate, throughput
from served import MIXED, Server, Traffic, make_traffic, running

Line = dict[str, Any]
EXACT = 1e-5
"""By how much a probability may differ from the offline one."""
AT_ONCE = 128
"""Rows that wait while capacity is measured: two batches."""
QUEUE = 128


@dataclass(frozen=True)
class Bench:
    """What all parts share."""

    options: Namespace
    backbone: Backbone
    name: str
    root: Path

    def traffic(self, tasks: int, *, single: bool = False) -> Traffic:
        """Return rows of so many tasks, or of one of them."""
        own = self.options
        folder = self.root / f"prompts-{tasks}"
        return make_traffic(self.backbone, folder, tasks, own.rows, own.prompt_tokens, single=single)

    def server(self, traffic: Traffic, way: str = MIXED, **options: object) -> AbstractContextManager[Any]:
        """Run a server."""
        return running(way, traffic, self.name, **{"queue": QUEUE, "precision": self.options.precision, **options})

    def capacity(self, server: Server, traffic: Traffic) -> float:
        """Return the answers a second while the queue is never empty."""
        seconds = self.options.seconds
        return throughput(asyncio.run(saturate(server.address, traffic.messages, AT_ONCE, seconds)), seconds)

    def at(self, server: Server, traffic: Traffic, rate: float, seed: int) -> Line:
        """Return the figures of Poisson arrivals at a rate."""
        seconds = self.options.seconds
        replies = asyncio.run(fire(server.address, traffic.messages, poisson(rate, seconds, seed)))
        return {**figures(replies, seconds), **exactness(traffic.differences(replies))}


def exactness(differences: Sequence[float]) -> Line:
    """Return how far answers are from the offline ones, and how many are too far."""
    return {"largest_difference": max(differences, default=None), "wrong": sum(each > EXACT for each in differences)}


def medians(lines: Sequence[Line]) -> Line:
    """Return repeats as one line: counts summed, the largest difference, medians of the other figures."""
    found: Line = {}
    for name, value in lines[0].items():
        values = [line[name] for line in lines]
        known = [each for each in values if each is not None]
        if name in ("sent", "answered", "refused", "lost", "wrong"):
            found[name] = sum(values)
        elif name == "other":
            found[name] = {status: sum(each.get(status, 0) for each in values) for each in values for status in each}
        elif name == "largest_difference":
            found[name] = max(known, default=None)
        else:
            found[name] = statistics.median(known) if known else value
    return found
