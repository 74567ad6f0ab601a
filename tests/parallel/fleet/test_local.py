"""Processes of this machine are ended at any moment without a word."""

import subprocess
import sys
import threading

from bmtpt.parallel.fleet.local import Processes


def test_processes_that_are_ended_right_after_a_job_was_given_end_without_a_word(monkeypatch):
    """Ctrl-C comes whenever it comes; loky alone prints a KeyError in most of these rounds."""
    failed: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", failed.append)
    for _ in range(8):
        pool = Processes(2)
        pool.submit(abs, [-1, -2])
        assert {(job, done) for job, done in _all(pool, 2)} == {(-1, 1), (-2, 2)}
        pool.submit(abs, [-3])
        pool.submit(abs, [-4])
        pool.close()
    assert not failed


def test_processes_that_had_no_job_are_not_started_to_be_ended(monkeypatch):
    given = []
    pool = Processes(2)
    monkeypatch.setattr(pool._pool, "submit", given.append)
    pool.close()
    assert not given


def test_processes_that_are_killed_leave_no_semaphores_behind(tmp_path):
    """Of tqdm's own lock, which any library may ask for, Python's tracker would print that it leaked."""
    script = tmp_path / "ends.py"
    script.write_text(
        "from bmtpt.parallel.fleet.local import Processes\n"
        "def work(job):\n"
        "    from tqdm import tqdm\n"
        "    return len(list(tqdm([job], disable=True))) + bool(tqdm.get_lock())\n"
        "if __name__ == '__main__':\n"
        "    pool = Processes(2)\n"
        "    pool.submit(work, [1])\n"
        "    print(pool.wait())\n"
        "    pool.close()\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("[(1, 2)]\n", "")


def _all(pool, jobs):
    ended = []
    while len(ended) < jobs:
        ended += pool.wait()
    return ended
