"""What a study's folder was begun with: `study.json`, written before anything is trained."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bmtpt.artifacts.files import write_text_atomically
from bmtpt.errors import SettingsError
from bmtpt.methods.registry import get_method
from bmtpt.sealed import read_sealed, sealed, unsealed
from bmtpt.settings import AdaptSettings
from bmtpt.studies.spec import StudySpec
from bmtpt.tasks import TaskData
from bmtpt.tasks.layout import Layout

IDENTITY = "study.json"

GROWING = {
    "title",
    "data",
    "sources",
    "targets",
    "tuning",
    "shots",
    "seeds",
    "source_seeds",
    "methods",
    "options",
    "reread",
    "sweep",
}
"""Not compared as they are: a study may grow and be moved. Tasks, variants and each method's options are compared by
name, and lines carry their source seed."""


BEFORE = {
    "learn.likelihood_unit": "token",
    "source_prompt.likelihood_unit": "token",
    **{f"adapt.{option}": value for option, value in AdaptSettings.BEFORE.items()},
}
"""What was done in folders that were begun before an option could be chosen, where its default is another."""


def claim(folder: Path, study: StudySpec, tasks: Mapping[str, TaskData]) -> None:
    """Write what decides the study's values into its folder, next to what the folder was begun with.

    Args:
        tasks: Rows of all tasks, by the names that the study uses for them.

    Raises:
        SettingsError: The folder was begun with something else; the sentence names the first option that differs.
    """
    settings = study.model_dump(mode="json", exclude={*GROWING, "variants"})
    settings["sources"] = [tasks[name].task.name for name in study.sources]
    variants: dict[str, Any] = {}
    for contender in study.contenders():
        options = contender.study.options_of(get_method(contender.method))
        variants[contender.label] = {**dict(contender.variant.overrides), "options": options.model_dump(mode="json")}
        if contender.study.together:  # they decide each other's values, and so does their order
            variants[contender.label]["targets"] = [tasks[name].task.name for name in study.targets]
    digests = {data.task.name: task_digest(data) for data in tasks.values()}
    now = unsealed(sealed({"settings": settings, "variants": variants, "tasks": digests}))  # as it is read

    path = folder / IDENTITY
    kept = read_sealed(path, SettingsError) or {}
    for part, values in now.items():
        old = _flat(kept.get(part, {}))
        if part == "settings" and old:
            old = {**BEFORE, **old}
        for option, value in _flat(values).items():
            if option in old and old[option] != value:
                where = "in its variants " if part == "variants" else ""
                differs = f"{where}{option} = {old[option]!r}, and this study has {value!r}"
                if part == "tasks":
                    differs = f"another definition or other rows of task {option}"
                raise SettingsError(f"{folder} was begun with {differs}; choose another folder")
    grown = {part: {**kept.get(part, {}), **values} for part, values in now.items()}
    if grown != kept:
        write_text_atomically(path, json.dumps(sealed(grown), indent=1, ensure_ascii=False) + "\n")


def task_digest(data: TaskData) -> str:
    """Return 12 hexadecimal digits that name a task's definition and rows, wherever its files are."""
    digest = hashlib.sha256(data.task.model_dump_json(exclude={"file", "files", *Layout.model_fields}).encode())
    for part in (data.train, data.select, data.test):
        digest.update(f"{len(part)} ".encode())
        for example in part:
            digest.update(repr(example).encode())
    return digest.hexdigest()[:12]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return dotted options; a list or an empty mapping is one value."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return found
