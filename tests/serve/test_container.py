"""The container's files are sound. No image is built here: there is no container engine on a test machine."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from bmtpt.cli import app
from bmtpt.serve.settings import ServeSettings

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
SERVICE = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]["serve"]


@pytest.mark.parametrize(
    "command",
    [
        ["hadolint", "--failure-threshold", "style", "Dockerfile"],
        ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", "compose.yaml"],
    ],
    ids=["Dockerfile", "compose.yaml"],
)
def test_a_linter_finds_nothing(command):
    tool = Path(sys.executable).with_name(command[0])
    ran = subprocess.run([tool, *command[1:]], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def instruction(name: str) -> str:
    return re.findall(rf"^{name} (.*)", DOCKERFILE, re.MULTILINE)[-1]


def test_the_image_runs_as_a_user_without_rights_and_the_example_on_a_file_system_that_cannot_be_written():
    user, group = instruction("USER").split(":")
    assert int(user) >= 10_000 <= int(group)
    assert SERVICE["read_only"]
    assert SERVICE["cap_drop"] == ["ALL"]
    assert set(SERVICE["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}
    assert all(volume.endswith(":ro") for volume in SERVICE["volumes"])
    assert all(port.startswith("127.0.0.1:") for port in SERVICE["ports"])


def test_the_example_waits_longer_than_the_server_drains():
    assert int(SERVICE["stop_grace_period"].removesuffix("s")) > ServeSettings().drain_seconds


def test_only_what_the_image_is_built_from_is_sent_to_the_engine():
    copied = [
        word for line in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE) for word in line.split()
    ]
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in ignored
    assert sorted(line[1:] for line in ignored if line.startswith("!")) == sorted(copied)
    assert all((ROOT / name).exists() for name in copied)


@pytest.mark.parametrize("arguments", [json.loads(instruction("CMD")), SERVICE["command"]], ids=["image", "example"])
def test_the_server_takes_the_options_of_image_and_example(arguments):
    command = json.loads(instruction("ENTRYPOINT"))
    ran = CliRunner().invoke(app, [*command[1:], *arguments, "--show-config"])
    assert ran.exit_code == 0, ran.output
    assert yaml.safe_load(ran.stdout)["token_file"] == "/run/secrets/tokens"


@pytest.mark.parametrize("answers", [True, False])
def test_the_health_check_asks_whether_a_server_answers(answers, url):
    port = url.rpartition(":")[2] if answers else "1"
    python, *words = json.loads(re.search(r"^HEALTHCHECK .* CMD (.*)", DOCKERFILE, re.MULTILINE)[1])
    assert (python, "8000" in words[-1]) == ("python", True)
    ran = subprocess.run([sys.executable, *(word.replace("8000", port) for word in words)], capture_output=True)
    assert (ran.returncode == 0) == answers
