"""Optimisers and the learning-rate schedule against torch and against arithmetic."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bmtpt.settings import LoopSettings
from bmtpt.train.optimisers import ParameterGroup, make_optimiser, schedule_factor


def leaf(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_(True)


def factors(steps: int, **options: object) -> list[float]:
    settings = LoopSettings.model_validate({"steps": steps, **options})
    return [schedule_factor(step, settings) for step in range(steps)]


def test_linear_decay_ends_one_step_above_zero():
    assert factors(4) == [1.0, 0.75, 0.5, 0.25]


def test_the_warm_up_rises_to_one_and_the_decay_starts_there():
    assert factors(6, warmup_steps=2) == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]


def test_the_constant_schedule_is_constant_behind_its_warm_up():
    assert factors(5, schedule="constant", warmup_steps=3) == pytest.approx([1 / 3, 2 / 3, 1, 1, 1])


@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_every_factor_is_positive_and_at_most_one(schedule):
    assert all(0 < factor <= 1 for factor in factors(50, warmup_steps=7, schedule=schedule))


def test_an_empty_group_is_refused_by_name():
    with pytest.raises(ValueError, match="'u and v' holds no parameter"):
        ParameterGroup("u and v", [], 0.1)


@pytest.mark.parametrize("kind", ["adamw", "sgd", "adafactor"])
def test_each_group_has_its_own_rate_and_the_stated_weight_decay(kind):
    groups = [ParameterGroup("A", [leaf(2, 3, 4)], 0.3), ParameterGroup("u and v", [leaf(2, 3), leaf(2, 4)], 0.01)]
    optimiser = make_optimiser(groups, LoopSettings(optimiser=kind, weight_decay=0.02))
    assert [group["lr"] for group in optimiser.param_groups] == [0.3, 0.01]
    assert [group["weight_decay"] for group in optimiser.param_groups] == [0.02, 0.02]


def test_adamw_takes_the_step_that_its_equations_give():
    theta, gradient = leaf(1, 2, 3), leaf(1, 2, 3, seed=1).detach()
    before = theta.detach().clone()
    optimiser = make_optimiser([ParameterGroup("A", [theta], 0.3)], LoopSettings(weight_decay=0.1))
    theta.grad = gradient
    optimiser.step()
    # The first step of Adam is the sign of the gradient (up to epsilon); the decay is decoupled from it.
    expected = before * (1 - 0.3 * 0.1) - 0.3 * gradient / (gradient.abs() + 1e-8)
    assert torch.allclose(theta.detach(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", ["adamw", "sgd", "adafactor"])
def test_candidates_side_by_side_train_as_if_alone(kind):
    settings = LoopSettings(optimiser=kind, weight_decay=0.01)
    start = leaf(3, 4, 5).detach()
    scale = torch.tensor([1.0, 9.0, 0.01])[:, None, None]  # one loud candidate must not quiet the others

    def trained(which: list[int]) -> Tensor:
        theta = start[which].clone().requires_grad_(True)
        optimiser = make_optimiser([ParameterGroup("A", [theta], 0.1)], settings)
        for step in range(4):
            theta.grad = (theta.detach() - step) * scale[which]
            optimiser.step()
        return theta.detach()

    together = trained([0, 1, 2])
    assert not torch.equal(together, start)
    for r in range(3):
        assert torch.equal(trained([r])[0], together[r])


def test_adafactor_neither_scales_by_the_parameter_nor_chooses_its_own_rate():
    theta = (1000 * torch.ones(1, 2, 3)).requires_grad_(True)
    optimiser = make_optimiser([ParameterGroup("A", [theta], 0.3)], LoopSettings(optimiser="adafactor", weight_decay=0))
    theta.grad = torch.ones_like(theta)
    optimiser.step()
    # A constant gradient has rms 1 after normalisation: the step is the learning rate whatever the parameter's size.
    assert math.isclose(1000 - theta[0, 0, 0].item(), 0.3, rel_tol=1e-3)
