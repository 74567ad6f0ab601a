"""The CPU settings of a call: chosen by a measurement, gone when the call returns."""

from __future__ import annotations

import pytest
import torch

from bmtpt.backbone import machine
from bmtpt.backbone.plan import Plan

needs_onednn = pytest.mark.skipif(machine._setting() is None, reason="this torch has no switch for oneDNN's products")


@pytest.fixture(autouse=True)
def probed_anew() -> None:
    machine.onednn_error.cache_clear()
    machine._wants_onednn.cache_clear()


def setting() -> str:
    return str(machine._setting().fp32_precision)


@needs_onednn
@pytest.mark.parametrize("before", ["highest", "high", "medium"])
def test_the_users_matmul_precision_is_back_after_a_call_and_after_an_error(before: str) -> None:
    at_first = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(before)
        kept = setting()
        with machine.tuned(Plan(matmul="rounded"), torch.float32):
            assert setting() == "bf16"
        with pytest.raises(ZeroDivisionError), machine.tuned(Plan(matmul="rounded"), torch.float32):
            raise ZeroDivisionError
        assert (setting(), torch.get_float32_matmul_precision()) == (kept, before)
    finally:
        torch.set_float32_matmul_precision(at_first)


@needs_onednn
def test_by_default_products_are_true_fp32_whatever_this_processor_has(caplog: pytest.LogCaptureFixture) -> None:
    a, b = torch.randn(2, 512, 512, generator=torch.Generator().manual_seed(1))
    with caplog.at_level("INFO", logger="bmtpt"), machine.tuned(Plan(), torch.float32):
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
        with machine.tuned(Plan(matmul=matmul), torch.float32):  # type: ignore[arg-type]
            assert (setting() == "bf16") is (wanted or before == "bf16")


@needs_onednn
def test_other_precisions_leave_the_products_alone() -> None:
    before = setting()
    with machine.tuned(Plan(matmul="rounded"), torch.bfloat16):
        assert setting() == before
