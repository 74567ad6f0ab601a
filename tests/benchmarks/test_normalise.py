"""The benchmark of how label words are compared reads prompts as evaluations do, and its table is in the document."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import normalise
from bmtpt.inference.score import evaluate_prompts, make_scorer
from bmtpt.tasks.tokens import tokenise

ROOT = Path(__file__).parents[2]


def test_the_documents_table_is_that_of_the_committed_lines():
    lines = [json.loads(line) for line in (ROOT / "benchmarks/results/normalise-cpu.jsonl").read_text().splitlines()]
    assert normalise.table(lines) in (ROOT / "docs/method.md").read_text(encoding="utf-8")
    assert {len(line["label_tokens"]) for line in lines} >= {2, 3, 8}
    assert all(max(line["label_tokens"]) - min(line["label_tokens"]) >= 3 for line in lines)


def test_its_lines_are_the_figures_of_an_evaluation(tiny_backbone, tiny_tasks):
    data = tiny_tasks["sentiment"]
    lines = list(normalise.measure(tiny_backbone, data, seeds=1, steps=1))
    assert [(line["prompt"], line["normalise"]) for line in lines] == [
        (prompt, way) for prompt in ("no prompt", "16 shots") for way in ("none", "length", "pmi")
    ]
    no_prompt = tiny_backbone.embed(tiny_backbone.frequent_ids()[:0])[None]
    rows = tokenise(tiny_backbone, data.test, data.task.max_length)
    for line in lines[:3]:
        scorer = make_scorer(tiny_backbone, data.task, normalise=line["normalise"])
        wanted = evaluate_prompts(tiny_backbone.engine, no_prompt, rows, scorer)
        assert line["accuracy"] == pytest.approx(wanted.metrics["accuracy"])
        assert line["nll"] == pytest.approx(wanted.calibration["nll"], rel=1e-5)
