"""Damage everything that bmtpt keeps on disk, and use it: each case must be refused in a sentence or change no bit.

    python benchmarks/corruption.py --cases 2400 --out benchmarks/results/corruption.jsonl

A tiny model trains a posterior, a prompt and a run that is stopped half-way. Case i draws a file and a damage from
(seed, i), damages a copy, and loads and uses it: a posterior is described, a prompt predicts, also with a damaged
model, a run is resumed, a report and a results file are read. The verdict is `refused` (a BmtptError of one line),
`harmless` (the same bits, or fewer lines of a log, each as written), `wrong`, or `untyped` (another exception, a hang,
a crash). Every case is kept in `--kept`, so that a run that is stopped goes on. Exits with 1 if a case is wrong or
untyped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from bmtpt.artifacts.card import versions
from bmtpt.artifacts.inspect import describe_artifact
from bmtpt.artifacts.saved import Posterior, Prompt
from bmtpt.backbone import Backbone
from bmtpt.errors import LONGEST, BmtptError
from bmtpt.inference.predict import predict
from bmtpt.report.runs import read_inputs
from bmtpt.results import append_results, read_results
from bmtpt.settings import AdaptSettings, LearnSettings
from bmtpt.stages.evaluate import evaluate, result_rows
from bmtpt.stages.source import learn
from bmtpt.stages.target import adapt
from bmtpt.tasks import TaskData, load_data, load_task
from common import append_line
from damages import COMMON, DAMAGES
from tiny import write_t5, write_tasks

LIMIT = 20
"""Seconds after which a case counts as a hang."""

BATCH = 100
"""Cases of one child process: if it crashes, the next one goes on after the case that crashed."""

LEARN = LearnSettings(
    particles=2, prompt_length=4, steps=6, evaluate_every=3, batch_size=2, validation_rows=4, learning_rate=0.1
)
ADAPT = AdaptSettings(steps=4, evaluate_every=2, batch_size=4, prior_std_grid=(0.1, 1.0), learning_rate=0.1)


@dataclass(frozen=True)
class Subject:
    """A file to damage, and the use of its folder that must notice or not care.

    Attributes:
        folder, other: Folders with the file: the one that is used, and another valid one.
        use: What is compared before and after the damage.
        log: Whether `use` returns lines, of which fewer may be left.
    """

    name: str
    folder: Path
    other: Path
    file: str
    use: Callable[[Path], Any]
    log: bool = False


class StoppedError(Exception):
    """Stops a run between two checkpoints."""


class Uses:
    """What is trained once, and the uses of it."""

    def __init__(self, folder: Path) -> None:
        for name in ("a/t5", "tasks"):
            (folder / name).mkdir(parents=True)
        self.backbone = _loaded(write_t5(folder / "a" / "t5"))
        _write_another(folder / "a" / "t5", folder / "b" / "t5")
        files = sorted(write_tasks(folder / "tasks").glob("*.yaml"))
        self.tasks: dict[str, TaskData] = {path.stem: load_data(load_task(path)) for path in files}
        self.rows = self.tasks["sentiment"].test[:4]
        for seed, name in enumerate(("a", "b")):
            posterior = self._learn(folder / name / "posterior", seed)
            settings = ADAPT.model_copy(update={"seed": seed})
            target, where = self.tasks["sentiment"], folder / name / "prompt"
            self.prompt = prompt = adapt(posterior, target, settings, backbone=self.backbone, folder=where)
            scores = evaluate(self.backbone, prompt, target.test)
            (folder / name / "results").mkdir()
            lines = result_rows(self.backbone, prompt, target, scores, study="corruption")
            append_results(folder / name / "results" / "results.jsonl", lines)
            self._stop(folder / name / "stopped", seed)

    def _learn(self, folder: Path, seed: int = 0, **options: Any) -> Posterior:
        sources = [self.tasks["pairs"], self.tasks["answers"]]
        return learn(self.backbone, sources, LEARN.model_copy(update={"seed": seed}), folder=folder, **options)

    def _stop(self, folder: Path, seed: int) -> None:
        def stop(event: dict[str, Any]) -> None:
            if event["event"] == "step" and event["step"] == 4:
                raise StoppedError

        try:
            self._learn(folder, seed, listener=stop)
        except StoppedError:
            return

    def described(self, folder: Path) -> Any:
        found = Posterior.load(folder)
        return describe_artifact(found), found.card, found.particles.numpy().tobytes()

    def predicted(self, folder: Path) -> Any:
        found = Prompt.load(folder)
        return describe_artifact(found), found.card, list(predict(self.backbone, found, self.rows))

    def loaded(self, folder: Path) -> Any:
        return list(predict(_loaded(folder), self.prompt, self.rows))

    def resumed(self, folder: Path) -> Any:
        return self._learn(folder, resume=True).particles.numpy().tobytes()

    def reported(self, folder: Path) -> Any:
        (run,), _ = read_inputs([folder])
        return run.card, run.settings, {name: prompt.tobytes() for name, prompt in run.prompts.items()}

    def logged(self, folder: Path) -> Any:
        runs, _ = read_inputs([folder])
        return [event for run in runs for event in run.events]

    def scored(self, folder: Path) -> Any:
        return read_results(folder / "results.jsonl")


def _loaded(folder: Path) -> Backbone:
    return Backbone.from_pretrained(folder, precision="float32", device="cpu")


def _write_another(model: Path, folder: Path) -> None:
    """Write a model with other weights, fewer layers and another tokenizer."""
    shutil.copytree(model, folder)
    weights = {name: tensor + 0.01 for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_layers": 1}, indent=2))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {**words, "good": words["bad"], "bad": words["good"]}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, indent=2))


def subjects(folder: Path) -> list[Subject]:
    """Train in a folder, and return what can be damaged."""
    uses = Uses(folder)

    def subject(name: str, where: str, file: str, use: Callable[[Path], Any], log: bool = False) -> Subject:
        return Subject(name, folder / "a" / where, folder / "b" / where, file, use, log)

    return [
        subject("posterior", "posterior", "posterior.safetensors", uses.described),
        subject("prompt", "prompt", "prompt.safetensors", uses.predicted),
        subject("checkpoint", "stopped", "checkpoint.safetensors", uses.resumed),
        subject("card of a posterior", "posterior", "card.json", uses.described),
        subject("card of a prompt", "prompt", "card.json", uses.predicted),
        subject("card in a report", "posterior", "card.json", uses.reported),
        subject("posterior in a report", "posterior", "posterior.safetensors", uses.reported),
        subject("events of a resumed run", "stopped", "events.jsonl", uses.resumed),
        subject("events in a report", "posterior", "events.jsonl", uses.logged, log=True),
        subject("weights of the model", "t5", "model.safetensors", uses.loaded),
        subject("config of the model", "t5", "config.json", uses.loaded),
        subject("tokenizer of the model", "t5", "tokenizer.json", uses.loaded),
        subject("results", "results", "results.jsonl", uses.scored, log=True),
    ]


# Cases


def case(subjects: Sequence[Subject], seed: int, number: int) -> tuple[Subject, str, bytes]:
    """Return what case `number` damages, how, and the damaged content: a pure function of (seed, number)."""
    rng = Random(f"{seed}/{number}")
    subject = subjects[number % len(subjects)]
    content, other = (path.read_bytes() for path in (subject.folder / subject.file, subject.other / subject.file))
    # A whole file of another run is as it was written there: nothing in a log says whose it is.
    names = [name for name in DAMAGES if not (subject.log and name == "another's")]
    while True:
        name = rng.choice([*names, *COMMON, *COMMON])
        if (damaged := DAMAGES[name](rng, content, other)) != content:
            return subject, name, damaged


def verdict(subject: Subject, damaged: bytes, wanted: Any) -> tuple[str, str]:
    """Use a damaged copy; return the verdict, and what an exception said."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(shutil.copytree(subject.folder, Path(scratch) / "run"))
        (copy / subject.file).write_bytes(damaged)
        signal.alarm(LIMIT)
        try:
            found = subject.use(copy)
        except BmtptError as error:
            plain = "\n" not in str(error) and len(str(error)) <= LONGEST
            return "refused" if plain else "untyped", str(error)
        except BaseException as error:
            return "untyped", f"{type(error).__name__}: {error}"
        finally:
            signal.alarm(0)
    same = all(each in wanted for each in found) if subject.log else found == wanted
    return ("harmless" if same else "wrong"), ""


def results_of(subjects: Sequence[Subject], seed: int, numbers: Iterable[int]) -> Iterable[dict[str, Any]]:
    """Yield the verdict of each case."""

    def hang(*_: object) -> None:
        raise TimeoutError(f"no answer in {LIMIT} s")

    signal.signal(signal.SIGALRM, hang)
    with tempfile.TemporaryDirectory() as scratch:
        wanted = {}
        for subject in subjects:
            copy = shutil.copytree(subject.folder, Path(scratch) / subject.name)
            wanted[subject.name] = subject.use(Path(copy))
    for number in numbers:
        subject, damage, damaged = case(subjects, seed, number)
        found, said = verdict(subject, damaged, wanted[subject.name])
        yield {"case": number, "subject": subject.name, "damage": damage, "verdict": found, "said": said}


def run(subjects: Sequence[Subject], seed: int, cases: int, kept: Path) -> list[dict[str, Any]]:
    """Do the cases that are not kept yet, in child processes that may crash; return all."""
    while left := sorted(set(range(cases)) - {line["case"] for line in _kept(kept)}):
        batch = left[:BATCH]
        if (child := os.fork()) == 0:
            for line in results_of(subjects, seed, batch):
                append_line(kept, line)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        done = {line["case"] for line in _kept(kept)}
        if status and (lost := [number for number in batch if number not in done]):
            subject, damage, _ = case(subjects, seed, lost[0])
            said = f"the process ended with status {status}"
            line = {"case": lost[0], "subject": subject.name, "damage": damage, "verdict": "untyped", "said": said}
            append_line(kept, line)
        print(f"{len(done):,} of {cases:,} cases", file=sys.stderr, flush=True)
    return [line for line in _kept(kept) if line["case"] < cases]


def _kept(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def summary(lines: Sequence[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """Return one line per subject and damage: how many cases, and how many of each verdict."""
    facts = {"seed": seed, "date": time.strftime("%Y-%m-%d"), "versions": versions()}
    groups = itertools.groupby(sorted(lines, key=_group), key=_group)
    counted = {group: Counter(line["verdict"] for line in each) for group, each in groups}
    return [
        {
            "benchmark": "corruption",
            "subject": subject,
            "damage": damage,
            "cases": counts.total(),
            **{name: counts[name] for name in ("refused", "harmless", "wrong", "untyped")},
            **facts,
        }
        for (subject, damage), counts in counted.items()
    ]


def _group(line: dict[str, Any]) -> tuple[str, str]:
    return line["subject"], line["damage"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases, print the bad ones and write the counts."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--cases", type=int, default=2400)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--out", type=Path, help="counts, as JSON lines; replaced")
    options.add_argument("--kept", type=Path, help="every case; default: next to the system's temporary files")
    chosen = options.parse_args(arguments)
    kept = chosen.kept or Path(tempfile.gettempdir()) / f"bmtpt-corruption-{chosen.seed}.jsonl"
    torch.set_num_threads(1)
    logging.disable()
    with tempfile.TemporaryDirectory() as folder:
        lines = run(subjects(Path(folder)), chosen.seed, chosen.cases, kept)
    bad = [line for line in lines if line["verdict"] in ("wrong", "untyped")]
    for line in bad:
        print(json.dumps(line))
    print(dict(Counter(line["verdict"] for line in lines)))
    if chosen.out:
        chosen.out.unlink(missing_ok=True)
        for line in summary(lines, chosen.seed):
            append_line(chosen.out, line)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
