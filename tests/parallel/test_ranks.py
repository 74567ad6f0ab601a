"""Real runs under torchrun with 2 and 4 ranks end in the bits of one process; start-up is dear, so there are two."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_work import ENGINES, called, commands, learning, loaded, ran

import bmtpt
from bmtpt.artifacts.saved import read_artifact
from bmtpt.parallel.ranks import ALONE
from bmtpt.train.checkpoint import load_checkpoint

WAIT = 600
"""Seconds that a busy machine may need."""

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def started(ranks: int, words: list[str]) -> subprocess.Popen[str]:
    source = str(Path(bmtpt.__file__).parent.parent)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": source, "PYTHONUNBUFFERED": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*TORCHRUN, str(ranks), *words], env=environment, start_new_session=True, **pipes)


def ended(run: subprocess.Popen[str]) -> str:
    """Wait for torchrun; return what it and its ranks said. None of them outlives the test."""
    try:
        return run.communicate(timeout=WAIT)[1]
    finally:
        with suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)


def process_of(rank: int, parent: int) -> int:
    """Return the process of a rank that torchrun has started."""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            above = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            if above == parent and f"RANK={rank}".encode() in (place / "environ").read_bytes().split(b"\0"):
                return int(place.name)
        except OSError:
            continue
    raise AssertionError(f"no rank {rank}")


@pytest.fixture(scope="module")
def alone(tiny_t5_folder: Path, tiny_task_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The same work in this process, with as many threads as a rank has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("alone")
    model, tasks = str(tiny_t5_folder), str(tiny_task_folder)
    session = [learning(model, tasks, f"{out}/posterior"), *commands(tasks, f"{out}/posterior", str(out))]
    found: dict[str, Any] = {name: called(made(ALONE)) for name, made in ENGINES.items()}
    found["sharded"] = called(loaded(model, engine="generic").engine)
    yield out, found | {"commands": [ran(words) for words in session]}
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def killed(tiny_t5_folder: Path, tiny_task_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run with 2 ranks of which one was killed, and what the other said."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    run = started(2, ["-m", "bmtpt", *learning(str(tiny_t5_folder), str(tiny_task_folder), str(folder))])
    end = time.monotonic() + WAIT
    while not (folder / "checkpoint.safetensors").exists() and run.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    os.kill(process_of(1, run.pid), signal.SIGKILL)
    said = ended(run)
    assert run.returncode == 1
    return folder, said


@pytest.fixture(scope="module")
def ranks(
    killed: tuple[Path, str], tiny_t5_folder: Path, tiny_task_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[dict[str, Any]]]:
    """The work of 4 ranks, which resume the run that was killed; what each found."""
    out = tmp_path_factory.mktemp("ranks")
    facts = {"model": str(tiny_t5_folder), "tasks": str(tiny_task_folder), "out": str(out), "killed": str(killed[0])}
    assert not (killed[0] / "card.json").exists()
    run = started(4, [str(Path(__file__).with_name("rank_work.py")), json.dumps(facts)])
    said = ended(run)
    assert run.returncode == 0, said
    return out, [torch.load(out / f"{rank}.pt", weights_only=False) for rank in range(4)]


def equal(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, torch.Tensor):
        return torch.equal(found, wanted)
    if isinstance(wanted, tuple):
        return all(map(equal, found, wanted))
    return bool(found == wanted)


def difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def test_a_killed_rank_ends_the_others_with_one_sentence(killed):
    folder, said = killed
    ours = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(ours) == 1, said
    assert "one of the 2 ranks" in ours[0]
    assert "--resume" in ours[0]
    assert "/bmtpt/" not in said  # the traceback of torchrun's own report is the only one
    assert (folder / "settings.yaml").exists()


@pytest.mark.parametrize("engine", ENGINES)
def test_every_call_of_an_engine_gives_the_bits_of_one_process_on_all_ranks(engine, ranks, alone):
    wanted = alone[1][engine]
    assert wanted["passes"] > 4  # each of 4 ranks has some
    for found in ranks[1]:
        assert all(equal(found[engine][name], value) for name, value in wanted.items())


@pytest.mark.parametrize("engine", ENGINES)
def test_with_reduce_fast_gradients_differ_by_no_more_than_rounding(engine, ranks, alone):
    for call in ("gradients", "of choices", "of own prompts"):
        (losses, gradient), (wanted_losses, wanted) = ranks[1][0][f"{engine}, fast"][call], alone[1][engine][call]
        assert torch.equal(losses, wanted_losses)
        assert difference(gradient, wanted) < 2e-6
        assert all(torch.equal(found[f"{engine}, fast"][call][1], gradient) for found in ranks[1])


@pytest.mark.parametrize(
    ("name", "like", "most"), [("sharded", "sharded", 0.0), ("sharded causal", "generic causal", 1e-7)]
)
def test_with_spread_weights_losses_have_the_bits_of_one_process_and_gradients_do_to_rounding(
    name, like, most, ranks, alone
):
    wanted = alone[1][like]
    for found in ranks[1]:
        assert all(equal(found[name][call], wanted[call]) for call in ("losses", "readings", "texts"))
        for call in ("gradients", "of choices", "of own prompts"):
            assert torch.equal(found[name][call][0], wanted[call][0])
            assert difference(found[name][call][1], wanted[call][1]) <= most


def test_a_rank_keeps_its_share_of_spread_weights_alone(ranks):
    assert [found["share"] for found in ranks[1]] == [1 / 4] * 4


def test_commands_on_ranks_write_and_print_what_one_process_does_and_only_once(ranks, killed, alone):
    (place, found), (whole, wanted) = ranks, alone
    learned, other = read_artifact(killed[0]), read_artifact(whole / "posterior")
    assert torch.equal(learned.particles, other.particles)
    assert learned.card.weights_sha256 == other.card.weights_sha256
    assert torch.equal(read_artifact(place / "prompt").prompts, read_artifact(whole / "prompt").prompts)
    for at, (code, out, _) in enumerate(wanted["commands"]):
        assert [each["commands"][at][0] for each in found] == [code] * 4 == [0] * 4
        assert [each["commands"][at][1:] for each in found[1:]] == [("", "")] * 3
        if at in (2, 3):  # the same scores; times differ
            lines = [[json.loads(line) for line in text.splitlines()] for text in (found[0]["commands"][at][1], out)]
            assert [line["value"] for line in lines[0]] == [line["value"] for line in lines[1]]
    assert found[0]["commands"][4][1] == wanted["commands"][4][1]
    assert len(found[0]["commands"][4][1].splitlines()) == 160
    assert len((place / "results.jsonl").read_text().splitlines()) == len(lines[0])
    assert [*csv.reader((place / "rows.csv").open())] == [*csv.reader((whole / "rows.csv").open())]


def test_a_command_that_ranks_cannot_share_is_refused_once(ranks):
    said = [each["commands"][-1] for each in ranks[1]]
    assert [code for code, _, _ in said] == [2] * 4
    assert "".join(err for _, _, err in said) == said[0][2]
    assert said[0][2].startswith("error: bmtpt study runs in one process; torchrun is for learn")


def test_sigterm_to_one_rank_stops_all_after_the_same_step_with_a_checkpoint(ranks):
    assert [each["interrupted"] for each in ranks[1]] == [143] * 4
    _, header = load_checkpoint(ranks[0] / "interrupted" / "checkpoint.safetensors")
    assert header["state"]["step"] == 3
