"""The memory of a process of its own: its peak, and how much of it was not merely mapped from a file."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

POLL = 0.005
QUIET = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


class Used(NamedTuple):
    """What a process has used.

    Attributes:
        peak_bytes: Most resident memory (VmHWM), pages of mapped files included, which the system may take back.
        anonymous_bytes: Most resident memory that is no page of a file (RssAnon), looked at every 5 ms.
        output: What it wrote.
    """

    peak_bytes: int
    anonymous_bytes: int
    seconds: float
    output: str


def of_process(arguments: Sequence[str | Path], folder: Path) -> Used:
    """Run Python with arguments, and return what it used.

    Raises:
        SystemExit: It failed.
    """
    started = time.monotonic()
    peak = anonymous = 0
    with (folder / "output").open("w+") as output:
        process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env=os.environ | QUIET | {"BMTPT_CACHE": str(folder)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        while process.poll() is None:
            now = resident(process.pid)
            peak, anonymous = max(peak, now.get("VmHWM", 0)), max(anonymous, now.get("RssAnon", 0))
            time.sleep(POLL)
        output.seek(0)
        said = output.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, arguments))}: exit {process.returncode}: {said[-2000:]}")
    return Used(peak, anonymous, time.monotonic() - started, said)


def resident(pid: int | str = "self") -> dict[str, int]:
    """Return what Linux says of a process's resident memory, in bytes; nothing of a process that has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return {}
    return {name: 1024 * int(kib) for name, kib in re.findall(r"^(VmHWM|Rss\w+):\s+(\d+) kB$", status, re.MULTILINE)}
