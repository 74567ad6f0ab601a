"""What every request passes before anything of it is parsed: who asks, whether there is room, how much is sent.

Plain ASGI, because under overload the cost of a refusal is what is left of the server's goodput.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from bmtpt.errors import shortened
from bmtpt.serve.errors import Busy, Forbidden, ServeError, SlowBody, TooLarge, Unauthorised
from bmtpt.serve.log import log, request_id
from bmtpt.serve.service import Service
from bmtpt.serve.settings import ServeSettings
from bmtpt.serve.tokens import Token, bearer

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

ADMIN = "/admin"
"""Paths below it change the server: they need a token of scope admin."""

REFUSED = "bmtpt.refused"
"""Where a request's scope holds the code of the error that refused it."""

REQUEST_ID = re.compile(rb"[A-Za-z0-9_.-]{1,64}")
SECURITY = {
    b"cache-control": b"no-store",
    b"content-security-policy": b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    b"img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    b"cross-origin-resource-policy": b"same-origin",
    b"referrer-policy": b"no-referrer",
    b"x-content-type-options": b"nosniff",
}
"""Headers of every reply that does not say otherwise."""


@dataclass
class Visit:
    """A request on its way, for the log and the metrics.

    Attributes:
        id: The client's own, or one made here; the reply has it in ``x-request-id``.
        token: Whose it is; None if none is needed, or it has none.
        status: Of the reply; 0 until it begins.
    """

    scope: Scope
    id: str
    token: Token | None = None
    status: int = 0
    start: float = field(default_factory=time.perf_counter)

    @property
    def refused(self) -> str:
        """The code of the error with which the gate or a route refused it; "" if it was answered."""
        return str(self.scope.get(REFUSED, ""))

    @property
    def seconds(self) -> float:
        """Since it came."""
        return time.perf_counter() - self.start

    @property
    def route(self) -> str:
        """The path of the route that answered it, with its parameters' names; "" if none did."""
        return getattr(self.scope.get("route"), "path", "")


class Gate:
    """An ASGI application around another one.

    Args:
        tokens: Those that are known; with none, every request is let in.
        hosts: Names that the server answers for; none are all. Without tokens this keeps a page of another site, whose
            name was pointed at this machine, from asking in its visitor's browser.
        public: Paths that anyone may read: those of the page, which asks its visitor for a token.
        observers: Called with each request that has been answered.
    """

    def __init__(
        self,
        app: ASGIApp,
        service: Service,
        settings: ServeSettings,
        tokens: Sequence[Token] = (),
        hosts: Sequence[str] = (),
        public: Collection[str] = (),
        observers: Sequence[Callable[[Visit], None]] = (),
    ) -> None:
        self.app, self.service, self.settings = app, service, settings
        self.tokens, self.hosts, self.public, self.observers = tokens, hosts, public, observers
        self.inside = 0
        # Each of them has a row that waits or is in the model's pass, or is about to.
        self.most_inside = settings.queue + settings.max_batch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; other kinds of connection (there is no WebSocket here) are not taken."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        headers = dict(scope["headers"])
        visit = Visit(scope, _request_id(headers))
        request_id.set(visit.id)
        send = _with_headers(send, visit)
        asks = scope["method"] == "POST" and not _is_admin(scope)
        self.inside += asks
        try:
            visit.token = self._admitted(scope, headers)
            if asks:
                self._require_room()
            most = self.settings.max_upload if _is_admin(scope) else self.settings.max_body
            body = await self._body(headers, receive, most)
            if asks:
                self._require_room()
            await (self._asked if asks else self.app)(scope, _replayed(body, receive), send)
        except ServeError as error:
            scope[REFUSED] = error.code
            await _reply(send, error)
        except Exception:
            log.exception("a request failed")
            if not visit.status:
                sentence = f"the server failed; its log says why under request {visit.id}"
                await _reply(send, ServeError(sentence))
            scope[REFUSED] = ServeError.code
        finally:
            self.inside -= asks
            for observer in self.observers:
                observer(visit)
        return None

    async def _asked(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Have the application answer, and stop it if the client hangs up: the model then passes over its rows."""
        body = await receive()
        hanging_up = asyncio.ensure_future(receive())
        answering = asyncio.ensure_future(self.app(scope, _replayed(body["body"], lambda: hanging_up), send))
        try:
            await asyncio.wait([answering, hanging_up], return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                answering.result()
            else:
                scope[REFUSED] = "hung_up"
        finally:
            hanging_up.cancel()
            answering.cancel()

    def _admitted(self, scope: Scope, headers: dict[bytes, bytes]) -> Token | None:
        """Return whose request it is; raise `Unauthorised` or `Forbidden` if it is not to be answered."""
        host = headers.get(b"host", b"").decode("latin-1")
        name = _host_name(host)
        if self.hosts and name not in self.hosts:
            known = ", ".join(self.hosts)
            raise Forbidden(f"this server answers for {known} and not for '{shortened(name)}'; start it with tokens")
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and origin.partition("://")[2] != host:
            raise Forbidden(f"pages of other sites may not ask this server ('{shortened(origin)}')")
        if not self.tokens or (scope["method"] == "GET" and scope["path"] in self.public):
            return None
        token = bearer(self.tokens, headers.get(b"authorization", b""))
        if token is None:
            raise Unauthorised("a token is needed that this server knows: Authorization: Bearer TOKEN")
        if _is_admin(scope) and token.scope != "admin":
            raise Forbidden("this token may ask and not change the server; a token of scope admin is needed")
        return token

    def _require_room(self) -> None:
        self.service.batcher.require_room()
        if self.inside > self.most_inside:
            raise Busy(f"{self.inside:,} requests are inside; ask again after Retry-After seconds")

    async def _body(self, headers: dict[bytes, bytes], receive: Receive, most: int) -> bytes:
        """Return the whole body, which then cannot keep anybody waiting."""
        said = headers.get(b"content-length", b"0")
        if said.isdigit() and int(said[:20]) > most:
            raise _too_large(most)
        parts, size, more = [], 0, True
        try:
            async with asyncio.timeout(self.settings.body_seconds):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise SlowBody("the connection was closed before the whole body was there")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    more = message.get("more_body", False)
                    if size > most:
                        raise _too_large(most)
        except TimeoutError:
            raise SlowBody(f"the body was not there within {self.settings.body_seconds:g} seconds") from None
        return b"".join(parts)


def _is_admin(scope: Scope) -> bool:
    return f"{scope['path']}/".startswith(f"{ADMIN}/")


def _too_large(most: int) -> TooLarge:
    return TooLarge(f"the body has more than {most:,} bytes; send fewer rows at a time")


def _request_id(headers: dict[bytes, bytes]) -> str:
    own = headers.get(b"x-request-id", b"")
    return own.decode() if REQUEST_ID.fullmatch(own) else secrets.token_hex(8)


def _host_name(host: str) -> str:
    """Return a header Host without its port.

    >>> [_host_name(host) for host in ("localhost:8000", "[::1]:8000", "127.0.0.1")]
    ['localhost', '::1', '127.0.0.1']
    """
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return host


def _with_headers(send: Send, visit: Visit) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            visit.status = message["status"]
            given = [(name.lower(), value) for name, value in message.get("headers", ())]
            ours = {**SECURITY, b"x-request-id": visit.id.encode()}
            missing = [(name, value) for name, value in ours.items() if name not in dict(given)]
            message = {**message, "headers": [*given, *missing]}
        await send(message)

    return sent


def _replayed(body: bytes, receive: Callable[[], Awaitable[Message]]) -> Receive:
    waiting = [body]

    async def received() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return received


async def _reply(send: Send, error: ServeError) -> None:
    body = json.dumps(error.body).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})


def logged(visit: Visit) -> None:
    """Log a request: who asked what, how it ended, and how long it took."""
    client = visit.scope.get("client") or ("",)
    fields = {
        "method": visit.scope["method"],
        "path": shortened(visit.scope["path"], 120),
        "status": visit.status,
        "milliseconds": round(1000 * visit.seconds, 3),
        "client": client[0],
        **({"token": visit.token.name} if visit.token else {}),
        **({"refused": visit.refused} if visit.refused else {}),
    }
    # Under overload most lines would be refusals, which the metrics count.
    log.log(logging.DEBUG if visit.refused == Busy.code else logging.INFO, "request", extra={"fields": fields})
