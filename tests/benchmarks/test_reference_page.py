"""docs/reference.md is what its command makes of the docstrings, and has every public name."""

from __future__ import annotations

import re

import bmtpt
from reference_page import PAGE, escaped, page


def test_the_page_is_made_of_the_docstrings_and_has_every_public_name():
    found = page()
    assert found == PAGE.read_text(encoding="utf-8")
    names = [*(f"bmtpt.{name}" for name in bmtpt.__all__), "bmtpt.sklearn.SoftPromptClassifier"]
    assert [name for name in names if f"### {name}\n" not in found] == []


def test_settings_are_shown_with_the_defaults_of_their_own_class():
    found = PAGE.read_text(encoding="utf-8")
    learn, adapt = found.split("### bmtpt.LearnSettings")[1].split("### bmtpt.AdaptSettings")
    for settings, told in ((bmtpt.LearnSettings(), learn), (bmtpt.AdaptSettings(), adapt)):
        assert re.findall(r"^- `steps` \(`\w+`, `(\d+)`\)", told, re.MULTILINE) == [f"{settings.steps}"]
        assert f"- `learning_rate` (`Positive`, `{settings.learning_rate}`)" in told


def test_a_bracket_in_a_docstring_is_no_tag():
    assert escaped("a <b> and ``c<d>`` and `e<f>`") == "a &lt;b> and `c<d>` and `e<f>`"
