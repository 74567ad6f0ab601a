"""Print for the person at the keyboard: results on standard output, everything else on standard error."""

from __future__ import annotations

import io
import logging
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

from bmtpt.report.table import Table
from bmtpt.report.terminal import INDENT, fitted, folded


def is_terminal(stream: TextIO | None) -> bool:
    """Return whether a standard stream is a screen; it is None if it was closed."""
    return stream is not None and stream.isatty()


OUT = Console()
ERR = Console(stderr=True, force_interactive=None if is_terminal(sys.stderr) else False)
"""FORCE_COLOR colours a log, but nothing can be redrawn in it."""

WITHOUT_TERMINAL = 80
"""Columns of what is piped or kept in a file."""


def say(text: str) -> None:
    """Print a line for the user, never folded: commands and paths in it are there to be copied."""
    OUT.print(text, markup=False, highlight=False, soft_wrap=True)


def say_next(*words: object) -> None:
    """Print the command to give next, quoted for a shell."""
    say(f"next: bmtpt {shlex.join(map(str, words))}")


def columns() -> int:
    """Return how many columns there are to print in.

    Without a terminal they are 80 unless COLUMNS is set, wherever a log or a document is made.
    """
    # Not the console's width: that is the value of COLUMNS when it was made.
    return shutil.get_terminal_size((WITHOUT_TERMINAL, 0)).columns


def tell(text: str) -> None:
    """Print prose, folded between words."""
    say(folded(text, columns()))


def show_fact(name: str, text: str) -> None:
    """Print a fact under its name in bold, folded between words."""
    fact = Text(folded(f"{name}: {text}", columns(), INDENT))
    fact.stylize("bold", 0, len(name))
    OUT.print(fact, soft_wrap=True)


def print_json(record: Mapping[str, Any]) -> None:
    """Print a record as a line of JSON, in UTF-8 whatever the locale says; a number that is not finite is null."""
    from bmtpt.inference.answer_file import json_line

    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.encoding != "utf-8":
        sys.stdout.reconfigure(encoding="utf-8")
    print(json_line(record), flush=True)


def show_table(table: Table, title: str = "", *, as_json: bool) -> None:
    """Print a table and the notes under it so that it fits, as several if it must (see `fitted`); or its records."""
    if as_json:
        for record in table.records:
            print_json(record)
        return
    if title:
        tell(title)
    for part in fitted(table, columns()):
        OUT.print(part, width=columns(), crop=False)
        say("")
    for line in table.notes:
        tell(line)


def show_verdict(sentence: str, metric: str, *, as_json: bool) -> None:
    """Print what the scores of a metric say about the methods."""
    if as_json:
        print_json({"table": "verdict", "metric": metric, "sentence": sentence})
    else:
        say("")
        tell(sentence)
        say("")


def note(text: str) -> None:
    """Print what the user should know on standard error, which keeps standard output clean for JSON lines."""
    ERR.print(f"note: {text}", style="yellow", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Show what goes on without steps to count: a spinner on a terminal, a line elsewhere."""
    if ERR.is_interactive:
        with ERR.status(what):
            yield
    else:
        ERR.print(what, markup=False, highlight=False, soft_wrap=True)
        yield


class LogLines(logging.Handler):
    """Prints what the library logs (warnings; which engine runs, and why) on standard error, each sentence once."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._printed: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record unless the same was printed before."""
        text = record.getMessage()
        if text not in self._printed:
            self._printed.add(text)
            if record.levelno >= logging.WARNING:
                note(text)
            else:
                ERR.print(text, style="dim", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def log_shown() -> Iterator[None]:
    """Have the library's log lines printed."""
    log, lines = logging.getLogger("bmtpt"), LogLines()
    log.setLevel(logging.INFO)
    log.addHandler(lines)
    try:
        yield
    finally:
        log.removeHandler(lines)


def note_answers_cut(count: int) -> None:
    """Say how many generated answers were cut, if any were."""
    if count:
        note(f"generated answers cut at the limit, which the training answers set: {count:,}")


def note_cut(count: int, rows: int | None = None) -> None:
    """Say how many texts were cut, if any were."""
    if count:
        share = f"{count:,} of {rows:,}" if rows else f"{count:,}"
        note(f"texts too long and cut: {share} (see --max-length of learn and adapt, or the task's max_length)")
