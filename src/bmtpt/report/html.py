"""One self-contained HTML page about runs and results: no network, no scripts, the same bytes for the same input."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from bmtpt.artifacts.files import write_text_atomically
from bmtpt.errors import ArtifactError
from bmtpt.report.entries import row_name
from bmtpt.report.runs import Run, mapping, number_of, read_inputs
from bmtpt.report.summary import (
    MEASURES,
    Cell,
    by_measure,
    display_name,
    method_and_variant,
    methods_of,
    paired_difference,
    pairs_to_compare,
    summarise,
)
from bmtpt.report.tables import WORD_COLUMNS, score_table, verdict
from bmtpt.results import Result

if TYPE_CHECKING:
    import numpy as np
    from markupsafe import Markup
    from numpy.typing import NDArray

JUDGED = "bmtpt"
"""The method whose differences from the others are drawn."""


def write_report(paths: Sequence[Path], out: Path) -> Path:
    """Write the report of run folders and results files to one HTML file.

    Args:
        paths: Run folders (any of card.json, events.jsonl, posterior or prompt tensors, results.jsonl,
            settings.yaml) and results files.
        out: The HTML file; an old one is replaced at once or not at all.

    Returns:
        ``out``.

    Raises:
        ArtifactError: A path is missing, unreadable or holds nothing to report; or ``out`` cannot be written.
    """
    runs, results = read_inputs(paths)
    if not runs and not any(result.primary for result in results):
        raise ArtifactError(f"{paths[0]} holds no headline scores (primary: true), so there is nothing to report")
    write_text_atomically(out, render(runs, results))
    return out


def render(runs: Sequence[Run], results: Sequence[Result]) -> str:
    """Return the page."""
    from jinja2 import Environment, StrictUndefined

    from bmtpt.report.svg import style

    source = resources.files("bmtpt.report").joinpath("template.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    with style():
        return environment.from_string(source).render(
            studies=[section for group in _by_study(results) for section in _sections(group)],
            runs=[_run(run) for run in runs],
            maps=_maps(runs),
            words=WORD_COLUMNS,
        )


def _by_study(results: Iterable[Result]) -> list[list[Result]]:
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.study, result.backbone), []).append(result)
    return list(groups.values())


def _sections(group: Sequence[Result]) -> list[dict[str, Any]]:
    """Return a section for the scores of a study and one for each measure; its warnings stand beside the scores."""
    tables = [_study(table) for table in by_measure(group)]
    return [{**table, "warnings": _no_gain(group) if number == 0 else []} for number, table in enumerate(tables)]


def _no_gain(group: Sequence[Result]) -> list[str]:
    """Return one sentence on the targets where the posterior gives no lower test loss than plain prompt tuning.

    Where one of the two stands in several variants, nobody can say which is meant.
    """
    from bmtpt.posterior.diagnostics import no_gain_warning

    losses: dict[str, dict[str, list[float]]] = {}
    for cell in summarise([row.model_copy(update={"primary": True}) for row in group if row.metric == "nll"]):
        method, _ = method_and_variant(cell.method)
        losses.setdefault(method, {}).setdefault(row_name(cell.row), []).append(cell.mean)
    ours, plain = losses.get(JUDGED, {}), losses.get("pt", {})
    alone = [row for row in ours if len(ours[row]) == len(plain.get(row, [])) == 1]
    bad = [(row, *ours[row], *plain[row]) for row in alone if no_gain_warning(*ours[row], *plain[row])]
    if not bad:
        return []
    rows, own, plains = zip(*bad, strict=True)
    return [f"On {', '.join(rows)} (averages of the test NLL): {no_gain_warning(fmean(own), fmean(plains))}"]


def _study(results: Sequence[Result]) -> dict[str, Any]:
    from bmtpt.report.score_plots import difference_plot
    from bmtpt.report.variant_plots import plot_of

    cells = summarise(results)
    found = methods_of(cells)
    pairs = [] if cells[0].metric in MEASURES else pairs_to_compare(found, JUDGED)
    differences = [paired_difference(results, *pair) for pair in pairs]
    return {
        "name": results[0].study + (f": {cells[0].metric}" if cells[0].metric in MEASURES else ""),
        "backbone": results[0].backbone,
        "sources": ", ".join(dict.fromkeys(name for result in results for name in result.sources)),
        "verdict": verdict(results, JUDGED),
        "table": score_table(results),
        "costs": [_cost(cells, name) for name in found] if any(cell.trained_share for cell in cells) else [],
        "scores": _safe(plot_of(cells)),
        "differences": _safe(difference_plot(differences)),
        "versions": dict(sorted({pair for result in results for pair in result.versions.items()})),
    }


def _cost(cells: Sequence[Cell], method: str) -> tuple[str, str, str, str]:
    own = [cell for cell in cells if cell.method == method]
    return (
        display_name(method),
        _range([cell.trained_parameters for cell in own], "{:,.0f}"),
        _range([100 * cell.trained_share for cell in own], "{:.3g} %"),
        _range([cell.seconds for cell in own], "{:,.3g}"),
    )


def _range(values: Sequence[float], form: str) -> str:
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low} to {high}"


def _run(run: Run) -> dict[str, Any]:
    from bmtpt.report import training_plots as plots

    gaps = plots.mean_gap(run)
    return {
        "name": run.name,
        "summary": _summary(run),
        "warnings": _warnings(run, gaps),
        "losses": _safe(plots.loss_curves(run)),
        "diagnostics": _safe(plots.diagnostics_curves(run)),
        "heat_maps": _safe(plots.heat_maps(run)),
        "gaps": [_gap_row(task, mean, own) for task, (mean, own) in gaps.items()],
        "gap_plot": _safe(plots.gap_plot(gaps) if gaps else None),
        "settings": _flat(run.settings),
        "versions": _flat(mapping(run.card.get("versions"))),
    }


def _summary(run: Run) -> list[tuple[str, str]]:
    card, backbone = run.card, mapping(run.card.get("backbone"))
    shapes = sorted({prompt.shape for prompt in run.prompts.values()})
    seconds = number_of(card.get("seconds"))
    rows = {
        "kind": card.get("kind"),
        "method": display_name(str(card["method"])) if card.get("method") else None,
        "task": card.get("task"),
        "sources": ", ".join(map(str, card.get("sources") or [])),
        "backbone": backbone.get("name"),
        "backbone parameters": _integer(backbone.get("parameters")),
        "fingerprint": str(backbone.get("fingerprint") or "")[:12],
        "prompts": ", ".join(f"{len(run.prompts)} of {P} × {D}" for P, D in shapes),
        "trained numbers": _trained(run),
        "steps": _integer(card.get("steps")),
        "wall time": f"{seconds:,.1f} s" if seconds == seconds else None,
        "created": card.get("created"),
    }
    return [(name, str(value)) for name, value in rows.items() if value]


def _trained(run: Run) -> str | None:
    trained = number_of(run.card.get("trained_parameters"))
    if trained != trained and run.card.get("kind") == "posterior":
        trained = sum(prompt.size for prompt in run.prompts.values()) or trained
    if trained != trained:
        return None
    total = number_of(mapping(run.card.get("backbone")).get("parameters"))
    return f"{trained:,.0f}" + (f" ({100 * trained / total:.3g} % of the backbone)" if total > 0 else "")


def _integer(value: object) -> str | None:
    number = number_of(value)
    return f"{number:,.0f}" if number == number else None


def _warnings(run: Run, gaps: Mapping[str, tuple[float, list[float]]]) -> list[str]:
    """The last check's warnings: each check judges the whole run so far, so earlier ones are out of date."""
    checks = [event["warnings"] for event in run.of_kind("diagnostics") if "warnings" in event]
    logged = [str(sentence) for sentence in checks[-1]] if checks and isinstance(checks[-1], list) else []
    ours = _gap_warnings(gaps)
    # Ours names the tasks, so the run's own sentence on the same failure would say less again.
    repeated = tuple(sentence.partition("(averages): ")[2].partition(":")[0] + ":" for sentence in ours)
    return ours + [sentence for sentence in logged if not sentence.startswith(repeated)]


def _gap_warnings(gaps: Mapping[str, tuple[float, list[float]]]) -> list[str]:
    """Return one sentence for all tasks whose mean prompt is much worse than the particles."""
    if not gaps:
        return []
    from bmtpt.posterior.diagnostics import mean_gap_warning

    bad = {task: gap for task, gap in gaps.items() if mean_gap_warning(*gap)}
    mean = fmean(mean for mean, _ in bad.values()) if bad else None
    sentence = mean_gap_warning(mean, [fmean(own) for _, own in bad.values()])
    return [f"On {', '.join(bad)} (averages): {sentence}"] if sentence else []


def _gap_row(task: str, mean: float, own: Sequence[float]) -> tuple[str, ...]:
    average = fmean(own)
    values = (mean, average, min(own), max(own), mean - average)
    return (task, *(f"{value:.3f}".replace("-", "−") for value in values))


def _maps(runs: Sequence[Run]) -> list[tuple[Markup | None, str]]:
    """One map per width of the prompts: those of different backbones do not share a space."""
    from bmtpt.report.training_plots import task_map

    by_width: dict[int, dict[str, NDArray[np.float64]]] = {}
    for run in runs:
        for name, prompt in run.prompts.items():
            full = name if len(runs) == 1 else f"{run.name}: {name}"
            by_width.setdefault(prompt.shape[1], {})[full] = prompt
    drawn = [found for prompts in by_width.values() if (found := task_map(prompts))]
    return [(_safe(svg), caption) for svg, caption in drawn]


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Flatten nested settings to ("outer.inner", text)."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, dict) and value:
            rows += _flat(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            rows.append((f"{prefix}{key}", text))
    return rows


def _safe(svg: str | None) -> Markup | None:
    """Mark a figure as HTML; matplotlib and `svg.to_svg` have escaped its texts."""
    from markupsafe import Markup

    return Markup(svg) if svg else None
