"""Time one SVGD step (gradients, direction, optimiser) of ours against the ways that people do it.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/step.py --out benchmarks/results/step-cpu.jsonl

M = 5 particles, K = 6 tasks, prompts of 100 rows, random weights of published shapes, text lengths as of real tasks
(`cases.py`). Before anything is timed, every variant's losses and gradient are compared with Hugging Face's model in
fp32, run example by example without padding; in fp32 a difference ends the run. One JSON line per case. On a CPU the
default is what two cores finish in twelve minutes; --sizes, --batch-sizes, --precisions and --variants choose another.
"""

from __future__ import annotations

import itertools
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from baselines import NAMES, OURS, SLOW, Variant, build, reference
from bmtpt.settings import LearnSettings
from bmtpt.stein import svgd_direction
from bmtpt.train.optimisers import ParameterGroup, make_optimiser
from cases import Case, draw_lengths, make_case
from common import (
    SMOKE_PRODUCTS,
    append_line,
    device_of,
    gradient_error,
    interleaved,
    machine_facts,
    matmul_peak,
    parser,
    with_peak_memory,
)
from flops import step_flop
from shapes import DTYPES, SHAPES, TINY, random_model
from targets import judged, verdicts

M, K, P = 5, 6, 100
FP32_GRADIENT, FP32_LOSS = 1e-3, 1e-4
"""Largest relative differences from the reference in fp32; a product that rounds to bf16 is off by more."""
FAST = ("batched", *OURS)


@dataclass(frozen=True)
class Plan:
    """What is timed of one case."""

    size: str
    B: int
    precision: str
    variants: Sequence[str] = tuple(NAMES)
    M: int = M
    K: int = K
    P: int = P


CPU_PLANS = (
    Plan("t5-small", 1, "float32"),
    Plan("t5-small", 1, "bfloat16"),
    Plan("flan-t5-small", 1, "float32", ("loop_frozen", *FAST)),
    Plan("flan-t5-small", 1, "bfloat16", ("loop_frozen", *FAST)),
    Plan("t5-small", 4, "bfloat16", FAST),
    Plan("t5-base", 1, "bfloat16", FAST),
)
SMOKE = [Plan(size, 2, precision, M=2, K=3, P=4) for size in TINY for precision in DTYPES]


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    device = device_of(options.device)
    products = SMOKE_PRODUCTS if options.smoke else None
    peaks = {name: matmul_peak(dtype, device, products) for name, dtype in DTYPES.items()}
    for plan in _plans(options, device):
        rounds = {name: options.naive_rounds if name in SLOW else options.rounds for name in plan.variants}
        line = measured(plan, device, rounds, peaks[plan.precision])
        print(report(line), flush=True)
        append_line(options.out, line)
    return 0


def _options(arguments: Sequence[str] | None) -> Namespace:
    options = parser(__doc__)
    options.add_argument("--sizes", nargs="+", choices=SHAPES)
    options.add_argument("--batch-sizes", nargs="+", type=int)
    options.add_argument("--precisions", nargs="+", choices=DTYPES)
    options.add_argument("--variants", nargs="+", choices=NAMES)
    options.add_argument("--naive-rounds", type=int, default=1, help="rounds of the loops (default 1)")
    options.set_defaults(rounds=5)
    return options.parse_args(arguments)


def _plans(options: Namespace, device: torch.device) -> list[Plan]:
    """Return the default plans, or every combination of what was chosen."""
    chosen = (options.sizes, options.batch_sizes, options.precisions)
    if options.smoke:
        plans = SMOKE
    elif device.type == "cpu" and not any(chosen):
        plans = list(CPU_PLANS)
    else:
        sizes, counts, precisions = chosen
        sizes = sizes or ["t5-small", "flan-t5-small", "t5-base"]
        every = itertools.product(sizes, counts or [1, 4, 32], precisions or DTYPES)
        plans = [Plan(size, B, precision) for size, B, precision in every]
    return [replace(plan, variants=options.variants) for plan in plans] if options.variants else plans


# One case


@dataclass
class SvgdStep:
    """One step of the source stage by any variant: score, φ, optimiser (METHOD.md, section 1)."""

    variant: Variant
    particles: Tensor
    optimiser: torch.optim.Optimizer

    @classmethod
    def of(cls, variant: Variant, particles: Tensor) -> SvgdStep:
        leaf = particles.clone().requires_grad_(True)
        # So small a rate that every round does the same work on nearly the same prompts.
        settings = LearnSettings(learning_rate=1e-6)
        groups = [ParameterGroup("particles", [leaf], settings.learning_rate)]
        return cls(variant, leaf, make_optimiser(groups, settings))

    def __call__(self) -> None:
        self.update(self.variant(self.particles.detach())[1])

    def update(self, gradient: Tensor) -> None:
        """SVGD's own part, given ∂/∂θ of the losses."""
        phi, _ = svgd_direction(self.particles.detach(), -gradient)
        self.particles.grad = -phi
        self.optimiser.step()


def measured(plan: Plan, device: torch.device, rounds: Mapping[str, int], peak: float) -> dict[str, Any]:
    """Check and time one case; return its result line.

    Raises:
        SystemExit: In fp32 a variant's losses or gradient differ from the reference.
    """
    model = random_model(SHAPES[plan.size])
    lengths = draw_lengths(plan.K, plan.B)
    case = make_case(plan.size, plan.M, plan.P, lengths, model.get_input_embeddings().weight).to(device)
    truth = reference(model, case)(case.particles)
    variants = {name: build(name, model, case, DTYPES[plan.precision]) for name in plan.variants}
    checks = {name: _checked(name, variant, case, truth, plan) for name, variant in variants.items()}
    steps = {name: SvgdStep.of(variant, case.particles) for name, variant in variants.items()}
    times = interleaved(steps, {name: rounds[name] for name in steps})
    flop = step_flop(SHAPES[plan.size], plan.M, plan.P, *zip(*itertools.chain(*lengths), strict=True))
    seconds = {name: time.seconds for name, time in times.items()}
    line: dict[str, Any] = {
        "benchmark": "step",
        "size": plan.size,
        **{axis: getattr(plan, axis) for axis in ("M", "K", "B", "P", "precision")},
        "seconds": seconds,
        "cpu_seconds": {name: time.cpu_seconds for name, time in times.items()},
        "rounds": {name: time.rounds for name, time in times.items()},
        "ratio": {name: value / seconds["packed"] for name, value in seconds.items() if "packed" in seconds},
        **{
            key: {name: check[key] for name, check in checks.items()}
            for key in ("relative_error", "cosine", "peak_bytes")
        },
        "useful_flop": flop,
        "matmul_gflops": peak,
        "share_of_peak": {name: flop / value / peak / 1e9 for name, value in seconds.items()},
        "machine": machine_facts(device),
    }
    return {**line, "targets": judged(line)}


def _checked(
    name: str, variant: Variant, case: Case, truth: tuple[Tensor, Tensor], plan: Plan
) -> dict[str, float | None]:
    """Run a variant once: how exact it is, and the memory that it takes."""
    (losses, gradient), peak = with_peak_memory(lambda: variant(case.particles), case.particles.device)
    error, cosine = gradient_error(gradient, truth[1])
    loss_error = gradient_error(losses, truth[0])[0]
    if plan.precision == "float32" and not (error < FP32_GRADIENT and loss_error < FP32_LOSS):
        raise SystemExit(
            f"{plan.size}, B = {plan.B}: {NAMES[name]} does not compute the reference's quantity: its gradient differs "
            f"by {error:.1e} and its losses by {loss_error:.1e} (relative), where {FP32_GRADIENT:g} and {FP32_LOSS:g} "
            "are allowed; its time would mean nothing"
        )
    return {"relative_error": error, "cosine": cosine, "peak_bytes": peak}


# What is printed


def report(line: Mapping[str, Any]) -> str:
    """Return a case as text, a row per variant."""
    head = f"{line['size']}, B = {line['B']}, {line['precision']} on {line['machine']['device']}"
    flop = f"{line['useful_flop'] / 1e12:.3g} TFLOP, matmul peak {line['matmul_gflops']:.0f} GFLOP/s"
    columns = f"{'':14}{'seconds':>9}{'ratio':>7}{'of peak':>9}{'error':>9}{'cosine':>9}{'MiB':>8}"
    return "\n".join([f"{head}: {flop}", columns, *_rows(line), *verdicts(line["targets"]), ""])


def _rows(line: Mapping[str, Any]) -> Iterator[str]:
    for name, seconds in line["seconds"].items():
        memory = line["peak_bytes"][name]
        yield (
            f"{name:14}{seconds:9.3f}{line['ratio'].get(name, float('nan')):7.2f}{line['share_of_peak'][name]:9.1%}"
            f"{line['relative_error'][name]:9.1e}{line['cosine'][name]:9.5f}"
            + ("     n/a" if memory is None else f"{memory / 2**20:8.0f}")
        )


if __name__ == "__main__":
    raise SystemExit(main())
