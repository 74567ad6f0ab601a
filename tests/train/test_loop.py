"""The training loop on a toy method: a few numbers that are pulled towards points drawn by step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bmtpt.errors import ArtifactError, SettingsError, TrainingError
from bmtpt.sealed import line_values
from bmtpt.settings import LoopSettings
from bmtpt.train.checkpoint import load_checkpoint
from bmtpt.train.loop import CHECKPOINT, EVENTS, Loop, Outcome, Validation
from bmtpt.train.optimisers import ParameterGroup


class KillError(Exception):
    """Stands for a kill: nothing after it runs."""


class Toy:
    """R candidates [R, 2, 3] with loss ½‖θ_r − x(step)‖²; ``trouble`` maps a step to what goes wrong there."""

    def __init__(self, candidates: int = 2, selects: bool = True, trouble: dict[int, str] | None = None) -> None:
        start = torch.arange(candidates * 6, dtype=torch.float32).reshape(candidates, 2, 3) / 10
        self.theta = start.requires_grad_(True)
        self.scale = torch.ones(candidates, 3, requires_grad=True)
        self.selects = selects
        self.trouble = trouble or {}
        self.told: list[float] = []

    def groups(self) -> list[ParameterGroup]:
        return [ParameterGroup("theta", [self.theta], 0.3), ParameterGroup("scale", [self.scale], 0.01)]

    def draw(self, step: int) -> dict[str, Any]:
        return {"toy": torch.randn(2, 3, generator=torch.Generator().manual_seed(step))}

    def losses(self, x: Tensor) -> Tensor:
        return 0.5 * (self.theta * self.scale[:, None] - x).pow(2).sum(dim=(1, 2))

    def backward(self, batches: Any, step: int) -> dict[str, list[float]]:
        trouble = self.trouble.get(step)
        if trouble == "kill":
            raise KillError
        losses = self.losses(batches["toy"])
        losses.sum().backward()
        if trouble == "gradient":
            self.theta.grad[0, 0, 0] = math.nan
        if trouble == "growth":
            self.theta.data.mul_(1e3)
        if trouble == "overflow":
            self.theta.data.fill_(3e38)
            self.theta.grad.fill_(-3e38)
        values = losses.tolist()
        return {"toy": [math.nan, *values[1:]] if trouble == "loss" else values}

    def validate(self, losses: Sequence[float]) -> Validation:
        self.told.append(len(losses))
        found = self.losses(torch.zeros(2, 3)).tolist()
        if self.trouble.get(len(losses)) == "validation":
            found[0] = math.nan
        ranking = [(-value,) for value in found] if self.selects else []
        return Validation(ranking, [{"event": "validation", "loss": {"toy": found}}])


def settings(**changes: Any) -> LoopSettings:
    values = {"steps": 10, "evaluate_every": 3, "learning_rate": 0.3, "weight_decay": 0.01}
    return LoopSettings.model_validate(values | changes)


def run(
    toy: Toy, folder: Path | None = None, *, resume: bool = False, patience: int | None = None, **changes: Any
) -> Outcome:
    return Loop(toy, settings(**changes), folder=folder, patience=patience).run(resume=resume)


def events(folder: Path) -> list[dict[str, Any]]:
    """Events without wall times."""
    found = [line_values(line) for line in (folder / EVENTS).read_text().splitlines()]
    return [{key: value for key, value in event.items() if key != "seconds"} for event in found]


def same(one: Outcome, other: Outcome) -> bool:
    facts = [(each.state.step, each.state.losses, each.state.best, each.state.best_step) for each in (one, other)]
    return facts[0] == facts[1] and all(map(torch.equal, one.tensors, other.tensors))


@pytest.mark.parametrize("optimiser", ["adamw", "adafactor", "sgd"])
@pytest.mark.parametrize("kill_at", [1, 4, 6, 9])
@pytest.mark.parametrize("selects", [True, False])
def test_a_killed_run_resumes_to_the_same_bits_and_the_same_events(tmp_path, optimiser, kill_at, selects):
    whole = run(Toy(selects=selects), tmp_path / "whole", optimiser=optimiser)
    with pytest.raises(KillError):
        run(Toy(selects=selects, trouble={kill_at: "kill"}), tmp_path / "cut", optimiser=optimiser)
    resumed = run(Toy(selects=selects), tmp_path / "cut", resume=True, optimiser=optimiser)
    assert same(whole, resumed)
    assert events(tmp_path / "whole") == events(tmp_path / "cut")
    steps = [event["step"] for event in events(tmp_path / "cut") if event["event"] == "step"]
    assert steps == list(range(10))


def test_resuming_a_finished_run_does_nothing_more(tmp_path):
    whole = run(Toy(), tmp_path)
    told = events(tmp_path)
    again = run(Toy(trouble=dict.fromkeys(range(10), "kill")), tmp_path, resume=True)
    assert same(whole, again)
    assert events(tmp_path) == told


def test_a_run_that_is_not_resumed_starts_over_with_a_fresh_log(tmp_path):
    first = run(Toy(), tmp_path)
    told = events(tmp_path)
    assert same(run(Toy(), tmp_path), first)
    assert events(tmp_path) == told


def test_a_folder_changes_nothing_but_what_is_kept(tmp_path):
    assert same(run(Toy()), run(Toy(), tmp_path))


def test_the_first_validation_comes_before_the_first_step_and_the_last_behind_the_last():
    toy = Toy()
    run(toy)
    assert toy.told == [0, 3, 6, 9, 10]


def test_the_log_says_what_a_hand_written_loop_finds(tmp_path):
    run(Toy(), tmp_path, optimiser="sgd", warmup_steps=2)
    toy = Toy()
    optimiser = torch.optim.SGD(
        [{"params": [toy.theta], "lr": 0.3}, {"params": [toy.scale], "lr": 0.01}], weight_decay=0.01
    )
    steps = [event for event in events(tmp_path) if event["event"] == "step"]
    for step, factor in enumerate([1 / 2, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]):
        optimiser.zero_grad()
        losses = toy.losses(toy.draw(step)["toy"])
        losses.sum().backward()
        optimiser.param_groups[0]["lr"], optimiser.param_groups[1]["lr"] = 0.3 * factor, 0.01 * factor
        optimiser.step()
        assert steps[step]["loss"]["toy"] == losses.tolist()
        assert steps[step]["lr"] == pytest.approx(0.3 * factor)


def test_each_candidate_is_kept_at_its_own_best_validation():
    class Wandering(Toy):
        """Candidate 0 is best after 3 steps, candidate 1 after 9."""

        def validate(self, losses: Sequence[float]) -> Validation:
            self.told.append(len(losses))
            self.seen = getattr(self, "seen", {}) | {len(losses): self.theta.detach().clone()}
            return Validation([(float(len(losses) == 3),), (float(len(losses) == 9),)], [])

    toy = Wandering()
    outcome = run(toy)
    assert outcome.state.best_step == [3, 9]
    assert torch.equal(outcome.tensors[0][0], toy.seen[3][0])
    assert torch.equal(outcome.tensors[0][1], toy.seen[9][1])
    assert outcome.winner == 0


def test_without_a_ranking_the_last_step_is_kept():
    toy = Toy(selects=False)
    assert torch.equal(run(toy).tensors[0], toy.theta.detach())


class Stale(Toy):
    """Its scores by validation: the second improves, the others do not."""

    scores = (1.0, 2.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)

    def validate(self, losses: Sequence[float]) -> Validation:
        self.told.append(len(losses))
        return Validation([(self.scores[len(self.told) - 1],)], [])


@pytest.mark.parametrize(("patience", "steps"), [(1, 2), (2, 3), (3, 4), (None, 10)])
def test_training_stops_after_as_many_validations_without_improvement(patience, steps):
    outcome = run(Stale(1), evaluate_every=1, patience=patience)
    assert outcome.state.step == steps
    assert outcome.state.best == [(2.0,)]
    assert outcome.state.best_step == [1]


def test_a_stopped_run_stays_stopped_when_it_is_resumed(tmp_path):
    first = run(Stale(1), tmp_path, evaluate_every=1, patience=2)
    again = run(Stale(1), tmp_path, evaluate_every=1, patience=2, resume=True)
    assert same(first, again)


def test_patience_counts_on_over_a_resume(tmp_path):
    stale = Stale(1, trouble={2: "kill"})
    with pytest.raises(KillError):
        run(stale, tmp_path, evaluate_every=1, patience=3)
    resumed = Stale(1)
    resumed.told = list(stale.told)
    assert run(resumed, tmp_path, evaluate_every=1, patience=3, resume=True).state.step == 4


TROUBLES = [
    (7, "loss", "the loss of toy is not a finite number at step 7"),
    (7, "gradient", "the gradient is not a finite number at step 7"),
    (7, "overflow", "a trained number is not a finite number after step 7"),
    (9, "validation", "the validation loss of toy is not a finite number after 9 steps"),
]


@pytest.mark.parametrize(("step", "trouble", "when"), TROUBLES)
def test_a_number_that_is_not_finite_stops_the_run_and_the_last_good_checkpoint_stays(tmp_path, step, trouble, when):
    changes = {"optimiser": "sgd", "schedule": "constant"}
    with pytest.raises(TrainingError, match=when) as error:
        run(Toy(trouble={step: trouble}), tmp_path, **changes)
    assert "learning rate of 0.3 that is too high (try 0.1)" in str(error.value)
    assert f"the last good checkpoint is in {tmp_path}" in str(error.value)
    assert "\n" not in str(error.value)
    assert load_checkpoint(tmp_path / CHECKPOINT)[1]["state"]["step"] == 6
    assert same(run(Toy(), tmp_path, resume=True, **changes), run(Toy(), **changes))


@pytest.mark.parametrize(("trouble", "told"), [({3: "growth"}, 1), ({3: "growth", 4: "growth"}, 1), ({}, 0)])
def test_what_leaves_its_scale_is_told_once_with_the_cure(caplog, trouble, told):
    run(Toy(trouble=trouble), steps=20, learning_rate=90.0)
    found = [record.getMessage() for record in caplog.records if "times as large" in record.getMessage()]
    assert len(found) == told
    assert all("after 6 steps" in each and "a learning rate of 90 that is too high (try 0.3)" in each for each in found)


def test_tensors_that_start_at_zero_have_no_scale_to_leave(caplog):
    toy = Toy()
    toy.theta.data.zero_()
    run(toy)
    assert "times as large" not in caplog.text


def test_no_checkpoint_is_promised_before_there_is_one(tmp_path):
    with pytest.raises(TrainingError) as error:
        run(Toy(trouble={1: "loss"}), tmp_path)
    assert "checkpoint" not in str(error.value)
    with pytest.raises(TrainingError, match="float32"):
        run(Toy(trouble={0: "validation"}))


@pytest.mark.parametrize("change", [{"steps": 20}, {"learning_rate": 0.2}, {"seed": 1}, {"optimiser": "sgd"}])
def test_a_checkpoint_of_other_settings_is_refused_in_one_sentence(tmp_path, change):
    run(Toy(), tmp_path)
    kept = (tmp_path / CHECKPOINT).read_bytes()
    told = events(tmp_path)
    with pytest.raises(SettingsError) as error:
        run(Toy(), tmp_path, resume=True, **change)
    assert str(tmp_path / CHECKPOINT) in str(error.value)
    assert "other settings" in str(error.value)
    assert "\n" not in str(error.value)
    assert (tmp_path / CHECKPOINT).read_bytes() == kept
    assert events(tmp_path) == told


def test_a_checkpoint_of_other_tasks_or_of_another_model_is_refused(tmp_path):
    Loop(Toy(), settings(), folder=tmp_path, identity={"sources": ["a"], "backbone": "f"}).run()
    for identity in ({"sources": ["b"], "backbone": "f"}, {"sources": ["a"], "backbone": "g"}):
        with pytest.raises(SettingsError, match="other settings, rows or model"):
            Loop(Toy(), settings(), folder=tmp_path, identity=identity).run(resume=True)


def test_a_checkpoint_of_another_shape_and_a_damaged_one_are_refused(tmp_path):
    run(Toy(2), tmp_path)
    with pytest.raises(ArtifactError, match="belongs to another run"):
        run(Toy(3), tmp_path, resume=True)
    (tmp_path / CHECKPOINT).write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match="cannot be read"):
        run(Toy(2), tmp_path, resume=True)


def test_every_group_must_hold_a_parameter():
    class Empty(Toy):
        def groups(self) -> list[ParameterGroup]:
            return [ParameterGroup("theta", [self.theta], 0.3), ParameterGroup("scale", [], 0.01)]

    with pytest.raises(ValueError, match="'scale' holds no parameter"):
        run(Empty())


def test_a_tensor_that_got_no_gradient_stops_the_run():
    class Forgetful(Toy):
        def backward(self, batches: Any, step: int) -> dict[str, list[float]]:
            found = super().backward(batches, step)
            self.scale.grad = None
            return found

    with pytest.raises(TrainingError, match="gradient"):
        run(Forgetful())


def test_the_listener_hears_what_the_log_keeps_and_how_many_steps_there_are(tmp_path):
    heard: list[dict[str, Any]] = []
    Loop(Toy(), settings(), folder=tmp_path, listener=heard.append).run()
    assert [event.pop("steps") for event in heard] == [10] * len(heard)
    validating = [event for event in heard if event["event"] == "validating"]
    assert validating == [{"event": "validating", "step": step} for step in (-1, 2, 5, 8, 9)]
    assert [heard[heard.index(each) + 1]["event"] for each in validating] == ["validation"] * 5
    heard = [event for event in heard if event["event"] != "validating"]
    assert heard == [line_values(line) for line in (tmp_path / EVENTS).read_text().splitlines()]


def test_wall_time_adds_up_over_a_resume(tmp_path):
    with pytest.raises(KillError):
        run(Toy(trouble={7: "kill"}), tmp_path)
    before = load_checkpoint(tmp_path / CHECKPOINT)[1]["state"]["seconds"]
    assert run(Toy(), tmp_path, resume=True).state.seconds > before > 0
