"""Measure a step on 1, 2 and 4 ranks of torchrun, and predict one on up to 1,024 GPUs (`scaling_model.py`).

    OMP_NUM_THREADS=1 python benchmarks/scaling_out.py --out benchmarks/results/scaling-out-cpu.jsonl
    python benchmarks/scaling_out.py --fill      # draws docs/plots/scaling-out.svg, fills docs/scaling.md

The three worlds start once and take turns, a step each, so that a slow spell of the machine meets all of them. CPU
seconds of the busiest rank count, since 4 ranks may share 2 cores: they are what a step would take if each had its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from common import append_line, lines_in, machine_facts, parser
from scaling_model import Work

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "scaling-out-cpu.jsonl"
RANKS = (1, 2, 4)
Team = subprocess.Popen[str]
BUDGET = 512
"""Tokens of a pass: 4 ranks have several each."""
CASES = (Work("tiny", 5, 6, 2), Work("flan-t5-small", 2, 6, 2, 20))
"""The second has the shape of the backbone `offline`."""
SMOKE = (Work("tiny", 2, 2, 1, 3),)
EXCHANGES = 3


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser(__doc__)
    options.add_argument("--fill", action="store_true", help="draw, and put the tables into docs/scaling.md")
    options.add_argument("--team", action="store_true", help=argparse.SUPPRESS)
    given = options.parse_args(arguments)
    if given.team:
        take_turns()
        return 0
    if given.fill:
        from scaling_out_page import write_page

        return write_page(lines_in(RESULTS), ROOT / "docs")
    load, teams = os.getloadavg()[0], {ranks: _started(ranks) for ranks in RANKS}
    try:
        for work in SMOKE if given.smoke else CASES:
            for line in measured(work, teams, given.rounds or 3, load):
                print(f"{work.size}: {line['ranks']} ranks, {line['cpu_seconds']:.3g} CPU s of the busiest", flush=True)
                append_line(given.out, line)
    finally:
        for team in teams.values():
            team.communicate(timeout=600)
    return 0


def measured(work: Work, teams: Mapping[int, Team], rounds: int, load: float) -> list[dict[str, Any]]:
    """Return a line for each number of ranks, over steps taken in turn."""
    for team in teams.values():
        _asked(team, work)  # warm: the engine folds weights, the allocator grows
    found: dict[int, list[list[dict[str, Any]]]] = {ranks: [] for ranks in teams}
    for _ in range(rounds):
        for ranks, team in teams.items():
            found[ranks].append(_asked(team, work))
    return [_line(work, ranks, steps, load) for ranks, steps in found.items()]


def _line(work: Work, ranks: int, steps: Sequence[list[dict[str, Any]]], load: float) -> dict[str, Any]:
    def median(value: Callable[[list[dict[str, Any]]], float]) -> float:
        return statistics.median(map(value, steps))

    last = steps[-1]
    return {
        "benchmark": "scaling-out",
        "work": asdict(work),
        "ranks": ranks,
        "token_budget": BUDGET,
        "gradient_bytes": work.gradient_bytes,
        "most_passes": max(len(rank["passes"]) for rank in last),
        "seconds": median(lambda step: step[0]["wall"]),
        "cpu_seconds": median(lambda step: max(rank["cpu"] for rank in step)),
        "busy": median(lambda step: max(sum(each["cpu"] for each in rank["passes"]) for rank in step)),
        "exchange": min(rank["exchange"] for step in steps for rank in step),
        "rest": median(lambda step: step[0]["rest"]),
        "passes": [each for step in steps for rank in step for each in rank["passes"]] if ranks == 1 else [],
        "rounds": len(steps),
        "load_before": round(load, 2),
        "machine": machine_facts(),
    }


def _started(ranks: int) -> Team:
    script = [str(Path(__file__).resolve()), "--team"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    own = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    return subprocess.Popen(
        [sys.executable, *launcher, *script], env=own, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def _asked(team: Team, work: Work) -> list[dict[str, Any]]:
    """Let a team take a step; return what each rank measured."""
    assert team.stdin is not None
    assert team.stdout is not None
    team.stdin.write(json.dumps(asdict(work)) + "\n")
    team.stdin.flush()
    found: list[dict[str, Any]] = json.loads(team.stdout.readline())
    return found


# One rank


def take_turns() -> None:
    """Take the step of every line of rank 0's standard input; rank 0 prints what all measured."""
    from bmtpt.parallel.ranks import joined, leave

    ranks = joined()
    steppers: dict[str, _Stepper] = {}
    while line := ranks.first(sys.stdin.readline() if ranks.rank == 0 else ""):
        if line not in steppers:
            steppers[line] = _Stepper.of(Work(**json.loads(line)), ranks)
        found = ranks.gathered(steppers[line]())
        if ranks.rank == 0:
            print(json.dumps(found), flush=True)
    leave()


@dataclass(frozen=True)
class _Stepper:
    """One rank's part of a step of the source stage, timed."""

    work: Work
    engine: Any
    step: Any
    score: Callable[[torch.Tensor], Any]

    @classmethod
    def of(cls, work: Work, ranks: Any) -> _Stepper:
        from bmtpt.backbone.fast_t5.engine import PackedT5Engine
        from cases import draw_lengths, make_case
        from shapes import SHAPES, as_backbone, random_model
        from step import SvgdStep

        model = random_model(SHAPES[work.size])
        engine = PackedT5Engine(as_backbone(model, work.size), ranks=ranks)
        object.__setattr__(engine, "token_budget", BUDGET)
        lengths = draw_lengths(work.K, work.B)
        case = make_case(work.size, work.M, work.P, lengths, model.get_input_embeddings().weight)

        def score(particles: torch.Tensor) -> Any:
            return engine.gradients(particles, case.rows, case.weights)

        return cls(work, engine, SvgdStep.of(score, case.particles), score)

    def __call__(self) -> dict[str, Any]:
        passes: list[dict[str, Any]] = []
        self.engine.ranks.gathered(None)  # all begin together
        wall, cpu = time.perf_counter(), time.process_time()
        with self._timed(passes):
            gradient = self.score(self.step.particles.detach())[1]
        scored = time.perf_counter()
        self.step.update(gradient)
        end, spent = time.perf_counter(), time.process_time() - cpu
        return {
            "wall": end - wall,
            "cpu": spent,
            "rest": end - scored,
            "passes": passes,
            "exchange": min(self._exchange(len(passes)) for _ in range(EXCHANGES)),
        }

    def _timed(self, into: list[dict[str, Any]]) -> Any:
        """Note the operations and CPU seconds of every pass while a block runs."""
        from bmtpt.backbone.passes import run_passes

        def timed(parts: Any, one_pass: Any, device: Any, **how: Any) -> Iterator[Any]:
            def one(part: Any) -> Any:
                began = time.process_time()
                found = one_pass(part)
                into.append({"flop": self.work.flop(part), "cpu": time.process_time() - began})
                return found

            return run_passes(parts, one, device, **how)

        return (
            patch.multiple("bmtpt.backbone.engine", run_passes=timed)
            if self.engine.ranks.size == 1
            else patch("bmtpt.backbone.ranked.run_passes", timed)
        )

    def _exchange(self, passes: int) -> float:
        """Return the seconds of what ranks tell each other in a step, when nobody has to be waited for."""
        ranks = self.engine.ranks
        if ranks.size == 1:
            return 0.0
        counts = ranks.gathered(passes)
        owners = [rank for rank, count in enumerate(counts) for _ in range(count)]
        rows = torch.zeros(passes, self.work.gradient_bytes // 4)
        ranks.gathered(None)
        began = time.perf_counter()
        ranks.gathered(())
        ranks.added(rows, owners)
        ranks.after_step((), stop=False)
        return time.perf_counter() - began


if __name__ == "__main__":
    raise SystemExit(main())
