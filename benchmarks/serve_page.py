"""Fill the tables of docs/serve-capacity.md from the lines of `serve.py`.

python benchmarks/serve_page.py
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bmtpt.report.table import Table, to_markdown
from common import lines_in
from result_tables import machines

ROOT = Path(__file__).parents[1]
LINES = ROOT / "benchmarks" / "results" / "serve-cpu.jsonl"
PAGE = ROOT / "docs" / "serve-capacity.md"
BLOCK = re.compile(r"<!-- (\w+) -->\n.*?<!-- /\1 -->", re.DOTALL)
NOT_MEASURED = "Not measured yet."
WAYS = {
    "mixed": "bmtpt serve: all tasks in shared passes",
    "one_task_at_a_time": "the same engine, one task in a pass",
    "peft": "PEFT, an adapter set for each task",
}

Line = Mapping[str, Any]
Lines = Sequence[Line]


def filled(page: str, lines: Lines) -> str:
    """Return a page with every block written anew."""

    def block(found: re.Match[str]) -> str:
        name = found[1]
        own = lines if name == "machine" else [line for line in lines if line["part"] == name]
        return f"<!-- {name} -->\n\n{BLOCKS[name](own).strip() if own else NOT_MEASURED}\n\n<!-- /{name} -->"

    return BLOCK.sub(block, page)


def machine(lines: Lines) -> str:
    """Say where and under what load the lines were taken."""
    loads = [line["machine"]["load_average"] for line in lines]
    return f"{machines(lines)} Load average of the machine when the lines were written: {min(loads)} to {max(loads)}."


def rates(lines: Lines) -> str:
    """Return rates and latencies by number of tasks and stream."""
    header = ("prompts", "rows are of", *RATE_HEADER)
    last = _last(lines, "tasks", "stream", "share")
    return _table(header, ((*_stream(line), *_rate(line)) for line in last), words=2)


def compare(lines: Lines) -> str:
    """Return rates and latencies by way of answering."""
    header = ("way", *RATE_HEADER, "answered/s, of the first's")
    last = _last(lines, "way", "tasks", "share")
    best = {line["share"]: line["answered_per_second"] for line in last if line["way"] == "mixed"}
    rows = []
    for line in last:
        ratio = line["answered_per_second"] / best[line["share"]] if best.get(line["share"]) else 0.0
        rows.append((WAYS[line["way"]], *_rate(line), f"{ratio:.0%}"))
    return _table(header, rows, words=1)


RATE_HEADER = (
    "capacity, answers/s", "asked/s", "of capacity", "answered/s", "refused", "p50, ms", "p95, ms", "p99, ms",
    "largest difference",
)  # fmt: skip


def _rate(line: Line) -> tuple[str, ...]:
    return (
        f"{line['capacity']:.1f}", f"{line['rate']:.1f}", f"{line['share']:.0%}", f"{line['answered_per_second']:.1f}",
        f"{line['refused'] / line['sent']:.0%}", *(_number(line[f"p{share}_ms"], ",.0f") for share in (50, 95, 99)),
        _number(line["largest_difference"], ".0e"),
    )  # fmt: skip


def _stream(line: Line) -> tuple[str, str]:
    return f"{line['tasks']:,}", "all of them" if line["stream"] == "mixed" else "one of them"


def memory(lines: Lines) -> str:
    """Return resident memory by number of prompts."""
    header = ("prompts", "resident MiB", "kB on disk, of a prompt", "seconds until it listens", "largest difference")
    rows = [
        (
            f"{line['prompts']:,}", f"{line['resident_mib']:,.0f}", f"{line['prompt_bytes'] / 1000:.0f}",
            f"{line['start_seconds']:.0f}", _number(line["largest_difference"], ".0e"),
        )
        for line in _last(lines, "prompts")
    ]  # fmt: skip
    return _table(header, rows, words=0)


def goodput(lines: Lines) -> str:
    """Return answers a second at capacity and at twice that."""
    line = lines[-1]
    header = ("asked", "asked/s", "answered/s", "refused", "p50, ms", "p99, ms", "a refusal's p99, ms", "lost", "wrong")
    rows = []
    for name, key, share in (("at capacity", "at_capacity", 1), ("at twice the capacity", "at_twice", 2)):
        own = line[key]
        rows.append((
            name, f"{share * line['capacity']:.1f}", f"{own['answered_per_second']:.1f}",
            f"{own['refused'] / own['sent']:.0%}", *(_number(own[each], ",.0f") for each in ("p50_ms", "p99_ms")),
            _number(own["refusal_p99_ms"], ",.0f"), str(own["lost"]), str(own["wrong"]),
        ))  # fmt: skip
    ratios = ", ".join(f"{ratio:.0%}" for ratio in line["ratios"])
    said = f"Answered at twice the capacity, of what is answered at capacity: **{line['ratio']:.0%}** ({ratios})."
    return f"{_table(header, rows, words=1)}\n\n{said}"


def sustained(lines: Lines) -> str:
    """Say what came of minutes at twice the capacity."""
    line = lines[-1]
    resident = " → ".join(f"{mib:,.0f}" for mib in line["resident_mib"])
    return (
        f"{line['minutes']:g} minutes at {line['rate']:.1f} requests a second, twice the capacity: "
        f"{line['sent']:,} sent, {line['answered']:,} answered, {line['refused']:,} refused with 429, "
        f"{line['lost']} lost, {_others(line)} of any other status. {line['wrong']} answers differ from offline ones "
        f"by more than 1e-5 (largest difference {line['largest_difference']:.0e}). Resident MiB: {resident}."
    )


def swaps(lines: Lines) -> str:
    """Say what came of swaps under load."""
    line = lines[-1]
    return (
        f"{line['swaps']:,} times one prompt took another's place while {line['sent']:,} rows were asked, "
        f"{line['of_the_swapped_prompt']:,} of them of that prompt: {line['wrong']} answers of no prompt that was "
        f"loaded while they were under way, {line['lost']} lost, {_others(line)} of a status other than 200 and 429. "
        f"A swap took {line['swap_p50_ms']:.0f} ms (p50): it waits for the pass that runs."
    )


def stop(lines: Lines) -> str:
    """Say what came of SIGTERM under load."""
    line = lines[-1]
    return (
        f"SIGTERM at 1.5 × capacity: {line['answered_after']} requests that had been accepted were answered after it, "
        f"the last {line['last_answer_after_s']:.1f} s later; {line['lost']} lost, {line['wrong']} wrong, and "
        f"{line['answered_and_not_received']} that the server answered and the client did not get. "
        f"{line['not_accepted']} came when nothing listened any more."
    )


def overhead(lines: Lines) -> str:
    """Say what a request costs beyond its pass."""
    line = lines[-1]
    return (
        f"A request by itself takes **{line['beyond_p50_ms']:.1f} ms** (p50; p95 {line['beyond_p95_ms']:.1f} ms) "
        f"beyond the engine's own pass for its row ({line['pass_p50_ms']:.1f} ms, p50 of {line['requests']})."
    )


def _others(line: Line) -> int:
    return sum(line["other"].values())


BLOCKS: dict[str, Callable[[Lines], str]] = {
    each.__name__: each for each in (machine, rates, compare, memory, goodput, sustained, swaps, stop, overhead)
}


def _last(lines: Lines, *keys: str) -> list[Line]:
    """Return the last line of each case, in order."""
    return list({tuple(line[key] for key in keys): line for line in lines}.values())


def _table(header: Sequence[str], rows: Iterable[tuple[str, ...]], words: int) -> str:
    return to_markdown(Table(tuple(header), tuple(rows), words=words)).strip()


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def main() -> None:
    """Fill the page."""
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), lines_in(LINES)), encoding="utf-8")


if __name__ == "__main__":
    main()
