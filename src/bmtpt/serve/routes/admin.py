"""`/admin/prompts`: list, load, replace and remove prompts while requests run.

Nothing in a request names a file. A prompt is uploaded whole, as the two files that its folder holds, and kept in
memory; or a folder that was given at the start is read again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Path
from pydantic import Base64Bytes, BaseModel, ConfigDict

from bmtpt.artifacts.saved import Prompt
from bmtpt.errors import BmtptError, nearest, shortened
from bmtpt.serve.errors import BadPrompt, ServeError, UnknownPrompt
from bmtpt.serve.log import event
from bmtpt.serve.schema import PromptName, refusals
from bmtpt.serve.service import Service
from bmtpt.serve.settings import ServeSettings
from bmtpt.serve.shelf import Served, unknown

CHANGES = (400, 404, 422, 503)
"""Statuses with which a change of the prompts may be refused, besides those of the gate."""

Name = Annotated[PromptName, Path()]


class Upload(BaseModel):
    """A prompt's folder as JSON.

    Attributes:
        card: What is in ``card.json``.
        weights: ``prompt.safetensors``, in base64.
    """

    model_config = ConfigDict(extra="forbid")

    card: dict[str, Any]
    weights: Base64Bytes


class Loaded(BaseModel):
    """A loaded prompt.

    Attributes:
        task: Name of the task that it was trained for.
        labels: What it chooses from; empty if it writes its answers.
        prompts: How many there are; more than one are an ensemble.
        sha256: Of its weights.
        origin: Where it came from: "start", "watch" or "upload".
        trained, loaded: ISO 8601.
    """

    name: str
    task: str
    labels: list[str]
    method: str
    prompts: int
    sha256: str
    origin: str
    trained: str
    loaded: str


class Listed(BaseModel):
    """All loaded prompts, by name, and the model that they share."""

    backbone: str
    prompts: list[Loaded]


class Changed(BaseModel):
    """A prompt that was loaded, and the SHA-256 of the weights that it replaced, if it did."""

    prompt: Loaded
    replaced: str | None


def router(service: Service, settings: ServeSettings) -> APIRouter:
    """Return the routes. Each change happens at once: a request is answered with the prompts of when it came."""
    routes = APIRouter(prefix="/admin/prompts", tags=["admin"])

    @routes.get("")
    async def list_prompts() -> Listed:
        """List the loaded prompts."""
        prompts = [described(served) for _, served in sorted(service.shelf.snapshot().items())]
        return Listed(backbone=service.backbone.name, prompts=prompts)

    @routes.put("/{name}", responses=refusals(*CHANGES))
    async def load(name: Name, upload: Upload) -> Changed:
        """Load a prompt, or replace the one of this name. It is in memory only: a restart forgets it."""
        return await asyncio.to_thread(changed, service, name, "upload", lambda: uploaded(name, upload))

    @routes.post("/{name}/reload", responses=refusals(*CHANGES))
    async def reload(name: Name) -> Changed:
        """Read a prompt again from the folder that was given when the server was started."""
        if name not in service.folders:
            cure = nearest(name, service.folders) if service.folders else "no folder was"
            raise UnknownPrompt(f"no folder of '{shortened(name)}' was given at the start; {shortened(cure, 200)}")
        folder = service.folders[name]
        return await asyncio.to_thread(changed, service, name, "start", lambda: Prompt.load(folder))

    @routes.delete("/{name}", responses=refusals(*CHANGES))
    async def remove(name: Name) -> Loaded:
        """Remove a prompt; requests that were accepted before are still answered with it."""
        served = service.shelf.remove(name)
        event("prompt removed", prompt=name, by="request")
        return described(served)

    return routes


def uploaded(name: str, upload: Upload) -> Prompt:
    """Return the prompt that an upload holds; raise a `BadPrompt` if it holds none."""
    try:
        return Prompt.from_files(upload.card, upload.weights, f"upload '{shortened(name)}'")
    except RecursionError:
        raise BadPrompt(f"the card of upload '{shortened(name)}' is nested too deeply") from None


def changed(service: Service, name: str, origin: str, read: Callable[[], Prompt]) -> Changed:
    """Load or replace a prompt, outside the event loop.

    Raises:
        BadPrompt: It is damaged, or of another backbone.
        Draining: The server is about to stop.
    """
    try:
        old = service.load(name, read(), origin)
    except ServeError:
        raise
    except BmtptError as error:
        raise BadPrompt(str(error)) from error
    event("prompt replaced" if old else "prompt loaded", prompt=name, by="request")
    served = service.shelf.snapshot().get(name)
    if served is None:  # removed by another request, just now
        raise unknown(name, service.shelf.snapshot())
    return Changed(prompt=described(served), replaced=old.prompt.card.weights_sha256 if old else None)


def described(served: Served) -> Loaded:
    """Describe a loaded prompt."""
    card = served.prompt.card
    return Loaded(
        name=served.name,
        task=card.task,
        labels=list(served.task.label_words) if served.task.fixed_words else [],
        method=card.method,
        prompts=len(served.prompt.prompts),
        sha256=card.weights_sha256,
        origin=served.origin,
        trained=card.created,
        loaded=served.loaded,
    )
