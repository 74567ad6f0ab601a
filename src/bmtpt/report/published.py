"""Our scores beside the published ones (`published.yaml`), and why they may not compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from bmtpt.errors import ArtifactError
from bmtpt.report.entries import score_text
from bmtpt.report.layout import Entry, ScoreTable, number
from bmtpt.report.summary import Cell, display_name, methods_of, summarise
from bmtpt.results import Result


def read_published() -> dict[str, Any]:
    """Return the published scores, their sources and the cautions that go with them."""
    import yaml

    text = resources.files("bmtpt.report").joinpath("published.yaml").read_text(encoding="utf-8")
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def published_table(results: Sequence[Result]) -> ScoreTable:
    """Lay our scores and the published ones out by target, with the cautions as notes. Nothing is marked as best.

    Raises:
        ArtifactError: No target of the results has published scores; or as `summarise`.
    """
    published = read_published()
    cells = summarise(results)
    known = {target for method in published["methods"] for target in method["scores"]}
    targets = [target for target in dict.fromkeys(cell.target for cell in cells) if target in known]
    if not targets:
        found = ", ".join(sorted({cell.target for cell in cells}))
        raise ArtifactError(f"nothing is published for {found}; the targets with published scores: {sorted(known)}")
    ours = [_our_row(cells, name, shots, targets) for shots in _shots(cells) for name in methods_of(cells)]
    theirs = [_their_row(method, targets) for method in published["methods"]]
    header = ("method", "shots", "backbone and source", "trained numbers", *targets)
    rows = [row for row in ours if any(entry.text != "–" for entry in row[4:])] + theirs
    return ScoreTable(header, tuple(rows), tuple(_notes(published, cells, targets)))


def _shots(cells: Sequence[Cell]) -> list[int | None]:
    return list(dict.fromkeys(cell.shots for cell in cells))


def _our_row(cells: Sequence[Cell], name: str, shots: int | None, targets: Sequence[str]) -> tuple[Entry, ...]:
    own = {cell.target: cell for cell in cells if (cell.method, cell.shots) == (name, shots)}
    trained = max((cell.trained_parameters for cell in own.values()), default=0)
    backbone = next((cell.backbone for cell in own.values()), "")
    words = (display_name(name), "all" if shots is None else str(shots), f"{backbone}, ours", f"{trained:,}")
    return tuple(map(Entry, [*words, *(_score(own.get(target)) for target in targets)]))


def _score(cell: Cell | None) -> str:
    return score_text((cell.mean, cell.standard_error), cell.metric) if cell else "–"


def _their_row(method: Mapping[str, Any], targets: Sequence[str]) -> tuple[Entry, ...]:
    where = f"T5-base, published ({', '.join(method['sources'])})"
    words = (method["name"], "all", where, str(method.get("trained", "–")))
    return tuple(map(Entry, [*words, *(number(method["scores"].get(target)) for target in targets)]))


def _notes(published: Mapping[str, Any], cells: Sequence[Cell], targets: Sequence[str]) -> list[str]:
    sources = "; ".join(f"({key}) {text}" for key, text in published["sources"].items())
    rows = {target: {cell.data for cell in cells if cell.target == target} for target in targets}
    other = [f"{target} ({', '.join(sorted(states))})" for target, states in rows.items() if states != {"official"}]
    own = [f"Our rows of {', '.join(other)} are not the official ones."] if other else []
    return [f"Published: {sources}.", *own, *published["cautions"]]
