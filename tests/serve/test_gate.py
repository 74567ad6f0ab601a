"""Nobody gets past the gate who must not, and nothing is parsed that will not be answered."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import threading
import time
from base64 import b64encode

import pytest
from starlette.testclient import TestClient

from bmtpt.errors import SettingsError
from bmtpt.serve.app import create_app
from bmtpt.serve.gate import Gate
from bmtpt.serve.routes import page
from bmtpt.serve.service import Row, Service
from bmtpt.serve.settings import ServeSettings
from bmtpt.serve.tokens import read_tokens

ASK, CHANGE = "a" * 43, "b" * 43
LINES = "\n".join(
    f"{scope} {hashlib.sha256(token.encode()).hexdigest()} {name}"
    for scope, token, name in [("predict", ASK, "web page"), ("admin", CHANGE, "")]
)


@pytest.fixture(scope="module")
def own(tiny_backbone, prompts):
    service = Service.of(tiny_backbone, prompts, ServeSettings(queue=8, max_batch=4, max_body=2_000, body_seconds=0.2))
    yield service
    service.batcher.drain()


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokens") / "tokens.txt"
    path.write_text(f"# ours\n\n{LINES}\n")
    return read_tokens(path)


@pytest.fixture(scope="module")
def app(own, tokens):
    return create_app(own, tokens=tokens)


@pytest.fixture
def guarded(app):
    return TestClient(app)


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def every_route(app) -> list[tuple[str, str]]:
    paths = app.openapi()["paths"]
    return [(method.upper(), path) for path, item in paths.items() for method in item] + [("GET", "/openapi.json")]


@pytest.mark.parametrize(
    "header",
    [
        {},
        bearer("wrong"),
        bearer(""),
        bearer(hashlib.sha256(ASK.encode()).hexdigest()),
        {"authorization": ASK},
        {"authorization": f"Digest {ASK}"},
        {"authorization": "Basic !!!"},
        {"authorization": b"Bearer \xff\xfe"},
    ],
)
def test_without_a_known_token_every_route_answers_401(header, guarded, app):
    for method, path in [*every_route(app), ("POST", "/"), ("GET", "/no-such"), ("PATCH", "/healthz")]:
        reply = guarded.request(method, path, headers=header)
        assert reply.status_code == 401, (method, path)
        assert reply.json()["error"]["type"] == "unauthorised"
        assert "Bearer" in reply.headers["www-authenticate"]


def test_the_page_which_asks_for_a_token_is_shown_without_one(guarded):
    for path in page.FILES:
        assert guarded.get(path).status_code == 200
        assert guarded.post(path).status_code == 401


def test_a_token_is_taken_as_bearer_or_as_the_password_of_a_browser(guarded):
    basic = {"authorization": f"Basic {b64encode(f'me:{ASK}'.encode()).decode()}"}
    for header in (bearer(ASK), bearer(CHANGE), basic, {"authorization": f"bEARER  {ASK}"}):
        assert guarded.get("/healthz", headers=header).status_code == 200


def test_only_an_admin_token_reaches_what_changes_the_server(guarded):
    for path in ("/admin", "/admin/prompts", "/admin/prompts/x"):
        reply = guarded.get(path, headers=bearer(ASK))
        assert (reply.status_code, reply.json()["error"]["type"]) == (403, "forbidden")
        assert guarded.get(path, headers=bearer(CHANGE)).status_code != 403


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ("", "holds no token; give lines of 'SCOPE SHA256 NAME'"),
        (f"predict {ASK}", "line 1: after 'predict' comes the SHA-256 of the token"),
        ("predict", "line 1: after 'predict' comes the SHA-256"),
        (f"\nadmn {'0' * 64}", "line 2: the scope 'admn' is none; did you mean 'admin'"),
        (f"admin {hashlib.sha256(b'').hexdigest()}", "line 1: this is the SHA-256 of an empty token"),
        ("predict \xe9", "after 'predict' comes"),
    ],
)
def test_a_wrong_token_file_is_refused_without_quoting_a_token(lines, sentence, tmp_path):
    path = tmp_path / "tokens"
    path.write_text(lines, encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        read_tokens(path)
    assert sentence in str(caught.value)
    assert ASK not in str(caught.value)
    path.write_bytes(b"\xff")
    with pytest.raises(SettingsError, match="not UTF-8"):
        read_tokens(path)
    with pytest.raises(SettingsError, match="no such file"):
        read_tokens(tmp_path / "none")


def test_a_page_of_another_site_may_not_ask(own):
    client = TestClient(create_app(own, hosts=["localhost", "127.0.0.1", "::1"]), base_url="http://localhost:8000")
    assert client.get("/healthz").status_code == 200
    assert client.get("/healthz", headers={"host": "[::1]:80"}).status_code == 200
    assert client.get("/healthz", headers={"origin": "http://localhost:8000"}).status_code == 200
    for header in (
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:8001"},
        {"host": "evil.example:8000", "origin": "http://evil.example:8000"},
        {"host": "[::1"},
    ):
        assert client.get("/healthz", headers=header).status_code == 403, header


def test_a_body_that_is_too_large_is_refused_before_it_is_read(own):
    client = TestClient(create_app(own))
    reply = client.post("/predict", content=b" " * 2_001)
    assert (reply.status_code, reply.json()["error"]["type"]) == (413, "too_large")
    assert "2,000 bytes" in reply.json()["error"]["message"]
    chunks = (b" " * 500 for _ in range(5))  # no length is said
    assert client.post("/predict", content=chunks).status_code == 413
    assert client.post("/predict", content=b" " * 2_000).status_code not in (413, 500)


async def through(gate, receive, **changes):
    """Send one request through a gate and return the messages of its reply."""
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": [], "client": None, **changes}
    await gate(scope, receive, send)
    return sent


def patient(then: float = 10):
    """Receive an empty body at once, and the client's hanging up later."""
    messages = iter([(0, {"type": "http.request"}), (then, {"type": "http.disconnect"})])
    return lambda: asyncio.sleep(*next(messages))


def test_rows_of_a_client_that_hangs_up_never_reach_the_model(own):
    free, work, seen = threading.Event(), own.batcher.work, []

    def held_up(rows):
        free.wait(5)
        seen.extend(each.served.name for each in rows)
        return work(rows)

    async def app(scope, receive, send):
        await own.answer([Row("pairs", {"premise": "a dog", "hypothesis": "a cat"})])

    async def hung_up():
        busy = asyncio.create_task(own.answer([Row("sentiment", "good")]))
        await asyncio.sleep(0.05)  # the model has it
        sent = await through(Gate(app, own, own.settings), patient(0.05))
        free.set()
        await busy
        await own.answer([Row("sentiment", "good")])
        return sent

    own.batcher.work = held_up
    try:
        assert asyncio.run(hung_up()) == []
    finally:
        own.batcher.work = work
    assert seen == ["sentiment", "sentiment"]


def test_a_body_that_comes_too_slowly_is_refused_and_its_connection_closed(own):
    async def drip():
        await asyncio.sleep(0.06)
        return {"type": "http.request", "body": b" ", "more_body": True}

    begun = time.monotonic()
    sent = asyncio.run(through(create_app(own), drip))
    assert time.monotonic() - begun < 2
    assert sent[0]["status"] == 408
    assert (b"connection", b"close") in sent[0]["headers"]


def test_a_full_queue_refuses_before_the_body_is_read(own):
    reached = []

    async def app(scope, receive, send):
        reached.append(await receive())

    async def body():
        raise AssertionError("the body was read")

    gate = Gate(app, own, own.settings)
    free, work = threading.Event(), own.batcher.work
    own.batcher.work = lambda rows: free.wait(5) and work(rows)

    async def overloaded():
        inside = [asyncio.create_task(own.answer([Row("sentiment", "good")])) for _ in range(4)]
        await asyncio.sleep(0.05)  # the model is busy with the first of them
        inside += [asyncio.create_task(own.answer([Row("sentiment", "good")])) for _ in range(8)]
        await asyncio.sleep(0.05)
        room = own.batcher.queue - own.batcher.depth
        inside += [asyncio.create_task(own.answer([Row("sentiment", "good")])) for _ in range(room)]
        await asyncio.sleep(0)
        sent = await through(gate, body)
        await through(gate, lambda: asyncio.sleep(0, {"type": "http.request"}), method="GET", path="/metrics")
        free.set()
        await asyncio.gather(*inside, return_exceptions=True)
        return sent

    try:
        sent = asyncio.run(overloaded())
    finally:
        own.batcher.work = work
    assert sent[0]["status"] == 429
    assert int(dict(sent[0]["headers"])[b"retry-after"]) >= 1
    assert json.loads(sent[1]["body"])["error"]["type"] == "busy"
    assert len(reached) == 1  # reading the metrics needs no room


def test_as_many_requests_are_inside_as_the_queue_and_a_batch_hold(own):
    async def app(scope, receive, send):
        await asyncio.sleep(0.1)
        await send({"type": "http.response.start", "status": 200, "headers": []})

    gate = Gate(app, own, own.settings)

    async def crowd():
        sent = await asyncio.gather(*(through(gate, patient()) for _ in range(20)))
        return [each[0]["status"] for each in sent]

    found = asyncio.run(crowd())
    assert (found.count(200), found.count(429)) == (own.batcher.queue + own.batcher.max_batch, 8)
    assert gate.inside == 0


def test_every_reply_names_its_request_and_forbids_foreign_content(own):
    client = TestClient(create_app(own))
    for path in ("/healthz", "/no-such", "/metrics"):
        reply = client.get(path)
        assert len(reply.headers["x-request-id"]) == 16
        assert "default-src 'none'" in reply.headers["content-security-policy"]
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["cache-control"] == "no-store"
    assert client.get("/healthz", headers={"x-request-id": "my-1"}).headers["x-request-id"] == "my-1"
    odd = {"x-request-id": "a\tb" + "c" * 70}
    assert len(client.get("/healthz", headers=odd).headers["x-request-id"]) == 16


def test_a_fault_of_the_server_is_a_500_whose_cause_is_in_the_log_alone(own, caplog):
    async def app(scope, receive, send):
        raise RuntimeError("secret path")

    with caplog.at_level(logging.ERROR, "bmtpt.serve"):
        sent = asyncio.run(through(Gate(app, own, own.settings), lambda: asyncio.sleep(0, {"type": "http.request"})))
    assert sent[0]["status"] == 500
    assert b"secret" not in sent[1]["body"]
    assert "secret path" in caplog.text


def test_other_kinds_of_connection_are_closed(own, tokens):
    sent = asyncio.run(through(create_app(own, tokens=tokens), None, type="websocket"))
    assert sent == [{"type": "websocket.close", "code": 1008}]
