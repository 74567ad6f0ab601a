"""The server's log: one JSON object a line on standard error. No text of a row is in it unless that is asked for."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime

log = logging.getLogger("bmtpt.serve")

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Of the request that is being answered."""


class JsonLines(logging.Formatter):
    """Writes a record as one JSON object; what was given as ``extra={"fields": {…}}`` becomes its fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, ASCII only: nothing that a client sends can break it or colour a terminal."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname.lower(), "event": record.getMessage()}
        line |= {"request": request_id.get()} if request_id.get() else {}
        line |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[1]:
            line["error"] = "".join(traceback.format_exception(record.exc_info[1]))
        return json.dumps(line, default=str)


@contextmanager
def json_log() -> Iterator[None]:
    """Have everything that the server, the library and uvicorn log written as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    before = {}
    for name, level in {"bmtpt": logging.INFO, "uvicorn": logging.WARNING}.items():
        logger = logging.getLogger(name)
        before[logger] = (logger.handlers, logger.level, logger.propagate)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, (handlers, level, propagate) in before.items():
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)


def event(what: str, level: int = logging.INFO, **fields: object) -> None:
    """Log that something happened."""
    log.log(level, what, extra={"fields": fields})
