"""Loading a frozen T5: fingerprints, precision, and the sentence for every folder that cannot be used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from bmtpt.artifacts.card import backbone_card, require_backbone
from bmtpt.backbone import Backbone
from bmtpt.backbone.model.fingerprint import fingerprint_v1
from bmtpt.errors import BackboneError


@pytest.fixture
def copy(tiny_t5_folder, tmp_path) -> Path:
    folder = tmp_path / "copy"
    shutil.copytree(tiny_t5_folder, folder)
    return folder


def load(folder: Path, **options: Any):
    return Backbone.from_pretrained(str(folder), **{"precision": "float32", "device": "cpu", **options})


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def refusal(name: object) -> str:
    with pytest.raises(BackboneError) as error:
        Backbone.from_pretrained(str(name), precision="float32", device="cpu")
    sentence = str(error.value)
    assert "\n" not in sentence
    assert str(name) in sentence
    return sentence


def test_a_loaded_backbone_is_frozen_without_dropout_and_knows_its_sizes(tiny_backbone):
    assert not tiny_backbone.model.training
    assert not any(weight.requires_grad for weight in tiny_backbone.model.parameters())
    assert not any(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in tiny_backbone.model.modules())
    assert tiny_backbone.parameters == 28_832
    assert (tiny_backbone.d_model, tiny_backbone.embed(torch.tensor([3])).dtype) == (24, torch.float32)
    assert tiny_backbone.dtype == torch.float32


def test_the_model_is_hugging_faces_model(tiny_backbone, tiny_hf):
    ids = torch.tensor([[5, 9, 14, 1]])
    labels = torch.tensor([[7, 8, 1]])
    ours = tiny_backbone.model(input_ids=ids, labels=labels).logits
    assert torch.allclose(ours, tiny_hf(input_ids=ids, labels=labels).logits, atol=1e-5)


def test_dropout_in_the_config_is_switched_off(copy):
    change_config(copy, dropout_rate=0.5)
    backbone = load(copy)
    backbone.model.train()
    ids = torch.tensor([[5, 9, 14, 1]])
    first, second = (backbone.model(input_ids=ids, labels=ids).logits for _ in range(2))
    assert torch.equal(first, second)


def test_loading_prints_nothing(tiny_t5_folder, capfd):
    load(tiny_t5_folder)
    assert "".join(capfd.readouterr()) == ""


def test_frequent_ids_are_the_lowest_that_are_not_special(tiny_backbone):
    ids = tiny_backbone.frequent_ids().tolist()
    assert ids == list(range(3, len(tiny_backbone.tokenizer)))


def test_two_copies_in_two_dtypes_have_one_fingerprint(tiny_backbone, copy):
    found = {load(copy, precision=precision).fingerprint for precision in ("float32", "bfloat16", "auto")}
    assert found == {tiny_backbone.fingerprint}
    assert load(copy, precision="bfloat16").dtype == torch.bfloat16
    assert load(copy, precision="bfloat16").embed(torch.tensor([3])).dtype == torch.float32


def test_what_does_not_decide_the_function_does_not_change_the_fingerprint(tiny_backbone, copy):
    change_config(copy, dropout_rate=0.3, transformers_version="0.0", _name_or_path="elsewhere", use_cache=False)
    assert load(copy).fingerprint == tiny_backbone.fingerprint


@pytest.mark.parametrize("key", ["shared.weight", "lm_head.weight", "decoder.final_layer_norm.weight"])
def test_one_changed_weight_changes_the_fingerprint(tiny_backbone, copy, key):
    def nudge(weights: dict[str, torch.Tensor]) -> None:
        flat = weights[key].view(-1)
        flat[-1] = torch.nextafter(flat[-1], torch.tensor(9.0))

    change_weights(copy, nudge)
    assert load(copy).fingerprint != tiny_backbone.fingerprint


@pytest.mark.parametrize(
    "change", [{"tie_word_embeddings": True}, {"layer_norm_epsilon": 1e-5}, {"relative_attention_max_distance": 64},
               {"feed_forward_proj": "gated-silu"}]
)  # fmt: skip
def test_a_config_that_changes_the_function_changes_the_fingerprint(tiny_backbone, copy, change):
    change_config(copy, **change)
    other = load(copy)
    ids = torch.tensor([[*range(3, 99), 1]])
    ours = tiny_backbone.model(input_ids=ids, labels=ids).logits
    assert not torch.allclose(other.model(input_ids=ids, labels=ids).logits, ours, atol=1e-9)
    assert other.fingerprint != tiny_backbone.fingerprint


@pytest.mark.parametrize("note", ["", "{}", '{"x": 1}', '{"weights": "0', "\xff", "[" * 10**5])
def test_a_damaged_note_of_a_fingerprint_is_made_again(tiny_backbone, copy, tmp_path, monkeypatch, note):
    monkeypatch.setenv("BMTPT_CACHE", str(tmp_path / "cache"))
    assert load(copy).fingerprint == tiny_backbone.fingerprint
    (kept,) = (tmp_path / "cache" / "fingerprints").iterdir()
    content = kept.read_text()
    kept.write_text(note, encoding="latin-1")
    assert load(copy).fingerprint == tiny_backbone.fingerprint
    assert kept.read_text() == content
    kept.write_text(content.replace("a", "b", 1))  # well-formed, and another
    assert load(copy).fingerprint == tiny_backbone.fingerprint


TOKENIZERS: dict[str, Callable[[dict[str, Any]], object]] = {
    "two words exchanged": lambda file: file["model"]["vocab"].update(good=file["model"]["vocab"]["bad"], bad=90),
    "a word less": lambda file: file["model"]["vocab"].pop("grim"),
    "no end of sequence": lambda file: file.update(post_processor=None),
    "split at blanks": lambda file: file.update(pre_tokenizer={"type": "WhitespaceSplit"}),
}


@pytest.mark.parametrize("change", TOKENIZERS)
def test_another_tokenizer_is_told_apart_from_the_one_that_a_prompt_was_trained_with(tiny_backbone, copy, change):
    path = copy / "tokenizer.json"
    file = json.loads(path.read_text())
    path.write_text(json.dumps(file, indent=4))
    card = backbone_card(tiny_backbone)
    assert load(copy).tokenizer_hash == card.tokenizer_hash  # it is the same, however it is written
    TOKENIZERS[change](file)
    path.write_text(json.dumps(file))
    with pytest.raises(BackboneError, match="trained with another tokenizer than that of"):
        require_backbone(card, load(copy))
    require_backbone(card.model_copy(update={"tokenizer_hash": ""}), load(copy))  # an older card does not say


def test_the_hash_of_version_1_artifacts_never_changes():
    config = AutoConfig.for_model("t5", d_model=24, feed_forward_proj="gated-gelu", decoder_start_token_id=0)
    model = SimpleNamespace(config=config, named_parameters=lambda: [("w", torch.arange(3.0))])
    assert fingerprint_v1(model) == "b59d4f04e4fe380a8d7c893d391a3c762dada1c35665b776f3bebaabc4923c2b"


def test_a_fingerprint_is_64_hexadecimal_digits(tiny_backbone):
    assert len(tiny_backbone.fingerprint) == 64
    assert int(tiny_backbone.fingerprint, 16) > 0


# Folders that cannot be used.


def test_greedy_means_the_likeliest_token_whatever_the_folder_says_of_generation(copy):
    (copy / "generation_config.json").write_text(json.dumps({"min_length": 30, "no_repeat_ngram_size": 3}))
    settings = load(copy).model.generation_config
    assert not settings.min_length
    assert not settings.no_repeat_ngram_size
    assert settings.eos_token_id == load(copy).tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"precision": "float16"}, "unknown precision 'float16'; did you mean 'bfloat16'"),
        ({"device": "gpu"}, "device 'gpu' cannot be used here"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used here"),
    ],
)
def test_a_precision_or_device_that_is_not_there_is_named(copy, options, part):
    with pytest.raises(BackboneError, match=part):
        load(copy, **options)


def test_pickled_weights_are_never_loaded(copy, monkeypatch):
    weights = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    torch.save(weights, copy / "pytorch_model.bin")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was unpickled"))
    sentence = refusal(copy)
    assert "pickled weights are never loaded" in sentence
    assert "save_pretrained" in sentence


def test_a_missing_folder_is_named(tmp_path):
    assert refusal(tmp_path / "nowhere").startswith(f"there is no folder '{tmp_path / 'nowhere'}'")
    assert refusal("").startswith("there is no folder ''")


def test_a_file_is_refused_before_anything_reads_it(copy):
    (copy / "notes.bin").write_bytes(b"pickled")
    assert "is a file; give the folder" in refusal(copy / "notes.bin")


def test_a_hub_id_that_cannot_be_reached_is_named():
    refusal("nobody/no-such-model-here")


def test_a_folder_without_config_is_refused(copy):
    (copy / "config.json").unlink()
    assert "no config.json" in refusal(copy)


def test_a_config_that_is_no_json_is_refused(copy):
    (copy / "config.json").write_text("{")
    refusal(copy)


@pytest.mark.parametrize("kind", ["bert", "vit", "switch_transformers", "no-such-kind"])
def test_a_model_of_another_kind_is_refused(copy, kind):
    change_config(copy, model_type=kind)
    assert kind in refusal(copy)


def test_a_truncated_weights_file_is_refused(copy):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    refusal(copy)


def test_a_weights_file_that_lacks_a_tensor_is_refused_and_not_filled_at_random(copy):
    change_weights(copy, lambda weights: weights.pop("decoder.block.1.layer.2.DenseReluDense.wo.weight"))
    assert "decoder.block.1.layer.2.DenseReluDense.wo.weight" in refusal(copy)


def test_a_tied_head_need_not_stand_in_the_file(copy):
    change_weights(copy, lambda weights: weights.pop("lm_head.weight"))
    change_config(copy, tie_word_embeddings=True)
    assert load(copy).parameters == 28_832 - 160 * 24


def test_weights_of_another_shape_are_refused(copy):
    change_config(copy, d_ff=48)
    refusal(copy)


def test_a_folder_without_tokenizer_is_refused(copy):
    for path in copy.glob("tokenizer*"):
        path.unlink()
    assert "tokenizer" in refusal(copy)
