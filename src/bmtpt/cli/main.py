"""The entry point: commands are registered here, and a user's mistake becomes one sentence and exit code 2."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from bmtpt.errors import BmtptError

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
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    if debug:
        os.environ["BMTPT_DEBUG"] = "1"


def main() -> None:
    """Run the command line."""
    # The hub libraries' own bars and notices would tear the progress display.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Waiting threads must sleep, not spin: beside any other busy process, spinning made a step up to 20 times slower
    # on 2 cores. OpenMP reads this once, when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from bmtpt.cli import artifact_commands, study_commands, task_commands, train_commands  # noqa: F401 (they register)

    try:
        app()
    except BmtptError as error:
        _fail(str(error), error)
    except KeyboardInterrupt:
        print("interrupted; the same command with --resume goes on from the last checkpoint", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone; there is nobody to tell
    except OSError as error:
        _fail(f"{error.strerror or error}" + (f": {error.filename}" if error.filename else ""), error)


def _fail(sentence: str, error: Exception) -> None:
    if os.environ.get("BMTPT_DEBUG"):
        raise error
    print(f"error: {sentence}", file=sys.stderr)
    raise SystemExit(2) from None
