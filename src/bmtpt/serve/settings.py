"""The settings of a server."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt


class ServeSettings(BaseModel):
    """How a server listens, batches and refuses.

    Attributes:
        host: Address to listen at; other machines reach the server only if it is not a loopback address.
        port: Port to listen at; 0 takes a free one.
        max_batch: Most rows that go through the model together.
        max_wait_ms: Milliseconds that a row which finds the model idle waits for others to share its pass. 0 adds no
            latency: while a pass runs, the next batch gathers by itself.
        queue: Most rows that wait; requests beyond are refused (429).
        deadline: Seconds after which a request is given up (503); a request may ask for fewer.
        max_rows: Most rows of a request, which can never have more than `queue`.
        max_text: Most characters of a row.
        max_labels: Most label words of a prompt.
        max_body: Most bytes of a request's body.
        max_upload: Most bytes of an uploaded prompt's body.
        body_seconds: Seconds within which a request's headers, and its body, must have arrived.
        drain_seconds: Seconds that accepted requests have when the server is told to stop.
        token_file: File with the hashes of the tokens; without it, no request needs one.
        watch: Folder whose prompts are loaded, replaced and removed as they come and go.
        log_texts: Log the rows and their answers, too.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65_535)
    max_batch: PositiveInt = 64
    max_wait_ms: NonNegativeFloat = 0.0
    queue: PositiveInt = 256
    deadline: PositiveFloat = 30.0
    max_rows: PositiveInt = 256
    max_text: PositiveInt = 50_000
    max_labels: PositiveInt = 1_000
    max_body: PositiveInt = 2**20
    max_upload: PositiveInt = 2**24
    body_seconds: PositiveFloat = 10.0
    drain_seconds: PositiveInt = 30
    token_file: Path | None = None
    watch: Path | None = None
    log_texts: bool = False
