"""What a sweep tries: dotted settings of a study and their ranges, each bound checked against the setting itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bmtpt.errors import SettingsError, nearest
from bmtpt.methods.registry import get_method
from bmtpt.settings import validated
from bmtpt.studies.spec import FIXED, StudySpec
from bmtpt.studies.variants import Variant

SWEPT = ("learn", "source_prompt", "adapt", "options")
"""Groups of settings that a sweep may vary."""


def require_sweepable(study: StudySpec) -> None:
    """Refuse a sweep that tries a value which its setting cannot have.

    Raises:
        SettingsError: There is no such setting, a study sets it itself, or one of its values cannot be.
    """
    for option, found in study.sweep.items():
        group, _, name = option.partition(".")
        if group not in SWEPT or not name:
            raise SettingsError(
                f"sweep: there is no option '{option}' to sweep; {nearest(group, SWEPT)}, as in learn.steps"
            )
        if option in FIXED:
            raise SettingsError(f"sweep: option '{option}' is set by the study itself; leave it out")
        values = [value_of(with_settings(study, {option: value}), option) for value in found.corners]
        if found.bounds and any(isinstance(value, bool) for value in values):
            raise SettingsError(f"sweep: option '{option}' is true or false; give {{choice: [true, false]}}")


def with_settings(study: StudySpec, settings: Mapping[str, Any]) -> StudySpec:
    """Return a study with some settings changed, without variants, and checked again.

    Raises:
        SettingsError: One does not exist or cannot have its value.
    """
    changed = Variant(tuple(settings.items())).applied(study.model_dump(mode="json", exclude={"variants", "sweep"}))
    found = validated(StudySpec, changed, "sweep")
    for option in settings:
        value_of(found, option)  # a method's own options are checked when they are read
    return found


def value_of(study: StudySpec, option: str) -> Any:
    """Return what a dotted option is in a study.

    Raises:
        SettingsError: A method does not have it.
    """
    group, name, *own = option.split(".")
    settings = study.options_of(get_method(name)) if group == "options" else getattr(study, group)
    return getattr(settings, own[0] if own else name)
