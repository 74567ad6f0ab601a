"""The settings of a server."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveFloat, PositiveInt


class ServeSettings(BaseModel):
    """How a server listens, batches and refuses.

    Attributes:
        host: Address to listen at; other machines reach the server only if it is not a loopback address.
        port: Port to listen at; 0 takes a free one.
        max_batch: Most rows that go through the model together.
        max_wait_ms: How long a row that finds an idle model waits for others to share its pass. 0 costs no latency:
            while a pass runs, the next batch gathers by itself.
        queue: Most rows that wait; requests beyond are refused with 429.
        deadline: Seconds after which a request is given up (503); a request may ask for fewer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: int = 8000
    max_batch: PositiveInt = 64
    max_wait_ms: NonNegativeFloat = 0.0
    queue: PositiveInt = 256
    deadline: PositiveFloat = 30.0
