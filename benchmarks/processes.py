"""Real processes of the `bmtpt` command that start in milliseconds, so that hundreds of them can be killed.

Starting Python and importing torch takes seconds. This process imports everything once and starts no threads; each run
is a fork of it that calls the command line's `main`: a process with an id, open files and a group of its own, which
dies by a signal as any other.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

WRITES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
POLL = 0.002
LINE = re.compile(rb"\S[^\n]*")


class Moment(NamedTuple):
    """When a signal is sent.

    Attributes:
        signal: By number.
        seconds: After the start, or None.
        operation: At the beginning of this file operation of the process (an opening for writing, a rename, …), counted
            from 1, or None. This is how the milliseconds in which files are saved are hit.
        whole_group: To the process and its children, as Ctrl-C on a terminal; else to the process alone.
    """

    signal: int
    seconds: float | None = None
    operation: int | None = None
    whole_group: bool = False


@dataclass
class Ended:
    """How a process ended.

    Attributes:
        code: Exit status; 128 + the signal's number if a signal ended it, as shells say.
        operations: File operations that wrote; known only if the process ended on its own.
        group: Its process group, to look for children that outlive it.
        cpu_seconds, peak_bytes: What it used; memory includes what was imported before it started.
        signalled: Whether its moment came.
        by_signal: Whether the signal itself ended it, and not the process on its behalf.
    """

    code: int
    seconds: float
    output: str
    errors: str
    operations: int
    group: int
    signalled: bool
    by_signal: bool
    cpu_seconds: float
    peak_bytes: int

    @property
    def sentence(self) -> str:
        """The error that it reported, or its last line on standard error."""
        lines = self.errors.strip().splitlines() or [""]
        return next((line for line in lines if line.startswith("error: ")), lines[-1])


@dataclass
class Process:
    """A running fork."""

    pid: int
    log: Path
    started: float = field(default_factory=time.monotonic)
    signalled: bool = False

    def wait(self, moment: Moment | None = None, limit: float = 600.0) -> Ended:
        """Wait until it has ended; send its signal at a moment in seconds, and SIGKILL when it takes too long."""
        while True:
            done, status, used = os.wait4(self.pid, os.WNOHANG)
            passed = time.monotonic() - self.started
            if done:
                break
            if moment and moment.seconds is not None and passed >= moment.seconds and not self.signalled:
                self.signalled = True
                (os.killpg if moment.whole_group else os.kill)(self.pid, moment.signal)
            if passed > limit:
                os.killpg(self.pid, signal.SIGKILL)
            time.sleep(POLL)
        killed, facts = os.WIFSIGNALED(status), self._facts()
        code = 128 + os.WTERMSIG(status) if killed else os.WEXITSTATUS(status)
        signalled = self.signalled or facts["signalled"]
        cpu_seconds, peak_bytes = used.ru_utime + used.ru_stime, 1024 * used.ru_maxrss
        return Ended(
            code, passed, *self.read(), facts["operations"], self.pid, signalled, killed, cpu_seconds, peak_bytes
        )

    def ended(self) -> bool:
        """Tell whether it has ended."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def read(self) -> tuple[str, str]:
        """Return what it has written so far on standard output and errors."""
        paths = self.log.with_suffix(".out"), self.log.with_suffix(".err")
        output, errors = (path.read_text("utf-8") if path.is_file() else "" for path in paths)
        return output, errors

    def _facts(self) -> dict[str, Any]:
        path = self.log.with_suffix(".json")
        text = path.read_text() if path.is_file() else ""
        return json.loads(text) if text else {"operations": 0, "signalled": False}


def import_everything() -> None:
    """Import what the commands need, in this process, with one thread for each later run."""
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # of processes that are not forks
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    import pandas  # noqa: F401
    import sklearn.metrics  # noqa: F401
    import torch
    from transformers import AutoTokenizer, PreTrainedTokenizerFast, T5ForConditionalGeneration  # noqa: F401

    import bmtpt.cli
    import bmtpt.cli.progress
    import bmtpt.report.html
    import bmtpt.report.score_plots
    import bmtpt.report.statistics
    import bmtpt.report.training_plots
    import bmtpt.stages
    import bmtpt.studies.run  # noqa: F401

    torch.set_num_threads(1)


def start(
    arguments: Sequence[str],
    folder: Path,
    log: Path,
    *,
    moment: Moment | None = None,
    before: Callable[[], object] = bool,
) -> Process:
    """Fork a process that runs `bmtpt ARGUMENTS` in a folder.

    Args:
        log: Without an ending: where standard output and errors go.
        moment: A signal at an `operation`; one with `seconds` is `Process.wait`'s.
        before: Called in the new process first (limits, a hook).
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    log.with_suffix(".json").unlink(missing_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = _child(arguments, folder, log, moment, before)
        finally:
            os._exit(code)
    with suppress(ProcessLookupError, PermissionError):
        os.setpgid(pid, pid)  # both sides set it, so that neither has to wait for the other
    return Process(pid, log)


def _child(
    arguments: Sequence[str], folder: Path, log: Path, moment: Moment | None, before: Callable[[], object]
) -> int:
    from bmtpt.cli import main

    with suppress(ProcessLookupError, PermissionError):
        os.setpgid(0, 0)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    atexit._clear()  # what the parent does at its end is none of this process's business
    os.chdir(folder)
    for handle, suffix in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(log.with_suffix(suffix), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), handle)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv = ["bmtpt", *arguments]
    counted = _count_writes(moment, log.with_suffix(".json"))
    try:
        before()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # as Python starts, except in a shell's background
        main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    counted(code)
    return code


def _count_writes(moment: Moment | None, facts: Path) -> Callable[[int], None]:
    """Count this process's file operations that write, and send it its signal at the one that is its moment."""
    own, count, done = os.getpid(), 0, False

    file = facts.open("w")  # now: later there may be no file handle left

    def note(signalled: bool) -> None:
        file.seek(file.truncate(0))
        json.dump({"operations": count, "signalled": signalled}, file)
        file.flush()

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count, done
        if done or os.getpid() != own or not _writes(event, arguments):
            return
        count += 1
        if moment and count == moment.operation:
            done = True
            note(True)
            (os.killpg if moment.whole_group else os.kill)(own, moment.signal)

    def ended(code: int) -> None:
        nonlocal done
        signalled, done = done, True
        note(signalled)

    sys.addaudithook(heard)
    return ended


def _writes(event: str, arguments: tuple[Any, ...]) -> bool:
    if event in WRITES:
        return True
    return event == "open" and isinstance(arguments[2], int) and bool(arguments[2] & WRITING)


def alive(group: int) -> dict[int, str]:
    """Return the command lines of a group's processes that have not ended, by id."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, its_group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state not in "ZX":
                found[int(folder.name)] = (folder / "cmdline").read_text()
        except OSError:
            continue  # it ended while we looked
    return found


def outlived(group: int, patience: float) -> int:
    """Return how many processes of a group still run after some seconds, and end them."""
    end = time.monotonic() + patience
    while (left := alive(group)) and time.monotonic() < end:
        time.sleep(0.02)
    for pid in left:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    return len(left)
