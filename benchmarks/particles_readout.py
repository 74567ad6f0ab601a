"""What is a posterior worth to a readout, with nothing trained on the task?

    bmtpt study few-labels --data ../shared/data --out runs/few-labels --jobs 2   # learns the source stages
    python benchmarks/particles_readout.py runs/few-labels/sources --data ../shared/data \\
        --out benchmarks/results/particles-readout.jsonl                           # 30 CPU minutes
    python benchmarks/particles_readout.py --table benchmarks/results/particles-readout.jsonl

The tuning tasks of the study `few-labels`, k labels drawn at random, and the texts of 64 more rows without labels, by
the settings of that study's readouts. Each source stage has its own draw of labels and of the vocabulary.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
import torch
from torch import Tensor

import common
from bmtpt.artifacts.card import now, versions
from bmtpt.artifacts.saved import Posterior
from bmtpt.backbone import Backbone
from bmtpt.backbone.engine import Readings
from bmtpt.inference.score import labels_of, make_scorer, read
from bmtpt.posterior.prompts import from_vocabulary
from bmtpt.posterior.readout import Labelled, Texts, Widths, label_free_offset, log_evidence
from bmtpt.report.statistics import interval
from bmtpt.tasks import TaskData, load_data, load_task
from bmtpt.tasks.tokens import tokenise

LIBRARY = Path(__file__).parents[1] / "src/bmtpt/studies/library/tasks"
TASKS = [str(LIBRARY / f"{name}.yaml") for name in ("flan/rte", "flan/snli", "far/cr", "far/tweet_hate")]
POOL, TEXTS, TEST, MOST = 120, 64, 150, 96
SHOTS = (4, 16)
Line = Mapping[str, Any]
Groups = Mapping[str, slice]


def prompts_of(stage: Path, backbone: Backbone, seed: int) -> tuple[Tensor, Groups]:
    """Return the prompts of a source stage and as many vocabulary draws as it has particles, and which are which."""
    posterior = Posterior.load(next(stage.glob("m[0-9]*")))
    singles = [Posterior.load(folder).mean for folder in sorted(stage.glob("only-*"))]
    M, P, _ = posterior.particles.shape
    generator = torch.Generator().manual_seed(seed)
    draws = [from_vocabulary(backbone.frequent_rows(), P, generator) for _ in range(M)]
    groups = {"mean": posterior.mean[None], "particles": posterior.particles}
    groups |= {"sources": torch.stack(singles), "vocabulary": torch.stack(draws)}
    starts = torch.tensor([0, *(len(each) for each in groups.values())]).cumsum(0).tolist()
    places = {name: slice(starts[i], starts[i + 1]) for i, name in enumerate(groups)}
    return torch.cat(list(groups.values())), places


def forms(groups: Groups) -> Iterator[tuple[str, list[slice], str]]:
    """Yield the name of each form, the prompts that it reads, and how several are made one."""
    particles, sources, vocabulary = groups["particles"], groups["sources"], groups["vocabulary"]
    first = slice(vocabulary.start, vocabulary.start + 1)
    yield "mean of the particles", [groups["mean"]], "probabilities"
    yield "particles, one readout of averaged readings", [particles], "readings"
    yield "particles, a readout each", [particles], "probabilities"
    yield "particles, weighed by evidence", [particles], "evidence"
    yield "prompts of single sources, a readout each", [sources], "probabilities"
    yield "prompts of single sources, weighed by evidence", [sources], "evidence"
    yield "one vocabulary draw", [first], "probabilities"
    yield "vocabulary draws, a readout each", [vocabulary], "probabilities"
    yield "mean and one vocabulary draw, a readout each", [groups["mean"], first], "probabilities"
    yield "mean, single sources and one vocabulary draw", [groups["mean"], sources, first], "probabilities"


def answers(found: Readings, labels: Tensor, drawn: Tensor, texts: Tensor, test: Tensor, how: str) -> Tensor:
    """Return log p [N, C] of the test rows by readouts of the drawn ones, one per prompt."""
    scores, states = found.log_likelihoods.double(), found.states.double()
    if how == "readings":
        scores, states = scores.mean(dim=0, keepdim=True), states.mean(dim=0, keepdim=True)
    log_p, weights = [], []
    for s, h in zip(scores, states, strict=True):
        readout = Labelled(s[drawn], h[drawn], labels[drawn]).fit(Widths(), Texts(s[texts], h[texts]), spread=True)
        log_p.append(readout.logits(s[test], h[test]).log_softmax(dim=1))
        if how == "evidence":
            free = label_free_offset(torch.cat([s[drawn], s[texts]]))
            weights.append(log_evidence(s[drawn], labels[drawn], Widths(), h[drawn], free))
    log_weights = torch.tensor(weights or [0.0] * len(log_p), dtype=torch.float64).log_softmax(dim=0)
    return (torch.stack(log_p) + log_weights[:, None, None]).logsumexp(dim=0)


def measure(backbone: Backbone, data: TaskData, stage: Path, seed: int) -> Iterator[Line]:
    """Yield a line per number of labels and form."""
    prompts, groups = prompts_of(stage, backbone, seed)
    generator, scorer = torch.Generator().manual_seed(seed), make_scorer(backbone, data.task)
    pool, held = (
        [part[i] for i in torch.randperm(len(part), generator=generator)[:most].tolist()]
        for part, most in ((data.train, POOL), (data.test, TEST))
    )
    rows = tokenise(backbone, [*pool, *held], MOST)
    found, labels = read(backbone.engine, prompts, rows.batch.inputs, scorer), labels_of(rows)
    test = torch.arange(len(pool), len(rows))
    for k in SHOTS:
        drawn, texts = torch.arange(k), torch.arange(k, k + TEXTS)
        for form, places, how in forms(groups):
            own = torch.cat([torch.arange(place.start, place.stop) for place in places])
            log_p = answers(Readings(*(each[own] for each in found)), labels, drawn, texts, test, how)
            right = labels[test]
            yield {
                "benchmark": "particles_readout", "task": data.task.name, "shots": k, "source_seed": seed,
                "form": form, "prompts": len(own), "rows": len(test), "data": data.status,
                "accuracy": 100 * float((log_p.argmax(dim=1) == right).double().mean()),
                "nll": -float(log_p[range(len(right)), right].mean()),
                "backbone": backbone.name, "created": now(), "versions": versions(),
            }  # fmt: skip


def table(lines: Sequence[Line]) -> str:
    """Return means over tasks, with 95 % intervals over source stages, as a Markdown table."""
    shots = sorted({line["shots"] for line in lines})
    heads = [f"{metric}, k = {k}" for metric in ("accuracy", "NLL") for k in shots]
    rows = [["what is read", "passes", *heads], ["---"] + ["--:"] * (len(heads) + 1)]
    for form in dict.fromkeys(line["form"] for line in lines):
        own = [line for line in lines if line["form"] == form]
        cells = [_cell(own, metric, k) for metric in ("accuracy", "nll") for k in shots]
        rows.append([form, str(own[0]["prompts"]), *cells])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _cell(lines: Sequence[Line], metric: str, k: int) -> str:
    seeds = sorted({line["source_seed"] for line in lines})
    means = [fmean(line[metric] for line in lines if (line["source_seed"], line["shots"]) == (s, k)) for s in seeds]
    digits = 1 if metric == "accuracy" else 3
    found = interval(pd.Series(means))
    return f"{found.mean:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def main() -> None:
    options = common.table_parser(__doc__)
    options.add_argument("sources", type=Path, nargs="?", help="a study's folder of source stages, one per seed")
    chosen = options.parse_args()
    if common.printed(chosen.table, table):
        return
    torch.set_num_threads(1)
    backbone = Backbone.from_pretrained("offline", precision="float32")
    stages = {
        int(found[1]): path for path in chosen.sources.iterdir() if (found := re.fullmatch(r"seed(\d+)", path.name))
    }
    for seed, stage in sorted(stages.items()):
        for task in TASKS:
            lines = list(measure(backbone, load_data(load_task(task), chosen.data), stage, seed))
            print(f"seed {seed}, {lines[0]['task']}: {len(lines)} lines", flush=True)
            if chosen.out:
                with chosen.out.open("a") as file:
                    file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


if __name__ == "__main__":
    main()
