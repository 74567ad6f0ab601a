"""A model's folder is data from strangers: no code of it runs, and what does not fit together is refused at once."""

from __future__ import annotations

import importlib.util
import json
import resource
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, BartConfig, GPT2Config

from bmtpt.backbone import Backbone
from bmtpt.errors import BackboneError

TRAP = "from pathlib import Path\nPath(__file__).with_name('SPRUNG').touch()\nclass Trap: pass\n"
CODE = {"AutoConfig": "trap.Trap", "AutoModelForSeq2SeqLM": "trap.Trap", "AutoTokenizer": ["trap.Trap", None]}


@pytest.fixture
def copy(tiny_t5_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    shutil.copytree(tiny_t5_folder, folder)
    return folder


def load(folder: Path) -> Backbone:
    return Backbone.from_pretrained(folder, precision="float32", device="cpu")


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refusal(folder: Path) -> str:
    with pytest.raises(BackboneError) as error:
        load(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_known_model_that_brings_code_along_is_loaded_without_running_it(copy, tiny_backbone):
    (copy / "trap.py").write_text(TRAP)
    change(copy / "config.json", auto_map=CODE)
    change(copy / "tokenizer_config.json", auto_map=CODE)
    assert load(copy).fingerprint == tiny_backbone.fingerprint
    assert not (copy / "SPRUNG").exists()


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_a_folder_that_needs_code_of_its_own_is_refused(copy, file):
    (copy / "trap.py").write_text(TRAP)
    change(copy / "config.json", model_type="trap", auto_map=CODE)
    if file == "tokenizer_config.json":
        change(copy / "config.json", model_type="t5")
        change(copy / file, auto_map=CODE, tokenizer_class="Trap")
        (copy / "tokenizer.json").unlink()
    sentence = refusal(copy)
    assert file == "tokenizer_config.json" or "needs code of its own (auto_map), which is never run" in sentence
    assert not (copy / "SPRUNG").exists()
    assert "trap" not in sys.modules


def test_an_attention_kernel_from_the_hub_is_refused_because_it_is_code(copy):
    change(copy / "config.json", attn_implementation="someone/kernel")
    assert "asks for the attention kernel 'someone/kernel', which is code" in refusal(copy)


def test_a_chat_template_is_never_rendered(copy, tiny_backbone, monkeypatch):
    template = "{{ raise_exception('rendered') }}"
    (copy / "chat_template.jinja").write_text(template)
    change(copy / "tokenizer_config.json", chat_template=template)
    monkeypatch.setattr("jinja2.Template.render", lambda *_: pytest.fail("rendered"))
    tokenizer = load(copy).tokenizer
    assert tokenizer.chat_template == template
    assert tokenizer.encode("the film is good .") == tiny_backbone.tokenizer.encode("the film is good .")


def test_a_tokenizer_that_fails_on_an_unknown_word_is_refused_at_once(copy):
    file = json.loads((copy / "tokenizer.json").read_text())
    file["model"]["unk_token"] = "<unkx>"
    (copy / "tokenizer.json").write_text(json.dumps(file))
    assert "cannot encode text (WordLevel error: Missing [UNK] token" in refusal(copy)


def as_index(folder: Path, names: object) -> None:
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def test_weights_in_several_files_are_found_by_their_index(copy, tiny_backbone):
    weights = load_file(copy / "model.safetensors")
    as_index(copy, dict.fromkeys(weights, "a.safetensors"))
    assert load(copy).fingerprint == tiny_backbone.fingerprint


@pytest.mark.parametrize("name", ["../a.safetensors", "/etc/passwd", "sub/a.safetensors", "a.bin", 3, None])
def test_an_index_that_names_files_elsewhere_is_refused(copy, name):
    as_index(copy, {"shared.weight": name})
    assert f"names {name!r} where the name of a .safetensors file" in refusal(copy)


@pytest.mark.parametrize("names", [[], "a.safetensors", None])
def test_an_index_that_is_none_is_refused(copy, names):
    as_index(copy, names)
    assert "has no weight_map" in refusal(copy)


@pytest.mark.parametrize(
    "file", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "index"]
)
def test_json_nested_too_deep_is_refused(copy, file):
    if file == "index":
        as_index(copy, {})
        file = "model.safetensors.index.json"
    (copy / file).write_text("[" * 100_000)
    assert "recursion" in refusal(copy)


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_layers": 10**12},
        {"d_ff": 10**10},
        {"d_model": 10**9},
        {"vocab_size": 10**12},
        {"vocab_size": 10**8},
        {"num_heads": 10**9},
        {"relative_attention_num_buckets": 10**15},
    ],
    ids=str,
)
def test_a_configuration_of_absurd_sizes_is_refused_before_memory_is_taken(copy, wrong):
    change(copy / "config.json", **wrong)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "numbers, and its weights hold 28,832: they do not belong together" in refusal(copy)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_layers": "x"}, {"d_model": 0}, {"d_model": -3}, {"vocab_size": 0}, {"num_heads": 1.5},
        {"model_type": None}, {"quantization_config": [1]}, {"feed_forward_proj": "x"},
        {"decoder_start_token_id": 10**9}, {"decoder_start_token_id": -1},
        {"layer_norm_epsilon": "small"}, {"is_encoder_decoder": False},
    ],
    ids=str,
)  # fmt: skip
def test_a_configuration_of_wrong_values_is_refused_in_one_sentence(copy, wrong):
    change(copy / "config.json", **wrong)
    refusal(copy)


def test_weights_of_another_shape_are_named_with_both_shapes(copy):
    change(copy / "config.json", d_ff=48)
    assert "as [40, 24] where config.json says [48, 24]" in refusal(copy)


def test_weights_that_a_wrong_configuration_leaves_unused_are_said(copy, caplog):
    change(copy / "config.json", num_layers=1)
    load(copy)
    assert "that are not in the model of its config.json (first encoder.block.1." in caplog.text


def header(content: bytes, length: int | None = None) -> bytes:
    return (len(content) if length is None else length).to_bytes(8, "little") + content


def entry(**changes: Any) -> bytes:
    tensor = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16], **changes}
    return header(json.dumps({"shared.weight": tensor}).encode()) + bytes(16)


BOMBS = {
    "longer than the file": header(b"{}", 2**63 - 1),
    "longer than there is": header(b"{}", 2**64 - 1),
    "a gigabyte": header(b"{}", 2**30),
    "nested": header(b"[" * 1_000_000),
    "a product beyond 64 bits": entry(shape=[2**62, 2**62]),
    "more numbers than bytes": entry(shape=[10**9, 10**9]),
    "offsets beyond the file": entry(data_offsets=[0, 2**60]),
    "offsets backwards": entry(data_offsets=[16, 0]),
    "negative": entry(shape=[-1, -4]),
    "an unknown type": entry(dtype="X9"),
    "no bytes": b"",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_wrong_header_of_weights_is_refused(copy, bomb):
    (copy / "model.safetensors").write_bytes(BOMBS[bomb])
    assert "model.safetensors is not a whole safetensors file" in refusal(copy)


def t5(folder: Path) -> None:
    """It is one already."""


def gpt2(folder: Path) -> None:
    config = GPT2Config(
        vocab_size=160, n_embd=24, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=1, attn_implementation="eager"
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def bart(folder: Path) -> None:
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = BartConfig(
        vocab_size=160, d_model=24, encoder_ffn_dim=8, decoder_ffn_dim=8, bos_token_id=0, eos_token_id=1,
        pad_token_id=0, decoder_start_token_id=1, forced_eos_token_id=1, **sizes,
    )  # fmt: skip
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(folder)


@pytest.mark.parametrize("kind", [t5, gpt2, bart])
def test_a_token_beyond_the_embedding_table_is_named_with_the_cure(copy, kind: Callable[[Path], None]):
    with torch.random.fork_rng():
        kind(copy)
    backbone = load(copy)
    names = [f"<new {number}>" for number in range(200)]
    backbone.tokenizer.add_tokens(names)
    first = backbone.vocab_size - len(backbone.tokenizer) + len(names)
    sentence = f"first '<new {first}>' (160): call model.resize_token_embeddings({len(backbone.tokenizer)})"
    with pytest.raises(BackboneError) as error:
        Backbone.from_model(backbone.model, backbone.tokenizer)
    assert sentence in str(error.value)
    backbone.tokenizer.save_pretrained(copy)
    assert sentence in refusal(copy)


QUANTISED = {
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "optimum": {"quant_method": "gptq", "bits": 4},
    "gptqmodel": {"quant_method": "awq", "bits": 4},
}


@pytest.mark.parametrize("package", QUANTISED)
def test_a_quantised_folder_names_the_package_that_it_needs(copy, package):
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed")
    change(copy / "config.json", quantization_config=QUANTISED[package])
    assert package in refusal(copy)


def test_a_quantised_folder_is_run_by_its_own_layers_where_its_library_is_there(tiny_t5_folder, tmp_path):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    quantised = AutoModelForSeq2SeqLM.from_pretrained(
        tiny_t5_folder, quantization_config=BitsAndBytesConfig(load_in_8bit=True), device_map="cpu"
    )
    quantised.save_pretrained(tmp_path)
    for path in tiny_t5_folder.glob("tokenizer*"):
        shutil.copy(path, tmp_path)
    backbone = load(tmp_path)
    assert backbone.engine.name == "generic"
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        found, wanted = (each(input_ids=ids, decoder_input_ids=ids).logits for each in (backbone.model, quantised))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-3)


def test_a_t5_with_lora_layers_is_not_packed(tiny_t5_folder, tiny_backbone):
    peft = pytest.importorskip("peft")
    model = AutoModelForSeq2SeqLM.from_pretrained(tiny_t5_folder)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q"]))
    with pytest.raises(BackboneError, match=r"packed cannot be used .* it has Linear layers, not plain weights"):
        Backbone.from_model(wrapped.base_model.model, tiny_backbone.tokenizer, engine="packed").engine  # noqa: B018


def test_a_file_in_another_dtype_has_the_numbers_of_its_header(copy):
    weights = {name: tensor.half() for name, tensor in load_file(copy / "model.safetensors").items()}
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert load(copy).parameters == 28_832
