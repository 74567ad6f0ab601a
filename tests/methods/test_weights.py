"""Weight tuning: what is trained, that nothing else is, and that a step is torch's own."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bmtpt.backbone import Backbone
from bmtpt.backbone.encoder_decoder.engine import PassEngine
from bmtpt.backbone.encoder_decoder.tuned import TunedEngine
from bmtpt.errors import SettingsError
from bmtpt.inference.score import make_scorer
from bmtpt.methods.registry import get_method
from bmtpt.methods.target import TargetRows
from bmtpt.methods.weights import AdapterOptions, LoraOptions, TargetWeights, trainable_copy
from bmtpt.settings import AdaptSettings
from bmtpt.tasks.tokens import tokenise
from bmtpt.train.loop import Loop
from bmtpt.types import TokenBatch

METHODS = ("full", "bitfit", "lora", "adapter")
SMALL = {
    **{name: get_method(name).options() for name in METHODS},
    "lora": LoraOptions(rank=3),
    "adapter": AdapterOptions(reduction=8),
}
RATES = {"full": 3e-3, "bitfit": 0.03, "lora": 0.03, "adapter": 0.03}
# Of the tiny T5 (tests/conftest.py): D = 24, inner width 2 · 8, gated feed-forward of 40, 2 + 2 layers, V = 160.
D, INNER, FF, LAYERS, V = 24, 16, 40, 2, 160


@pytest.fixture(scope="module")
def rows(tiny_backbone, tiny_tasks) -> dict[str, TargetRows]:
    data = tiny_tasks["pairs"]
    train, select = (tokenise(tiny_backbone, part, 64) for part in (data.train, data.select))
    return {"pairs": TargetRows(train, select, make_scorer(tiny_backbone, data.task))}


@pytest.fixture
def backbone(tiny_backbone) -> Iterator[Backbone]:
    """The shared frozen model, whose weights must be the same bits after the test."""
    before = {name: weight.clone() for name, weight in tiny_backbone.model.state_dict().items()}
    yield tiny_backbone
    after = tiny_backbone.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())
    assert not any(weight.requires_grad for weight in tiny_backbone.model.parameters())


def tuned_engine(backbone: Backbone, method: str, seed: int = 0, options: Any = None) -> TunedEngine:
    copied = trainable_copy(backbone.model, method, options or SMALL[method], seed)
    return TunedEngine(replace(backbone, model=copied), backbone.dtype)


def stage(backbone: Backbone, rows: Any, method: str, **changes: Any) -> TargetWeights:
    values = {"steps": 6, "batch_size": 8, "evaluate_every": 6, "learning_rate": RATES[method], **changes}
    return TargetWeights(tuned_engine(backbone, method), rows, AdaptSettings.model_validate(values))


def trained(model: Any) -> dict[str, Tensor]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def plain_losses(model: Any, batch: TokenBatch) -> Tensor:
    """Return Hugging Face's own loss of each example, alone and without padding."""
    found = []
    for ids, labels in zip(batch.inputs, batch.targets, strict=True):
        logits = model(input_ids=ids[None], labels=labels[None]).logits[0]
        found.append(F.cross_entropy(logits, labels, reduction="sum"))
    return torch.stack(found)


def t5_base() -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12, vocab_size=32128)
    with torch.device("meta"):
        return T5ForConditionalGeneration(config).requires_grad_(False)


def norms(layers: int = LAYERS) -> int:
    return 2 * layers + 1 + 3 * layers + 1


def closed_form(method: str) -> int:
    attentions = 3 * LAYERS  # the encoder's, the decoder's own and its attention to the encoder
    if method == "full":
        buckets = 2 * 32 * 2  # two stacks, 32 relative positions, 2 heads
        return 2 * V * D + attentions * 4 * D * INNER + 2 * LAYERS * 3 * D * FF + norms() * D + buckets
    if method == "bitfit":
        return attentions * (3 * INNER + D) + 2 * LAYERS * (2 * FF + D) + V + norms() * D
    if method == "lora":
        return attentions * 2 * 3 * (D + INNER)
    width = D // 8
    return 2 * 2 * LAYERS * (2 * D * width + width + D) + norms() * D


@pytest.mark.parametrize("method", METHODS)
def test_what_is_trained_has_the_closed_forms_size_and_is_fp32(backbone, rows, method):
    made = stage(backbone, rows, method)
    assert made.trained_parameters() == closed_form(method)
    assert {weight.dtype for weight in made.weights} == {torch.float32}
    assert [len(tensor) for tensor in made.tensors] == [1] * len(made.weights)


@pytest.mark.parametrize(
    ("method", "count"), [("full", 222_903_552), ("bitfit", 282_496), ("lora", 884_736), ("adapter", 1_855_104)]
)
def test_the_sizes_on_t5_base_are_those_of_the_literature_where_it_is_ours_too(method, count):
    """TASKS.md prints 220M, 280K and 1.9M. Its LoRA is another (3.8M); ours has 72 maps of 8 · (768 + 768)."""
    copied = trainable_copy(t5_base(), method, get_method(method).options(), seed=0)
    assert sum(weight.numel() for weight in trained(copied).values()) == count


def test_without_a_prompt_the_engine_gives_the_models_own_likelihoods(backbone, rows, tiny_hf):
    batch, engine = rows["pairs"].train.batch, TunedEngine(backbone, torch.float32)
    torch.testing.assert_close(engine.losses(engine.no_prompt, batch)[0], plain_losses(tiny_hf, batch))


@pytest.mark.parametrize("method", METHODS)
def test_at_step_0_every_variant_is_the_frozen_model(backbone, rows, method):
    batch, frozen, tuned = (
        rows["pairs"].train.batch,
        TunedEngine(backbone, torch.float32),
        tuned_engine(backbone, method),
    )
    before = frozen.losses(frozen.no_prompt, batch)
    torch.testing.assert_close(tuned.losses(tuned.no_prompt, batch), before, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_training_lowers_the_loss_and_moves_every_trained_tensor(backbone, rows, method):
    made = stage(backbone, rows, method, steps=12)
    before = [tensor.detach().clone() for tensor in made.tensors]
    batch = rows["pairs"].train.batch
    first = made.engine.losses(made.no_prompt, batch).mean()
    Loop(made, made.settings).run()
    assert made.engine.losses(made.no_prompt, batch).mean() < first - 0.1
    assert all(not torch.equal(old, new) for old, new in zip(before, made.tensors, strict=True))


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_steps_of_full_fine_tuning_are_plain_torch_steps(backbone, rows, tiny_hf, optimiser, monkeypatch):
    monkeypatch.setattr(PassEngine, "token_budget", 40)  # several passes a step
    wide = replace(backbone, model=copy.deepcopy(backbone.model).double())
    settings = AdaptSettings(
        steps=3, batch_size=5, evaluate_every=3, learning_rate=1e-3, optimiser=optimiser, schedule="constant"
    )
    made = TargetWeights(tuned_engine(wide, "full"), rows, settings)
    drawn = [made.draw(step)["pairs"] for step in range(3)]
    Loop(made, settings).run()

    model = copy.deepcopy(tiny_hf).double().requires_grad_(True)
    kind = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[optimiser]
    plain = kind(model.parameters(), lr=1e-3, weight_decay=1e-5)
    for batch in drawn:
        ids = pad_sequence(list(batch.inputs), batch_first=True)
        labels = pad_sequence(list(batch.targets), batch_first=True, padding_value=-100)
        mask = pad_sequence([torch.ones_like(row) for row in batch.inputs], batch_first=True)
        logits = model(input_ids=ids, attention_mask=mask, labels=labels).logits
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") / len(batch)
        plain.zero_grad()
        loss.backward()
        plain.step()
    ours, theirs = dict(made.engine.backbone.model.named_parameters()), dict(model.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=1e-6, atol=1e-9)


def test_a_pass_that_memory_runs_out_in_midway_adds_nothing_to_the_weights_gradients(backbone, rows):
    engine, batch = tuned_engine(backbone, "full"), rows["pairs"].train.batch
    weights, share = list(engine.backbone.model.parameters()), torch.ones(len(batch))
    engine.gradients(engine.no_prompt, batch, share)
    wanted = [weight.grad for weight in weights]
    for weight in weights:
        weight.grad = None
    seen = []

    def small(gradient):  # in the backward pass, when the decoder's weights have their gradients
        seen.append(len(gradient))
        if len(gradient) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    def watch(module, inputs, output):
        output.last_hidden_state.register_hook(small)

    engine.backbone.model.encoder.register_forward_hook(watch)
    engine.gradients(engine.no_prompt, batch, share)
    assert max(seen) > 2
    for weight, gradient in zip(weights, wanted, strict=True):
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-4, atol=1e-5)


def test_the_best_step_is_kept_and_not_the_last(backbone, rows):
    made = stage(backbone, rows, "bitfit", steps=4, evaluate_every=2, learning_rate=5.0, selection="loss")
    start = made.engine.losses(made.no_prompt, rows["pairs"].select.batch)
    outcome = Loop(made, made.settings).run()
    assert outcome.state.best_step == [0]  # so high a learning rate only harms
    assert not torch.equal(made.engine.losses(made.no_prompt, rows["pairs"].select.batch), start)
    made.keep(outcome.tensors)
    assert torch.equal(made.engine.losses(made.no_prompt, rows["pairs"].select.batch), start)


@pytest.mark.parametrize("method", METHODS)
def test_one_seed_gives_the_same_bits_and_leaves_torchs_generator_alone(backbone, rows, method):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, second = stage(backbone, rows, method), stage(backbone, rows, method)
    for made in (first, second):
        Loop(made, made.settings).run()
    assert all(torch.equal(a, b) for a, b in zip(first.tensors, second.tensors, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("method", ["lora", "adapter"])
def test_another_seed_starts_elsewhere(backbone, method):
    one, two = (trained(tuned_engine(backbone, method, seed=seed).backbone.model) for seed in (0, 1))
    assert any(not torch.equal(one[name], two[name]) for name in one)


def test_a_bias_stands_behind_every_linear_map_and_every_norm(backbone):
    model = trainable_copy(backbone.model, "bitfit", SMALL["bitfit"], seed=0)
    with torch.no_grad():
        for bias in trained(model).values():
            bias.normal_(generator=torch.Generator().manual_seed(len(bias)))
    assert {name.rpartition(".")[2] for name in trained(model)} == {"bias"}
    plain = backbone.model.encoder.block[0].layer[0]
    ours, x = model.encoder.block[0].layer[0], torch.randn(2, 3, D)
    torch.testing.assert_close(ours.layer_norm(x), plain.layer_norm(x) + ours.layer_norm.bias)
    torch.testing.assert_close(ours.SelfAttention.q(x), plain.SelfAttention.q(x) + ours.SelfAttention.q.bias)
    torch.testing.assert_close(model.lm_head(x), backbone.model.lm_head(x) + model.lm_head.bias)


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_an_adapter_follows_self_attention_and_feed_forward(backbone, stack):
    model = trainable_copy(backbone.model, "adapter", SMALL["adapter"], seed=0)
    x = torch.randn(2, 3, D)
    for block, plain in zip(getattr(model, stack).block, getattr(backbone.model, stack).block, strict=True):
        for layer, name, last in ((0, "SelfAttention", "o"), (-1, "DenseReluDense", "wo")):
            inside = getattr(block.layer[layer], name)
            adapter = getattr(inside, last).adapter
            with torch.no_grad():
                adapter.up.weight.normal_()
                adapter.up.bias.normal_()
            extra = {} if name == "DenseReluDense" else {"mask": None}
            y = getattr(plain.layer[layer], name)(x, **extra)
            found = inside(x, **extra)
            y, found = (each[0] if isinstance(each, tuple) else each for each in (y, found))
            h = F.gelu(y @ adapter.down.weight.T + adapter.down.bias)
            torch.testing.assert_close(found, y + h @ adapter.up.weight.T + adapter.up.bias)


@pytest.mark.parametrize("method", METHODS)
def test_over_a_bfloat16_model_the_trained_weights_are_fp32_and_everything_runs(tiny_t5_folder, rows, method):
    backbone = Backbone.from_pretrained(str(tiny_t5_folder), precision="bfloat16", device="cpu")
    made = stage(backbone, rows, method, steps=2, evaluate_every=1)
    batch, frozen = rows["pairs"].train.batch, TunedEngine(backbone, torch.bfloat16)
    before = made.engine.losses(made.no_prompt, batch)
    torch.testing.assert_close(before, frozen.losses(frozen.no_prompt, batch), rtol=0.05, atol=0.05)
    Loop(made, made.settings).run()
    assert {weight.dtype for weight in made.weights} == {torch.float32}
    assert {weight.dtype for weight in backbone.model.parameters()} == {torch.bfloat16}
    assert len(made.engine.generate(made.no_prompt, batch.inputs[:2], 3)[0]) == 2


def test_modules_that_the_model_does_not_have_are_refused(backbone):
    wrong = LoraOptions(modules=("query",))
    with pytest.raises(SettingsError, match="LoRA cannot be put on the modules query"):
        trainable_copy(backbone.model, "lora", wrong, seed=0)


def test_without_peft_the_sentence_says_how_to_get_it(backbone, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(SettingsError, match=r"pip install 'bmtpt\[peft\]'"):
        trainable_copy(backbone.model, "lora", SMALL["lora"], seed=0)
