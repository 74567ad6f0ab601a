"""The settings of a call: chosen by a measurement, held for all of it, gone when it returns."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from causal_plain import tiny_causal
from plain import random_batch, random_prompts
from plain import tiny_backbone as tiny_t5

from bmtpt.backbone import Backbone
from bmtpt.backbone.decoder_only.generic import HuggingFaceCausalEngine
from bmtpt.backbone.decoder_only.shared_prompt import CausalEngine
from bmtpt.backbone.device import allocator, machine
from bmtpt.backbone.device.plan import Plan
from bmtpt.backbone.encoder_decoder.generic import HuggingFaceEngine

needs_onednn = pytest.mark.skipif(machine._setting() is None, reason="this torch has no switch for oneDNN's products")


@pytest.fixture(autouse=True)
def probed_anew() -> None:
    machine.onednn_error.cache_clear()
    machine._say.cache_clear()


def setting() -> str:
    return str(machine._setting().fp32_precision)


@needs_onednn
@pytest.mark.parametrize("before", ["highest", "high", "medium"])
def test_the_users_matmul_precision_is_back_after_a_call_and_after_an_error(before: str) -> None:
    at_first = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(before)
        kept = setting()
        with machine.tuned(Plan(matmul="rounded"), torch.float32, "packed"):
            assert setting() == "bf16"
        with pytest.raises(ZeroDivisionError), machine.tuned(Plan(matmul="rounded"), torch.float32, "packed"):
            raise ZeroDivisionError
        assert (setting(), torch.get_float32_matmul_precision()) == (kept, before)
    finally:
        torch.set_float32_matmul_precision(at_first)


@needs_onednn
def test_by_default_products_are_true_fp32_whatever_this_processor_has(caplog: pytest.LogCaptureFixture) -> None:
    a, b = torch.randn(2, 512, 512, generator=torch.Generator().manual_seed(1))
    with caplog.at_level("INFO", logger="bmtpt"), machine.tuned(Plan(), torch.float32, "packed"):
        product = a @ b
    truth = a.double() @ b.double()
    assert (product - truth).norm() < machine.EXACT * truth.norm()
    assert "fp32 products" in caplog.text


@needs_onednn
@pytest.mark.parametrize(("error", "auto"), [(3e-7, True), (2e-3, False)])
def test_auto_takes_onednn_only_where_it_does_not_round(
    error: float, auto: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "onednn_error", lambda: error)
    before = setting()
    for matmul, wanted in {"auto": auto, "rounded": True, "plain": False}.items():
        with machine.tuned(Plan(matmul=matmul), torch.float32, "packed"):  # type: ignore[arg-type]
            assert (setting() == "bf16") is (wanted or before == "bf16")


@needs_onednn
def test_other_precisions_leave_the_products_alone() -> None:
    before = setting()
    with machine.tuned(Plan(matmul="rounded"), torch.bfloat16, "packed"):
        assert setting() == before


# The engines

EVERY = [(family, name) for family in ("v1.1", "gpt2") for name in ("packed", "generic")]
every_engine = pytest.mark.parametrize(("family", "name"), EVERY)


def engine(family: str, name: Any) -> Any:
    backbone = tiny_causal(family) if family == "gpt2" else tiny_t5(family)
    return replace(backbone, engine_name=name).engine


def seen_during(made: Any, question: str, monkeypatch: pytest.MonkeyPatch) -> set[tuple[bool, str]]:
    """Return what was set whenever the model read something and whenever anything was differentiated."""
    seen, differentiate = set(), torch.autograd.grad

    def note(*_: Any) -> None:
        seen.add((allocator._depth > 0, setting()))

    def grad(*args: Any, **options: Any) -> Any:
        note()
        return differentiate(*args, **options)

    model = made.backbone.model
    prompts, batch = random_prompts(2, 3), random_batch([4, 9], [2, 1])
    arguments: dict[str, tuple[Any, ...]] = {
        "losses": (batch,),
        "gradients": (batch, torch.ones(2)),
        "answer_log_likelihoods": (batch.inputs, batch.targets),
        "generate": (batch.inputs, 2),
    }
    hooks = [module.register_forward_pre_hook(note) for module in model.modules()]
    with monkeypatch.context() as patch:
        patch.setattr(torch.autograd, "grad", grad)
        getattr(made, question)(prompts, *arguments[question])
    for hook in hooks:
        hook.remove()
    return seen


@needs_onednn
@every_engine
def test_every_engines_settings_hold_for_all_of_a_question_and_end_with_it(
    family: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "onednn_error", lambda: 3e-7)
    before, made = setting(), engine(family, name)
    questions = ["losses", "gradients", "answer_log_likelihoods"]
    for question in questions + ["generate"] * (family == "gpt2"):  # the tiny T5 has no tokenizer
        assert seen_during(made, question, monkeypatch) == {(True, "bf16")}, question
        assert (allocator._depth, setting()) == (0, before)


@every_engine
def test_one_line_says_what_is_set_and_why(family: str, name: str, caplog: pytest.LogCaptureFixture) -> None:
    made = engine(family, name)
    caplog.clear()
    with caplog.at_level("INFO", logger="bmtpt"):
        for _ in range(2):
            made.losses(random_prompts(1, 3), random_batch([4], [1]))
    (line,) = caplog.messages
    assert line.startswith(f"engine={name} on a CPU, while a call runs: fp32 products ")
    for fact in ("(matmul=auto; oneDNN: ", "freed memory", f"{torch.get_num_threads()} threads (torch's setting, left"):
        assert fact in line


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (3e-7, "fp32 products by oneDNN (matmul=auto; oneDNN: its error is 3e-07, of true fp32 below 1e-06)"),
        (2e-3, "fp32 products as torch is set (matmul=auto; oneDNN: its error is 2e-03, of true fp32 below 1e-06)"),
        (float("inf"), "fp32 products as torch is set (matmul=auto; oneDNN: not to be had)"),
    ],
)
def test_the_line_states_the_error_that_decided(error: float, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "onednn_error", lambda: error)
    assert machine._products("auto", torch.float32) == told
    assert machine._products("plain", torch.float32) == "fp32 products as torch is set"
    assert "bfloat16 has no other path" in machine._products("auto", torch.bfloat16)


def test_the_line_says_why_memory_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "not_kept", lambda: "you have set MALLOC_TOP_PAD_")
    assert machine._memory(True) == "freed memory not kept (you have set MALLOC_TOP_PAD_)"
    assert machine._memory(False) == "freed memory not kept (switched off)"


# Attention on CUDA


def kernels() -> dict[str, bool]:
    cuda = torch.backends.cuda
    return {
        "flash": cuda.flash_sdp_enabled(),
        "efficient": cuda.mem_efficient_sdp_enabled(),
        "math": cuda.math_sdp_enabled(),
        "cudnn": cuda.cudnn_sdp_enabled(),
    }


SOUND = {"flash": True, "efficient": True, "math": True, "cudnn": False}


@pytest.mark.parametrize("kind", [CausalEngine, HuggingFaceCausalEngine, HuggingFaceEngine])
def test_on_cuda_cudnns_attention_is_shut_out_for_the_duration(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backbone, "device", torch.device("cuda"))
    before = kernels()
    with kind(tiny_causal("gpt2")).settings():
        assert kernels() == SOUND
    assert kernels() == before


def test_attention_kernels_that_the_user_has_switched_off_stay_off() -> None:
    before = kernels()
    torch.backends.cuda.enable_flash_sdp(False)
    try:
        with machine.sound_attention():
            assert kernels() == {**SOUND, "flash": False}
        assert kernels() == {**before, "flash": False}
    finally:
        torch.backends.cuda.enable_flash_sdp(before["flash"])


def test_where_cudnns_is_the_only_kernel_left_the_others_stand_in() -> None:
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.CUDNN_ATTENTION), machine.sound_attention():
        assert kernels() == SOUND


def test_other_devices_than_cpu_and_cuda_are_left_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backbone, "device", torch.device("mps"))
    before = kernels()
    with CausalEngine(tiny_causal("gpt2")).settings():
        assert kernels() == before
        assert allocator._depth == 0
