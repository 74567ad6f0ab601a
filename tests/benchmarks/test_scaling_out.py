"""The prediction of a step on many ranks agrees with the code's own passes, and its page with the committed lines."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import scaling_out
from common import lines_in
from result_tables import fill
from scaling_model import BUDGETS, GPU, WORLDS, Machine, Work, best, fitted, pays_up_to, predicted
from scaling_out_page import blocks, picture

ROOT = Path(__file__).parents[2]
WORK = Work("tiny", 3, 4, 4, 10)
IDEAL = Machine(1e9, 0.0, 0.0, (1e30, 1e30), 8, 0.0)


def test_one_rank_takes_all_passes_and_exchanges_nothing():
    step = predicted(WORK, GPU, 1, 256)
    flop = sum(map(WORK.flop, WORK.cut(256 * GPU.factor)))
    assert step.exchange == 0
    assert step.compute == pytest.approx(step.passes * GPU.per_pass + flop / GPU.rate)


def test_no_number_of_ranks_is_faster_than_an_equal_share_nor_slower_than_one_without_an_exchange():
    alone = predicted(WORK, IDEAL, 1, 256).seconds
    for ranks in WORLDS:
        assert alone / ranks * (1 - 1e-9) <= predicted(WORK, IDEAL, ranks, 256).seconds <= alone * (1 + 1e-9)


def test_more_ranks_than_passes_are_not_worth_having():
    assert pays_up_to(WORK, GPU) <= 2 * max(len(WORK.cut(budget * GPU.factor)) for budget in BUDGETS)
    assert best(WORK, GPU, 1)[1].seconds == min(predicted(WORK, GPU, 1, budget).seconds for budget in BUDGETS)


def test_the_machine_that_lines_were_made_with_is_found_again():
    truth = Machine(5e8, 0.02, 3e-4, (1e8, 1e8), 8, 0.01)
    lines = []
    for work in (WORK, Work("tiny", 5, 6, 2, 10)):
        for ranks in (1, 2, 4):
            step = predicted(work, truth, ranks, 256)
            passes = [{"flop": f, "cpu": truth.per_pass + f / truth.rate} for f in map(work.flop, work.cut(256))]
            lines.append(
                {"ranks": ranks, "passes": passes, "exchange": step.exchange, "rest": truth.rest, "work": {}}
                | {"most_passes": step.most, "gradient_bytes": work.gradient_bytes}
            )
    found = fitted(lines)
    assert (found.rate, found.per_pass) == pytest.approx((truth.rate, truth.per_pass), rel=1e-6)
    assert (found.latency, found.bandwidth[0]) == pytest.approx((truth.latency, 1e8), rel=1e-3)


def test_the_page_holds_the_tables_and_the_picture_of_the_committed_lines():
    lines = lines_in(scaling_out.RESULTS)
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert fill(page, blocks(lines)) == page
    kept = (ROOT / "docs" / "plots" / "scaling-out.svg").read_text(encoding="utf-8")
    assert without_names(kept) == without_names(picture(lines))


def without_names(svg: str) -> str:
    """Leave out the names of clipping paths: digests of places, in which the last bit of a log scale is the CPU's."""
    named = re.findall(r'<clipPath id="(\w+)">', svg)
    assert named
    return re.sub("|".join(named), "clip", svg)
