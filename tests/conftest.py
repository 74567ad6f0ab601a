"""Truths that all tests share: one tiny T5 and one folder of tiny tasks. Shapes are checked while tests run.

Fixtures:
    tiny_t5_folder: A Hugging Face folder with a random T5 v1.1 and a word tokenizer; see `benchmarks/tiny.py`.
    tiny_backbone: The same folder, loaded in fp32.
    tiny_hf: The same folder as transformers loads it, without any code of ours.
    tiny_gpt2_folder, tiny_gpt2: As the first two, a random GPT-2 with a tokenizer like its own.
    tiny_tasks: The data of the tiny tasks, by name.
    tiny_task_folder: `<name>.yaml` and `<name>/{train,validation,test}.csv` for `sentiment`, `pairs` and `answers`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import hypothesis
import pytest
from beartype import beartype
from jaxtyping import AbstractArray, install_import_hook

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))  # they are scripts, not a package

from tiny import write_gpt2, write_t5, write_tasks

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from bmtpt.backbone import Backbone
    from bmtpt.tasks import TaskData

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may depend on a hub
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see bmtpt.cli.main
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # every core has a worker of its own


# CI draws the same examples every time, so that a red run is always the change's own doing; elsewhere they vary.
hypothesis.settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    hypothesis.settings.load_profile("ci")


def check_shapes(function: Callable[..., object]) -> Callable[..., object]:
    """Beartype for arrays only: tests must be able to pass a wrong option and read the sentence that refuses it.

    jaxtyping hands over a stand-in with the checked function's signature, so its annotations are ours to change.
    """
    function.__annotations__ = {name: hint for name, hint in function.__annotations__.items() if _has_axes(hint)}
    return beartype(function)


def _has_axes(hint: object) -> bool:
    return (isinstance(hint, type) and issubclass(hint, AbstractArray)) or any(map(_has_axes, get_args(hint)))


# The hook imports its checker by name, and pytest's importlib mode gives this file no name of its own choosing.
sys.modules["bmtpt_shape_checks"] = sys.modules[__name__]
# Must come before the first import of bmtpt: from here on every annotated tensor shape is checked at each call.
install_import_hook("bmtpt", "bmtpt_shape_checks.check_shapes")


@pytest.fixture(scope="session")
def tiny_t5_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_t5(tmp_path_factory.mktemp("tiny_t5"))


@pytest.fixture(scope="session")
def tiny_task_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tiny_tasks"))


@pytest.fixture(scope="session")
def tiny_backbone(tiny_t5_folder: Path) -> Backbone:
    from bmtpt.backbone import Backbone

    return Backbone.from_pretrained(str(tiny_t5_folder), precision="float32", device="cpu")


@pytest.fixture(scope="session")
def tiny_hf(tiny_t5_folder: Path) -> Any:
    from transformers import T5ForConditionalGeneration

    model = T5ForConditionalGeneration.from_pretrained(tiny_t5_folder, attn_implementation="eager")
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def tiny_gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gpt2(tmp_path_factory.mktemp("tiny_gpt2"))


@pytest.fixture(scope="session")
def tiny_gpt2(tiny_gpt2_folder: Path) -> Backbone:
    from bmtpt.backbone import Backbone

    return Backbone.from_pretrained(str(tiny_gpt2_folder), precision="float32", device="cpu")


@pytest.fixture(scope="session")
def tiny_tasks(tiny_task_folder: Path) -> dict[str, TaskData]:
    from bmtpt.tasks import load_data, load_task

    return {path.stem: load_data(load_task(path)) for path in sorted(tiny_task_folder.glob("*.yaml"))}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Debian's Chromium; where it is missing, tests that need it skip, but not in CI."""
    from playwright.sync_api import sync_playwright

    place = Path("/usr/bin/chromium")
    if not place.exists() and not os.environ.get("CI"):
        pytest.skip("this test needs Debian's package chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=place, args=["--no-sandbox"])
        yield browser
        browser.close()
