"""The results page holds what its commands print from the committed lines."""

from __future__ import annotations

from results_page import BLOCK, PAGE, PICTURE, filled, picture_path


def test_the_results_page_holds_the_tables_of_the_committed_lines():
    page = PAGE.read_text(encoding="utf-8")
    blocks = BLOCK.findall(page)
    assert len(blocks) == page.count("bmtpt table ") - sum(block.count("bmtpt table ") - 1 for block in blocks)
    assert filled(page) == page


def test_every_picture_of_the_page_is_there():
    named = PICTURE.findall(PAGE.read_text(encoding="utf-8"))
    assert named
    assert all(picture_path(*each).is_file() for each in named)


def test_a_table_that_is_not_what_its_command_prints_is_replaced():
    page = (
        "```sh\nbmtpt table studies/results/gaussian.jsonl  # exact\n```\n\n<!-- table -->\nold\n<!-- /table -->\nText."
    )
    found = filled(page)
    assert "old" not in found
    assert "| best convex combination of the means (n = 50) |" in found
    assert found.endswith("<!-- /table -->\nText.")
