"""The report in Debian's Chromium: it reads, sorts and filters, by mouse and by keys, and asks nobody for anything."""

from __future__ import annotations

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from bmtpt.report.html import write_report
from bmtpt.report.sweep_page import SweepTrial, write_sweep_page

expect.set_options(timeout=15_000)  # a machine that runs other work is slow, not wrong
PHONE = {"width": 360, "height": 740}
COLUMN = (
    "table => column => [...table.tBodies[0].rows].filter(row => !row.hidden).map(row => row.cells[column].innerText)"
)


@pytest.fixture(scope="module")
def report(pristine_folder, tmp_path_factory):
    return write_report([pristine_folder], tmp_path_factory.mktemp("browser") / "report.html")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    trials = [
        SweepTrial(n, {"adapt.learning_rate": 10.0**-n, "adapt.prior": "mean"}, (50.0 + n,), n < 8) for n in range(9)
    ]
    return write_sweep_page(tmp_path_factory.mktemp("browser") / "sweep.html", "tiny", trials, "accuracy")


@pytest.fixture
def visit(chromium):
    """Opens a file with every table shown, and at the end requires that it asked for no other and met no error."""
    contexts, asked, errors = [], [], []

    def visited(path, **options):
        context = chromium.new_context(**options)
        contexts.append(context)
        context.on("request", lambda request: asked.append(request.url))
        context.on("console", lambda message: errors.append(message.text))
        context.on("weberror", lambda error: errors.append(str(error.error)))
        page = context.new_page()
        page.goto(path.as_uri())
        page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
        return page

    yield visited
    for context in contexts:
        context.close()
    assert {url.rpartition(".")[2] for url in asked} == {"html"}
    assert len(asked) == len(contexts)
    assert errors == []


def block(page, text):
    return page.locator(".block").filter(has_text=text)


def shown(table, column):
    return table.evaluate(f"(table, column) => ({COLUMN})(table)(column)", column)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", ["report", "sweep"])
def test_axe_finds_no_violation(scheme, page, visit, request):
    opened = visit(request.getfixturevalue(page), color_scheme=scheme)
    opened.evaluate(
        "for (const row of document.querySelectorAll('tr:nth-child(n+20)')) row.remove()"
    )  # like the others
    results = Axe().run(opened)
    assert results.violations_count == 0, results.generate_report()
    dark = opened.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")


def test_nothing_is_wider_than_a_phone(report, sweep, visit):
    for path in (report, sweep):
        page = visit(path, viewport=PHONE)
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_a_column_sorts_up_then_down_then_as_it_was(report, visit):
    table = block(visit(report), "Loss per task").locator("table")
    head = table.get_by_role("columnheader", name="particle 1")
    before = shown(table, 3)
    numbers = [float(text) for text in before]
    for order, expected in (("ascending", sorted(numbers)), ("descending", sorted(numbers)[::-1])):
        head.get_by_role("button").click()
        expect(head).to_have_attribute("aria-sort", order)
        assert [float(text) for text in shown(table, 3)] == expected
    head.get_by_role("button").click()
    expect(head).to_have_attribute("aria-sort", "none")
    assert shown(table, 3) == before


def test_keys_sort_and_only_one_column_is_sorted(report, visit):
    page = visit(report)
    table = block(page, "Mean and standard error").locator("table")
    heads = table.get_by_role("columnheader")
    heads.nth(1).get_by_role("button").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    sorts = heads.evaluate_all("heads => heads.map(head => head.ariaSort)")
    assert sorts[:3] == ["none", "none", "ascending"]
    assert {*sorts[3:]} <= {"none"}
    scores = [float(text.split(" ")[0].replace(",", "")) for text in shown(table, 2) if text[0].isdigit()]
    assert scores == sorted(scores)
    assert len(scores) > 3


def test_the_filter_keeps_the_rows_with_all_its_words(report, visit):
    loss = block(visit(report), "Loss per task")
    every = loss.locator("tbody tr").count()
    loss.get_by_role("searchbox", name="Filter").fill("sst2 HELD")
    assert {*zip(shown(loss.locator("table"), 0), shown(loss.locator("table"), 1), strict=True)} == {
        ("sst2", "held out")
    }
    expect(loss.get_by_role("status").last).to_have_text(f"6 of {every} rows")
    loss.get_by_role("searchbox").fill("")
    assert len(shown(loss.locator("table"), 0)) == every


def test_pointing_at_a_dot_shows_the_score_of_its_method_and_target(report, study, visit):
    page = visit(report)
    scores = block(page, "Mean and standard error")
    values = {}
    svg, marks = scores.locator("svg"), scores.locator(".chart").get_attribute("data-marks").split()
    scale = svg.evaluate("svg => svg.getBoundingClientRect().width / svg.viewBox.baseVal.width")
    for x, y in (map(float, mark.split(",")[2:]) for mark in marks):
        svg.hover(position={"x": x * scale, "y": y * scale})
        target, text = scores.locator(".tip").inner_text().split("\n")
        method, score = text.split(": ")
        values[target.split(" ")[0], method] = score.split(" ")[0]
    names = {"pt": "plain prompt tuning", "spot": "SPoT", "bmtpt": "BMTPT"}
    expected = {
        (target, names[method]): f"{np.mean([r.value for r in study if (r.target, r.method) == (target, method)]):.1f}"
        for target, method in {(r.target, r.method) for r in study}
    }
    assert values == expected


def test_arrow_keys_read_the_values_that_the_table_holds(report, visit):
    page = visit(report)
    for name in ("Loss per task", "Last check on held-out rows", "From ring to large dot"):
        part = block(page, name)
        chart, table = part.locator(".chart"), part.locator("table")
        marks = [mark.split(",") for mark in chart.get_attribute("data-marks").split()]
        chart.focus()
        for key, (row, column, *_) in (("Home", marks[0]), ("ArrowRight", marks[1]), ("End", marks[-1])):
            page.keyboard.press(key)
            cells = table.locator("tbody tr").nth(int(row)).locator("th, td").all_inner_texts()
            tip = chart.locator(".tip").inner_text()
            assert tip.startswith(cells[0])
            assert tip.endswith(
                f": {cells[int(column)]}"
            )  # column -1 is the whole row, and its last cell the last line
        page.keyboard.press("Escape")
        expect(chart.locator(".tip")).to_be_hidden()


def test_without_scripts_all_charts_and_numbers_are_there(report, visit):
    with_scripts, without = (visit(report, java_script_enabled=on) for on in (True, False))
    for part in ("svg", "td"):
        assert without.locator(part).count() == with_scripts.locator(part).count() > 0
    assert without.get_by_role("button").count() == 0
    expect(without.locator(".hint")).to_be_hidden()
