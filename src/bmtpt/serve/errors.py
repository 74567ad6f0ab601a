"""Requests that are refused: each error is an HTTP status and one sentence."""

from __future__ import annotations

import math
from typing import ClassVar

from bmtpt.errors import BmtptError


class ServeError(BmtptError):
    """Base of every refusal.

    Attributes:
        status: The HTTP status of the reply.
        code: What programs may compare with.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "error"

    @property
    def headers(self) -> dict[str, str]:
        """Headers that the reply must have."""
        return {}

    @property
    def body(self) -> dict[str, dict[str, str]]:
        """What the reply says, in the shape that clients of OpenAI's API read."""
        return {"error": {"message": str(self), "type": self.code}}


class Unauthorised(ServeError):
    """The request has no token that the server knows."""

    status = 401
    code = "unauthorised"

    @property
    def headers(self) -> dict[str, str]:
        """Basic lets a browser ask its user for a token, as the password."""
        return {"www-authenticate": 'Bearer realm="bmtpt", Basic realm="bmtpt", charset="UTF-8"'}


class Forbidden(ServeError):
    """The token, the host or the origin does not allow it."""

    status = 403
    code = "forbidden"


class UnknownPrompt(ServeError):
    """No prompt of this name is loaded."""

    status = 404
    code = "unknown_prompt"


class SlowBody(ServeError):
    """The body did not arrive in time."""

    status = 408
    code = "slow_body"

    @property
    def headers(self) -> dict[str, str]:
        """The rest of the body is not waited for."""
        return {"connection": "close"}


class TooLarge(ServeError):
    """The body has too many bytes, rows or characters."""

    status = 413
    code = "too_large"


class BadRow(ServeError):
    """A row cannot be answered; the sentence names the row, what is wrong with it, and the cure."""

    status = 422
    code = "bad_row"


class BadRequest(ServeError):
    """The body is not what the route takes; the sentence names the field."""

    status = 422
    code = "bad_request"


class BadPrompt(ServeError):
    """What is to be loaded is no prompt of this server's backbone, or its name cannot be used."""

    status = 422
    code = "bad_prompt"


class Busy(ServeError):
    """The queue is full.

    Attributes:
        retry_after: Seconds after which there should be room again.
    """

    status = 429
    code = "busy"

    def __init__(self, sentence: object, retry_after: float = 1.0) -> None:
        super().__init__(sentence)
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """The header wants whole seconds."""
        return {"retry-after": str(max(1, math.ceil(self.retry_after)))}


class Late(ServeError):
    """The deadline passed before the answer was there."""

    status = 503
    code = "late"


class Draining(ServeError):
    """The server is about to stop and takes nothing new."""

    status = 503
    code = "draining"
