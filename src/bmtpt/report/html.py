"""One self-contained HTML page about runs and results: no network, the same bytes for the same input."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from bmtpt.artifacts.files import write_text_atomically
from bmtpt.errors import ArtifactError, nearest
from bmtpt.posterior.history import mean_gap_warning, no_gain_warning
from bmtpt.report.calibration_plot import calibration_plot
from bmtpt.report.chart import Chart
from bmtpt.report.gain_plot import gain_chart
from bmtpt.report.lines import by_measure, frame, of_metric
from bmtpt.report.names import MEASURES, contender, direction, display_name, method_and_variant
from bmtpt.report.particle_plots import gap_plot, heat_maps, path_plot
from bmtpt.report.prompt_maps import task_maps
from bmtpt.report.runs import Run, mapping, number_of, read_inputs
from bmtpt.report.score_plots import difference_plot, score_plot
from bmtpt.report.statistics import contenders, scores, verdict
from bmtpt.report.svg import style
from bmtpt.report.training_plots import POINTS_IN_ALL, diagnostics_curves, loss_curves
from bmtpt.results import Result

if TYPE_CHECKING:
    import pandas as pd

JUDGED = "bmtpt"
"""The method that is compared with the others unless another one is named."""


def write_report(paths: Sequence[Path], out: Path, method: str | None = None) -> Path:
    """Write the report of run folders and results files to one HTML file.

    Args:
        paths: Run folders (any of card.json, events.jsonl, posterior or prompt tensors, results.jsonl,
            settings.yaml) and results files.
        out: The HTML file; an old one is replaced at once or not at all.
        method: The method, or one variant such as "bmtpt[particles=7]", that is compared with the others; None: BMTPT.

    Returns:
        ``out``.

    Raises:
        ArtifactError: A path is missing, unreadable or holds nothing to report; the method has no results; or ``out``
            cannot be written.
    """
    runs, results = read_inputs(paths)
    known = {name for each in results for name in (each.method, contender(each.method, each.variant))}
    if method is not None and method not in known:
        raise ArtifactError(f"no results of the method '{method}'; {nearest(method, known)}")
    if not runs and not any(result.primary for result in results):
        raise ArtifactError(f"{paths[0]} holds no headline scores (primary: true), so there is nothing to report")
    write_text_atomically(out, render(runs, results, method or JUDGED))
    return out


def render(runs: Sequence[Run], results: Sequence[Result], method: str = JUDGED) -> str:
    """Return the page."""
    with style():
        return page(
            "template.html",
            studies=[  # a study's scores, with its warnings, and then each of its measures
                _scores(table, method)
                | (_whole(lines, method) if number == 0 else {"gains": [], "calibration": None, "warnings": []})
                for _, lines in frame(results).groupby(["study", "backbone"], sort=False)
                for number, table in enumerate(by_measure(lines))
            ],
            runs=[_run(run, POINTS_IN_ALL // len(runs)) for run in runs],
            maps=list(task_maps(runs)),
        )


def page(template: str, **values: Any) -> str:
    """Return one of the package's templates with its values."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    script = Path(__file__).with_name("page.js").read_text(encoding="utf-8")
    seal = "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()  # no other script may run
    loader = PackageLoader("bmtpt.report", "")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(script={"text": Markup(script), "hash": seal}, **values)


def _scores(lines: pd.DataFrame, method: str) -> dict[str, Any]:
    metric = str(lines.metric.iloc[0])
    return {
        "name": lines.study.iloc[0] + (f": {metric}" if metric in MEASURES else ""),
        "backbone": lines.backbone.iloc[0],
        "sources": ", ".join(dict.fromkeys(name for names in lines.sources for name in names)),
        "verdict": verdict(lines, method),
        "scores": score_plot(lines),
        "differences": None if metric in MEASURES else difference_plot(lines, method),
        "versions": dict(sorted({pair for versions in lines.versions for pair in versions.items()})),
    }


def _whole(lines: pd.DataFrame, method: str) -> dict[str, Any]:
    """Return what is told of a study once, next to its headline scores."""
    return {
        "gains": _gains(lines, method),
        "calibration": calibration_plot(lines),
        "warnings": _no_gain(lines),
    }


def _gains(lines: pd.DataFrame, method: str) -> list[Chart]:
    """Draw a contender's differences from all others in the headline scores and in NLL, as far as a study has them."""
    tables = [by_measure(lines)[0], *(of_metric(lines, name) for name in {"nll"} & set(lines.metric))]
    ranked = [each for each in tables if direction(each.metric.iloc[0]) and method in set(each.contender)]
    return [drawn for drawn in (gain_chart(each, method) for each in ranked) if drawn]


def _no_gain(lines: pd.DataFrame) -> list[str]:
    """Return one sentence on the targets where the posterior gives no lower test loss than plain prompt tuning.

    None if either has several variants, because it is not known which one is meant.
    """
    losses = lines[lines.metric == "nll"]
    names = [name for name in contenders(losses) if method_and_variant(name)[0] in (JUDGED, "pt")]
    if [method_and_variant(name)[0] for name in names] != ["pt", JUDGED]:
        return []
    cells = scores(of_metric(losses, "nll"))
    means = cells.pivot(index="row", columns="contender", values="mean").reindex(cells.row.unique())[names].dropna()
    bad = means[[no_gain_warning(ours, plain) is not None for plain, ours in means.to_numpy()]]
    if bad.empty:
        return []
    plain, ours = bad.mean()
    return [f"On {', '.join(bad.index)} (averages of the test NLL): {no_gain_warning(ours, plain)}"]


# Runs


def _run(run: Run, points: int) -> dict[str, Any]:
    gaps = run.mean_gaps()
    return {
        "name": run.name,
        "summary": _summary(run),
        "warnings": _warnings(run, gaps),
        "losses": loss_curves(run, points),
        "diagnostics": diagnostics_curves(run),
        "path": path_plot(run),
        "heat_maps": heat_maps(run),
        "gaps": gap_plot(gaps),
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
        "wall time": None if math.isnan(seconds) else f"{seconds:,.1f} s",
        "created": card.get("created"),
    }
    return [(name, str(value)) for name, value in rows.items() if value]


def _trained(run: Run) -> str | None:
    trained = number_of(run.card.get("trained_parameters"))
    if math.isnan(trained) and run.card.get("kind") == "posterior" and run.prompts:
        trained = float(sum(prompt.size for prompt in run.prompts.values()))
    total = number_of(mapping(run.card.get("backbone")).get("parameters"))
    if math.isnan(trained):
        return None
    return f"{trained:,.0f}" + (f" ({100 * trained / total:.3g} % of the backbone)" if total > 0 else "")


def _integer(value: object) -> str | None:
    number = number_of(value)
    return None if math.isnan(number) else f"{number:,.0f}"


def _warnings(run: Run, gaps: Mapping[str, tuple[float, list[float]]]) -> list[str]:
    """Return the last check's warnings (each judges the whole run so far), and one that names the tasks with a gap."""
    checks = [event["warnings"] for event in run.of_kind("diagnostics") if "warnings" in event]
    logged = [str(sentence) for sentence in checks[-1]] if checks and isinstance(checks[-1], list) else []
    if not gaps:
        return logged
    bad = {task: gap for task, gap in gaps.items() if mean_gap_warning(*gap)}
    if not bad:
        return logged
    sentence = mean_gap_warning(fmean(mean for mean, _ in bad.values()), [fmean(own) for _, own in bad.values()])
    # The run's own sentence on the same failure starts the same way and does not name the tasks.
    same = (sentence or "").partition(":")[0]
    others = [each for each in logged if not each.startswith(same + ":")]
    return [f"On {', '.join(bad)} (averages): {sentence}", *others]


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Flatten nested settings to ("outer.inner", text)."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        nested = isinstance(value, dict) and value
        rows += _flat(value, f"{prefix}{key}.") if nested else [(f"{prefix}{key}", text)]
    return rows
