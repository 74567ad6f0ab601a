"""What methods, variants and metrics are called in print, and which direction of a metric is better."""

from __future__ import annotations

import ast
import sys
from functools import cache
from importlib import resources

OTHER_NAMES = {
    "svgd": "SVGD",
    "mean_of_means": "mean of the means",
    "best_single": "best single mean",
    "best_convex": "best convex combination of the means",
    "closed_form": "closed form",
    "posterior": "source posterior",
}
"""Printed names of what lines without a registered method have in its place."""


def display_names() -> dict[str, str]:
    """Return the printed names of methods, in the order of the columns; other names are printed as they are."""
    declared = dict(_declared())
    if registry := sys.modules.get("bmtpt.methods.registry"):  # it also knows the methods of a script
        declared |= {name: (each.column, each.display_name) for name, each in registry.all_methods().items()}
    return {name: declared[name][1] for name in sorted(declared, key=lambda name: declared[name][0])} | OTHER_NAMES


@cache
def _declared() -> dict[str, tuple[int, str]]:
    """Read column and printed name of every `Method(name, display_name, …, column=…)` in the methods' files.

    The files are read and not imported: they need torch, which takes seconds to load.
    """
    found = {}
    files = [file for file in resources.files("bmtpt.methods").iterdir() if file.name.endswith(".py")]
    for node in (node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Method":
            name, display_name = (ast.literal_eval(argument) for argument in node.args[:2])
            (column,) = (ast.literal_eval(each.value) for each in node.keywords if each.arg == "column")
            found[name] = (column, display_name)
    return found


COSTS = {
    "seconds": "wall seconds of the stage; machine and load differ between runs",
    "steps": "optimiser steps of the stage",
    "trained_parameters": "numbers trained for the target",
    "kept_bytes": "bytes that are kept for the target, next to what all targets share",
    "predict_seconds": "wall seconds of answering one row; machine and load differ between runs",
}
"""Costs that a line carries whatever its metric; older lines lack the last two."""

LOSSES = {
    "nll": "negative log-likelihood of the right label among the label words, nats per example",
    "brier": "Brier score of the label probabilities",
}
"""Strictly proper scores: the lowest is best."""

MEASURES = {
    **COSTS,
    **LOSSES,
    "attenuation": "share of the amplitude that is left",
    "covered_modes": "modes with at least one particle",
    "ece": "expected calibration error in 15 bins, 0 to 100; not a proper score",
    "kernel_rank": "effective number of distinct particles",
    "loss": "nats per example",
    "loss_rise": "loss above that of the prompt itself, nats per example",
    "mean_error": "distance from the true mean in standard deviations",
    "mean_gap": "held-out loss of the mean minus that of the particles, nats",
    "mean_nll": "held-out loss of the mean, nats",
    "mean_rms": "root mean square of the mean, embedding units",
    "particle_nll": "held-out loss of the particles, nats",
    "repulsion_to_drive": "norm of the repulsion over norm of the drive, last step",
    "spread": "root mean square distance from the mean, embedding units",
    "stein_discrepancy": "squared kernelised Stein discrepancy, last step",
    "variance_ratio": "variance of the particles over the true variance",
}
"""Quantities that are not scores from 0 to 100. Except for `LOSSES`, none has a best value to mark."""

SECOND_TABLES = frozenset({"covered_modes", "mean_error", "mean_gap", "particle_nll", "spread"})
"""Measures that get a table of their own next to the headline scores if a study varies what they depend on."""

OPTION_NAMES = {
    "annealing": "{} annealing",
    "batch_size": "{} rows a step",
    "candidates": "{} starts",
    "dimension": "n = {}",
    "frequency": "frequency {}",
    "init_steps": "{} steps for the start",
    "kernel": "{} kernel",
    "learning_rate": "rate {}",
    "particle_init": "{} start",
    "particles": "M = {}",
    "prior_std": "σ = {}",
    "repulsion": "repulsion {}",
    "scope": "one kernel per {}",
    "std": "blur {}",
    "steps": "{} steps",
    "unlabelled_rows": "{} texts",
}
"""Printed names of a variant's options, whatever their value."""

SETTING_NAMES = {
    "average=start": "start averaged in",
    "average=starts": "starts averaged in",
    "decompose=true": "A ∘ uvᵀ",
    "decompose=false": "θ itself",
    "freeze_full=true": "u and v only",
    "likelihood=labels": "label likelihood",
    "predictive=laplace": "Laplace",
    "predictive=map": "MAP",
    "prior=mean": "one Gaussian",
    "prior=mixture": "one Gaussian per particle",
    "prior=none": "no prior",
    "readout=linear": "readout",
    "readout=offset": "offset",
    "readout_prior=posterior": "source widths",
    "selection=loss": "step by loss",
    "selection=none": "last step",
    "selection=score": "step by score",
    "source_objective=readout": "sources' readouts",
    "steps=0": "untouched",
    "task_factors=true": "with factors",
    "task_factors=false": "without factors",
    "together=true": "targets together",
    "together=false": "targets alone",
}
"""Printed names of a variant's options with one value; other options and values are printed as they are."""

_RATE_THAT_MOVES_NOTHING = 1e-9


def direction(metric: str) -> int:
    """Return 1 if more is better, −1 if less is better, 0 if the metric does not rank methods.

    >>> direction("accuracy"), direction("nll"), direction("ece")
    (1, -1, 0)
    """
    if metric in LOSSES:
        return -1
    return 0 if metric in MEASURES else 1


def contender(method: str, variant: str) -> str:
    """Return the name of a method with its variant, as `--method` takes it.

    >>> contender("bmtpt", "particles=7"), contender("pt", "")
    ('bmtpt[particles=7]', 'pt')
    """
    return f"{method}[{variant}]" if variant else method


def method_and_variant(name: str) -> tuple[str, str]:
    """Undo `contender`.

    >>> method_and_variant("bmtpt[particles=7]"), method_and_variant("pt")
    (('bmtpt', 'particles=7'), ('pt', ''))
    """
    method, _, variant = name.partition("[")
    return method, variant.removesuffix("]")


def options_of(variant: str) -> dict[str, str]:
    """Return the options that a variant sets.

    >>> options_of("particles=7,kernel=rbf"), options_of("")
    ({'particles': '7', 'kernel': 'rbf'}, {})
    """
    return dict(part.split("=", 1) for part in variant.split(",") if "=" in part)


def variant_name(variant: str) -> str:
    """Return the printed name of a variant.

    >>> variant_name("particles=7,kernel=rbf"), variant_name("learning_rate=1e-12,steps=1")
    ('M = 7, rbf kernel', 'untouched')
    """
    options = options_of(variant)
    if options and float(options.get("learning_rate", 1)) < _RATE_THAT_MOVES_NOTHING:
        return "untouched"
    return ", ".join(
        SETTING_NAMES.get(f"{name}={value}") or OPTION_NAMES.get(name, f"{name.replace('_', ' ')} {{}}").format(value)
        for name, value in options.items()
    )


def display_name(name: str) -> str:
    """Return the printed name of a method with its variant.

    >>> display_name("bmtpt[particles=7]")
    'BMTPT (M = 7)'
    """
    method, variant = method_and_variant(name)
    shown = display_names().get(method, method)
    return f"{shown} ({variant_name(variant)})" if variant else shown


def number(value: float) -> str:
    """Return a score with one decimal and a true minus sign, or a dash for NaN.

    >>> number(-1.84), number(-0.01), number(float("nan"))
    ('−1.8', '0.0', '–')
    """
    if value != value:
        return "–"
    text = f"{value:.1f}"
    return "0.0" if text == "-0.0" else text.replace("-", "−")


def figure(value: float, metric: str) -> str:
    """Return a score with one decimal, and a measure with three digits or as a whole number.

    >>> figure(54.321, "accuracy"), figure(-0.0054321, "loss_rise"), figure(10772, "trained_parameters")
    ('54.3', '−0.00543', '10,772')
    """
    if metric not in MEASURES or value != value:
        return number(value)
    return (f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}").replace("-", "−")
