"""Positions of particles, as a log keeps them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bmtpt.posterior.positions import MOST, read_positions, written_positions


def test_positions_come_back_to_three_digits_and_of_many_particles_the_first():
    averages = np.random.default_rng(0).normal(scale=20, size=(MOST + 3, 16)).astype(np.float32)
    read = read_positions(json.loads(json.dumps(written_positions(averages))))
    np.testing.assert_allclose(read, averages[:MOST], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "written", [{}, {"particles": 2}, {"particles": 2, "float16": "%"}, {"particles": 3, "float16": "AAAAAA=="},
                {"particles": 1, "float16": "AHw="}, {"particles": "1", "float16": "AAA="}]
)  # fmt: skip
def test_what_is_no_position_is_none(written):
    assert read_positions(written) is None
