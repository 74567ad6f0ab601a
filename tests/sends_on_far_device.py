"""Run an engine on `far_device.py`; print a JSON line: how much was sent to it outside the passes and inside them.

Arguments: "shared" (prompts [M, P, D]) or "own" (prompts [M, N, P, D]).
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bmtpt.backbone.device.plan import ACCELERATOR
from bmtpt.backbone.encoder_decoder import engine as passes
from bmtpt.backbone.fast_t5.engine import PackedT5Engine

sys.path.insert(0, str(Path(__file__).parent / "backbone"))
plain: Any = import_module("plain")
LENGTHS, LABELS = [6, 50, 31, 90, 12], [2, 6, 3, 1, 4]


class Sends(TorchDispatchMode):
    """Counts what goes from the CPU to the far device: copies, and lists that torch made a tensor there."""

    def __init__(self, far: Any) -> None:
        super().__init__()
        self.far, self.inside, self.counts = far, False, {"outside": 0, "inside": 0}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._is_a_send(function.__name__, args, kwargs or {}):
            self.counts["inside" if self.inside else "outside"] += 1
        return function(*args, **(kwargs or {}))

    def _is_a_send(self, name: str, args: Any, kwargs: dict[str, Any]) -> bool:
        is_far = [isinstance(each, self.far.Far) for each in args]
        if name.startswith("_to_copy"):
            return torch.device(kwargs.get("device") or "cpu").type == self.far.DEVICE.type and not is_far[0]
        if name.startswith("lift_fresh"):
            return is_far[0]
        return name.startswith("copy_") and is_far[:2] == [True, False]


def watched(sends: Sends, one_pass: Any) -> Any:
    def run(part: Any, loaded: Any) -> None:
        sends.inside = True
        try:
            one_pass(part, loaded)
        finally:
            sends.inside = False

    return run


def main(kind: str) -> None:
    backbone, batch = plain.tiny_backbone("v1.1"), plain.random_batch(LENGTHS, LABELS)
    prompts = plain.random_prompts(3, 4)
    if kind == "own":
        prompts = torch.stack([prompts + n for n in range(len(LENGTHS))], dim=1)
    far = import_module("far_device")
    sends, one_ahead = Sends(far), passes.one_ahead
    passes.one_ahead = lambda parts, load, one_pass: one_ahead(parts, load, watched(sends, one_pass))
    weights = torch.arange(1.0, 6.0)
    truth = PackedT5Engine(backbone, ACCELERATOR).gradients(prompts, batch, weights)
    with far.Factories():
        there = prompts.to(far.DEVICE)
        embeddings = backbone.embeddings.to(far.DEVICE)
        engine = PackedT5Engine(
            replace(backbone, model=backbone.model.to(far.DEVICE), embeddings=embeddings), ACCELERATOR
        )
        PackedT5Engine.token_budget = 600  # several passes
        with sends:
            found = engine.gradients(there, batch, weights)
            engine.losses(there, batch)
            engine.answer_log_likelihoods(there, batch.inputs, batch.targets)
    errors = [float((near - each.cpu()).norm() / near.norm()) for near, each in zip(truth, found, strict=True)]
    print(json.dumps({**sends.counts, "errors": errors}))


if __name__ == "__main__":
    main(*sys.argv[1:])
