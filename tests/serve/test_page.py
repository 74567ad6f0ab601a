"""The page for people, in Debian's Chromium: what it shows, and that anyone can use it."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from urllib.parse import urlsplit

import httpx2 as httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from bmtpt.artifacts.saved import Prompt
from bmtpt.serve.app import create_app
from bmtpt.serve.service import Service
from bmtpt.serve.tokens import Token
from tiny import BAD, GOOD

expect.set_options(timeout=15_000)  # a machine that runs other work is slow, not wrong
DESK, PHONE = {"width": 1000, "height": 800}, {"width": 360, "height": 740}
TEXTS = ["the film is good .", "the meal is cold ."]
HOSTILE = '<img src="x" onerror="document.title = 0">'


@pytest.fixture
def visit(chromium):
    """Opens a page, and at the end requires that it asked no other host and met no error but those expected."""
    contexts, asked, errors, expected = [], [], [], []

    def visited(url, wrong=(), **options):
        expected.extend(wrong)
        context = chromium.new_context(**{"viewport": DESK, **options})
        contexts.append(context)
        context.on("request", lambda request: asked.append(request.url))
        context.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        context.on("weberror", lambda error: errors.append(str(error.error)))
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.goto(url)
        return page

    yield visited
    for context in contexts:
        context.close()
    assert asked
    assert {urlsplit(url).hostname for url in asked} == {"127.0.0.1"}
    assert [error for error in errors if not any(each in error for each in expected)] == []


def ask(page, task, *columns):
    page.get_by_label("Task").select_option(task)
    for area, text in zip(page.locator("textarea").all(), columns, strict=True):
        area.fill(text)
    page.get_by_role("button", name="Answer").click()
    expect(page.get_by_role("button", name="Answer")).to_be_enabled()


def cards(page, count):
    found = page.locator("#answers > li")
    expect(found).to_have_count(count)
    return found.all()


def percentages(card):
    """Return the percentage that a card shows for each label, in its order."""
    numbers = card.locator(".shares .number").all_inner_texts()
    return dict(
        zip(card.locator(".shares .name").all_inner_texts(), (float(n.split()[0]) for n in numbers), strict=True)
    )


def test_each_line_gets_the_probabilities_of_predict_likeliest_first(visit, url, offline):
    page = visit(url)
    ask(page, "sentiment", f"{TEXTS[0]}\n\n  {TEXTS[1]}\n")
    for text, card in zip(TEXTS, cards(page, 2), strict=True):
        wanted = offline("sentiment", text)
        best = max(wanted, key=wanted.get)
        assert card.locator(".text").inner_text() == text
        assert card.locator(".best .name").inner_text() == best
        assert next(iter(percentages(card))) == best
        assert percentages(card) == pytest.approx({word: 100 * share for word, share in wanted.items()}, abs=0.06)


def test_how_long_it_took_is_said_politely(visit, url):
    page = visit(url)
    ask(page, "sentiment", "\n".join(TEXTS))
    status = page.locator("output")
    assert status.get_attribute("aria-live") == "polite"
    expect(status).to_have_text(re.compile(r"^2 texts answered in \d+ ms: (positive|negative), (positive|negative)$"))


def test_a_bar_is_as_long_as_its_probability(visit, url):
    page = visit(url)
    ask(page, "pairs", "anna sees the film .", "anna sees the dog .")
    (card,) = cards(page, 1)
    for percent, track in zip(percentages(card).values(), card.locator(".track").all(), strict=True):
        widths = track.evaluate("track => [track.firstChild.getBoundingClientRect().width, track.clientWidth]")
        assert 100 * widths[0] / widths[1] == pytest.approx(percent, abs=0.1)


def test_a_task_of_several_columns_has_a_field_for_each(visit, url, offline):
    page = visit(url)
    ask(page, "pairs", "anna sees the film .\nben keeps the dog .", "anna sees the dog .\nben keeps the dog .")
    assert page.locator("#fields label").all_inner_texts() == ["premise", "hypothesis"]
    row = {"premise": "ben keeps the dog .", "hypothesis": "ben keeps the dog ."}
    wanted = {word: 100 * share for word, share in offline("pairs", row).items()}
    assert percentages(cards(page, 2)[1]) == pytest.approx(wanted, abs=0.06)
    ask(page, "pairs", "anna sees the film .\nben keeps the dog .", "anna sees the dog .")
    expect(page.locator("output.wrong")).to_have_text("Line 2 of hypothesis is empty.")


def test_written_answers_have_no_bars(visit, url):
    page = visit(url)
    ask(page, "answers", "where is anna ?", "anna lives in oslo .")
    (card,) = cards(page, 1)
    assert card.locator(".shares").count() == 0
    assert card.locator(".written").count() == 1
    expect(page.locator("#about")).to_have_text("Answers in its own words")


def test_an_ensemble_says_how_far_its_prompts_differ(visit, url):
    page = visit(url)
    ask(page, "ensemble", TEXTS[0])
    number = cards(page, 1)[0].locator(".number").first
    expect(number).to_have_text(re.compile(r"^\d+\.\d ± \d+\.\d %$"))


def test_the_line_for_a_terminal_gives_the_same_answer(visit, url):
    page = visit(url, permissions=["clipboard-read", "clipboard-write"])
    ask(page, "sentiment", 'anna\'s "film" is $HOME ; `good`')
    page.get_by_role("button", name="Copy").click()
    expect(page.locator("output")).to_have_text("Copied.")
    line = page.evaluate("navigator.clipboard.readText()")
    (answer,) = json.loads(subprocess.run(["bash", "-c", f"{line} -s"], capture_output=True, check=True).stdout)[
        "answers"
    ]
    wanted = {word: 100 * share for word, share in answer["all"].items()}
    assert percentages(cards(page, 1)[0]) == pytest.approx(wanted, abs=0.06)


def test_everything_can_be_done_with_the_keyboard_alone(visit, url):
    page = visit(url)
    expect(page.get_by_label("Task")).to_be_visible()
    press = page.keyboard.press
    focused = "document.activeElement.id || document.activeElement.textContent"
    press("Tab")
    assert page.evaluate(focused) == "task"
    page.keyboard.type("sent")
    press("Tab")
    page.keyboard.type(TEXTS[0])
    press("Enter")
    page.keyboard.type(TEXTS[1])
    press("Control+Enter")
    cards(page, 2)
    press("Tab")
    assert page.evaluate(focused) == "Answer"
    press("Enter")
    expect(page.locator("output")).to_have_text(re.compile("2 texts answered"))
    stops = []
    for _ in range(2):
        press("Tab")
        stops.append(page.evaluate("document.activeElement.tagName"))
    assert stops == ["PRE", "BUTTON"]  # the line for a terminal, which may scroll, and the button that copies it
    ring = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert ring == "solid"


@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violation(scheme, viewport, visit, url):
    page = visit(url, viewport=viewport, color_scheme=scheme)
    for task, columns in {
        "sentiment": [""],  # an error
        "ensemble": ["\n".join(TEXTS)],
        "pairs": ["anna sees the film .", "anna sees the dog ."],
    }.items():
        ask(page, task, *columns)
        results = Axe().run(page)
        assert results.violations_count == 0, results.generate_report()
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")


def test_nothing_is_wider_than_a_phone(visit, url):
    page = visit(url, viewport=PHONE)
    ask(page, "ensemble", "good" * 200)
    cards(page, 1)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    for control in page.locator("select, textarea, button:visible").all():
        assert control.bounding_box()["height"] >= 40  # large enough for a thumb


def test_of_many_labels_the_likeliest_are_shown_and_the_others_unfold(visit, tiny_backbone, prompts, listen):
    card, words = prompts["sentiment"].card, [*GOOD, *BAD]
    task = {**card.task_definition, "labels": {word: word for word in words}, "metrics": ["accuracy"]}
    many = Prompt(prompts["sentiment"].prompts, card.model_copy(update={"task_definition": task}))
    with listen(create_app(Service.of(tiny_backbone, {"few": prompts["sentiment"], "many": many}))) as url:
        page = visit(f"{url}/#many")
        expect(page.get_by_label("Task")).to_have_value("many")
        expect(page.locator("#about")).to_have_text(f"Answers: {', '.join(words[:8])} and 8 more")
        ask(page, "many", TEXTS[0])
        (card,) = cards(page, 1)
        assert card.locator("li:visible").count() == 8
        card.get_by_text("8 more labels").click()
        assert card.locator("li:visible").count() == 16
        assert sorted(percentages(card).values(), reverse=True) == list(percentages(card).values())
        page.get_by_label("Task").select_option("few")
        assert page.url == f"{url}/#few"


def test_a_server_without_prompts_says_so(visit, tiny_backbone, listen):
    with listen(create_app(Service.of(tiny_backbone, {}))) as url:
        expect(visit(f"{url}/#%").locator("output")).to_have_text(
            "No prompt is loaded yet. Load one and reload this page."
        )


def test_a_label_that_looks_like_html_is_shown_as_text(visit, tiny_backbone, prompts, listen):
    card = prompts["sentiment"].card
    task = {**card.task_definition, "labels": {"0": HOSTILE, "1": "positive"}}
    hostile = Prompt(prompts["sentiment"].prompts, card.model_copy(update={"task_definition": task}))
    with listen(create_app(Service.of(tiny_backbone, {"hostile": hostile}))) as url:
        page = visit(url)
        ask(page, "hostile", HOSTILE)
        (shown,) = cards(page, 1)
        assert HOSTILE in percentages(shown)
        assert shown.locator(".text").inner_text() == HOSTILE
        expect(page.locator("#about")).to_have_text(f"Answers: {HOSTILE}, positive")
        assert page.locator("img").count() == 0
        assert page.title() == "bmtpt: try your tasks"


def test_a_token_is_asked_for_and_kept_in_memory_only(visit, own_service, listen):
    digest = hashlib.sha256(b"let me in").digest()
    with listen(create_app(own_service, tokens=[Token("predict", digest, "a visitor")])) as url:
        page = visit(url, wrong=["401"])
        expect(page.locator("output")).to_have_text("Enter a token to see the tasks.")
        assert page.evaluate("document.activeElement.id") == "token"
        assert Axe().run(page).violations_count == 0
        page.keyboard.type("let me out")
        page.keyboard.press("Enter")
        expect(page.locator("output.wrong")).to_have_text(
            "The server does not know this token. Check it and try again."
        )
        page.keyboard.type("let me in")
        page.keyboard.press("Enter")
        ask(page, "sentiment", TEXTS[0])
        cards(page, 1)
        assert '-H "Authorization: Bearer $BMTPT_TOKEN"' in page.locator("#curl").inner_text()
        assert "let me in" not in page.content()
        assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie, location.search]") == [
            0,
            0,
            "",
            "",
        ]
        page.reload()
        expect(page.get_by_label("Token")).to_be_visible()


def test_a_server_that_is_gone_is_told_in_a_sentence(chromium, own_service, listen):
    with listen(create_app(own_service)) as url:
        page = chromium.new_page()
        page.goto(url)
        page.get_by_label("Task").select_option("sentiment")
    page.locator("textarea").fill(TEXTS[0])
    page.get_by_role("button", name="Answer").click()
    expect(page.locator("output.wrong")).to_have_text("The server cannot be reached. Is it running?")
    page.close()


def test_the_page_is_small_and_its_policy_strict(url):
    files = [httpx.get(url + path) for path in ("/", "/page/page.js", "/page/page.css", "/page/icon.svg")]
    assert sum(len(file.content) for file in files) < 20_000
    policy = files[0].headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bon\w+=|\bstyle=", files[0].text)
