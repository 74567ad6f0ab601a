"""Prompts come and go while requests run; nobody is answered by half of one."""

from __future__ import annotations

import base64
import json
import logging
import threading
import time
from dataclasses import replace

import pytest
from starlette.testclient import TestClient

from bmtpt.artifacts.saved import Prompt
from bmtpt.errors import ArtifactError, SettingsError
from bmtpt.serve.app import create_app
from bmtpt.serve.errors import BadPrompt
from bmtpt.serve.folders import Watch, prompt_folders
from bmtpt.serve.service import Service


@pytest.fixture
def own(tiny_backbone, prompts):
    service = Service.of(tiny_backbone, {name: prompts[name] for name in ("sentiment", "pairs")})
    yield service
    service.batcher.drain()


@pytest.fixture
def client(own):
    return TestClient(create_app(own))


def as_upload(prompt: Prompt, folder) -> dict[str, object]:
    prompt.save(folder)
    weights = base64.b64encode((folder / "prompt.safetensors").read_bytes()).decode()
    return {"card": json.loads((folder / "card.json").read_text()), "weights": weights}


def ask(client) -> dict[str, float]:
    reply = client.post("/predict", json={"rows": ["a good dog"], "task": "sentiment"})
    assert reply.status_code == 200, reply.text
    return reply.json()["answers"][0]["all"]


def test_a_prompt_is_uploaded_listed_replaced_and_removed(client, prompts, tmp_path):
    upload = as_upload(prompts["answers"], tmp_path / "a")
    reply = client.put("/admin/prompts/mine", json=upload)
    assert reply.status_code == 200, reply.text
    assert reply.json()["replaced"] is None
    listed = client.get("/admin/prompts").json()["prompts"]
    assert [each["name"] for each in listed] == ["mine", "pairs", "sentiment"]
    assert listed[0] | {"trained": "", "loaded": ""} == {
        "name": "mine", "task": "answers", "labels": [], "method": "bmtpt", "prompts": 1,
        "sha256": upload["card"]["weights_sha256"], "origin": "upload", "trained": "", "loaded": "",
    }  # fmt: skip
    again = client.put("/admin/prompts/mine", json=as_upload(prompts["ensemble"], tmp_path / "b")).json()
    assert (again["replaced"], again["prompt"]["prompts"]) == (upload["card"]["weights_sha256"], 2)
    assert client.delete("/admin/prompts/mine").json()["name"] == "mine"
    assert client.delete("/admin/prompts/mine").status_code == 404
    assert [each["name"] for each in client.get("/admin/prompts").json()["prompts"]] == ["pairs", "sentiment"]


def test_an_upload_that_is_no_sound_prompt_of_this_backbone_changes_nothing(client, own, prompts, tmp_path):
    sound = as_upload(prompts["sentiment"], tmp_path / "a")
    backbone = prompts["sentiment"].card.backbone.model_copy(update={"fingerprint": "0" * 64, "name": "other"})
    stranger = replace(prompts["sentiment"], card=prompts["sentiment"].card.model_copy(update={"backbone": backbone}))
    deep = json.loads("[" * 900 + "]" * 900)
    wrong = {
        "this artifact was trained with backbone 'other'": as_upload(stranger, tmp_path / "b"),
        "its SHA-256 differs": {**sound, "weights": base64.b64encode(b"no weights").decode()},
        "not as it was written": {**sound, "card": {**sound["card"], "steps": 99}},
        "is not the card": {**sound, "card": {}},
        "prompt.safetensors is not the file": {**sound, "weights": "!"},
        "card: field required": {"weights": sound["weights"]},
        "": {**sound, "card": {**sound["card"], "settings": {"a": deep}}},
    }
    before = own.shelf.snapshot()
    for sentence, upload in wrong.items():
        reply = client.put("/admin/prompts/sentiment", json=upload)
        assert reply.status_code in (400, 422), reply.text
        assert sentence in reply.json()["error"]["message"]
    assert own.shelf.snapshot() is before


@pytest.mark.parametrize("name", ["a%20b", "..%2f..%2fetc", ".hidden", "x" * 65, "a%00", "%C3%A9"])
def test_a_name_that_is_no_plain_name_is_refused_and_reaches_no_file(name, client, prompts, tmp_path):
    reply = client.put(f"/admin/prompts/{name}", json=as_upload(prompts["sentiment"], tmp_path / "a"))
    assert reply.status_code in (404, 422)
    assert client.post(f"/admin/prompts/{name}/reload").status_code == 404


def test_only_folders_of_the_start_are_read_again(own, client, prompts, tmp_path):
    folder = tmp_path / "sentiment"
    prompts["sentiment"].save(folder)
    assert client.post("/admin/prompts/sentiment/reload").status_code == 404
    own.folders = {"sentiment": folder}
    own.load("sentiment", Prompt.load(folder))
    before = ask(client)
    Prompt(-prompts["sentiment"].prompts, prompts["sentiment"].card).save(folder, overwrite=True)
    assert client.post("/admin/prompts/sentiment/reload").json()["replaced"]
    assert ask(client) != before
    (folder / "prompt.safetensors").write_bytes(b"")
    changed = ask(client)
    assert client.post("/admin/prompts/sentiment/reload").status_code == 422
    assert ask(client) == changed


def test_each_answer_is_by_the_old_prompt_or_the_new_one_while_they_are_swapped(own, client, prompts):
    first, second = prompts["sentiment"], Prompt(-prompts["sentiment"].prompts, prompts["sentiment"].card)
    shares = []
    for prompt in (first, second):
        own.load("sentiment", prompt)
        shares.append(ask(client))
    done = threading.Event()

    def swap():
        for number in range(100):
            own.load("sentiment", (first, second)[number % 2])
        done.set()

    thread = threading.Thread(target=swap)
    thread.start()
    found = []
    while not done.is_set():
        found.append(ask(client))
    thread.join()
    assert found
    assert all(min(distance(each, old) for old in shares) < 1e-5 for each in found)


def distance(first: dict[str, float], second: dict[str, float]) -> float:
    return max(abs(first[word] - second[word]) for word in second)


# Folders


def test_folders_are_found_by_name_alone_or_inside_another(prompts, tmp_path):
    for name in ("a", "b"):
        prompts["sentiment"].save(tmp_path / "all" / name)
    (tmp_path / "all" / ".hidden").mkdir()
    alone = {"a": tmp_path / "all" / "a"}
    assert prompt_folders([tmp_path / "all" / "a"]) == alone
    assert prompt_folders([tmp_path / "all"]) == {**alone, "b": tmp_path / "all" / "b"}
    with pytest.raises(SettingsError, match="would both be called 'a'; rename one"):
        prompt_folders([tmp_path / "all", tmp_path / "all" / "a"])
    with pytest.raises(ArtifactError, match="holds no prompt and no folders of prompts"):
        prompt_folders([tmp_path])
    with pytest.raises(ArtifactError, match=r"cannot read .*none: no such file"):
        prompt_folders([tmp_path / "none"])
    prompts["sentiment"].save(tmp_path / "a b")
    with pytest.raises(BadPrompt, match="cannot be called 'a b'"):
        prompt_folders([tmp_path / "a b"])


def test_a_watched_folder_is_followed(own, client, prompts, tmp_path, caplog):
    caplog.set_level(logging.INFO, "bmtpt.serve")
    watch = Watch(own, tmp_path, taken=["pairs"])

    def told() -> list[tuple[str, str]]:
        found = [(record.getMessage(), record.fields.get("prompt")) for record in caplog.records]
        caplog.clear()
        return found

    watch.look_at_start()
    assert told() == []
    prompts["answers"].save(tmp_path / "new")
    watch.look()
    assert told() == []  # it may still be being written
    watch.look()
    assert told() == [("prompt loaded", "new")]
    assert own.shelf.snapshot()["new"].origin == "watch"
    watch.look()
    assert told() == []

    prompts["ensemble"].save(tmp_path / "new", overwrite=True)
    watch.look(), watch.look(), watch.look()
    assert told() == [("prompt replaced", "new")]
    assert len(own.shelf.snapshot()["new"].prompt.prompts) == 2

    (tmp_path / "new" / "prompt.safetensors").write_bytes(b"cut off")
    watch.look(), watch.look(), watch.look()
    assert told() == [("prompt refused", "new")]  # once, and the one of before stays
    assert len(own.shelf.snapshot()["new"].prompt.prompts) == 2

    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "card.json").write_text("{}")
    prompts["sentiment"].save(tmp_path / "pairs")
    watch.look(), watch.look(), watch.look()
    assert told() == [("prompt refused", "half"), ("prompt refused", "pairs")]

    for file in (tmp_path / "new").iterdir():
        file.unlink()
    watch.look(), watch.look(), watch.look()
    assert told() == [("prompt removed", "new")]
    assert set(own.shelf.snapshot()) == {"sentiment", "pairs"}


def test_a_watched_folder_that_is_away_for_a_while_takes_no_prompt_with_it(own, prompts, tmp_path):
    prompts["answers"].save(tmp_path / "all" / "new")
    watch = Watch(own, tmp_path / "all")
    watch.look_at_start()
    (tmp_path / "all").rename(tmp_path / "away")
    watch.look(), watch.look(), watch.look()
    assert "new" in own.shelf.snapshot()


def test_the_watch_runs_as_long_as_the_application(own, prompts, tmp_path, monkeypatch):
    monkeypatch.setattr("bmtpt.serve.folders.EVERY", 0.02)
    looks, real = [], Watch.look

    def look(self):
        looks.append(1)
        if len(looks) == 1:
            raise RuntimeError("a fault of ours")
        real(self)

    monkeypatch.setattr(Watch, "look", look)
    prompts["answers"].save(tmp_path / "new")
    body = {"task": "new", "rows": [{"question": "who", "context": "anna"}]}
    with TestClient(create_app(own, watch=Watch(own, tmp_path))) as client:
        end = time.monotonic() + 5
        while (reply := client.post("/predict", json=body)).status_code == 404 and time.monotonic() < end:
            time.sleep(0.02)
        assert reply.status_code == 200
    count = len(looks)
    time.sleep(0.1)
    assert len(looks) == count
