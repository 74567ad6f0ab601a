"""Widths chosen on tasks whose prior is known, and their curve against sums written out."""

from __future__ import annotations

import pytest
import torch

from bmtpt.posterior.readout import Labelled, Widths, fit, label_free_offset
from bmtpt.posterior.widths import GRID, held_back_nll, width_curves


def drawn(offset_std: float, weight_std: float, seed: int, rows: int = 96, words: int = 3, width: int = 8) -> Labelled:
    """A task whose readout is a draw from the prior."""
    g = torch.Generator().manual_seed(seed)
    scores = torch.randn(rows, words, generator=g).log_softmax(dim=1).double()
    states = torch.randn(rows, width, generator=g).double()
    offset = label_free_offset(scores) + offset_std * torch.randn(words, generator=g)
    weights = weight_std * torch.randn(words, width, generator=g).double()
    z = scores + offset + states @ weights.T / width**0.5
    return Labelled(scores, states, torch.multinomial(z.softmax(dim=1), 1, generator=g)[:, 0])


@pytest.mark.parametrize("true", [0.25, 1.0, 4.0])
def test_the_offset_width_that_tasks_were_drawn_with_is_found_within_a_step_of_the_grid(true):
    steps = [0.0625, 0.25, 1.0, 4.0, 16.0]
    grid = [Widths(std, 0.0) for std in steps]
    tasks = [drawn(true, 0.0, seed) for seed in range(24)]
    nll = torch.stack([held_back_nll(task, 8, grid, draws=1) for task in tasks]).mean(dim=0)
    assert abs(int(nll.argmin()) - steps.index(true)) <= 1
    if true != 1.0:  # and on its side of the middle
        assert (steps[int(nll.argmin())] < 1.0) == (true < 1.0)


@pytest.mark.parametrize(("true", "least", "most"), [(0.0, 0.0, 1.0), (4.0, 2.0, 16.0)])
def test_tasks_whose_states_say_nothing_want_no_weights_and_others_want_them(true, least, most):
    steps = [0.0, 1.0, 2.0, 4.0, 16.0]
    grid = [Widths(1.0, std) for std in steps]
    tasks = [drawn(1.0, true, seed) for seed in range(16)]
    nll = torch.stack([held_back_nll(task, 24, grid, draws=1) for task in tasks]).mean(dim=0)
    assert least <= steps[int(nll.argmin())] <= most


def test_the_curve_is_the_mean_over_tasks_and_draws_of_the_nll_of_rows_that_were_not_fitted():
    tasks = [drawn(1.0, 1.0, seed, rows=12) for seed in range(2)]
    grid = [Widths(0.5, 0.0), Widths(2.0, 1.0, 0.3)]
    curves = width_curves(tasks, grid, seed=5)
    assert list(curves) == [4]  # 12 rows are too few for 16 labels
    for g, widths in enumerate(grid):
        values = []
        for scores, states, labels in tasks:
            for d in range(4):
                order = torch.randperm(12, generator=torch.Generator().manual_seed(5 + d))
                few, rest = order[:4], order[4:]
                readout = fit(scores[few], labels[few], widths, states[few], label_free_offset(scores[few]))
                log_p = readout.logits(scores[rest], states[rest]).log_softmax(dim=1)
                values.append(-float(log_p[range(8), labels[rest]].mean()))
        assert float(curves[4][g]) == pytest.approx(sum(values) / len(values), rel=1e-9)


def test_of_equal_widths_the_simplest_come_first():
    assert GRID[0] == Widths(0.0, 0.0, 0.0)
    assert [widths.slope for widths in GRID] == sorted(widths.slope for widths in GRID)
    assert len(set(GRID)) == len(GRID)
