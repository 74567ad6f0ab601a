"""Use the Hugging Face hub without waiting for one that does not answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

SECONDS = 5.0


@contextmanager
def hub_or_cache() -> Iterator[bool]:
    """Let Hugging Face's libraries use only their caches if the hub does not answer; yield whether it does.

    Without this they ask for every file six times, for about 30 seconds, before they look into the cache.
    """
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = offline or not _answers()
    try:
        yield not constants.HF_HUB_OFFLINE
    finally:
        constants.HF_HUB_OFFLINE = offline


def _answers() -> bool:
    """Return whether the hub answers at all; what a refusal means is left to the libraries."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception:  # the kinds belong to the HTTP library, which differs between versions of huggingface_hub
        return False
    return True
