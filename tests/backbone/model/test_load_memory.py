"""Loading needs little more memory than the weights take: they are never held in fp32, nor twice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

MEASURE = """
import sys, threading, time
import torch
from bmtpt.backbone import Backbone
from bmtpt.backbone.model import load  # what is imported lazily is not the model's memory

def anonymous():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024

small, large = sys.argv[1:]
Backbone.from_pretrained(small)
before, peak, done = anonymous(), [0], threading.Event()

def watch():
    while not done.wait(0.002):
        peak[0] = max(peak[0], anonymous())

thread = threading.Thread(target=watch)
thread.start()
backbone = Backbone.from_pretrained(large, precision="bfloat16", device="cpu")
done.set()
thread.join()
print(peak[0] - before, sum(w.numel() * w.element_size() for w in backbone.model.parameters()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the process's memory is read from /proc")
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_loading_in_bfloat16_takes_at_most_a_tenth_more_than_the_weights(
    stored: torch.dtype, tiny_t5_folder: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 12, "num_heads": 8, "vocab_size": 32_128}
    config = T5Config(**sizes, feed_forward_proj="gated-gelu", decoder_start_token_id=0, tie_word_embeddings=False)
    with torch.device("meta"):
        model = T5ForConditionalGeneration(config)
    weights = {name: torch.zeros(weight.shape, dtype=stored) for name, weight in model.named_parameters()}
    config.save_pretrained(tmp_path)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert load_file(tmp_path / "model.safetensors").keys() == weights.keys()
    AutoTokenizer.from_pretrained(tiny_t5_folder).save_pretrained(tmp_path)
    command = [sys.executable, "-c", MEASURE, str(tiny_t5_folder), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2_000:]
    taken, held = map(int, done.stdout.split())
    assert held > 200 * 2**20
    assert taken < 1.1 * held + 64 * 2**20
