"""How every benchmark measures: one process, interleaved, medians; and what it says of the machine."""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")
CPU_PRODUCTS = ((1024, 1024, 1024), (2048, 512, 2048), (2048, 2048, 2048))
GPU_PRODUCTS = ((4096, 4096, 4096), (8192, 8192, 8192), (16_384, 3072, 3072))
CPU = torch.device("cpu")
SMOKE_PRODUCTS = ((64, 64, 64),)
SAMPLE_SECONDS = 0.001


@dataclass(frozen=True)
class Timing:
    """Medians over a function's rounds.

    Attributes:
        seconds: Of the clock on the wall.
        cpu_seconds: Of this process on all its cores, which other processes disturb less.
        rounds: How many.
    """

    seconds: float
    cpu_seconds: float
    rounds: int


def interleaved(functions: Mapping[str, Callable[[], object]], rounds: int | Mapping[str, int]) -> dict[str, Timing]:
    """Time functions in turn, so that a slow spell of the machine affects all of them.

    Nothing is warmed up: call each function once before. With a mapping, a function of few rounds takes part in the
    first of them only.
    """
    each = {name: rounds if isinstance(rounds, int) else rounds[name] for name in functions}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in functions}
    for round_ in range(max(each.values())):
        for name, function in functions.items():
            if round_ < each[name]:
                taken[name].append(_timed(function))
    return {name: _median(pairs) for name, pairs in taken.items()}


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _timed(function: Callable[[], object]) -> tuple[float, float]:
    synchronise()
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    synchronise()
    return time.perf_counter() - wall, time.process_time() - cpu


def _median(pairs: Sequence[tuple[float, float]]) -> Timing:
    walls, cpus = zip(*pairs, strict=True)
    return Timing(statistics.median(walls), statistics.median(cpus), len(pairs))


# What a step is compared with


def matmul_peak(
    dtype: torch.dtype, device: torch.device, products: Sequence[tuple[int, int, int]] | None = None
) -> float:
    """Return the best GFLOP/s of a matrix product here, over a few sizes, with the threads of this run.

    In fp32 on a CPU the faster of the library's two paths counts, as long as it multiplies in true fp32: on AMD the
    second is twice as fast, on processors with bf16 matrix units it rounds.
    """
    products = products or (GPU_PRODUCTS if device.type == "cuda" else CPU_PRODUCTS)
    best = _best_rate(dtype, device, products)
    if dtype != torch.float32 or device.type != "cpu":
        return best
    settings: Any = torch.backends.mkldnn.matmul
    before = settings.fp32_precision
    try:
        settings.fp32_precision = "bf16"
        return max(best, _best_rate(dtype, device, products)) if _multiplies_in_fp32() else best
    finally:
        settings.fp32_precision = before


def _best_rate(dtype: torch.dtype, device: torch.device, products: Sequence[tuple[int, int, int]]) -> float:
    return max(_rate(*product, dtype, device) for product in products)


def _rate(m: int, k: int, n: int, dtype: torch.dtype, device: torch.device, repeats: int = 8) -> float:
    left, right = (torch.randn(shape, device=device).to(dtype) for shape in ((m, k), (k, n)))
    out = torch.empty(m, n, dtype=dtype, device=device)

    def multiply() -> None:
        for _ in range(repeats):
            torch.mm(left, right, out=out)

    multiply()
    best = min(_timed(multiply)[0] for _ in range(3))
    return 2 * m * k * n * repeats / best / 1e9


def _multiplies_in_fp32() -> bool:
    left, right = torch.randn(256, 256), torch.randn(256, 256)
    truth = left.double() @ right.double()
    return float((left @ right - truth).norm() / truth.norm()) < 1e-5


def gradient_error(gradient: Tensor, truth: Tensor) -> tuple[float, float]:
    """Return ‖g − truth‖ / ‖truth‖, and the cosine of the two."""
    g, t = gradient.double().flatten(), truth.to(gradient.device).double().flatten()
    return float((g - t).norm() / t.norm()), float(torch.dot(g, t) / (g.norm() * t.norm()))


# Memory


def with_peak_memory(function: Callable[[], Result], device: torch.device) -> tuple[Result, int | None]:
    """Call a function; return its result, and the most bytes it held beyond those held before (None if unknown)."""
    gc.collect()
    if device.type == "cuda":
        return _with_cuda_peak(function, device)
    _return_freed_memory()
    sampler = _ResidentMemory()
    with sampler:
        result = function()
    return result, sampler.growth


def _with_cuda_peak(function: Callable[[], Result], device: torch.device) -> tuple[Result, int]:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = function()
    torch.cuda.synchronize()
    return result, torch.cuda.max_memory_allocated(device) - before


class _ResidentMemory:
    """Samples this process's resident memory while a block runs: `ru_maxrss` never falls, so it cannot be reused."""

    def __init__(self) -> None:
        self.before, self.peak = _resident_bytes(), 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @property
    def growth(self) -> int | None:
        return None if self.before is None else max(0, self.peak - self.before)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.peak = max(self.peak, _resident_bytes() or 0)
            if self._stop.wait(SAMPLE_SECONDS):
                return


def _resident_bytes() -> int | None:
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else None


def _return_freed_memory() -> None:
    """Give freed blocks back to the kernel, or the next function would find them and seem to need nothing."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


# Machine, options, results


def machine_facts(device: torch.device = CPU) -> dict[str, object]:
    """Return what a figure depends on besides the code."""
    import transformers

    facts: dict[str, object] = {
        "device": device.type,
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "amx_bf16": any("amx_bf16" in line for line in _cpuinfo()),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts


def _cpu_name() -> str:
    line = next((line for line in _cpuinfo() if line.startswith("model name")), ":" + platform.machine())
    return line.split(":", 1)[1].strip()


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []


def parser(about: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has."""
    options = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, help="JSON lines to append to")
    options.add_argument("--rounds", type=int, help="timed rounds")
    options.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    options.add_argument("--smoke", action="store_true", help="tiny shapes, seconds: does the code run?")
    return options


def table_parser(about: str | None, data: str = "../shared/data") -> argparse.ArgumentParser:
    """Return a parser with the options of a benchmark of scores whose lines make a table of the docs."""
    options = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", default=data, help="a data folder; default: %(default)s")
    options.add_argument("--out", type=Path, help="file for the lines")
    options.add_argument("--table", type=Path, help="print the table of such lines and stop")
    return options


def printed(asked: Path | None, table: Callable[[list[dict[str, Any]]], str]) -> bool:
    """Print the table of a file's lines if `--table` asks for it, and tell whether it did."""
    if asked:
        print(table([json.loads(line) for line in asked.read_text(encoding="utf-8").splitlines()]))
    return asked is not None


def device_of(name: str) -> torch.device:
    """Return the device that an option names.

    Raises:
        SystemExit: CUDA was asked for and is not there.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch finds no CUDA device here; use --device cpu")
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    return torch.device(chosen)


def lines_in(path: Path | None) -> list[dict[str, Any]]:
    """Return the result lines of a file, none if there is no file yet."""
    text = path.read_text(encoding="utf-8") if path and path.is_file() else ""
    return [json.loads(line) for line in text.splitlines()]


def append_line(out: Path | None, line: Mapping[str, object]) -> None:
    """Append one result line, if there is a file."""
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
