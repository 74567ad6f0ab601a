"""How sure should a readout take a prompt to be that was trained on the same labels?

    bmtpt study label-use --data ../shared/data --out runs/label-use --jobs 2     # trains the prompts
    python benchmarks/slope.py runs/label-use --data ../shared/data \\
        --out benchmarks/results/slope.jsonl                                      # 20 CPU minutes on a slow machine
    python benchmarks/slope.py --table benchmarks/results/slope.jsonl             # the docs' table

Each prompt of that study which 16 labels trained is read once, with the untrained draw that it started from, and
both are read out with different slopes a₀ (docs/method.md, section 5). Nothing is trained here. Lines that `--out` has
already are not measured again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
import torch
from torch import Tensor

import common
from bmtpt.artifacts.card import now, versions
from bmtpt.artifacts.saved import Prompt
from bmtpt.backbone import Backbone
from bmtpt.backbone.engine import Readings
from bmtpt.inference.score import labels_of, read
from bmtpt.methods.prompt_tuning import plain_candidates
from bmtpt.posterior.readout import Labelled, Readout, Texts, Widths
from bmtpt.report.statistics import interval
from bmtpt.report.tables import interval_text
from bmtpt.settings import AdaptSettings
from bmtpt.stages.rows import target_rows
from bmtpt.studies.grid import prompt_folder
from bmtpt.studies.load import load_study
from bmtpt.tasks import TaskData, load_data, load_task
from bmtpt.tasks.metrics import calibration
from bmtpt.tasks.tokens import tokenise

SHOTS = 16
FITTED = Widths(offset=1.0, weights=0.0, slope=0.5)
"""What the untrained prompt's own slope is fitted with: a ~ N(1, ½²) and an offset."""

FORMS: Mapping[str, tuple[float, float | None]] = {
    "trained, slope 1": (1.0, 1.0),
    "trained, slope 0.7": (1.0, 0.7),
    "trained, slope 0.5": (1.0, 0.5),
    "trained, slope 0.3": (1.0, 0.3),
    "trained, slope of the untrained": (1.0, None),
    "mean of trained and untrained": (0.5, 1.0),
    "untrained, slope 1": (0.0, 1.0),
    "untrained, slope 0.5": (0.0, 0.5),
}
"""The trained prompt's share of the readings, the rest being the untrained one's, and a₀, by the form's name.

None is the slope that the labels, of which an untrained prompt has seen none, ask of that prompt."""
Line = Mapping[str, Any]


def answers(found: Readings, share: float, slope: float | None, labels: Tensor, texts: int) -> Tensor:
    """Return p [N, C] of the last rows by a readout of the first ones, which are labelled, and the texts after them.

    Args:
        found: Of the untrained prompt and the trained one.
    """
    k, (s, h) = len(labels), (each.double() for each in found)
    if slope is None:
        slope = max(0.0, read_out(s[0], h[0], labels, texts, FITTED).slope)
    weights = torch.tensor([1 - share, share], dtype=torch.float64)
    s, h = (torch.einsum("m,mnd->nd", weights, each) for each in (slope * s, h))
    readout = read_out(s, h, labels, texts, Widths())
    return readout.logits(s[k + texts :], h[k + texts :]).softmax(dim=1)


def read_out(s: Tensor, h: Tensor, labels: Tensor, texts: int, widths: Widths) -> Readout:
    """Return the readout of the first rows, which are labelled, around the offset that they and the texts say."""
    k = len(labels)
    return Labelled(s[:k], h[:k], labels).fit(widths, Texts(s[k : k + texts], h[k : k + texts]), spread=True)


def measure(backbone: Backbone, data: TaskData, folder: Path, settings: AdaptSettings) -> Iterator[Line]:
    """Yield a line per form of the prompt that a study's folder keeps for a seed."""
    seed = settings.seed
    prompt = Prompt.load(prompt_folder(folder, data.task.name, "pt", SHOTS, seed))
    rows = target_rows(backbone, data, settings)
    test = tokenise(backbone, data.test, settings.max_length or data.task.max_length)
    (draw,) = plain_candidates(backbone, prompt.prompts.shape[1], seed)
    prompts = torch.stack([draw.start, prompt.prompts[0].to(draw.start)])
    inputs = [*rows.train.batch.inputs, *rows.texts, *test.batch.inputs]
    with torch.no_grad():
        found = read(backbone.engine, prompts, inputs, rows.scorer)
    for form, (share, slope) in FORMS.items():
        p = answers(found, share, slope, labels_of(rows.train), len(rows.texts))
        judged = calibration(p.numpy(), labels_of(test).tolist())
        yield {
            "benchmark": "slope", "task": data.task.name, "shots": SHOTS, "seed": seed, "form": form,
            "accuracy": 100 * judged["accuracy"], "nll": judged["nll"], "ece": 100 * judged["ece"], "rows": len(test),
            "data": data.status, "backbone": backbone.name, "created": now(), "versions": versions(),
        }  # fmt: skip


def table(lines: Sequence[Line]) -> str:
    """Return means over tasks, and what they differ by from the first form, with 95 % intervals over seeds."""
    rows = [["what is read out", "accuracy", "NLL", "ECE", "NLL minus the first"], ["---"] + ["--:"] * 4]
    first, *_ = FORMS
    for form in FORMS:
        mean = {metric: by_seed(lines, form, metric) for metric in ("accuracy", "nll", "ece")}
        cells = [f"{fmean(each):.{3 if metric == 'nll' else 1}f}" for metric, each in mean.items()]
        found = interval(pd.Series([a - b for a, b in zip(mean["nll"], by_seed(lines, first, "nll"), strict=True)]))
        rows.append([form, *cells, "–" if form == first else interval_text(found, "nll")])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def by_seed(lines: Sequence[Line], form: str, metric: str) -> list[float]:
    """Return the mean over tasks of each seed."""
    seeds = sorted({line["seed"] for line in lines})
    return [fmean(line[metric] for line in lines if (line["seed"], line["form"]) == (s, form)) for s in seeds]


def main() -> None:
    options = common.table_parser(__doc__)
    options.add_argument("study", type=Path, nargs="?", help="the folder of a run of label-use")
    chosen = options.parse_args()
    if common.printed(chosen.table, table):
        return
    torch.set_num_threads(1)
    backbone, study = Backbone.from_pretrained("offline", precision="float32"), load_study("label-use")
    done = {(line["task"], line["seed"]) for line in common.lines_in(chosen.out)}
    for seed in study.seeds:
        settings = study.adapt.model_copy(update={"shots": SHOTS, "seed": seed})
        for name in study.targets:
            data = load_data(load_task(name), chosen.data, limits=study.limits)
            if (data.task.name, seed) not in done:
                for line in measure(backbone, data, chosen.study, settings):
                    common.append_line(chosen.out, line)
                print(f"seed {seed}, {data.task.name}: read", flush=True)


if __name__ == "__main__":
    main()
