"""Commands on the ranks of torchrun: rank 0 alone prints, and of an error one rank says why, once."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from typing import NoReturn

from bmtpt.errors import RankError, SettingsError
from bmtpt.parallel.torchrun import place

SHARED = ("learn", "adapt", "evaluate", "predict")
"""Commands whose work the ranks share."""

PRECEDENCE = 1.0
"""Seconds that other ranks give rank 0 to say an error that all have met: its sentence knows the output folder."""

STORE_SECONDS = 20


@contextmanager
def one_voice(arguments: Sequence[str]) -> Iterator[None]:
    """Let rank 0 alone print while a command runs.

    Raises:
        SettingsError: The ranks cannot share the work of this command.
        RankError: This rank was asked to end (SIGTERM) when no training step could be finished first.
    """
    here = place()
    if here.size == 1:
        yield
        return
    signal.signal(signal.SIGTERM, _asked_to_end)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        out, err = (sys.stdout, sys.stderr) if here.first else (nowhere, nowhere)
        with redirect_stdout(out), redirect_stderr(err):
            command = next((word for word in arguments if not word.startswith("-")), None)
            if command not in (None, *SHARED):
                raise SettingsError(
                    f"bmtpt {command} runs in one process; torchrun is for {', '.join(SHARED[:-1])} and {SHARED[-1]}"
                )
            try:
                yield
            except SystemExit as end:
                if not end.code and "torch.distributed" in sys.modules:
                    from bmtpt.parallel.ranks import leave

                    leave()
                raise


def complain(sentence: str) -> None:
    """Print a sentence on standard error; of several ranks the first one alone does."""
    here = place()
    if here.size > 1:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(0 if here.first else PRECEDENCE)
        if not _first_to_say():
            return
    print(sentence, file=sys.stderr, flush=True)


def _asked_to_end(*_: object) -> NoReturn:
    raise RankError("this run was asked to end (SIGTERM), as torchrun does to all ranks when one of them has ended")


def _first_to_say() -> bool:
    """Tell whether no other rank of this start of the run has said an error yet."""
    from torch.distributed.rendezvous import rendezvous

    try:
        store, *_ = next(rendezvous("env://", timeout=timedelta(seconds=STORE_SECONDS)))
        return bool(store.add(f"bmtpt error {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", 1) == 1)
    except Exception:  # whatever the store raises: better said twice than not at all
        return True
