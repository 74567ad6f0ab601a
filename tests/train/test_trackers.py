from __future__ import annotations

import json
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bmtpt.errors import SettingsError
from bmtpt.settings import LearnSettings
from bmtpt.stages.source import learn
from bmtpt.train import trackers
from bmtpt.train.events import Listener
from bmtpt.train.trackers import Opened, Run, tracked

QUICK = {"particles": 2, "prompt_length": 4, "evaluate_every": 2, "validation_rows": 4, "batch_size": 2}
SETTINGS = LearnSettings(**QUICK, steps=4)


def step(number: int, loss: float = 1.0) -> dict[str, Any]:
    return {"event": "step", "step": number, "steps": 9, "loss": {"rte": [loss, loss]}, "lr": 0.5}


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard itself shows."""
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    shown = event_accumulator.EventAccumulator(str(folder))
    shown.Reload()
    return {tag: [(each.step, each.value) for each in shown.Scalars(tag)] for tag in shown.Tags()["scalars"]}


def settings_text(folder: Path) -> str:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(folder))
    shown.Reload()
    (text,) = shown.Tensors("settings/text_summary")
    return text.tensor_proto.string_val[0].decode()


def wandb_records(path: Path) -> Iterator[Any]:
    """What wandb would send: its package has no reader for its files, which are LevelDB's log of protobuf messages."""
    messages = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    content, at, message = path.read_bytes(), 7, b""  # its own header comes first
    while at + 7 <= len(content):
        left = 2**15 - at % 2**15
        if left < 7:
            at += left  # no header fits in the rest of a block
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        message += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4) and at <= len(content):  # the whole message, or its last part, and all of it is written
            yield messages.Record.FromString(message)
            message = b""


def ended_records(folder: Path, runs: int) -> list[Any]:
    """Return the records of a folder once so many runs have ended: `finish` does not wait for wandb's own process."""
    end = time.monotonic() + 60
    while True:
        kept = [record for path in folder.rglob("*.wandb") for record in wandb_records(path)]
        if sum(record.HasField("exit") for record in kept) == runs or time.monotonic() > end:
            return kept
        time.sleep(0.05)


class Recorder:
    """A tracker that keeps what it is told."""

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.closed: list[bool] = []
        self.trouble: Callable[[], object] = lambda: None

    def __call__(self, run: Run) -> Opened:
        self.runs.append(run)
        return Opened(self.log, self.closed.append)

    def log(self, figures: dict[str, float], at: int) -> None:
        self.trouble()
        self.logged.append((at, figures))


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder()
    monkeypatch.setitem(trackers._OPEN, "tensorboard", made)
    return made


def test_tensorboard_shows_the_losses_the_diagnostics_and_the_settings_of_a_run(tmp_path, tiny_backbone, tiny_tasks):
    heard: list[dict[str, Any]] = []
    with tracked("tensorboard", heard.append, SETTINGS.model_dump(mode="json"), folder=tmp_path) as listener:
        posterior = learn(tiny_backbone, [tiny_tasks["sentiment"], tiny_tasks["pairs"]], SETTINGS, listener=listener)
    shown = scalars(tmp_path / "tensorboard")
    for task in ("sentiment", "pairs"):
        means = [sum(event["loss"][task]) / 2 for event in heard if event["event"] == "step"]
        assert shown[f"step/loss/{task}"] == [(n + 1, pytest.approx(mean)) for n, mean in enumerate(means)]
        assert [at for at, _ in shown[f"validation/mean_nll/{task}"]] == [0, 2, 4]
    svgd = posterior.card.diagnostics["svgd"]
    for name in ("bandwidth", "spread", "mean_rms", "repulsion_to_drive"):
        assert shown[f"diagnostics/{name}"][-1] == (4, pytest.approx(svgd[name]))
    assert "diagnostics/kernel" not in shown
    assert "particles: 2" in settings_text(tmp_path / "tensorboard")


class StopError(Exception):
    """Stands for a kill."""


def test_a_run_that_is_resumed_goes_on_in_the_same_curves(tmp_path, tiny_backbone, tiny_tasks):
    stage = LearnSettings(**QUICK, steps=8, init_steps=3, particle_init="prompt")  # two loops, one after the other

    def run(folder: Path, listener: Listener | None, resume: bool) -> None:
        with tracked("tensorboard", listener, {}, folder=folder, resume=resume) as heard:
            learn(tiny_backbone, [tiny_tasks["sentiment"]], stage, folder=folder, resume=resume, listener=heard)

    def stopping(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 3 and (tmp_path / "a/checkpoint.safetensors").exists():
            raise StopError  # after the start's 3 steps and 3 of the particles', of which a checkpoint has 2

    with pytest.raises(StopError):
        run(tmp_path / "a", stopping, False)
    run(tmp_path / "a", None, True)
    run(tmp_path / "b", None, False)
    resumed, whole = (scalars(tmp_path / name / "tensorboard") for name in "ab")
    assert resumed == whole
    assert [at for at, _ in whole["step/loss/sentiment"]] == list(range(1, 9))


def test_mlflow_shows_a_run_and_its_sequel_as_one(tmp_path, monkeypatch):
    library = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlflow'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    for resume in (False, True):
        with tracked("mlflow", None, {"particles": 2}, folder=tmp_path, resume=resume) as heard:
            heard(step(3 * resume, loss=1.0 + resume))
    client = library.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("bmtpt").experiment_id])
    assert (run.data.params, run.info.status) == ({"particles": "2"}, "FINISHED")
    shown = client.get_metric_history(run.info.run_id, "step/loss/rte")
    assert [(each.step, each.value) for each in shown] == [(1, 1.0), (4, 2.0)]


def test_wandb_keeps_a_run_and_its_sequel_under_one_name(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for resume in (False, True):
        with tracked("wandb", None, {"particles": 2}, folder=tmp_path, resume=resume) as heard:
            heard(step(3 * resume, loss=1.0 + resume))
    kept = ended_records(tmp_path, runs=2)
    runs = [record.run for record in kept if record.HasField("run")]
    assert {(run.project, run.run_id) for run in runs} == {("bmtpt", (tmp_path / "tracked.txt").read_text().strip())}
    assert {item.key: item.value_json for item in runs[0].config.update}["particles"] == "2"
    shown = {
        (record.history.step.num, json.loads(item.value_json))
        for record in kept
        for item in record.history.item
        if list(item.nested_key) == ["step/loss/rte"]
    }
    assert shown == {(1, 1.0), (4, 2.0)}
    assert [record.exit.exit_code for record in kept if record.HasField("exit")] == [0, 0]


def test_a_resumed_run_has_its_name_and_a_new_one_another(tmp_path: Path, recorder: Recorder):
    for resume in (False, True, False):
        with tracked("tensorboard", None, {}, folder=tmp_path, resume=resume) as heard:
            heard(step(3))
    first, again, other = (run.name for run in recorder.runs)
    assert first == again != other
    assert [run.step for run in recorder.runs] == [4, 4, 4]
    assert recorder.closed == [False, False, False]


def test_a_run_that_fails_is_closed_as_failed(recorder: Recorder):
    def fail() -> None:
        with tracked("tensorboard", None, {}) as heard:
            heard(step(0))
            raise StopError

    with pytest.raises(StopError):
        fail()
    assert recorder.closed == [True]


def test_a_run_goes_on_without_a_tracker_that_breaks(recorder: Recorder, caplog):
    def break_once() -> None:
        raise ConnectionError("no route to host\nmore")

    recorder.trouble = break_once
    seen: list[int] = []
    with tracked("tensorboard", lambda event: seen.append(event["step"]), {}) as heard:
        for number in range(3):
            heard(step(number))
    assert (seen, recorder.logged) == ([0, 1, 2], [])
    (record,) = caplog.records
    assert record.message == "track 'tensorboard' stopped: no route to host; the run goes on without it"


def test_a_tracker_that_cannot_begin_is_told_of_in_one_sentence(monkeypatch: pytest.MonkeyPatch):
    def refuse(run: Run) -> Opened:
        raise RuntimeError("no api key\nlog in")

    monkeypatch.setitem(trackers._OPEN, "tensorboard", refuse)
    with (
        pytest.raises(SettingsError, match=r"track 'tensorboard' cannot begin: no api key$"),
        tracked("tensorboard", None, {}) as heard,
    ):
        heard(step(0))


def test_what_a_tracker_prints_stays_off_standard_output(recorder: Recorder, capsys):
    recorder.trouble = lambda: print("hello from the tracker")
    with tracked("tensorboard", None, {}) as heard:
        heard(step(0))
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "hello from the tracker\n")


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "wandb", "mlflow"])
def test_a_missing_package_names_the_pip_command(monkeypatch: pytest.MonkeyPatch, name: Any):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SettingsError, match=rf"pip install 'bmtpt\[{name}\]'"), tracked(name, None, {}):
        pass


def test_a_folder_with_a_trackers_name_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(SettingsError, match="needs the wandb package"), tracked("wandb", None, {}):
        pass
