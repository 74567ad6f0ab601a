from __future__ import annotations

from collections import Counter
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from bmtpt.errors import DataError
from bmtpt.tasks import SplitLimits, builtin_tasks, few_shot, load_task
from bmtpt.tasks.sources import Rows
from bmtpt.tasks.splits import cut_in_three, halve, hold_out, limit, split_rows
from bmtpt.types import Draw, Example


def rows(count, name="rows"):
    return Rows(name, count, lambda index: [{"i": i} for i in index])


def labelled(*counts):
    return [Example(f"{c}-{i}", "", "", "w", label=c) for c, n in enumerate(counts) for i in range(n)]


@pytest.mark.parametrize("name", [name for name in builtin_tasks() if load_task(name).published])
def test_official_rows_split_into_the_published_sizes(name):
    spec = load_task(name)
    found = [rows(spec.official[split]) for split in spec.split_names]
    train, select, test = split_rows(spec, found, 42)
    # The papers print 40,431 test rows for QQP, GLUE has 40,430.
    expected = (362846, 1000, 40430) if name == "qqp" else spec.published
    assert (len(train), len(select), len(test)) == expected


def test_halving_follows_the_random_permutation_of_seed_42():
    select, test = halve(rows(277), 42)
    order = torch.randperm(277, generator=torch.Generator().manual_seed(42)).tolist()
    assert select.index == order[:138]
    assert test.index == order[138:]


def test_held_out_rows_are_the_head_of_the_random_permutation():
    train, select = hold_out(rows(6000), 42)
    order = torch.randperm(6000, generator=torch.Generator().manual_seed(42)).tolist()
    assert (select.index, train.index) == (order[:1000], order[1000:])


@given(n=st.integers(3, 400), seed=st.integers(0, 5))
def test_splits_are_disjoint_and_lose_no_row(n, seed):
    for parts in (cut_in_three(rows(n), seed), halve(rows(n), seed), hold_out(rows(n), seed)):
        indices = [i for part in parts for i in part.index]
        assert sorted(indices) == list(range(n))
        assert all(len(part) for part in parts)


def test_small_training_sets_hold_out_a_fifth():
    train, select = hold_out(rows(2380), 42)
    assert (len(train), len(select)) == (1904, 476)


def test_yelp_trains_on_its_first_rows_and_selects_with_later_ones():
    train, select = hold_out(rows(560_000), 42, first=100_000)
    assert list(train.index) == list(range(100_000))
    assert len(set(select.index)) == 1000
    assert min(select.index) >= 100_000


def test_without_later_rows_the_first_rows_are_shared():
    train, select = hold_out(rows(10_370), 42, first=100_000)
    assert (len(train), len(select)) == (9370, 1000)


def test_mnli_selects_with_mismatched_and_tests_on_matched():
    spec = load_task("mnli")
    found = [rows(9, name) for name in spec.split_names]
    assert [part.rows.where for part in split_rows(spec, found, 42)] == [
        "train",
        "validation_mismatched",
        "validation_matched",
    ]


def test_two_of_three_splits_hold_out_of_the_first():
    found = [None, rows(8000, "validation"), rows(8000, "test")]
    train, select, test = split_rows(load_task("paws"), found, 42)
    assert (len(train), len(select), len(test)) == (7000, 1000, 8000)
    assert train.rows.where == select.rows.where == "validation"
    assert test.rows.where == "test"


def test_too_few_rows_to_split_are_refused():
    with pytest.raises(DataError, match="at least 3"):
        cut_in_three(rows(2), 42)


def test_caps_draw_rows_that_were_in_the_split():
    parts = cut_in_three(rows(100), 1)
    capped = limit(parts, SplitLimits(train=10, test=7), 5)
    assert [len(part) for part in capped] == [10, 20, 7]
    assert all(set(small.index) <= set(full.index) for small, full in zip(capped, parts, strict=True))
    assert list(capped[0].index) != list(parts[0].index)[:10]
    assert capped == limit(parts, SplitLimits(train=10, test=7), 5)


@pytest.mark.parametrize("draw", get_args(Draw))
def test_a_few_shot_draw_keeps_no_counter_across_calls(draw):
    examples = labelled(50, 50)
    first = few_shot(examples, 16, 3, draw)
    few_shot(examples, 4, 8, draw)
    assert few_shot(examples, 16, 3, draw) == first
    assert few_shot(examples, 16, 4, draw) != first


@pytest.mark.parametrize("draw", get_args(Draw))
def test_a_smaller_draw_is_the_head_of_a_larger_one(draw):
    examples = labelled(30, 30, 30)
    assert few_shot(examples, 32, 7, draw)[:16] == few_shot(examples, 16, 7, draw)


@pytest.mark.parametrize("draw", get_args(Draw))
def test_a_draw_of_all_examples_holds_each_once(draw):
    examples = labelled(5, 4, 3)
    assert sorted(each.before for each in few_shot(examples, 12, 0, draw)) == sorted(each.before for each in examples)


def test_random_draws_have_the_label_shares_of_their_pool():
    examples, draws, shots = labelled(80, 15, 5), 400, 8
    found = Counter(each.label for seed in range(draws) for each in few_shot(examples, shots, seed))
    for label, share in enumerate((0.80, 0.15, 0.05)):
        low, high = binom.interval(1 - 1e-6, draws * shots, share)  # wider than without replacement
        assert low <= found[label] <= high


def test_every_example_is_drawn_at_random_as_often_as_another():
    examples, draws, shots = labelled(9, 1), 1_000, 3
    found = Counter(each.before for seed in range(draws) for each in few_shot(examples, shots, seed))
    low, high = binom.interval(1 - 1e-6, draws, shots / len(examples))
    assert all(low <= found[each.before] <= high for each in examples)


@given(counts=st.lists(st.integers(12, 30), min_size=2, max_size=4), shots=st.integers(1, 24), seed=st.integers(0, 9))
def test_a_balanced_draw_has_as_many_of_each_label_without_repeats(counts, shots, seed):
    drawn = few_shot(labelled(*counts), shots, seed, "balanced")
    assert len({example.before for example in drawn}) == shots
    found = Counter(example.label for example in drawn)
    shares = [found[label] for label in range(len(counts))]
    assert max(shares) - min(shares) <= 1


def test_balanced_draws_are_those_of_the_committed_lines():
    drawn = [[each.before for each in few_shot(labelled(5, 4, 3), 7, seed, "balanced")] for seed in (3, 0)]
    assert drawn == [
        ["0-1", "2-1", "1-2", "0-0", "2-2", "1-1", "0-4"],
        ["1-3", "0-1", "2-0", "1-0", "0-2", "2-1", "1-2"],
    ]


def test_in_a_balanced_draw_a_rare_class_gives_all_it_has():
    found = Counter(example.label for example in few_shot(labelled(40, 40, 2), 32, 0, "balanced"))
    assert found == {0: 15, 1: 15, 2: 2}


def test_every_class_can_get_the_odd_shot():
    odd = {few_shot(labelled(9, 9), 1, seed, "balanced")[0].label for seed in range(20)}
    assert odd == {0, 1}


def test_examples_without_labels_are_drawn_at_random():
    examples = [Example(str(i), "", "", "1.0") for i in range(40)]
    drawn = few_shot(examples, 16, 0, "balanced")
    assert drawn == few_shot(examples, 16, 0, "random")
    assert len(set(drawn)) == 16
    assert list(drawn) != examples[:16]


@pytest.mark.parametrize("shots", [0, -1, 11])
def test_shots_that_cannot_be_drawn_are_refused(shots):
    with pytest.raises(DataError, match="1 to 10 shots"):
        few_shot(labelled(5, 5), shots, 0)
