"""What `bmtpt serve` can do, how it behaves when asked for more, and what it costs: one part each.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/serve.py rates compare memory goodput overhead \\
        --out benchmarks/results/serve-cpu.jsonl                                     # about 15 minutes
    python benchmarks/serve.py sustained --minutes 10 --out benchmarks/results/serve-cpu.jsonl
    python benchmarks/serve.py swaps stop --out benchmarks/results/serve-cpu.jsonl   # 2 minutes
    python benchmarks/serve.py --tiny --quick                                        # does it run? seconds

Each configuration has a server process of its own on 127.0.0.1, whose prompts are untrained: answers cost the same.
Rows are random text with the lengths of real tasks, one in a request. Every answer of every part is compared with that
of offline `predict`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import statistics
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from bmtpt.backbone import Backbone
from common import append_line, machine_facts
from open_loop import exchange, fire, percentile, request
from serve_bench import QUEUE, Bench, Line, exactness, medians
from serve_proofs import stop, sustained, swaps
from served import MIXED, PREDICT, WAYS, Server, Traffic, difference
from tiny import write_t5

SHARES = (0.25, 0.5, 0.8, 1.0, 2.0)
"""Rates that are tried, as shares of the capacity."""

# Parts


def rates(bench: Bench) -> Iterator[Line]:
    """Throughput and latencies against the rate, for several numbers of tasks, rows of all of them or of one."""
    for tasks in bench.options.tasks:
        for single in (False, True)[: 2 if tasks > 1 else 1]:
            traffic = bench.traffic(tasks, single=single)
            with bench.server(traffic) as server:
                yield from _rates(bench, traffic, {MIXED: server}, {"stream": "single" if single else "mixed"})


def compare(bench: Bench) -> Iterator[Line]:
    """The same rows at the same rates in three ways: in shared passes, one task at a time, with PEFT's adapters."""
    traffic = bench.traffic(bench.options.compared)
    with ExitStack() as stack:
        servers = {way: stack.enter_context(bench.server(traffic, way)) for way in (MIXED, *WAYS)}
        yield from _rates(bench, traffic, servers, {"stream": "mixed"})


def _rates(bench: Bench, traffic: Traffic, servers: Mapping[str, Server], facts: Line) -> Iterator[Line]:
    """Yield a line for each way and share of the first way's capacity. Ways take turns, round by round."""
    own = bench.options
    capacity = {
        way: statistics.median(bench.capacity(server, traffic) for _ in range(own.rounds))
        for way, server in servers.items()
    }
    first = next(iter(capacity.values()))
    for share in own.shares:
        repeats = {
            way: [bench.at(server, traffic, share * first, seed) for seed in range(own.rounds)]
            for way, server in servers.items()
        }
        for way, lines in repeats.items():
            rate = {"share": share, "rate": round(share * first, 2), "capacity": round(capacity[way], 2)}
            yield {"way": way, "tasks": traffic.tasks, **facts, **rate, **medians(lines)}


def memory(bench: Bench) -> Iterator[Line]:
    """Resident memory with so many prompts, after rows of them were answered."""
    for prompts in bench.options.prompts:
        traffic = bench.traffic(prompts)
        start = time.perf_counter()
        with bench.server(traffic) as server:
            loaded = time.perf_counter() - start
            replies = asyncio.run(fire(server.address, traffic.messages, [0.0] * min(QUEUE, len(traffic.rows))))
            weights = (traffic.folder / "task0" / "prompt.safetensors").stat().st_size
            yield {
                "prompts": prompts,
                "resident_mib": round(server.resident, 1),
                "prompt_bytes": weights,
                "start_seconds": round(loaded, 1),
                **exactness(traffic.differences(replies)),
            }


def goodput(bench: Bench) -> Iterator[Line]:
    """Answers a second at capacity and at twice that, in turn."""
    traffic = bench.traffic(bench.options.compared)
    with bench.server(traffic) as server:
        capacity = bench.capacity(server, traffic)
        repeats: dict[float, list[Line]] = {1.0: [], 2.0: []}
        for seed in range(bench.options.rounds):
            for share, lines in repeats.items():
                lines.append(bench.at(server, traffic, share * capacity, seed))
    pairs = zip(*(([line["answered_per_second"] for line in lines]) for lines in repeats.values()), strict=True)
    ratios = [double / once for once, double in pairs]
    yield {
        "tasks": traffic.tasks,
        "capacity": round(capacity, 2),
        "at_capacity": medians(repeats[1.0]),
        "at_twice": medians(repeats[2.0]),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "ratio": round(statistics.median(ratios), 3),
    }


def overhead(bench: Bench) -> Iterator[Line]:
    """What a request takes beyond the engine's own pass for its row, one at a time, on one connection.

    The client sends bytes and receives bytes: what it makes of them is none of the service's time.
    """
    traffic = bench.traffic(bench.options.compared)
    bodies = [{"task": task, "rows": [text]} for task, text in traffic.rows]
    messages = [request("POST", PREDICT, body, keep=True) for body in bodies]
    differences, beyond, passes = [], [], []
    with bench.server(traffic) as server, socket.create_connection(server.address) as connection:
        before = server.metrics()["bmtpt_batch_seconds_sum"]
        for number in range(bench.options.requests + 5):
            row = number % len(messages)
            start = time.perf_counter()
            reply = exchange(connection, messages[row])
            taken = time.perf_counter() - start
            after = server.metrics()["bmtpt_batch_seconds_sum"]
            if number >= 5:  # the first ones warm up
                beyond.append(1000 * (taken - (after - before)))
                passes.append(1000 * (after - before))
            before = after
            differences.append(difference(reply, traffic.expected[row]))
    yield {
        "requests": len(beyond),
        **{f"beyond_p{share}_ms": percentile(beyond, share) for share in (50, 95)},
        "pass_p50_ms": percentile(passes, 50),
        **exactness(differences),
    }


PARTS: dict[str, Callable[[Bench], Iterator[Line]]] = {
    each.__name__: each for each in (rates, compare, memory, goodput, sustained, swaps, stop, overhead)
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the parts and write a line for each measurement."""
    options = _options(arguments)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        name = str(write_t5(_made(root / "model"))) if options.tiny else options.backbone
        bench = Bench(options, Backbone.from_pretrained(name, precision=options.precision, device="cpu"), name, root)
        for part in options.parts or PARTS:
            for found in PARTS[part](bench):
                line = {
                    "benchmark": "serve", "part": part, **found, "P": options.prompt_tokens, "rounds": options.rounds,
                    "seconds": options.seconds, "backbone": "tiny" if options.tiny else name,
                    "precision": options.precision, "machine": machine_facts(),
                }  # fmt: skip
                print(json.dumps(line), flush=True)
                append_line(options.out, line)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


QUICK = {
    "tasks": [1, 3], "prompts": [1, 3], "compared": 3, "rows": 16, "shares": [0.5, 2.0], "rounds": 1, "seconds": 0.5,
    "minutes": 0.02, "swaps": 20, "requests": 5, "prompt_tokens": 3,
}  # fmt: skip


def _options(arguments: Sequence[str] | None) -> Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    add("--backbone", default="offline", help="hub id, folder or offline")
    add("--precision", default="float32", help="float32 or bfloat16, whose answers depend on the rows of their pass")
    add("--tiny", action="store_true", help="a tiny model with random weights, in its place")
    add("--quick", action="store_true", help="other defaults: the smallest of everything")
    add("--tasks", type=int, nargs="+", default=[1, 10, 100], help="numbers of tasks, for rates")
    add("--compared", type=int, default=10, help="tasks of the other parts")
    add("--prompts", type=int, nargs="+", default=[1, 100, 1_000], help="numbers of prompts, for memory")
    add("--rows", type=int, default=128, help="different rows")
    add("--prompt-tokens", type=int, default=20)
    add("--shares", type=float, nargs="+", default=SHARES, help="rates, as shares of the capacity")
    add("--rounds", type=int, default=3, help="repeats, whose medians count")
    add("--seconds", type=float, default=8.0, help="of each measurement")
    add("--minutes", type=float, default=1.0, help="of sustained overload")
    add("--swaps", type=int, default=1_000)
    add("--requests", type=int, default=200, help="for overhead")
    add("--out", type=Path, help="JSON lines to append to")
    if parser.parse_args(arguments).quick:
        parser.set_defaults(**QUICK)
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    return options


if __name__ == "__main__":
    main()
