"""The commands that the fault harnesses run on a tiny model, where they run, and what they leave."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from bmtpt.sealed import SEAL
from bmtpt.train.checkpoint import load_checkpoint
from processes import Ended, Moment, Process, start
from tiny import write_t5, write_tasks

QUICK = "--steps 10 --evaluate-every 3 --learning-rate 0.1 --precision float32"
LEARN = f"--particles 2 --prompt-length 4 --batch-size 2 --validation-rows 4 {QUICK}"
ADAPT = f"--batch-size 4 --shots 8 --prior-std-grid 0.1,1.0 {QUICK}"
LEARN_SETTINGS = {
    "learn": "",
    "learn, imq": "--kernel imq --particles 3",
    "learn, laplacian, rows": "--kernel laplacian --scope row",
    "learn, linear": "--kernel linear --bandwidth 2.0",
    "learn, polynomial, annealed": "--kernel polynomial --annealing cyclic",
    "learn, independent starts": "--particle-init independent --annealing linear",
    "learn, around a prompt": "--particle-init prompt --steps 14 --init-steps 6",
    "learn, task factors": "--task-factors",
    "learn, adafactor": "--optimiser adafactor --likelihood-scale data",
    "learn, sgd": "--optimiser sgd --warmup-steps 3 --schedule constant",
    "learn, one particle": "--particles 1",
    "learn, generic engine": "--engine generic",
}
ADAPT_SETTINGS = {
    "adapt": "--target pairs",
    "adapt, mixture": "--target pairs --prior mixture --prior-std 1.0",
    "adapt, ensemble": "--target pairs --ensemble --start particles",
    "adapt, whole prompt": "--target pairs --no-decompose --prior none",
    "adapt, factors alone": "--target pairs --freeze-full --optimiser adafactor",
    "adapt, patience": "--target pairs --selection loss --patience 1 --steps 30",
    "adapt, nothing selected": "--target answers --selection none --shots none",
    "adapt, three targets": "--target sentiment --target pairs --target answers",
    "adapt, two targets, ensemble": "--target pairs --target sentiment --ensemble --start particles --prior mixture",
}
SHORT = {"steps": 6, "evaluate_every": 2, "batch_size": 2, "learning_rate": 0.1}
SOURCE = {**SHORT, "prompt_length": 3, "validation_rows": 2}
STUDY: dict[str, Any] = {
    "sources": ["sentiment", "answers"],
    "targets": ["pairs"],
    "shots": [8],
    "learn": {**SOURCE, "particles": 2},
    "source_prompt": {**SOURCE, "particles": 1},
    "adapt": {**SHORT, "prior_std": 1.0, "start": "mean"},
    "candidates": 1,
    "limits": {"select": 4, "test": 6},
}
STUDIES: dict[str, dict[str, Any]] = {
    "study": {"methods": ["pt", "bmtpt"], "seeds": [0, 1], "variants": {"bmtpt": [{"learn.particles": [1, 2]}]}},
    "study, own source stages": {"methods": ["spot", "attempt", "mpt"]},
    "study, tuned weights": {"methods": ["full", "bitfit", "lora"]},
    "study, together": {
        "sources": ["answers"],
        "targets": ["pairs", "sentiment"],
        "methods": ["bmtpt"],
        "together": True,
    },
    "study, two processes": {"methods": ["spot", "bmtpt"]},
}
MANY_PROCESSES = "study, two processes"


@dataclass(frozen=True)
class World:
    """A folder with what all runs share: the model, the tasks, a posterior, the studies' files."""

    root: Path

    @classmethod
    def made(cls, root: Path) -> World:
        """Write the model, the tasks, the studies' files and a posterior."""
        world = cls(root)
        for folder, write in (("model", write_t5), ("tasks", write_tasks)):
            (root / folder).mkdir()
            write(root / folder)
        for name, own in STUDIES.items():
            study = {"name": "faults", "backbone": f"{root}/model", **STUDY, **own}
            for role in ("sources", "targets"):
                study[role] = [f"{root}/tasks/{task}.yaml" for task in study[role]]
            (root / f"{_slug(name)}.yaml").write_text(json.dumps(study))  # JSON is YAML
        world.keep("learn", "post")
        return world

    def keep(self, setting: str, name: str) -> Path:
        """Run a setting once, into a folder that all runs share; return the folder."""
        ended = start([*self.command(setting)[:-1], name], self.root, self.root / f"{name}-log").wait()
        if ended.code:
            raise SystemExit(f"'{setting}' fails: {ended.errors}")
        return self.root / name

    def command(self, setting: str) -> list[str]:
        """Return the command line of a setting; it writes to the folder `out`."""
        root = self.root
        if setting in STUDIES:
            jobs = "2" if setting == MANY_PROCESSES else "1"
            text = f"study {root}/{_slug(setting)}.yaml --jobs {jobs} --precision float32"
        elif setting in ADAPT_SETTINGS:
            own = re.sub(r"--target (\w+)", rf"--target {root}/tasks/\1.yaml", ADAPT_SETTINGS[setting])
            text = f"adapt --posterior {root}/post {ADAPT} {own}"
        else:
            sources = f"--source {root}/tasks/sentiment.yaml --source {root}/tasks/answers.yaml"
            text = f"learn --backbone {root}/model {sources} {LEARN} {LEARN_SETTINGS[setting]}"
        return [*text.split(), "--out", "out"]


SETTINGS = [*LEARN_SETTINGS, *ADAPT_SETTINGS, *STUDIES]


class Place:
    """A folder of its own for the runs of one setting: the working folder, the temporary folder, logs."""

    def __init__(self, world: World, setting: str, name: str) -> None:
        self.world, self.setting = world, setting
        self.folder = world.root / "runs" / f"{_slug(setting)}-{name}"
        self.work, self.temporary = self.folder / "work", self.folder / "tmp"
        for path in (self.work, self.temporary):
            path.mkdir(parents=True)

    def start(
        self,
        *,
        resume: bool = False,
        moment: Moment | None = None,
        before: Callable[[], object] = bool,
        log: str = "log",
    ) -> Process:
        """Start the setting's command; resume it where the command knows `--resume`."""

        def prepare() -> None:
            tempfile.tempdir = None
            os.environ |= {"TMPDIR": str(self.temporary), "JOBLIB_TEMP_FOLDER": str(self.temporary)}
            before()

        arguments = self.world.command(self.setting)
        if resume and self.setting not in STUDIES:
            arguments.append("--resume")
        return start(arguments, self.work, self.folder / log, moment=moment, before=prepare)

    @cached_property
    def whole(self) -> Ended:
        """The run that is left alone, and how it ended."""
        ended = self.start().wait()
        if ended.code:
            raise SystemExit(f"'{self.setting}' fails undisturbed: {ended.errors}")
        return ended

    @cached_property
    def contents(self) -> dict[str, Any]:
        """What the run that is left alone leaves."""
        assert self.whole.code == 0
        return contents(self.work)

    def remove(self) -> None:
        """Remove the folder with all that is in it."""
        shutil.rmtree(self.folder)


def _slug(text: str) -> str:
    return re.sub(r"\W+", "-", text)


# What a run leaves


TIMES = {"seconds", "created", SEAL}
"""What may differ between two runs that end in the same numbers."""


def contents(folder: Path) -> dict[str, Any]:
    """Return what a folder's files hold by relative path, without times: equal for runs that end in the same bits."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        found[name] = _content(path) if path.is_file() else "folder"
    return found


def half_written(folder: Path) -> list[str]:
    """Say which files are not whole; the last line of a log may be torn, because the next run drops it."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder)
        try:
            if path.suffix == ".tmp":
                raise ValueError("of a write that did not end")
            if path.suffix == ".jsonl":
                for line in path.read_text("utf-8").splitlines()[:-1]:
                    json.loads(line)
            elif path.suffix == ".safetensors":
                load_file(path)
            else:
                _content(path)
        except (ValueError, SafetensorError) as error:
            found.append(f"{name} is half written ({error})")
    return found


def _content(path: Path) -> Any:
    if path.suffix == ".jsonl":
        return [_timeless(json.loads(line)) for line in path.read_text("utf-8").splitlines()]
    if path.suffix == ".json":
        return _timeless(json.loads(path.read_text("utf-8")))
    if path.suffix == ".safetensors" and b'"header"' in path.read_bytes():  # a checkpoint, which notes times
        tensors, header = load_checkpoint(path)
        return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}, _timeless(header)
    return None if path.suffix == ".html" else path.read_bytes()


def _timeless(value: Any) -> Any:
    if isinstance(value, Mapping):
        timed = value.get("metric") == "seconds"  # a result line
        return {
            key: _timeless(each) for key, each in value.items() if key not in TIMES and not (timed and key == "value")
        }
    return [_timeless(each) for each in value] if isinstance(value, list) else value


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Say in words how two folders differ."""
    left = [f"{name} is left over" for name in found.keys() - wanted.keys()]
    missing = [f"{name} is missing" for name in wanted.keys() - found.keys()]
    other = [
        f"{name} differs{_where(found[name], wanted[name])}"
        for name in found.keys() & wanted.keys()
        if found[name] != wanted[name]
    ]
    return sorted([*left, *missing, *other])


def _where(found: Any, wanted: Any) -> str:
    """Return the place of the first difference of two JSON values."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        pairs = {key: (found.get(key), wanted.get(key)) for key in (*wanted, *found)}
    elif isinstance(found, list | tuple) and isinstance(wanted, list | tuple) and len(found) == len(wanted):
        pairs = dict(enumerate(zip(found, wanted, strict=True)))
    else:
        return f": {str(found)[:60]} for {str(wanted)[:60]}"
    key, pair = next((key, pair) for key, pair in pairs.items() if pair[0] != pair[1])
    return f", {key}{_where(*pair)}"
