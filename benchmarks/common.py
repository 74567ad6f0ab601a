"""How every benchmark measures: one process, interleaved, medians; and what it says of the machine."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Timing:
    """Medians over a function's rounds.

    Attributes:
        seconds: Of the clock on the wall.
        cpu_seconds: Of this process on all its cores, which other processes disturb less.
    """

    seconds: float
    cpu_seconds: float


def interleaved(functions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Time functions in turn, so that a slow spell of the machine meets all of them alike.

    Nothing is warmed up: call each function once before.
    """
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            taken[name].append(_timed(function))
    medians = {name: [statistics.median(each) for each in zip(*pairs, strict=True)] for name, pairs in taken.items()}
    return {name: Timing(*each) for name, each in medians.items()}


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _timed(function: Callable[[], object]) -> tuple[float, float]:
    synchronise()
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    synchronise()
    return time.perf_counter() - wall, time.process_time() - cpu


def machine_facts(device: torch.device) -> dict[str, object]:
    """Return what a figure depends on beside the code."""
    import transformers

    facts: dict[str, object] = {
        "device": device.type,
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    line = next((line for line in lines if line.startswith("model name")), ":" + platform.machine())
    return line.split(":", 1)[1].strip()


def append_line(out: Path | None, line: Mapping[str, object]) -> None:
    """Append one result line, if there is a file."""
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
