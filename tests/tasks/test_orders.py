"""Random orders and choices of many rows, compared with what lists say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bmtpt.tasks import splits
from bmtpt.tasks.orders import BLOCK, Chosen, Shuffled, by_chance
from bmtpt.tasks.splits import stretches
from bmtpt.tasks.tokens import epoch_rows


@given(n=st.integers(1, 5_000), seed=st.integers(0, 2**63))
def test_an_order_holds_every_position_once(n, seed):
    (images,) = Shuffled(n, seed).pieces(0, n)
    assert sorted(images.tolist()) == list(range(n))


def test_an_order_can_be_read_at_any_place_and_depends_on_every_seed():
    order = Shuffled(10_000_000, 3, 1, 0)
    assert [order[i] for i in (0, 9_999_999)] == order.images(np.array([0, 9_999_999])).tolist()
    heads = {
        tuple(Shuffled(10_000_000, *key).images(np.arange(5))) for key in ((3, 1, 0), (4, 1, 0), (3, 0, 0), (3, 1, 1))
    }
    assert len(heads) == 4


def test_every_position_is_as_likely_as_another_and_neighbours_part():
    n, seeds = 12, 1_000
    images = np.array([Shuffled(n, seed).images(np.arange(n)) for seed in range(seeds)])
    for position in (0, 5, 11):
        counts = np.bincount(images[:, position], minlength=n)
        assert ((counts - seeds / n) ** 2 / (seeds / n)).sum() < 31.3  # χ² with 11 degrees of freedom: p = 0.001
    large = Shuffled(2**21, 0).images(np.arange(50_000))
    assert abs(np.corrcoef(large[:-1], large[1:])[0, 1]) < 0.02  # standard error 0.0045


@given(n=st.integers(1, 3 * BLOCK), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_chosen_positions_are_those_of_a_list(n, share, seed):
    mask = np.random.default_rng(seed).random(n) < share
    chosen, wanted = Chosen.where(mask, n), np.flatnonzero(mask).tolist()
    assert (len(chosen), list(chosen)) == (len(wanted), wanted)
    assert [chosen[i] for i in range(0, len(wanted), 97)] == wanted[::97]
    assert chosen[-3:] == wanted[-3:]
    assert list(chosen.others()) == np.flatnonzero(~mask).tolist()
    assert list(Chosen.of([np.array(wanted[::-1], dtype=int)], n)) == wanted
    with pytest.raises(IndexError):
        chosen[len(wanted)]


def test_rows_divided_by_chance_keep_their_share_and_what_belongs_together():
    keys = [f"text {i // 2}" for i in range(20_000)]
    first, second = by_chance(keys, len(keys), 0.2, seed=1)
    assert sorted([*first, *second]) == list(range(len(keys)))
    assert not {keys[i] for i in first} & {keys[i] for i in second}
    assert len(second) == pytest.approx(4_000, abs=5 * (10_000 * 0.2 * 0.8) ** 0.5 * 2)
    assert list(by_chance(keys, len(keys), 0.2, seed=2)[1]) != list(second)


def test_of_many_rows_stretches_of_an_order_are_the_same_sets_without_lists(monkeypatch):
    monkeypatch.setattr(splits, "LARGE", 1_000)
    parts = stretches(5_000, 42, 1_000, 2_000)
    assert [len(part) for part in parts] == [1_000, 1_000, 3_000]
    assert sorted(i for part in parts for i in part) == list(range(5_000))
    assert [list(part) for part in parts] == [sorted(part) for part in parts]
    assert stretches(1_000, 42, 400)[0] == splits.permutation(1_000, 42)[:400]


def test_epochs_of_many_rows_visit_every_row_once(monkeypatch):
    monkeypatch.setattr(splits, "LARGE", 100)
    seen = [i for step in range(101) for i in epoch_rows(101, 3, step, seed=2**33, task=1)]
    epochs = [seen[:101], seen[101:202], seen[202:]]
    assert [sorted(epoch) for epoch in epochs] == [list(range(101))] * 3
    assert epochs[0] != epochs[1]
