"""Does it help to normalise the likelihoods of label words that differ in length? Accuracy and NLL of each way.

    python benchmarks/normalise.py --data ../shared/data --out benchmarks/results/normalise-cpu.jsonl  # 7 CPU minutes
    python benchmarks/normalise.py --table benchmarks/results/normalise-cpu.jsonl                      # docs/method.md

Tasks whose label words have from 2 to 6 tokens or so, read by the offline backbone without any prompt and with prompts
tuned on 16 labelled examples. Training does not depend on the way (it takes the last step), so all three ways read the
same prompts; only evaluation differs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, get_args

import torch
from torch import Tensor

import common
from bmtpt.artifacts.card import now, versions
from bmtpt.backbone import Backbone
from bmtpt.inference.score import make_reader, make_scorer, read
from bmtpt.methods.registry import get_method
from bmtpt.settings import AdaptSettings
from bmtpt.stages.target import fit_method
from bmtpt.tasks import SplitLimits, TaskData, load_data, load_task
from bmtpt.tasks.metrics import calibration
from bmtpt.tasks.tokens import tokenise
from bmtpt.types import Normalise

LIBRARY = Path(__file__).parents[1] / "src/bmtpt/studies/library/tasks"
OWN = [str(LIBRARY / f"{name}.yaml") for name in ("qqp_subset", "mnli_dev", "far/stackoverflow8")]
TASKS = ["mrpc", "cb", "scitail", *OWN]
ROWS, SHOTS, SEEDS, LENGTH, STEPS = 200, 16, 2, 20, 60
WAYS: tuple[Normalise, ...] = get_args(Normalise)
Line = Mapping[str, Any]


def measure(backbone: Backbone, data: TaskData, seeds: int, steps: int) -> Iterator[Line]:
    """Yield a line per prompt and way."""
    nothing = backbone.embed(torch.zeros(1, 0, dtype=torch.int64))
    yield from _scored(backbone, data, nothing, "no prompt", 0)
    settings = {
        "shots": SHOTS, "draw": "balanced", "selection": "none",
        "steps": steps, "evaluate_every": steps, "batch_size": 8,
    }  # fmt: skip
    for seed in range(seeds):
        chosen = AdaptSettings.model_validate({**settings, "seed": seed})
        found = fit_method(get_method("pt"), backbone, [data], chosen, prompt_length=LENGTH)[data.task.name]
        yield from _scored(backbone, data, found.prompts.to(backbone.device), f"{SHOTS} shots", seed)


def _scored(backbone: Backbone, data: TaskData, prompts: Tensor, prompt: str, seed: int) -> Iterator[Line]:
    rows = tokenise(backbone, data.test, data.task.max_length)
    plain = make_scorer(backbone, data.task)
    readings = read(backbone.engine, prompts, rows.batch.inputs, plain)
    labels = [example.label or 0 for example in data.test]
    for way in WAYS:
        scorer = make_scorer(backbone, data.task, normalise=way)
        scores = make_reader(backbone.engine, prompts, scorer).scores(readings)
        found = calibration(scores.softmax(dim=2)[0].double().cpu().numpy(), labels)
        yield {
            "benchmark": "normalise", "task": data.task.name, "prompt": prompt, "seed": seed, "normalise": way,
            "accuracy": 100 * found["accuracy"], "nll": found["nll"], "ece": 100 * found["ece"], "rows": len(labels),
            "label_tokens": [len(ids) for ids in plain.answers], "data": data.status, "backbone": backbone.name,
            "created": now(), "versions": versions(),
        }  # fmt: skip


def table(lines: Sequence[Line]) -> str:
    """Return accuracy and NLL by task, prompt and way as a Markdown table; its last rows are means over tasks."""
    heads = [f"{way}: accuracy" for way in WAYS] + [f"{way}: NLL" for way in WAYS]
    rows = [["task", "tokens of the words", "prompt", *heads], ["---"] * 3 + ["--:"] * len(heads)]
    prompts = list(dict.fromkeys(line["prompt"] for line in lines))
    tasks = list(dict.fromkeys(line["task"] for line in lines))
    for prompt in prompts:
        for task in [*tasks, None]:
            own = [line for line in lines if line["prompt"] == prompt and task in (None, line["task"])]
            accuracy = [fmean(line["accuracy"] for line in own if line["normalise"] == way) for way in WAYS]
            nll = [fmean(line["nll"] for line in own if line["normalise"] == way) for way in WAYS]
            tokens = " ".join(map(str, own[0]["label_tokens"])) if task else ""
            name = task.replace("_", " ") if task else "**mean**"
            rows.append([name, tokens, prompt, *(f"{a:.1f}" for a in accuracy), *(f"{value:.2f}" for value in nll)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main() -> None:
    options = common.table_parser(__doc__, "offline")
    options.add_argument("--backbone", default="offline")
    options.add_argument("--task", action="append", help="name or file; default: six tasks")
    options.add_argument("--seeds", type=int, default=SEEDS)
    options.add_argument("--steps", type=int, default=STEPS)
    chosen = options.parse_args()
    if common.printed(chosen.table, table):
        return
    backbone = Backbone.from_pretrained(chosen.backbone)
    for name in chosen.task or TASKS:
        data = load_data(load_task(name), chosen.data, limits=SplitLimits(test=ROWS))
        for line in measure(backbone, data, chosen.seeds, chosen.steps):
            text = json.dumps(line)
            print(text, flush=True)
            if chosen.out:
                with chosen.out.open("a", encoding="utf-8") as file:
                    file.write(text + "\n")


if __name__ == "__main__":
    main()
