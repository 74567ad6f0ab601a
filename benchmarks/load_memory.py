"""Memory of a backbone from the file to the first pass, as a multiple of its weights: may no copy of them be held.

    python benchmarks/load_memory.py --out benchmarks/results/load-memory.jsonl

Models of published shapes with made-up weights are written to a temporary folder in bfloat16 and loaded in bfloat16 in
a process of its own (`memory.py`): from_pretrained with its fingerprint, the engine, the losses of one example. What
imports take is not counted. Pages of the weights' file count to the peak; they are also counted apart, because the
system takes them back when it needs them.
"""

from __future__ import annotations

import json
import sys
import tempfile
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common
from memory import of_process, resident
from tiny import write_t5

T5 = {"model_type": "t5", "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "vocab_size": 32128}
LLAMA = {"model_type": "llama", "vocab_size": 32000, "tie_word_embeddings": False}
SHAPES: dict[str, dict[str, Any]] = {
    "t5-v1.1-small": T5 | {"d_model": 512, "d_ff": 1024, "num_layers": 8, "num_heads": 6},
    "t5-v1.1-base": T5 | {"d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12},
    "t5-v1.1-large": T5 | {"d_model": 1024, "d_ff": 2816, "num_layers": 24, "num_heads": 16},
    "llama-100m": LLAMA | {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 16},
    "llama-300m": LLAMA | {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 18},
    "llama-1b": LLAMA | {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 17},
}


def write_model(folder: Path, shape: dict[str, Any]) -> int:
    """Write a model of a shape in bfloat16 and a tokenizer; return the bytes of its weights."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM, T5ForConditionalGeneration

    write_t5(folder)  # its tokenizer, whose words are fewer than the table's rows
    kind = T5ForConditionalGeneration if shape["model_type"] == "t5" else AutoModelForCausalLM.from_config
    config = AutoConfig.for_model(**shape, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)
    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in kind(config).named_parameters()}
    some = (0.02 * torch.randn(2**20)).bfloat16()
    weights = {
        name: some.repeat(-(-size.numel() // len(some)))[: size.numel()].view(size) for name, size in shapes.items()
    }
    save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / "model.safetensors")
    config.dtype = "bfloat16"
    config.save_pretrained(folder)
    return sum(2 * size.numel() for size in shapes.values())


def measure(folder: Path) -> None:
    """Load the model and print what is resident after each stage, beyond what imports took."""
    import torch
    import transformers.models.llama.modeling_llama
    import transformers.models.t5.modeling_t5  # noqa: F401

    import bmtpt
    from bmtpt.types import TokenBatch

    stages = {"imported": resident()}
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    backbone = bmtpt.Backbone.from_pretrained(folder, precision="bfloat16", device="cpu")
    stages["loaded"] = resident()
    engine = backbone.engine
    stages["engine"] = resident()
    ids = torch.tensor([5, 6, 7, 1])
    losses = engine.losses(torch.zeros(1, 4, backbone.d_model), TokenBatch([ids], [ids]))
    stages["pass"] = resident()
    assert losses.isfinite().all()
    print(json.dumps({"engine": engine.name, "parameters": backbone.parameters, "stages": stages}))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every shape that the file lacks."""
    options = _options(arguments)
    if options.measure:
        measure(options.measure)
        return 0
    done = {line["shape"] for line in common.lines_in(options.out)}
    for name in options.shapes:
        if name in done:
            continue
        with tempfile.TemporaryDirectory() as root:
            folder = Path(root)
            size = write_model(folder, SHAPES[name])
            used = of_process([__file__, "--measure", folder], folder)
        found = json.loads(used.output.splitlines()[-1])
        before, after = found["stages"]["imported"], found["stages"]["pass"]
        base = sum(before[kind] for kind in ("RssAnon", "RssFile", "RssShmem"))
        line = {"benchmark": "load_memory", "shape": name, "engine": found["engine"], "parameters": found["parameters"]}
        line |= {"weight_bytes": size, "peak_bytes": after["VmHWM"] - base}
        line |= {"anonymous_bytes": used.anonymous_bytes - before["RssAnon"], "stages": found["stages"]}
        common.append_line(options.out, {**line, "machine": common.machine_facts()})
        peak, anonymous = (line[key] / size for key in ("peak_bytes", "anonymous_bytes"))
        print(f"{name}, {found['engine']}: {peak:.2f} times its weights, {anonymous:.2f} anonymous", flush=True)
    return 0


def _options(arguments: Sequence[str] | None) -> Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON lines to append to")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--measure", type=Path, help="the child's part: load this folder")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
