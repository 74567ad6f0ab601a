from __future__ import annotations

from pathlib import Path

import torch

from bmtpt.backbone.model.pages import leave_memory


def test_weights_that_leave_memory_are_read_again(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = tmp_path / "weights.safetensors"
    numbers = torch.arange(300_000).float()
    save_file({"of_a_file": numbers}, path)
    mapped, own = load_file(path)["of_a_file"], numbers.clone()
    leave_memory([mapped, own, own[:3], own[::7]])
    assert torch.equal(mapped, numbers)
    assert torch.equal(own, numbers)
