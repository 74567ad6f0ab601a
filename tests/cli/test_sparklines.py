"""The curve of each task's loss, as a terminal shows it."""

from __future__ import annotations

import io
import math

import pytest
from rich.cells import cell_len
from rich.console import Console

from bmtpt.cli.sparklines import BLOCKS, LONGEST, PLAIN_BLOCKS, Curve, Curves


def curve_of(*losses: float) -> Curve:
    curve = Curve()
    for loss in losses:
        curve.add(loss)
    return curve


def shown(curves: Curves, width: int = 80, height: int = 25, encoding: str = "utf-8") -> list[str]:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="replace")
    Console(file=file, width=width, height=height).print(curves)
    file.seek(0)
    return file.read().splitlines()


def test_a_block_for_each_step_is_as_high_as_its_loss():
    assert curve_of(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8).blocks(40) == BLOCKS
    assert curve_of(3.0, 1.0, 2.0).blocks(40) == "█▁▅"
    assert curve_of(2.0, 2.0).blocks(40) == "▁▁"
    assert curve_of(3.0, 1.0, 2.0).blocks(40, PLAIN_BLOCKS) == "#_="


def test_fewer_columns_than_steps_show_means_of_neighbours():
    assert curve_of(8.0, 6.0, 1.0, 0.0, 4.0, 3.0).blocks(3) == "█▁▄"


@pytest.mark.parametrize("steps", [1, LONGEST, 119, 120, 121, 5000, 12345])
def test_a_run_of_any_length_is_shown_from_its_first_step_to_its_last(steps):
    curve = curve_of(*(steps - step for step in range(steps)))
    blocks = curve.blocks(LONGEST)
    assert len(blocks) == min(steps, LONGEST)
    assert list(blocks) == sorted(blocks, reverse=True)
    assert steps == 1 or {blocks[0], blocks[-1]} == {"█", "▁"}
    assert len(curve.blocks(10**6)) <= 2 * LONGEST
    assert curve.last == 1


def test_a_loss_that_is_no_number_is_a_gap():
    assert curve_of(2.0, math.nan, 1.0, math.inf).blocks(40) == "█ ▁ "
    assert curve_of(math.nan).blocks(40) == " "


@pytest.mark.parametrize("width", [20, 40, 80, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_no_line_is_wider_than_the_terminal_and_each_ends_with_its_last_value(width, encoding):
    curves = Curves()
    names = {"sst2": 1.0, "a_task_with_quite_a_long_name_of_its_own": 22.5, "任务": 333.5}
    for step in range(200):
        curves.follow("learn", step, {name: value + 1 / (step + 1) ** 2 for name, value in names.items()})
    lines = shown(curves, width, encoding=encoding)
    assert max(map(cell_len, lines)) <= width
    assert [line.split()[-1] for line in lines] == ["1.00", "22.50", "333.50"] or width == 20
    assert any(block in lines[0] for block in (BLOCKS if encoding == "utf-8" else PLAIN_BLOCKS))


def test_tasks_that_a_low_terminal_cannot_show_are_counted():
    curves = Curves()
    curves.follow("learn", 0, {f"task{i}": 1.0 for i in range(20)})
    lines = shown(curves, height=10)
    assert len(lines) == 7
    assert lines[-1].strip() == "and 14 more tasks"


def test_another_run_begins_new_curves_and_a_step_counts_once():
    curves = Curves()
    for step in (0, 1, 1, 1, 2):
        curves.follow("learn", step, {"sst2": 3.0 - step})
    curves.follow("learn", -1, {})
    assert "█▅▁" in shown(curves)[0]
    curves.follow("adapt", 0, {"cb": 1.0})
    (line,) = shown(curves)
    assert line.split() == ["cb", "▁", "1.00"]
