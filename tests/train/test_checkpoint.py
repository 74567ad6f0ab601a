"""Checkpoints and event logs on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bmtpt.errors import ArtifactError
from bmtpt.sealed import line_values
from bmtpt.train.checkpoint import load_checkpoint, optimiser_tensors, restore_optimiser, save_checkpoint
from bmtpt.train.events import EventLog
from damages import flipped


def test_tensors_and_header_come_back_bit_for_bit(tmp_path):
    tensors = {"a": torch.randn(2, 3).T, "b/c": torch.tensor(4.0), "n": torch.tensor([1, 2])}
    header = {"step": 3, "loss": [0.1, 1e-17], "none": None}
    save_checkpoint(tmp_path / "x.safetensors", tensors, header)
    found, noted = load_checkpoint(tmp_path / "x.safetensors")
    assert noted == header
    assert set(found) == set(tensors)
    assert all(torch.equal(found[key], tensors[key]) for key in tensors)


def test_a_new_checkpoint_replaces_the_old_one_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "x.safetensors"
    for step in range(3):
        save_checkpoint(path, {"a": torch.full((2,), float(step))}, {"step": step})
    assert load_checkpoint(path)[1] == {"step": 2}
    assert [each.name for each in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize("damage", ["missing", "truncated", "text", "no header"])
def test_a_checkpoint_that_cannot_be_read_is_named(tmp_path, damage):
    path = tmp_path / "x.safetensors"
    save_checkpoint(path, {"a": torch.zeros(100)}, {"step": 1})
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[:-10])
    elif damage == "text":
        path.write_text("hello")
    else:
        path.write_bytes(content.replace(b'"header"', b'"hidder"'))
    with pytest.raises(ArtifactError) as error:
        load_checkpoint(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_a_restored_optimiser_goes_on_as_the_first_one(tmp_path, kind):
    def step(theta: torch.Tensor, optimiser: torch.optim.Optimizer, times: int) -> None:
        for _ in range(times):
            theta.grad = theta.detach().sin()
            optimiser.step()

    theta = torch.arange(6.0).requires_grad_(True)
    optimiser = kind([theta], lr=0.1)
    step(theta, optimiser, 3)
    tensors, numbers = optimiser_tensors(optimiser)
    save_checkpoint(tmp_path / "x", {"theta": theta, **tensors}, {"numbers": numbers})
    step(theta, optimiser, 3)

    found, header = load_checkpoint(tmp_path / "x")
    again = found.pop("theta").requires_grad_(True)
    restored = kind([again], lr=0.1)
    restore_optimiser(restored, found, header["numbers"])
    step(again, restored, 3)
    assert torch.equal(again, theta)


def lines(log: EventLog) -> list[dict[str, object]]:
    return [line_values(line) for line in log.path.read_text().splitlines()]


def test_rewinding_drops_later_events_and_a_line_that_was_cut_short(tmp_path):
    log = EventLog(tmp_path / "events.jsonl")
    log.rewind(0)
    for step in range(5):
        log({"event": "step", "step": step})
    with log.path.open("a") as file:
        file.write('{"event": "st')
    log.rewind(3)
    log({"event": "step", "step": 3})
    assert [event["step"] for event in lines(log)] == [0, 1, 2, 3]


def test_rewinding_a_log_that_is_not_there_makes_an_empty_one(tmp_path):
    log = EventLog(tmp_path / "run" / "events.jsonl")
    log.rewind(0)
    assert log.path.read_text() == ""


def test_a_log_whose_folder_has_vanished_says_so(tmp_path):
    with pytest.raises(ArtifactError, match=r"cannot write .*events\.jsonl: .*its folder has vanished"):
        EventLog(tmp_path / "gone" / "events.jsonl")({"event": "step", "step": 0})


def test_neither_a_log_nor_a_checkpoint_makes_a_folder_anew_that_has_vanished(tmp_path):
    log = EventLog(tmp_path / "run" / "events.jsonl")
    log.rewind(0)
    log({"event": "step", "step": 0})
    (tmp_path / "run").rename(tmp_path / "moved")
    with pytest.raises(ArtifactError, match="its folder has vanished"):
        save_checkpoint(tmp_path / "run" / "x.safetensors", {}, {"step": 1})
    (tmp_path / "run").mkdir()
    with pytest.raises(ArtifactError, match="its folder has vanished"):
        log({"event": "step", "step": 1})
    assert not any((tmp_path / "run").iterdir())


def test_a_run_never_writes_through_a_link_that_stands_for_its_log(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "events.jsonl").symlink_to(tmp_path / "precious")
    log = EventLog(tmp_path / "events.jsonl")
    log.rewind(0)  # every run begins so
    log({"event": "step", "step": 0})
    assert (tmp_path / "precious").read_text() == "mine"
    assert len(lines(log)) == 1


def test_a_full_disk_is_told_to_be_freed():
    with pytest.raises(ArtifactError, match=r"cannot write /dev/full: no space left on device; free some space"):
        EventLog(Path("/dev/full"))({"event": "step", "step": 0})


def test_a_log_that_cannot_be_written_says_what_to_do(tmp_path):
    (tmp_path / "events.jsonl").mkdir()
    with pytest.raises(ArtifactError, match=r"cannot write .*events\.jsonl"):
        EventLog(tmp_path / "events.jsonl")({"event": "step", "step": 0})


def test_every_flipped_bit_is_refused_or_changes_nothing(tmp_path):
    path = tmp_path / "x.safetensors"
    tensors = {"a": torch.arange(3.0), "b": torch.tensor([1, 2])}
    save_checkpoint(path, tensors, {"step": 1, "state": {"losses": [0.5]}})
    content, wanted = path.read_bytes(), load_checkpoint(path)
    refused = 0
    for bit in range(8 * len(content)):
        path.write_bytes(flipped(content, [bit]))
        try:
            found, header = load_checkpoint(path)
        except ArtifactError:
            refused += 1
            continue
        assert header == wanted[1]
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert refused > 0.9 * 8 * len(content)


def test_a_damaged_event_log_does_not_stop_a_run_that_resumes(tmp_path):
    log = EventLog(tmp_path / "events.jsonl")
    log.rewind(0)
    for step in range(3):
        log({"event": "step", "step": step})
    content, wanted = log.path.read_bytes(), [log.path.read_bytes().split(b"\n")[step] for step in (0, 1)]
    for bit in range(0, 8 * len(content), 3):
        log.path.write_bytes(flipped(content, [bit]))
        log.rewind(2)
        kept = [line for line in log.path.read_bytes().split(b"\n") if line]
        assert all(line in wanted for line in kept)
