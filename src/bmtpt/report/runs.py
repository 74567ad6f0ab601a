"""What a report is made from: run folders (card, events, tensors, results, settings) and results files.

Every file of a run folder is optional, because a report is most useful while a run is going on or has just died.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bmtpt.artifacts.folder import CARD, read_raw_card, read_weights
from bmtpt.errors import ArtifactError
from bmtpt.results import Result, read_results
from bmtpt.sealed import line_values
from bmtpt.yaml_files import read_yaml

Event = dict[str, Any]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes:
        name: The shortest end of its path that no other folder of the report shares.
        card: `card.json`, or {}.
        settings: `settings.yaml`, else the card's settings, or {}.
        events: Lines of `events.jsonl`.
        prompts: Prompts by name, float64 [P, D] each; a posterior's are "particle 1" to "particle M", an adapted
            prompt has its task's name.
    """

    name: str
    card: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    events: tuple[Event, ...] = ()
    prompts: dict[str, Floats] = field(default_factory=dict)

    def of_kind(self, kind: str) -> list[Event]:
        """Return the events of one kind by step; of a step logged twice (a resumed run) the last one."""
        found = {number_of(event.get("step")): event for event in self.events if event.get("event") == kind}
        return [found[step] for step in sorted(found) if math.isfinite(step)]

    def mean_gaps(self) -> dict[str, tuple[float, list[float]]]:
        """Return, per task, the last held-out NLL of the particles' mean and of each particle, in nats."""
        for event in reversed(self.of_kind("validation")):
            mean, own = (mapping(event.get(key)) for key in ("mean_nll", "particle_nll"))
            pairs = {task: (numbers_of(mean.get(task)), numbers_of(own[task])) for task in own}
            if found := {task: (ours[0], theirs) for task, (ours, theirs) in pairs.items() if ours and theirs}:
                return found
        return {}


def read_inputs(paths: Sequence[Path]) -> tuple[list[Run], list[Result]]:
    """Read run folders and results files.

    Raises:
        ArtifactError: A path does not exist, cannot be read, or holds nothing to report.
    """
    if not paths:
        raise ArtifactError("nothing to report: name at least one run folder or results file")
    runs: list[Run] = []
    results: list[Result] = []
    for path, name in zip(paths, short_names(paths), strict=True):
        if not path.exists():
            raise ArtifactError(f"{path} does not exist; name a run folder or a results file")
        file = path / "results.jsonl" if path.is_dir() else path
        rows = read_results([file]) if file.is_file() else []
        run = _read_run(path, name) if path.is_dir() else None
        if not rows and run is None:
            raise ArtifactError(
                f"{path} holds nothing to report; expected result lines, or a run folder with card.json, "
                "events.jsonl or results.jsonl"
            )
        runs += [run] if run else []
        results += rows
    return runs, results


def short_names(paths: Sequence[Path]) -> list[str]:
    """Return the shortest path ends that tell the paths apart; repeated paths are numbered.

    >>> short_names([Path("a/run"), Path("b/run")])
    ['a/run', 'b/run']
    """
    parts = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{part[-1]} ({number})" for number, part in enumerate(parts, start=1)]


def number_of(value: object) -> float:
    """Return a number as float, and NaN for anything else (null, text, a missing key)."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


def numbers_of(value: object) -> list[float]:
    """Return a list's numbers; a single number is a list of one, anything else an empty list."""
    if isinstance(value, list):
        return [number_of(item) for item in value]
    return [] if math.isnan(number_of(value)) else [number_of(value)]


def mapping(value: object) -> dict[str, Any]:
    """Return a JSON object, and {} for anything else."""
    return value if isinstance(value, dict) else {}


def _read_run(folder: Path, name: str) -> Run | None:
    """Read a folder, or return None if it holds none of a run's files but results."""
    card = read_raw_card(folder) or {}
    events = _read_events(folder / "events.jsonl")
    prompts = _read_prompts(folder, card)
    if not (card or events or prompts):
        return None
    path = folder / "settings.yaml"
    settings = (read_yaml(path, ArtifactError) if path.is_file() else None) or card.get("settings")
    return Run(name, card, mapping(settings), events, prompts)


def _text_of(path: Path) -> str:
    """Return what a text file holds; nothing if there is no such file."""
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"cannot read {path}: {error}") from error


def _read_events(path: Path) -> tuple[Event, ...]:
    lines = _text_of(path).split("\n")
    events: list[Event] = []
    for number, line in enumerate(lines, start=1):
        try:
            events += [line_values(line)] if line.strip() else []
        except ValueError as error:
            if number == len(lines):  # a killed run leaves half a line
                break
            raise ArtifactError(f"{path}, line {number} is {error}; delete it") from error
    return tuple(events)


def _read_prompts(folder: Path, card: dict[str, Any]) -> dict[str, Floats]:
    """Read the tensor [M, P, D] of a posterior or a prompt; nothing without a card, which vouches for it."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    kind = card.get("kind")
    if kind not in ("posterior", "prompt"):
        return {}
    content = read_weights(folder, kind, str(card.get("weights_sha256")))
    try:
        tensor = load(content)["particles" if kind == "posterior" else "prompts"].astype(np.float64)
    except (KeyError, ValueError, SafetensorError) as error:
        raise ArtifactError(f"{folder} holds no {kind} as {CARD} describes it ({error}); copy it again") from error
    task = str(card.get("task") or folder.name)
    found: dict[str, Floats] = {}
    for m, prompt in enumerate(tensor if tensor.ndim == 3 else (), start=1):
        name = f"particle {m}" if kind == "posterior" else task
        found[name if name not in found else f"{name} ({m})"] = prompt
    return found
