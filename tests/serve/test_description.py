"""What `/openapi.json` says is true: no request of a fuzzer gets a status that it does not declare, nor a 5xx."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import httpx2 as httpx
import pytest

from bmtpt.serve.app import create_app
from bmtpt.serve.schema import PROMPT


@pytest.fixture(scope="module")
def description(url):
    return httpx.get(f"{url}/openapi.json").json()


def nodes(value):
    if isinstance(value, dict):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from nodes(each)


def test_every_route_that_takes_rows_declares_its_refusals(description):
    for path in ("/predict", "/v1/decisions", "/v1/classify", "/models/{name}"):
        declared = description["paths"][path]["post"]["responses"]
        assert {"200", "400", "401", "404", "408", "413", "422", "429", "503"} <= set(declared)


def test_names_of_prompts_are_those_that_are_loaded_now(description, prompts):
    names = [node for node in nodes(description) if node.get("format") == PROMPT]
    assert len(names) >= 5
    assert all(node["examples"] == sorted(prompts) for node in names)


def fuzzed(description, url, folder):
    """Run schemathesis against a server, with the names of its prompts: or it would try nothing but others."""
    for node in nodes(description):
        if node.get("format") == PROMPT:
            node["enum"] = node.pop("examples")
            del node["format"]
    (folder / "openapi.json").write_text(json.dumps(description))
    options = ["--phases", "examples,coverage,fuzzing", "--max-examples", "20", "--generation-deterministic"]
    checks = "not_a_server_error,status_code_conformance,response_schema_conformance"
    command = [Path(sys.executable).with_name("schemathesis"), "run", "openapi.json", "--url", url, "--checks", checks]
    return subprocess.run([*command, *options, "--no-color"], cwd=folder, capture_output=True, text=True, timeout=120)


def test_a_fuzzer_finds_neither_a_server_error_nor_an_undeclared_status(own_service, listen, tmp_path, monkeypatch):
    shelf = own_service.shelf
    removed = shelf.remove
    # A prompt that the fuzzer removes is there again for its next requests.
    monkeypatch.setattr(shelf, "remove", lambda name: shelf.snapshot().get(name) or removed(name))
    with listen(create_app(own_service)) as url:
        ran = fuzzed(httpx.get(f"{url}/openapi.json").json(), url, tmp_path)
        assert ran.returncode == 0, ran.stdout[-6000:]
        assert httpx.get(f"{url}/readyz").status_code == 200
