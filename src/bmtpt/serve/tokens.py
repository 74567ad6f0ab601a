"""Bearer tokens: what the file of their hashes says, and who a request is from.

The file has a line for each token: its scope, its SHA-256 and, for the log, a name. A token is 32 random bytes, which
nobody can guess from a plain hash; words that people choose are not safe here.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from bmtpt.errors import SettingsError, cannot_read, nearest, shortened

Scope = Literal["predict", "admin"]
"""What a token allows: to ask, or to ask and to change the prompts."""

MAKE = 'make the hash with: printf %s "$TOKEN" | sha256sum'
EMPTY = hashlib.sha256(b"").hexdigest()


class Token(NamedTuple):
    """A token that the server knows.

    Attributes:
        sha256: Of the token's bytes.
        name: Who has it, for the log.
    """

    scope: Scope
    sha256: bytes
    name: str


def read_tokens(path: Path) -> tuple[Token, ...]:
    """Return the tokens of a file with lines ``SCOPE SHA256 [NAME]``; blank lines and those with # say nothing.

    Raises:
        SettingsError: The file cannot be read, a line is wrong, or there is none. No sentence quotes a token.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise SettingsError(cannot_read(path, error)) from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path} is not UTF-8; write it as text, one line for each token") from error
    said = [(number, line.split()) for number, line in enumerate(lines, start=1) if line.partition("#")[0].strip()]
    tokens = tuple(_token(words, f"{path}, line {number}") for number, words in said)
    if not tokens:
        raise SettingsError(f"{path} holds no token; give lines of 'SCOPE SHA256 NAME', scope predict or admin")
    return tokens


def _token(words: list[str], where: str) -> Token:
    scope, digest, *name = [*words, ""][: max(2, len(words))]
    if scope not in get_args(Scope):
        raise SettingsError(f"{where}: the scope '{shortened(scope)}' is none; {nearest(scope, get_args(Scope))}")
    if not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
        raise SettingsError(f"{where}: after '{scope}' comes the SHA-256 of the token, 64 hexadecimal digits; {MAKE}")
    if digest.lower() == EMPTY:
        raise SettingsError(f"{where}: this is the SHA-256 of an empty token; {MAKE}, with TOKEN set")
    return Token(scope, bytes.fromhex(digest), " ".join(name) or f"{scope}-{digest[:6].lower()}")  # type: ignore[arg-type]


def bearer(tokens: Sequence[Token], authorisation: bytes) -> Token | None:
    """Return the token that a header ``Authorization`` carries, or None if it is none of those.

    `Bearer TOKEN`, or as a browser sends it: `Basic` with the token as password. Every hash is compared, each in a time
    that does not depend on where it differs.
    """
    scheme, _, given = authorisation.partition(b" ")
    secret = given.strip()
    if scheme.lower() == b"basic":
        try:
            secret = base64.b64decode(secret, validate=True).partition(b":")[2]
        except binascii.Error:
            return None
    elif scheme.lower() != b"bearer":
        return None
    found = hashlib.sha256(secret).digest()
    return next(iter([token for token in tokens if hmac.compare_digest(token.sha256, found)]), None)
