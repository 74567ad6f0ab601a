"""Files are written whole or not at all, and a killed write leaves nothing once the file is there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import bmtpt
from bmtpt.artifacts.files import write_text_atomically

KILLED = """
import os, sys
from pathlib import Path
from bmtpt.artifacts.files import write_text_atomically
os.fsync = lambda handle: os._exit(9)
write_text_atomically(Path(sys.argv[1]), "half")
"""


def killed_write(path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(bmtpt.__file__).parent.parent)}
    assert subprocess.run([sys.executable, "-c", KILLED, str(path)], env=environment).returncode == 9


def test_what_a_killed_write_leaves_is_gone_once_the_file_is_written(tmp_path):
    path = tmp_path / "card [1].json"
    killed_write(path)
    (left,) = tmp_path.iterdir()
    assert left.suffix == ".tmp"
    write_text_atomically(tmp_path / "other.json", "whole")
    own = tmp_path / ".card [1].json.tmp"
    own.touch()
    assert left.exists()
    write_text_atomically(path, "whole")
    assert {each.name for each in tmp_path.iterdir()} == {path.name, "other.json", own.name}
    assert path.read_text() == "whole"
