"""The web application: every family of routes around one service, behind the gate."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from bmtpt.serve.errors import BadRequest, ServeError
from bmtpt.serve.folders import Watch
from bmtpt.serve.gate import REFUSED, Gate, logged
from bmtpt.serve.metrics import Metrics
from bmtpt.serve.routes import admin, classify, decisions, health, huggingface, page, predict
from bmtpt.serve.schema import describe_with_names, invalid, refusals
from bmtpt.serve.service import Service
from bmtpt.serve.settings import ServeSettings
from bmtpt.serve.tokens import Token

GATE_STATUSES = (401, 403, 408, 413)
"""Statuses that the gate may give to any request."""

FAMILIES = (page, predict, admin, health, decisions, classify, huggingface)
"""Modules whose ``router(service, settings)`` returns their routes."""


def create_app(
    service: Service,
    settings: ServeSettings | None = None,
    *,
    tokens: Sequence[Token] = (),
    hosts: Sequence[str] = (),
    watch: Watch | None = None,
) -> FastAPI:
    """Return the application; when its server shuts down, everything that was accepted is answered first.

    Args:
        tokens, hosts: See `Gate`.
        watch: Runs as long as the application.
    """
    settings = settings or service.settings

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(watch.run()) if watch else None
        yield
        if watching:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
        await asyncio.to_thread(service.batcher.drain)

    # FastAPI's own pages for docs load scripts from other hosts.
    app = FastAPI(title="bmtpt", lifespan=lifespan, docs_url=None, redoc_url=None, responses=refusals(*GATE_STATUSES))
    app.state.metrics = metrics = Metrics(service)
    service.batcher.observe = metrics.batch
    app.add_exception_handler(ServeError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _no_route)
    for family in FAMILIES:
        app.include_router(family.router(service, settings))
    describe_with_names(app, service)
    app.add_middleware(
        Gate,
        service=service,
        settings=settings,
        tokens=tokens,
        hosts=hosts,
        public=page.FILES,
        observers=(metrics.visit, logged),
    )
    return app


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ServeError)
    request.scope[REFUSED] = error.code
    return JSONResponse(error.body, error.status, error.headers)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return await _refused(request, BadRequest(invalid(error.errors())))


async def _no_route(request: Request, error: Exception) -> JSONResponse:
    """Say what the framework refuses by itself: a path or a method that does not exist, a body that is no JSON."""
    assert isinstance(error, HTTPException)
    sentences = {
        400: "the body is not JSON in UTF-8, or is nested too deeply",
        404: f"there is no {request.url.path}; /openapi.json describes what there is",
        405: f"{request.url.path} does not take {request.method}; /openapi.json describes what it takes",
    }
    codes = {400: "not_json", 404: "not_found", 405: "not_allowed"}
    request.scope[REFUSED] = code = codes.get(error.status_code, "error")
    sentence = str(ServeError(sentences.get(error.status_code, error.detail)))
    return JSONResponse({"error": {"message": sentence, "type": code}}, error.status_code, error.headers)
