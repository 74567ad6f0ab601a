"""`GET /`: the page for people, which needs nothing from other hosts."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources

from fastapi import APIRouter, Response

from bmtpt.serve.service import Service
from bmtpt.serve.settings import ServeSettings

FILES = {
    "/": ("index.html", "text/html"),
    "/page/page.js": ("page.js", "text/javascript"),
    "/page/page.css": ("page.css", "text/css"),
    "/page/icon.svg": ("icon.svg", "image/svg+xml"),
}
"""The page's files by path. They hold no secret, so they are served to those without a token, too."""


def router(service: Service, settings: ServeSettings) -> APIRouter:
    """Return the routes of the page."""
    routes = APIRouter(include_in_schema=False)
    for path, (name, kind) in FILES.items():
        content = resources.files("bmtpt.serve").joinpath("page", name).read_bytes()
        routes.add_api_route(path, _file(content, kind), methods=["GET"])
    return routes


def _file(content: bytes, kind: str) -> Callable[[], Response]:
    return lambda: Response(content, media_type=kind)
