"""Whether the server lives and is ready, and its figures."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from bmtpt.serve.service import Service
from bmtpt.serve.settings import ServeSettings


def router(service: Service, settings: ServeSettings) -> APIRouter:
    """Return the routes. With tokens they need one, too: an open one would tell strangers that this is a bmtpt."""
    routes = APIRouter(tags=["health"])

    @routes.get("/healthz", responses={503: {"description": "The model's thread has ended: restart the server."}})
    async def healthz() -> JSONResponse:
        """Answer 200 as long as the process can answer and the model's thread runs."""
        alive = service.batcher.alive
        return JSONResponse({"status": "ok" if alive else "the model's thread has ended"}, 200 if alive else 503)

    @routes.get("/readyz", responses={503: {"description": "No prompt is loaded, or the server is about to stop."}})
    async def readyz() -> JSONResponse:
        """Answer 200 if rows can be answered: a prompt is loaded, and the server is not about to stop."""
        prompts = len(service.shelf.snapshot())
        ready = prompts > 0 and service.batcher.alive and not service.batcher.draining
        return JSONResponse({"ready": ready, "prompts": prompts}, 200 if ready else 503)

    @routes.get("/metrics", response_class=Response)
    async def metrics(request: Request) -> Response:
        """Return the figures that Prometheus reads."""
        found = request.app.state.metrics
        return Response(found.text(), media_type=found.content_type)

    return routes
