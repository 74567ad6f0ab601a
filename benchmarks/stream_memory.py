"""Memory and time of `bmtpt learn` as a source grows: many rows must need no more memory than few.

    python benchmarks/stream_memory.py --out benchmarks/results/stream-memory.jsonl

Each number of rows is a parquet file of short texts in row groups of 100,000, divided by the default rule (`stratify`),
and learned from for a few steps with a tiny T5, in a process of its own (`memory.py`). The files are deleted.
"""

from __future__ import annotations

import tempfile
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

import common
from memory import of_process
from tiny import BAD, GOOD, PLACES, THINGS, write_t5

SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
GROUP = 100_000
"""Rows of a row group."""
TASK = "name: rows\nfile: rows.parquet\ntext: 'sentiment sentence: {sentence}'\nlabels: {0: negative, 1: positive}\n"


def write_rows(path: Path, count: int) -> None:
    """Write so many different texts with labels."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def sentence(number: int) -> str:
        word = (BAD, GOOD)[number % 2][number // 2 % 8]
        return f"the {THINGS[number // 16 % 13]} of {PLACES[number // 208 % 6]} is {word} , {number} ."

    schema = pa.schema({"sentence": pa.string(), "label": pa.int8()})
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, count, GROUP):
            numbers = range(start, min(count, start + GROUP))
            columns = {"sentence": list(map(sentence, numbers)), "label": [number % 2 for number in numbers]}
            writer.write_table(pa.table(columns, schema=schema))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every size that the file lacks."""
    options = _options(arguments)
    done = {line["rows"] for line in common.lines_in(options.out)}
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        (folder / "model").mkdir()
        write_t5(folder / "model")
        (folder / "task.yaml").write_text(TASK)
        for count in options.rows:
            if count in done:
                continue
            write_rows(folder / "rows.parquet", count)
            learn = ["-m", "bmtpt", "learn", "--backbone", folder / "model", "--source", folder / "task.yaml"]
            small = ["--prompt-length", "4", "--steps", str(options.steps), "--evaluate-every", str(options.steps)]
            used = of_process([*learn, *small, "--overwrite", "--out", folder / "posterior"], folder)
            line = {"benchmark": "stream_memory", "rows": count, "steps": options.steps}
            line |= {"file_bytes": (folder / "rows.parquet").stat().st_size, "seconds": round(used.seconds, 1)}
            line |= {"peak_bytes": used.peak_bytes, "anonymous_bytes": used.anonymous_bytes}
            common.append_line(options.out, {**line, "machine": common.machine_facts()})
            shown = f"{used.peak_bytes / 2**20:.0f} MiB, {used.anonymous_bytes / 2**20:.0f} MiB of them anonymous"
            print(f"{count:,} rows: {used.seconds:.0f} s, {shown}", flush=True)
    return 0


def _options(arguments: Sequence[str] | None) -> Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON lines to append to")
    parser.add_argument("--rows", type=int, nargs="+", default=SIZES, help="numbers of rows")
    parser.add_argument("--steps", type=int, default=50)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
