"""Time and memory of commands as what they are given grows: nothing may grow faster than its input.

    python benchmarks/sizes.py --out benchmarks/results/sizes.jsonl

Rows that `bmtpt tasks check` reads, lines that `bmtpt predict` answers, prompts that answer together from one model,
labels that a task has. Each command runs in a process of its own (`processes.py`) on a tiny model; what imports take is
not counted.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import common
from bmtpt.artifacts.saved import Prompt
from bmtpt.tasks import load_task
from processes import Ended, import_everything, start
from runs import World
from tiny import BAD, GOOD, OTHER, THINGS

ROWS_PER_PROMPT = 20
ROWS_TO_LABEL = 200
LONGEST = 1800.0
"""Seconds that a command may take."""


class Growth(NamedTuple):
    """A quantity that grows.

    Attributes:
        sizes: Its values.
        command: Writes what the command needs into a folder, for a size; returns the command line.
    """

    sizes: tuple[int, ...]
    command: Callable[[World, Path, int], list[str]]


def rows_to_check(world: World, folder: Path, size: int) -> list[str]:
    """Write a task of so many different rows."""
    texts = (" ".join(words) for words in itertools.product(THINGS, GOOD, BAD, OTHER, THINGS, BAD))
    with (folder / "rows.csv").open("w") as file:
        file.write("sentence,label\n")
        file.writelines(f"{text},{number % 2}\n" for number, text in enumerate(itertools.islice(texts, size)))
    (folder / "task.yaml").write_text("text: '{sentence}'\nlabels: {0: bad, 1: good}\nname: rows\nfile: rows.csv\n")
    return ["tasks", "check", "task.yaml"]


def lines_to_predict(world: World, folder: Path, size: int) -> list[str]:
    """Write so many texts."""
    with (folder / "lines.txt").open("w") as file:
        file.writelines(f"the {THINGS[number % 13]} is {GOOD[number % 8]} .\n" for number in range(size))
    write_prompt(world, folder / "prompt")
    return ["predict", "lines.txt", "--precision", "float32", "--prompt", "prompt"]


def prompts_at_once(world: World, folder: Path, size: int) -> list[str]:
    """Write so many prompts, each of a task of its own, and rows for all of them."""
    names = [f"task{number}" for number in range(size)]
    for name in names:
        write_prompt(world, folder / name, name=name)
    with (folder / "rows.jsonl").open("w") as file:
        for name in names * ROWS_PER_PROMPT:
            file.write(json.dumps({"task": name, "sentence": "the film is good ."}) + "\n")
    return ["predict", "rows.jsonl", "--precision", "float32", *(word for name in names for word in ("--prompt", name))]


def labels_of_a_task(world: World, folder: Path, size: int) -> list[str]:
    """Write a prompt for a task of so many labels, and rows to answer."""
    words = [" ".join(pair) for pair in itertools.islice(itertools.product(OTHER, OTHER), size)]
    labels = {str(number): word for number, word in enumerate(words)}
    write_prompt(world, folder / "prompt", labels=labels, metrics=["accuracy"])
    (folder / "lines.txt").write_text("the film is good .\n" * ROWS_TO_LABEL)
    return ["predict", "lines.txt", "--precision", "float32", "--prompt", "prompt"]


def write_prompt(world: World, folder: Path, **task: Any) -> None:
    """Write a prompt for the tiny task `sentiment`, with some of its keys changed."""
    kept = Prompt.load(world.root / "prompt")
    definition = load_task(world.root / "tasks" / "sentiment.yaml").model_dump(mode="json") | task
    own = {"task": definition["name"], "task_definition": definition}
    Prompt(kept.prompts, kept.card.model_copy(update=own)).save(folder)


GROWTHS = {
    "rows checked": Growth((10_000, 100_000, 1_000_000), rows_to_check),
    "lines answered": Growth((2_000, 20_000, 200_000), lines_to_predict),
    "prompts at once": Growth((1, 100, 300), prompts_at_once),
    "labels": Growth((10, 200, 2_000), labels_of_a_task),
}


def measured(world: World, what: str, size: int) -> Ended:
    """Run the command for a size.

    Raises:
        SystemExit: It failed.
    """
    folder = world.root / f"{what}-{size}"
    folder.mkdir()
    ended = start(GROWTHS[what].command(world, folder, size), folder, folder / "log").wait(limit=LONGEST)
    if ended.code:
        raise SystemExit(f"{what}, {size:,}: exit {ended.code}: {ended.sentence}")
    return ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every growth at every size that the file lacks."""
    options = _options(arguments)
    done = {(line["what"], line["size"]) for line in common.lines_in(options.out)}
    import_everything()
    with tempfile.TemporaryDirectory() as root:
        world = World.made(Path(root))
        world.keep("adapt, whole prompt", "prompt")
        bare = start(["tasks"], world.root, world.root / "bare").wait().peak_bytes
        for what, growth in GROWTHS.items():
            for size in growth.sizes[: options.sizes]:
                if (what, size) in done:
                    continue
                ended = measured(world, what, size)
                line = {"benchmark": "sizes", "what": what, "size": size, "seconds": round(ended.seconds, 2)}
                line |= {"cpu_seconds": round(ended.cpu_seconds, 2), "peak_bytes": ended.peak_bytes - bare}
                common.append_line(options.out, {**line, "machine": common.machine_facts()})
                print(f"{what}, {size:,}: {ended.seconds:.1f} s, {line['peak_bytes'] / 2**20:.0f} MiB", flush=True)
    return 0


def _options(arguments: Sequence[str] | None) -> Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON lines to append to")
    parser.add_argument("--sizes", type=int, default=3, help="how many of the sizes, from the smallest")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
