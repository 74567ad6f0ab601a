"""The prompts, rows and server processes that `serve.py` measures.

A server answers in one of three ways, behind the same queue and web application: `mixed` is `bmtpt serve` itself; for
the others this script is the server:

    python benchmarks/served.py one_task_at_a_time FOLDER BACKBONE   # the same engine, each pass for one task only
    python benchmarks/served.py peft FOLDER BACKBONE                 # Hugging Face's model, PEFT's adapters
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
import uvicorn
from prometheus_client.parser import text_string_to_metric_families

from bmtpt.artifacts.saved import Prompt
from bmtpt.backbone import Backbone
from bmtpt.inference.predict import predict
from bmtpt.inference.rows import as_example
from bmtpt.serve.app import create_app
from bmtpt.serve.folders import prompt_folders
from bmtpt.serve.log import json_log
from bmtpt.serve.run import config, listening
from bmtpt.serve.service import Answer, Ask, Service, answer_asked
from bmtpt.serve.settings import ServeSettings
from bmtpt.tasks import TaskSpec
from cases import text_length
from open_loop import Address, Reply, request
from predict import PeftAdapters, artifact

KINDS: tuple[tuple[int, tuple[str, ...]], ...] = (
    (25, ("negative", "positive")),
    (45, ("contradiction", "entailment", "neutral")),
    (60, ("no", "yes")),
    (45, ("different", "equivalent")),
)
"""Mean text tokens and label words of the tasks, in turn: those of SST-2, MNLI, QNLI and QQP."""
MIXED = "mixed"
PREDICT = "/predict"


# Prompts and rows


def prompt_of(backbone: Backbone, number: int, length: int, seed: int = 0) -> Prompt:
    """Return an untrained prompt for a task of its own: random rows of the vocabulary."""
    generator = torch.Generator().manual_seed(1_000_003 * seed + number)
    frequent = backbone.frequent_ids().cpu()
    rows = backbone.embed(frequent[torch.randint(len(frequent), (length,), generator=generator)].to(backbone.device))
    words = KINDS[number % len(KINDS)][1]
    task = TaskSpec.model_validate({"name": f"task{number}", "text": "sentence: {sentence}", "labels": list(words)})
    return artifact(backbone, task.name, rows, task.model_dump(mode="json"))


@dataclass(frozen=True)
class Traffic:
    """Rows to ask, and what offline `predict` answers.

    Attributes:
        folder: Of the prompts' folders.
        tasks: Loaded prompts.
        rows: Pairs of task and text.
        expected: The probabilities of each row.
    """

    folder: Path
    tasks: int
    rows: tuple[tuple[str, str], ...]
    expected: tuple[Mapping[str, float], ...]

    @cached_property
    def messages(self) -> list[bytes]:
        """The requests, one for each row."""
        return [request("POST", PREDICT, {"task": task, "rows": [text]}) for task, text in self.rows]

    def differences(self, replies: Sequence[Reply]) -> list[float]:
        """Return by how much each answer's probabilities differ from offline ones, at most."""
        return [difference(each.body, self.expected[each.row]) for each in replies if each.status == 200]


def difference(body: bytes, expected: Mapping[str, float]) -> float:
    """Return by how much the probabilities in a reply differ from those expected, at most."""
    found = json.loads(body)["answers"][0]["all"]
    return max(abs(found[word] - share) for word, share in expected.items()) if found.keys() == expected.keys() else 1.0


def make_traffic(
    backbone: Backbone, folder: Path, tasks: int, rows: int, length: int, *, single: bool = False
) -> Traffic:
    """Save prompts, unless they are there, draw rows of all tasks or of the first, and answer them offline."""
    prompts = {f"task{number}": prompt_of(backbone, number, length) for number in range(tasks)}
    for name, prompt in prompts.items():
        if not (folder / name).exists():
            prompt.save(folder / name)
    rng = random.Random(tasks)
    asked = [_row(backbone, rng, 0 if single else rng.randrange(tasks)) for _ in range(rows)]
    return Traffic(folder, tasks, tuple(asked), tuple(offline(backbone, prompts, asked)))


def _row(backbone: Backbone, rng: random.Random, task: int) -> tuple[str, str]:
    frequent = backbone.frequent_ids().tolist()
    ids = rng.choices(frequent, k=text_length(rng, KINDS[task % len(KINDS)][0]))
    return f"task{task}", backbone.tokenizer.decode(ids, skip_special_tokens=True)


def offline(
    backbone: Backbone, prompts: Mapping[str, Prompt], rows: Sequence[tuple[str, str]]
) -> Iterator[Mapping[str, float]]:
    """Yield the probabilities of rows, as the library gives them."""
    specs = {name: TaskSpec.model_validate(prompt.card.task_definition) for name, prompt in prompts.items()}
    asked = [(task, as_example(text, "row", specs[task])) for task, text in rows]
    for answer in predict(backbone, prompts, asked):
        yield cast(Mapping[str, float], answer["all"])


# Servers


@dataclass(frozen=True)
class Server:
    """A server that listens."""

    address: Address

    def metrics(self) -> dict[str, float]:
        """Return the figures of `/metrics`, those with labels summed."""
        with urllib.request.urlopen("http://{}:{}/metrics".format(*self.address), timeout=60) as reply:
            text = reply.read().decode()
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found[sample.name] = found.get(sample.name, 0.0) + sample.value
        return found

    @property
    def resident(self) -> float:
        """Resident memory in MiB."""
        return self.metrics()["process_resident_memory_bytes"] / 2**20


@dataclass(frozen=True)
class ServerProcess(Server):
    """A server in a process of its own, and the file of its log."""

    process: subprocess.Popen[str]
    log: Path

    @classmethod
    def started(cls, command: Sequence[str], log: Path) -> ServerProcess:
        """Start one, and wait until it listens."""
        with log.open("wb") as file:
            environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True, env=environment)
        said = process.stdout.readline() if process.stdout else ""
        if not (found := re.search(r"http://([\d.]+):(\d+)", said)):
            raise SystemExit(f"the server did not start: {said}{log.read_text()}")
        return cls((found[1], int(found[2])), process, log)


@contextmanager
def running(way: str, traffic: Traffic, backbone: str, **options: object) -> Iterator[ServerProcess]:
    """Run a server that answers in a way, and end it.

    Args:
        options: Of `bmtpt serve`.
    """
    own = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    serve = ["-m", "bmtpt", "serve", "--prompts", str(traffic.folder), "--backbone", backbone]
    command = [*serve, "--device", "cpu", "--port", "0", *own]
    if way != MIXED:
        command = [__file__, way, str(traffic.folder), backbone, *own]
    with tempfile.TemporaryDirectory() as folder:
        server = ServerProcess.started([sys.executable, *command], Path(folder) / "log")
        try:
            yield server
        finally:
            server.process.terminate()
            server.process.wait(timeout=120)


def one_task_at_a_time(backbone: Backbone, prompts: Mapping[str, Prompt]) -> Callable[[Sequence[Ask]], list[Any]]:
    """Return what answers a batch by calls of the engine for one task each."""

    def answer(asked: Sequence[Ask]) -> list[Any]:
        return by_task(asked, lambda own: answer_asked(backbone, own))

    return answer


def peft(backbone: Backbone, prompts: Mapping[str, Prompt]) -> Callable[[Sequence[Ask]], list[Any]]:
    """Return what answers a batch with Hugging Face's model, whose adapter is switched for each task."""
    with tempfile.TemporaryDirectory() as folder:
        adapters = PeftAdapters(backbone, {name: prompt.prompts[0] for name, prompt in prompts.items()}, Path(folder))

    def of_task(asked: Sequence[Ask]) -> list[Any]:
        adapters.model.set_adapter(asked[0].served.name, inference_mode=True)
        found = [each.served.route.ask(backbone, each.example) for each in asked]
        shares = adapters.scores([queries[0] for queries, _ in found]).softmax(dim=1).tolist()
        answers = []
        for share, (queries, cut) in zip(shares, found, strict=True):
            by_word = dict(zip(asked[0].served.task.label_words, share, strict=True))
            best = max(by_word, key=by_word.__getitem__)
            answers.append(Answer(asked[0].served.name, best, by_word, cut, tokens=len(queries[0].text)))
        return answers

    return lambda asked: by_task(asked, of_task)


WAYS = {each.__name__: each for each in (one_task_at_a_time, peft)}


def by_task(asked: Sequence[Ask], answer: Callable[[Sequence[Ask]], list[Any]]) -> list[Any]:
    """Answer the rows of each task by themselves, and return all answers in order."""
    answers: list[Any] = [None] * len(asked)
    for name in dict.fromkeys(each.served.name for each in asked):
        places = [place for place, each in enumerate(asked) if each.served.name == name]
        for place, found in zip(places, answer([asked[place] for place in places]), strict=True):
            answers[place] = found
    return answers


def service_in_a_way(way: str, backbone: Backbone, folder: Path, settings: ServeSettings) -> Service:
    """Return a service with all prompts of a folder."""
    prompts = {name: Prompt.load(place) for name, place in prompt_folders([folder]).items()}
    service = Service.of(backbone, prompts, settings)
    if way != MIXED:
        service.batcher.work = WAYS[way](backbone, prompts)
    return service


def main(way: str, folder: str, backbone_name: str, *options: str) -> None:
    """Run a server that answers in one of `WAYS` until it is told to stop."""
    named = {name.removeprefix("--").replace("-", "_"): value for name, value in zip(*[iter(options)] * 2, strict=True)}
    backbone = Backbone.from_pretrained(backbone_name, precision=named.pop("precision"), device="cpu")
    settings = ServeSettings.model_validate({"port": 0, **named})
    with listening(settings.host, settings.port) as door, json_log():
        service = service_in_a_way(way, backbone, Path(folder), settings)
        print("serving at http://{}:{}".format(*door.getsockname()), flush=True)
        uvicorn.Server(config(create_app(service, settings), settings)).run(sockets=[door])


if __name__ == "__main__":
    main(*sys.argv[1:])
