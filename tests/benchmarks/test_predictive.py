"""The measurement of the mean over a readout's posterior."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import predictive

ROOT = Path(__file__).parents[2]


def test_the_method_page_holds_the_table_of_the_committed_lines():
    lines = [json.loads(line) for line in (ROOT / "benchmarks/results/predictive.jsonl").read_text().splitlines()]
    assert predictive.table(lines) in (ROOT / "docs/method.md").read_text(encoding="utf-8")


def test_every_form_but_the_sampled_one_has_the_maps_likeliest_words(tiny_backbone, tiny_tasks, monkeypatch):
    monkeypatch.setattr(predictive, "SHOTS", (4,))
    monkeypatch.setattr(predictive, "DRAWS", 2)
    lines = list(predictive.measure(tiny_backbone, tiny_tasks["pairs"]))
    by_form = {
        form: [line for line in lines if line["form"] == form] for form in dict.fromkeys(x["form"] for x in lines)
    }
    assert list(by_form) == ["MAP", "mean over the posterior", "every direction", "sampled"]
    at_map, mean, every, sampled = by_form.values()
    for one, two, three in zip(at_map, mean, every, strict=True):
        assert one["accuracy"] == two["accuracy"] == three["accuracy"]
        assert one["nll"] != two["nll"]
        assert two["nll"] == pytest.approx(three["nll"], abs=1e-9)  # 4 labels have no more directions
    for two, four in zip(mean, sampled, strict=True):
        assert four["nll"] == pytest.approx(two["nll"], abs=0.05)
