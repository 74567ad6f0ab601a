"""How a step's time and memory grow with M, K, B, the prompt's length P and the text's length L.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/scaling.py --out benchmarks/results/scaling-cpu.jsonl

One axis varies at a time around M = 5, K = 6, B = 1, P = 100, L = 100; every text has L tokens and every label 4.
The points of an axis are timed interleaved. `svgd_share` is what SVGD itself (kernel, direction, optimiser) takes of a
step, timed on its own. One JSON line per point.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from baselines import OURS, build
from cases import make_case
from common import Timing, append_line, device_of, interleaved, machine_facts, parser, with_peak_memory
from flops import step_flop
from shapes import DTYPES, SHAPES, random_model
from step import SvgdStep
from targets import judged, verdicts

LABEL_TOKENS = 4


@dataclass(frozen=True)
class Point:
    """One step's size in the letters of `bmtpt.types`."""

    M: int = 5
    K: int = 6
    B: int = 1
    P: int = 100
    L: int = 100


AXES = {
    "cpu": {"M": (1, 2, 5, 10), "K": (1, 2, 4, 6), "B": (1, 2, 4), "P": (10, 20, 50, 100), "L": (25, 50, 100, 200)},
    "cuda": {
        "M": (1, 2, 5, 10, 20),
        "K": (1, 2, 4, 6, 12),
        "B": (1, 4, 16, 32),
        "P": (10, 20, 50, 100, 200),
        "L": (25, 50, 100, 200, 400),
    },
}
SMOKE_BASE = Point(M=2, K=2, B=1, P=3, L=5)
SMOKE_AXES = {"M": (1, 2, 10), "K": (1, 2), "B": (1, 2), "P": (2, 3), "L": (4, 5)}


@dataclass(frozen=True)
class Bench:
    """What all points share."""

    size: str
    engine: str
    precision: str
    device: torch.device
    model: Any


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    device = device_of(options.device)
    base, axes = (SMOKE_BASE, SMOKE_AXES) if options.smoke else (Point(), AXES[device.type])
    size = "tiny" if options.smoke else options.size
    bench = Bench(size, options.engine, options.precision, device, random_model(SHAPES[size]))
    for axis in options.axes or axes:
        points = [replace(base, **{axis: value}) for value in axes[axis]]
        for line in measured(bench, axis, points, options.rounds):
            print(report(line), flush=True)
            append_line(options.out, line)
    return 0


def _options(arguments: Sequence[str] | None) -> Namespace:
    options = parser(__doc__)
    options.add_argument("--size", choices=SHAPES, default="t5-small")
    options.add_argument("--engine", choices=OURS, default="packed")
    options.add_argument("--precision", choices=DTYPES, default="bfloat16")
    options.add_argument("--axes", nargs="+", choices=SMOKE_AXES)
    options.set_defaults(rounds=3)
    return options.parse_args(arguments)


def measured(bench: Bench, axis: str, points: Sequence[Point], rounds: int) -> list[dict[str, Any]]:
    """Time the points of one axis; return their result lines."""
    steps = {point: _step(bench, point) for point in points}
    peaks, updates = {}, {}
    for point, step in steps.items():
        # The call whose memory is watched also warms up.
        gradient, peaks[point] = with_peak_memory(
            lambda step=step: step.variant(step.particles.detach())[1], bench.device
        )
        updates[f"update {point}"] = lambda step=step, gradient=gradient: step.update(gradient)
    for update in updates.values():
        update()
    whole = {f"step {point}": step for point, step in steps.items()}
    times = interleaved({**whole, **updates}, rounds)
    return [_line(bench, axis, point, peaks[point], times) for point in points]


def _step(bench: Bench, point: Point) -> SvgdStep:
    lengths = [[(point.L, LABEL_TOKENS)] * point.B] * point.K
    table = bench.model.get_input_embeddings().weight
    case = make_case(bench.size, point.M, point.P, lengths, table).to(bench.device)
    return SvgdStep.of(build(bench.engine, bench.model, case, DTYPES[bench.precision]), case.particles)


def _line(bench: Bench, axis: str, point: Point, peak: int | None, times: dict[str, Timing]) -> dict[str, Any]:
    step, update = times[f"step {point}"], times[f"update {point}"]
    N = point.K * point.B
    line: dict[str, Any] = {
        "benchmark": "scaling",
        "axis": axis,
        "size": bench.size,
        "engine": bench.engine,
        "precision": bench.precision,
        **vars(point),
        "seconds": step.seconds,
        "cpu_seconds": step.cpu_seconds,
        "rounds": step.rounds,
        "svgd_seconds": update.seconds,
        "svgd_share": update.seconds / step.seconds,
        "peak_bytes": peak,
        "useful_flop": step_flop(SHAPES[bench.size], point.M, point.P, [point.L] * N, [LABEL_TOKENS] * N),
        "machine": machine_facts(bench.device),
    }
    return {**line, "targets": judged(line)}


def report(line: dict[str, Any]) -> str:
    memory = "n/a" if line["peak_bytes"] is None else f"{line['peak_bytes'] / 2**20:.0f} MiB"
    rate = line["useful_flop"] / line["seconds"] / 1e9
    text = (
        f"{line['axis']} = {line[line['axis']]}: {line['seconds']:.3f} s, {rate:.0f} useful GFLOP/s, {memory}, "
        f"SVGD itself {line['svgd_share']:.2%}"
    )
    return "\n".join([text, *verdicts(line["targets"])])


if __name__ == "__main__":
    raise SystemExit(main())
