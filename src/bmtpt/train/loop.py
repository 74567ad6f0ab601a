"""The one training loop: every method of every stage runs in it.

A method says what is trained, how a step's gradient is computed and how its candidates are ranked. The loop runs
the steps, the schedule, selection, early stopping, checkpoints and events, and does not know which method it runs.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from bmtpt.artifacts.folder import CHECKPOINT
from bmtpt.errors import ArtifactError, SettingsError, TrainingError, is_out_of_memory
from bmtpt.parallel.ranks import ALONE, Ranks
from bmtpt.results import settings_hash
from bmtpt.settings import LoopSettings
from bmtpt.train.checkpoint import load_checkpoint, optimiser_tensors, restore_optimiser, save_checkpoint
from bmtpt.train.events import EventLog, Listener
from bmtpt.train.interruption import TERMINATED, termination_requested
from bmtpt.train.optimisers import ParameterGroup, make_optimiser, schedule_factor
from bmtpt.types import TokenBatch

log = logging.getLogger("bmtpt")

EVENTS = "events.jsonl"
SANE_RATE = 0.3
"""Highest learning rate that an error ever suggests: the default, which trained every backbone we tried."""
RUNAWAY = 100.0
"""Growth of what is trained that is warned about. Measured over 20 steps on the offline backbone: 1.3 times at a
learning rate of 3, 9 times at 30, and 290 times at 1,000, where the loss still fell."""


class Validation(NamedTuple):
    """Results of a method on held-back rows.

    Attributes:
        ranking: One key per candidate, the larger the better, compared as tuples; empty if nothing is selected.
        events: JSON-able facts for the event log, each with an ``event`` key; ``loss`` holds, by task, one loss per
            candidate.
    """

    ranking: Sequence[tuple[float, ...]]
    events: Sequence[dict[str, Any]]


class Method(Protocol):
    """What the loop needs of a method. The first axis of every trained tensor is the candidate."""

    def groups(self) -> list[ParameterGroup]:
        """Return the trained tensors, in an order that is always the same."""
        ...

    def draw(self, step: int) -> Mapping[str, TokenBatch]:
        """Return the examples of a step by task: a pure function of (seed, step)."""
        ...

    def backward(self, batches: Mapping[str, TokenBatch], step: int) -> dict[str, list[float]]:
        """Leave a gradient in every trained tensor; return the losses per task and candidate."""
        ...

    def validate(self, losses: Sequence[float]) -> Validation:
        """Score the current tensors on held-back rows, given the mean training loss of every step so far."""
        ...


@dataclass
class LoopState:
    """Everything that resuming needs besides the method's tensors and the optimiser's.

    Attributes:
        losses: Mean training loss of every step.
        best: Best validation key of each candidate, reached at ``best_step``; empty if nothing is selected.
        stale: Validations since any candidate last beat all earlier ones.
        found: Events of the last validation, by name: what a card says of the end of a run.
    """

    step: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    best: list[tuple[float, ...]] = field(default_factory=list)
    best_step: list[int] = field(default_factory=list)
    stale: int = 0
    stopped: bool = False
    found: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """The end of a run.

    Attributes:
        tensors: The trained tensors in the order of the groups: each candidate at its best validation, or the last
            step if the method selects nothing.
        state: Steps done, seconds, best keys and steps per candidate.
    """

    tensors: list[Tensor]
    state: LoopState

    @property
    def winner(self) -> int:
        """The candidate with the best validation; the first one if nothing is selected."""
        return max(range(len(self.state.best)), key=lambda i: self.state.best[i], default=0)


class Loop:
    """Runs a method; with a folder, it can be killed at any step and resumed to the same bits.

    Args:
        method: What is trained.
        settings: How.
        folder: Where checkpoints and events go, or None to keep nothing.
        identity: JSON-able facts that must be the same for a checkpoint to be resumed (tasks, rows, model).
        patience: Validations without improvement before stopping, or None.
        listener: Receives every event (a progress bar).
        ranks: The processes of this run. All take every step; rank 0 alone writes into the folder and is listened to.
    """

    def __init__(
        self,
        method: Method,
        settings: LoopSettings,
        *,
        folder: Path | None = None,
        identity: Mapping[str, Any] | None = None,
        patience: int | None = None,
        listener: Listener | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.method = method
        self.settings = settings
        self.ranks = ranks
        folder, listener = ranks.only_first(folder), ranks.only_first(listener)
        self.folder = folder
        self.run_hash = settings_hash({**settings.model_dump(mode="json"), **(identity or {})})
        self.patience = patience
        self.listener = listener
        self.log = EventLog(folder / EVENTS) if folder else None
        groups = method.groups()
        self.tensors = [tensor for group in groups for tensor in group.tensors]
        self.peaks = [group.learning_rate for group in groups]
        self.optimiser = make_optimiser(groups, settings)
        self.state = LoopState()
        self.sizes = [_sizes(tensor) for tensor in self.tensors]
        self.ran_away = False
        self.best = [tensor.detach().clone() for tensor in self.tensors]

    def run(self, *, resume: bool = False) -> Outcome:
        """Train to the last step, or until patience runs out.

        A process that receives SIGTERM finishes the step, writes a checkpoint and exits with status 143; so do all
        ranks if one does.

        Raises:
            TrainingError: The loss is not a number, or memory ran out; the last checkpoint is kept.
            ArtifactError: A checkpoint or event cannot be written or read.
            RankError: Another rank has ended, or the ranks do not agree.
        """
        try:
            with termination_requested() as requested:
                return self._run(resume, requested)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            settings = self.settings.model_dump()
            known = {name: settings[name] for name in ("batch_size", "particles") if settings.get(name, 1) > 1}
            cures = [f"{name} {value // 2} instead of {value}" for name, value in known.items()]
            raise TrainingError(
                f"memory ran out at step {self.state.step} with {len(self.tensors[0])} prompts trained together; try "
                + ", ".join([*cures, "a smaller max_length"])
                + " or bfloat16 as the backbone's precision"
            ) from error

    def _run(self, resume: bool, requested: Callable[[], bool]) -> Outcome:
        self.ranks.require_same(self.run_hash, "settings, rows or model")
        checkpoint = self.folder / CHECKPOINT if self.folder else None
        found = None
        if checkpoint and checkpoint.is_file():
            if resume:
                found = checkpoint, *load_checkpoint(checkpoint)
            else:
                checkpoint.unlink()
        if found := self.ranks.first(found):
            self._restore(*found)
        if self.log:
            # A run that starts over logs its first validation again, which has step -1.
            self.log.rewind(self.state.step or -1)
        if self.state.step == 0:
            self._validate()
        clock = time.perf_counter() - self.state.seconds
        while self.state.step < self.settings.steps and not self.state.stopped:
            self._step()
            self.state.step += 1
            self.state.seconds = time.perf_counter() - clock
            stop = self.ranks.after_step(self.tensors, requested())
            if self.state.step % self.settings.evaluate_every == 0 or self.state.step == self.settings.steps:
                self._validate()
                self._save()
            elif stop:
                self._save()
            if stop:
                raise SystemExit(TERMINATED)
        self._emit({"event": "end", "step": self.state.step, "seconds": self.state.seconds})
        return Outcome(self.best if self.state.best else [t.detach().clone() for t in self.tensors], self.state)

    def _step(self) -> None:
        step = self.state.step
        factor = schedule_factor(step, self.settings)
        for group, peak in zip(self.optimiser.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        for tensor in self.tensors:
            tensor.grad = None
        losses = self.method.backward(self.method.draw(step), step)
        for task, each in losses.items():
            if not all(map(math.isfinite, each)):
                raise self._diverged(f"the loss of {task}", f"at step {step}")
        if not all(t.grad is not None and bool(torch.isfinite(t.grad).all()) for t in self.tensors):
            raise self._diverged("the gradient", f"at step {step}")
        self.optimiser.step()
        if not all(bool(torch.isfinite(tensor).all()) for tensor in self.tensors):
            raise self._diverged("a trained number", f"after step {step}")
        values = [value for each in losses.values() for value in each]
        self.state.losses.append(sum(values) / len(values))
        self._emit({"event": "step", "step": step, "loss": losses, "lr": self.peaks[0] * factor})

    def _too_high(self) -> str:
        rate = self.settings.learning_rate
        return f"a learning rate of {rate:g} that is too high (try {min(rate / 3, SANE_RATE):.2g})"

    def _diverged(self, what: str, when: str) -> TrainingError:
        cause = self._too_high()
        if self.state.step == 0:
            cause += " or the precision (try float32)"
        kept = self.folder is not None and (self.folder / CHECKPOINT).is_file()
        where = f"; the last good checkpoint is in {self.folder}" if kept else ""
        return TrainingError(f"{what} is not a finite number {when}; the likely cause is {cause}{where}")

    def _validate(self) -> None:
        if self.listener:
            self.listener({"event": "validating", "step": self.state.step - 1, "steps": self.settings.steps})
        found = self.method.validate(self.state.losses)
        for task, each in ((task, each) for event in found.events for task, each in event.get("loss", {}).items()):
            if not all(map(math.isfinite, each)):  # tensors without a loss are neither kept nor saved
                raise self._diverged(f"the validation loss of {task}", f"after {self.state.step} steps")
        improved = self._keep_best(found.ranking)
        self.state.stale = 0 if improved else self.state.stale + 1
        self.state.stopped = self.patience is not None and self.state.stale >= self.patience
        self.state.found = {event["event"]: dict(event) for event in found.events}
        # Logged with the last step done, so that a resume from the checkpoint of step t keeps it.
        for event in found.events:
            self._emit({**event, "step": self.state.step - 1})
        self._watch_growth()

    def _watch_growth(self) -> None:
        """Warn, once, of tensors that have left the scale they started on: a loss can fall all the same."""
        pairs = zip(map(_sizes, self.tensors), self.sizes, strict=True)
        growth = max((float((now / start).max()) for now, start in pairs if bool((start > 0).all())), default=0.0)
        if growth > RUNAWAY and not self.ran_away:
            self.ran_away = True
            times = f"{growth:,.0f}" if growth < 1e6 else f"{growth:.1e}"
            log.warning(
                f"after {self.state.step} steps, what is trained is {times} times as large as at the start; "
                f"the likely cause is {self._too_high()}"
            )

    def _keep_best(self, ranking: Sequence[tuple[float, ...]]) -> bool:
        """Keep each candidate's tensors where it improved; return whether any did (or nothing is selected)."""
        improved = not ranking
        for candidate, key in enumerate(ranking):
            if candidate == len(self.state.best):
                self.state.best.append(tuple(key))
                self.state.best_step.append(self.state.step)
                improved = True
            elif tuple(key) > self.state.best[candidate]:
                improved = improved or tuple(key) > max(self.state.best)
                self.state.best[candidate] = tuple(key)
                self.state.best_step[candidate] = self.state.step
            else:
                continue
            for kept, tensor in zip(self.best, self.tensors, strict=True):
                kept[candidate] = tensor.detach()[candidate]
        return improved

    def _emit(self, event: dict[str, Any]) -> None:
        if self.log:
            self.log(event)
        if self.listener:
            self.listener({"steps": self.settings.steps, **event})

    def _save(self) -> None:
        if self.folder is None:
            return
        moments, numbers = optimiser_tensors(self.optimiser)
        tensors = {f"optimiser/{key}": value for key, value in moments.items()}
        tensors |= {f"tensor/{i}": tensor for i, tensor in enumerate(self.tensors)}
        tensors |= {f"best/{i}": tensor for i, tensor in enumerate(self.best)}
        header = {"state": vars(self.state), "optimiser": numbers, "settings": self.run_hash}
        save_checkpoint(self.folder / CHECKPOINT, tensors, header)

    def _restore(self, path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
        if header.get("settings") != self.run_hash:
            raise SettingsError(
                f"{path} was made with other settings, rows or model; give the same ones, or choose another folder"
            )
        try:
            self.state = LoopState(**header["state"])
            self.state.best = [tuple(key) for key in self.state.best]
            with torch.no_grad():
                for i, tensor in enumerate(self.tensors):
                    tensor.copy_(tensors[f"tensor/{i}"])
                    self.best[i].copy_(tensors[f"best/{i}"])
            moments = {k.removeprefix("optimiser/"): v for k, v in tensors.items() if k.startswith("optimiser/")}
            restore_optimiser(self.optimiser, moments, header["optimiser"])
        except (KeyError, TypeError, RuntimeError, ValueError) as error:
            raise ArtifactError(f"the checkpoint {path} belongs to another run; choose another folder") from error


def _sizes(tensor: Tensor) -> Tensor:
    """Return the norm of each candidate's numbers, float64 [candidates], in which no finite float32 overflows."""
    sizes: Tensor = torch.linalg.vector_norm(tensor.detach().reshape(len(tensor), -1), dim=1, dtype=torch.float64)
    return sizes
