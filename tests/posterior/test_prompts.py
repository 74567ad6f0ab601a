"""Initialisers draw what they say, and the decomposition is the paper's."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Generator, Tensor

from bmtpt.errors import SettingsError
from bmtpt.posterior.prompts import (
    around,
    compose,
    from_vocabulary,
    independent_particles,
)

V, D = 60, 4
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def table(dtype: torch.dtype = torch.float64) -> Tensor:
    """Row r of this table is r·D, r·D + 1, …: a row tells its id."""
    return torch.arange(V * D, dtype=dtype).reshape(V, D)


FREQUENT = torch.arange(3, 43)


@DTYPES
def test_a_prompt_from_the_vocabulary_is_different_rows_of_frequent_tokens(dtype):
    prompt = from_vocabulary(table(dtype)[FREQUENT], 40, seeded())
    ids = (prompt[:, 0] / D).long()
    assert torch.equal(prompt, table(dtype)[ids])
    assert torch.equal(ids.sort().values, FREQUENT)
    assert not torch.equal(ids, FREQUENT)


def test_the_same_seed_gives_the_same_prompt_and_another_seed_another():
    first = from_vocabulary(table()[FREQUENT], 10, seeded(1))
    assert torch.equal(first, from_vocabulary(table()[FREQUENT], 10, seeded(1)))
    assert not torch.equal(first, from_vocabulary(table()[FREQUENT], 10, seeded(2)))


def test_a_prompt_shares_no_memory_or_gradient_with_the_table():
    embeddings = torch.nn.Parameter(table())
    prompt = from_vocabulary(embeddings[FREQUENT], 10, seeded())
    assert not prompt.requires_grad
    prompt.zero_()
    assert torch.equal(embeddings, table())


def test_independent_particles_are_another_draw_each():
    particles = independent_particles(table()[FREQUENT], 10, 5, seeded())
    assert particles.shape == (5, 10, D)
    assert len({tuple(particle[:, 0].tolist()) for particle in particles}) == 5
    assert torch.equal(particles[0], from_vocabulary(table()[FREQUENT], 10, seeded()))


@DTYPES
def test_particles_around_a_draw_lie_at_the_stated_distance(dtype):
    wide = torch.zeros(V, 1000, dtype=dtype) + table(dtype)[:, :1]
    draw = from_vocabulary(wide[FREQUENT], 20, seeded())
    particles = around(draw, 5, 0.3, seeded())
    noise = particles - draw
    assert particles.dtype == dtype
    assert noise.square().mean().sqrt().item() == pytest.approx(0.3, rel=0.02)
    assert (noise[0] * noise[1]).mean().abs().item() < 0.01


def test_particles_around_a_prompt_without_jitter_are_copies_of_it():
    prompt = table()[:6]
    particles = around(prompt, 3, 0.0, seeded())
    assert torch.equal(particles, prompt.expand(3, 6, D))
    particles.zero_()
    assert prompt.any()


@DTYPES
def test_compose_is_the_elementwise_product_with_the_outer_product(dtype):
    full, row, col = (torch.randn(shape, generator=seeded(), dtype=dtype) for shape in [(6, D), (6,), (D,)])
    torch.testing.assert_close(compose(full, row, col), full * torch.outer(row, col))
    particles = torch.randn(3, 6, D, generator=seeded(), dtype=dtype)
    torch.testing.assert_close(compose(particles, row, col)[2], compose(particles[2], row, col))


def test_all_three_factors_receive_gradients():
    factors = [factor.requires_grad_() for factor in (1 + table()[:6], torch.ones(6), torch.ones(D))]
    compose(*factors).square().sum().backward()
    assert all(factor.grad is not None and factor.grad.abs().min() > 0 for factor in factors)


@pytest.mark.parametrize("prompt_length", [0, 41])
def test_a_prompt_longer_than_the_tokens_to_draw_from_is_refused(prompt_length):
    with pytest.raises(SettingsError, match="give 1 to 40"):
        from_vocabulary(table()[FREQUENT], prompt_length, seeded())


def test_wrong_numbers_of_particles_and_jitters_are_refused():
    with pytest.raises(SettingsError, match="particles is 0"):
        independent_particles(table()[FREQUENT], 5, 0, seeded())
    for jitter in (-1.0, math.nan, math.inf):
        with pytest.raises(SettingsError, match="jitter"):
            around(table()[:2], 2, jitter, seeded())
