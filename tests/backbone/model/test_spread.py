"""A model that is spread over memory and disk answers, and is trained through, as one that is loaded whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bmtpt.backbone import Backbone
from bmtpt.backbone.engine import Query
from bmtpt.types import TokenBatch

SMALL_MEMORY = {"cpu": 60_000}
"""Bytes: about half of the tiny models."""


@pytest.fixture(scope="module")
def tiny_llama_folder(tiny_t5_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny_llama")
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=160, **sizes, bos_token_id=1, eos_token_id=1))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_t5_folder).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["tiny_t5_folder", "tiny_llama_folder"])
def test_a_model_half_of_which_is_on_the_disk_answers_and_is_differentiated_as_a_whole_one(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, options = request.getfixturevalue(kind), {"precision": "float32"}
    whole = Backbone.from_pretrained(folder, device="cpu", engine="generic", **options)
    monkeypatch.setattr("transformers.integrations.accelerate.get_max_memory", lambda *_: dict(SMALL_MEMORY))
    spread = Backbone.from_pretrained(folder, device="auto-map", **options)
    on_disk = [name for name, weight in spread.model.named_parameters() if weight.is_meta]
    assert 3 < len(on_disk) < len(list(spread.model.parameters()))
    assert (spread.engine.name, spread.device.type) == ("generic", "cpu")
    assert (spread.fingerprint, spread.dtype, spread.parameters) == (whole.fingerprint, whole.dtype, whole.parameters)
    ids = [torch.tensor([5, 6, 7, 1]), torch.tensor([9, 8, 1])]
    batch, weights = TokenBatch(ids, ids[::-1]), torch.tensor([0.3, 0.7])
    prompts = torch.randn(2, 3, whole.d_model, generator=torch.Generator().manual_seed(0))
    queries = [Query(prompts[0], ids[0], answers=ids), Query(prompts[1], ids[1], max_new_tokens=4)]

    def found(backbone: Backbone) -> list[Any]:
        replies = backbone.engine.answer(queries)
        readings = backbone.engine.readings(prompts, ids, ids)
        return [
            *backbone.engine.gradients(prompts, batch, weights),
            *readings,
            replies[0].log_likelihoods,
            replies[1].text,
        ]

    *tensors, text = found(spread)
    *wanted, wanted_text = found(whole)
    assert all(map(torch.equal, tensors, wanted))
    assert text == wanted_text
    assert torch.equal(spread.frequent_rows(), whole.frequent_rows())
