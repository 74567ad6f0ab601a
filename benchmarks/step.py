"""Time one training step's `gradients()`: PackedT5Engine against HuggingFaceEngine, interleaved, medians.

    python benchmarks/step.py --out benchmarks/results/step-cpu.jsonl

Writes one JSON line per case: seconds, their ratio, how far each engine's gradient is from fp32's, and the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from bmtpt.backbone.engine import Engine
from bmtpt.backbone.generic import HuggingFaceEngine
from bmtpt.backbone.load import load_backbone
from bmtpt.backbone.model import Backbone
from bmtpt.backbone.t5 import PackedT5Engine
from bmtpt.types import TokenBatch

CASES = {
    "M=5 N=8 L=30-150": (5, 8, (30, 150)),
    "M=1 N=16 L=30-150": (1, 16, (30, 150)),
}
PROMPT_TOKENS = 20


def main() -> None:
    options = _options()
    engines = {precision: _engines(options.backbone, precision) for precision in ("float32", "bfloat16")}
    for name, (M, N, lengths) in CASES.items():
        prompts, batch = _case(engines["float32"]["generic"].backbone, M, N, lengths)
        truth = engines["float32"]["generic"].gradients(prompts, batch, torch.ones(N))[1]
        for precision in options.precisions:
            seconds, cpu_seconds = _interleaved(engines[precision], prompts, batch, options.rounds)
            line = {
                "case": name,
                "P": PROMPT_TOKENS,
                "backbone": options.backbone,
                "precision": precision,
                "seconds": seconds,
                "cpu_seconds": cpu_seconds,
                "ratio": round(seconds["generic"] / seconds["packed"], 2),
                "cpu_ratio": round(cpu_seconds["generic"] / cpu_seconds["packed"], 2),
                "error_to_fp32": {
                    key: _error(engine, prompts, batch, truth) for key, engine in engines[precision].items()
                },
                **_machine(),
            }
            print(json.dumps(line), flush=True)
            if options.out:
                options.out.parent.mkdir(parents=True, exist_ok=True)
                with options.out.open("a") as file:
                    file.write(json.dumps(line) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="offline")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--precisions", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def _engines(name: str, precision: str) -> dict[str, HuggingFaceEngine | PackedT5Engine]:
    backbone = load_backbone(name, precision=precision)
    return {"generic": HuggingFaceEngine(backbone), "packed": PackedT5Engine(backbone)}


def _case(backbone: Backbone, M: int, N: int, lengths: tuple[int, int]) -> tuple[Tensor, TokenBatch]:
    """Random tokens: what a step costs does not depend on which they are. Labels have 2 to 6 tokens."""
    random = torch.Generator().manual_seed(0)

    def ids(low: int, high: int) -> list[Tensor]:
        counts = torch.randint(low, high + 1, (N,), generator=random).tolist()
        return [torch.randint(3, 30_000, (count,), generator=random) for count in counts]

    starts = torch.randint(3, 5_000, (M, PROMPT_TOKENS), generator=random)
    return backbone.embeddings[starts].clone(), TokenBatch(ids(*lengths), ids(2, 6))


def _interleaved(
    engines: Mapping[str, Engine], prompts: Tensor, batch: TokenBatch, rounds: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Return each engine's median wall seconds and median processor seconds (which a shared machine disturbs less)."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
    for _ in range(rounds + 1):  # the first round warms up
        for name, engine in engines.items():
            wall, cpu = time.perf_counter(), time.process_time()
            engine.gradients(prompts, batch, torch.ones(len(batch)))
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))

    def medians(clock: int) -> dict[str, float]:
        return {name: round(statistics.median(pair[clock] for pair in pairs[1:]), 4) for name, pairs in times.items()}

    return medians(0), medians(1)


def _error(engine: Engine, prompts: Tensor, batch: TokenBatch, truth: Tensor) -> dict[str, float]:
    gradient = engine.gradients(prompts, batch, torch.ones(len(batch)))[1]
    cosine = torch.cosine_similarity(gradient.double().flatten(), truth.double().flatten(), dim=0)
    return {"relative": float((gradient - truth).norm() / truth.norm()), "cosine": round(float(cosine), 7)}


def _machine() -> dict[str, object]:
    cpu = next((line for line in _cpuinfo() if line.startswith("model name")), "model name: " + platform.machine())
    return {
        "cpu": cpu.split(":", 1)[1].strip(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "amx_bf16": any("amx_bf16" in line for line in _cpuinfo()),
        "load_average": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []


if __name__ == "__main__":
    main()
