"""A progress bar for scripts and notebooks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bmtpt.api.given import described
from bmtpt.train.events import Listener

Progress = bool | Listener | None


@contextmanager
def listening(progress: Progress, stage: str) -> Iterator[Listener | None]:
    """Give the listener of a run: the caller's own function, a bar, or none.

    Args:
        progress: A function that is called with every event; True for a bar, False for none, and None for a bar where a
            person looks on (a terminal or a notebook).
        stage: What the bar says.
    """
    if callable(progress):
        yield progress
        return
    if progress is not None and not isinstance(progress, bool):
        raise TypeError(f"progress must be True, False, None or a function of one event, not {described(progress)}")
    if progress is None:
        progress = sys.stderr.isatty() or "ipykernel" in sys.modules
    if not progress:
        yield None
        return
    from tqdm.auto import tqdm

    with tqdm(desc=stage, unit="step") as bar:

        def show(event: dict[str, Any]) -> None:
            if event["event"] != "step":
                return
            if bar.total != event.get("steps"):  # another run begins: the prompt that particles start around
                bar.reset(total=event.get("steps"))
            values = [value for losses in event["loss"].values() for value in losses]
            bar.set_postfix(loss=f"{sum(values) / len(values):.3f}", refresh=False)
            bar.update(event["step"] + 1 - bar.n)

        yield show
