"""What is the mean over a readout's posterior worth against its MAP, and what do its approximations cost?

    python benchmarks/predictive.py --data ../shared/data --out benchmarks/results/predictive.jsonl  # 3 CPU minutes
    python benchmarks/predictive.py --table benchmarks/results/predictive.jsonl                      # the docs' table

The tuning tasks of the study `few-labels`, read by the offline backbone with one draw of vocabulary rows. The k labels
are drawn at random; 64 more texts lend no label. Nothing is trained: each form is made of the same fit. `sampled` draws
the parameters from Laplace's Gaussian with its full Hessian, and averages the probabilities.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

import common
from bmtpt.artifacts.card import now, versions
from bmtpt.backbone import Backbone
from bmtpt.inference.score import labels_of, make_scorer, read
from bmtpt.posterior.prompts import from_vocabulary
from bmtpt.posterior.readout import Labelled, Readout, Spread, Texts, Widths, standardised
from bmtpt.tasks import TaskData, load_data, load_task
from bmtpt.tasks.metrics import calibration
from bmtpt.tasks.tokens import tokenise

LIBRARY = Path(__file__).parents[1] / "src/bmtpt/studies/library/tasks"
TASKS = [str(LIBRARY / f"{name}.yaml") for name in ("flan/rte", "flan/snli", "far/cr", "far/tweet_hate")]
POOL, TEST, TEXTS, LENGTH, MOST = 500, 200, 64, 20, 128
SHOTS, DRAWS, SAMPLES = (4, 16, 64, 256), 8, 200
SAMPLED = 16
"""Most labels with a full Hessian, whose side is their number times that of the words."""
WIDTHS = Widths()
Line = Mapping[str, Any]


def forms(taught: Labelled, more: Texts, asked: Labelled) -> Iterator[tuple[str, Tensor]]:
    """Yield what each form says of some texts, by its name in the table: probabilities [n, C]."""
    at_map = taught.fit(WIDTHS, more)
    scale = standardised(torch.cat([taught.states, more.states]))
    given = taught.states, at_map.logits(taught.scores, taught.states).softmax(dim=1), WIDTHS, scale
    yield "MAP", at_map.logits(asked.scores, asked.states).softmax(dim=1)
    for name, spread in (("mean over the posterior", Spread.of(*given)), ("every direction", Spread.of(*given, None))):
        yield name, replace(at_map, spread=spread).logits(asked.scores, asked.states).softmax(dim=1)
    if len(taught.labels) <= SAMPLED:
        yield "sampled", sampled(at_map, taught, asked, Spread.of(*given))


def sampled(at_map: Readout, taught: Labelled, asked: Labelled, spread: Spread) -> Tensor:
    """Return the mean of softmax z over draws from the Gaussian around the MAP whose precision is the full Hessian."""
    p = at_map.logits(taught.scores, taught.states).softmax(dim=1)
    rows, asked_rows = spread.inputs(taught.states), spread.inputs(asked.states)
    _, _, basis = torch.linalg.svd(rows, full_matrices=False)  # beside it, the Hessian is the identity
    x, C = rows @ basis.T, p.shape[1]
    H = torch.eye(C * len(basis), dtype=torch.float64)
    for own, row in zip(p, x, strict=True):
        H += torch.kron(own.diag() - torch.outer(own, own), torch.outer(row, row))
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(C * len(basis), SAMPLES, generator=generator, dtype=torch.float64)
    moved = torch.linalg.solve_triangular(torch.linalg.cholesky(H).T, noise, upper=True).reshape(C, -1, SAMPLES)
    inside = asked_rows @ basis.T
    beside = (asked_rows.square().sum(dim=1) - inside.square().sum(dim=1)).clamp(min=0).sqrt()
    away = torch.randn(SAMPLES, len(inside), C, generator=generator, dtype=torch.float64) * beside[:, None]
    z = at_map.logits(asked.scores, asked.states) + torch.einsum("nr,crs->snc", inside, moved) + away
    return z.softmax(dim=2).mean(dim=0)


def measure(backbone: Backbone, data: TaskData) -> Iterator[Line]:
    """Yield a line per number of labels, draw and form."""
    prompts = from_vocabulary(backbone.frequent_rows(), LENGTH, torch.Generator().manual_seed(0))[None]
    train, test = data.train[:POOL], data.test[:TEST]
    rows, scorer = tokenise(backbone, [*train, *test], MOST), make_scorer(backbone, data.task)
    found = read(backbone.engine, prompts, rows.batch.inputs, scorer)
    texts = Labelled(found.log_likelihoods[0].double(), found.states[0].double(), labels_of(rows))
    asked = texts.rows(range(len(train), len(texts.labels)))
    for k in SHOTS:
        for draw in range(DRAWS):
            order = torch.randperm(len(train), generator=torch.Generator().manual_seed(draw))
            more = texts.rows(order[k : k + TEXTS])
            for form, p in forms(texts.rows(order[:k]), Texts(more.scores, more.states), asked):
                judged = calibration(p.numpy(), asked.labels.tolist())
                yield {
                    "benchmark": "predictive", "task": data.task.name, "shots": k, "draw": draw, "form": form,
                    "accuracy": 100 * judged["accuracy"], "nll": judged["nll"], "ece": 100 * judged["ece"],
                    "rows": len(asked.labels), "data": data.status, "backbone": backbone.name, "created": now(),
                    "versions": versions(),
                }  # fmt: skip


def table(lines: Sequence[Line]) -> str:
    """Return NLL and ECE by form and number of labels as a Markdown table of means over tasks and draws."""
    heads = [f"{shown}, k = {k}" for shown in ("NLL", "ECE") for k in SHOTS]
    rows = [["readout", *heads], ["---"] + ["--:"] * len(heads)]
    for form in dict.fromkeys(line["form"] for line in lines):
        row = [form]
        for metric, digits in (("nll", 3), ("ece", 1)):
            for k in SHOTS:
                own = [line[metric] for line in lines if (line["form"], line["shots"]) == (form, k)]
                row.append(f"{fmean(own):.{digits}f}" if own else "–")
        rows.append(row)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main() -> None:
    options = common.table_parser(__doc__)
    chosen = options.parse_args()
    if common.printed(chosen.table, table):
        return
    torch.set_num_threads(1)
    backbone = Backbone.from_pretrained("offline", precision="float32")
    lines = [line for task in TASKS for line in measure(backbone, load_data(load_task(task), chosen.data))]
    if chosen.out:
        chosen.out.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    print(table(lines))


if __name__ == "__main__":
    main()
