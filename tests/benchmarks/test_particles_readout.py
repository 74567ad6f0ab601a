"""The measurement of what a posterior's particles are worth to a readout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import particles_readout
from bmtpt.backbone.engine import Readings

ROOT = Path(__file__).parents[2]
HOW = ("readings", "probabilities", "evidence")


def test_the_method_page_holds_the_table_of_the_committed_lines():
    path = ROOT / "benchmarks/results/particles-readout.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert particles_readout.table(lines) in (ROOT / "docs/method.md").read_text(encoding="utf-8")


def answers(found, how):
    """Answers to eight texts after six labelled and ten without labels."""
    labels = torch.arange(24) % 3
    return particles_readout.answers(found, labels, torch.arange(6), torch.arange(6, 16), torch.arange(16, 24), how)


def random_readings(prompts):
    generator = torch.Generator().manual_seed(0)
    return Readings(*(torch.randn(prompts, 24, size, generator=generator) for size in (3, 5)))


@pytest.mark.parametrize("how", HOW)
def test_a_prompt_that_is_there_four_times_answers_as_it_does_alone(how):
    one = random_readings(1)
    four = Readings(*(each.repeat(4, 1, 1) for each in one))
    assert torch.allclose(answers(four, how), answers(one, "probabilities"), atol=1e-9)


def test_probabilities_are_means_over_the_prompts_and_weights_by_evidence_sum_to_one():
    found = random_readings(3)
    alone = torch.stack([answers(Readings(*(each[m : m + 1] for each in found)), "probabilities") for m in range(3)])
    assert torch.allclose(answers(found, "probabilities").exp(), alone.exp().mean(dim=0))
    weighed = answers(found, "evidence").exp()
    assert torch.allclose(weighed.sum(dim=1), torch.ones(8, dtype=torch.float64))
    assert ((weighed >= alone.exp().amin(dim=0) - 1e-12) & (weighed <= alone.exp().amax(dim=0) + 1e-12)).all()
