"""Time one SVGD step (gradients, direction, optimiser) of ours against the ways that people do it.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/step.py --out benchmarks/results/step-cpu.jsonl

M = 5 particles, K = 6 tasks, prompts of 100 rows, random weights of published shapes, text lengths as of real tasks
(`cases.py`). Before anything is timed, every variant's losses and gradient are compared with Hugging Face's model in
fp32, run example by example without padding; in fp32 a difference ends the run, in bf16 a number that is not finite.
One JSON line per case, written when the case is done; one too large for a GPU's memory costs its own line only.
On a CPU the default is what two cores finish in twelve minutes, on a GPU what matters most comes first; --sizes,
--batch-sizes, --precisions and --variants choose another. `--variants packed packed_recompute` makes a line of the kind
"plans", which is shown next to the case's main line.
"""

from __future__ import annotations

import itertools
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from baselines import NAMES, OURS, RECOMPUTE, SLOW, Variant, build, reference
from bmtpt.posterior.svgd import svgd_direction
from bmtpt.settings import LearnSettings
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
class Setup:
    """What is timed of one case."""

    size: str
    B: int
    precision: str
    variants: Sequence[str] = tuple(NAMES)
    rounds: int = 5
    M: int = M
    K: int = K
    P: int = P


CPU_SETUPS = (
    Setup("t5-small", 1, "float32"),
    Setup("t5-small", 1, "bfloat16"),
    Setup("flan-t5-small", 1, "float32", ("loop_frozen", *FAST), rounds=3),
    Setup("flan-t5-small", 1, "bfloat16", ("loop_frozen", *FAST), rounds=3),
    Setup("t5-small", 4, "bfloat16", FAST, rounds=3),
    Setup("t5-base", 1, "bfloat16", FAST, rounds=3),
)
GPU = ("loop_frozen", *FAST)
GPU_SETUPS = (
    Setup("t5-base", 4, "bfloat16", GPU, rounds=10),
    Setup("t5-base", 1, "float32", ("packed",), rounds=10),
    *(Setup("t5-base", B, "bfloat16", GPU, rounds=10) for B in (1, 32)),
    Setup("flan-t5-small", 1, "float32", ("packed",), rounds=10),
    Setup("flan-t5-small", 4, "bfloat16", GPU, rounds=10),
    Setup("t5-small", 1, "float32", GPU, rounds=10),
    *(Setup("t5-small", B, "bfloat16", GPU, rounds=10) for B in (1, 4, 32)),
)
SMOKE = [Setup(size, 2, precision, M=2, K=3, P=4) for size in TINY for precision in DTYPES]


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    device = device_of(options.device)
    products = SMOKE_PRODUCTS if options.smoke else None
    peaks = {name: matmul_peak(dtype, device, products) for name, dtype in DTYPES.items()}
    failed = False
    for setup in _setups(options, device):
        rounds = {
            name: options.naive_rounds if name in SLOW else options.rounds or setup.rounds for name in setup.variants
        }
        try:
            line = measured(setup, device, rounds, peaks[setup.precision])
        except torch.OutOfMemoryError as error:  # the other cases still count
            failed = True
            print(f"{setup.size}, B = {setup.B}, {setup.precision}: failed: {error}", flush=True)
            continue
        print(report(line), flush=True)
        append_line(options.out, line)
    return int(failed)


def _options(arguments: Sequence[str] | None) -> Namespace:
    options = parser(__doc__)
    options.add_argument("--sizes", nargs="+", choices=SHAPES)
    options.add_argument("--batch-sizes", nargs="+", type=int)
    options.add_argument("--precisions", nargs="+", choices=DTYPES)
    options.add_argument("--variants", nargs="+", choices=[*NAMES, RECOMPUTE])
    options.add_argument("--naive-rounds", type=int, default=2, help="rounds of the loops (default 2)")
    return options.parse_args(arguments)


def _setups(options: Namespace, device: torch.device) -> list[Setup]:
    """Return the default setups, or every combination of what was chosen."""
    chosen = (options.sizes, options.batch_sizes, options.precisions)
    if options.smoke:
        setups = SMOKE
    elif not any(chosen):
        setups = list(CPU_SETUPS if device.type == "cpu" else GPU_SETUPS)
    else:
        sizes, counts, precisions = chosen
        sizes = sizes or ["t5-small", "flan-t5-small", "t5-base"]
        every = itertools.product(sizes, counts or [1, 4, 32], precisions or DTYPES)
        setups = [Setup(size, B, precision) for size, B, precision in every]
    return [replace(setup, variants=options.variants) for setup in setups] if options.variants else setups


# One case


@dataclass
class SvgdStep:
    """One step of the source stage by any variant: score, φ, optimiser (docs/method.md, section 1)."""

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


def measured(setup: Setup, device: torch.device, rounds: Mapping[str, int], peak: float) -> dict[str, Any]:
    """Check and time one case; return its result line.

    Raises:
        SystemExit: In fp32 a variant's losses or gradient differ from the reference, or some number is not finite.
    """
    model = random_model(SHAPES[setup.size])
    lengths = draw_lengths(setup.K, setup.B)
    case = make_case(setup.size, setup.M, setup.P, lengths, model.get_input_embeddings().weight).to(device)
    truth = reference(model, case)(case.particles)
    variants = {name: build(name, model, case, DTYPES[setup.precision]) for name in setup.variants}
    compared = checked_and_timed(variants, case, truth, setup.precision, rounds)
    flop = step_flop(SHAPES[setup.size], setup.M, setup.P, *zip(*itertools.chain(*lengths), strict=True))
    line: dict[str, Any] = {
        "benchmark": "plans" if RECOMPUTE in setup.variants else "step",
        "size": setup.size,
        **{axis: getattr(setup, axis) for axis in ("M", "K", "B", "P", "precision")},
        **compared,
        "useful_flop": flop,
        "matmul_gflops": peak,
        "share_of_peak": {name: flop / value / peak / 1e9 for name, value in compared["seconds"].items()},
        "machine": machine_facts(device),
    }
    return {**line, "targets": judged(line)}  # none for plans: only the default is judged


def checked_and_timed(
    variants: Mapping[str, Variant],
    case: Case,
    truth: tuple[Tensor, Tensor],
    precision: str,
    rounds: Mapping[str, int],
) -> dict[str, Any]:
    """Check every variant against the reference's losses and gradient, then time one SVGD step of each in turn.

    Raises:
        SystemExit: In fp32 a variant's losses or gradient differ from the reference, or some number is not finite.
    """
    checks = {name: _checked(name, variant, case, truth, precision) for name, variant in variants.items()}
    steps = {name: SvgdStep.of(variant, case.particles) for name, variant in variants.items()}
    times = interleaved(steps, {name: rounds[name] for name in steps})
    seconds = {name: time.seconds for name, time in times.items()}
    return {
        "seconds": seconds,
        "cpu_seconds": {name: time.cpu_seconds for name, time in times.items()},
        "rounds": {name: time.rounds for name, time in times.items()},
        "ratio": {name: value / seconds["packed"] for name, value in seconds.items() if "packed" in seconds},
        **{
            key: {name: check[key] for name, check in checks.items()}
            for key in ("relative_error", "cosine", "peak_bytes")
        },
    }


def _checked(
    name: str, variant: Variant, case: Case, truth: tuple[Tensor, Tensor], precision: str
) -> dict[str, float | None]:
    """Run a variant once: how exact it is, and the memory that it takes."""
    (losses, gradient), peak = with_peak_memory(lambda: variant(case.particles), case.particles.device)
    error, cosine = gradient_error(gradient, truth[1])
    loss_error = gradient_error(losses, truth[0])[0]
    if not (gradient.isfinite().all() and losses.isfinite().all()):
        raise SystemExit(f"{case.size}, {precision}: {NAMES.get(name, name)} gives numbers that are not finite")
    if precision == "float32" and not (error < FP32_GRADIENT and loss_error < FP32_LOSS):
        raise SystemExit(
            f"{case.size}, B = {len(case.tasks[0])}: {NAMES.get(name, name)} does not compute the reference's quantity"
            f": its gradient differs by {error:.1e} and its losses by {loss_error:.1e} (relative), where "
            f"{FP32_GRADIENT:g} and {FP32_LOSS:g} are allowed; its time would mean nothing"
        )
    return {"relative_error": error, "cosine": cosine, "peak_bytes": peak}


# What is printed


def report(line: Mapping[str, Any]) -> str:
    """Return a case as text, a row per variant."""
    head = f"{line['size']}, B = {line['B']}, {line['precision']} on {line['machine']['device']}"
    if "useful_flop" in line:
        head += f": {line['useful_flop'] / 1e12:.3g} TFLOP, matmul peak {line['matmul_gflops']:.0f} GFLOP/s"
    rows = [f"{'':17}{'seconds':>9}{'ratio':>7}{'of peak':>9}{'error':>9}{'cosine':>9}{'MiB':>8}"]
    for name, seconds in line["seconds"].items():
        ratio, share = (line.get(key, {}).get(name, float("nan")) for key in ("ratio", "share_of_peak"))
        error, cosine, memory = (line[key][name] for key in ("relative_error", "cosine", "peak_bytes"))
        mebibytes = "n/a" if memory is None else f"{memory / 2**20:.0f}"
        rows.append(f"{name:17}{seconds:9.3f}{ratio:7.2f}{share:9.1%}{error:9.1e}{cosine:9.5f}{mebibytes:>8}")
    return "\n".join([head, *rows, *verdicts(line["targets"]), ""])


if __name__ == "__main__":
    raise SystemExit(main())
