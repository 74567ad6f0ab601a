"""A bounded queue and the one thread that runs the model.

A batch is whatever waits when the model becomes free. Waiting for a batch to fill up is what makes servers collapse
under overload: refusals then eat the time, and batches leave with a row or two.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from bmtpt.serve.errors import Busy, Draining, Late, ServeError

Row = TypeVar("Row")
Result = TypeVar("Result")
T = TypeVar("T")


@dataclass
class _Request(Generic[Result]):
    """Rows that were sent together, and their answers so far."""

    future: Future[list[Result]]
    expires: float
    answers: dict[int, Result] = field(default_factory=dict)
    size: int = 0

    def give(self, number: int, answer: Result | Exception) -> None:
        with suppress(InvalidStateError):  # cancelled by the one who asked, or told of another row's error
            if isinstance(answer, Exception):
                self.future.set_exception(answer)
                return
            self.answers[number] = answer
            if len(self.answers) == self.size:
                self.future.set_result([self.answers[i] for i in range(self.size)])


class _Waiting(NamedTuple, Generic[Row, Result]):
    request: _Request[Result]
    number: int
    row: Row


class Batcher(Generic[Row, Result]):
    """Answers rows in batches, in the order in which they came.

    Attributes:
        observe: Called in the model's thread with each batch that was answered, and the seconds it took.

    Args:
        work: Answers a batch; a row that cannot be answered gets the error that says why.
        max_batch: Most rows in a batch.
        max_wait: Seconds that a row which finds the model idle waits for others.
        queue: Most rows that wait.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Row]], Sequence[Result | Exception]],
        *,
        max_batch: int = 64,
        max_wait: float = 0.0,
        queue: int = 256,
    ) -> None:
        self.work, self.max_batch, self.max_wait, self.queue = work, max_batch, max_wait, queue
        self.observe: Callable[[Sequence[Row], float], None] = lambda rows, seconds: None
        self._rows: deque[_Waiting[Row, Result]] = deque()
        self._errands: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._draining = False
        self._rows_per_second = 0.0
        self._thread = threading.Thread(target=self._run, name="bmtpt-model", daemon=True)
        self._thread.start()

    @property
    def depth(self) -> int:
        """Rows that wait."""
        return len(self._rows)

    @property
    def draining(self) -> bool:
        """Whether nothing new is taken."""
        return self._draining

    @property
    def alive(self) -> bool:
        """Whether the model's thread runs: without it nothing is answered."""
        return self._thread.is_alive()

    def require_room(self, rows: int = 1) -> None:
        """Raise what `answer` would raise for so many rows."""
        if self._draining:
            raise Draining("the server is about to stop and takes nothing new; ask again in a moment")
        if len(self._rows) + rows > self.queue:
            wait = len(self._rows) / self._rows_per_second if self._rows_per_second else 1.0
            raise Busy(f"the queue is full ({self.queue} rows); ask again after Retry-After seconds", wait)

    async def answer(self, rows: Sequence[Row], deadline: float) -> list[Result]:
        """Return the answers to rows that came together: all of them, or the first error.

        Args:
            deadline: Seconds that an answer is worth waiting for.

        Raises:
            Busy: There is no room for all the rows.
            Draining: The server is about to stop.
            Late: The deadline has passed.
        """
        if not rows:
            return []
        request = _Request[Result](Future(), time.monotonic() + deadline, size=len(rows))
        with self._changed:
            self.require_room(len(rows))
            self._rows.extend(_Waiting(request, number, row) for number, row in enumerate(rows))
            self._changed.notify()
        try:
            # A request that is cancelled or late cancels its future: the model then passes over its rows.
            return await asyncio.wait_for(asyncio.wrap_future(request.future), deadline)
        except TimeoutError:
            raise _late() from None

    def call(self, errand: Callable[[], T]) -> Future[T]:
        """Run a function in the model's thread between two batches: nothing else may use the model or its tokenizer."""
        future: Future[T] = Future()

        def run() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(errand())
                except BaseException as error:
                    future.set_exception(error)

        with self._changed:
            if self._draining:
                raise Draining("the server is about to stop")
            self._errands.append(run)
            self._changed.notify()
        return future

    def drain(self, timeout: float | None = None) -> bool:
        """Take nothing new, answer what waits, and end the thread; return whether that was done in time."""
        with self._changed:
            self._draining = True
            self._changed.notify_all()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while batch := self._next():
            try:
                self._answer(batch)
            except BaseException as error:  # told to who asked; without this thread nothing is answered again
                fault = error if isinstance(error, Exception) else RuntimeError(f"the model stopped: {error!r}")
                for each in batch:
                    each.request.give(each.number, fault)

    def _next(self) -> list[_Waiting[Row, Result]]:
        """Wait for rows, and return those of the next batch; none at the end."""
        while True:
            with self._changed:
                idle = not self._rows
                self._changed.wait_for(lambda: self._rows or self._errands or self._draining)
                if idle and self.max_wait and not self._errands:
                    self._changed.wait_for(lambda: len(self._rows) >= self.max_batch or self._draining, self.max_wait)
                errands = [self._errands.popleft() for _ in range(len(self._errands))]
                batch = [] if errands else [self._rows.popleft() for _ in range(min(len(self._rows), self.max_batch))]
            for errand in errands:
                errand()
            batch = [each for each in batch if self._is_wanted(each.request)]
            if batch or (self._draining and not self._rows and not self._errands):
                return batch

    def _is_wanted(self, request: _Request[Result]) -> bool:
        if time.monotonic() > request.expires:
            request.give(0, _late())
        return not request.future.done()

    def _answer(self, batch: Sequence[_Waiting[Row, Result]]) -> None:
        start = time.monotonic()
        rows = [each.row for each in batch]
        try:
            answers = self.work(rows)
        except Exception as error:
            if len(batch) > 1:  # a row that breaks the model must not take others with it
                self._answer(batch[: len(batch) // 2])
                self._answer(batch[len(batch) // 2 :])
                return
            answers = [error]
        seconds = time.monotonic() - start
        speed = len(batch) / max(seconds, 1e-6)
        self._rows_per_second = 0.8 * self._rows_per_second + 0.2 * speed if self._rows_per_second else speed
        self.observe(rows, seconds)
        for each, answer in zip(batch, answers, strict=True):
            each.request.give(each.number, answer)


def _late() -> ServeError:
    return Late("the deadline passed before the answer was there; ask for fewer rows, or allow more time")
