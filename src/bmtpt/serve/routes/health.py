"""Whether the server lives and is ready."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from bmtpt.serve.service import Service
from bmtpt.serve.settings import ServeSettings


def router(service: Service, settings: ServeSettings) -> APIRouter:
    """Return the routes ``/healthz`` and ``/readyz``."""
    routes = APIRouter(tags=["health"])

    @routes.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Answer as long as the process can."""
        return {"status": "ok"}

    @routes.get("/readyz")
    async def readyz() -> JSONResponse:
        """Answer 200 if rows can be answered: a prompt is loaded, and the server is not about to stop."""
        ready = bool(service.shelf.snapshot()) and not service.batcher.draining
        return JSONResponse({"ready": ready, "prompts": len(service.shelf.snapshot())}, 200 if ready else 503)

    return routes
