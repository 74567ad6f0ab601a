"""What are an offset and a linear readout worth on an untrained prompt? Accuracy and NLL at k labels, by their form.

    python benchmarks/readout.py --data ../shared/data --out benchmarks/results/readout.jsonl  # 8 CPU minutes
    python benchmarks/readout.py --table benchmarks/results/readout.jsonl                      # the docs' table

Nine tasks in FLAN's words, read by the offline backbone with one draw of vocabulary rows. The k labels are drawn at
random, and no other label is used. Nothing is trained: each form is fitted to the same readings.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

import common
from bmtpt.artifacts.card import now, versions
from bmtpt.backbone import Backbone
from bmtpt.inference.score import labels_of, make_scorer, read
from bmtpt.posterior.prompts import from_vocabulary
from bmtpt.posterior.readout import Readout, Widths, fit, label_free_offset, log_evidence
from bmtpt.tasks import TaskData, load_data, load_task
from bmtpt.tasks.tokens import tokenise

LIBRARY = Path(__file__).parents[1] / "src/bmtpt/studies/library/tasks"
FAR = [f"far/{name}" for name in ("ag_news", "cr", "disaster", "stackoverflow8", "tweet_hate")]
TASKS = [str(LIBRARY / f"{name}.yaml") for name in (*FAR, "flan/cb", "flan/rte", "flan/scitail", "flan/snli")]
POOL, TEST, LENGTH, MOST = 400, 250, 20, 128
SHOTS, DRAWS = (4, 16, 32), 8
GRID = [Widths(b, w, 0.3) for b in (0.5, 1.0, 2.0, 4.0) for w in (0.0, 0.5, 1.0, 2.0)]
Line = Mapping[str, Any]


def forms(scores: torch.Tensor, labels: torch.Tensor, states: torch.Tensor) -> Iterator[tuple[str, Readout]]:
    """Yield every form of the readout of some labelled rows, by its name in the table."""
    free = label_free_offset(scores)
    yield "words alone", Readout(1.0, torch.zeros_like(free))
    yield "offset without labels", Readout(1.0, free)
    for std in (0.5, 1.0, 2.0):
        yield f"offset around 0, σ = {std:g}", fit(scores, labels, Widths(std, 0.0, 0.0))
        yield f"offset, σ = {std:g}", fit(scores, labels, Widths(std, 0.0, 0.0), centre=free)
    yield "offset and linear", fit(scores, labels, Widths(1.0, 1.0, 0.0), states, free)
    yield "offset, linear and slope", fit(scores, labels, Widths(1.0, 1.0, 0.3), states, free)
    best = max(GRID, key=lambda widths: log_evidence(scores, labels, widths, states, free))
    yield "the same, widths by evidence", fit(scores, labels, best, states, free)
    yield "linear without words", fit(torch.zeros_like(scores), labels, Widths(), states)


def measure(backbone: Backbone, data: TaskData, shots: Sequence[int], draws: int) -> Iterator[Line]:
    """Yield a line per number of labels, draw and form."""
    prompts = from_vocabulary(backbone.frequent_rows(), LENGTH, torch.Generator().manual_seed(0))[None]
    generator, scorer = torch.Generator().manual_seed(0), make_scorer(backbone, data.task)
    pool, test = (
        [part[i] for i in torch.randperm(len(part), generator=generator)[:most].tolist()]
        for part, most in ((data.train, POOL), (data.test, TEST))
    )
    rows = tokenise(backbone, [*pool, *test], MOST)
    found = read(backbone.engine, prompts.to(backbone.device), rows.batch.inputs, scorer)
    scores, states, labels = found.log_likelihoods[0].double().cpu(), found.states[0].double().cpu(), labels_of(rows)
    for k in shots:
        for draw in range(draws):
            drawn = torch.randperm(len(pool), generator=torch.Generator().manual_seed(draw))[:k]
            for form, readout in forms(scores[drawn], labels[drawn], states[drawn]):
                words = torch.zeros_like(scores) if form == "linear without words" else scores
                log_p = readout.logits(words, states)[len(pool) :].log_softmax(dim=1)
                right = labels[len(pool) :]
                yield {
                    "benchmark": "readout", "task": data.task.name, "shots": k, "draw": draw, "form": form,
                    "accuracy": 100 * float((log_p.argmax(dim=1) == right).double().mean()),
                    "nll": -float(log_p[range(len(right)), right].mean()), "rows": len(right), "data": data.status,
                    "backbone": backbone.name, "created": now(), "versions": versions(),
                }  # fmt: skip


def table(lines: Sequence[Line]) -> str:
    """Return accuracy and NLL by form and number of labels as a Markdown table of means over tasks and draws."""
    shots = sorted({line["shots"] for line in lines})
    heads = [f"accuracy, k = {k}" for k in shots] + [f"NLL, k = {k}" for k in shots]
    rows = [["readout", *heads], ["---"] + ["--:"] * len(heads)]
    for form in dict.fromkeys(line["form"] for line in lines):
        own = [[line for line in lines if line["form"] == form and line["shots"] == k] for k in shots]
        accuracy = [f"{fmean(line['accuracy'] for line in each):.1f}" for each in own]
        nll = [f"{fmean(line['nll'] for line in each):.3f}" for each in own]
        rows.append([form, *accuracy, *nll])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main() -> None:
    options = common.table_parser(__doc__)
    options.add_argument("--backbone", default="offline")
    options.add_argument("--task", action="append", help="a task's file; default: all")
    options.add_argument("--shots", type=int, action="append", help="default: 4, 16 and 32")
    options.add_argument("--draws", type=int, default=DRAWS)
    chosen = options.parse_args()
    if common.printed(chosen.table, table):
        return
    torch.set_num_threads(1)
    backbone = Backbone.from_pretrained(chosen.backbone, precision="float32")
    lines: list[Line] = []
    for task in chosen.task or TASKS:
        own = list(measure(backbone, load_data(load_task(task), chosen.data), chosen.shots or SHOTS, chosen.draws))
        lines += own
        print(f"{own[0]['task']}: {len(own)} lines", flush=True)
    if chosen.out:
        chosen.out.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    print(table(lines))


if __name__ == "__main__":
    main()
