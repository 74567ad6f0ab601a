"""Run a server until it is told to stop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from bmtpt.artifacts.saved import Prompt
from bmtpt.backbone import Backbone
from bmtpt.errors import ArtifactError, SettingsError
from bmtpt.serve.app import create_app
from bmtpt.serve.folders import Watch, folders_in, prompt_folders
from bmtpt.serve.log import event, json_log
from bmtpt.serve.service import Service
from bmtpt.serve.settings import ServeSettings
from bmtpt.serve.tokens import Token, read_tokens

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def serve(
    settings: ServeSettings,
    prompts: Sequence[Path],
    load: Callable[[str], Backbone],
    *,
    backbone: str | None = None,
    announce: Callable[[str], None] = print,
) -> None:
    """Load a backbone and prompts, and answer requests until SIGTERM or Ctrl-C; what was accepted is answered first.

    Args:
        prompts: Folders of prompts, or of folders of prompts.
        load: Loads a backbone by its name.
        backbone: Its name; None takes the one that the first prompt's card names.
        announce: Told in a sentence when requests are answered, and where.

    Raises:
        ArtifactError, BackboneError: A prompt cannot be read, or is of another backbone than the others.
        SettingsError: The address cannot be listened at, or is open to other machines without tokens.
    """
    tokens = read_tokens(settings.token_file) if settings.token_file else ()
    require_private(settings.host, tokens)
    folders = prompt_folders(prompts)
    loaded = {name: Prompt.load(folder) for name, folder in folders.items()}
    name = backbone or backbone_of(loaded, settings.watch)
    with listening(settings.host, settings.port) as door:
        service = Service.of(load(name), loaded, settings)
        service.folders = folders
        host, port = door.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        announce(f"serving at {address}; Ctrl-C stops")
        with json_log():
            elsewhere = [name for name, folder in folders.items() if not _is_in(folder, settings.watch)]
            watch = Watch(service, settings.watch, elsewhere) if settings.watch else None
            if watch:
                watch.look_at_start()
            # Without tokens, only names of this machine are answered for (see `Gate`).
            hosts = () if tokens else (*LOOPBACK, settings.host)
            app = create_app(service, settings, tokens=tokens, hosts=hosts, watch=watch)
            event("serving", host=host, port=port, prompts=sorted(service.shelf.snapshot()), backbone=name)
            uvicorn.Server(config(app, settings)).run(sockets=[door])


def _is_in(folder: Path, place: Path | None) -> bool:
    return place is not None and folder.absolute().parent == place.absolute()


def config(app: object, settings: ServeSettings) -> uvicorn.Config:
    """Return how uvicorn serves the application: with limits, and without what says which software this is."""
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        http=patient(settings.body_seconds),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=settings.drain_seconds,
    )


def patient(seconds: float) -> type[H11Protocol]:
    """Return uvicorn's HTTP protocol, which waits for ever for a request's headers, with a limit on that.

    Connections that say nothing, or say it byte by byte, would otherwise use up the process's files.
    """

    class Patient(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._timer = self.loop.call_later(seconds, transport.close)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            incomplete = self.cycle is None or self.cycle.response_complete
            if incomplete and self._timer is None:
                self._timer = self.loop.call_later(seconds, self.transport.close)
            elif self._timer and not incomplete:
                self._timer.cancel()
                self._timer = None

        def connection_lost(self, exc: Exception | None) -> None:
            if self._timer:
                self._timer.cancel()
            super().connection_lost(exc)

    return Patient


def backbone_of(prompts: Mapping[str, Prompt], watched: Path | None) -> str:
    """Return the name of the backbone that the first prompt was trained with.

    Raises:
        SettingsError: There is no prompt.
    """
    for prompt in prompts.values():
        return prompt.card.backbone.name
    for folder in folders_in(watched) if watched else ():
        try:
            return Prompt.load(folder).card.backbone.name
        except ArtifactError:  # told by the watch
            continue
    raise SettingsError("no prompt says which backbone to load; give --prompts DIR, or --backbone with --watch DIR")


def require_private(host: str, tokens: Sequence[Token]) -> None:
    """Refuse an address that other machines reach, unless requests need tokens.

    Raises:
        SettingsError: As said, or the host is not known.
    """
    if tokens:
        return
    try:
        addresses = {str(found[4][0]) for found in socket.getaddrinfo(host or "0.0.0.0", None)}
    except OSError as error:
        raise SettingsError(f"there is no host '{host}' to listen at; try 127.0.0.1") from error
    if not all(ip_address(address.partition("%")[0]).is_loopback for address in addresses):
        raise SettingsError(
            f"host '{host}' lets other machines in, and without tokens anybody there could ask and change prompts; "
            "give --token-file, or keep 127.0.0.1"
        )


def listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address, so that a wrong one is told before a model is loaded.

    Raises:
        SettingsError: It cannot be listened at.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        door = socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SettingsError(f"cannot listen at {host}, port {port}: {reason.lower()}; choose another --port") from error
    # Connections inherit it. asyncio sets it only where a socket says that it is TCP, which this one does not; without
    # it, the second part of a reply on a kept connection waits 40 ms for the client's delayed acknowledgement.
    door.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return door
