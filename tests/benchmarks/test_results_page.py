"""The results pages hold what their commands print from the committed lines."""

from __future__ import annotations

import json
import re

import pytest

from bmtpt.studies import load_study, named_studies
from results_page import (
    BLOCK,
    DOCS,
    PICTURE,
    RESULTS,
    filled,
    headroom,
    never_moved,
    pages,
    picture_path,
    printed,
    source_stages,
)


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.stem)
def test_a_page_holds_the_tables_of_the_committed_lines(path):
    page = path.read_text(encoding="utf-8")
    assert page.count("<!-- table -->") == len(BLOCK.findall(page))
    assert filled(page) == page


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.stem)
def test_every_picture_and_link_of_a_page_is_there(path):
    page = path.read_text(encoding="utf-8")
    assert all(picture_path(*named).is_file() for named in PICTURE.findall(page))
    links = re.findall(r"\]\(([^)#:]+)[^)]*\)", page)
    assert links
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_the_answer_is_one_page_that_names_every_study():
    answer = (DOCS / "results.md").read_text(encoding="utf-8")
    assert len(answer.splitlines()) <= 150
    assert {path.stem for path in (DOCS / "results").glob("*.md")} == set(re.findall(r"results/([\w-]+)\.md", answer))


@pytest.mark.parametrize("name", [name for name in named_studies() if source_stages(name)])
def test_a_page_counts_the_source_stages_that_its_study_names(name):
    assert source_stages(name) == len(load_study(name).source_seeds)


def test_a_table_that_is_not_what_its_command_prints_is_replaced():
    page = (
        "```sh\nbmtpt table studies/results/gaussian.jsonl  # exact\n```\n\n<!-- table -->\nold\n<!-- /table -->\nText."
    )
    found = filled(page)
    assert "old" not in found
    assert "| best convex combination of the means (n = 50) |" in found
    assert found.endswith("<!-- /table -->\nText.")


def test_runs_that_stopped_at_the_first_possible_step_are_counted():
    lines = [json.loads(line) for line in (RESULTS / "paper-fewshot.jsonl").read_text(encoding="utf-8").splitlines()]
    own = [line for line in lines if (line["method"], line["shots"], line["metric"]) == ("mpt", 4, "nll")]
    stopped = [line for line in own if line["steps"] == 30]
    assert f"| MPT | {len(stopped)} of {len(own)} |" in never_moved()
    starts = {(line["target"], line["seed"] % 2): line["value"] for line in stopped}  # two source stages
    assert all(line["value"] == starts[line["target"], line["seed"] % 2] for line in stopped)


def test_gains_are_those_of_the_headline_scores_where_a_study_has_other_measures_too():
    command = "bmtpt table --gains --source-stages 1 --method 'bmtpt[particles=1]' studies/results/particles.jsonl"
    assert printed(command).count("| BMTPT (M = 1) minus |") == 1


def test_a_page_may_be_there_before_its_lines():
    assert printed("bmtpt table studies/results/no-such-study.jsonl") == "Being computed."


def test_a_target_has_room_if_all_its_labels_are_two_standard_errors_over_the_constant_answer():
    lines = [
        json.loads(line) for line in (RESULTS / "few-labels-headroom.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    cells = {row.split(" | ")[0].strip("| "): row.strip("| ").split(" | ") for row in headroom().splitlines()[2:]}
    assert set(cells) == {line["task"] for line in lines}
    for task, row in cells.items():
        own = [line for line in lines if line["task"] == task]
        n, share = own[0]["test_rows"] + 4, (own[-1]["accuracy"] / 100 * own[0]["test_rows"] + 2)
        noise = 200 * (share / n * (1 - share / n) / n) ** 0.5
        assert row[-2:] == [f"{noise:.1f}", "yes" if own[-1]["accuracy"] - own[0]["accuracy"] >= noise else "no"]
