"""Check a task before training: is its file right, and what do its rows hold?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bmtpt.tasks.rows import load_data
from bmtpt.tasks.spec import SPLITS, load_task
from bmtpt.tasks.splits import SPLIT_SEED
from bmtpt.types import Example

SHOWN = 160
"""Most characters of an example's text."""


def check_file(path: str | Path, data: str | Path | None = None, tokenizer: Any = None) -> list[str]:
    """Check a task file and every row it leads to; return a summary, one line per fact.

    Args:
        data: As in `load_data`; None looks at the task's own files, or at the hub if it names none.
        tokenizer: Counts the tokens of the training texts, if given.

    Raises:
        TaskError, DataError: The file or a row is wrong; the sentence names file and key, or file and line.
    """
    spec = load_task(Path(path))
    loaded = load_data(spec, "hub" if data is None else data, seed=SPLIT_SEED)
    lines = [f"task {spec.name}: {' + '.join(spec.metrics)}, headline {spec.primary}, rows are '{loaded.status}'"]
    lines += [f"split {spec.split}: {SPLITS[spec.split]}"]
    for part, examples in loaded.parts.items():
        counts = ", ".join(f"{word} {count[part]}" for word, count in loaded.label_counts.items())
        lines.append(f"{part}: {len(examples)} examples" + (f" ({counts})" if counts and examples else ""))
    unused = [word for word, count in loaded.label_counts.items() if not any(count.values())]
    lines += [f"note: no row has the label '{word}'; check its spelling, or leave it out" for word in unused]
    lengths = token_percentiles(loaded.train, tokenizer) if tokenizer else {}
    if lengths:
        shares = ", ".join(f"{share} % ≤ {length}" for share, length in lengths.items())
        lines.append(f"tokens of a training text: {shares}; the task's limit is {spec.max_length}")
    first = loaded.train[0]
    shown = first.text if len(first.text) <= SHOWN else first.text[: SHOWN - 1] + "…"
    return [*lines, f"first example: {shown} -> {first.target}"]


def describe(name_or_path: str | Path) -> dict[str, str]:
    """Return what `bmtpt tasks` prints of a task: title, rows, split, labels, metrics, template, places."""
    spec = load_task(name_or_path)
    rows = " / ".join(f"{size:,}" for size in spec.published) if spec.published else "-"
    places = {"hub": spec.hub and spec.hub.path, "folder": spec.folder, "offline": spec.offline}
    metrics = [f"{metric}*" if metric == spec.primary else metric for metric in spec.metrics]
    return {
        "name": spec.name,
        "title": spec.title or spec.name,
        "rows": rows,
        "split": spec.split,
        "labels": ", ".join(spec.label_words) or {"answers": "free answer", "number": "number"}[spec.kind],
        "metrics": ", ".join(metrics),
        "text": spec.text,
        "length": str(spec.max_length),
        "data": ", ".join(place for place, value in places.items() if value) or "own file",
    }


def token_percentiles(examples: Sequence[Example], tokenizer: Any) -> dict[int, int]:
    """Return text length in tokens, end of sequence included, at 50, 90, 99 and 100 % of the examples."""
    lengths = sorted(len(tokenizer.encode(example.text, add_special_tokens=False)) + 1 for example in examples)
    return {share: lengths[max(0, -(-share * len(lengths) // 100) - 1)] for share in (50, 90, 99, 100)}
