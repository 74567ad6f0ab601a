"""Pre-flight checks: methods that this backbone or environment cannot run."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from typing import Any

from bmtpt.errors import BackboneError, SettingsError
from bmtpt.methods.registry import get_method


def require_feasible(columns: Iterable[tuple[str, str]]) -> None:
    """Refuse a method that cannot run on its backbone.

    Args:
        columns: Method and name of the backbone of every column.

    Raises:
        BackboneError: The method does not run on this kind of model, or the model's configuration cannot be read.
        SettingsError: The method needs a package that is not installed.
    """
    for name, backbone in dict.fromkeys(columns):
        method = get_method(name)
        if method.package and find_spec(method.package) is None:
            raise SettingsError(
                f"{method.display_name} needs the {method.package} package; "
                f"run: pip install 'bmtpt[{method.package}]', or leave {name} out"
            )
        if method.backbones == "any" or backbone == "offline":  # the offline backbone is a T5
            continue
        method.require_runs_on(backbone, _config(backbone))


@cache
def _config(name: str) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BackboneError(f"cannot load backbone '{name}': {reason}") from error
