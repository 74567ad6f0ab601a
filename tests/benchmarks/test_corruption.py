"""A few hundred damaged files of every kind: refused in a sentence, or without any effect."""

from __future__ import annotations

import logging
from collections import Counter

import pytest

import corruption

CASES = 208


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    logging.disable()
    try:
        subjects = corruption.subjects(tmp_path_factory.mktemp("corruption"))
        return list(corruption.results_of(subjects, seed=1, numbers=range(CASES)))
    finally:
        logging.disable(logging.NOTSET)


def test_every_damaged_file_is_refused_in_a_sentence_or_changes_no_bit(lines):
    assert [line for line in lines if line["verdict"] not in ("refused", "harmless")] == []
    assert len({line["subject"] for line in lines}) == 13
    assert {line["damage"] for line in lines} == set(corruption.DAMAGES)


def test_what_is_used_by_its_bits_is_nearly_always_refused(lines):
    bits = ("posterior", "prompt", "checkpoint")
    counts = Counter(line["verdict"] for line in lines if line["subject"] in bits)
    assert counts["harmless"] == 0
    assert counts["refused"] == 3 * CASES / 13


def test_the_counts_add_up_to_the_cases(lines):
    counted = corruption.summary(lines, seed=1)
    assert sum(line["cases"] for line in counted) == CASES
    for line in counted:
        assert line["cases"] == line["refused"] + line["harmless"] + line["wrong"] + line["untyped"]


def test_a_result_that_differs_or_an_error_that_is_no_sentence_is_told(tmp_path):
    (tmp_path / "a").mkdir()
    uses = {
        "wrong": lambda folder: (folder / "x").read_bytes(),
        "untyped": lambda folder: {}["x"],
        "harmless": lambda folder: b"ok",
    }
    for wanted, use in uses.items():
        subject = corruption.Subject("x", tmp_path / "a", tmp_path / "a", "x", use)
        assert corruption.verdict(subject, b"no", b"ok")[0] == wanted
