"""Time one SVGD step on decoder-only models: shared prompts (packed), the model's own forward (generic), and PEFT.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/causal.py --out benchmarks/results/causal-cpu.jsonl

M = 5 particles, K = 6 tasks, prompts of 100 rows, random weights of published shapes, text lengths as of real tasks
(`cases.py`). Before anything is timed, every variant's losses and gradient are compared with Hugging Face's model in
fp32, run example by example without padding; in fp32 a difference ends the run. One JSON line per case.
"""

from __future__ import annotations

import copy
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from baselines import IGNORED, OURS, OurEngine, PeftLoop, Variant, task_means
from bmtpt.backbone.model.families import without_dropout
from bmtpt.types import TokenBatch
from cases import Case, draw_lengths, make_case
from common import append_line, device_of, machine_facts, parser
from shapes import DTYPES, as_backbone
from step import Setup, checked_and_timed, report
from targets import judged


def _llama(V: int, D: int, f: int, layers: int, heads: int, pairs: int) -> dict[str, int]:
    """Return a Llama's sizes; ``pairs`` are heads of keys and values."""
    sizes = {"vocab_size": V, "hidden_size": D, "intermediate_size": f, "num_hidden_layers": layers}
    return {**sizes, "num_attention_heads": heads, "num_key_value_heads": pairs}


_TINY_GPT2 = {"vocab_size": 96, "n_embd": 24, "n_layer": 2, "n_head": 2, "bos_token_id": 0, "eos_token_id": 1}
MODELS: dict[str, tuple[str, dict[str, int]]] = {
    "gpt2": ("gpt2", {}),
    "smollm-135m": ("llama", _llama(49_152, 576, 1536, layers=30, heads=9, pairs=3)),
    "tiny-gpt2": ("gpt2", _TINY_GPT2),
    "tiny-llama": ("llama", _llama(96, 32, 48, layers=2, heads=4, pairs=2)),
}
"""transformers' model type and what its configuration changes from the defaults."""
TINY = ("tiny-gpt2", "tiny-llama")
VARIANTS = ("peft", *OURS)


def setup(size: str, B: int, precision: str, **smaller: int) -> Setup:
    return Setup(size, B, precision, VARIANTS, rounds=3, **smaller)


CPU_SETUPS = [setup("gpt2", B, precision) for precision in DTYPES for B in (1, 4)]
CPU_SETUPS += [setup("smollm-135m", 4, precision) for precision in DTYPES]
GPU_SETUPS = [setup(size, B, "bfloat16") for size in ("gpt2", "smollm-135m") for B in (4, 32)]
SMOKE = [setup(size, 2, precision, M=2, K=3, P=4) for size in TINY for precision in DTYPES]


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    device = device_of(options.device)
    for each in _setups(options, device):
        line = measured(each, device, dict.fromkeys(each.variants, options.rounds or each.rounds))
        print(report(line), flush=True)
        append_line(options.out, line)
    return 0


def _options(arguments: Sequence[str] | None) -> Namespace:
    options = parser(__doc__)
    options.add_argument("--sizes", nargs="+", choices=MODELS)
    options.add_argument("--batch-sizes", nargs="+", type=int)
    options.add_argument("--precisions", nargs="+", choices=DTYPES)
    options.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    return options.parse_args(arguments)


def _setups(options: Namespace, device: torch.device) -> list[Setup]:
    """Return the default setups that were chosen."""
    every = SMOKE if options.smoke else CPU_SETUPS if device.type == "cpu" else GPU_SETUPS
    chosen = {"size": options.sizes, "B": options.batch_sizes, "precision": options.precisions}
    setups = [
        replace(each, variants=options.variants)
        for each in every
        if all(not values or getattr(each, axis) in values for axis, values in chosen.items())
    ]
    if not setups:
        known = "; ".join(f"{each.size}, B = {each.B}, {each.precision}" for each in every)
        raise SystemExit(f"--sizes, --batch-sizes and --precisions leave no case of: {known}")
    return setups


@lru_cache(maxsize=1)
def random_model(size: str, seed: int = 0) -> Any:
    """Return Hugging Face's decoder-only model of a shape, fp32 on the CPU, without dropout; callers work on copies."""
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, changes = MODELS[size]
    config = without_dropout(AutoConfig.for_model(kind, **changes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


def measured(setup: Setup, device: torch.device, rounds: Mapping[str, int]) -> dict[str, Any]:
    """Check and time one case; return its result line.

    Raises:
        SystemExit: In fp32 a variant's losses or gradient differ from the reference.
    """
    model = random_model(setup.size)
    lengths = draw_lengths(setup.K, setup.B)
    case = make_case(setup.size, setup.M, setup.P, lengths, model.get_input_embeddings().weight).to(device)
    truth = ByExample(copy.deepcopy(model).to(device), case)(case.particles)
    variants = {name: build(name, model, case, DTYPES[setup.precision]) for name in setup.variants}
    line: dict[str, Any] = {
        "benchmark": "causal",
        "size": setup.size,
        **{axis: getattr(setup, axis) for axis in ("M", "K", "B", "P", "precision")},
        **checked_and_timed(variants, case, truth, setup.precision, rounds),
        "machine": machine_facts(device),
    }
    return {**line, "targets": judged(line)}


def build(name: str, model: Any, case: Case, dtype: torch.dtype) -> Variant:
    """Return a variant that runs a copy of an fp32 model in `dtype` where the case is."""
    own = copy.deepcopy(model).to(case.particles.device, dtype)
    if name == "peft":
        return CausalPeftLoop(own, case)
    backbone = as_backbone(own, case.size)
    return OurEngine(replace(backbone, engine_name=name).engine, case)  # type: ignore[arg-type]


@dataclass(frozen=True)
class ByExample:
    """The truth: the model's own forward over [prompt; text; label], one example at a time, without padding."""

    model: Any
    case: Case

    def __call__(self, particles: Tensor) -> tuple[Tensor, Tensor]:
        leaf = particles.detach().clone().requires_grad_(True)
        rows = self.case.rows
        losses = [self._backward(leaf, *row) for row in zip(rows.inputs, rows.targets, self.case.weights, strict=True)]
        return task_means(torch.stack(losses, dim=1), self.case), leaf.grad

    def _backward(self, leaf: Tensor, text: Tensor, label: Tensor, weight: Tensor) -> Tensor:
        text, label = text.to(leaf.device), label.to(leaf.device)
        tokens = self.model.get_input_embeddings()(torch.cat([text, label[:-1]]))
        row = torch.cat([leaf, tokens.expand(len(leaf), -1, -1)], dim=1)
        logits = self.model(inputs_embeds=row, use_cache=False).logits[:, -len(label) :]  # [M, T, V]
        loss = F.cross_entropy(logits.mT, label.expand(len(leaf), -1), reduction="none").sum(dim=1)
        (loss * weight).sum().backward()
        return loss.detach()


class CausalPeftLoop(PeftLoop):
    """PEFT's prompt tuning of a decoder-only model: rows [text; label], padded to the longest of their task."""

    task_type = "CAUSAL_LM"

    def collated(self, task: TokenBatch) -> dict[str, Tensor]:
        rows = [torch.cat(pair) for pair in zip(task.inputs, task.targets, strict=True)]
        labels = [
            torch.cat([torch.full_like(text, IGNORED), label])
            for text, label in zip(task.inputs, task.targets, strict=True)
        ]
        return {
            "input_ids": pad_sequence(rows, batch_first=True),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
        }


if __name__ == "__main__":
    raise SystemExit(main())
