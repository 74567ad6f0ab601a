"""What the folder of a model may hold: it is data from strangers, so it is looked at before transformers builds it.

None of its code is run: code of its own (`auto_map`), pickled weights and attention kernels from the hub are refused.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bmtpt.errors import BackboneError
from bmtpt.sealed import read_json

SLACK = 1_000_000
"""Parameters that a model may have beyond those of its files."""

BUFFERS = 300_000_000
"""Numbers of a model that are no parameters and not in its files: masks and tables of positions."""

COPIES = 4
"""How often a table that is stored once may be counted: T5 builds it for itself, encoder, decoder and head."""


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the safetensors files of a model's folder; none if it has none.

    Raises:
        BackboneError: Their index is not one, or names a file elsewhere.
    """
    single, path = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file() or not path.is_file():
        return (single,) if single.is_file() else ()
    index = read_json(path, BackboneError)
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict):
        raise BackboneError(f"{path} has no weight_map; copy the folder again")
    for name in names.values():
        if not isinstance(name, str) or name != Path(name).name or not name.endswith(".safetensors"):
            raise BackboneError(f"{path} names {name!r} where the name of a .safetensors file in its folder belongs")
    return tuple(folder / name for name in sorted(set(names.values())))


def require_plain(config: Any, name: str) -> None:
    """Refuse a configuration that asks for an attention kernel from the hub, which is code."""
    parts = [config, *(getattr(config, part, None) for part in getattr(config, "sub_configs", ()))]
    for part in parts:
        kernel = getattr(part, "_attn_implementation", None)
        if "/" in str(kernel):
            raise BackboneError(
                f"the configuration of {name} asks for the attention kernel '{kernel}', which is code from the hub; "
                "remove attn_implementation from config.json"
            )


@contextmanager
def as_large_as(files: Sequence[Path], config: Any, name: str) -> Iterator[None]:
    """Refuse to build a model with many more numbers than its files hold, before it is given memory.

    transformers builds a model without memory and then fills it; what its configuration says may be of any size.
    """
    if not files:  # on the hub, and not in its cache
        yield
        return
    numbers = sum(map(_numbers, files))
    most = COPIES * numbers + SLACK
    if getattr(config, "quantization_config", None):  # one bit a number at least
        most = 8 * COPIES * sum(path.stat().st_size for path in files) + SLACK

    def counting(most: int) -> Callable[[nn.Module, str, Tensor | None], None]:
        built = 0

        def count(module: nn.Module, key: str, tensor: Tensor | None) -> None:
            nonlocal built
            built += tensor.numel() if tensor is not None and tensor.is_meta else 0
            if built > most:
                raise BackboneError(
                    f"config.json of {name} describes a model of more than {most:,} numbers, and its weights hold "
                    f"{numbers:,}: they do not belong together; copy the folder again"
                )

        return count

    hooks = [
        nn.modules.module.register_module_parameter_registration_hook(counting(most)),
        nn.modules.module.register_module_buffer_registration_hook(counting(BUFFERS)),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def require_whole(info: Mapping[str, Any], name: str) -> None:
    """Refuse a model whose weights lack a tensor or have one of another shape; say which of them are not used.

    Args:
        info: What transformers tells of the loading.
    """
    if missing := sorted(info["missing_keys"]):  # transformers would fill them with random numbers
        raise BackboneError(f"the weights of backbone '{name}' lack {missing[0]} ({len(missing)} missing in all)")
    if wrong := sorted(info["mismatched_keys"]):  # and these too
        key, stored, configured = wrong[0]
        raise BackboneError(
            f"the weights of backbone '{name}' have {key} as {list(stored)} where config.json says {list(configured)}; "
            "copy the folder again"
        )
    if unused := sorted(info["unexpected_keys"]):
        logging.getLogger("bmtpt").warning(
            "the weights of backbone '%s' hold %d tensors that are not in the model of its config.json (first %s); "
            "is it the right config.json?", name, len(unused), unused[0],
        )  # fmt: skip


def _numbers(path: Path) -> int:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return sum(prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise BackboneError(f"{path} is not a whole safetensors file ({error}); copy it again") from error
