"""What there is to win on a task, against evaluate and against the verdict's own rule."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bmtpt.errors import DataError, SettingsError
from bmtpt.methods.registry import get_method
from bmtpt.posterior.prompts import from_vocabulary
from bmtpt.settings import AdaptSettings
from bmtpt.stages.evaluate import evaluate
from bmtpt.stages.headroom import LENGTH, Answerer, Headroom, headroom
from bmtpt.stages.target import fit_method


@pytest.fixture(scope="module")
def found(tiny_backbone, tiny_tasks) -> Headroom:
    return headroom(tiny_backbone, tiny_tasks["pairs"], (4, 8))


def test_the_untrained_prompt_scores_as_evaluate_says(tiny_backbone, tiny_tasks, found):
    target = tiny_tasks["pairs"]
    settings = AdaptSettings(steps=0, selection="none", prior="none", readout="none")
    prompt = fit_method(get_method("pt"), tiny_backbone, [target], settings, prompt_length=LENGTH)["pairs"]
    start = from_vocabulary(tiny_backbone.frequent_rows(), LENGTH, torch.Generator().manual_seed(0))
    scored = evaluate(tiny_backbone, replace(prompt, prompts=start[None]), target.test)
    way = next(way for way in found.ways if way.name == "untrained prompt")
    assert way.accuracy == pytest.approx(scored.metrics["accuracy"])
    assert way.nll == pytest.approx(scored.calibration["nll"], abs=1e-5)


def test_the_constant_answer_is_the_most_frequent_label_of_the_training_rows(tiny_tasks, found):
    train, test = (
        [example.label for example in part] for part in (tiny_tasks["pairs"].train, tiny_tasks["pairs"].test)
    )
    most = max(set(train), key=train.count)
    assert found.ways[0].accuracy == pytest.approx(100 * test.count(most) / len(test), abs=100 / len(test) + 1e-9)


def test_every_number_of_labels_has_an_offset_and_a_linear_readout_and_all_labels_come_last(tiny_tasks, found):
    names = [(way.name, way.labels) for way in found.ways[3:]]
    whole = len(tiny_tasks["pairs"].train)
    assert names == [
        *((name, k) for k in (4, 8) for name in ("offset", "offset and linear")),
        ("offset and linear", whole),
    ]
    assert found.ways[-1].nll < found.ways[1].nll


def test_the_same_seed_gives_the_same_figures(tiny_backbone, tiny_tasks, found):
    assert headroom(tiny_backbone, tiny_tasks["pairs"], (4, 8)).ways == found.ways


@pytest.mark.parametrize(
    ("constant", "few", "whole", "words"),
    [
        (50, 51, 53, "no further than a constant answer"),
        (50, 88, 90, "may be all you need"),
        (50, 60, 90, "30 points more"),
    ],
)
def test_the_verdict_counts_a_difference_from_two_standard_errors(constant, few, whole, words):
    ways = [Answerer("constant answer", 400, constant, 0.7), Answerer("untrained prompt", 0, constant, 0.7)]
    ways += [Answerer("offset", 16, few, 0.6), Answerer("offset and linear", 400, whole, 0.3)]
    assert words in Headroom(ways, 250, 16).verdict


def test_numbers_of_labels_that_there_are_no_rows_for_are_left_out_unless_they_are_asked_for(tiny_backbone, tiny_tasks):
    few = replace(tiny_tasks["pairs"], train=tiny_tasks["pairs"].train[:10])
    assert [way.labels for way in headroom(tiny_backbone, few).ways[3:]] == [4, 4, 10]


def test_equal_scores_on_two_rows_are_not_told_apart():
    ways = [Answerer("constant answer", 8, 50, 0.7), Answerer("offset", 4, 100, 0.1)]
    assert "may be all you need" in Headroom([*ways, Answerer("offset and linear", 8, 100, 0.1)], 2, 4).verdict


def test_what_cannot_be_measured_is_said(tiny_backbone, tiny_tasks):
    with pytest.raises(SettingsError, match="has no label words"):
        headroom(tiny_backbone, tiny_tasks["answers"])
    with pytest.raises(DataError, match="too few for 4000 shots"):
        headroom(tiny_backbone, tiny_tasks["pairs"], (4000,))
    with pytest.raises(SettingsError, match="such as 16"):
        headroom(tiny_backbone, tiny_tasks["pairs"], ())
