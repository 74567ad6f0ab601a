"""The offline backbone: what it is, and what happens when the wheel or the cache is not as it should be."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from plain import in_float64, plain_gradients, relative

from bmtpt.backbone import Backbone
from bmtpt.backbone.decoder_only.generic import HuggingFaceCausalEngine
from bmtpt.backbone.fast_t5.engine import PackedT5Engine
from bmtpt.backbone.model import embedded, offline
from bmtpt.backbone.model.embedded import PARTS, Embedded, sha256_of
from bmtpt.backbone.model.offline import OFFLINE
from bmtpt.backbone.model.offline_causal import OFFLINE_CAUSAL, write_causal
from bmtpt.errors import BackboneError, SettingsError
from bmtpt.types import TokenBatch


def needs(model: Embedded) -> pytest.MarkDecorator:
    try:
        metadata.version(model.package)
    except metadata.PackageNotFoundError:
        return pytest.mark.skip(reason=f"{model.package} is not installed")
    return pytest.mark.filterwarnings()


needs_wheel = needs(OFFLINE)


@needs_wheel
def test_the_offline_backbone_is_a_trained_t5_of_77_million_parameters():
    backbone = Backbone.from_pretrained("offline", precision="float32", device="cpu")
    assert backbone.parameters == 76_961_152
    assert (backbone.d_model, backbone.vocab_size) == (512, 32_128)
    assert len(backbone.frequent_ids()) == 5_000
    ids = backbone.tokenizer("translate English to German: The house is wonderful.", return_tensors="pt").input_ids
    with torch.no_grad():
        out = backbone.model.generate(ids, max_new_tokens=20, do_sample=False, num_beams=1)
    assert backbone.tokenizer.decode(out[0], skip_special_tokens=True) == "Das Haus ist wunderbar."


def drawn(backbone: Backbone, M: int, P: int, texts: list[int], answers: list[int]) -> tuple[torch.Tensor, TokenBatch]:
    """Prompts of vocabulary rows, and random tokens of the given lengths."""
    random = torch.Generator().manual_seed(0)
    prompts = backbone.embed(torch.randint(3, 5_000, (M, P), generator=random))
    ids = [[torch.randint(3, 30_000, (n,), generator=random) for n in lengths] for lengths in (texts, answers)]
    return prompts, TokenBatch(*ids)


@needs_wheel
def test_the_packed_engine_is_as_near_to_float64_as_hugging_face_on_real_weights():
    """The fp32 gradient of these weights can be 1e-5 off in any code, Hugging Face's too: the truth is in float64."""
    backbone = Backbone.from_pretrained("offline", precision="float32", device="cpu")
    prompts, batch = drawn(backbone, 1, 8, [30, 11], [2, 4])
    true_losses, truth = plain_gradients(in_float64(backbone), prompts.double(), batch, torch.ones(2).double())
    theirs = plain_gradients(backbone, prompts, batch, torch.ones(2))
    losses, gradient = PackedT5Engine(backbone).gradients(prompts, batch, torch.ones(2))
    assert relative(losses, true_losses) < 1e-6
    assert relative(gradient, truth) < max(1e-5, 1.5 * relative(theirs[1], truth))


@needs_wheel
def test_bfloat16_points_where_fp32_does_on_real_weights():
    """0.9991 to 0.9997 over five draws of this size (Hugging Face's bfloat16: 0.9986 to 0.9997)."""
    backbone = Backbone.from_pretrained("offline", precision="float32", device="cpu")
    prompts, batch = drawn(backbone, 2, 20, [24, 61, 110, 45, 30, 80], [2, 4, 3, 2, 6, 2])
    truth = PackedT5Engine(backbone).gradients(prompts, batch, torch.ones(6))[1]
    narrow = replace(backbone, model=backbone.model.bfloat16())
    found = PackedT5Engine(narrow).gradients(prompts, batch, torch.ones(6))[1]
    assert torch.cosine_similarity(found.flatten(), truth.flatten(), dim=0) > 0.998


@pytest.fixture
def builds(tmp_path, monkeypatch) -> list[int]:
    """A cache of its own; the list grows by one with every build."""
    monkeypatch.setenv("BMTPT_CACHE", str(tmp_path / "cache"))
    return []


@pytest.fixture
def small(builds, tmp_path, monkeypatch) -> Embedded:
    """A model of twelve numbers, and its wheel as it is installed."""

    def write(wheel: Path, folder: Path) -> int:
        builds.append(1)
        for name in PARTS:
            (folder / name).write_text((wheel / "numbers").read_text())
        return 12

    (tmp_path / "wheel/data").mkdir(parents=True)
    digests = {}
    for name in ("numbers", "names"):
        path = tmp_path / "wheel/data" / name
        path.write_text(name)
        digests[name] = sha256_of(path)
    monkeypatch.setattr(embedded.metadata, "distribution", lambda _: FakeDistribution(tmp_path / "wheel"))
    return Embedded("small", "a-package", "1.0", "0123456789abcdef", "data", digests, 12, write)


class FakeDistribution:
    def __init__(self, root: Path) -> None:
        self.root = root

    def locate_file(self, path: str) -> Path:
        return self.root / path


def test_the_cache_is_built_once_where_the_environment_says(small, builds, tmp_path):
    folder = small.folder()
    assert folder.parent == tmp_path / "cache"
    assert small.folder() == folder
    assert len(builds) == 1
    assert [each.name for each in folder.parent.iterdir()] == [folder.name]  # nothing half-built beside it
    noted = json.loads((folder / "provenance.json").read_text())
    assert noted["wheel_sha256"] == small.wheel_sha256


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a flipped bit": lambda folder: flipped(folder / "model.safetensors"),
    "a truncated file": lambda folder: (folder / "model.safetensors").write_bytes(b"x"),
    "a missing file": lambda folder: (folder / "tokenizer.json").unlink(),
    "a changed config": lambda folder: (folder / "config.json").write_text("{}"),
    "no note": lambda folder: (folder / "provenance.json").unlink(),
    "an empty note": lambda folder: (folder / "provenance.json").write_text('{"files": {}}'),
    "a note that is no JSON": lambda folder: (folder / "provenance.json").write_text("["),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_built_again(small, builds, damage):
    folder = small.folder()
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    DAMAGE[damage](folder)
    assert small.folder() == folder
    assert len(builds) == 2
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole


def test_a_model_of_the_wrong_size_is_never_cached(small):
    other = replace(small, parameters=13)
    with pytest.raises(BackboneError, match="12 parameters instead of 13"):
        other.folder()
    assert not other.cache_folder.parent.exists()


def test_a_cache_that_cannot_be_written_is_named(small, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BMTPT_CACHE", str(tmp_path / "file"))
    with pytest.raises(BackboneError, match="set BMTPT_CACHE to a folder"):
        small.folder()


@pytest.mark.parametrize("name", ["offline", "offline-causal"])
def test_without_the_wheel_the_command_that_installs_it_is_told(tmp_path, monkeypatch, name):
    def missing(package: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setenv("BMTPT_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded.metadata, "distribution", missing)
    with pytest.raises(BackboneError) as error:
        Backbone.from_pretrained(name)
    assert str(error.value) == f"the {name} backbone is not installed; run: {embedded.INSTALL}"
    assert embedded.INSTALL.startswith("pip install")


@pytest.mark.parametrize("wrong", ["numbers", "names", "missing"])
def test_a_file_that_is_not_the_pinned_one_is_refused(small, tmp_path, wrong):
    folder = small.checked_files()
    assert folder == tmp_path / "wheel/data"
    if wrong == "missing":
        (folder / "names").unlink()
    else:
        (folder / wrong).write_text("edited")
    with pytest.raises(BackboneError) as error:
        small.folder()
    sentence = str(error.value)
    assert ("names" if wrong == "missing" else wrong) in sentence
    assert "--force-reinstall" in sentence
    assert not (tmp_path / "cache").exists()


@needs(OFFLINE_CAUSAL)
def test_the_offline_causal_backbone_is_a_trained_llama_that_answers_as_hugging_faces_forward_does():
    backbone = Backbone.from_pretrained("offline-causal", precision="float32", device="cpu")
    assert (backbone.parameters, backbone.d_model, backbone.engine.name) == (134_515_008, 576, "packed")
    ids = backbone.tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        out = backbone.model.generate(ids, max_new_tokens=1, do_sample=False)
    assert backbone.tokenizer.decode(out[0]) == "The capital of France is Paris"
    prompts, batch = drawn(backbone, 2, 8, [30, 11], [2, 4])
    found = backbone.engine.gradients(prompts, batch, torch.ones(2))
    truth = HuggingFaceCausalEngine(backbone).gradients(prompts, batch, torch.ones(2))
    assert relative(found[0], truth[0]) < 1e-6
    assert relative(found[1], truth[1]) < 1e-4


def test_without_gguf_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(SettingsError, match=r"pip install 'bmtpt\[offline\]'"):
        write_causal(tmp_path, tmp_path)


def test_without_onnx_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(SettingsError, match=r"pip install 'bmtpt\[offline\]'"):
        offline.dequantised_tensors(tmp_path / "encoder.onnx", tmp_path / "decoder.onnx")


def test_dequantising_is_scale_times_the_distance_to_the_zero_point():
    q = np.array([[0, 128, 255], [7, 130, 1]], dtype=np.uint8)
    whole = {"w_quantized": q, "w_scale": np.float32(0.5), "w_zero_point": np.uint8(128)}
    assert offline._dequantise(whole, "w_quantized").tolist() == [[-64, 0, 63.5], [-60.5, 1, -63.5]]
    scales, zeros = np.array([1, 2, 0.5], dtype=np.float32), np.array([0, 128, 255], dtype=np.uint8)
    by_column = {"w_quantized": q, "w_scale": scales, "w_zero_point": zeros}
    assert offline._dequantise(by_column, "w_quantized").tolist() == [[0, 0, 0], [7, 4, -127]]
    assert offline._dequantise({"norm": np.ones(2, dtype=np.float16)}, "norm").dtype == np.float32


def test_onnx_names_become_hugging_faces():
    assert offline._module_name("enc.block.0.layer.0.SelfAttention.q") == "encoder.block.0.layer.0.SelfAttention.q"
    assert offline._module_name("m.decoder.block.1.layer_norm.weight") == "decoder.block.1.layer_norm.weight"
    assert offline._module_name("m.lm_head") == "lm_head"
