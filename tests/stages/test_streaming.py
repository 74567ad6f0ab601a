"""A source stage whose rows do not fit in memory takes the steps that it would take if they did."""

from __future__ import annotations

import csv
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bmtpt.errors import SettingsError
from bmtpt.settings import AdaptSettings, LearnSettings
from bmtpt.stages.rows import source_rows, target_rows
from bmtpt.stages.source import learn
from bmtpt.tasks import TaskData, examples, load_data, load_task, splits
from bmtpt.tasks.tokens import Streamed
from tiny import BAD, GOOD, THINGS

SETTINGS = LearnSettings(
    particles=2, prompt_length=3, steps=4, evaluate_every=2, batch_size=3, learning_rate=0.1, validation_rows=4
)


def source(folder: Path, changed: str = "") -> TaskData:
    """Return a task of 60 rows in one table, which holds back some of its training rows."""
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sentence", "label"])
        for i in range(60):
            writer.writerow(
                [changed if changed and i == 59 else f"the {THINGS[i % 13]} is {(BAD, GOOD)[i % 2][i % 8]} .", i % 2]
            )
    (folder / "rows.yaml").write_text(
        "name: rows\nfile: rows.csv\nsplit: none\ntext: 'sentence: {sentence}'\nlabels: {0: negative, 1: positive}\n"
    )
    return load_data(load_task(folder / "rows.yaml"))


@pytest.fixture(params=[2**20, 20], ids=["orders are lists", "orders are computed"])
def large(request, monkeypatch) -> int:
    monkeypatch.setattr(splits, "LARGE", request.param)
    return request.param


def streaming(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples, "IN_MEMORY", 8)


def test_a_streamed_source_gives_the_posterior_of_one_in_memory(tiny_backbone, tmp_path, monkeypatch, large):
    whole = learn(tiny_backbone, [source(tmp_path)], SETTINGS)
    streaming(monkeypatch)
    data = source(tmp_path)
    train, _, _ = source_rows(tiny_backbone, [data], SETTINGS)
    assert isinstance(train["rows"], Streamed)
    streamed = learn(tiny_backbone, [data], SETTINGS)
    assert torch.equal(streamed.particles, whole.particles)
    assert streamed.card.diagnostics == whole.card.diagnostics
    capped = SETTINGS.model_copy(update={"train_rows": 20})
    with monkeypatch.context() as patch:
        patch.setattr(examples, "IN_MEMORY", 2**17)
        wanted = learn(tiny_backbone, [source(tmp_path)], capped).particles
    assert torch.equal(learn(tiny_backbone, [data], capped).particles, wanted)


def test_a_streamed_run_that_is_stopped_and_resumed_ends_in_the_same_bits(tiny_backbone, tmp_path, monkeypatch, large):
    streaming(monkeypatch)
    run = tmp_path / "run"

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn(tiny_backbone, [source(tmp_path)], SETTINGS, folder=run, listener=stop)
    other = source(tmp_path, changed="the dog is good .")
    with pytest.raises(SettingsError, match="other settings, rows or model"):
        learn(tiny_backbone, [other], SETTINGS, folder=run, resume=True)
    resumed = learn(tiny_backbone, [source(tmp_path)], SETTINGS, folder=run, resume=True)
    assert torch.equal(resumed.particles, learn(tiny_backbone, [source(tmp_path)], SETTINGS).particles)


def test_streamed_texts_that_are_too_long_are_told_from_those_looked_at(tiny_backbone, tmp_path, monkeypatch, caplog):
    streaming(monkeypatch)
    with caplog.at_level(logging.WARNING, logger="bmtpt"):
        train, _, _ = source_rows(tiny_backbone, [source(tmp_path)], SETTINGS.model_copy(update={"max_length": 6}))
    assert "48 of 48 texts that were looked at, of 48, are longer than 6 tokens and are cut" in caplog.text
    assert max(len(ids) for ids in train["rows"].rows(range(48)).inputs) == 6


def test_shots_of_a_streamed_target_are_those_of_one_in_memory(tiny_backbone, tmp_path, monkeypatch):
    settings = AdaptSettings(shots=6, unlabelled_rows=5, readout="linear")
    whole = target_rows(tiny_backbone, source(tmp_path), settings)
    streaming(monkeypatch)
    streamed = target_rows(tiny_backbone, source(tmp_path), settings)
    for one, other in ((whole.train, streamed.train), (whole.unlabelled, streamed.unlabelled)):
        assert [e.text for e in one.examples] == [e.text for e in other.examples]
    assert len(streamed.unlabelled) == 5


def test_a_streamed_source_with_validation_rows_of_its_own_validates_on_them(tiny_backbone, tmp_path, monkeypatch):
    whole = source(tmp_path)
    streaming(monkeypatch)
    data = source(tmp_path)
    own = [replace(each, select=tuple(each.train)[:5]) for each in (whole, data)]
    found = [learn(tiny_backbone, [each], SETTINGS) for each in own]
    assert torch.equal(found[0].particles, found[1].particles)
