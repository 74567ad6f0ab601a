"""One step's losses and gradient, computed in the ways that people do it, and in ours.

Every variant is called with the particles and returns task losses [M, K] and ∂/∂θ Σ_k L_k, [M, P, D], with L_k the mean
cross-entropy per label token over task k's examples: the same quantity, so that their gradients can be compared.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bmtpt.backbone import Backbone
from bmtpt.backbone.engine import Engine
from bmtpt.types import TokenBatch
from cases import LONGEST, Case
from shapes import as_backbone

IGNORED = -100
NAMES = {
    "loop_unfrozen": "(a) loop over particles × tasks, eager, padded to 256, weights not frozen",
    "loop_frozen": "(b) the same, frozen",
    "peft": "(c) PEFT prompt tuning, looped over particles × tasks",
    "batched": "(d) Hugging Face batched, length-sorted, SDPA, all particles",
    "generic": "ours, engine=generic",
    "packed": "ours, engine=packed",
}
OURS = ("generic", "packed")
RECOMPUTE = "packed_recompute"
"""The packed engine with `memory="recompute"`."""
SLOW = ("loop_unfrozen", "loop_frozen", "peft")
TOKEN_BUDGETS = {"cpu": 4_096, "cuda": 65_536}
"""Most padded tokens in one pass of the batched baseline."""


class Variant(Protocol):
    def __call__(self, particles: Tensor) -> tuple[Tensor, Tensor]: ...


def build(name: str, model: Any, case: Case, dtype: torch.dtype) -> Variant:
    """Return a variant that runs a copy of an fp32 model in `dtype` where the case is."""
    own = copy.deepcopy(model).to(case.particles.device, dtype)
    if name in (*OURS, RECOMPUTE):
        return OurEngine(_warmed(_engine(name, as_backbone(own, case.size)), case), case)
    if name == "peft":
        return PeftLoop(_with_sdpa(own), case)
    if name == "batched":
        return Batched(_with_sdpa(own), case, by_length(case, TOKEN_BUDGETS[case.particles.device.type]))
    tasks = [collated(task.inputs, task.targets, LONGEST).to(case.particles.device) for task in case.tasks]
    return Loop(own.requires_grad_(name == "loop_unfrozen"), tasks)


def _engine(name: str, backbone: Backbone) -> Engine:
    if name == "generic":
        return replace(backbone, engine_name="generic").engine
    return replace(backbone, engine_name="packed", memory="recompute" if name == RECOMPUTE else "keep").engine


def reference(model: Any, case: Case) -> Variant:
    """Return the truth: Hugging Face's eager model in fp32, one example at a time, without padding."""
    own = copy.deepcopy(model).to(case.particles.device, torch.float32)
    return Batched(own, case, by_example(case))


@dataclass(frozen=True)
class OurEngine:
    engine: Engine
    case: Case

    def __call__(self, particles: Tensor) -> tuple[Tensor, Tensor]:
        losses, gradient = self.engine.gradients(particles, self.case.rows, self.case.weights)
        return task_means(losses, self.case), gradient


@dataclass(frozen=True)
class Collated:
    """Rows padded to one length, made before the clock runs as by a data loader: ids and mask [n, L], labels [n, T]."""

    ids: Tensor
    mask: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> Collated:
        return Collated(self.ids.to(device), self.mask.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Loop:
    """One pass per particle and task with Hugging Face's own loss."""

    model: Any
    tasks: Sequence[Collated]

    def __call__(self, particles: Tensor) -> tuple[Tensor, Tensor]:
        leaf = particles.detach().clone().requires_grad_(True)
        losses = [[self._backward(prompt, task) for task in self.tasks] for prompt in leaf]
        self.model.zero_grad()  # of the weights that are not frozen
        return torch.stack([torch.stack(row) for row in losses]), leaf.grad

    def _backward(self, prompt: Tensor, task: Collated) -> Tensor:
        text = self.model.get_input_embeddings()(task.ids)
        copies = prompt.to(text.dtype).expand(len(text), -1, -1)
        mask = F.pad(task.mask, (len(prompt), 0), value=1)
        loss = self.model(inputs_embeds=torch.cat([copies, text], dim=1), attention_mask=mask, labels=task.labels).loss
        loss.backward()
        return loss.detach().float()


class PeftLoop:
    """PEFT's own prompt-tuning model as a trainer feeds it: one batch per task, padded to its longest text."""

    task_type = "SEQ_2_SEQ_LM"

    def __init__(self, model: Any, case: Case) -> None:
        from peft import PromptTuningConfig, get_peft_model

        config = PromptTuningConfig(
            task_type=self.task_type, num_virtual_tokens=case.particles.shape[1], num_transformer_submodules=1
        )
        self.model = get_peft_model(model, config)
        self.prompt = self.model.prompt_encoder["default"].embedding.weight
        device = case.particles.device
        self.tasks = [{key: ids.to(device) for key, ids in self.collated(task).items()} for task in case.tasks]

    def collated(self, task: TokenBatch) -> dict[str, Tensor]:
        rows = collated(task.inputs, task.targets)
        return {"input_ids": rows.ids, "attention_mask": rows.mask, "labels": rows.labels}

    def __call__(self, particles: Tensor) -> tuple[Tensor, Tensor]:
        losses, gradients = zip(*(self._of_particle(particle) for particle in particles), strict=True)
        return torch.stack(losses), torch.stack(gradients)

    def _of_particle(self, particle: Tensor) -> tuple[Tensor, Tensor]:
        self.prompt.data.copy_(particle)
        self.prompt.grad = None
        losses = torch.stack([self._backward(task) for task in self.tasks])
        return losses, self.prompt.grad.float()

    def _backward(self, task: dict[str, Tensor]) -> Tensor:
        loss = self.model(**task).loss
        loss.backward()
        return loss.detach().float()


Pairs = list[tuple[int, int]]
"""(example, particle) of each row of a pass."""


class Batched:
    """Passes over any rows (example × particle), padded to the longest of each pass."""

    def __init__(self, model: Any, case: Case, passes: Sequence[Pairs]) -> None:
        self.model = model
        self.case = case
        self.passes = [self._pass(pairs) for pairs in passes]

    def _pass(self, pairs: Pairs) -> tuple[Tensor, Tensor, Collated]:
        device, rows = self.case.particles.device, self.case.rows
        n, m = (torch.tensor(column, device=device) for column in zip(*pairs, strict=True))
        return n, m, collated([rows.inputs[i] for i, _ in pairs], [rows.targets[i] for i, _ in pairs]).to(device)

    def __call__(self, particles: Tensor) -> tuple[Tensor, Tensor]:
        leaf = particles.detach().clone().requires_grad_(True)
        losses = leaf.new_empty(len(particles), len(self.case.rows))
        for n, m, rows in self.passes:
            loss = self._losses(leaf[m], rows)
            (loss * self.case.weights[n]).sum().backward()
            losses[m, n] = loss.detach()
        return task_means(losses, self.case), leaf.grad

    def _losses(self, prompts: Tensor, rows: Collated) -> Tensor:
        text = self.model.get_input_embeddings()(rows.ids)
        logits = self.model(
            inputs_embeds=torch.cat([prompts.to(text.dtype), text], dim=1),
            attention_mask=F.pad(rows.mask, (prompts.shape[1], 0), value=1),
            labels=rows.labels,
        ).logits
        loss = F.cross_entropy(logits.float().transpose(1, 2), rows.labels, ignore_index=IGNORED, reduction="none")
        return loss.sum(dim=1)


def by_example(case: Case) -> list[Pairs]:
    """One pass per example: all its rows have one length."""
    return [[(n, m) for m in range(len(case.particles))] for n in range(len(case.rows))]


def by_length(case: Case, budget: int) -> list[Pairs]:
    """Sort all rows by length and cut them into passes of at most `budget` padded tokens (or one row)."""
    P = case.particles.shape[1]
    lengths = [P + len(ids) for ids in case.rows.inputs]
    passes: list[Pairs] = [[]]
    for pair in sorted((pair for pairs in by_example(case) for pair in pairs), key=lambda pair: lengths[pair[0]]):
        if passes[-1] and (len(passes[-1]) + 1) * lengths[pair[0]] > budget:
            passes.append([])
        passes[-1].append(pair)
    return passes


def collated(inputs: Sequence[Tensor], targets: Sequence[Tensor], length: int = 0) -> Collated:
    """Pad rows to their longest text, or to `length` if that is more."""
    ids = pad_sequence(list(inputs), batch_first=True, padding_value=0)
    mask = pad_sequence([torch.ones_like(row) for row in inputs], batch_first=True, padding_value=0)
    missing = (0, max(0, length - ids.shape[1]))
    labels = pad_sequence(list(targets), batch_first=True, padding_value=IGNORED)
    return Collated(F.pad(ids, missing), F.pad(mask, missing), labels)


def task_means(losses: Tensor, case: Case) -> Tensor:
    """[M, N] → [M, K]: each task's mean loss per label token."""
    weighted = (losses * case.weights).split([len(task) for task in case.tasks], dim=1)
    return torch.stack([part.sum(dim=1) for part in weighted], dim=1)


def _with_sdpa(model: Any) -> Any:
    model.set_attn_implementation("sdpa")
    return model


def _warmed(engine: Engine, case: Case) -> Engine:
    """Have an engine build what it builds once, so that no measured call pays for it."""
    row = TokenBatch(case.rows.inputs[:1], case.rows.targets[:1])
    engine.gradients(case.particles[:1, :1], row, case.weights[:1])
    return engine
