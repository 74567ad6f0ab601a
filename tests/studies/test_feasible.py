"""What cannot be done is refused before the source stages, which may take hours, are learned."""

from __future__ import annotations

import pytest
from transformers import GPT2Config

from bmtpt.errors import BackboneError, SettingsError
from bmtpt.studies import run_study


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("mpt", "method 'mpt' runs on encoder-decoder models, and '.*' is a gpt2 model; leave mpt out"),
        ("bitfit", "method 'bitfit' runs on T5 models, and '.*' is a gpt2 model; leave bitfit out"),
    ],
)
def test_a_method_that_cannot_run_on_the_backbone_is_refused_before_anything_is_trained(
    tiny_study, tmp_path, method, reason
):
    GPT2Config(n_layer=1).save_pretrained(tmp_path / "gpt2")
    study = tiny_study(methods=[method], variants={}, backbone=str(tmp_path / "gpt2"))
    with pytest.raises(BackboneError, match=reason):
        run_study(study, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_lora_without_peft_is_refused_before_the_source_stages(tiny_study, tmp_path, monkeypatch):
    monkeypatch.setattr("bmtpt.studies.grid.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match="LoRA needs the peft package"):
        run_study(tiny_study(methods=["bmtpt", "lora"], variants={}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
