"""The readout's prior from the source tasks to the targets: chosen, noted in the card, and used by adapt."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from bmtpt.artifacts.inspect import describe_artifact
from bmtpt.artifacts.readout_prior import WidthCurve, WidthPoint, nearest_curve
from bmtpt.artifacts.saved import Posterior
from bmtpt.backbone.engine import Engine
from bmtpt.inference.score import labels_of, make_scorer, read
from bmtpt.posterior.readout import Labelled
from bmtpt.posterior.widths import GRID, held_back_nll
from bmtpt.settings import AdaptSettings, LearnSettings
from bmtpt.stages.readout_prior import with_readout_prior
from bmtpt.stages.source import learn
from bmtpt.stages.target import adapt
from bmtpt.tasks.tokens import tokenise

QUICK = {"steps": 1, "evaluate_every": 1, "batch_size": 2, "prompt_length": 3, "particles": 2, "validation_rows": 2}


def curve(shots: int, **nll: float) -> WidthCurve:
    """Points named by their widths: b2w1 has σ_b = 2 and σ_w = 1."""
    made = [WidthPoint(offset_std=int(n[1]), weight_std=int(n[3]), slope_std=0, nll=v) for n, v in nll.items()]
    return WidthCurve(shots=shots, points=tuple(made))


CURVES = (curve(4, b1w0=0.9, b2w1=0.8, b3w0=0.85), curve(64, b4w0=0.5, b1w2a1=0.6))


@pytest.fixture(scope="module")
def sources(tiny_tasks) -> list[Any]:
    return [tiny_tasks["sentiment"], tiny_tasks["answers"]]


@pytest.fixture(scope="module")
def posterior(tiny_backbone, sources) -> Posterior:
    return learn(tiny_backbone, sources, LearnSettings(**QUICK))


def test_the_card_holds_the_curve_of_the_mean_prompt_on_held_back_rows_with_label_words(
    tiny_backbone, sources, posterior, tmp_path
):
    settings = LearnSettings(**QUICK, readout_prior="sources")
    found = learn(tiny_backbone, sources, settings, folder=tmp_path / "run")
    assert torch.equal(found.particles, posterior.particles)
    (own,) = found.card.readout_prior  # 12 held-back rows are enough for 4 labels
    assert own.shots == 4
    rows = tokenise(tiny_backbone, sources[0].select, sources[0].task.max_length)
    scorer = make_scorer(tiny_backbone, sources[0].task)
    s, h = read(tiny_backbone.engine, posterior.mean[None], rows.batch.inputs, scorer)
    wanted = held_back_nll(Labelled(s[0], h[0], labels_of(rows)), 4, GRID[:9])
    assert [point.nll for point in own.points[:9]] == pytest.approx(wanted.tolist(), rel=1e-4)
    assert [tuple(point.model_dump().values())[:3] for point in own.points] == [tuple(widths) for widths in GRID]
    assert Posterior.load(tmp_path / "run").card == found.card
    assert describe_artifact(found)["readout prior"] == str(own)
    assert "readout prior" not in describe_artifact(posterior)


def test_choosing_widths_takes_no_gradient(tiny_backbone, sources, posterior, monkeypatch):
    monkeypatch.setattr(Engine, "gradients", None)
    assert with_readout_prior(tiny_backbone, posterior, sources).card.readout_prior


@pytest.mark.parametrize(
    ("readout", "shots", "widths"),
    [("offset", 6, (3, 0, 0)), ("linear", 6, (2, 1, 0)), ("offset", 20, (4, 0, 0)), ("linear", 20, (4, 0, 0))],
)
def test_adapt_takes_the_best_widths_at_the_nearest_number_of_labels(
    tiny_backbone, tiny_tasks, posterior, readout, shots, widths
):
    target = replace(tiny_tasks["pairs"], select=())
    settings = AdaptSettings(steps=0, selection="none", start="mean", shots=shots, readout=readout)
    chosen = replace(posterior, card=posterior.card.model_copy(update={"readout_prior": CURVES}))
    found = adapt(chosen, target, settings.model_copy(update={"readout_prior": "posterior"}), backbone=tiny_backbone)
    given = dict(zip(("offset_std", "weight_std", "slope_std"), map(float, widths), strict=True))
    assert {name: found.card.settings[name] for name in given} == given
    same = adapt(posterior, target, settings.model_copy(update=given), backbone=tiny_backbone)
    assert torch.equal(found.readouts[0].offset, same.readouts[0].offset)
    fixed = adapt(chosen, target, settings, backbone=tiny_backbone)
    assert fixed.card.settings["offset_std"] == 1.0


def test_the_nearest_number_of_labels_is_nearest_by_ratio():
    assert [nearest_curve(CURVES, labels).shots for labels in (1, 15, 17, 10_000)] == [4, 4, 64, 64]


def test_widths_that_cannot_be_had_are_told(tiny_backbone, tiny_tasks, posterior, sources, caplog):
    few = [replace(sources[0], select=sources[0].select[:7]), sources[1]]
    assert with_readout_prior(tiny_backbone, posterior, few).card.readout_prior == ()
    settings = AdaptSettings(steps=0, selection="none", start="mean", readout="offset", readout_prior="posterior")
    found = adapt(posterior, tiny_tasks["pairs"], settings, backbone=tiny_backbone)
    assert found.card.settings["offset_std"] == 1.0
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert ["no source has label words and 8 held-back rows" in told[0], "holds no widths" in told[1]] == [True, True]
    assert "learn with readout_prior 'sources'" in told[-1]
