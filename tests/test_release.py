"""What is released works where nothing of this checkout is, and the workflows that release it are sound."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command: str | Path, **options: object) -> str:
    elsewhere = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [str(each) for each in command]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, env=elsewhere, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The commands of an environment that has the wheel, and the packages it needs from this one."""
    place = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", place, ROOT)
    venv.create(place / "env")
    (wheel,) = place.glob("*.whl")
    python = place / "env" / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel)
    (site,) = (place / "env" / "lib").glob("python*/site-packages")
    (site / "needed.pth").write_text(sysconfig.get_path("purelib"))
    return place / "env" / "bin"


def test_the_wheel_brings_its_command_and_all_its_files(installed, tmp_path):
    code = "import bmtpt.serve.routes.page as page; print(page.__file__)"
    home = Path(run(installed / "python", "-c", code, cwd=tmp_path).strip()).parents[2]
    assert home.is_relative_to(installed.parent)
    files = {path.relative_to(ROOT / "src" / "bmtpt") for path in (ROOT / "src" / "bmtpt").rglob("*") if path.is_file()}
    wanted = {path for path in files if "__pycache__" not in path.parts}
    assert wanted <= {path.relative_to(home) for path in home.rglob("*")}
    assert run(installed / "bmtpt", "--version", cwd=tmp_path).startswith("bmtpt ")
    assert "stackoverflow" not in run(installed / "bmtpt", "tasks", cwd=tmp_path)
    assert "few-labels" in run(installed / "python", "-c", "import bmtpt.studies as s; print(s.named_studies())")


def test_the_workflows_have_no_finding_and_fit_their_schema():
    commands = Path(sys.executable).parent
    run(commands / "zizmor", "--offline", "--pedantic", ROOT / ".github")
    workflows = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    run(commands / "actionlint", "-shellcheck=", "-pyflakes=", *workflows)  # these two only where they are installed
    run(commands / "check-jsonschema", "--builtin-schema", "vendor.github-workflows", *workflows)
