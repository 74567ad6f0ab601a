"""A backbone keeps one engine, and takes a model that is loaded already."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from plain import plain_losses, random_batch, random_prompts, relative

from bmtpt.backbone import Backbone
from bmtpt.backbone.encoder_decoder.generic import HuggingFaceEngine
from bmtpt.backbone.model.fingerprint import fingerprint_v1
from bmtpt.errors import BackboneError


@pytest.fixture
def model(tiny_t5_folder: Path) -> Any:
    from transformers import T5ForConditionalGeneration

    return T5ForConditionalGeneration.from_pretrained(tiny_t5_folder, attn_implementation="eager")


def test_the_engine_is_built_once_and_kept(tiny_backbone: Backbone) -> None:
    assert tiny_backbone.engine is tiny_backbone.engine
    assert tiny_backbone.identity["engine"] == tiny_backbone.engine.name == "packed"
    assert replace(tiny_backbone, engine_name="generic").identity["engine"] == "generic"


def test_a_loaded_model_is_frozen_in_place_and_run_by_its_own_forward(model: Any, tiny_backbone: Backbone) -> None:
    model.train()
    backbone = Backbone.from_model(model, tiny_backbone.tokenizer)
    assert backbone.model is model
    assert isinstance(backbone.engine, HuggingFaceEngine)
    assert not any(weight.requires_grad for weight in model.parameters())
    prompts, batch = random_prompts(2, 3), random_batch([4, 9], [2, 1])
    model.train()  # what a caller may do later: dropout must stay off
    assert relative(backbone.engine.losses(prompts, batch), plain_losses(tiny_backbone, prompts, batch)) < 1e-5


def test_a_loaded_model_has_the_fingerprint_of_its_state(model: Any, tiny_backbone: Backbone) -> None:
    first, second = (Backbone.from_model(each, tiny_backbone.tokenizer) for each in (model, copy.deepcopy(model)))
    assert first.fingerprint == second.fingerprint
    second.model.lm_head.weight[3, 2] += 1
    assert Backbone.from_model(second.model, tiny_backbone.tokenizer).fingerprint != first.fingerprint


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_version_1_fingerprint_is_of_the_files_fp32_weights_in_any_precision(
    precision: Any, model: Any, tiny_t5_folder: Path
) -> None:
    loaded = Backbone.from_pretrained(tiny_t5_folder, precision=precision)
    assert loaded.matches(fingerprint_v1(model))
    assert loaded.matches(loaded.fingerprint)
    assert not loaded.matches("0" * 64)


def test_a_model_with_lora_weights_in_it_is_another_backbone(model: Any, tiny_backbone: Backbone) -> None:
    peft = pytest.importorskip("peft")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = peft.LoraConfig(r=2, target_modules=["q", "v"], init_lora_weights=False)
        merged = peft.get_peft_model(model, config).merge_and_unload()
    backbone = Backbone.from_model(merged, tiny_backbone.tokenizer, name="merged")
    assert backbone.fingerprint != tiny_backbone.fingerprint
    losses, gradient = backbone.engine.gradients(random_prompts(1, 3), random_batch([5], [2]), torch.ones(1))
    assert torch.isfinite(gradient).all()
    assert losses.shape == (1, 1)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("google/flan-t5-small", r"not the name 'google/flan-t5-small'; Backbone.from_pretrained loads one by name"),
        (3, "not an object of type int"),
        (torch.nn.Linear(2, 2), "type Linear"),
    ],
)
def test_what_is_no_model_is_refused_by_its_kind(given: Any, sentence: str, tiny_backbone: Backbone) -> None:
    with pytest.raises(BackboneError, match=sentence):
        Backbone.from_model(given, tiny_backbone.tokenizer)


def test_a_model_without_a_head_is_refused(tiny_t5_folder: Path, tiny_backbone: Backbone) -> None:
    from transformers import T5Model

    with pytest.raises(BackboneError, match="T5Model, which has no head that predicts tokens"):
        Backbone.from_model(T5Model.from_pretrained(tiny_t5_folder), tiny_backbone.tokenizer)


def test_a_model_through_which_no_prompt_can_be_trained_is_refused(model: Any, tiny_backbone: Backbone) -> None:
    from peft import PromptTuningConfig, TaskType, get_peft_model

    class Cut(torch.nn.Module):  # as a quantised layer that has no derivative
        def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            return hidden.detach()

    prompted = get_peft_model(model, PromptTuningConfig(task_type=TaskType.SEQ_2_SEQ_LM, num_virtual_tokens=2))
    with pytest.raises(BackboneError, match="has a soft prompt of its own"):
        Backbone.from_model(prompted, tiny_backbone.tokenizer)
    model.encoder.final_layer_norm = Cut()
    with pytest.raises(BackboneError, match="no gradient reaches its input embeddings"):
        Backbone.from_model(model, tiny_backbone.tokenizer)
    with pytest.raises(BackboneError, match="takes as name a text"):
        Backbone.from_model(model, tiny_backbone.tokenizer, name=None)  # type: ignore[arg-type]


def test_what_is_no_tokenizer_is_refused(model: Any) -> None:
    with pytest.raises(BackboneError, match="takes the model's tokenizer, not an object of type str"):
        Backbone.from_model(model, "tokenizer")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"engine": "paked"}, "unknown engine 'paked'; did you mean 'packed'"),
        ({"memory": "less"}, "unknown memory 'less'; choose from keep, recompute"),
        ({"engine": "generic", "memory": "recompute"}, "memory=recompute needs the packed engine"),
        ({"token_budget": 0}, "token_budget is a number of tokens, 1 or more, not 0"),
        ({"reduce": "quick"}, "unknown reduce 'quick'; choose from exact, fast"),
        ({"shard_weights": True}, "over the ranks of torchrun, and this is one process"),
        ({"device": 0}, "device is a name such as 'cpu'"),
    ],
)
def test_a_wrong_choice_is_refused_when_the_model_is_loaded(
    options: dict[str, Any], sentence: str, tiny_t5_folder: Path
) -> None:
    with pytest.raises(BackboneError, match=sentence):
        Backbone.from_pretrained(tiny_t5_folder, **options)


def test_a_model_given_by_name_must_be_named_by_text(model: Any) -> None:
    with pytest.raises(BackboneError, match=r"type T5ForConditionalGeneration; Backbone.from_model takes"):
        Backbone.from_pretrained(model)
