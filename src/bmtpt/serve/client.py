"""Ask a running server: `bmtpt.Client`, and `bmtpt.AsyncClient` for asynchronous code.

    with bmtpt.Client("http://127.0.0.1:8000") as client:
        client.predict("tickets", "I was charged twice.").label

Both hold the same conversations with the server. These are generators that yield requests and pauses and are sent
replies, so that only the two loops that run them know how to wait.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypedDict, TypeVar, Unpack, overload
from urllib.parse import quote

from bmtpt.artifacts.folder import CARD
from bmtpt.errors import ArtifactError, BmtptError, SettingsError, cannot_read, shortened
from bmtpt.sealed import read_json
from bmtpt.serve.errors import BadRow, Busy, Late, ServeError
from bmtpt.serve.wire import Model, Predicted

if TYPE_CHECKING:
    import httpx2 as httpx

LOCAL = "http://127.0.0.1:8000"
"""Where `bmtpt serve` listens if it is told nothing else."""

LONGEST_PAUSE = 60.0
"""Most seconds that a client waits because a server says so; it gives up at once on longer ones."""

ROWS = 64
"""Rows of a request; more are sent in several, one after the other."""

Row = str | Mapping[str, Any]
"""A text, or the columns of a row."""

T = TypeVar("T")


class Options(TypedDict, total=False):
    """What `predict` may be asked besides labels: see the fields of POST /predict in docs/serve.md."""

    spread: bool
    abstain: float
    top_k: int
    deadline: float


class Unreachable(BmtptError):
    """No server of bmtpt answers at the address."""


class Ask(NamedTuple):
    """A request to make."""

    method: str
    path: str
    json: bytes | None


class Pause(NamedTuple):
    """Seconds to wait."""

    seconds: float


Talk = Generator[Ask | Pause, "httpx.Response | None", T]
"""A conversation. It yields what to do next, is sent the reply to each request, and returns the result."""


class Client:
    """Asks a server.

    A server that is busy is asked again after the seconds that it names, as often as `retries` says.

    Args:
        url: Where the server listens.
        token: What it asks for, if it does.
        timeout: Seconds that an answer is waited for.
        retries: How often a request is repeated.

    Raises:
        Unreachable: No server answers (raised by every method).
        ServeError: It refuses the request: one of the classes in `bmtpt.serve.errors` (raised by every method).
    """

    def __init__(self, url: str = LOCAL, *, token: str | None = None, timeout: float = 60.0, retries: int = 3) -> None:
        self._http = _library().Client(**_options(url, token, timeout))
        self._retries = retries

    @overload
    def predict(self, prompt: str, rows: Row, **options: Unpack[Options]) -> Predicted: ...  # type: ignore[overload-overlap]

    @overload
    def predict(self, prompt: str, rows: Iterable[Row], **options: Unpack[Options]) -> list[Predicted]: ...

    def predict(
        self, prompt: str, rows: Row | Iterable[Row], **options: Unpack[Options]
    ) -> Predicted | list[Predicted]:
        """Return the answer to a text or a row, or the answers to several, in order.

        Args:
            prompt: The name of a loaded prompt.
            options: ``spread``, ``abstain``, ``top_k`` and ``deadline`` (docs/serve.md).
        """
        return self._run(predicting(prompt, rows, options, self._retries))

    def prompts(self) -> dict[str, Model]:
        """Return the loaded prompts by name, with their labels and columns."""
        return self._run(listing(self._retries))

    def load(self, name: str, folder: str | Path) -> str | None:
        """Upload a prompt's folder and load it under a name; return the SHA-256 of the weights that it replaced.

        Raises:
            ArtifactError: The folder cannot be read.
        """
        return self._run(loading(name, Path(folder), self._retries))

    def remove(self, name: str) -> None:
        """Remove a prompt from the server."""
        self._run(removing(name, self._retries))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _run(self, talk: Talk[T]) -> T:
        reply = None
        while True:
            try:
                step = talk.send(reply)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            reply = None
            if isinstance(step, Pause):
                time.sleep(step.seconds)
            else:
                with _reached(self._http):
                    reply = self._http.request(step.method, step.path, content=step.json)


class AsyncClient:
    """Asks a server from asynchronous code; methods, arguments and errors are those of `Client`."""

    def __init__(self, url: str = LOCAL, *, token: str | None = None, timeout: float = 60.0, retries: int = 3) -> None:
        self._http = _library().AsyncClient(**_options(url, token, timeout))
        self._retries = retries

    @overload
    async def predict(  # type: ignore[overload-overlap]
        self, prompt: str, rows: Row, **options: Unpack[Options]
    ) -> Predicted: ...

    @overload
    async def predict(self, prompt: str, rows: Iterable[Row], **options: Unpack[Options]) -> list[Predicted]: ...

    async def predict(
        self, prompt: str, rows: Row | Iterable[Row], **options: Unpack[Options]
    ) -> Predicted | list[Predicted]:
        """Return the answers, as `Client.predict`."""
        return await self._run(predicting(prompt, rows, options, self._retries))

    async def prompts(self) -> dict[str, Model]:
        """Return the loaded prompts, as `Client.prompts`."""
        return await self._run(listing(self._retries))

    async def load(self, name: str, folder: str | Path) -> str | None:
        """Upload a prompt's folder, as `Client.load`."""
        return await self._run(loading(name, Path(folder), self._retries))

    async def remove(self, name: str) -> None:
        """Remove a prompt from the server."""
        await self._run(removing(name, self._retries))

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def _run(self, talk: Talk[T]) -> T:
        reply = None
        while True:
            try:
                step = talk.send(reply)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            reply = None
            if isinstance(step, Pause):
                await asyncio.sleep(step.seconds)
            else:
                with _reached(self._http):
                    reply = await self._http.request(step.method, step.path, content=step.json)


# Conversations


def predicting(
    prompt: str, rows: Row | Iterable[Row], options: Options, retries: int
) -> Talk[Predicted | list[Predicted]]:
    """Ask for answers, some rows at a time."""
    one = isinstance(rows, str | Mapping)
    asked = [rows] if one else list(rows)
    answers: list[Predicted] = []
    for start in range(0, len(asked), ROWS):
        some = asked[start : start + ROWS]
        try:
            reply = yield from asking("POST", "/predict", {"task": prompt, "rows": some, **options}, retries=retries)
        except BadRow as error:
            if len(asked) <= ROWS:
                raise
            raise BadRow(f"among rows {start + 1} to {start + len(some)}: {error}") from error
        answers += [Predicted.model_validate(each) for each in reply["answers"]]
    return answers[0] if one else answers


def listing(retries: int) -> Talk[dict[str, Model]]:
    """Ask which prompts are loaded."""
    reply = yield from asking("GET", "/v1/models", retries=retries)
    return {each["id"]: Model.model_validate(each) for each in reply["data"]}


def loading(name: str, folder: Path, retries: int) -> Talk[str | None]:
    """Upload a prompt."""
    path = folder / "prompt.safetensors"
    try:
        card, weights = read_json(folder / CARD), path.read_bytes()
    except OSError as error:
        raise ArtifactError(cannot_read(path, error)) from error
    body = {"card": card, "weights": base64.b64encode(weights).decode()}
    reply = yield from asking("PUT", _admin(name), body, retries=retries)
    replaced: str | None = reply["replaced"]
    return replaced


def removing(name: str, retries: int) -> Talk[None]:
    """Take a prompt away."""
    yield from asking("DELETE", _admin(name), retries=retries)


def _admin(name: str) -> str:
    return f"/admin/prompts/{quote(name, safe='')}"


def asking(method: str, path: str, body: Mapping[str, Any] | None = None, *, retries: int) -> Talk[Any]:
    """Make a request, and make it again as often as the server is busy and says for how long; return its JSON.

    Raises:
        ServeError: It is refused.
    """
    try:
        ask = Ask(method, path, None if body is None else json.dumps(body, allow_nan=False).encode())
    except (TypeError, ValueError) as error:
        raise BadRow(
            f"what is sent is not JSON: {error}; give texts, or objects with the columns of the task"
        ) from error
    while True:
        reply = yield ask
        assert reply is not None
        if reply.is_success:
            return reply.json()
        pause = reply.headers.get("retry-after", "")
        if not retries or not pause.isdigit() or int(pause) > LONGEST_PAUSE:
            raise refusal(reply)
        retries -= 1
        yield Pause(int(pause))


def refusal(reply: httpx.Response) -> ServeError:
    """Return the error that a server's refusal stands for."""
    try:
        problem = reply.json()["error"]
        sentence, code = str(problem["message"]), problem["type"]
    except (ValueError, LookupError, TypeError):
        return ServeError(f"{reply.url} answered {reply.status_code} and no JSON; is it a server of bmtpt?")
    kind = KINDS.get(code, ServeError)
    if kind is Busy and (pause := reply.headers.get("retry-after", "")).isdigit():
        return Busy(sentence, float(pause))
    return kind(sentence)


KINDS: dict[object, type[ServeError]] = {kind.code: kind for kind in ServeError.__subclasses__()}
"""Refusals by the word that the server gives for programs."""


# The transport


def _library() -> ModuleType:
    try:
        import httpx2
    except ImportError as error:
        raise SettingsError("the client needs the httpx2 package; run: pip install 'bmtpt[serve]'") from error
    return httpx2


def _options(url: str, token: str | None, timeout: float) -> dict[str, Any]:
    if not url.startswith(("http://", "https://")):
        raise SettingsError(f"'{shortened(url)}' is no address of a server; give one such as {LOCAL}")
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
    return {"base_url": url, "headers": headers, "timeout": timeout}


@contextmanager
def _reached(http: httpx.Client | httpx.AsyncClient) -> Iterator[None]:
    """Turn what goes wrong on the way into an error of ours."""
    httpx = _library()
    try:
        yield
    except httpx.TimeoutException as error:
        raise Late(f"{http.base_url} did not answer within {http.timeout.read:g} s; allow more with timeout") from error
    except httpx.HTTPError as error:
        raise Unreachable(f"no server answers at {http.base_url} ({error}); is `bmtpt serve` running there?") from error
