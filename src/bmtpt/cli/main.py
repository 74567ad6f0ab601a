"""The entry point: commands are registered here, and a user's mistake becomes one sentence and exit code 2."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated

import typer

from bmtpt.errors import BmtptError, is_out_of_memory

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Bayesian Multi-Task Prompt Tuning: a posterior over soft prompts as the prior for the next task.",
    epilog="First time? Try: bmtpt quickstart",
)

INTERRUPTED = 130


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error (anywhere in a command).")] = (
        False
    ),
) -> None:
    """`--debug` stands here for the help; `main` takes it from wherever it was written."""


def main() -> None:
    """Run the command line."""
    # The hub libraries' own bars and notices would tear the progress display.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Waiting threads must sleep, not spin: beside any other busy process, spinning made a step many times slower
    # on 2 cores. OpenMP reads this once, when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from bmtpt.cli import (  # noqa: F401 (they register)
        artifact_commands,
        common,
        quickstart,
        study_commands,
        table_commands,
        task_commands,
        train_commands,
    )

    common.show_log()
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        app(args=arguments)
    except SystemExit as stop:  # typer's own end, which is how a Ctrl-C comes out of it
        if stop.code == INTERRUPTED:
            print(f"interrupted; {_how_to_go_on(arguments)}", file=sys.stderr)
        raise
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None:
            raise
        if "--debug" in sys.argv:
            traceback.print_exc()
        print(f"error: {sentence}", file=sys.stderr)
        raise SystemExit(2) from None


def _how_to_go_on(arguments: list[str]) -> str:
    if arguments[:1] in (["study"], ["quickstart"]):
        return "what is done is kept: give the same command again to go on"
    return "a training run goes on when its command is given again with --resume"


def _sentence(error: Exception) -> str | None:
    """Return what a person can do something about, or None for a fault of ours."""
    if isinstance(error, BmtptError):
        return str(error)
    if is_out_of_memory(error):
        return "memory ran out; close other programs, or try --precision bfloat16 or a smaller backbone"
    if isinstance(error, OSError):
        return f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
    return None
