"""One schema for every score: quickstart, evaluate and studies all write these JSON lines.

Tables, reports and documents are made from such lines only, so a figure can always be traced to a run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, ValidationError, model_serializer

from bmtpt.errors import ArtifactError, cannot_read, cannot_write
from bmtpt.sealed import field_problem, line_values, parse_json, sealed_line
from bmtpt.types import DataStatus

IDENTITY = (
    "study", "method", "variant", "backbone", "sources", "target", "shots", "seed", "source_seed", "settings_hash",
    "data", "metric",
)  # fmt: skip
"""Fields that tell the figures of all runs apart."""


class Result(BaseModel):
    """One score of one run (one metric, one target, one seed).

    Attributes:
        shots: Labelled rows drawn from the target's training part; None for all of them. If the target has a validation
            part of its own, its labels come on top, counted in ``selection_rows`` only. Without such a part, with
            `validation_rows` 0 or with `selection` "none", ``shots`` counts every label that was used: ``train_rows`` +
            ``selection_rows``.
        value: The metric on a 0 to 100 scale (`nll` is in nats).
        primary: Whether this is the task's headline metric.
        constant_answer: The same metric for the best constant answer on this test set, or None if undefined.
        invalid_share: Share (0 to 1) of outputs that are not among the task's answers; always 0 for rank scoring.
        trained_parameters: Numbers trained for this target.
        trained_share: ``trained_parameters`` over the backbone's parameter count.
        steps: Optimiser steps of the target stage.
        seconds: Wall time of the target stage.
        data: How the rows relate to the published data set (see `bmtpt.types.DataStatus`).
        variant: Which setting of a study's grid ("particles=7").
        settings_hash: Names the settings of the run.
        source_seed: Seed of the source stage that the run started from; None without one, and on older lines.
        train_rows, selection_rows: Labelled rows that trained, and that chose what was kept (0 if nothing was chosen).
            Readouts and temperatures are fitted to these, too.
        moved: Whether what was kept differs from where training started.
        kept_bytes: What must be kept for this target, next to what all targets share: prompts, readouts or weights.
        predict_seconds: Wall time of answering a test row, on average.
        reliability: On lines of `ece`, the calibration curve: number (from 0), rows, mean confidence and accuracy (0 to
            1) of each of the 15 bins that has rows; older lines lack it.

    Optional fields at their default are left out of the file, so older lines are lines of today.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    study: str
    method: str
    backbone: str
    sources: tuple[str, ...]
    target: str
    shots: int | None
    seed: int
    metric: str
    value: float
    primary: bool
    constant_answer: float | None
    invalid_share: float
    trained_parameters: int
    trained_share: float
    steps: int
    seconds: float
    data: DataStatus
    versions: dict[str, str]
    variant: str = ""
    settings_hash: str = ""
    source_seed: int | None = None
    train_rows: int | None = None
    selection_rows: int | None = None
    moved: bool | None = None
    kept_bytes: int | None = None
    predict_seconds: float | None = None
    reliability: tuple[tuple[int, int, float, float], ...] | None = None

    @model_serializer(mode="wrap")
    def _without_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        fields = type(self).model_fields
        return {
            key: value for key, value in values.items() if fields[key].is_required() or value != fields[key].default
        }


def result_lines(
    figures: Mapping[str, float],
    *,
    parameters: int,
    primary: str = "",
    constant_answer: float | None = None,
    invalid_share: float = 0.0,
    **run: Any,
) -> list[Result]:
    """Return one line per figure of a run.

    Args:
        figures: Values by metric.
        parameters: Parameter count of the backbone.
        primary: The task's headline metric.
        constant_answer: Its value for the best constant answer.
        run: The fields of `Result` that all lines of the run have in common.
    """
    return [
        Result(
            metric=metric,
            value=value,
            primary=metric == primary,
            constant_answer=constant_answer if metric == primary else None,
            invalid_share=invalid_share,
            trained_share=run["trained_parameters"] / parameters,
            **run,
        )
        for metric, value in figures.items()
    ]


def settings_hash(settings: dict[str, Any]) -> str:
    """Return 12 hexadecimal digits that name a JSON-able settings dictionary, whatever its key order.

    >>> settings_hash({"a": 1, "b": 2}) == settings_hash({"b": 2, "a": 1})
    True
    """
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def as_line(row: Result) -> str:
    """Return a result as a line of a results file, with a seal by which `read_results` notices a change."""
    return sealed_line(parse_json(row.model_dump_json()))


def append_results(path: Path, rows: Iterable[Result]) -> None:
    """Append rows to a JSON-lines file in one write, so that a killed run leaves whole lines.

    Raises:
        ArtifactError: The file cannot be written.
    """
    text = "".join(map(as_line, rows))
    if not text:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ArtifactError(cannot_write(path, error)) from error


def read_results(paths: Path | Sequence[Path]) -> list[Result]:
    """Read result lines from JSON-lines files; of a figure that is given twice the last counts, with a warning.

    Raises:
        ArtifactError: A file is missing, or a line is not a result as it was written; the sentence names it.
    """
    found: dict[tuple[Any, ...], tuple[str, Result]] = {}
    doubled: list[str] = []
    for path in [paths] if isinstance(paths, Path) else paths:
        for number, line in enumerate(text_of(path).split("\n"), start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            row = _row(line, where)
            key = tuple(getattr(row, name) for name in IDENTITY)
            if key in found:
                doubled.append(f"{where} repeats the run of {found[key][0]}")
            found[key] = where, row
    if doubled:
        more = f" (and {len(doubled) - 1:,} more such lines)" if len(doubled) > 1 else ""
        logging.getLogger("bmtpt").warning("%s%s; the last of each counts", doubled[0], more)
    return [row for _, row in found.values()]


def _row(line: str, where: str) -> Result:
    try:
        return Result.model_validate(line_values(line))
    except ValidationError as error:
        raise ArtifactError(f"{where} is not a result: {field_problem(error)}") from error
    except ValueError as error:
        raise ArtifactError(f"{where} is {error}; delete the line and run its cell again") from error


def text_of(path: Path) -> str:
    """Read a results file.

    Raises:
        ArtifactError: It is missing or is not text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ArtifactError(cannot_read(path, error)) from error
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path} is not UTF-8 text; give a results file (JSON lines)") from error
