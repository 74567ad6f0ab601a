"""Rows of one text or group stay in one part, and the parts are those that they always were."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bmtpt.tasks.units import divide, together


@given(keys=st.lists(st.tuples(st.integers(0, 9).map(str), st.integers(0, 9).map(str)), min_size=1, max_size=30))
def test_what_shares_a_key_stays_together_and_nothing_else(keys):
    wanted = list(range(len(keys)))
    for _ in keys:  # by brute force: each row takes the least number of those it shares a key with, as often as it can
        wanted = [
            min(wanted[j] for j, other in enumerate(keys) if {*enumerate(each)} & {*enumerate(other)}) for each in keys
        ]
    unit = together(*zip(*keys, strict=True)).tolist()
    assert unit == [sorted(set(wanted)).index(number) for number in wanted]


@pytest.mark.parametrize("columns", [1, 2])
def test_no_rows_are_no_units_and_two_empty_parts(columns):
    unit = together(*[[]] * columns)
    first, second = divide(unit, [], 0, 0)
    assert (len(unit), len(first), len(second)) == (0, 0, 0)


def test_rows_are_divided_as_they_always_were():
    # Found by the first form of `divide`: prompts were selected, and are tested, on rows that it chose.
    first, second = divide(together("abacdefgbh"), "xyxxyyxyyx", 3, 42)
    assert (first.tolist(), second.tolist()) == ([7, 0, 2, 4, 9, 1, 8], [3, 5, 6])


@given(
    st.lists(st.tuples(st.integers(0, 20).map(str), st.sampled_from("abc")), min_size=2, max_size=60),
    st.integers(1, 60),
)
def test_rows_of_a_unit_are_in_one_part_and_the_second_is_no_larger_than_asked(rows, count):
    texts, labels = zip(*rows, strict=True)
    unit = together(texts)
    first, second = divide(unit, labels, count, 0)
    assert sorted([*first, *second]) == list(range(len(rows)))
    assert not {*unit[first]} & {*unit[second]}
    assert len(second) <= count or len({*unit[second]}) == 1
