"""What an earlier run of a study has trained for a cell that has no lines: it is scored, and not trained again.

That run was stopped before it wrote the lines, or the cell is to be read in one more way (`reread`), or another variant
differs only in how its prompt is read.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from pathlib import Path

from bmtpt.artifacts.folder import read_raw_card
from bmtpt.artifacts.readout_prior import WidthPoint
from bmtpt.artifacts.saved import Prompt, PromptMixture
from bmtpt.methods.registry import Method
from bmtpt.settings import AdaptSettings
from bmtpt.studies.spec import REREAD

CHOSEN_LATER = {*WidthPoint.model_fields} & {*AdaptSettings.model_fields}
"""Settings that the posterior decides where `readout_prior` says so."""

READING = {*REREAD, "readout_prior"}
"""Settings that decide how a trained prompt is read."""


def trains_alike(settings: AdaptSettings) -> bool:
    """Return whether a prompt is trained the same however it will be read, and reading it again can stand for that."""
    alone = settings.likelihood == "tokens" and settings.selection == "none"
    return alone and settings.readout_prior == "fixed" and settings.steps > 0


def kept(
    folder: Path,
    method: Method,
    settings: AdaptSettings,
    posterior: str | None,
    apart_from: AbstractSet[str] = frozenset(),
) -> Prompt | PromptMixture | None:
    """Return what a folder keeps, or None if it is empty or its card tells of anything else.

    Args:
        settings: Of the target stage, as the method uses them (`settled`).
        posterior: Hash of the posterior's weights, if the method starts from one.
        apart_from: Settings that may be others.

    Raises:
        ArtifactError: It is damaged.
    """
    card = read_raw_card(folder)
    if card is None:
        return None
    found = (PromptMixture if card["kind"] == "mixture" else Prompt).load(folder)
    own = {**AdaptSettings.BEFORE, **found.card.settings}
    decided = CHOSEN_LATER if settings.readout_prior == "posterior" else frozenset()
    expected = settings.model_dump(mode="json", exclude={*apart_from, *decided})
    same = all(own.get(option) == value for option, value in expected.items())
    return found if same and (found.card.method, found.card.posterior) == (method.name, posterior) else None
