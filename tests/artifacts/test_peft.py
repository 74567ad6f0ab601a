from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import T5ForConditionalGeneration

from bmtpt.artifacts.card import BackboneCard, PromptCard, backbone_card
from bmtpt.artifacts.peft import export_peft, import_peft
from bmtpt.artifacts.saved import Prompt
from bmtpt.backbone import Backbone
from bmtpt.backbone.engine import Query
from bmtpt.backbone.model.fingerprint import fingerprint_v1
from bmtpt.errors import ArtifactError, BackboneError, SettingsError
from bmtpt.posterior.readout import Readout

peft = pytest.importorskip("peft")

BACKBONE = BackboneCard(name="tiny", fingerprint="a" * 64, parameters=28_832, d_model=24, vocab_size=160)
TASK = {"name": "sentiment", "metric": "accuracy"}
CREATED = "2026-11-21T09:00:00Z"
IDS = torch.tensor([[3, 21, 7, 30, 1, 0, 0], [9, 12, 44, 5, 17, 80, 1]])
MASK = (IDS != 0).long()
LABELS = torch.tensor([[36, 40, 1], [37, 41, 1]])


def a_prompt(members: int = 1) -> Prompt:
    card = PromptCard(
        backbone=BACKBONE,
        task="sentiment",
        task_definition=TASK,
        method="map",
        sources=("pairs",),
        posterior=None,
        settings={},
        selection={},
        trained_parameters=6 * 24,
        steps=1,
        seconds=1.0,
        versions={},
        created=CREATED,
    )
    return Prompt(5 * torch.randn(members, 6, 24, generator=torch.Generator().manual_seed(0)), card)


def read(folder: Path, backbone: BackboneCard = BACKBONE) -> Prompt:
    return import_peft(folder, backbone, "sentiment", TASK, CREATED)


def a_model(folder: Path) -> Any:
    return T5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()


def by_hand(model: Any, ids: torch.Tensor, mask: torch.Tensor, prompt: Prompt | None = None) -> dict[str, torch.Tensor]:
    """Encoder inputs with the prompt's rows in front."""
    rows = (prompt or a_prompt()).prompts.expand(len(ids), -1, -1)
    embedded = torch.cat([rows, model.shared(ids)], dim=1)
    return {"inputs_embeds": embedded, "attention_mask": torch.cat([torch.ones(len(ids), 6).long(), mask], dim=1)}


def from_peft(tiny_t5_folder: Path, folder: Path, **options: Any) -> Any:
    """Let PEFT itself make and save a prompt-tuning adapter."""
    config = peft.PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=6, **options)
    torch.manual_seed(1)
    model = peft.get_peft_model(a_model(tiny_t5_folder), config)
    model.save_pretrained(folder)
    return model.eval()


def test_the_tiny_model_is_a_t5_v1_1_with_an_untied_head(tiny_t5_folder: Path):
    model = a_model(tiny_t5_folder)
    assert not torch.equal(model.lm_head.weight, model.shared.weight)
    assert model.encoder.embed_tokens.weight is model.shared.weight
    assert model.config.scale_decoder_outputs is False


@pytest.mark.parametrize("rows", [slice(1, 2), slice(0, 2)], ids=["without padding", "with padding"])
def test_peft_gives_the_logits_of_a_prompt_prepended_by_hand(tmp_path: Path, tiny_t5_folder: Path, rows: slice):
    export_peft(a_prompt(), tmp_path, str(tiny_t5_folder))
    plain = a_model(tiny_t5_folder)
    tuned = peft.PeftModel.from_pretrained(a_model(tiny_t5_folder), tmp_path).eval()
    ids, mask, labels = IDS[rows], MASK[rows], LABELS[rows]
    with torch.no_grad():
        expected = plain(**by_hand(plain, ids, mask), labels=labels).logits
        found = tuned(input_ids=ids, attention_mask=mask, labels=labels).logits
        unprompted = plain(input_ids=ids, attention_mask=mask, labels=labels).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert found.shape[1] == labels.shape[1]  # no virtual tokens in the decoder
    assert (found - unprompted).abs().max() > 0.01  # the prompt matters on this model


def test_peft_generates_what_a_prompt_prepended_by_hand_generates(tmp_path: Path, tiny_t5_folder: Path):
    export_peft(a_prompt(), tmp_path, str(tiny_t5_folder))
    plain = a_model(tiny_t5_folder)
    tuned = peft.PeftModel.from_pretrained(a_model(tiny_t5_folder), tmp_path).eval()
    options = {"max_new_tokens": 6, "do_sample": False}
    expected = plain.generate(**by_hand(plain, IDS, MASK), **options)
    assert torch.equal(tuned.generate(input_ids=IDS, attention_mask=MASK, **options), expected)


def test_export_and_import_give_back_the_same_bits(tmp_path: Path):
    export_peft(a_prompt(), tmp_path / "adapter", "tiny")
    prompt = read(tmp_path / "adapter")
    assert torch.equal(prompt.prompts, a_prompt().prompts)
    assert prompt.card.task_definition == TASK
    assert prompt.card.trained_parameters == 6 * 24
    prompt.save(tmp_path / "prompt")
    assert torch.equal(Prompt.load(tmp_path / "prompt").prompts, a_prompt().prompts)


def test_one_member_of_a_view_is_exported_alone(tmp_path: Path):
    many = a_prompt(3)
    export_peft(Prompt(many.prompts[1:2], many.card), tmp_path, "tiny")
    assert torch.equal(load_file(tmp_path / "adapter_model.safetensors")["prompt_embeddings"], many.prompts[1])


def test_an_adapter_that_peft_saved_is_imported(tmp_path: Path, tiny_t5_folder: Path):
    model = from_peft(tiny_t5_folder, tmp_path, num_transformer_submodules=1)
    assert torch.equal(read(tmp_path).prompts[0], model.get_prompt_embedding_to_save("default"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rows_are_widened_exactly(tmp_path: Path, dtype: torch.dtype):
    export_peft(a_prompt(), tmp_path, "tiny")
    narrow = a_prompt().prompts[0].to(dtype)
    save_file({"prompt_embeddings": narrow}, tmp_path / "adapter_model.safetensors")
    assert torch.equal(read(tmp_path).prompts[0].to(dtype), narrow)
    assert read(tmp_path).prompts.dtype == torch.float32


def test_an_adapter_with_decoder_rows_gives_the_logits_of_pefts_own_model_without_them(
    tmp_path: Path, tiny_t5_folder: Path
):
    tuned = from_peft(tiny_t5_folder, tmp_path)  # two submodules are PEFT's default for T5
    prompt = read(tmp_path)
    assert prompt.prompts.shape == (1, 6, 24)
    assert prompt.card.trained_parameters == 6 * 24
    plain = a_model(tiny_t5_folder)
    with torch.no_grad():
        expected = tuned(input_ids=IDS, attention_mask=MASK, labels=LABELS).logits
        found = plain(**by_hand(plain, IDS, MASK, prompt), labels=LABELS).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_half_of_the_rows_that_the_configuration_promises_is_refused(tmp_path: Path, tiny_t5_folder: Path):
    from_peft(tiny_t5_folder, tmp_path)
    _weights(tmp_path, prompt_embeddings=torch.zeros(6, 24))
    with pytest.raises(ArtifactError, match=r"shape \[6, 24\] where .* says \[12, 24\]"):
        read(tmp_path)


def test_peft_stores_decoder_rows_and_never_uses_them(tmp_path: Path, tiny_t5_folder: Path):
    """The ground for writing one submodule: with two, half of the stored numbers change nothing."""
    model = from_peft(tiny_t5_folder, tmp_path)
    rows = model.prompt_encoder["default"].embedding.weight
    assert rows.shape == (12, 24)
    model(input_ids=IDS, attention_mask=MASK, labels=LABELS).loss.backward()
    assert rows.grad[:6].abs().sum() > 0
    assert rows.grad[6:].abs().sum() == 0


def test_an_ensemble_is_a_folder_for_each_prompt(tmp_path: Path):
    prompt = a_prompt(3)
    export_peft(prompt, tmp_path, "tiny")
    again = torch.cat([read(tmp_path / f"prompt{m}").prompts for m in range(3)])
    assert torch.equal(again, prompt.prompts)
    assert "average the label probabilities of its 3 folders" in (tmp_path / "README.md").read_text()


def test_the_snippet_of_the_readme_writes_what_the_library_writes(
    tiny_backbone, tiny_t5_folder: Path, tmp_path: Path, monkeypatch, capsys
):
    card = a_prompt().card.model_copy(update={"backbone": backbone_card(tiny_backbone), "answer_tokens": 7})
    prompt = Prompt(a_prompt().prompts, card)
    export_peft(prompt, tmp_path, str(tiny_t5_folder))
    (snippet,) = re.findall(r"```python\n(.*?)```", (tmp_path / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(snippet.replace("the text of a row", "the film is good"), {})
    ids = tiny_backbone.tokenizer("the film is good", return_tensors="pt").input_ids[0]
    query = Query(prompt.prompts[0], ids, max_new_tokens=7)
    (wanted,) = tiny_backbone.engine.answer([query])
    assert capsys.readouterr().out.strip() == wanted.text.strip()


def test_each_task_of_a_multi_task_adapter_is_the_prompt_that_peft_makes_of_it(tiny_t5_folder: Path, tmp_path: Path):
    config = peft.MultitaskPromptTuningConfig(
        task_type="SEQ_2_SEQ_LM", num_virtual_tokens=6, num_tasks=3, num_ranks=2, num_transformer_submodules=1
    )
    torch.manual_seed(2)
    model = peft.get_peft_model(a_model(tiny_t5_folder), config)
    encoder = model.prompt_encoder["default"]
    for factor in (encoder.prefix_task_cols, encoder.prefix_task_rows):
        factor.data.normal_()
    model.save_pretrained(tmp_path)
    for task in range(3):
        with torch.no_grad():
            wanted = encoder(torch.arange(6)[None], torch.tensor([task]))
        found = import_peft(tmp_path, BACKBONE, "sentiment", TASK, CREATED, number=task).prompts
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    with pytest.raises(ArtifactError, match="prompts for tasks 0 to 2, and none for 3"):
        import_peft(tmp_path, BACKBONE, "sentiment", TASK, CREATED, number=3)


def test_a_prompt_of_another_backbone_is_refused_by_both_names(tmp_path: Path):
    export_peft(a_prompt(), tmp_path, "tiny-on-hub")
    with pytest.raises(BackboneError, match=r"'tiny-on-hub'.*'other'"):
        read(tmp_path, BACKBONE.model_copy(update={"name": "other", "fingerprint": "c" * 64}))


def test_a_folder_that_version_1_exported_is_read_with_the_backbone_itself(tmp_path: Path, tiny_backbone: Backbone):
    old = fingerprint_v1(tiny_backbone.model, tiny_backbone.weight_files)
    assert old != tiny_backbone.fingerprint
    prompt = a_prompt()
    card = prompt.card.model_copy(update={"backbone": BACKBONE.model_copy(update={"fingerprint": old})})
    export_peft(Prompt(prompt.prompts, card), tmp_path, "tiny")
    read = import_peft(tmp_path, tiny_backbone, "sentiment", TASK, CREATED)
    assert torch.equal(read.prompts, prompt.prompts)
    assert read.card.backbone.fingerprint == tiny_backbone.fingerprint


def test_a_missing_peft_names_the_pip_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(SettingsError, match=r"pip install 'bmtpt\[peft\]'"):
        export_peft(a_prompt(), tmp_path, "tiny")


def _edit(folder: Path, **changes: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _weights(folder: Path, **tensors: torch.Tensor) -> None:
    save_file(tensors, folder / "adapter_model.safetensors")


def _truncate(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


def _pickle(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    torch.save({"prompt_embeddings": a_prompt().prompts[0]}, folder / "adapter_model.bin")


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "LoRA": (lambda f: _edit(f, peft_type="LORA"), "LORA"),
    "decoder-only": (lambda f: _edit(f, task_type="CAUSAL_LM"), "CAUSAL_LM"),
    "no task type": (lambda f: _edit(f, task_type=None), "task type None"),
    "another width": (lambda f: _edit(f, token_dim=768), "width 768 and backbone 'tiny' has 24"),
    "another length": (lambda f: _edit(f, num_virtual_tokens=7), r"\[6, 24\] where .* \[7, 24\]"),
    "config cut off": (lambda f: (f / "adapter_config.json").write_text('{"peft'), "not a prompt-tuning config"),
    "config missing": (lambda f: (f / "adapter_config.json").unlink(), "cannot read .*adapter_config"),
    "no length": (lambda f: _edit(f, num_virtual_tokens=None), "num_virtual_tokens"),
    "pickled": (_pickle, "pickled"),
    "no weights": (lambda f: (f / "adapter_model.safetensors").unlink(), "has no adapter_model.safetensors"),
    "weights cut off": (_truncate, "not a whole safetensors file"),
    "another tensor": (lambda f: _weights(f, lora_A=torch.zeros(6, 24)), "lora_A"),
    "float64": (lambda f: _weights(f, prompt_embeddings=torch.zeros(6, 24).double()), "torch.float64"),
    "not numbers": (lambda f: _weights(f, prompt_embeddings=torch.full((6, 24), float("nan"))), "not finite"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_an_adapter_that_is_no_prompt_for_this_model_is_refused_with_one_sentence(tmp_path: Path, damage: str):
    export_peft(a_prompt(), tmp_path, "tiny")
    break_it, words = DAMAGE[damage]
    break_it(tmp_path)
    with pytest.raises(ArtifactError, match=words) as error:
        read(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_an_export_says_that_it_leaves_the_readout_behind(tmp_path, caplog):
    plain = a_prompt()
    export_peft(plain, tmp_path / "plain", "tiny")
    assert not caplog.records
    export_peft(replace(plain, readouts=(Readout(1.0, torch.ones(2).double()),)), tmp_path / "read", "tiny")
    assert "answers by the words, without the prompt's readout" in caplog.text
    assert torch.equal(read(tmp_path / "read").prompts, plain.prompts)
