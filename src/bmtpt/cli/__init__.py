"""The `bmtpt` command. It computes nothing: options to settings, one library call, what was written.

Every command is registered here; a user's mistake becomes one sentence and exit code 2.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any

import typer

from bmtpt.cli.artifact_commands import evaluate, export, import_, inspect, predict, report
from bmtpt.cli.console import log_shown
from bmtpt.cli.headroom_command import headroom
from bmtpt.cli.hub_commands import pull, push
from bmtpt.cli.lm_eval_command import export_task, lm_eval
from bmtpt.cli.quickstart_command import quickstart
from bmtpt.cli.ranked import complain, one_voice
from bmtpt.cli.serve_command import serve
from bmtpt.cli.study_commands import study
from bmtpt.cli.sweep_command import sweep
from bmtpt.cli.table_commands import table
from bmtpt.cli.task_commands import check_task, list_tasks, show_task
from bmtpt.cli.train_commands import adapt, learn
from bmtpt.errors import BmtptError, is_out_of_memory

__all__ = ["app", "main"]

INTERRUPTED = 130

Commands = dict[str, tuple[Callable[..., Any], str]]

COMMANDS: Commands = {
    "quickstart": (quickstart, "bmtpt quickstart --out bmtpt-quickstart"),
    "headroom": (headroom, "bmtpt headroom sst2 --data offline --shots 16"),
    "learn": (learn, "bmtpt learn --backbone offline --data offline --source mrpc --source boolq --out post"),
    "adapt": (adapt, "bmtpt adapt --posterior post --data offline --target sst2 --shots 16 --out prompts/sst2"),
    "evaluate": (evaluate, "bmtpt evaluate --prompt prompts/sst2 --data offline"),
    "predict": (predict, "echo 'a warm and funny film' | bmtpt predict --prompt prompts/sst2"),
    "serve": (serve, "bmtpt serve --prompts prompts/sst2"),
    "inspect": (inspect, "bmtpt inspect post --tokens 5"),
    "export": (export, "bmtpt export prompts/sst2 --to peft --out sst2-peft"),
    "import": (import_, "bmtpt import sst2-peft --task sst2 --backbone offline --out imported/sst2"),
    "lm-eval": (lm_eval, "bmtpt lm-eval --prompt prompts/sst2 --data offline"),
    "push": (push, "bmtpt push prompts/sst2 my-name/sst2-prompt"),
    "pull": (pull, "bmtpt pull my-name/sst2-prompt --out pulled/sst2"),
    "report": (report, "bmtpt report post prompts/sst2 --out report.html"),
    "study": (study, "bmtpt study particles --scale smoke --out runs/particles"),
    "sweep": (sweep, "bmtpt sweep sweep --scale smoke --trials 3 --out runs/sweep"),
    "table": (table, "bmtpt table runs/particles/results.jsonl --metric seconds"),
}
"""Commands by name, each with its example, in the order of the help; an example uses what those before it have made."""

TASK_COMMANDS: Commands = {
    "show": (show_task, "bmtpt tasks show sst2 --rows 3 --data offline"),
    "check": (check_task, "bmtpt tasks check tickets.yaml"),
    "export": (export_task, "bmtpt tasks export sst2 --data offline --out harness-tasks"),
}


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"bmtpt {version('bmtpt')}")
        raise typer.Exit


def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and stop.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error (anywhere in a command).")] = (
        False
    ),
) -> None:
    """Show the help without a command. `--debug` is here for the help; `main` accepts it anywhere in the command."""
    if context.invoked_subcommand is None:
        print(context.get_help())


def _registered(group: typer.Typer, commands: Commands) -> typer.Typer:
    for name, (command, example) in commands.items():
        group.command(name, epilog=f"Example: {example}")(command)
    return group


app = typer.Typer(
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Bayesian Multi-Task Prompt Tuning: a posterior over soft prompts as the prior for the next task.",
    epilog="First time? Try: bmtpt quickstart",
)
app.callback(invoke_without_command=True)(_options)
_tasks = typer.Typer(
    invoke_without_command=True, help="List tasks (built-in ones and yours), show their examples, check a task file."
)
_tasks.callback(epilog="Example: bmtpt tasks --dir my-tasks")(list_tasks)
_registered(app, COMMANDS).add_typer(_registered(_tasks, TASK_COMMANDS), name="tasks")


def main() -> None:
    """Run the command line."""
    # The hub libraries' own bars and notices would break up the progress display.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Waiting threads must sleep, not spin: with any other busy process on 2 cores, spinning made a step many times
    # slower. OpenMP reads this once, when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")  # a terminal without Unicode shows ? for what it has no letter for
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        with one_voice(arguments), log_shown():
            app(args=arguments, prog_name="bmtpt")
    except BaseException as error:
        if _is_interruption(error):
            complain(f"interrupted; {_how_to_continue(arguments)}")
            raise SystemExit(INTERRUPTED) from None
        sentence = _sentence(error)
        if sentence is None:
            raise
        if "--debug" in sys.argv:
            traceback.print_exc()
        complain(f"error: {sentence}")
        raise SystemExit(getattr(error, "exit_code", 2)) from None


def _is_interruption(error: BaseException | None) -> bool:
    """Tell whether an error comes from Ctrl-C: typer makes an exit status of it, libraries wrap it."""
    met: set[int] = set()  # a pool that raises its own error again makes a circle of causes
    while error is not None and id(error) not in met:
        if isinstance(error, KeyboardInterrupt) or (isinstance(error, SystemExit) and error.code == INTERRUPTED):
            return True
        met.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def _how_to_continue(arguments: list[str]) -> str:
    if arguments[:1] in (["study"], ["sweep"], ["quickstart"]):
        return "finished jobs are kept: give the same command again to continue"
    if arguments[:1] == ["serve"]:
        return "every request that was accepted has its answer"
    return "give the command again with --resume to continue a training run"


def _sentence(error: BaseException) -> str | None:
    """Return a sentence about something that the user can change, or None for a bug of ours."""
    if isinstance(error, BmtptError):
        return str(error)
    if is_out_of_memory(error):
        return "memory ran out; close other programs, or try --precision bfloat16 or a smaller backbone"
    if isinstance(error, OSError):
        return f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
    return None
