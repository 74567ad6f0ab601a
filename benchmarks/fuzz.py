"""Feed hostile text to everything that reads what people write; nothing but a `BmtptError` may come out.

    python benchmarks/fuzz.py --inputs 130000 --out benchmarks/results/fuzz.jsonl

Readers (`readers.py`): task files, rows in five formats, options, studies, cards, results, events, lines to predict.
Input i of a reader is a pure function of (reader, i): a valid document with hostile values (`hostile.py`: long, deep,
huge, of another type), damaged bytes, or both. Inputs are read in processes whose memory may grow by 2 GB; one that
crashes or takes longer than 10 s on an input is found out, and the next input follows. Lines add up: the same command
goes on where it stopped.
"""

from __future__ import annotations

import logging
import mmap
import multiprocessing
import os
import resource
import signal
import struct
import tempfile
import time
import traceback
import warnings
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections import Counter
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

import common
from bmtpt.artifacts.card import BackboneCard, PromptCard
from bmtpt.artifacts.saved import Prompt
from bmtpt.errors import BmtptError
from readers import Reader, make_readers
from tiny import TINY_T5, write_tasks

HANG = 10
"""Seconds that an input may take."""
MEMORY = 2 * 2**30
"""Bytes by which a process may grow."""
SLICE = 1000
"""Inputs of a reader before the next one's turn."""
COUNTS = struct.Struct("4q")
LONGEST = 300


class Counts:
    """What a reading process has done, in memory that it shares with its parent and that outlives it.

    `values` are the number of the input that comes next, how many were accepted and refused, and the slowest's µs.
    """

    def __init__(self, first: int) -> None:
        self._memory = mmap.mmap(-1, COUNTS.size)
        self.values = [first, 0, 0, 0]

    @property
    def values(self) -> list[int]:
        return list(COUNTS.unpack(self._memory[:]))

    @values.setter
    def values(self, values: Sequence[int]) -> None:
        self._memory[:] = COUNTS.pack(*values)


def make_folder(folder: Path) -> Path:
    """Write what the readers need: the tiny tasks and a prompt for one of them."""
    write_tasks(folder)
    (folder / "train.csv").write_bytes((folder / "sentiment" / "train.csv").read_bytes())
    width = TINY_T5["d_model"]
    backbone = BackboneCard(name="tiny", fingerprint="0" * 64, parameters=28_832, d_model=width, vocab_size=160)
    facts: dict[str, Any] = {
        "sources": (),
        "settings": {},
        "steps": 1,
        "seconds": 0.5,
        "versions": {},
        "created": "now",
    }
    facts |= {"task": "sentiment", "task_definition": {}, "method": "pt", "posterior": None, "selection": {}}
    card = PromptCard(backbone=backbone, trained_parameters=4 * width, **facts)
    Prompt(torch.zeros(1, 4, width), card).save(folder / "prompt")
    return folder


def read_all(name: str, reader: Reader, until: int, counts: Counts, faults: Connection) -> None:
    """Read the inputs up to a number, counting; send what is wrong as (number, sentence)."""
    warnings.simplefilter("ignore")
    logging.disable()
    signal.signal(signal.SIGALRM, _hangs)
    number, accepted, refused, slowest = counts.values
    while number < until:
        counts.values = [number + 1, accepted, refused, slowest]
        content = reader.input(name, number)
        began = time.perf_counter()
        signal.setitimer(signal.ITIMER_REAL, HANG)
        try:
            reader.read(content, number)
            accepted += 1
        except BmtptError as error:
            refused += 1
            if len(str(error)) > 400 or "\n" in str(error):
                faults.send((number, f"not one sentence: {str(error)[:LONGEST]}"))
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            sentence = f"{type(error).__name__}: {str(error)[:100]} ({Path(where.filename).name}, line {where.lineno})"
            faults.send((number, sentence))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        slowest = max(slowest, int(1e6 * (time.perf_counter() - began)))
        number += 1
    counts.values = [number, accepted, refused, slowest]


class Hang(BaseException):
    """An input takes too long."""


def _hangs(*_: object) -> None:
    raise Hang(f"takes longer than {HANG} s")


def _limited(name: str, reader: Reader, until: int, counts: Counts, faults: Connection) -> None:
    """`read_all` in a process of its own, whose memory is bounded."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    read_all(name, reader, until, counts, faults)


def fuzzed(name: str, reader: Reader, first: int, until: int) -> dict[str, Any]:
    """Read inputs in processes; return the line of this slice."""
    counts, faults, began = Counts(first), [], time.monotonic()
    while counts.values[0] < until:
        ours, theirs = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("fork").Process(
            target=_limited, args=(name, reader, until, counts, theirs)
        )
        process.start()
        theirs.close()
        faults += _heard(process, ours, counts)
        if process.exitcode:
            faults.append((counts.values[0] - 1, f"the process ended with {process.exitcode}"))
    seconds = time.monotonic() - began
    _, accepted, refused, slowest = counts.values
    line = {"benchmark": "fuzz", "reader": name, "first": first, "inputs": until - first, "accepted": accepted}
    line |= {"refused": refused, "faults": [{"input": number, "what": what} for number, what in faults]}
    return line | {"seconds": round(seconds, 2), "slowest_seconds": slowest / 1e6}


def _heard(process: multiprocessing.Process, pipe: Connection, counts: Counts) -> list[tuple[int, str]]:
    """Return what a process sends until it ends; kill it when it stands still in code that hears no alarm."""
    found: list[tuple[int, str]] = []
    at, since = counts.values[0], time.monotonic()
    while True:
        if counts.values[0] != at:
            at, since = counts.values[0], time.monotonic()
        if time.monotonic() - since > 2 * HANG:
            process.kill()
        try:
            if pipe.poll(0.5):
                found.append(pipe.recv())
        except EOFError:
            process.join()
            return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Read until the lines hold enough inputs; return 1 if there was a fault."""
    options = _options(arguments)
    done: Counter[str] = Counter()
    for line in common.lines_in(options.out):
        done[line["reader"]] += line["inputs"]
    end, wrong = time.monotonic() + 60 * options.minutes, 0
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        readers = make_readers(make_folder(Path(folder)))
        chosen = options.readers or list(readers)
        while (left := options.inputs - done.total()) > 0 and time.monotonic() < end:
            name = min(chosen, key=lambda each: done[each])
            line = fuzzed(name, readers[name], done[name], done[name] + min(SLICE, left))
            common.append_line(options.out, {**line, "machine": common.machine_facts()})
            done[name] += line["inputs"]
            wrong += len(line["faults"])
            kinds = Counter(fault["what"] for fault in line["faults"])
            verdict = "; ".join(f"{count} × {what}" for what, count in kinds.most_common(5)) or "nothing untyped"
            print(f"{done.total():,} inputs, {name}, {line['seconds']:.1f} s: {verdict}", flush=True)
    return int(wrong > 0)


def _options(arguments: Sequence[str] | None) -> Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON lines to append to")
    parser.add_argument("--inputs", type=int, default=130_000, help="how many the file holds at the end")
    parser.add_argument("--minutes", type=float, default=30, help="stop after so long")
    parser.add_argument("--readers", nargs="+", help="default: all")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
