"""One process at a time works in an output folder; the lock leaves no file and ends with its owner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import bmtpt
from bmtpt.artifacts.folder import held, output_folder
from bmtpt.errors import ArtifactError

OWNER = """
import sys, time
from pathlib import Path
from bmtpt.artifacts.folder import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(120)
"""


@contextmanager
def owner(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Let another process hold a folder; it is killed at the end."""
    environment = os.environ | {"PYTHONPATH": str(Path(bmtpt.__file__).parent.parent)}
    command = [sys.executable, "-c", OWNER, str(folder)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_a_folder_that_another_process_holds_is_refused_until_that_process_is_gone(tmp_path):
    refused = pytest.raises(ArtifactError, match=rf"another process is working in {tmp_path}")
    with owner(tmp_path), refused, output_folder(tmp_path, "posterior"):
        pass
    with output_folder(tmp_path, "posterior"):
        assert not list(tmp_path.iterdir())  # the lock is not a file


def test_a_folder_whose_holder_dies_within_a_moment_is_not_refused(tmp_path):
    with owner(tmp_path) as process:
        threading.Timer(0.3, process.kill).start()
        with output_folder(tmp_path, "posterior"):
            assert process.wait() == -signal.SIGKILL


def test_the_same_process_may_hold_a_folder_again_and_frees_it_at_the_end(tmp_path):
    with held(tmp_path):
        with held(tmp_path / "." / ""):
            pass
        child = subprocess.run(["flock", "--nonblock", str(tmp_path), "true"], check=False)
        assert child.returncode == 1  # still held after the inner one has ended
    assert subprocess.run(["flock", "--nonblock", str(tmp_path), "true"], check=False).returncode == 0


@pytest.mark.parametrize("replaced", [False, True])
def test_a_folder_that_vanishes_while_it_is_held_is_an_error_even_if_another_one_is_there(replaced, tmp_path):
    folder = tmp_path / "out"

    def lose_it() -> None:
        with output_folder(folder, "posterior"):
            folder.rename(tmp_path / "moved")
            if replaced:
                folder.mkdir()

    with pytest.raises(ArtifactError, match=f"{folder} has vanished"):
        lose_it()
    with output_folder(folder, "posterior"):
        pass  # and it is free again
