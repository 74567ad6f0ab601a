"""The examples that add a method and a kernel run, and find what they should."""

from __future__ import annotations

import pytest
import torch

from bmtpt.methods import registry
from bmtpt.methods.registry import all_methods
from bmtpt.posterior import kernels


@pytest.fixture
def restored(monkeypatch):
    monkeypatch.setattr(registry, "_registered", dict(all_methods()))
    monkeypatch.setattr(kernels, "KERNELS", dict(kernels.KERNELS))


def test_a_study_compares_a_method_that_a_script_registers(
    example, restored, tiny_t5_folder, tiny_task_folder, tmp_path
):
    lines = example("new_method").compare(
        tmp_path,
        backbone=str(tiny_t5_folder),
        sources=[str(tiny_task_folder / f"{name}.yaml") for name in ("sentiment", "answers")],
        targets=[str(tiny_task_folder / "pairs.yaml")],
    )
    assert {line.method for line in lines if line.primary} == {"pt", "source_median"}


def test_the_gradient_of_the_new_kernel_is_that_of_its_value(example, restored):
    matern = example("new_kernel").matern
    points = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    h = torch.tensor([2.0], dtype=torch.float64)
    kernel = kernels.Kernel(points, h, matern(points, h))
    for i in range(4):
        x = points[0].clone().requires_grad_(True)
        r = (x - points[0, i]).norm(dim=1) / 2**0.5
        others = torch.arange(4) != i
        ((1 + 3**0.5 * r) * torch.exp(-(3**0.5) * r))[others].sum().backward()
        torch.testing.assert_close(kernel.gradient(i)[0][others], x.grad[others])


def test_svgd_with_the_new_kernel_finds_the_mean(example, restored):
    error, ratio = example("new_kernel").moments("matern", particles=20, dimension=2, steps=200)
    assert error < 1e-2
    assert 0.5 < ratio < 1.2
