"""Rows per second of a stream of six tasks: one mixed batch against one task at a time and PEFT's adapter switching.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/predict.py --out benchmarks/results/predict-cpu.jsonl

Rows of random tokens, with the lengths of real ones, arrive 1, 8 or 64 at a time in random order. Four tasks rank label
words, two generate up to 32 tokens. All ways begin with token ids, use one copy of the model in one precision and are
called once before the clock runs, which also tells how many of their answers are equal. With --shape the model is a
decoder-only one with random weights, and PEFT is left out.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import tempfile
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bmtpt.artifacts.card import PromptCard, now, versions
from bmtpt.artifacts.peft import export_peft
from bmtpt.artifacts.saved import Prompt
from bmtpt.backbone import Backbone
from bmtpt.backbone.engine import Engine, Query, Reply
from bmtpt.inference.score import ANSWER_TOKENS
from bmtpt.stages.source import backbone_card
from cases import text_length
from causal import MODELS, random_model
from common import append_line, device_of, interleaved, machine_facts
from shapes import DTYPES, as_backbone

TASKS: dict[str, tuple[int, tuple[int, ...]]] = {
    "mnli": (45, (3, 2, 4)),
    "qnli": (60, (4, 6)),
    "qqp": (45, (2, 4)),
    "sst2": (25, (2, 2)),
    "squad": (180, ()),
    "record": (240, ()),
}
"""Mean text tokens of each task, and the tokens of its label words (end included); none where it generates."""

Way = Callable[[Sequence["Row"]], list[str]]
"""Answers the rows of one arriving batch, in order."""


@dataclass(frozen=True)
class Row:
    task: str
    query: Query


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    for precision in options.precisions:
        backbone = _backbone(options, precision)
        rows = _stream(backbone, options.rows, options.prompt_tokens, options.seed)
        with tempfile.TemporaryDirectory() as folder:
            ways = _ways(backbone, rows, Path(folder))
        for arrival in options.arrivals:
            line = {
                "benchmark": "predict",
                "arrival": arrival,
                "rows": len(rows),
                "tasks": len({row.task for row in rows}),
                "P": options.prompt_tokens,
                "backbone": backbone.name,
                "precision": precision,
                **_measured(backbone, ways, rows, arrival, options.rounds),
                **machine_facts(backbone.device),
            }
            print(json.dumps(line), flush=True)
            append_line(options.out, line)


def _options(arguments: Sequence[str] | None) -> Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="offline", help="hub id, folder or offline")
    parser.add_argument("--shape", choices=MODELS, help="a decoder-only model with random weights, in its place")
    parser.add_argument("--rows", type=int, default=64, help="rows of the stream")
    parser.add_argument("--arrivals", type=int, nargs="+", default=[1, 8, 64], help="rows that arrive together")
    parser.add_argument("--prompt-tokens", type=int, default=100)
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON lines to append to")
    return parser.parse_args(arguments)


def _backbone(options: Namespace, precision: str) -> Backbone:
    if options.shape is None:
        return Backbone.from_pretrained(options.backbone, precision=precision, device=options.device)
    model = copy.deepcopy(random_model(options.shape)).to(device_of(options.device), DTYPES[precision])
    backbone = as_backbone(model, options.shape)
    return replace(backbone, tokenizer=Numbers(backbone.vocab_size, model.config.eos_token_id))


@dataclass(frozen=True)
class Numbers:
    """The tokenizer of a model with random weights, whose texts are the ids themselves."""

    size: int
    eos_token_id: int

    @property
    def all_special_ids(self) -> list[int]:
        return [self.eos_token_id]

    def __len__(self) -> int:
        return self.size

    def __call__(self, texts: Sequence[str]) -> Namespace:
        return Namespace(input_ids=[text.split() for text in texts])

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        return [f"token {i}" for i in ids]

    def batch_decode(self, rows: Tensor, skip_special_tokens: bool) -> list[str]:
        dropped = self.all_special_ids if skip_special_tokens else ()
        return [" ".join(str(i) for i in row if i not in dropped) for row in rows.tolist()]


def _stream(backbone: Backbone, count: int, P: int, seed: int) -> list[Row]:
    """Draw a prompt and label words for each task, and rows of all tasks in random order."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    frequent = backbone.frequent_ids().cpu()

    def ids(length: int) -> Tensor:
        drawn = frequent[torch.randint(len(frequent), (length - 1,), generator=generator)]
        return torch.cat([drawn, torch.tensor([backbone.tokenizer.eos_token_id])]).to(backbone.device)

    prompts = {name: backbone.embed(ids(P + 1)[:P]) for name in TASKS}
    words = {name: tuple(ids(length) for length in lengths) for name, (_, lengths) in TASKS.items()}

    def row(name: str) -> Row:
        text = ids(text_length(rng, TASKS[name][0]))
        text = text[:-1] if backbone.decoder_only else text  # nothing would follow an end of sequence
        return Row(name, Query(prompts[name], text, words[name], 0 if words[name] else ANSWER_TOKENS))

    return [row(rng.choice(list(TASKS))) for _ in range(count)]


def _ways(backbone: Backbone, rows: Sequence[Row], folder: Path) -> dict[str, Way]:
    engine = backbone.engine
    ways: dict[str, Way] = {
        "mixed": Ours(engine.answer),
        "one_task_at_a_time": Ours(lambda queries: answer_task_by_task(engine, queries)),
    }
    if not backbone.decoder_only:
        ways["peft"] = PeftAdapters(backbone, {row.task: row.query.prompt for row in rows}, folder)
    return ways


def _measured(
    backbone: Backbone, ways: dict[str, Way], rows: Sequence[Row], arrival: int, rounds: int
) -> dict[str, object]:
    batches = [rows[start : start + arrival] for start in range(0, len(rows), arrival)]

    def answers(way: Way) -> list[str]:
        return [answer for batch in batches for answer in way(batch)]

    found = {name: answers(way) for name, way in ways.items()}
    timings = interleaved({name: lambda way=way: answers(way) for name, way in ways.items()}, rounds)
    seconds = {name: timing.seconds for name, timing in timings.items()}
    written = [answer for answer, row in zip(found["mixed"], rows, strict=True) if row.query.max_new_tokens]
    return {
        "rounds": rounds,
        "rows_per_second": {name: round(len(rows) / each, 2) for name, each in seconds.items()},
        "seconds": {name: round(each, 4) for name, each in seconds.items()},
        "cpu_seconds": {name: round(timing.cpu_seconds, 4) for name, timing in timings.items()},
        "ratio": {name: round(each / seconds["mixed"], 2) for name, each in seconds.items() if name != "mixed"},
        "equal_answers": {name: _equal(found["mixed"], each) for name, each in found.items() if name != "mixed"},
        "rows_that_generate": len(written),
        "tokens_generated": sum(len(ids) for ids in backbone.tokenizer(written).input_ids) if written else 0,
    }


def _equal(answers: Sequence[str], others: Sequence[str]) -> float:
    return round(sum(map(str.__eq__, answers, others)) / len(answers), 4)


@dataclass(frozen=True)
class Ours:
    """The engine that bmtpt chooses, on queries of one batch."""

    answer: Callable[[Sequence[Query]], list[Reply]]

    def __call__(self, rows: Sequence[Row]) -> list[str]:
        replies = self.answer([row.query for row in rows])
        return [_shown(reply.log_likelihoods, reply.text) for reply in replies]


def answer_task_by_task(engine: Engine, queries: Sequence[Query]) -> list[Reply]:
    """Return what `Engine.answer` does, with calls of their own for each task of the batch."""
    replies = [Reply(torch.empty(0), torch.empty(0), "")] * len(queries)
    groups: dict[tuple[int, int, int], list[int]] = {}
    for i, query in enumerate(queries):
        groups.setdefault((id(query.prompt), id(query.answers), query.max_new_tokens), []).append(i)
    for rows in groups.values():
        prompt, inputs = queries[rows[0]].prompt[None], [queries[i].text for i in rows]
        _, _, answers, limit = queries[rows[0]]
        nothing = torch.empty(len(rows), 0)
        scores = engine.answer_log_likelihoods(prompt, inputs, answers)[0].cpu() if answers else nothing
        texts = engine.generate(prompt, inputs, limit)[0] if limit else [""] * len(rows)
        for i, score, text in zip(rows, scores, texts, strict=True):
            replies[i] = Reply(score, torch.empty(0), text)
    return replies


class PeftAdapters:
    """Hugging Face's model with our prompts as PEFT adapters: `set_adapter` for each task of an arriving batch.

    Rows of the task are padded to their longest; label words cost a forward pass each.
    """

    def __init__(self, backbone: Backbone, prompts: dict[str, Tensor], folder: Path) -> None:
        from peft import PeftModel

        self.backbone = backbone
        self.model: Any = None
        for task, prompt in prompts.items():
            export_peft(artifact(backbone, task, prompt), folder / task, backbone.name)
            if self.model is None:
                self.model = PeftModel.from_pretrained(backbone.model, folder / task, adapter_name=task)
            else:
                self.model.load_adapter(folder / task, adapter_name=task)
        self.model.eval()

    @torch.no_grad()
    def __call__(self, rows: Sequence[Row]) -> list[str]:
        answers = [""] * len(rows)
        for task in dict.fromkeys(row.task for row in rows):
            own = [i for i, row in enumerate(rows) if row.task == task]
            self.model.set_adapter(task, inference_mode=True)
            for i, answer in zip(own, self._of_task([rows[i].query for i in own]), strict=True):
                answers[i] = answer
        return answers

    def _of_task(self, queries: Sequence[Query]) -> list[str]:
        if queries[0].answers:
            return [_shown(row, "") for row in self.scores(queries)]
        ids, mask = _padded(queries)
        limit = queries[0].max_new_tokens
        out = self.model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=limit, do_sample=False)
        return [text.strip() for text in self.backbone.tokenizer.batch_decode(out, skip_special_tokens=True)]

    @torch.no_grad()
    def scores(self, queries: Sequence[Query]) -> Float[Tensor, "N C"]:
        """Return the log-likelihoods of the label words, of rows of the task whose adapter is set."""
        ids, mask = _padded(queries)
        return torch.stack([self._score(ids, mask, word) for word in queries[0].answers], dim=1).cpu()

    def _score(self, ids: Tensor, mask: Tensor, word: Tensor) -> Tensor:
        labels = word.repeat(len(ids), 1)
        logits = self.model(input_ids=ids, attention_mask=mask, labels=labels).logits.float()
        return -F.cross_entropy(logits.transpose(1, 2), labels, reduction="none").sum(dim=1)


def _padded(queries: Sequence[Query]) -> tuple[Tensor, Tensor]:
    ids = pad_sequence([query.text for query in queries], batch_first=True)
    return ids, pad_sequence([torch.ones_like(query.text) for query in queries], batch_first=True)


def artifact(backbone: Backbone, task: str, prompt: Tensor, definition: Mapping[str, Any] | None = None) -> Prompt:
    """Return a prompt that was not trained, as what training saves."""
    card = PromptCard(
        backbone=backbone_card(backbone),
        task=task,
        task_definition=dict(definition or {}),
        method="benchmark",
        sources=(),
        posterior=None,
        settings={},
        selection={},
        trained_parameters=prompt.numel(),
        steps=0,
        seconds=0.0,
        versions=versions(),
        created=now(),
    )
    return Prompt(prompt[None], card)


def _shown(scores: Tensor, text: str) -> str:
    """The number of the likeliest label word, or what was generated."""
    return str(int(scores.argmax())) if len(scores) else text


if __name__ == "__main__":
    main()
