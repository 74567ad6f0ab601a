"""The sentences that a recorded source run gets, and those that it does not."""

from __future__ import annotations

import math

import pytest

from bmtpt.posterior.history import (
    History,
    instability_warning,
    mean_gap_warning,
    no_gain_warning,
    plateau_warning,
    warnings,
)

FALLING = [3 * 0.97**step + 0.2 for step in range(100)]


def test_a_run_that_learns_gives_no_warning():
    good = History(5, FALLING, [0.3, 0.4], mean_nll=0.33)
    assert warnings(good) == []
    assert warnings(History(particles=1)) == []


def test_every_failure_of_a_history_is_told():
    flat_then_up = [1.0] * 90 + [2.0] * 10
    told = warnings(History(5, flat_then_up, [0.3, 0.4], 2.4))
    assert [sentence.split()[1] for sentence in told] == ["is", "loss", "posterior"]


def test_an_early_plateau_is_told_with_what_to_change():
    sentence = plateau_warning([3.0, 2.0, 1.5, *[1.2] * 97], particles=5)
    assert sentence is not None
    assert "More particles than 5" in sentence
    assert "'row'" in sentence


@pytest.mark.parametrize(
    "losses",
    [
        pytest.param([1.0] * 19, id="too short"),
        pytest.param([2.0] * 10 + [0.01] * 90, id="solved"),
        pytest.param(FALLING, id="falling"),
    ],
)
def test_what_is_no_plateau_is_not_called_one(losses):
    assert plateau_warning(losses, particles=5) is None


def test_an_unstable_run_is_told():
    assert "unstable" in (instability_warning(FALLING + [3.0] * 20) or "")
    assert "not a number" in (instability_warning([1.0, math.nan]) or "")
    assert "not a number" in (instability_warning([1.0, math.inf]) or "")
    assert instability_warning(FALLING) is None


def test_noise_near_zero_loss_is_not_instability():
    assert instability_warning([0.01] * 90 + [0.03] * 10) is None


def test_the_measured_gap_between_mean_and_particles_is_told_with_the_cure():
    sentence = mean_gap_warning(2.36, [0.19, 0.25, 0.30, 0.33, 0.36])
    assert sentence is not None
    assert all(cure in sentence for cure in ("'shared'", "'prompt'", "best particle", "mixture"))
    assert mean_gap_warning(math.nan, [0.2, 0.3]) is not None


@pytest.mark.parametrize(("mean", "own", "is_told"), [(4.7, 4.0, True), (4.4, 4.0, False), (0.45, 0.4, False)])
def test_a_large_gap_is_told_however_high_the_losses_are(mean, own, is_told):
    assert (mean_gap_warning(mean, [own, own]) is not None) == is_told


def test_a_mean_as_good_as_its_particles_is_not_warned_about():
    assert mean_gap_warning(0.31, [0.28, 0.30]) is None
    assert mean_gap_warning(0.31, []) is None
    assert mean_gap_warning(None, [0.28]) is None


@pytest.mark.parametrize(("ours", "told"), [(0.5, False), (0.6, True), (0.7, True)])
def test_no_gain_over_plain_prompt_tuning_is_told(ours, told):
    assert (no_gain_warning(ours, 0.6) is not None) == told
