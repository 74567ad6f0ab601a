"""The benchmark of the server on a tiny model: what it counts and compares is checked, not how fast it was."""

from __future__ import annotations

import asyncio
import json
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("peft")

import uvicorn

import serve
import serve_page
from bmtpt.serve.app import create_app
from bmtpt.serve.run import config, listening
from bmtpt.serve.settings import ServeSettings
from common import lines_in
from open_loop import LOST, Reply, ask, figures, fire, poisson, request, throughput
from serve_bench import Bench, medians
from serve_proofs import versions_of
from served import MIXED, Server, Traffic, difference, make_traffic, service_in_a_way

ROOT = Path(__file__).parents[2]


@contextmanager
def answering(way: str, backbone, traffic: Traffic) -> Iterator[Server]:
    """Serve in this process, which takes no seconds to start."""
    settings = ServeSettings(queue=64)
    service = service_in_a_way(way, backbone, traffic.folder, settings)
    server = uvicorn.Server(config(create_app(service, settings), settings))
    with listening("127.0.0.1", 0) as door:
        thread = Thread(target=server.run, kwargs={"sockets": [door]}, daemon=True)
        thread.start()
        yield Server(door.getsockname()[:2])
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def traffic(tiny_backbone, tmp_path_factory) -> Traffic:
    return make_traffic(tiny_backbone, tmp_path_factory.mktemp("prompts"), tasks=3, rows=12, length=3)


@pytest.fixture
def bench(tiny_backbone, tiny_t5_folder, tmp_path, monkeypatch) -> Bench:
    """A bench whose servers are in this process, and count as answering 60 rows a second on a machine however busy."""
    monkeypatch.setattr(Bench, "server", lambda self, traffic, way=MIXED, **_: answering(way, tiny_backbone, traffic))
    monkeypatch.setattr(Bench, "capacity", lambda self, server, traffic: 60.0)
    options = Namespace(**{**serve.QUICK, "precision": "float32", "shares": [0.5], "seconds": 0.4, "requests": 3})
    return Bench(options, tiny_backbone, str(tiny_t5_folder), tmp_path)


@pytest.mark.parametrize("way", [MIXED, *serve.WAYS])
def test_every_way_gives_the_librarys_answers(way, traffic, tiny_backbone):
    with answering(way, tiny_backbone, traffic) as server:
        replies = asyncio.run(fire(server.address, traffic.messages, [0.0] * 12))
    assert [reply.status for reply in replies] == [200] * 12
    assert max(traffic.differences(replies)) < 1e-5


def test_an_answer_of_another_prompt_is_seen(traffic):
    task, _ = traffic.rows[0]
    other = next(row for row, (name, _) in enumerate(traffic.rows) if name != task)
    body = json.dumps({"answers": [{"all": dict(traffic.expected[other])}]}).encode()
    assert difference(body, traffic.expected[other]) == 0
    assert difference(body, traffic.expected[0]) > 1e-3


def test_a_connection_that_ends_early_or_is_refused_is_lost():
    async def broken(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        writer.close()

    async def asked():
        server = await asyncio.start_server(broken, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        first = await ask(address, request("POST", "/", {}))
        server.close()
        await server.wait_closed()
        return first, await ask(address, request("POST", "/", {}))

    assert asyncio.run(asked()) == ((LOST, b""), (LOST, b""))


def test_arrivals_have_the_rate_they_were_drawn_for_and_are_the_same_for_a_seed():
    times = poisson(50, 100, seed=1)
    assert times == sorted(times) == poisson(50, 100, seed=1)
    assert 0 < times[0] < times[-1] < 100
    assert len(times) == pytest.approx(5_000, abs=5 * 5_000**0.5)


def batches(every: float, size: int, until: float) -> list[Reply]:
    ends = [every * (n + 1) for n in range(int(until / every))]
    return [Reply(0, 0.0, 0.0, end, 200, b"") for end in ends for _ in range(size)]


def test_throughput_counts_whole_batches_wherever_the_schedule_ends():
    for seconds in (10, 10.3, 10.9):
        assert throughput(batches(every=1, size=64, until=20), seconds) == pytest.approx(64)


def test_a_schedule_that_ends_before_its_first_batch_still_has_a_throughput():
    assert throughput(batches(every=1, size=64, until=2), seconds=0.5) == pytest.approx(64)
    assert throughput([], seconds=1) == 0


def test_latency_counts_from_the_planned_time_and_of_answers_alone():
    replies = [Reply(0, 1.0, 1.5, 2.0, 200, b""), Reply(0, 1.0, 1.0, 9.0, 429, b""), Reply(0, 1.0, 1.0, 9.0, LOST, b"")]
    found = figures(replies, 10)
    assert (found["answered"], found["refused"], found["lost"], found["other"]) == (1, 1, 1, {})
    assert (found["p50_ms"], found["client_late_p99_ms"]) == (1_000, pytest.approx(490))


def test_repeats_are_summed_where_they_count_and_else_their_median_is_taken():
    one = {"sent": 3, "other": {}, "p50_ms": 1.0, "largest_difference": 1e-7}
    lines = [one, {**one, "other": {"503": 1}, "p50_ms": None}, {**one, "p50_ms": 4.0, "largest_difference": 1e-6}]
    assert medians(lines) == {"sent": 9, "other": {"503": 1}, "p50_ms": 2.5, "largest_difference": 1e-6}


def test_a_request_may_be_answered_by_the_prompts_of_its_time_only():
    changes = [(1.0, 1.1), (2.0, 2.1), (3.0, 3.1)]

    def possible(sent: float, done: float) -> list[int]:
        return versions_of(changes, Reply(0, sent, sent, done, 200, b""))

    assert possible(0.2, 0.9) == [0]
    assert possible(1.5, 1.9) == [1]
    assert possible(1.05, 1.9) == [0, 1]  # sent while the first change was under way
    assert possible(1.5, 2.0) == [1, 2]
    assert possible(0.0, 9.0) == [0, 1, 2, 3]


@pytest.mark.parametrize("part", ["compare", "memory", "goodput", "sustained", "swaps", "overhead"])
def test_a_part_finds_every_answer_right_and_none_lost(part, bench):
    lines = list(serve.PARTS[part](bench))
    assert len(lines) == {"compare": 3, "memory": 2}.get(part, 1)
    for line in lines:
        runs = [line["at_capacity"], line["at_twice"]] if part == "goodput" else [line]
        for run in runs:
            assert (run["wrong"], run.get("lost", 0), run.get("other", {})) == (0, 0, {})
            assert run["largest_difference"] < 1e-5
            assert run.get("sent", 1) == run.get("answered", 1) + run.get("refused", 0)


def test_sigterm_loses_nothing_that_was_accepted(tmp_path):
    out = tmp_path / "lines.jsonl"
    serve.main(["stop", "--tiny", "--quick", "--out", str(out)])
    (line,) = lines_in(out)
    assert (line["benchmark"], line["part"], line["exit"]) == ("serve", "stop", -15)
    assert line["answered"] > 0
    assert (line["lost"], line["wrong"], line["answered_and_not_received"], line["other"]) == (0, 0, 0, {})


def test_a_part_that_is_not_there_is_told(capsys):
    with pytest.raises(SystemExit):
        serve.main(["rate"])
    assert "there is no part rate; there are rates, compare" in capsys.readouterr().err


def test_the_capacity_page_holds_the_tables_of_the_committed_lines():
    page = serve_page.PAGE.read_text(encoding="utf-8")
    assert [block[1] for block in serve_page.BLOCK.finditer(page)] == [
        "machine", "rates", "compare", "goodput", "sustained", "swaps", "stop", "memory", "overhead"
    ]  # fmt: skip
    assert serve_page.filled(page, lines_in(serve_page.LINES)) == page


def test_no_committed_line_has_a_wrong_answer_or_a_lost_request():
    for line in lines_in(serve_page.LINES):
        if line["precision"] == "float32" and line.get("way", MIXED) == MIXED:
            assert (line.get("wrong", 0), line.get("lost", 0), line.get("other", {})) == (0, 0, {})
