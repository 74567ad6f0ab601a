from __future__ import annotations

import errno
import pickle

import pytest

from bmtpt.errors import DataError
from bmtpt.tasks import spool
from bmtpt.tasks.spool import BLOCK, Spool


@pytest.mark.parametrize("bytes_in_memory", [2**24, 10])
def test_what_was_appended_is_fetched_by_position(monkeypatch, bytes_in_memory):
    monkeypatch.setattr(spool, "IN_MEMORY", bytes_in_memory)
    rows, kept = [{"text": "é" * (i % 7), "n": [i, None]} for i in range(3 * BLOCK + 5)], Spool()
    for row in rows:
        kept.append(row)
    assert len(kept) == len(rows)
    index = [len(rows) - 1, 0, BLOCK, BLOCK - 1, 0]
    assert kept.fetch(index) == [rows[i] for i in index]
    assert kept.fetch(range(len(rows))) == rows
    assert kept.fetch([]) == []


def test_a_full_disk_is_said_with_the_cure(monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pickle, "dump", full)
    kept = Spool()
    for row in range(BLOCK - 1):
        kept.append(row)
    with pytest.raises(DataError, match=r"not in /.* \(No space left on device\); set TMPDIR to a folder with as much"):
        kept.append(BLOCK - 1)
