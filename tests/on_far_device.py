"""Run both stages, scoring and prediction on the CPU and on `far_device.py`; print a JSON line each.

Arguments: model folder, task folder.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from bmtpt.backbone import Backbone
from bmtpt.inference.predict import predict
from bmtpt.settings import AdaptSettings, LearnSettings
from bmtpt.stages.evaluate import evaluate
from bmtpt.stages.source import learn
from bmtpt.stages.target import adapt
from bmtpt.tasks import load_data, load_task

TARGETS = (("pairs", "generic", "mean", "adafactor"), ("answers", "packed", "mixture", "adamw"))


def run(model: str, tasks: str, device: str) -> dict[str, Any]:
    backbone = Backbone.from_pretrained(model, precision="float32", device=device)
    data = {name: load_data(load_task(Path(tasks) / f"{name}.yaml")) for name in ("sentiment", "pairs", "answers")}
    small = {"steps": 2, "evaluate_every": 1, "validation_rows": 4}
    learning = LearnSettings(particles=2, prompt_length=3, **small)
    posterior = learn(backbone, [data["sentiment"], data["answers"]], learning)
    found: dict[str, Any] = {"device": backbone.device.type, "texts": [], "particles": total(posterior.particles)}
    for name, engine, prior, optimiser in TARGETS:
        settings = AdaptSettings(prior=prior, optimiser=optimiser, shots=8, batch_size=4, **small)
        prompt = adapt(posterior, data[name], settings, backbone=replace(backbone, engine_name=engine))
        evaluation = evaluate(backbone, prompt, data[name].test)
        answers = list(predict(backbone, prompt, data[name].test[:3]))
        found["texts"] += [evaluation.predictions, [answer["label"] for answer in answers]]
        found[name] = [total(prompt.prompts), *(answer.get("probability", 0.0) for answer in answers)]
    return found


def total(tensor: Any) -> float:
    return float(tensor.double().square().sum())


if __name__ == "__main__":
    pretended = import_module("far_device")  # autograd counts the devices at its first backward pass
    print(json.dumps(run(*sys.argv[1:], device="cpu")))
    with pretended.Factories():
        print(json.dumps(run(*sys.argv[1:], device="far:0")))
