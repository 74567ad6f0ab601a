"""A few thousand hostile inputs, and proof that the harness sees what it looks for."""

from __future__ import annotations

import faulthandler
import os
import signal
import time

import pytest

import fuzz
from bmtpt.errors import TaskError
from readers import Reader, make_readers

NAMES = [
    "task", *(f"rows, {ending}" for ending in ("csv", "tsv", "jsonl", "json", "parquet")),
    "options", "study", "card", "results", "events", "lines to predict",
]  # fmt: skip


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    return make_readers(fuzz.make_folder(tmp_path_factory.mktemp("fuzz")))


def test_every_reader_is_tried(readers):
    assert list(readers) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_hostile_text_is_refused_in_one_sentence_or_read(name, readers):
    line = fuzz.fuzzed(name, readers[name], 0, 250)
    assert line["faults"] == []
    assert line["refused"] + line["accepted"] == 250
    assert min(line["refused"], line["accepted"]) > 0 or name == "events"


def test_an_input_is_a_function_of_its_number(readers):
    first, second = ([readers["task"].input("task", number) for number in range(50)] for _ in range(2))
    assert first == second
    assert len(set(first)) > 40


def misbehave(content: bytes, number: int) -> None:
    if number == 1:
        raise KeyError("a bug of ours")
    if number == 2:
        faulthandler.disable()  # pytest's would print a stack that looks like a crash of the suite
        os.kill(os.getpid(), signal.SIGSEGV)
    if number == 3:
        time.sleep(60)
    if number == 4:
        bytearray(2 * fuzz.MEMORY)
    if number == 5:
        raise TaskError("the file is wrong")


def test_tracebacks_crashes_hangs_and_memory_are_found_and_the_next_input_follows(monkeypatch):
    monkeypatch.setattr(fuzz, "HANG", 0.5)
    line = fuzz.fuzzed("x", Reader(({},), lambda value: b"x", misbehave), 0, 7)
    found = {fault["input"]: fault["what"] for fault in line["faults"]}
    assert found.pop(1).startswith("KeyError: 'a bug of ours' (test_fuzz.py, line")
    assert found.pop(2) == "the process ended with -11"
    assert found.pop(3).startswith("Hang: takes longer than")
    assert found.pop(4).startswith("MemoryError")
    assert found == {}
    assert (line["inputs"], line["accepted"], line["refused"]) == (7, 2, 1)
