"""`micro_batches`: a partition within the budget, and the cheapest one."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, pairwise

from hypothesis import given
from hypothesis import strategies as st

from bmtpt.backbone.passes import PASS_COST, Pass, micro_batches, passes

LENGTHS = st.lists(st.integers(1, 300), max_size=30)


def cost(lengths: list[int], copies: int, runs: list[list[int]]) -> int:
    return sum(PASS_COST + len(run) * copies * max(lengths[i] for i in run) for run in runs)


def cheapest_by_trying_all(lengths: list[int], copies: int, budget: int) -> int:
    """Every way to cut the sorted examples into runs that fit."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    best = None
    for count in range(len(order)):
        for cuts in combinations(range(1, len(order)), count):
            ends = (0, *cuts, len(order))
            runs = [order[start:end] for start, end in pairwise(ends)]
            if all(len(run) == 1 or len(run) * copies * max(lengths[i] for i in run) <= budget for run in runs):
                total = cost(lengths, copies, runs)
                best = total if best is None else min(best, total)
    assert best is not None
    return best


@given(LENGTHS, st.integers(1, 8), st.integers(1, 4_000))
def test_every_example_stands_in_exactly_one_pass(lengths: list[int], copies: int, budget: int) -> None:
    runs = micro_batches(lengths, copies, budget)
    assert sorted(i for run in runs for i in run) == list(range(len(lengths)))
    assert all(runs)


@given(LENGTHS, st.integers(1, 8), st.integers(1, 4_000))
def test_only_a_single_example_may_exceed_the_budget(lengths: list[int], copies: int, budget: int) -> None:
    for run in micro_batches(lengths, copies, budget):
        assert len(run) == 1 or len(run) * copies * max(lengths[i] for i in run) <= budget


@given(st.lists(st.integers(1, 300), min_size=1, max_size=8), st.integers(1, 6), st.integers(1, 3_000))
def test_no_cut_of_the_sorted_examples_is_cheaper(lengths: list[int], copies: int, budget: int) -> None:
    runs = micro_batches(lengths, copies, budget)
    assert cost(lengths, copies, runs) == cheapest_by_trying_all(lengths, copies, budget)


def test_examples_of_one_length_share_a_pass() -> None:
    assert micro_batches([50] * 4, copies=2) == [[0, 1, 2, 3]]


def test_a_long_example_is_not_joined_with_short_ones() -> None:
    assert micro_batches([500, 10, 10], copies=4) == [[1, 2], [0]]


@given(LENGTHS.filter(bool), st.integers(1, 9), st.integers(1, 4_000))
def test_passes_pair_every_prompt_with_every_example_once_within_the_budget(
    lengths: list[int], copies: int, budget: int
) -> None:
    seen = Counter()
    for part in passes(lengths, copies, budget):
        prompts = range(copies)[part.prompts]
        seen.update((m, n) for m in prompts for n in part.rows)
        pairs, longest = len(prompts) * len(part.rows), max(lengths[n] for n in part.rows)
        assert pairs == 1 or pairs * longest <= budget
        assert part.tokens == pairs * longest
    assert seen == {(m, n): 1 for m in range(copies) for n in range(len(lengths))}


def test_a_pass_is_halved_down_to_one_prompt_and_one_example() -> None:
    parts = [Pass(slice(2, 5), [7, 1, 4])]
    while any(part.halves() for part in parts):
        parts = [half for part in parts for half in (part.halves() or [part])]
    assert [(part.prompts.start, part.prompts.stop, part.rows) for part in parts] == [
        (m, m + 1, [n]) for n in (7, 1, 4) for m in (2, 3, 4)
    ]
