"""Find a study by its name or file, put its parts together, and check it.

A file may say `extends: FILE` (without .yaml, in the same folder): its own values replace that file's. Under `scales`
it may hold smaller or larger versions of itself, as values that replace the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bmtpt.errors import SettingsError, nearest
from bmtpt.settings import validated
from bmtpt.studies.space import require_sweepable
from bmtpt.studies.spec import StudySpec
from bmtpt.studies.variants import merged
from bmtpt.tasks import load_task
from bmtpt.yaml_files import read_yaml

LIBRARY = Path(__file__).parent / "library"
DEFAULT_SCALE = "small"
TASK_LISTS = ("sources", "targets", "tuning")


def named_studies() -> list[str]:
    """Return the names of the studies that come with bmtpt."""
    return sorted(path.stem for path in LIBRARY.glob("[!_]*.yaml"))


def load_study(
    name_or_path: str | Path, scale: str | None = None, changes: Mapping[str, Any] | None = None
) -> StudySpec:
    """Read a study by name or file; task files are looked up in its folder.

    Args:
        scale: Which of the file's `scales`; None takes `small` if the file has scales.
        changes: Values in place of the file's, such as another backbone.

    Raises:
        SettingsError: There is no such study or scale, the file is wrong, or a target is also a source.
    """
    path = find_study(name_or_path)
    values = merged(study_values(path, scale), changes or {})
    return checked(validated(StudySpec, values, str(path)), str(path))


def find_study(name_or_path: str | Path) -> Path:
    """Return the file of a study.

    Raises:
        SettingsError: There is no study of that name.
    """
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or text.endswith((".yaml", ".yml")) or "/" in text:
        return Path(text)
    if text not in named_studies():
        hint = nearest(text, named_studies())
        raise SettingsError(f"there is no study '{text}'; {hint} (or give the path of a .yaml file)")
    return LIBRARY / f"{text}.yaml"


def study_values(path: Path, scale: str | None = None) -> dict[str, Any]:
    """Return a file's values at one scale, before they are checked.

    Raises:
        SettingsError: A file cannot be read, or there is no such scale.
    """
    values = _whole(path)
    scales = values.pop("scales", None)
    if not scales:
        if scale:
            raise SettingsError(f"{path} has no scales; run it without one")
        return values
    if (scale or DEFAULT_SCALE) not in scales:
        raise SettingsError(f"{path} has no scale '{scale or DEFAULT_SCALE}'; {nearest(str(scale), map(str, scales))}")
    return merged(values, scales[scale or DEFAULT_SCALE] or {})


def checked(study: StudySpec, where: str) -> StudySpec:
    """Refuse a study that uses a task in two places, or that has an impossible variant.

    A task may be trained on and scored if the study allows it. Two files may hold one task.

    Raises:
        SettingsError: As said; the sentence begins with ``where``.
    """
    places: dict[str, str] = {}
    for place, names in (("a source", study.sources), ("for tuning", study.tuning), ("a target", study.targets)):
        for task in (load_task(name).name for name in names):
            if task not in places:
                places[task] = place
            elif (places[task], place) != ("a source", "a target"):
                both = f"both {places[task]} and {place}" if places[task] != place else f"{place} twice"
                raise SettingsError(f"{where}: {task} is {both}; name it once")
            elif not study.sources_as_targets:
                raise SettingsError(
                    f"{where}: {task} is both a source and a target; name it once, or set sources_as_targets: true"
                )
    try:
        study.contenders()
        require_sweepable(study)
    except SettingsError as error:
        raise SettingsError(f"{where}: {error}") from error
    return study


def _whole(path: Path, extended_by: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a file and what it extends; paths of task files become relative to the working folder."""
    if path.resolve() in [each.resolve() for each in extended_by]:
        raise SettingsError(f"{extended_by[-1]}: option 'extends' leads back to {path.name}; name another file")
    own = _with_task_paths(read_yaml(path), path)
    scales = own.get("scales") or {}
    if not isinstance(scales, Mapping):
        raise SettingsError(f"{path}: option 'scales' must hold 'name: values' lines")
    for name, values in scales.items():
        if not isinstance(values or {}, Mapping):
            raise SettingsError(f"{path}: option 'scales.{name}' must hold 'option: value' lines")
    if scales:
        own["scales"] = {name: _with_task_paths(values or {}, path) for name, values in scales.items()}
    base = own.pop("extends", None)
    return merged(_whole(path.parent / f"{base}.yaml", (*extended_by, path)), own) if base else own


def _with_task_paths(values: Mapping[str, Any], study: Path) -> dict[str, Any]:
    def located(name: str) -> str:
        return str(study.parent / name) if name.endswith((".yaml", ".yml")) else name

    lists = {key: values[key] for key in TASK_LISTS if isinstance(values.get(key), list)}
    return {**values, **{key: [located(str(name)) for name in names] for key, names in lists.items()}}
