"""The web application: every family of routes around one service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from bmtpt.serve.errors import BadRequest, ServeError
from bmtpt.serve.routes import classify, decisions, health, huggingface
from bmtpt.serve.schema import describe_with_names, invalid
from bmtpt.serve.service import Service
from bmtpt.serve.settings import ServeSettings

FAMILIES = (health, decisions, classify, huggingface)
"""Modules whose ``router(service, settings)`` returns their routes."""


def create_app(service: Service, settings: ServeSettings | None = None) -> FastAPI:
    """Return the application; when its server shuts down, everything that was accepted is answered first."""
    settings = settings or ServeSettings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.batcher.drain)

    # FastAPI's own pages for docs load scripts from other hosts.
    app = FastAPI(title="bmtpt", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_exception_handler(ServeError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    for family in FAMILIES:
        app.include_router(family.router(service, settings))
    describe_with_names(app, service)
    return app


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ServeError)
    return JSONResponse(error_body(error), error.status, error.headers)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return await _refused(request, BadRequest(invalid(error.errors())))


def error_body(error: ServeError) -> dict[str, dict[str, str]]:
    """Return what a refusal says, in the shape that clients of OpenAI's API read."""
    return {"error": {"message": str(error), "type": error.code}}
