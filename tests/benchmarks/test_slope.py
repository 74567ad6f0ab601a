"""The measurement of how sure a readout should take a trained prompt to be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import slope
from bmtpt.backbone.engine import Readings
from bmtpt.posterior.readout import Labelled, Texts, Widths

ROOT = Path(__file__).parents[2]


def test_the_method_page_holds_the_table_of_the_committed_lines():
    lines = [json.loads(line) for line in (ROOT / "benchmarks/results/slope.jsonl").read_text().splitlines()]
    assert slope.table(lines) in (ROOT / "docs/method.md").read_text(encoding="utf-8")


@pytest.fixture
def found():
    """What an untrained and a trained prompt make of six labelled texts, ten more and eight to answer."""
    generator = torch.Generator().manual_seed(0)
    return Readings(*(torch.randn(2, 24, size, generator=generator) for size in (3, 5)))


LABELS = torch.arange(6) % 3


@pytest.mark.parametrize(("share", "prompt"), [(1.0, 1), (0.0, 0)])
def test_a_slope_of_one_is_the_readout_as_it_is_and_a_slope_of_zero_knows_no_words(found, share, prompt):
    s, h = (each[prompt].double() for each in found)
    plain = Labelled(s[:6], h[:6], LABELS).fit(Widths(), Texts(s[6:16], h[6:16]), spread=True)
    wanted = plain.logits(s[16:], h[16:]).softmax(dim=1)
    torch.testing.assert_close(slope.answers(found, share, 1.0, LABELS, 10), wanted)
    other = Readings(found.log_likelihoods + torch.randn(2, 24, 3), found.states)
    given = (share, 0.0, LABELS, 10)
    torch.testing.assert_close(slope.answers(found, *given), slope.answers(other, *given))


def test_the_slope_of_the_untrained_is_the_one_that_its_labels_ask_for(found):
    known = found.log_likelihoods.clone()
    known[0, :6] = 3 * torch.eye(3)[LABELS]  # right and modest: the labels ask for more
    own = slope.read_out(known[0].double(), found.states[0].double(), LABELS, 10, slope.FITTED).slope
    assert own > 1.05
    fitted = slope.answers(Readings(known, found.states), 1.0, None, LABELS, 10)
    torch.testing.assert_close(fitted, slope.answers(Readings(known, found.states), 1.0, own, LABELS, 10))
