"""What each rank does in `test_ranks.py`, and one process before it: the same calls, whose results must be equal.

torchrun … rank_work.py FACTS     writes what a rank found to FACTS["out"]/RANK.pt
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[1] / "backbone"))

from causal_plain import tiny_causal
from plain import random_batch, tiny_backbone

from bmtpt.backbone import Backbone, Engine
from bmtpt.backbone.decoder_only.generic import HuggingFaceCausalEngine
from bmtpt.backbone.decoder_only.shared_prompt import CausalEngine
from bmtpt.backbone.encoder_decoder.generic import HuggingFaceEngine
from bmtpt.backbone.engine import Choice
from bmtpt.backbone.fast_t5.engine import PackedT5Engine
from bmtpt.backbone.model.sharded import spread_weights
from bmtpt.cli import main
from bmtpt.parallel.ranks import Ranks, joined
from bmtpt.settings import LearnSettings
from bmtpt.stages.source import learn
from bmtpt.tasks import load_data, load_task
from bmtpt.types import TokenBatch

ENGINES: dict[str, Callable[[Ranks], Engine]] = {
    "packed": lambda ranks: PackedT5Engine(tiny_backbone("v1.1"), ranks=ranks),
    "generic": lambda ranks: HuggingFaceEngine(tiny_backbone("v1.0"), ranks=ranks),
    "causal": lambda ranks: CausalEngine(tiny_causal("llama"), ranks=ranks),
    "generic causal": lambda ranks: HuggingFaceCausalEngine(tiny_causal("qwen2"), ranks=ranks),
}
LENGTHS, ANSWERS = [4, 30, 17, 19, 1, 9, 9, 25], [2, 1, 5, 3, 1, 2, 2, 4]
BUDGET = 60
"""Tokens of a pass: several passes a call, of different sizes."""

LEARN = {
    "particles": 3, "prompt-length": 4, "steps": 30, "evaluate-every": 2, "batch-size": 3, "validation-rows": 4,
    "learning-rate": 0.1, "precision": "float32", "token-budget": 40,
}  # fmt: skip
ADAPT = {
    "steps": 4, "evaluate-every": 2, "shots": 8, "selection": "none", "readout": "linear", "precision": "float32",
    "token-budget": 40,
}  # fmt: skip
TEXTS = "".join(f"a {word} and {word} film\n" for word in ("warm", "dull", "cold", "funny") * 40)


def options(values: dict[str, Any]) -> list[str]:
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def learning(model: str, tasks: str, out: str) -> list[str]:
    sources = [f"--source={tasks}/{name}.yaml" for name in ("sentiment", "answers")]
    return ["learn", "--backbone", model, *sources, *options(LEARN), "--out", out]


def commands(tasks: str, posterior: str, out: str) -> list[list[str]]:
    """Return a whole session after `learn`; what it writes is in ``out``."""
    how = ["--precision", "float32", "--token-budget", "40"]
    target, prompt = f"{tasks}/sentiment.yaml", f"{out}/prompt"
    written = ["--json", "--out", f"{out}/results.jsonl", "--predictions", f"{out}/rows.csv"]
    return [
        ["adapt", "--posterior", posterior, "--target", target, *options(ADAPT), "--out", prompt],
        ["evaluate", "--prompt", prompt, *how, *written],
        ["evaluate", "--prompt", prompt, *how, "--scorer", "generate", "--json"],
        ["predict", "--prompt", prompt, *how],
    ]


def called(engine: Engine) -> dict[str, Any]:
    """Return what every kind of call finds."""
    object.__setattr__(engine, "token_budget", BUDGET)
    D = engine.backbone.d_model
    batch, words = random_batch(LENGTHS, ANSWERS), random_batch([3, 3], [2, 3]).targets
    prompts, weights = torch.randn(3, 4, D, generator=torch.Generator().manual_seed(0)), torch.linspace(0.2, 3, 8)
    own = torch.randn(2, 8, 4, D, generator=torch.Generator().manual_seed(1))  # each example has its own
    chosen = TokenBatch(batch.inputs, [words[i % 2] for i in range(8)])
    found: dict[str, Any] = {"passes": len(engine.cut(prompts, batch.inputs, batch.target_tokens()))}
    found["losses"] = engine.losses(prompts, batch)
    found["gradients"] = engine.gradients(prompts, batch, weights)
    found["of choices"] = engine.gradients(prompts, chosen, weights, Choice(words))
    found["of own prompts"] = engine.gradients(own, batch, weights)
    found["readings"] = tuple(engine.readings(prompts, batch.inputs, words))
    if engine.backbone.tokenizer is not None:
        texts = engine.generate(prompts, batch.inputs, 5)
        found["texts"] = [[(str(text), text.ended) for text in each] for each in texts]
    return found


def loaded(model: str, **how: Any) -> Backbone:
    return Backbone.from_pretrained(model, precision="float32", device="cpu", **how)


class Unread(io.RawIOBase):
    """Standard input of a rank that must not read it."""

    def readable(self) -> bool:
        return True

    def readinto(self, _: Any) -> int:
        raise AssertionError("rank 0 alone reads")


def ran(words: list[str]) -> tuple[int, str, str]:
    """Run a command as a rank does; return its exit status and what it printed."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    first = os.environ.get("RANK", "0") == "0"
    given = io.TextIOWrapper(io.BytesIO(TEXTS.encode()) if first else io.BufferedReader(Unread()))
    stay = patch("bmtpt.parallel.ranks.leave", _together)  # the next command reads what this one wrote
    with redirect_stdout(out), redirect_stderr(err), patch.multiple(sys, argv=["bmtpt", *words], stdin=given), stay:
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
    return code, out.getvalue(), err.getvalue()


def _together() -> None:
    if dist.is_initialized():
        dist.barrier()


def interrupted(model: str, tasks: str, folder: str) -> object:
    """Learn until rank 0 alone gets SIGTERM; return the exit status."""
    backbone, source = loaded(model), load_data(load_task(f"{tasks}/sentiment.yaml"))

    def listener(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    settings = LearnSettings(particles=2, prompt_length=3, steps=9, evaluate_every=5, validation_rows=4)
    try:
        learn(backbone, [source], settings, folder=folder, listener=listener)
    except SystemExit as end:
        return end.code
    return None


def work(facts: dict[str, str]) -> dict[str, Any]:
    model, tasks, out = facts["model"], facts["tasks"], facts["out"]
    found: dict[str, Any] = {name: called(made(joined())) for name, made in ENGINES.items()}
    found |= {f"{name}, fast": called(made(joined("fast"))) for name, made in ENGINES.items()}
    spread, causal = loaded(model, shard_weights=True), tiny_causal("qwen2")
    spread_weights(causal.model, "tiny", spread.ranks, causal.device)
    found["sharded"] = called(spread.engine)
    found["sharded causal"] = called(HuggingFaceCausalEngine(causal, ranks=spread.ranks))
    block = spread.model.encoder.block[1]
    found["share"] = sum(weight.to_local().numel() for weight in block.parameters()) / sum(
        weight.numel() for weight in block.parameters()
    )
    found["interrupted"] = interrupted(model, tasks, f"{out}/interrupted")
    session = [[*learning(model, tasks, facts["killed"]), "--resume"], *commands(tasks, facts["killed"], out)]
    found["commands"] = [ran(words) for words in [*session, ["study", "particles"]]]
    return found


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    torch.save(work(given), f"{given['out']}/{os.environ['RANK']}.pt")
