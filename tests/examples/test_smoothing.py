"""What a blur leaves of a cosine, and the loss around a saved prompt."""

from __future__ import annotations

import math
import sys

import pytest
import torch

from bmtpt.artifacts.saved import Prompt
from bmtpt.backbone import Backbone
from bmtpt.methods.registry import get_method
from bmtpt.settings import AdaptSettings
from bmtpt.stages.target import fit_method
from bmtpt.tasks import load_data, load_task


@pytest.fixture(scope="module")
def smoothing(example):
    return example("smoothing")


@pytest.mark.parametrize("std", [0.5, 1.0])
@pytest.mark.parametrize("frequency", [0.25, 1.0, 3.0])
def test_a_gaussian_blur_leaves_the_closed_forms_share_of_a_cosine(smoothing, frequency, std):
    assert smoothing.blurred_share(frequency, std) == pytest.approx(math.exp(-((std * frequency) ** 2) / 2), abs=1e-6)


def test_neighbours_lie_at_the_radius_in_directions_that_do_not_depend_on_it(smoothing):
    prompt = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    near, far = (smoothing.neighbours(prompt, radius, 4, seed=7) for radius in (0.5, 2.0))
    assert torch.equal(near[0], prompt)
    torch.testing.assert_close((near[1:] - prompt).square().mean(dim=(1, 2)).sqrt(), torch.full((4,), 0.5))
    torch.testing.assert_close(far[1:] - prompt, 4 * (near[1:] - prompt))
    assert not torch.equal(smoothing.neighbours(prompt, 0.5, 4, seed=8), near)


def test_the_script_measures_the_loss_around_a_saved_prompt(
    smoothing, tiny_t5_folder, tiny_task_folder, tmp_path, monkeypatch, capsys
):
    data = load_data(load_task(str(tiny_task_folder / "pairs.yaml")), "offline")
    settings = AdaptSettings(steps=1, evaluate_every=1)
    backbone = Backbone.from_pretrained(str(tiny_t5_folder))
    prompt = fit_method(get_method("pt"), backbone, [data], settings, prompt_length=3)["pairs"]
    assert isinstance(prompt, Prompt)
    prompt.save(tmp_path / "prompt")
    (at_prompt,) = smoothing.loss_rises(tmp_path / "prompt", "offline", [1e-9], 2, 4)
    assert at_prompt == pytest.approx(0, abs=1e-5)
    monkeypatch.setattr(sys, "argv", ["smoothing.py", str(tmp_path / "prompt"), "--radii", "3", "--rows", "4"])
    smoothing.main()
    assert "prompt  " in capsys.readouterr().out
