"""Run a command line of bmtpt in this process: what a person types and meets, without the seconds of a start."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch


class Ran(NamedTuple):
    """What a command left: its exit code, standard output and standard error."""

    code: int
    out: str
    err: str


def run_command(*arguments: str | Path, stdin: str | bytes = "") -> Ran:
    """Run `bmtpt ARGUMENTS`."""
    from bmtpt.cli import main

    out, err = io.StringIO(), io.StringIO()
    words = ["bmtpt", *map(str, arguments)]
    code: object = 0
    given = io.TextIOWrapper(io.BytesIO(stdin if isinstance(stdin, bytes) else stdin.encode()))
    with redirect_stdout(out), redirect_stderr(err), patch.multiple(sys, argv=words, stdin=given):
        try:
            main()
        except SystemExit as stop:
            code = stop.code
    assert isinstance(code, int)
    return Ran(code, out.getvalue(), err.getvalue())
