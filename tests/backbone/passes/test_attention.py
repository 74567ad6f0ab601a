"""On a GPU cuDNN's attention is left out, whose backward pass with a mask has given NaN."""

from __future__ import annotations

import torch
from torch.backends.cuda import cudnn_sdp_enabled, flash_sdp_enabled, math_sdp_enabled

from bmtpt.backbone.passes import sound_attention


def test_on_cuda_cudnns_attention_is_off_for_the_duration_and_no_other_kernel() -> None:
    before = cudnn_sdp_enabled()
    with sound_attention(torch.device("cuda")):
        assert not cudnn_sdp_enabled()
        assert flash_sdp_enabled()
        assert math_sdp_enabled()
    assert cudnn_sdp_enabled() == before


def test_on_a_cpu_nothing_is_changed() -> None:
    before = cudnn_sdp_enabled()
    with sound_attention(torch.device("cpu")):
        assert cudnn_sdp_enabled() == before
