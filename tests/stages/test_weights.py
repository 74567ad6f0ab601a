"""A tuned model from rows to scores, to result lines, and to disk."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file
from torch import Tensor

from bmtpt.artifacts.saved import read_artifact
from bmtpt.errors import ArtifactError, BackboneError
from bmtpt.methods.registry import get_method
from bmtpt.methods.weights import TunedModel
from bmtpt.settings import AdaptSettings
from bmtpt.stages.evaluate import evaluate, result_rows
from bmtpt.stages.target import fit_method

METHODS = ("full", "bitfit", "lora", "adapter")
QUICK = AdaptSettings(steps=4, batch_size=8, evaluate_every=2, shots=8, selection="loss")
EAGER = {
    "full": {"learning_rate": 3e-3},
    "bitfit": {"learning_rate": 0.03},
    "lora": {"learning_rate": 0.03},
    "adapter": {"learning_rate": 0.03, "reduction": 8},
}


def fit(backbone: Any, data: Any, name: str) -> TunedModel:
    method = get_method(name)
    (found,) = fit_method(method, backbone, [data], QUICK, method.options(**EAGER[name])).values()
    assert isinstance(found, TunedModel)
    return found


@pytest.fixture(scope="module")
def tuned(tiny_backbone, tiny_tasks) -> dict[str, TunedModel]:
    return {name: fit(tiny_backbone, tiny_tasks["pairs"], name) for name in METHODS}


def probabilities(model: Any, texts: list[Tensor], words: list[Tensor]) -> Tensor:
    """Return p(word | text) from the model's own forward, one unpadded pair at a time."""
    found = []
    for ids in texts:
        scores = [
            -F.cross_entropy(model(input_ids=ids[None], labels=w[None]).logits[0], w, reduction="sum") for w in words
        ]
        found.append(torch.softmax(torch.stack(scores), dim=0))
    return torch.stack(found).detach()


def words_of(backbone: Any, data: Any) -> tuple[list[Tensor], list[Tensor]]:
    texts = [torch.tensor(backbone.tokenizer(example.text).input_ids) for example in data.test]
    return texts, [torch.tensor(backbone.tokenizer(word).input_ids) for word in data.task.label_words]


def test_only_a_t5_is_tuned(tiny_backbone, tiny_tasks):
    other = replace(tiny_backbone, name="gpt2", model=SimpleNamespace(config=SimpleNamespace(model_type="gpt2")))
    with pytest.raises(BackboneError, match="method 'lora' runs on T5 models, and 'gpt2' is a gpt2 model"):
        fit(other, tiny_tasks["pairs"], "lora")


@pytest.mark.parametrize("method", METHODS)
def test_evaluation_is_that_of_the_tuned_models_own_forward(tuned, tiny_backbone, tiny_tasks, method):
    data = tiny_tasks["pairs"]
    found = evaluate(tiny_backbone, tuned[method], data.test).probabilities
    assert found is not None
    truth = probabilities(tuned[method].engine.backbone.model, *words_of(tiny_backbone, data))
    torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-6)
    frozen = probabilities(tiny_backbone.model, *words_of(tiny_backbone, data))
    assert (found - frozen).abs().max() > 1e-3  # it was tuned


@pytest.mark.parametrize("method", METHODS)
def test_result_lines_say_what_was_trained_and_how_long(tuned, tiny_backbone, tiny_tasks, method):
    data = tiny_tasks["pairs"]
    lines = result_rows(
        tiny_backbone, tuned[method], data, evaluate(tiny_backbone, tuned[method], data.test), study="s"
    )
    count = sum(tensor.numel() for tensor in tuned[method].tensors.values())
    assert {line.trained_parameters for line in lines} == {count}
    assert {line.trained_share for line in lines} == {count / tiny_backbone.parameters}
    assert all(line.seconds > 0 and line.steps == 4 and line.shots == 8 for line in lines)
    assert {(line.method, line.sources) for line in lines} == {(method, ())}
    card = tuned[method].card
    assert card.settings["learning_rate"] == card.settings["options"]["learning_rate"] != QUICK.learning_rate
    assert card.selection["winners"][0]["start"] == "the model"


def test_the_saved_weights_of_full_fine_tuning_are_a_state_of_hugging_faces_model(
    tuned, tiny_hf, tiny_backbone, tiny_tasks, tmp_path
):
    tuned["full"].save(tmp_path)
    model = copy.deepcopy(tiny_hf)
    missing, unexpected = model.load_state_dict(load_file(tmp_path / "weights.safetensors"), strict=False)
    assert not unexpected
    assert set(missing) <= {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}  # tied to `shared`
    found = evaluate(tiny_backbone, tuned["full"], tiny_tasks["pairs"].test).probabilities
    truth = probabilities(model, *words_of(tiny_backbone, tiny_tasks["pairs"]))
    torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-6)


def test_a_saved_lora_is_loaded_by_peft(tuned, tiny_hf, tiny_backbone, tiny_tasks, tmp_path):
    from peft import PeftModel

    tuned["lora"].save(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} <= {".json", ".safetensors", ".md"}
    model = PeftModel.from_pretrained(copy.deepcopy(tiny_hf), tmp_path)
    found = evaluate(tiny_backbone, tuned["lora"], tiny_tasks["pairs"].test).probabilities
    truth = probabilities(model, *words_of(tiny_backbone, tiny_tasks["pairs"]))
    torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["bitfit", "adapter"])
def test_saved_weights_are_the_trained_ones_by_name_and_the_card_is_json(tuned, tmp_path, method):
    tuned[method].save(tmp_path)
    stored = load_file(tmp_path / "weights.safetensors")
    assert stored.keys() == tuned[method].tensors.keys()
    assert all(torch.equal(stored[name], tensor) for name, tensor in tuned[method].tensors.items())
    card = json.loads((tmp_path / "card.json").read_text())
    assert (card["kind"], card["method"], card["task"]) == ("weights", method, "pairs")


def test_a_folder_that_holds_a_run_is_not_overwritten_unasked(tuned, tmp_path):
    tuned["bitfit"].save(tmp_path)
    with pytest.raises(ArtifactError, match="holds a run already"):
        tuned["lora"].save(tmp_path)
    tuned["adapter"].save(tmp_path, overwrite=True)
    assert json.loads((tmp_path / "card.json").read_text())["method"] == "adapter"


def test_tuned_weights_are_not_mistaken_for_a_prompt(tuned, tmp_path):
    tuned["bitfit"].save(tmp_path)
    with pytest.raises(ArtifactError, match="holds tuned weights where a posterior or a prompt is needed"):
        read_artifact(tmp_path)


def test_free_answers_are_generated_by_the_tuned_model(tiny_backbone, tiny_tasks):
    found = fit(tiny_backbone, tiny_tasks["answers"], "full")
    evaluation = evaluate(tiny_backbone, found, tiny_tasks["answers"].test)
    model = found.engine.backbone.model
    for example, answer in zip(tiny_tasks["answers"].test, evaluation.predictions, strict=True):
        ids = torch.tensor([tiny_backbone.tokenizer(example.text).input_ids])
        tokens = model.generate(input_ids=ids, max_new_tokens=32, do_sample=False, num_beams=1)
        assert answer == tiny_backbone.tokenizer.decode(tokens[0], skip_special_tokens=True).strip()
