"""What the benchmarks measure with, against truths that are known beforehand."""

from __future__ import annotations

import pytest
import torch

import common
from common import gradient_error, interleaved, with_peak_memory

CPU = torch.device("cpu")


def test_functions_run_in_turn_and_each_as_often_as_asked():
    calls = []
    times = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, {"a": 3, "b": 1})
    assert calls == ["a", "b", "a", "a"]
    assert (times["a"].rounds, times["b"].rounds) == (3, 1)


def test_a_time_is_the_median_of_its_rounds(monkeypatch):
    clock = iter([0, 1, 0, 100, 0, 3])
    monkeypatch.setattr(common.time, "perf_counter", lambda: next(clock))
    assert interleaved({"a": lambda: None}, 3)["a"].seconds == 3


def test_peak_memory_sees_what_is_freed_before_the_end():
    size = 64 * 2**20

    def held_for_a_while() -> int:
        torch.ones(size // 4).sum()
        return 7

    result, peak = with_peak_memory(held_for_a_while, CPU)
    assert result == 7
    assert peak is not None
    assert 0.9 * size < peak < 1.6 * size


def test_the_error_of_a_scaled_gradient_is_its_scale_and_its_cosine_is_one():
    truth = torch.randn(3, 4, 5)
    error, cosine = gradient_error(1.25 * truth, truth)
    assert error == pytest.approx(0.25)
    assert cosine == pytest.approx(1)
    assert gradient_error(-truth, truth)[1] == pytest.approx(-1)


def test_the_matmul_peak_leaves_the_librarys_path_as_it_was():
    before = torch.backends.mkldnn.matmul.fp32_precision
    assert common.matmul_peak(torch.float32, CPU, common.SMOKE_PRODUCTS) > 0
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_asking_for_a_device_that_is_not_there_is_one_clear_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="finds no CUDA device"):
        common.device_of("cuda")
    assert common.device_of("auto") == CPU
