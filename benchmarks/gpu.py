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
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from baselines import SLOW
from common import SMOKE_PRODUCTS, append_line, device_of, matmul_peak, parser
from shapes import DTYPES
from step import FAST, SMOKE, Setup, measured
from targets import TARGETS, verdict

NO_DEVICE, INCOMPLETE = 2, 1
VARIANTS = ("loop_frozen", *FAST)
SETUPS = (
    Setup("t5-base", 4, "bfloat16", VARIANTS),
    Setup("t5-base", 1, "float32", ("packed",)),
    Setup("t5-base", 1, "bfloat16", VARIANTS),
    Setup("t5-base", 32, "bfloat16", VARIANTS),
    Setup("flan-t5-small", 1, "float32", ("packed",)),
    Setup("flan-t5-small", 4, "bfloat16", VARIANTS),
    Setup("t5-small", 1, "float32", VARIANTS),
    Setup("t5-small", 1, "bfloat16", VARIANTS),
    Setup("t5-small", 4, "bfloat16", VARIANTS),
    Setup("t5-small", 32, "bfloat16", VARIANTS),
)


@dataclass
class Session:
    """What has been measured until now, and how long there is left.

    Attributes:
        rounds: Of our engine and of the batched baseline.
        naive_rounds: Of the loop.
        deadline: In seconds of `time.monotonic`.
        lines: Result lines of the cases that went well.
        failures: Sentences about those that did not.
    """

    device: torch.device
    rounds: int
    naive_rounds: int
    deadline: float
    out: Path | None
    smoke: bool = False
    lines: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def run(self, setups: Sequence[Setup]) -> None:
        """Measure each case; a case that fails is measured again without the baselines."""
        for setup in setups:
            if not self._measure(setup) and setup.variants != ("packed",):
                self._measure(replace(setup, variants=("packed",)))

    def _measure(self, setup: Setup) -> bool:
        """Add a result line and return True, or add a sentence that says why there is none."""
        title = f"{_title(vars(setup))}, {' and '.join(setup.variants)}"
        if time.monotonic() > self.deadline:
            self.failures.append(f"{title}: the time was up")
            return False
        _free(self.device)  # of what a failed case left
        rounds = {name: self.naive_rounds if name in SLOW else self.rounds for name in setup.variants}
        try:
            line = measured(setup, self.device, rounds, self._peaks[setup.precision])
        except (Exception, SystemExit) as error:  # the other cases still count
            self.failures.append(f"{title}: {_first_line(error)}")
            return False
        self.lines.append(line)
        append_line(self.out, line)
        left = max(0, self.deadline - time.monotonic())
        print(f"{title}: done, {left:.0f} s left", file=sys.stderr, flush=True)
        return True

    @cached_property
    def _peaks(self) -> dict[str, float]:
        products = SMOKE_PRODUCTS if self.smoke else None
        return {name: matmul_peak(dtype, self.device, products) for name, dtype in DTYPES.items()}

    def table(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        ratios = "".join(f"{name:>8}" for name in ("× (b)", "× (d)", "× gen."))
        head = f"{'':32}{'packed ms':>10}{ratios}{'of peak':>9}{'MiB':>8}{'error':>9}{'cosine':>9}"
        rows = [_row(line) for line in self.lines]
        failed = [f"failed: {text}" for text in self.failures]
        return "\n".join([name, head, *rows, *self._verdicts(), *failed])

    def _verdicts(self) -> list[str]:
        found = {target["what"]: target for line in self.lines for target in line["targets"]}
        wanted = [t.what for t in TARGETS if (t.where["benchmark"], t.where["device"]) == ("step", "cuda")]
        unknown = {"value": None}
        return [f"target t5-base, B = 4, bf16: {what}: {verdict(found.get(what, unknown))}" for what in wanted]

    def give_up(self) -> None:
        """Print the table while a call does not return, and end the process."""
        self.failures.append("the time was up while a case was running")
        print(self.table(), flush=True)
        os._exit(INCOMPLETE)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    if not torch.cuda.is_available() and not (options.smoke and options.device == "cpu"):
        print("torch finds no CUDA device here, so there is nothing to measure (--smoke --device cpu tries the code)")
        return NO_DEVICE
    deadline = time.monotonic() + options.limit
    device = device_of(options.device)
    session = Session(device, options.rounds, options.naive_rounds, deadline, options.out, options.smoke)
    # The case that runs at the deadline has some time left; then the table is printed without it.
    watchdog = threading.Timer(options.limit + options.grace, session.give_up)
    watchdog.daemon = True
    watchdog.start()
    setups = [replace(setup, variants=VARIANTS) for setup in SMOKE] if options.smoke else SETUPS
    session.run(setups)
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
