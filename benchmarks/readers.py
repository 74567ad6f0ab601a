"""What reads text that people write: for each reader its valid documents and a function that reads bytes."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import yaml

from bmtpt.artifacts.saved import read_artifact
from bmtpt.cli.train_commands import AdaptOptions, LearnOptions
from bmtpt.errors import DataError
from bmtpt.inference.answer_file import answer_line, json_line
from bmtpt.inference.rows import stream_rows
from bmtpt.results import read_results
from bmtpt.sealed import sealed, sealed_line
from bmtpt.settings import resolve
from bmtpt.studies.load import load_study
from bmtpt.tasks import load_data, load_task
from bmtpt.train.events import EventLog, end_of
from hostile import damaged_bytes, damaged_values

Write = Callable[[Any], bytes]
Read = Callable[[bytes, int], None]


@dataclass(frozen=True)
class Reader:
    """A reader under test.

    Attributes:
        documents: Valid documents, as JSON-like values.
        write: Renders a document; of one that it cannot render it may raise.
        read: Reads bytes; the number of the input may choose how.
    """

    documents: tuple[Any, ...]
    write: Write
    read: Read

    def input(self, name: str, number: int) -> bytes:
        """Return input ``number``: a valid document with hostile values, damaged bytes or both."""
        rng = random.Random(f"{name} {number}")
        document, other = rng.choice(self.documents), rng.choice(self.documents)
        kind = rng.random()
        if kind < 0.7:
            document = damaged_values(document, rng)
        try:
            content = self.write(document)
        except Exception:  # this format has no form for such a value
            content = self.write(other)
        return damaged_bytes(content, self.write(other), rng) if kind > 0.45 else content


# Documents

TASK = {
    "name": "sentiment",
    "text": "sentiment sentence: {sentence}",
    "labels": {"0": "negative", "1": "positive"},
    "metrics": ["accuracy", "f1"],
    "files": {"train": "train.csv", "test": "train.csv"},
}
OWN_TASK = {
    "text": "{question} {context}",
    "context": "context",
    "answers": "answer",
    "file": "train.csv",
    "split": "stratify",
    "max_length": 64,
    "encoding": "utf-8",
    "delimiter": ",",
}
STEPS = {"name": "steps", "text": "{a}", "steps": {"column": "b", "low": 0, "high": 5, "step": 0.5}}
ROWS = (
    [{"sentence": "the film is good .", "label": 1}, {"sentence": "the meal is bad .", "label": 0}] * 3,
    [{"sentence": 'a "quoted", text', "label": "1"}, {"sentence": "two\nlines", "label": "0"}] * 3,
    [{"sentence": "naïve 👍", "label": True, "more": [1, 2]}, {"sentence": "", "label": False, "more": [None]}] * 3,
)
OPTIONS = {
    "backbone": "offline", "source": ["sst2", "mrpc"], "out": "out", "data": "offline", "particles": 5, "kernel": "rbf",
    "bandwidth": "median", "likelihood_scale": "mean", "learning_rate": 0.3, "steps": 300, "seed": 0,
    "train_rows": None, "task_factors": False,
}  # fmt: skip
ADAPTING = {
    "posterior": "post", "target": ["cb"], "out": "out", "prior_std": "auto", "prior_std_grid": [30.0, 100.0],
    "shots": 16, "start": "auto", "ensemble": False, "selection": "score", "patience": 2,
}  # fmt: skip
STUDY = {
    "name": "tiny",
    "sources": ["sentiment.yaml"],
    "targets": ["pairs.yaml"],
    "shots": [8, None],
    "seeds": [0, 1],
    "methods": ["pt", "bmtpt"],
    "variants": {"bmtpt": [{"learn.particles": [1, 2]}, {}], "all": [{"adapt.prior_std": [1.0, 3.0]}]},
    "learn": {"steps": 2, "particles": 2, "prompt_length": 3},
    "adapt": {"prior_std": 1.0},
    "limits": {"select": 4, "test": 6},
    "scales": {"small": {"seeds": [0]}, "smoke": {"learn": {"steps": 1}}},
}
RESULT = {
    "study": "s", "method": "pt", "backbone": "b", "sources": ["sst2"], "target": "cb", "shots": 16, "seed": 0,
    "metric": "accuracy", "value": 50.0, "primary": True, "constant_answer": 40.0, "invalid_share": 0.0,
    "trained_parameters": 100, "trained_share": 0.1, "steps": 10, "seconds": 1.5, "data": "official",
    "versions": {"bmtpt": "0.1.0"}, "source_seed": None, "moved": True,
}  # fmt: skip
EVENTS = [{"event": "step", "step": step, "loss": {"sst2": [0.5, 0.6]}, "lr": 0.3} for step in range(4)]
EVENTS += [{"event": "end", "step": 4, "seconds": 1.0}]
ASKED = ("the film is good .", '{"sentence": "the film is good ."}', "sentence,other\na,b\n")


# How documents are written


def as_yaml(value: Any) -> bytes:
    return yaml.dump(value, Dumper=DUMPER, allow_unicode=True, sort_keys=False).encode("utf-8", "surrogatepass")


def as_json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def as_json_lines(value: Iterable[Any]) -> bytes:
    return b"".join(as_json(each) + b"\n" for each in value)


def as_sealed(value: Any) -> bytes:
    return as_json(sealed(value))


def as_sealed_lines(value: Iterable[Any]) -> bytes:
    return "".join(map(sealed_line, value)).encode("utf-8", "surrogatepass")


def as_table(delimiter: str) -> Write:
    def write(rows: Any) -> bytes:
        out = io.StringIO(newline="")
        columns = list(dict.fromkeys(key for row in rows for key in row))
        writer = csv.DictWriter(out, columns, delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
        return out.getvalue().encode("utf-8", "surrogatepass")

    return write


def as_parquet(rows: Any) -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue()


def as_text(value: Any) -> bytes:
    return str(value).encode("utf-8", "surrogatepass")


DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


# The readers


def make_readers(folder: Path) -> dict[str, Reader]:
    """Return every reader by name.

    Args:
        folder: Holds the tiny tasks, `train.csv`, and a prompt in `prompt`; readers write their inputs into it.
    """
    task = load_task(folder / "sentiment.yaml")
    card = json.loads((folder / "prompt" / "card.json").read_text("utf-8"))
    del card["sha256"]
    tables = {
        "csv": as_table(","),
        "tsv": as_table("\t"),
        "jsonl": as_json_lines,
        "json": as_json,
        "parquet": as_parquet,
    }
    rows = {
        f"rows, {ending}": Reader(ROWS, write, _read_rows(folder, task, ending)) for ending, write in tables.items()
    }
    return {
        "task": Reader((TASK, OWN_TASK, STEPS), as_yaml, _read_task(folder)),
        **rows,
        "options": Reader((OPTIONS, ADAPTING), as_yaml, _read_options(folder)),
        "study": Reader((STUDY,), as_yaml, _read_study(folder)),
        "card": Reader((card,), as_sealed, _read_card(folder)),
        "results": Reader(([RESULT, {**RESULT, "metric": "nll"}],), as_sealed_lines, _read_results(folder)),
        "events": Reader((EVENTS,), as_sealed_lines, _read_events(folder)),
        "lines to predict": Reader(ASKED, as_text, _read_asked(task)),
    }


def _read_task(folder: Path) -> Read:
    def read(content: bytes, number: int) -> None:
        (folder / "fuzzed.yaml").write_bytes(content)
        task = load_task(folder / "fuzzed.yaml")
        if task.file or task.files:
            load_data(task)

    return read


def _read_rows(folder: Path, task: Any, ending: str) -> Read:
    path = folder / f"fuzzed.{ending}"
    spec = task.model_copy(update={"files": {"train": path}})

    def read(content: bytes, number: int) -> None:
        path.write_bytes(content)
        load_data(spec)

    return read


def _read_options(folder: Path) -> Read:
    def read(content: bytes, number: int) -> None:
        (folder / "options.yaml").write_bytes(content)
        resolve(AdaptOptions if b"posterior" in content else LearnOptions, folder / "options.yaml")

    return read


def _read_study(folder: Path) -> Read:
    def read(content: bytes, number: int) -> None:
        (folder / "study.yaml").write_bytes(content)
        load_study(folder / "study.yaml").contenders()

    return read


def _read_card(folder: Path) -> Read:
    def read(content: bytes, number: int) -> None:
        (folder / "prompt" / "card.json").write_bytes(content)
        read_artifact(folder / "prompt")

    return read


def _read_results(folder: Path) -> Read:
    def read(content: bytes, number: int) -> None:
        (folder / "results.jsonl").write_bytes(content)
        read_results(folder / "results.jsonl")

    return read


def _read_events(folder: Path) -> Read:
    def read(content: bytes, number: int) -> None:
        path = folder / "events.jsonl"
        path.write_bytes(content)
        end_of(path)
        if number % 20 == 0:  # it waits for the disk
            EventLog(path).rewind(2)

    return read


def _read_asked(task: Any) -> Read:
    forms: tuple[Any, ...] = (None, None, "text", "jsonl", "csv", "tsv")

    def read(content: bytes, number: int) -> None:
        for row in stream_rows(io.BytesIO(content), {task.name: task}, forms[number % len(forms)]):
            answer = row.example if isinstance(row.example, DataError) else {"text": row.example.text, "label": "good"}
            json_line(answer_line(row, answer, several=False)).encode()

    return read
