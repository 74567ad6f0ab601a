"""Commands on a terminal of 80 columns, and what NO_COLOR, FORCE_COLOR and TERM change."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.cells import cell_len

pty = pytest.importorskip("pty")
termios = pytest.importorskip("termios")

LINES = Path(__file__).parents[2] / "studies" / "results" / "quickstart.jsonl"
ESCAPE = re.compile(r"\x1b\[[?\d;]*[A-Za-z]")
COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3\d|4\d|9\d)[;m]")
SETTINGS = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TERM", "TTY_COMPATIBLE", "GITHUB_ACTIONS", "PY_COLORS")


def command(*words: object) -> list[str]:
    code = "import sys\nfrom bmtpt.cli import main\nsys.argv[0] = 'bmtpt'\nmain()"
    return [sys.executable, "-c", code, *map(str, words)]


def environment(**settings: str) -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    return plain | {"TERM": "xterm-256color"} | settings


def on_terminal(*words: object, columns: int = 80, **settings: str) -> str:
    """What a command prints on a terminal."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (25, columns))
    ran = subprocess.Popen(command(*words), stdin=theirs, stdout=theirs, stderr=theirs, env=environment(**settings))
    os.close(theirs)
    printed = b""
    while True:
        try:
            printed += (block := os.read(ours, 65536))
        except OSError:  # Linux says that the other end is closed in this way
            break
        if not block:
            break
    os.close(ours)
    assert ran.wait() == 0, printed
    return printed.decode().replace("\r\n", "\n")


def piped(*words: object, **settings: str) -> str:
    ran = subprocess.run(command(*words), capture_output=True, text=True, env=environment(**settings))
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_a_terminal_gets_tables_that_fit_it_and_with_no_color_the_best_in_bold_alone():
    printed = on_terminal("table", LINES, columns=100, NO_COLOR="1")
    text = ESCAPE.sub("", printed)
    assert "───" in text
    assert 80 < max(map(cell_len, text.splitlines())) <= 100
    assert re.search(r"\x1b\[1m *77.9 ± 0.6", printed)
    assert not COLOUR.search(printed)


def test_help_is_coloured_on_a_terminal_or_if_that_is_forced_and_never_with_no_color():
    assert COLOUR.search(on_terminal("--help"))
    assert not COLOUR.search(on_terminal("--help", NO_COLOR="1"))
    assert not ESCAPE.search(piped("--help"))
    assert COLOUR.search(piped("--help", FORCE_COLOR="1"))


def test_a_dumb_terminal_gets_no_escapes():
    assert not ESCAPE.search(on_terminal("tasks", TERM="dumb"))


def test_a_command_needs_no_standard_error():
    closed = subprocess.run(["sh", "-c", '"$@" 2>&-', "sh", *command("tasks")], capture_output=True, text=True)
    assert closed.returncode == 0
    assert "sst2: rows " in closed.stdout


def test_a_terminal_without_unicode_shows_what_it_can():
    assert "40.1 ? 1.4" in piped("table", LINES.with_name("wording.jsonl"), "--text", PYTHONIOENCODING="ascii")
