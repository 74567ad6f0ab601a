"""Passes get what they read one ahead, in their order, and nothing is sent while one runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plain import random_batch, random_prompts, tiny_backbone
from test_device import TESTS, needs_python_backend

from bmtpt.backbone.device.plan import ACCELERATOR, Plan
from bmtpt.backbone.device.prefetch import one_ahead, sent
from bmtpt.backbone.encoder_decoder.engine import PassEngine
from bmtpt.backbone.fast_t5.engine import PackedT5Engine
from bmtpt.backbone.passes.packing import Pass
from bmtpt.backbone.passes.run import run_passes
from bmtpt.types import TokenBatch

SIZES = st.lists(st.integers(1, 5), max_size=8)


def parts_of(sizes: list[int], prompts: int) -> list[Pass]:
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [Pass(slice(0, prompts), list(range(a, a + n))) for a, n in zip(starts, sizes, strict=True)]


@given(SIZES, st.integers(1, 3), st.integers(1, 6))
def test_every_pair_runs_once_with_its_own_values_also_where_passes_are_halved(
    sizes: list[int], prompts: int, room: int
) -> None:
    parts, values = parts_of(sizes, prompts), [7 * row for row in range(sum(sizes))]
    seen: list[tuple[int, int, int]] = []

    def load(part: Pass) -> list[int]:
        return [values[row] for row in part.rows]

    def one_pass(part: Pass, loaded: list[int]) -> None:
        if part.halves() and len(part.rows) * prompts > room:
            raise MemoryError
        seen.extend((m, *pair) for pair in zip(part.rows, loaded, strict=True) for m in range(3)[part.prompts])

    run_passes(parts, one_ahead(parts, load, one_pass), lambda: None)
    assert seen == sorted(seen, key=lambda each: each[1])
    assert sorted(seen) == sorted((m, row, values[row]) for m in range(prompts) for row in range(len(values)))


def test_each_pass_is_loaded_before_the_one_in_front_of_it_runs_and_none_twice() -> None:
    parts, events = parts_of([1, 1, 1], 1), []
    run = one_ahead(
        parts, lambda part: events.append(f"load {part.rows[0]}"), lambda part, _: events.append(f"run {part.rows[0]}")
    )
    run_passes(parts, run, lambda: None)
    assert events == ["load 0", "load 1", "run 0", "load 2", "run 1", "run 2"]


def test_a_pass_for_which_nothing_could_be_loaded_ahead_is_loaded_at_its_turn() -> None:
    parts, tries, ran = parts_of([2, 2], 1), [], []

    def load(part: Pass) -> list[int]:
        tries.append(part.rows)
        if len(tries) == 2:  # the second pass, while the first waits
            raise MemoryError
        return part.rows

    run_passes(parts, one_ahead(parts, load, lambda _, loaded: ran.extend(loaded)), lambda: None)
    assert ran == [0, 1, 2, 3]


@pytest.mark.parametrize("plan", [Plan(), ACCELERATOR], ids=["cpu", "accelerator"])
def test_in_many_passes_each_example_keeps_its_loss_and_its_weight(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, prompts = PackedT5Engine(tiny_backbone("v1.1"), plan), random_prompts(2, 4)
    batch, weights = random_batch([9, 40, 3, 90, 12], [2, 5, 1, 3, 4]), torch.tensor([1.0, 0.2, 3.0, 0.0, 0.7])
    monkeypatch.setattr(PassEngine, "token_budget", 130)  # several passes, in another order than the examples
    losses, gradient = engine.gradients(prompts, batch, weights)
    single = [
        engine.gradients(prompts, TokenBatch([batch.inputs[n]], [batch.targets[n]]), weights[[n]]) for n in range(5)
    ]
    torch.testing.assert_close(losses, torch.cat([loss for loss, _ in single], dim=1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, sum(pulled for _, pulled in single), rtol=1e-4, atol=1e-5)


@needs_python_backend
@pytest.mark.parametrize("kind", ["shared", "own"])
def test_nothing_is_sent_to_another_device_inside_a_pass(kind: str) -> None:
    command = [sys.executable, str(Path(TESTS) / "sends_on_far_device.py"), kind]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2_000:]
    found = json.loads(done.stdout)
    assert found["inside"] == 0
    assert found["outside"] > 10
    assert max(found["errors"]) < 1e-5


def test_what_goes_to_a_gpu_is_pinned_and_sent_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: calls.append("pinned") or self)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *given, **options: calls.append((given, options)) or self)
    sent(torch.arange(3), torch.device("cuda"))
    assert calls == ["pinned", ((torch.device("cuda"),), {"non_blocking": True})]
    calls.clear()
    sent(torch.arange(3), torch.device("cpu"))
    assert "pinned" not in calls
