"""What was to be reached, and whether it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shapes import TINY


@dataclass(frozen=True)
class Target:
    """A bound on one figure of a result line.

    Attributes:
        where: What a line must hold for the target to apply to it.
        figure: Keys that lead to the figure in the line.
        goal: The bound.
        most: The figure is to stay under the goal instead of reaching it.
    """

    what: str
    where: Mapping[str, Any]
    figure: tuple[str, ...]
    goal: float
    most: bool = False

    def applies(self, line: Mapping[str, Any]) -> bool:
        facts = {**line, "device": line["machine"]["device"]}
        return all(facts.get(key) == value for key, value in self.where.items())

    def judged(self, line: Mapping[str, Any]) -> dict[str, Any]:
        value: Any = line
        for key in self.figure:
            value = value.get(key) if value else None
        met = None if value is None else value < self.goal if self.most else value >= self.goal
        return {"what": self.what, "goal": self.goal, "value": value, "met": met}


_CPU = {"benchmark": "step", "device": "cpu", "size": "t5-small", "B": 1}
_GPU = {"benchmark": "step", "device": "cuda", "size": "t5-base", "B": 4, "precision": "bfloat16"}
_FP32, _BF16 = {**_CPU, "precision": "float32"}, {**_CPU, "precision": "bfloat16"}
_CAUSAL = {"benchmark": "causal", "size": "gpt2", "B": 4}
_SHARED = "shared prompts ≥ 1.15 × engine=generic"
_SHARE, _SCALING = "SVGD's own share under 1 % at M = 10", {"benchmark": "scaling", "axis": "M", "M": 10}
TARGETS = (
    Target("≥ 4.5 × (b), fp32", _FP32, ("ratio", "loop_frozen"), 4.5),
    Target("≥ 8 × (b), bf16", _BF16, ("ratio", "loop_frozen"), 8),
    Target("≥ 2 × (d), fp32", _FP32, ("ratio", "batched"), 2),
    Target("≥ 2 × (d), bf16", _BF16, ("ratio", "batched"), 2),
    Target("≥ 1.15 × engine=generic, fp32", _FP32, ("ratio", "generic"), 1.15),
    Target("≥ 1.15 × engine=generic, bf16", _BF16, ("ratio", "generic"), 1.15),
    Target("≥ 70 % of the matmul peak, fp32", _FP32, ("share_of_peak", "packed"), 0.7),
    Target("≥ 60 % of the matmul peak, bf16", _BF16, ("share_of_peak", "packed"), 0.6),
    Target("cosine ≥ 0.999 to fp32, bf16", _BF16, ("cosine", "packed"), 0.999),
    Target("≥ 10 × (b)", _GPU, ("ratio", "loop_frozen"), 10),
    Target("≥ 50 % of the bf16 matmul peak", _GPU, ("share_of_peak", "packed"), 0.5),
    Target("under 25 ms a step", _GPU, ("seconds", "packed"), 0.025, most=True),
    Target("cosine ≥ 0.999 to fp32", _GPU, ("cosine", "packed"), 0.999),
    Target(f"{_SHARED}, fp32", {**_CAUSAL, "device": "cpu", "precision": "float32"}, ("ratio", "generic"), 1.15),
    Target(f"{_SHARED}, bf16", {**_CAUSAL, "device": "cpu", "precision": "bfloat16"}, ("ratio", "generic"), 1.15),
    Target(_SHARED, {**_CAUSAL, "device": "cuda", "precision": "bfloat16"}, ("ratio", "generic"), 1.15),
    Target(_SHARE, {**_SCALING, "device": "cpu"}, ("svgd_share",), 0.01, most=True),
    Target(_SHARE, {**_SCALING, "device": "cuda"}, ("svgd_share",), 0.01, most=True),
)


def judged(line: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return every target that applies to a result line, with its figure and verdict; none for a smoke run."""
    return [target.judged(line) for target in TARGETS if target.applies(line) and line["size"] not in TINY]


def verdicts(targets: Sequence[Mapping[str, Any]]) -> list[str]:
    return [f"target {target['what']}: {verdict(target)}" for target in targets]


def verdict(target: Mapping[str, Any]) -> str:
    if target["value"] is None:
        return "not measured"
    return f"{target['value']:.3g}, {'met' if target['met'] else 'not met'}"
