"""`bmtpt.Client` and `bmtpt.AsyncClient`: the same answers as offline, and one typed error for each refusal."""

from __future__ import annotations

import asyncio
import builtins
import hashlib
import subprocess
import sys
import time

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

import bmtpt
from bmtpt.errors import ArtifactError, SettingsError
from bmtpt.serve.app import create_app
from bmtpt.serve.client import ROWS, Unreachable
from bmtpt.serve.errors import (
    BadPrompt,
    BadRow,
    Busy,
    Forbidden,
    Late,
    ServeError,
    TooLarge,
    Unauthorised,
    UnknownPrompt,
)
from bmtpt.serve.service import Service
from bmtpt.serve.tokens import Token

SENTENCE = "the film is good ."
PAIR = {"premise": "anna sees the film .", "hypothesis": "anna sees the dog ."}


@pytest.fixture(params=["sync", "async"])
def ask(request, url):
    """Calls a method of either client."""

    def call(method, *arguments, at=url, token=None, timeout=20.0, retries=3, **options):
        settings = {"token": token, "timeout": timeout, "retries": retries}
        if request.param == "sync":
            with bmtpt.Client(at, **settings) as client:
                return getattr(client, method)(*arguments, **options)

        async def awaited():
            async with bmtpt.AsyncClient(at, **settings) as client:
                return await getattr(client, method)(*arguments, **options)

        return asyncio.run(awaited())

    return call


def test_a_text_a_row_and_several_get_the_answers_of_predict(ask, offline):
    one = ask("predict", "sentiment", SENTENCE)
    assert (one.task, one.label) == ("sentiment", max(one.all, key=one.all.get))
    assert one.all == pytest.approx(offline("sentiment", SENTENCE), abs=1e-5)
    assert ask("predict", "pairs", PAIR).all == pytest.approx(offline("pairs", PAIR), abs=1e-5)
    several = ask("predict", "sentiment", [SENTENCE, {"sentence": "the meal is cold ."}])
    assert several[0].all == pytest.approx(one.all, abs=1e-5)
    assert several[1].all == pytest.approx(offline("sentiment", "the meal is cold ."), abs=1e-5)
    assert ask("predict", "sentiment", []) == []


def test_options_of_predict_are_passed_on(ask, offline):
    sure = max(offline("ensemble", SENTENCE).values())
    found = ask("predict", "ensemble", SENTENCE, spread=True, top_k=1, abstain=min(1.0, sure + 1e-3))
    assert found.label is None
    assert len(found.all) == len(found.spread) == 1


def test_many_rows_go_in_several_requests_and_come_back_in_order(ask):
    texts = [f"{'good ' * (number % 7)}film" for number in range(2 * ROWS + 3)]
    found = ask("predict", "sentiment", (text for text in texts))
    assert len(found) == len(texts)
    by_text = dict(zip(texts, found, strict=True))
    for text, each in zip(texts, found, strict=True):
        assert each.all == pytest.approx(by_text[text].all, abs=1e-5)
    with pytest.raises(BadRow, match=rf"among rows {ROWS + 1} to {2 * ROWS}: row 3: there is no column 'sentence'"):
        ask("predict", "sentiment", [*texts[: ROWS + 2], {"text": "good"}, *texts[ROWS + 3 :]])


def test_prompts_are_listed_with_their_labels_and_columns(ask, prompts):
    found = ask("prompts")
    assert set(found) == set(prompts)
    assert found["pairs"].columns == ["premise", "hypothesis"]
    assert found["pairs"].labels == ["contradiction", "entailment"]


def test_a_prompt_is_loaded_replaced_and_removed(ask, tiny_backbone, prompts, listen, tmp_path):
    saved = prompts["sentiment"].save(tmp_path / "sentiment")
    service = Service.of(tiny_backbone, {"other": prompts["pairs"]})
    with listen(create_app(service)) as at:
        assert ask("load", "mood", tmp_path / "sentiment", at=at) is None
        assert ask("predict", "mood", SENTENCE, at=at).label in ("positive", "negative")
        assert ask("load", "mood", str(tmp_path / "sentiment"), at=at) == saved.card.weights_sha256
        ask("remove", "mood", at=at)
        with pytest.raises(UnknownPrompt, match="no prompt is called 'mood'"):
            ask("predict", "mood", SENTENCE, at=at)
        with pytest.raises(ServeError, match=r"there is no /admin/prompts/\.\./etc/passwd"):
            ask("remove", "../etc/passwd", at=at)
        with pytest.raises(BadPrompt, match="a prompt cannot be called '-mood'"):
            ask("load", "-mood", tmp_path / "sentiment", at=at)


def test_a_folder_that_holds_no_prompt_is_refused_before_anything_is_sent(ask, tmp_path):
    with pytest.raises(ArtifactError, match=r"cannot read .*card.json: no such file"):
        ask("load", "mood", tmp_path, at="http://127.0.0.1:9")
    (tmp_path / "card.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"card.json is"):
        ask("load", "mood", tmp_path, at="http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("arguments", "options", "error", "sentence"),
    [
        (("sentimnt", SENTENCE), {}, UnknownPrompt, r"did you mean 'sentiment'\?"),
        (("pairs", SENTENCE), {}, BadRow, "row 1: task pairs needs rows with the columns premise, hypothesis"),
        (("sentiment", 3.5), {}, TypeError, "not iterable"),
        (("sentiment", [float("nan")]), {}, BadRow, "what is sent is not JSON"),
        (("sentiment", SENTENCE), {"top_k": 0}, ServeError, "top_k: input should be greater than or equal to 1"),
        (("sentiment", SENTENCE), {"spred": True}, ServeError, "spred: extra inputs are not permitted"),
        (("sentiment", "x" * 60_000), {}, TooLarge, "row 1"),
        (("sentiment", SENTENCE), {"deadline": 1e-9}, Late, "deadline"),
    ],
)
def test_each_refusal_is_an_error_of_its_own_type(arguments, options, error, sentence, ask):
    with pytest.raises(error, match=sentence):
        ask("predict", *arguments, **options)


def test_a_token_is_sent_and_its_refusals_are_told_apart(ask, own_service, listen, tmp_path):
    digest = hashlib.sha256(b"let me in").digest()
    with listen(create_app(own_service, tokens=[Token("predict", digest, "test")])) as at:
        with pytest.raises(Unauthorised, match="a token is needed"):
            ask("prompts", at=at)
        assert ask("predict", "sentiment", SENTENCE, at=at, token="let me in").label
        with pytest.raises(Forbidden, match="scope admin"):
            ask("remove", "sentiment", at=at, token="let me in")


def busy(times, pause="1"):
    """A server that is busy a few times, and the moments of the requests that it got."""
    came = []

    async def predict(request):
        came.append(time.monotonic())
        if len(came) <= times:
            body = {"error": {"message": "the queue is full", "type": "busy"}}
            return JSONResponse(body, 429, {"Retry-After": pause} if pause else {})
        answer = {"task": "a", "label": "b", "probability": None, "all": None, "spread": None}
        return JSONResponse({"answers": [{**answer, "cut": False, "answer_cut": False}]})

    return Starlette(routes=[Route("/predict", predict, methods=["POST"])]), came


def test_a_busy_server_is_asked_again_after_the_seconds_that_it_names(ask, listen):
    app, came = busy(1)
    with listen(app) as at:
        assert ask("predict", "a", "text", at=at).label == "b"
    assert len(came) == 2
    assert came[1] - came[0] >= 1


@pytest.mark.parametrize(("pause", "requests"), [("0", 3), ("", 1), ("61", 1), ("soon", 1)])
def test_a_server_that_stays_busy_is_given_up_on(pause, requests, ask, listen):
    app, came = busy(99, pause)
    with listen(app) as at, pytest.raises(Busy, match="the queue is full"):
        ask("predict", "a", "text", at=at, retries=2)
    assert len(came) == requests


def test_no_server_a_slow_one_and_one_of_another_kind_are_told_apart(ask, listen):
    with pytest.raises(
        Unreachable, match=r"no server answers at http://127.0.0.1:9 .*is `bmtpt serve` running there\?"
    ):
        ask("prompts", at="http://127.0.0.1:9")

    async def slow(request):
        await asyncio.sleep(2)

    async def other(request):
        return JSONResponse("hello", 418)

    with listen(Starlette(routes=[Route("/v1/models", slow), Route("/predict", other, methods=["POST"])])) as at:
        with pytest.raises(Late, match=r"did not answer within 0.2 s"):
            ask("prompts", at=at, timeout=0.2)
        with pytest.raises(ServeError, match=r"/predict answered 418 and no JSON; is it a server of bmtpt\?"):
            ask("predict", "a", "text", at=at)
    with pytest.raises(SettingsError, match="'localhost:8000' is no address"):
        ask("prompts", at="localhost:8000")


def test_without_httpx2_the_client_says_what_to_install(monkeypatch):
    found = builtins.__import__

    def missing(name, *rest):
        if name == "httpx2":
            raise ImportError(name)
        return found(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(SettingsError, match=r"pip install 'bmtpt\[serve\]'"):
        bmtpt.Client()


def test_the_client_needs_neither_torch_nor_a_web_framework():
    code = "import sys, bmtpt; bmtpt.Client(); print([name for name in ('torch', 'fastapi') if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
