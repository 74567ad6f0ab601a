"""Both engines for decoder-only models against the model on one example and one prompt, without padding or cache."""

from __future__ import annotations

import inspect
import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from causal_plain import (
    CONFIGS,
    FULL_ATTENTION,
    VOCABULARY,
    plain_gradients,
    plain_greedy,
    plain_losses,
    tiny_causal,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from plain import random_batch, random_prompts, relative
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bmtpt.backbone import Backbone
from bmtpt.backbone.decoder_only.engine import CausalPassEngine
from bmtpt.backbone.decoder_only.generic import HuggingFaceCausalEngine
from bmtpt.backbone.decoder_only.shared_prompt import CausalEngine, causal_supports
from bmtpt.backbone.engine import Query
from bmtpt.errors import BackboneError
from bmtpt.types import TokenBatch

EVERY = [(name, CausalEngine) for name in FULL_ATTENTION] + [(name, HuggingFaceCausalEngine) for name in CONFIGS]
every_engine = pytest.mark.parametrize(("family", "engine"), EVERY)


@every_engine
def test_losses_and_gradients_over_passes_are_those_of_single_unpadded_examples(
    family: str, engine: type[CausalPassEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CausalPassEngine, "token_budget", 120)  # several passes, some of them padded
    backbone, prompts, weights = tiny_causal(family), random_prompts(2, 5), torch.tensor([1.0, 0.2, 3.0, 0.7, 1.5])
    batch = random_batch([4, 30, 17, 19, 1], [2, 1, 5, 3, 1])
    losses, gradient = engine(backbone).gradients(prompts, batch, weights)
    true_losses, truth = plain_gradients(backbone, prompts, batch, weights)
    assert relative(losses, true_losses) < 1e-5
    assert relative(gradient, truth) < 1e-5
    assert relative(engine(backbone).losses(prompts, batch), true_losses) < 1e-5


@every_engine
def test_a_prompt_without_rows_is_the_model_itself(family: str, engine: type[CausalPassEngine]) -> None:
    backbone, batch = tiny_causal(family), random_batch([6, 2, 9], [3, 1, 2])
    nothing = engine(backbone).no_prompt
    assert nothing.shape == (1, 0, 24)
    found = engine(backbone).readings(nothing, batch.inputs, batch.targets)
    each = [plain_losses(backbone, nothing, TokenBatch(batch.inputs, [answer] * 3)) for answer in batch.targets]
    assert relative(-found.log_likelihoods, torch.stack(each, dim=2)) < 1e-5
    for ids, state in zip(batch.inputs, found.states[0], strict=True):
        read = backbone.model(input_ids=ids[None], output_hidden_states=True, use_cache=False).hidden_states[-1][0, -1]
        if family != "opt":  # its head reads what a last norm makes of it
            assert relative(state, read) < 1e-5


@every_engine
def test_answers_are_ranked_by_the_losses_of_single_unpadded_examples(
    family: str, engine: type[CausalPassEngine]
) -> None:
    backbone, prompts = tiny_causal(family), random_prompts(3, 4)
    batch = random_batch([6, 2, 9], [3, 1, 2])
    found = engine(backbone).answer_log_likelihoods(prompts, batch.inputs, batch.targets)
    each = [plain_losses(backbone, prompts, TokenBatch(batch.inputs, [answer] * 3)) for answer in batch.targets]
    assert relative(found, -torch.stack(each, dim=2)) < 1e-5


@every_engine
def test_generation_writes_the_likeliest_token_of_the_whole_row_read_anew(
    family: str, engine: type[CausalPassEngine]
) -> None:
    backbone, prompts = tiny_causal(family), random_prompts(2, 4, seed=3)
    texts = random_batch([7, 1, 12, 5], [1] * 4).inputs
    # Whatever the model would write second is taken for the end, so that one row ends early.
    backbone.tokenizer.eos_token_id = int(plain_greedy(backbone, prompts[0], texts[0], 2).split()[-1])
    written = engine(backbone).generate(prompts, texts, max_new_tokens=8)
    truth = [[plain_greedy(backbone, prompt, text, 8) for text in texts] for prompt in prompts]
    ended = [[_until(row, str(backbone.tokenizer.eos_token_id)) for row in rows] for rows in written]
    assert ended == truth
    assert len({len(row.split()) for rows in truth for row in rows}) > 1


def _until(text: str, end: str) -> str:
    words = text.split()
    return " ".join(words[: words.index(end)] if end in words else words)


@pytest.mark.parametrize("engine", [CausalEngine, HuggingFaceCausalEngine])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_loss_does_not_depend_on_the_companions_or_on_their_padding(
    family: str, engine: type[CausalPassEngine]
) -> None:
    backbone, prompts = tiny_causal(family), random_prompts(2, 5)
    batch = random_batch([3, 40, 11], [1, 6, 2])
    together = engine(backbone).losses(prompts, batch)
    for n in range(3):
        alone = engine(backbone).losses(prompts[1:], TokenBatch(batch.inputs[n : n + 1], batch.targets[n : n + 1]))
        assert torch.allclose(together[1:, n : n + 1], alone, rtol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "qwen2"])
@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_in_float64_both_engines_are_exact_for_any_lengths_and_numbers_of_prompts(
    family: str, data: st.DataObject
) -> None:
    _require_exact(family, data, length=24, examples=5, label=5, M=4)


@pytest.mark.parametrize("family", ["gpt2", "qwen2"])
@settings(deadline=None, max_examples=4)
@given(data=st.data())
def test_in_float64_both_engines_are_exact_for_texts_of_up_to_512_tokens(family: str, data: st.DataObject) -> None:
    _require_exact(family, data, length=512, examples=3, label=12, M=8)


def _require_exact(family: str, data: st.DataObject, *, length: int, examples: int, label: int, M: int) -> None:
    """Compare both engines with single examples on a draw of up to these sizes."""
    lengths = data.draw(st.lists(st.integers(1, length), min_size=1, max_size=examples))
    labels = data.draw(st.lists(st.integers(1, label), min_size=len(lengths), max_size=len(lengths)))
    M, P = data.draw(st.integers(1, M)), data.draw(st.integers(1, 7))
    backbone, batch = DOUBLE[family], random_batch(lengths, labels, seed=sum(lengths))
    prompts = random_prompts(M, P, dtype=torch.float64)
    weights = torch.linspace(0.1, 2.0, len(lengths), dtype=torch.float64)
    losses, truth = plain_gradients(backbone, prompts, batch, weights)
    most = {"gpt2": 1e-10, "qwen2": 1e-6}[family]  # Qwen2's norms and rotations are fp32 in every dtype
    for engine in (CausalEngine(backbone), HuggingFaceCausalEngine(backbone)):
        found, gradient = engine.gradients(prompts, batch, weights)
        assert relative(found, losses) < most
        assert relative(gradient, truth) < most


POSITIONS = {"gpt2": {"n_positions": 1024}, "qwen2": {"max_position_embeddings": 1024}}
DOUBLE = {family: tiny_causal(family, torch.float64, **changes) for family, changes in POSITIONS.items()}


@pytest.mark.parametrize("family", POSITIONS)
@pytest.mark.parametrize(
    ("M", "lengths", "labels"), [(8, [512, 3, 130], [12, 1, 7]), (1, [1], [1]), (3, [480, 500], [2, 12])]
)
def test_in_float32_both_engines_agree_on_long_texts_with_single_examples(
    family: str, M: int, lengths: list[int], labels: list[int]
) -> None:
    backbone, prompts = tiny_causal(family, **POSITIONS[family]), random_prompts(M, 5)
    batch, weights = random_batch(lengths, labels), torch.linspace(0.1, 2.0, len(lengths))
    losses, truth = plain_gradients(backbone, prompts, batch, weights)
    for engine in (CausalEngine(backbone), HuggingFaceCausalEngine(backbone)):
        found, gradient = engine.gradients(prompts, batch, weights)
        assert relative(found, losses) < 1e-5
        assert relative(gradient, truth) < 1e-5


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_bfloat16_gradients_point_where_float32_ones_do(family: str) -> None:
    prompts, weights, batch = random_prompts(2, 5), torch.ones(4), random_batch([4, 30, 17, 9], [2, 1, 5, 3])
    _, narrow = CausalEngine(tiny_causal(family, torch.bfloat16)).gradients(prompts, batch, weights)
    _, truth = CausalEngine(tiny_causal(family)).gradients(prompts, batch, weights)
    assert narrow.dtype == torch.float32
    assert float(torch.cosine_similarity(narrow.flatten(), truth.flatten(), dim=0)) > 0.999


def test_a_prompts_rows_pass_the_layers_once_however_many_examples_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CausalPassEngine, "token_budget", 40)  # several passes
    M, P, L, T, N = 3, 6, 9, 2, 7
    prompts, batch = random_prompts(M, P), random_batch([L] * N, [T] * N)
    shared, plain = M * P + M * N * (L + T - 1), M * N * (P + L + T - 1)
    assert _tokens_through_first_layer(CausalEngine, "losses", prompts, batch) == shared
    assert _tokens_through_first_layer(CausalEngine, "gradients", prompts, batch, torch.ones(N)) == shared
    assert _tokens_through_first_layer(HuggingFaceCausalEngine, "losses", prompts, batch) == plain


def test_a_text_passes_the_layers_once_for_all_answers_and_a_written_token_once() -> None:
    M, P, L, N = 2, 6, 9, 4
    prompts, texts = random_prompts(M, P), random_batch([L] * N, [1] * N).inputs
    answers = [torch.tensor([5, 6, 1]), torch.tensor([7, 8, 1])]
    ranked = _tokens_through_first_layer(CausalEngine, "answer_log_likelihoods", prompts, texts, answers)
    assert ranked == M * P + M * N * (L + 2 * 2)
    backbone = tiny_causal("gpt2")
    backbone.tokenizer.eos_token_id = -1  # never written
    written = _tokens_through_first_layer(CausalEngine, "generate", prompts, texts, 5, backbone=backbone)
    assert written == M * P + M * N * (L + 4)


def _tokens_through_first_layer(
    engine: type[CausalPassEngine], question: str, *arguments: Any, backbone: Backbone | None = None
) -> int:
    backbone = backbone or tiny_causal("gpt2")
    seen: list[int] = []
    layer = backbone.model.transformer.h[0]
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[0] * inputs[0].shape[1]))
    getattr(engine(backbone), question)(*arguments)
    handle.remove()
    return sum(seen)


class _BatchedProducts(TorchDispatchMode):
    """Note the shapes of all batched matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[torch.Size] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.bmm.default:
            self.shapes += [each.shape for each in args]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("engine", [CausalEngine, HuggingFaceCausalEngine])
def test_the_vocabulary_is_not_copied_for_each_row(engine: type[CausalPassEngine]) -> None:
    backbone, prompts, batch = tiny_causal("gpt2"), random_prompts(2, 5), random_batch([7] * 3, [2] * 3)
    with _BatchedProducts() as seen:
        engine(backbone).gradients(prompts, batch, torch.ones(3))
    assert not [shape for shape in seen.shapes if VOCABULARY in shape]
    assert not backbone.model.get_output_embeddings()._forward_pre_hooks


def test_no_examples_give_a_gradient_of_zero() -> None:
    prompts = random_prompts(2, 3)
    losses, gradient = CausalEngine(tiny_causal("gpt2")).gradients(prompts, TokenBatch([], []), torch.ones(0))
    assert losses.shape == (2, 0)
    assert torch.equal(gradient, torch.zeros_like(prompts))


def test_more_tokens_than_positions_are_refused_with_what_to_set() -> None:
    engine = CausalEngine(tiny_causal("gpt2"))
    with pytest.raises(BackboneError, match="256 positions and prompt, text and answer need 263: set a lower max_le"):
        engine.losses(random_prompts(1, 5), random_batch([256], [2]))


def test_a_prompt_of_more_tokens_than_positions_is_refused_before_the_model_reads_it() -> None:
    backbone, prompts, texts = tiny_causal("gpt2"), random_prompts(1, 300), random_batch([2], [1])
    questions = {
        "losses": (texts,),
        "gradients": (texts, torch.ones(1)),
        "answer_log_likelihoods": (texts.inputs, texts.targets),
        "generate": (texts.inputs, 2),
    }
    for question, arguments in questions.items():
        with pytest.raises(BackboneError, match="256 positions"):
            getattr(CausalEngine(backbone), question)(prompts, *arguments)


both_engines = pytest.mark.parametrize("engine", [CausalEngine, HuggingFaceCausalEngine])


@both_engines
def test_no_examples_with_prompts_of_their_own_have_no_results(engine: type[CausalPassEngine]) -> None:
    made, prompts, none = engine(tiny_causal("gpt2")), random_prompts(2, 3)[:, None][:, :0], TokenBatch([], [])
    losses, gradient = made.gradients(prompts, none, torch.ones(0))
    assert losses.shape == made.losses(prompts, none).shape == (2, 0)
    assert gradient.shape == prompts.shape
    assert made.answer_log_likelihoods(prompts, [], [torch.tensor([1])] * 3).shape == (2, 0, 3)
    assert made.generate(prompts, [], 4) == [[], []]


@both_engines
def test_a_row_of_a_pass_counts_the_prompt_it_holds_once_for_each_answer(engine: type[CausalPassEngine]) -> None:
    M, P, L, T, N, C = 2, 50, 9, 1, 3, 4
    made, prompts, inputs = engine(tiny_causal("gpt2")), random_prompts(M, P), random_batch([L] * N, [T] * N).inputs
    row = P + L + T
    for copies, budget, examples in [(1, M * N * row, 3), (1, M * N * row - 1, 2), (C, M * C * row, 1)]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(CausalPassEngine, "token_budget", budget)
            found = made.cut(prompts, inputs, [T] * N, copies)
        assert max(len(part.rows) for part in found) == examples
        assert all(part.prompts == slice(0, M) for part in found)


@both_engines
def test_a_pass_that_memory_is_too_small_for_is_halved_with_the_same_results(engine: type[CausalPassEngine]) -> None:
    prompts, batch, weights = random_prompts(3, 4), random_batch([6, 6, 9], [2, 4, 3]), torch.tensor([1.0, 0.3, 2.0])
    answers = [torch.tensor([5]), torch.tensor([7])]

    def everything(made: CausalPassEngine) -> list[Any]:
        ranked = made.answer_log_likelihoods(prompts, batch.inputs, answers)
        return [*made.gradients(prompts, batch, weights), made.losses(prompts, batch), ranked]

    whole, small = engine(tiny_causal("gpt2")), engine(tiny_causal("gpt2"))
    refused = _room_for_two_rows(small.backbone)
    for found, truth in zip(everything(small), everything(whole), strict=True):
        torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-5)
    assert small.generate(prompts, batch.inputs, 4) == whole.generate(prompts, batch.inputs, 4)
    own = prompts.unbind()
    asked = [Query(own[i % 3], text, answers, 4) for i, text in enumerate([*batch.inputs, *batch.inputs])]
    for found, truth in zip(small.answer(asked), whole.answer(asked), strict=True):
        torch.testing.assert_close(found.log_likelihoods, truth.log_likelihoods, rtol=1e-4, atol=1e-5)
        assert found.text == truth.text
    assert {"forward", "backward"} <= set(refused)


@both_engines
def test_after_memory_ran_out_the_next_call_begins_with_smaller_passes(
    engine: type[CausalPassEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, prompts, batch = engine(tiny_causal("gpt2")), random_prompts(1, 4), random_batch([6] * 4, [2] * 4)
    monkeypatch.setattr(CausalPassEngine, "token_budget", 4 * (4 + 6 + 2))
    sizes, pass_losses = [], engine.pass_losses

    def room_for_two(self: CausalPassEngine, shared: Any, batch: TokenBatch, rows: list[int]) -> Tensor:
        sizes.append(len(rows))
        if len(rows) > 2:
            raise MemoryError
        return pass_losses(self, shared, batch, rows)

    monkeypatch.setattr(engine, "pass_losses", room_for_two)
    first, second = made.losses(prompts, batch), made.losses(prompts, batch)
    assert sizes == [4, 2, 2, 2, 2]
    torch.testing.assert_close(first, second)
    assert engine.token_budget == 48  # of other engines


def _room_for_two_rows(backbone: Backbone) -> list[str]:
    """Let memory run out in a forward or, with 3 rows, midway through a backward pass; return where it did."""
    refused: list[str] = []

    def forward(_: Any, inputs: tuple[Tensor, ...]) -> None:
        rows, tokens, _ = inputs[0].shape
        if tokens == 4:  # the prefix, which all rows of a prompt share
            return
        if rows > 3:
            refused.append("forward")
            raise torch.OutOfMemoryError("CUDA out of memory")
        if rows > 2 and inputs[0].requires_grad:
            inputs[0].register_hook(backward)

    def backward(_: Tensor) -> None:
        refused.append("backward")
        raise torch.OutOfMemoryError("CUDA out of memory")

    backbone.model.transformer.h[1].register_forward_pre_hook(forward)
    return refused


def test_a_text_without_tokens_is_refused() -> None:
    batch = TokenBatch([torch.tensor([], dtype=torch.int64)], [torch.tensor([1])])
    with pytest.raises(BackboneError, match="has no tokens"):
        CausalEngine(tiny_causal("gpt2")).losses(random_prompts(1, 5), batch)


# The choice


@pytest.mark.parametrize("family", FULL_ATTENTION)
def test_full_attention_is_run_with_a_shared_prompt(family: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "bmtpt"):
        assert type(tiny_causal(family).engine) is CausalEngine
    assert caplog.messages == ["engine=packed (each prompt's keys and values are shared by its examples)"]


def test_a_sliding_window_is_run_by_the_model_itself_and_the_log_says_why(caplog: pytest.LogCaptureFixture) -> None:
    backbone = tiny_causal("mistral with a window")
    with caplog.at_level(logging.INFO, "bmtpt"):
        assert type(backbone.engine) is HuggingFaceCausalEngine
    assert caplog.messages == [
        "engine=generic (packed cannot run this backbone: its attention has a window (sliding_window))"
    ]
    with pytest.raises(BackboneError, match=r"engine=packed cannot be used with .* window"):
        _ = replace(backbone, engine_name="packed").engine


def test_a_state_space_model_is_run_by_the_model_itself() -> None:
    from transformers import AutoModelForCausalLM, MambaConfig

    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=24, num_hidden_layers=2, state_size=4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    backbone = Backbone("mamba", model, None, "")
    assert causal_supports(backbone) == "its forward takes no past_key_values"
    prompts, batch = random_prompts(2, 3), random_batch([4, 9], [2, 1])
    losses, gradient = backbone.engine.gradients(prompts, batch, torch.ones(2))
    true_losses, truth = plain_gradients(backbone, prompts, batch, torch.ones(2))
    assert relative(losses, true_losses) < 1e-5
    assert relative(gradient, truth) < 1e-5


def test_a_model_that_accepts_positions_and_ignores_them_is_found_out() -> None:
    backbone = tiny_causal("gpt2")
    honest = backbone.model.forward

    def forward(position_ids: Tensor | None = None, **inputs: Any) -> Any:
        return honest(**inputs)

    forward.__signature__ = inspect.signature(honest)  # type: ignore[attr-defined]
    backbone.model.forward = forward
    assert causal_supports(backbone) == "sharing the prompt's keys and values changes its losses"


def test_a_model_whose_trial_raises_is_run_by_the_model_itself(caplog: pytest.LogCaptureFixture) -> None:
    backbone = tiny_causal("gpt2")
    honest = backbone.model.forward

    def forward(position_ids: Tensor | None = None, **inputs: Any) -> Any:
        if position_ids is not None:
            raise IndexError("positions of its own kind")
        return honest(**inputs)

    forward.__signature__ = inspect.signature(honest)  # type: ignore[attr-defined]
    backbone.model.forward = forward
    with caplog.at_level(logging.INFO, "bmtpt"):
        assert type(backbone.engine) is HuggingFaceCausalEngine
    assert "its trial failed (IndexError)" in caplog.text


def test_examples_with_prompts_of_their_own_get_what_they_get_alone() -> None:
    engine = CausalEngine(tiny_causal("gpt2"))
    prompts, batch = random_prompts(6, 4).view(2, 3, 4, -1), random_batch([5, 9, 2], [2, 1, 3])
    weights = torch.tensor([1.0, 0.2, 3.0])
    losses, gradient = engine.gradients(prompts, batch, weights)
    for n in range(3):
        alone = TokenBatch(batch.inputs[n : n + 1], batch.targets[n : n + 1])
        wanted, slope = engine.gradients(prompts[:, n], alone, weights[n : n + 1])
        assert torch.equal(losses[:, n : n + 1], wanted)
        assert torch.equal(gradient[:, n], slope)
        answers = engine.answer_log_likelihoods(prompts, batch.inputs, batch.targets)
        torch.testing.assert_close(
            answers[:, n : n + 1], engine.answer_log_likelihoods(prompts[:, n], alone.inputs, batch.targets)
        )
    assert torch.equal(engine.losses(prompts, batch), losses)
