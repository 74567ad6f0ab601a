"""Everything that has to be measured on a GPU, in under eight minutes: exactness, step times, memory, targets.

    python benchmarks/gpu.py --out benchmarks/results/step-gpu.jsonl

The cases are those of `step.py`, in the order of what matters most, and each is checked before it is timed: fp32
against Hugging Face example by example, bf16 by its cosine. A case that fails (out of memory, say) costs its own row
only. When the time is up the table is printed with what there is. `--smoke --device cpu` runs the same code on tiny
shapes.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from baselines import SLOW
from common import SMOKE_PRODUCTS, append_line, device_of, matmul_peak, parser
from shapes import DTYPES
from step import FAST, SMOKE, Plan, measured
from targets import TARGETS, verdict

NO_DEVICE, INCOMPLETE = 2, 1
VARIANTS = ("loop_frozen", *FAST)
PLANS = (
    Plan("t5-base", 4, "bfloat16", VARIANTS),
    Plan("t5-base", 1, "float32", ("packed",)),
    Plan("t5-base", 1, "bfloat16", VARIANTS),
    Plan("t5-base", 32, "bfloat16", VARIANTS),
    Plan("flan-t5-small", 1, "float32", ("packed",)),
    Plan("flan-t5-small", 4, "bfloat16", VARIANTS),
    Plan("t5-small", 1, "float32", VARIANTS),
    Plan("t5-small", 1, "bfloat16", VARIANTS),
    Plan("t5-small", 4, "bfloat16", VARIANTS),
    Plan("t5-small", 32, "bfloat16", VARIANTS),
)


@dataclass
class Session:
    """What has been measured until now, and how long there is left.

    Attributes:
        deadline: In seconds of `time.monotonic`.
        lines: Result lines of the cases that went well.
        failures: Sentences about those that did not.
    """

    name: str
    deadline: float
    out: Path | None
    lines: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def run(self, plans: Sequence[Plan], device: torch.device, rounds: Mapping[str, int], smoke: bool) -> None:
        """Measure each plan; what the GPU cannot hold beside the baselines is measured without them."""
        peaks = _peaks(device, smoke)
        for plan in plans:
            if time.monotonic() > self.deadline:
                self.failures.append(f"{_title(vars(plan))}: the time was up")
            elif not self._measure(plan, device, rounds, peaks) and plan.variants != ("packed",):
                self._measure(replace(plan, variants=("packed",)), device, rounds, peaks)

    def _measure(self, plan: Plan, device: torch.device, rounds: Mapping[str, int], peaks: Mapping[str, float]) -> bool:
        _free(device)  # of what a failed case left
        try:
            line = measured(plan, device, rounds, peaks[plan.precision])
        except (Exception, SystemExit) as error:  # the other cases still count
            self.failures.append(f"{_title(vars(plan))}, {' and '.join(plan.variants)}: {_first_line(error)}")
            return False
        self.lines.append(line)
        append_line(self.out, line)
        print(
            f"{_title(line)}: done, {max(0, self.deadline - time.monotonic()):.0f} s left", file=sys.stderr, flush=True
        )
        return True

    def table(self) -> str:
        ratios = "".join(f"{name:>8}" for name in ("× (b)", "× (d)", "× gen."))
        head = f"{'':32}{'packed ms':>10}{ratios}{'of peak':>9}{'MiB':>8}{'error':>9}{'cosine':>9}"
        rows = [_row(line) for line in self.lines]
        return "\n".join([self.name, head, *rows, *self._verdicts(), *(f"failed: {text}" for text in self.failures)])

    def _verdicts(self) -> list[str]:
        found = {target["what"]: target for line in self.lines for target in line["targets"]}
        wanted = [t.what for t in TARGETS if (t.where["benchmark"], t.where["device"]) == ("step", "cuda")]
        unknown = {"value": None}
        return [f"target t5-base, B = 4, bf16: {what}: {verdict(found.get(what, unknown))}" for what in wanted]

    def give_up(self) -> None:
        """Print the table from beside a call that does not return, and end the process."""
        self.failures.append("the time was up while a case was running")
        print(self.table(), flush=True)
        os._exit(INCOMPLETE)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    if not torch.cuda.is_available() and not (options.smoke and options.device == "cpu"):
        print("torch finds no CUDA device here, so there is nothing to measure (--smoke --device cpu tries the code)")
        return NO_DEVICE
    device = device_of(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    session = Session(name, time.monotonic() + options.limit, options.out)
    # One more minute for the case that runs at the deadline; after that the table is printed without it.
    watchdog = threading.Timer(options.limit + options.grace, session.give_up)
    watchdog.daemon = True
    watchdog.start()
    rounds = {variant: options.naive_rounds if variant in SLOW else options.rounds for variant in VARIANTS}
    smoke = [replace(plan, variants=VARIANTS) for plan in SMOKE]
    session.run(smoke if options.smoke else PLANS, device, rounds, options.smoke)
    watchdog.cancel()
    print(session.table())
    return INCOMPLETE if session.failures else 0


def _options(arguments: Sequence[str] | None) -> Namespace:
    options = parser(__doc__)
    options.add_argument("--naive-rounds", type=int, default=2, help="rounds of the loop (default 2)")
    options.add_argument("--limit", type=float, default=390, help="seconds after which no case begins (default 390)")
    options.add_argument("--grace", type=float, default=60, help="seconds left to the case that then runs (default 60)")
    options.set_defaults(rounds=10)
    return options.parse_args(arguments)


def _peaks(device: torch.device, smoke: bool) -> dict[str, float]:
    products = SMOKE_PRODUCTS if smoke else None
    return {name: matmul_peak(dtype, device, products) for name, dtype in DTYPES.items()}


def _title(facts: Mapping[str, Any]) -> str:
    return f"{facts['size']}, B = {facts['B']}, {facts['precision']}"


def _row(line: Mapping[str, Any]) -> str:
    ratios = "".join(f"{line['ratio'].get(name, float('nan')):8.2f}" for name in ("loop_frozen", "batched", "generic"))
    memory = line["peak_bytes"]["packed"]
    return (
        f"{_title(line):32}{line['seconds']['packed'] * 1e3:10.1f}{ratios}{line['share_of_peak']['packed']:9.1%}"
        + (f"{'n/a':>8}" if memory is None else f"{memory / 2**20:8.0f}")
        + f"{line['relative_error']['packed']:9.1e}{line['cosine']['packed']:9.5f}"
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if isinstance(error, SystemExit) else f"{type(error).__name__}: {lines[0] if lines else ''}"


def _free(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()


if __name__ == "__main__":
    raise SystemExit(main())
