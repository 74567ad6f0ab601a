"""Let the machine fail under `bmtpt`: a full disk, no write access, no file handles, a lost folder, a clock set back.

    python benchmarks/environment.py --out benchmarks/results/environment.jsonl

Each trial is a real process (`processes.py`) on a tiny model, in a small file system of its own (mounting it takes
root; `faketime` turns the clock). The command must end with one sentence, exit code 2 and no half-written file, or get
through with 0. Given again when the machine is well, it must leave what an undisturbed run leaves, bit by bit.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import common
from bmtpt.errors import LONGEST
from processes import Ended, Moment, import_everything
from runs import Place, World, contents, differences, half_written

SETTINGS = ("learn, around a prompt", "adapt, three targets", "study, together")
ROOMY = "rw,size=64m"
PAGE = 4096
"""Bytes: what a tmpfs counts in."""
FILE_LIMITS = (4, 6, 8, 10, 12, 14, 16, 20, 24)
FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
LONG_AGO = "-1000d"


class Case(NamedTuple):
    """A way in which the machine fails.

    Attributes:
        amounts: From the undisturbed run, a generator and a number of trials: how badly it fails in each trial.
        disturb: Runs the command in a place under the failure; returns how it ended.
        sentence: What the command's sentence must say, in lower case.
    """

    amounts: Callable[[Place, random.Random, int], Sequence[Any]]
    disturb: Callable[[Place, Any], Ended]
    sentence: str


def full_disk(here: Place, pages: int) -> Ended:
    """Run on a disk of so many pages of 4 KiB."""
    remount(here.work, f"rw,size={pages * PAGE}")
    return here.start().wait()


def pages_needed(undisturbed: Place, rng: random.Random, trials: int) -> list[int]:
    """Draw sizes between nothing and what the run needs."""
    paths = [undisturbed.work / name for name in undisturbed.contents]
    needed = sum(1 + path.stat().st_size // PAGE for path in paths)
    return [rng.randint(1, 1 + needed) for _ in range(trials)]


def read_only(here: Place, second: float) -> Ended:
    """Make the folder's file system read-only after some seconds."""
    if second == 0:
        remount(here.work, "ro")
    process = here.start()
    time.sleep(second)
    while not process.ended() and not remount(here.work, "ro"):
        pass  # just now a file is open for writing
    return process.wait()


def vanished_folder(here: Place, second: float) -> Ended:
    """Take the output folder away after some seconds."""
    process = here.start()
    time.sleep(second)
    if not process.ended():
        with suppress(FileNotFoundError):
            (here.work / "out").rename(here.work / "lost")
            shutil.rmtree(here.work / "lost")
    return process.wait()


def moments(undisturbed: Place, rng: random.Random, trials: int) -> list[float]:
    """Draw moments of a run, the very first among them."""
    return [0.0, *(round(rng.uniform(0, undisturbed.whole.seconds), 3) for _ in range(trials - 1))]


def few_files(here: Place, limit: int) -> Ended:
    """Allow so many open files."""
    return here.start(before=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))).wait()


def two_processes(here: Place, fate: str) -> Ended:
    """Start the command while another process works in the folder, which is then killed or goes on."""
    first = here.start()
    while not any((here.work / "out").glob("*")) and not first.ended():
        time.sleep(0.001)
    os.kill(first.pid, signal.SIGSTOP)
    second = here.start(resume=True, log="second").wait()
    if fate == "first is killed":
        first.wait(Moment(signal.SIGKILL, seconds=0))
        return second
    os.kill(first.pid, signal.SIGCONT)
    ended = first.wait()
    return ended if ended.code else second


def clock_set_back(here: Place, when: str) -> Ended:
    """Turn the clock back by years before a run is resumed, or while it works."""
    clock = here.folder / "clock"
    clock.write_text("+0d")
    environment = os.environ | {"LD_PRELOAD": str(FAKETIME), "FAKETIME_TIMESTAMP_FILE": str(clock)}
    environment |= {"FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1"}
    if when == "between two runs":
        here.start().wait(Moment(signal.SIGKILL, seconds=0.3))
        clock.write_text(LONG_AGO)
    process = here.start(
        resume=when == "between two runs",
        before=lambda: os.execve(sys.executable, [sys.executable, "-m", "bmtpt", *sys.argv[1:]], environment),
    )
    while not any((here.work / "out").rglob("events.jsonl")) and not process.ended():
        time.sleep(0.001)
    clock.write_text(LONG_AGO)
    return process.wait()


def these(*amounts: Any) -> Callable[[Place, random.Random, int], Sequence[Any]]:
    """Return the same amounts whatever the run."""
    return lambda *_: amounts


CASES = {
    "full disk": Case(pages_needed, full_disk, "no space left on device"),
    "read-only": Case(moments, read_only, "read-only file system"),
    "vanished folder": Case(moments, vanished_folder, "vanished"),
    "few open files": Case(these(*FILE_LIMITS), few_files, "too many open files"),
    "two processes": Case(these("first goes on", "first is killed"), two_processes, "another process is working in"),
    "clock set back": Case(these("between two runs", "during a run"), clock_set_back, ""),
}


def obstacle(case: str) -> str | None:
    """Say why a case cannot be tried here."""
    if not can_mount():
        return "file systems cannot be mounted here"
    if case == "clock set back" and FAKETIME is None:
        return "faketime is not installed"
    return None


@cache
def can_mount() -> bool:
    """Tell whether this process may mount a file system (most containers may not)."""
    if shutil.which("mount") is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True).returncode == 0
        if mounted:
            subprocess.run(["umount", folder], check=True)
    return mounted


def tried(case: Case, here: Place, undisturbed: Place, amount: Any) -> dict[str, Any]:
    """Run the command under a failure and once more without it; return what happened and what was wrong."""
    with file_system(here.work):
        ended = case.disturb(here, amount)
        faults = wrong_end(ended, case.sentence) + half_written(here.work)
        if ended.code == 0:
            faults += differences(contents(here.work), undisturbed.contents)
        remount(here.work, ROOMY)
        again = here.start(resume=True).wait()
        if again.code:
            faults.append(f"given again it ends with {again.code}: {again.sentence}")
        else:
            faults += differences(contents(here.work), undisturbed.contents)
        return {"exit": ended.code, "sentence": ended.sentence if ended.code else "", "faults": faults}


def wrong_end(ended: Ended, sentence: str) -> list[str]:
    """Say what is wrong with how a command ended: right is 0, or 2 with one sentence that names the cause."""
    if ended.code == 0:
        return []
    faults = [f"traceback: {ended.errors}"] if "Traceback" in ended.errors else []
    if ended.code != 2:
        faults.append(f"exit {ended.code}: {ended.sentence}")
    elif sentence not in ended.sentence.lower() or len(ended.sentence) > len("error: ") + LONGEST:
        faults.append(f"not a clear sentence: {ended.sentence}")
    return faults


@contextmanager
def file_system(folder: Path) -> Iterator[None]:
    """Mount a file system in memory on a folder."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", ROOMY, "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def remount(folder: Path, options: str) -> bool:
    """Change a mounted file system; return whether that was possible now."""
    return subprocess.run(["mount", "-o", f"remount,{options}", folder], capture_output=True).returncode == 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Try every case with every setting; return 1 if any trial ended wrongly."""
    options = _options(arguments)
    done = {(line["case"], line["setting"]) for line in common.lines_in(options.out)}
    wrong = 0
    import_everything()
    with tempfile.TemporaryDirectory() as root:
        world = World.made(Path(root))
        undisturbed = {setting: Place(world, setting, "undisturbed") for setting in options.settings}
        for case in options.cases:
            for setting in options.settings:
                if (case, setting) in done:
                    continue
                line = {"benchmark": "environment", "case": case, "setting": setting}
                line |= _trials(case, undisturbed[setting], options.trials)
                common.append_line(options.out, {**line, "machine": common.machine_facts()})
                faults = [fault for trial in line["trials"] for fault in trial["faults"]]
                wrong += bool(faults)
                verdict = line.get("skipped") or "; ".join(faults) or "well"
                print(f"{case}, {setting}, {len(line['trials'])} trials: {verdict}", flush=True)
    return int(wrong > 0)


def _trials(case: str, undisturbed: Place, trials: int) -> dict[str, Any]:
    if reason := obstacle(case):
        return {"skipped": reason, "trials": []}
    rng = random.Random(f"{case} {undisturbed.setting}")
    found = []
    for number, amount in enumerate(CASES[case].amounts(undisturbed, rng, trials)):
        here = Place(undisturbed.world, undisturbed.setting, f"{case}-{number}")
        found.append({"amount": amount, **tried(CASES[case], here, undisturbed, amount)})
        here.remove()
    return {"trials": found}


def _options(arguments: Sequence[str] | None) -> Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON lines to append to")
    parser.add_argument("--trials", type=int, default=12, help="sizes or moments that are drawn")
    parser.add_argument("--cases", nargs="+", default=[*CASES], choices=CASES, help="default: all")
    parser.add_argument("--settings", nargs="+", default=SETTINGS, choices=SETTINGS, help="default: all")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
