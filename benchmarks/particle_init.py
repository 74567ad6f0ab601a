"""How the particles' start decides whether their mean is of any use (docs/method.md, section 1).

    python benchmarks/particle_init.py --data ../shared/data --out studies/results/particle_init.jsonl

Every start gets the same optimiser steps on the same rows; what is printed is NLL per target token on held-back source
rows, of the mean θ̄ and of the particles. In T5's words, which this backbone hardly learns in so few steps; the study
`start` asks the same in FLAN's words, with error bars.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import bmtpt
from bmtpt.artifacts.card import versions
from bmtpt.tasks import SplitLimits, load_data, load_task

TASKS = Path(__file__).parents[1] / "src" / "bmtpt" / "studies" / "library" / "tasks"
SOURCES = ("sst2", TASKS / "mnli_dev.yaml", TASKS / "qnli_rebuilt.yaml", TASKS / "qqp_subset.yaml")
STARTS = (
    {"particle_init": "independent"},
    {"particle_init": "shared", "init_jitter": 0.1},
    {"particle_init": "shared", "init_jitter": 1.0},
    {"particle_init": "prompt", "init_jitter": 1.0},
)


def main() -> None:
    """Learn one small posterior per start and append what it ended with."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="data folder, as for bmtpt learn")
    parser.add_argument("--out", required=True, type=Path, help="JSON lines to append to")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--only", help="one start: independent, shared or prompt")
    options = parser.parse_args()
    backbone = bmtpt.Backbone.from_pretrained("offline")
    limits = SplitLimits(train=2000, select=48, test=48)
    sources = [load_data(load_task(name), options.data, limits=limits) for name in SOURCES]
    for start in STARTS:
        if options.only not in (None, start["particle_init"]):
            continue
        settings = bmtpt.LearnSettings(
            prompt_length=20,
            steps=options.steps,
            init_steps=options.steps // 2,
            max_length=128,
            validation_rows=48,
            evaluate_every=50,
            **start,
        )
        card = bmtpt.learn(backbone, sources, settings).card
        line = {**start, "steps": card.steps, "seconds": round(card.seconds, 1), **card.diagnostics}
        line |= {"sources": card.sources, "settings": card.settings, "versions": versions()}
        print(f"{start}: gap {card.diagnostics['mean_gap']:+.3f} nats per token, {card.seconds:.0f} s", flush=True)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
