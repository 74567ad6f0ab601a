"""What a study asks of a backbone or a package that is not to be had, found before anything is trained."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from typing import Any, get_args

from bmtpt.errors import BackboneError, SettingsError
from bmtpt.settings import WeightMethod


def require_feasible(columns: Iterable[tuple[str, str]]) -> None:
    """Refuse a method that cannot run on its backbone.

    Args:
        columns: Method and name of the backbone of every column.

    Raises:
        BackboneError: MPT on a model without an encoder, weight tuning of another model than T5, or a backbone whose
            configuration cannot be read.
        SettingsError: LoRA without peft.
    """
    for method, name in dict.fromkeys(columns):
        tunes = method in get_args(WeightMethod)
        if method == "lora" and find_spec("peft") is None:
            raise SettingsError("LoRA needs the peft package; run: pip install 'bmtpt[peft]', or leave lora out")
        if name == "offline" or not (tunes or method == "mpt"):  # the offline backbone is a T5
            continue
        config = _config(name)
        if tunes and config.model_type != "t5":
            what = f"method '{method}' tunes the weights of T5 models"
            raise BackboneError(f"{what}, and '{name}' is a {config.model_type} model; leave {method} out")
        if not config.is_encoder_decoder:
            raise BackboneError(f"MPT distils encoder-decoder models, and backbone '{name}' is none; leave mpt out")


@cache
def _config(name: str) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BackboneError(f"cannot load backbone '{name}': {reason}") from error
