"""Fill the tables of docs/reliability.md from the lines of the fault harnesses.

python benchmarks/reliability_page.py
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import log
from pathlib import Path
from typing import Any

from bmtpt.report.table import Table, to_markdown
from common import lines_in

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "reliability.md"
BLOCK = re.compile(r"<!-- (\w+) -->\n.*?<!-- /\1 -->", re.DOTALL)

Line = Mapping[str, Any]
Lines = Sequence[Line]


def filled(page: str, results: Path = RESULTS) -> str:
    """Return a page with the block of every harness written anew."""

    def table(block: re.Match[str]) -> str:
        name = block[1]
        return f"<!-- {name} -->\n\n{to_markdown(TABLES[name](lines_in(results / f'{name}.jsonl')))}\n<!-- /{name} -->"

    return BLOCK.sub(table, page)


def faults(lines: Lines) -> Table:
    """Return kills by command, and what was found after them."""
    rows = []
    for command in ("learn", "adapt", "study"):
        own = [line for line in lines if line["setting"].split(",")[0] == command]
        kills = [kill for line in own for kill in line["kills"]]
        signals = Counter("worker" if "of" in kill else kill["signal"] for kill in kills)
        at_files = sum("operation" in kill for kill in kills)
        settings = {line["setting"] for line in own}
        counts = (len(settings), len(own), *(signals[name] for name in ("KILL", "TERM", "INT", "worker")), at_files)
        rows.append((command, *map(_count, counts), _count(sum(bool(line["faults"]) for line in own))))
    header = (
        "command", "settings", "runs", "SIGKILL", "SIGTERM", "Ctrl-C", "a worker killed", "of these while writing",
        "runs that differ or leave something",
    )  # fmt: skip
    return _with_total(header, rows)


def environment(lines: Lines) -> Table:
    """Return trials by case, how the commands ended, and how often that was wrong."""
    rows = []
    for case in dict.fromkeys(line["case"] for line in lines):
        own = [line for line in lines if line["case"] == case]
        trials = [trial for line in own for trial in line["trials"]]
        ends = Counter(trial["exit"] for trial in trials)
        wrong = sum(bool(trial["faults"]) for trial in trials)
        skipped = next((f" (not tried: {line['skipped']})" for line in own if "skipped" in line), "")
        rows.append((case + skipped, *map(_count, (len(trials), ends[2], ends[0], wrong))))
    return _with_total(("what fails", "trials", "one sentence, exit 2", "got through", "wrong"), rows)


def corruption(lines: Lines) -> Table:
    """Return damages by what was damaged, and the verdicts."""
    verdicts = ("cases", "refused", "harmless", "wrong", "untyped")
    rows = [
        (subject, *(_count(sum(line[verdict] for line in own)) for verdict in verdicts))
        for subject, own in _by(lines, "subject")
    ]
    return _with_total(("what is damaged", "cases", "refused", "harmless", "wrong", "tracebacks"), rows)


def fuzz(lines: Lines) -> Table:
    """Return inputs by reader, and what came of them."""
    rows = []
    for reader, own in _by(lines, "reader"):
        counts = [sum(line[name] for line in own) for name in ("inputs", "refused", "accepted")]
        wrong = sum(len(line["faults"]) for line in own)
        rows.append((reader, *map(_count, (*counts, wrong)), f"{max(line['slowest_seconds'] for line in own):.2f}"))
    return _with_total(("reader", "inputs", "refused", "read", "anything else", "slowest, s"), rows, last=False)


def sizes(lines: Lines) -> Table:
    """Return time and memory by size, and the exponent between the two largest sizes."""
    rows = []
    for what, own in _by(lines, "what"):
        own = sorted(own, key=lambda line: line["size"])
        for before, line in zip([None, *own], own, strict=False):
            memory = f"{line['peak_bytes'] / 2**20:,.0f}"
            rows.append((what, _count(line["size"]), f"{line['cpu_seconds']:.1f}", memory, _exponent(before, line)))
    return Table(("what grows", "size", "CPU seconds", "MiB", "exponent of the time"), tuple(rows))


def _exponent(before: Line | None, line: Line) -> str:
    """Return b where the time went as sizeᵇ since the size before; times under a second say nothing."""
    if before is None or before["cpu_seconds"] < 1:
        return "–"
    return f"{log(line['cpu_seconds'] / before['cpu_seconds']) / log(line['size'] / before['size']):.2f}"


TABLES: dict[str, Callable[[Lines], Table]] = {
    each.__name__: each for each in (faults, environment, corruption, fuzz, sizes)
}


def _by(lines: Lines, key: str) -> Iterable[tuple[str, Lines]]:
    for value in dict.fromkeys(line[key] for line in lines):
        yield value, [line for line in lines if line[key] == value]


def _with_total(header: Sequence[str], rows: Sequence[tuple[str, ...]], *, last: bool = True) -> Table:
    """Return a table with the sums of its columns, of the last one only if that is a count."""
    summed = len(header) if last else len(header) - 1
    sums = [_count(sum(int(row[column].replace(",", "")) for row in rows)) for column in range(1, summed)]
    return Table(tuple(header), (*rows, ("all", *sums, *[""] * (len(header) - summed))))


def _count(number: int) -> str:
    return f"{number:,}"


def main() -> None:
    """Fill the page."""
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
