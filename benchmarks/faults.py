"""Kill `bmtpt learn`, `adapt` and `study` at random moments, resume them, and compare with runs that were left alone.

    python benchmarks/faults.py --kills 400 --out benchmarks/results/faults.jsonl

Each run is a real process (`processes.py`) on a tiny model. It gets SIGKILL, SIGTERM or SIGINT at a random time or at a
random file operation, from its start to its end, the saving included; so does each run that resumes it, until one ends
on its own. What it leaves must be what the undisturbed run left: the same files with the same bits (times of day and
durations apart), no process, nothing in the temporary folder. In studies with several processes, a worker may be killed
instead. A line per run is written; the same command goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import random
import signal
import tempfile
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import common
from processes import Ended, Moment, Process, alive, import_everything, outlived
from runs import MANY_PROCESSES, SETTINGS, Place, World, contents, differences

SIGNALS = {"KILL": signal.SIGKILL, "TERM": signal.SIGTERM, "INT": signal.SIGINT}
OFTEN = [*SIGNALS, "KILL"]
WORKER = -1
"""In place of a signal: SIGKILL for one of a study's worker processes."""
MOST_KILLS = 6
"""After so many kills a run is left alone, so that it ends."""
MOST_RUNS = 20
PATIENCE = 30.0
"""Seconds within which the children of a killed process must end; they notice it once they have imported torch."""


@dataclass
class Disturbed:
    """A run that is killed and resumed until it ends on its own.

    Attributes:
        groups: Process groups of all its processes so far.
    """

    place: Place
    undisturbed: Place
    rng: random.Random
    kills: list[dict[str, Any]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)

    def run(self) -> dict[str, Any]:
        """Run it to its end; return its line."""
        began = time.monotonic()
        ended = self._attempt()
        while ended.code and len(self.groups) < MOST_RUNS:
            if self.rng.random() < 0.5:  # otherwise the next one starts while children of this one may still live
                self._expect_no_process()
            ended = self._attempt()
        self._expect_no_process()
        if ended.code:
            self.faults.append(f"not finished after {MOST_RUNS} runs: {ended.sentence}")
        else:
            self.faults += differences(contents(self.place.work), self.undisturbed.contents)
        self.faults += [f"{name} is left in the temporary folder" for name in contents(self.place.temporary)]
        seconds = round(time.monotonic() - began, 2)
        return {"kills": self.kills, "runs": len(self.groups), "faults": self.faults, "seconds": seconds}

    def _attempt(self) -> Ended:
        moment = self._drawn() if len(self.kills) < MOST_KILLS else None
        process = self.place.start(resume=bool(self.groups), moment=moment)
        worker = False
        if moment and moment.signal == WORKER:
            worker, moment = self._kill_a_worker(process, moment), None
        ended = process.wait(moment)
        self.groups.append(ended.group)
        if moment and ended.signalled:
            when = {"operation": moment.operation} if moment.operation else {"second": round(moment.seconds or 0, 3)}
            name = signal.Signals(moment.signal).name.removeprefix("SIG")
            self.kills.append({"signal": name, **when, "exit": ended.code})
        elif worker:
            self.kills.append({"signal": "KILL", "of": "a worker", "exit": ended.code})
        self.faults += wrong_end(ended, moment, worker, self.place.work)
        return ended

    def _drawn(self) -> Moment:
        """Draw a signal and its moment: a time or a file operation of the undisturbed run."""
        rng, whole = self.rng, self.undisturbed.whole
        seconds, operation = rng.uniform(0, whole.seconds), rng.randint(1, whole.operations)
        if self.place.setting == MANY_PROCESSES and rng.random() < 0.6:
            return Moment(WORKER, seconds=seconds)
        name = rng.choice(OFTEN)
        at: dict[str, Any] = {"seconds": seconds} if rng.random() < 0.5 else {"operation": operation}
        return Moment(SIGNALS[name], **at, whole_group=name == "INT")

    def _kill_a_worker(self, process: Process, moment: Moment) -> bool:
        time.sleep(moment.seconds or 0)
        workers = [pid for pid, command in alive(process.pid).items() if "popen_loky" in command]
        if workers:
            os.kill(self.rng.choice(workers), signal.SIGKILL)
        return bool(workers)

    def _expect_no_process(self) -> None:
        if left := sum(outlived(group, PATIENCE) for group in self.groups):
            self.faults.append(f"{left} processes outlive the run")


def wrong_end(ended: Ended, moment: Moment | None, worker: bool, work: Path) -> list[str]:
    """Say what is wrong with how a process ended."""
    right = [0]
    if moment and ended.signalled:
        right.append(128 + moment.signal)
    if worker and "process of the study was killed" in ended.sentence:
        right.append(2)
    faults = [f"traceback: {ended.errors}"] if "Traceback" in ended.errors else []
    if ended.code not in right:
        faults.append(f"exit {ended.code} where {right[-1]} is right: {ended.sentence}")
    if ended.code == 128 + signal.SIGTERM and not ended.by_signal:
        faults += steps_lost(work)
    return faults


def steps_lost(work: Path) -> list[str]:
    """Say whether the run that was written last has logged steps that its checkpoint lacks: SIGTERM loses none."""
    from bmtpt.train.checkpoint import load_checkpoint

    newest = max(work.rglob("events.jsonl"), key=lambda path: path.stat().st_mtime_ns, default=None)
    if newest is None:
        return []
    events = [json.loads(line) for line in newest.read_text("utf-8").splitlines()]
    logged = 1 + max((event["step"] for event in events if event["event"] == "step"), default=-1)
    checkpoint = newest.with_name("checkpoint.safetensors")
    kept = load_checkpoint(checkpoint)[1]["state"]["step"] if checkpoint.is_file() else 0
    return [] if kept == logged else [f"SIGTERM lost steps: {logged} logged, {kept} in the checkpoint"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Kill until the lines hold enough kills; return 1 if any run ended wrongly."""
    options = _options(arguments)
    lines = common.lines_in(options.out)
    done = {(line["setting"], line["seed"]) for line in lines}
    kills, wrong = sum(len(line["kills"]) for line in lines), 0
    end = time.monotonic() + 60 * options.minutes
    import_everything()
    with tempfile.TemporaryDirectory() as root:
        world = World.made(Path(root))
        undisturbed = {setting: Place(world, setting, "undisturbed") for setting in options.settings}
        runs = ((setting, seed) for seed in range(10**6) for setting in options.settings)
        for setting, seed in (run for run in runs if run not in done):
            if kills >= options.kills or time.monotonic() > end:
                break
            place = Place(world, setting, f"{seed}")
            found = Disturbed(place, undisturbed[setting], random.Random(f"{setting} {seed}")).run()
            line = {"benchmark": "faults", "setting": setting, "seed": seed, **found}
            common.append_line(options.out, {**line, "machine": common.machine_facts()})
            kills, wrong = kills + len(found["kills"]), wrong + bool(found["faults"])
            verdict = "; ".join(found["faults"]) or "the same bits"
            print(f"{kills} kills, {setting}, seed {seed}: {verdict}", flush=True)
            place.remove()
    return int(wrong > 0)


def _options(arguments: Sequence[str] | None) -> Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON lines to append to")
    parser.add_argument("--kills", type=int, default=400, help="how many the file holds at the end")
    parser.add_argument("--minutes", type=float, default=60, help="stop after so long")
    parser.add_argument("--settings", nargs="+", default=SETTINGS, choices=SETTINGS, help="default: all")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
