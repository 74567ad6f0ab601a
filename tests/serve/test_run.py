"""`bmtpt serve` as a process: it listens where it may, and leaves no accepted request without its answer."""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx2 as httpx
import pytest
import uvicorn
from starlette.testclient import TestClient

from bmtpt.errors import SettingsError
from bmtpt.serve.app import create_app
from bmtpt.serve.run import backbone_of, config, listening, require_private, serve
from bmtpt.serve.service import Service
from bmtpt.serve.settings import ServeSettings
from bmtpt.serve.tokens import Token


@pytest.fixture(scope="module")
def folder(prompts, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("served")
    for name in ("sentiment", "pairs"):
        prompts[name].save(place / name)
    return place


class Server:
    """A running `bmtpt serve`, which does not outlive a test that fails."""

    def __init__(self, *options: object) -> None:
        command = [sys.executable, "-m", "bmtpt", "serve", "--port", "0", *map(str, options)]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        self.url = self.process.stdout.readline().split()[2].rstrip(";")

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def stop(self, sign: signal.Signals = signal.SIGTERM) -> tuple[int, list[dict]]:
        self.process.send_signal(sign)
        _, err = self.process.communicate(timeout=20)
        return self.process.returncode, [json.loads(line) for line in err.splitlines() if line.startswith("{")]


def test_sigterm_under_load_answers_every_accepted_request_and_logs_no_text(folder):
    server = Server("--prompts", folder, "--max-wait-ms", 2_000)
    with server, httpx.Client(base_url=server.url, timeout=20) as client:
        assert client.get("/readyz").json() == {"ready": True, "prompts": 2}

        def ask(number: int):
            body = {"task": "sentiment", "rows": [f"secret{number} " * (number + 1)]}
            return client.post("/predict", json=body, headers={"x-request-id": f"r{number}"}).status_code

        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            asked = [pool.submit(ask, number) for number in range(16)]
            while "bmtpt_queue_rows 16.0" not in client.get("/metrics").text:  # the model waits for company
                time.sleep(0.02)
            code, log = server.stop()
            assert [each.result() for each in asked] == [200] * 16
    assert code == -signal.SIGTERM
    requests = {line["request"] for line in log if line["event"] == "request" and line["path"] == "/predict"}
    assert requests == {f"r{number}" for number in range(16)}
    assert "secret" not in json.dumps(log)
    assert log[0]["event"] == "serving"


@pytest.fixture
def started(tiny_backbone, monkeypatch):
    """Start a server that does not listen; return its application, and which backbones were loaded."""

    def start(settings, folders, **options):
        apps, names = [], []
        monkeypatch.setattr("uvicorn.Server.run", lambda self, sockets: apps.append(self.config.app))
        serve(settings, folders, lambda name: names.append(name) or tiny_backbone, announce=lambda _: None, **options)
        return TestClient(apps[0], base_url="http://localhost"), names

    return start


def test_a_folder_may_be_given_and_watched(started, folder, tiny_backbone, capfd):
    client, names = started(ServeSettings(port=0, watch=folder), [folder])
    listed = client.get("/admin/prompts").json()["prompts"]
    assert [(each["name"], each["origin"]) for each in listed] == [("pairs", "watch"), ("sentiment", "watch")]
    assert names == [tiny_backbone.name]
    assert "refused" not in capfd.readouterr().err


def test_the_backbone_is_that_of_the_first_sound_prompt_in_a_watched_folder(started, prompts, tmp_path, capfd):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "card.json").write_text("{}")
    prompts["pairs"].save(tmp_path / "sound")
    client, names = started(ServeSettings(port=0, watch=tmp_path), [])
    assert client.get("/readyz").json() == {"ready": True, "prompts": 1}
    assert names == [prompts["pairs"].card.backbone.name]
    assert '"event": "prompt refused", "prompt": "broken"' in capfd.readouterr().err
    (tmp_path / "empty").mkdir()
    client, names = started(ServeSettings(port=0, watch=tmp_path / "empty"), [], backbone="mine")
    assert (names, client.get("/readyz").status_code) == (["mine"], 503)


def test_without_tokens_only_names_of_this_machine_are_answered_for(started, folder, tmp_path):
    client, _ = started(ServeSettings(port=0), [folder])
    assert client.get("/healthz").status_code == 200
    assert client.get("/healthz", headers={"host": "evil.example"}).status_code == 403
    file = tmp_path / "tokens"
    file.write_text(f"predict {hashlib.sha256(b'secret').hexdigest()}\n")
    client, _ = started(ServeSettings(port=0, token_file=file), [folder])
    assert client.get("/healthz", headers={"host": "decide.example"}).status_code == 401
    header = {"host": "decide.example", "authorization": "Bearer secret"}
    assert client.get("/healthz", headers=header).status_code == 200


def test_without_its_model_the_server_is_not_healthy(own_service):
    client = TestClient(create_app(own_service, hosts=("testserver",)))
    assert client.get("/healthz").json() == {"status": "ok"}
    own_service.batcher.drain()
    assert (client.get("/healthz").status_code, client.get("/readyz").status_code) == (503, 503)


@pytest.fixture
def address(tiny_backbone, prompts):
    """Where a server of this process listens that waits half a second for headers and bodies."""
    settings = ServeSettings(body_seconds=0.5)
    service = Service.of(tiny_backbone, prompts, settings)
    server = uvicorn.Server(config(create_app(service), settings))
    with listening("127.0.0.1", 0) as door:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [door]}, daemon=True)
        thread.start()
        yield door.getsockname()
        server.should_exit = True
        thread.join(10)


ASK = b"POST /predict HTTP/1.1\r\nhost: a\r\n"


@pytest.mark.parametrize(
    ("sent", "reply"),
    [
        ([b""], b""),
        ([b"GET /healthz HTTP/1.1\r\nhost:"], b""),
        ([b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n", b"GET"], b"HTTP/1.1 200"),
        ([ASK + b"content-length: 9\r\n\r\n", b"{"], b"HTTP/1.1 408"),
        ([ASK + b"transfer-encoding: chunked\r\n\r\n", b"1\r\n{\r\n"], b"HTTP/1.1 408"),
    ],
)
def test_a_client_that_does_not_finish_its_request_is_hung_up_on(sent, reply, address):
    with socket.create_connection(address, timeout=20) as slow:
        begun, received = time.monotonic(), b""
        for part in sent:
            slow.sendall(part)
            time.sleep(0.1)
        while more := slow.recv(10_000):
            received += more
        assert 0.3 < time.monotonic() - begun < 10
    assert received.startswith(reply)
    assert reply or not received


def test_a_body_that_is_too_large_is_told_to_a_client_that_sends_all_of_it(address):
    url = f"http://127.0.0.1:{address[1]}/predict"
    reply = httpx.post(url, content=b" " * 2**23)
    assert reply.status_code == 413
    assert "server" not in reply.headers


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "8.8.8.8", ""])
def test_other_machines_are_let_in_only_with_tokens(host):
    with pytest.raises(SettingsError, match=r"lets other machines in, and without tokens .* give --token-file"):
        require_private(host, ())
    require_private(host, [Token("predict", b"", "")])


def test_loopback_needs_no_tokens():
    for host in ("127.0.0.1", "localhost", "::1", "127.1.2.3"):
        require_private(host, ())


def test_an_address_that_cannot_be_listened_at_is_told_with_the_cure(tmp_path):
    with listening("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=rf"cannot listen at 127.0.0.1, port {port}: address already in use"):
            listening("127.0.0.1", port)
    with pytest.raises(SettingsError, match="no prompt says which backbone to load; give --prompts DIR"):
        backbone_of({}, tmp_path)


def test_the_parts_of_a_reply_do_not_wait_for_acknowledgements():
    with listening("127.0.0.1", 0) as door, socket.create_connection(door.getsockname()), door.accept()[0] as accepted:
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
