"""Result lines as the markdown tables of docs/performance.md."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import causal
from baselines import NAMES, RECOMPUTE
from bmtpt.report.table import Table, to_markdown
from flops import step_flop
from scaling import AXES
from shapes import DTYPES, SHAPES, TINY
from targets import TARGETS, verdict

Line = Mapping[str, Any]
NOT_MEASURED = "Not measured."
DEVICES = {"cpu": "CPU", "cuda": "GPU"}
COMPARED = ("loop_unfrozen", "loop_frozen", "peft", "batched", "generic")
LETTERS = ("(a)", "(b)", "(c)", "(d)", "generic")
WHEN = "machine, day"
_NOT_A_NAME = r"\((R|TM)\)| Processor| CPU"
REMOVED = {
    f"packed_{name}": " (removed)"
    for name in ("autograd", "memory_given_back", "plain_matmul", "gelu_tables", "whole_gelu")
}
"""Variants of committed lines that the code no longer has, and what the tables say of them."""
FLOOR = ("t5-small", "t5-base", "t5-large", "t5-3b")


def read_lines(folder: Path) -> list[Line]:
    """Return the lines of step-, causal-, scaling- and predict-*.jsonl in a folder; `benchmark` says which they are."""
    return [
        {"benchmark": kind, **json.loads(text)}
        for kind in ("step", "causal", "scaling", "predict")
        for path in sorted(folder.glob(f"{kind}-*.jsonl"))
        for text in path.read_text(encoding="utf-8").splitlines()
    ]


def blocks(lines: Sequence[Line]) -> dict[str, str]:
    """Return every block of the document by name."""
    made = {"floor": floor_table(), "targets": targets_table(lines)}
    made |= {f"step-{device}": step_block(lines, device) for device in DEVICES}
    made |= {f"plans-{device}": plans_block(lines, device) for device in DEVICES}
    made |= {f"scaling-{device}": scaling_block(lines, device) for device in DEVICES}
    return {
        **made,
        "causal": causal_block(lines),
        "predict": predict_block(lines),
    }


def step_lines(lines: Sequence[Line], device: str) -> list[Line]:
    """Return the last line of each case, machine and day of a kind of device, in the order of the shapes.

    A virtual machine differs from day to day, so each day has its own row.
    """
    own = [line for line in lines if line["benchmark"] == "step" and _kind(line) == device]
    own = [line for line in own if line["size"] not in TINY]
    sizes, precisions = list(SHAPES), list(DTYPES)

    def order(x: Line) -> tuple[Any, ...]:
        return sizes.index(x["size"]), precisions.index(x["precision"]), x["B"], occasion(x)

    return sorted({order(line): line for line in own}.values(), key=order)


def scaling_lines(lines: Sequence[Line], device: str) -> list[Line]:
    """Return the last line of each point of a kind of device, axis by axis."""
    own = [line for line in lines if line["benchmark"] == "scaling" and _kind(line) == device]
    own = [line for line in own if line["size"] not in TINY and line["engine"] == "packed"]
    last = {(machine(line), line["size"], line["precision"], line["axis"], line[line["axis"]]): line for line in own}
    axes = list(AXES[device])
    return sorted(last.values(), key=lambda x: (machine(x), x["size"], axes.index(x["axis"]), x[x["axis"]]))


def machine(line: Line) -> str:
    """Return the name of what computed."""
    return str(_facts(line).get("gpu") or _facts(line)["cpu"])


def occasion(line: Line) -> str:
    """Return what computed, in short, and when."""
    return f"{re.sub(_NOT_A_NAME, '', machine(line))}, {_facts(line)['date']}"


# Blocks


def floor_table() -> str:
    def row(size: str) -> list[str]:
        flop = step_flop(SHAPES[size], 5, 100, [100] * 24, [4] * 24)
        return [size, f"{flop / 1e12:.3g}", f"{flop / 790e12 * 1e3:.3g}"]

    return table(["M=5, K=6, B=4, P=100, L=100, T=4", "TFLOP a step", "ms at 790 TFLOP/s"], map(row, FLOOR))


def targets_table(lines: Sequence[Line]) -> str:
    """One row per target; of every machine and day the last result line that it applies to counts."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for line in lines:
        for target in line.get("targets", ()):
            found.setdefault((_kind(line), target["what"]), {})[occasion(line)] = verdict(target)
    unknown = {"": verdict({"value": None})}
    rows = []
    for target in TARGETS:
        verdicts = found.get((target.where["device"], target.what), unknown)
        told = [f"{text} ({when})" if when else text for when, text in sorted(verdicts.items())]
        rows.append([_place(target.where), target.what, "; ".join(told)])
    return table(["where", "target", "measured"], rows, numbers_from=3)


def step_block(lines: Sequence[Line], device: str) -> str:
    own = step_lines(lines, device)
    if not own:
        return NOT_MEASURED
    parts = [machines(own), step_table(own), f"![One step]({plot_path('step', device)})", _every_variant(own)]
    return "\n\n".join(parts)


def step_table(lines: Sequence[Line]) -> str:
    head = ["shape", "B", "precision", WHEN, "packed, s", *(f"× {letter}" for letter in LETTERS)]
    return table([*head, "TFLOP/s", "of matmul peak", "most × (b)"], map(_step_row, lines), numbers_from=4)


def _step_row(line: Line) -> list[str]:
    ratios = [_or_dash(line["ratio"].get(name), "{:.2f}") for name in COMPARED]
    seconds = line["seconds"].get("packed")
    rate = line["useful_flop"] / seconds / 1e12 if seconds else None
    share = line["share_of_peak"].get("packed")
    at_peak = line["share_of_peak"].get("loop_frozen")
    return [
        *(*_case(line), occasion(line), _or_dash(seconds, "{:.3g}"), *ratios),
        *(_or_dash(rate, "{:.3g}"), _or_dash(share, "{:.0%}"), _or_dash(at_peak and 1 / at_peak, "{:.1f}")),
    ]


def _every_variant(lines: Sequence[Line]) -> str:
    head = ["shape", "B", "precision", WHEN, "variant", "s", "CPU s", "rounds", "gradient error", "cosine", "MiB"]
    rows = (
        [*_case(line), occasion(line), name + REMOVED.get(name, ""), *_variant(line, name)]
        for line in lines
        for name in sorted(line["seconds"], key=[*NAMES, RECOMPUTE, *REMOVED].index)
    )
    return table(head, rows, numbers_from=5)


def _variant(line: Line, name: str) -> list[str]:
    memory = line["peak_bytes"][name]
    return [
        f"{line['seconds'][name]:.3g}",
        f"{line['cpu_seconds'][name]:.3g}",
        str(line["rounds"][name]),
        f"{line['relative_error'][name]:.1e}",
        f"{line['cosine'][name]:.5f}",
        _or_dash(memory and memory / 2**20, "{:.0f}"),
    ]


def causal_block(lines: Sequence[Line]) -> str:
    """What decoder-only models cost, the last line of each case and machine."""
    own = [line for line in lines if line["benchmark"] == "causal" and line["size"] not in causal.TINY]
    if not own:
        return NOT_MEASURED
    sizes, precisions = list(causal.MODELS), list(DTYPES)
    newest = {(sizes.index(x["size"]), precisions.index(x["precision"]), x["B"], machine(x)): x for x in own}
    last = [line for _, line in sorted(newest.items())]
    head = ["shape", "B", "precision", WHEN, "packed, s", "× PEFT", "× generic"]
    rows = [
        [
            *_case(line),
            occasion(line),
            _or_dash(line["seconds"].get("packed"), "{:.3g}"),
            *(_or_dash(line["ratio"].get(name), "{:.2f}") for name in ("peft", "generic")),
        ]
        for line in last
    ]
    return "\n\n".join([machines(last), table(head, rows, numbers_from=4), _every_variant(last)])


def plans_block(lines: Sequence[Line], device: str) -> str:
    """Return the packed engine next to variants of it; those of a line were timed in turn."""
    own = [line for line in lines if line["benchmark"] == "plans" and _kind(line) == device]
    own = [line for line in own if line["size"] not in TINY]
    last = {(*_case(line), occasion(line), *line["seconds"]): line for line in own}.values()
    return "\n\n".join([machines(list(last)), _every_variant(list(last))]) if last else NOT_MEASURED


def scaling_block(lines: Sequence[Line], device: str) -> str:
    own = scaling_lines(lines, device)
    if not own:
        return NOT_MEASURED
    head = ["shape", "precision", "axis", "value", "s a step", "useful GFLOP/s", "MiB", "SVGD itself"]
    body = table(head, map(_scaling_row, own), numbers_from=3)
    return "\n\n".join([machines(own), f"![Scaling]({plot_path('scaling', device)})", body])


def _scaling_row(line: Line) -> list[str]:
    return [
        line["size"],
        line["precision"],
        line["axis"],
        str(line[line["axis"]]),
        f"{line['seconds']:.3g}",
        f"{line['useful_flop'] / line['seconds'] / 1e9:.0f}",
        _or_dash(line["peak_bytes"] and line["peak_bytes"] / 2**20, "{:.0f}"),
        f"{line['svgd_share']:.2%}",
    ]


def predict_block(lines: Sequence[Line]) -> str:
    own = predict_lines(lines)
    if not own:
        return NOT_MEASURED
    names = list(dict.fromkeys(name for line in own for name in line["rows_per_second"]))
    head = ["case", "tasks", "rows at a time", "precision", WHEN, *(f"{name}, rows/s" for name in names), "ratio"]
    rows = (
        [line["case"], str(line["tasks"]), str(line["batch_rows"]), line["precision"], occasion(line)]
        + [_or_dash(line["rows_per_second"].get(name), "{:.3g}") for name in names]
        + [", ".join(f"{name} {value:.3g}" for name, value in line["ratio"].items())]
        for line in own
    )
    return "\n\n".join([machines(own), table(head, rows, numbers_from=5), f"![Prediction]({plot_path('predict')})"])


def predict_lines(lines: Sequence[Line]) -> list[Line]:
    """Return the last line of each case; `predict.py` names case and batch_rows backbone and arrival."""
    own = [
        {"case": line.get("backbone"), "batch_rows": line.get("arrival"), **line}
        for line in lines
        if line["benchmark"] == "predict"
    ]
    return list({(machine(x), x["case"], x["tasks"], x["batch_rows"], x["precision"]): x for x in own}.values())


def plot_path(kind: str, device: str | None = None) -> str:
    """Return where a plot lies, seen from docs/."""
    return f"plots/{kind}-{device}.svg" if device else f"plots/{kind}.svg"


# Cells


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers_from: int = 1) -> str:
    """Return a Markdown table; columns from `numbers_from` on are set flush right."""
    return to_markdown(Table(tuple(head), tuple(map(tuple, rows)), words=numbers_from)).strip()


def machines(lines: Sequence[Line]) -> str:
    """Say on what, and with what, lines were measured."""
    return "Measured on " + "; ".join(dict.fromkeys(map(_machine, lines))) + "."


def _machine(line: Line) -> str:
    facts = _facts(line)
    cores = f"{facts['cores']} cores, {facts['threads']} threads" + (", AMX bf16" if facts.get("amx_bf16") else "")
    host = "" if facts["device"] == "cuda" else f" ({cores})"
    return f"{machine(line)}{host}, torch {facts['torch']}, transformers {facts['transformers']}, {facts['date']}"


def _facts(line: Line) -> Line:
    """What `machine_facts` found, which `predict.py` writes side by side with its figures."""
    facts: Line = line.get("machine", line)
    return facts


def _kind(line: Line) -> str:
    return str(_facts(line)["device"])


def _case(line: Line) -> list[str]:
    return [line["size"], str(line["B"]), line["precision"]]


def _place(where: Mapping[str, Any]) -> str:
    if where["benchmark"] == "scaling":
        return f"{DEVICES[where['device']]}, scaling"
    return f"{DEVICES[where['device']]}, {where['size']}, B = {where['B']}, {where['precision']}"


def _or_dash(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def fill(document: str, made: Mapping[str, str]) -> str:
    """Replace what is between `<!-- name -->` and `<!-- end name -->` by the block of that name.

    Raises:
        ValueError: The document lacks a block.
    """
    for name, text in made.items():
        document = _between(document, f"<!-- {name} -->\n", f"\n<!-- end {name} -->", text)
    return document


def _between(document: str, start: str, end: str, text: str) -> str:
    before, found, rest = document.partition(start)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"the document has no block '{start.strip()}'")
    return before + start + text + end + after
