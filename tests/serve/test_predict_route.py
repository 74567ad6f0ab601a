"""`POST /predict` answers as `bmtpt predict` does, and refuses what it cannot answer in a sentence."""

from __future__ import annotations

import json

import pytest
from starlette.testclient import TestClient

from bmtpt.errors import DataError
from bmtpt.inference.predict import predict
from bmtpt.inference.rows import as_example
from bmtpt.serve.app import create_app
from bmtpt.tasks import saved_task

ROWS = [
    {"task": "pairs", "premise": "anna sees the film .", "hypothesis": "anna sees the dog ."},
    {"task": "sentiment", "sentence": "the film is good ."},
    {"task": "answers", "question": "where is anna ?", "context": "anna lives in oslo ."},
    {"task": "ensemble", "sentence": "the meal is cold . " * 200},
]


@pytest.fixture(scope="module")
def client(service):
    return TestClient(create_app(service))


def refused(client, body) -> str:
    reply = client.post("/predict", json=body)
    assert reply.status_code == 422, reply.text
    return reply.json()["error"]["message"]


def test_rows_of_several_tasks_get_the_answers_of_predict(client, tiny_backbone, prompts):
    answers = client.post("/predict", json={"rows": ROWS}).json()["answers"]
    for row, answer in zip(ROWS, answers, strict=True):
        prompt = prompts[row["task"]]
        example = as_example(row, "", saved_task(prompt.card.task_definition))
        (wanted,) = predict(tiny_backbone, prompt, [example])
        assert answer["task"] == row["task"]
        assert answer["label"] == wanted["label"]
        assert answer["probability"] == (pytest.approx(wanted["probability"], abs=1e-5) if "all" in wanted else None)
        assert answer["all"] == (pytest.approx(wanted["all"], abs=1e-5) if "all" in wanted else None)
        assert (answer["cut"], answer["answer_cut"]) == (wanted.get("cut", False), wanted.get("answer_cut", False))
        assert answer["spread"] is None
    assert answers[3]["cut"]


def test_a_request_names_the_task_of_all_its_rows_which_may_be_texts(client):
    one = client.post("/predict", json={"task": "sentiment", "rows": ["the film is good .", {"sentence": "bad"}]})
    two = client.post("/predict", json={"rows": [ROWS[1]]})
    assert one.json()["answers"][0] == two.json()["answers"][0]
    assert client.post("/predict", json={"rows": []}).json() == {"answers": []}


def test_a_label_below_the_threshold_is_left_out(client):
    body = {"rows": [ROWS[1]]}
    (plain,) = client.post("/predict", json=body).json()["answers"]
    (above,) = client.post("/predict", json={**body, "abstain": plain["probability"] - 1e-6}).json()["answers"]
    (below,) = client.post("/predict", json={**body, "abstain": min(1, plain["probability"] + 1e-4)}).json()["answers"]
    assert above == plain
    assert below == {**plain, "label": None}


def test_the_likeliest_labels_come_first_when_only_some_are_asked_for(client):
    (plain,) = client.post("/predict", json={"rows": [ROWS[1]]}).json()["answers"]
    (top,) = client.post("/predict", json={"rows": [ROWS[1]], "top_k": 1}).json()["answers"]
    (both,) = client.post("/predict", json={"rows": [ROWS[1]], "top_k": 9}).json()["answers"]
    assert top["all"] == {plain["label"]: plain["probability"]}
    assert list(both["all"].values()) == sorted(plain["all"].values(), reverse=True)
    assert both["all"] == plain["all"]


def test_the_spread_is_given_for_ensembles(client):
    body = {"rows": ["a good dog"] * 2, "task": "ensemble", "spread": True}
    answers = client.post("/predict", json=body).json()["answers"]
    assert all(value > 0 for value in answers[0]["spread"].values())
    assert list(answers[0]["spread"]) == list(answers[0]["all"])
    assert client.post("/predict", json={**body, "task": "sentiment"}).json()["answers"][0]["spread"] is None


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({}, "rows: field required"),
        ({"rows": "text"}, "rows: input should be a valid list"),
        ({"rows": [3]}, "rows[0]: give a text, or an object with the columns of the task"),
        ({"rows": [None]}, "rows[0]: give a text"),
        ({"rows": ["a"], "task": 3}, "task: input should be a valid string"),
        ({"rows": ["a"], "tsk": "a"}, "tsk: extra inputs are not permitted"),
        ({"rows": ["a"], "task": "sentiment", "abstain": 1.5}, "abstain: input should be less than or equal to 1"),
        ({"rows": ["a"], "task": "sentiment", "top_k": 0}, "top_k: input should be greater than or equal to 1"),
        ({"rows": ["a"], "task": "sentiment", "deadline": 0}, "deadline: input should be greater than 0"),
        ({"rows": ["a"]}, 'row 1 names no prompt (it is a text); give "task", here or for all rows: answers,'),
        ({"rows": [ROWS[0], {"a": "b"}]}, "row 2 names no prompt (it is no field 'task')"),
        ({"rows": [{"task": ["a"]}]}, "row 1 names no prompt (it is a list in 'task')"),
        ({"rows": [ROWS[0]], "task": "sentiment"}, "row 1 is for task 'pairs' and the request for 'sentiment'"),
        ({"rows": ["x"], "task": "pairs"}, "row 1: task pairs needs rows with the columns premise, hypothesis"),
        ({"rows": [{"premise": "x"}], "task": "pairs"}, "row 1: there is no column 'hypothesis'; the columns are"),
        ({"rows": ["\ud800"], "task": "sentiment"}, "half of a character"),
        ({"rows": [{"sentence": {"a": {}}}], "task": "sentiment"}, "row 1: column 'sentence'"),
        ({"rows": [ROWS[2]], "abstain": 0.5}, "row 1: prompt 'answers' writes its answers, without probabilities"),
    ],
)
def test_what_cannot_be_answered_is_refused_by_its_place(body, sentence, client):
    reply = client.post("/predict", content=json.dumps(body), headers={"content-type": "application/json"})
    assert reply.status_code == 422, reply.text
    assert sentence in reply.json()["error"]["message"]


def test_an_unknown_prompt_is_a_404_that_names_the_nearest(client):
    reply = client.post("/predict", json={"rows": ["a"], "task": "sentimen"})
    assert (reply.status_code, reply.json()["error"]["type"]) == (404, "unknown_prompt")
    assert "did you mean 'sentiment'?" in reply.json()["error"]["message"]
    for name in ("../../etc/passwd", "a\0", "\x1b[31m", "x" * 10_000):
        reply = client.post("/predict", json={"rows": ["a"], "task": name})
        assert reply.status_code == 404
        assert reply.json()["error"]["message"].isprintable()
        assert len(reply.json()["error"]["message"]) <= 400


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 10_000,
        b'{"rows":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        b'{"rows":' + b'{"a":' * 10_000 + b"1" + b"}" * 10_001,
        b'{"rows": ["\xff"]}',
        b"\x00",
        b"",
        b"{",
        b'{"rows": [' + b"9" * 5_000 + b"]}",
    ],
)
@pytest.mark.parametrize("path", ["/predict", "/v1/classify", "/v1/decisions", "/models/sentiment", "/admin/prompts/a"])
def test_a_body_that_is_no_plain_json_is_refused(content, path, client):
    method = "PUT" if path.startswith("/admin") else "POST"
    reply = client.request(method, path, content=content, headers={"content-type": "application/json"})
    assert reply.status_code in (400, 422), reply.text
    assert reply.json()["error"]["message"]


def test_a_text_with_a_nul_is_refused_as_predict_refuses_it(client, prompts):
    task = saved_task(prompts["sentiment"].card.task_definition)
    with pytest.raises(DataError) as caught:
        as_example("good\0film", "row 1", task)
    assert refused(client, {"rows": ["good\0film"], "task": "sentiment"}) == str(caught.value)


def test_with_one_prompt_rows_need_no_name(tiny_backbone, prompts):
    from bmtpt.serve.service import Service

    service = Service.of(tiny_backbone, {"only": prompts["sentiment"]})
    client = TestClient(create_app(service))
    (answer,) = client.post("/predict", json={"rows": ["good"]}).json()["answers"]
    assert answer["task"] == "only"
    assert client.post("/predict", json={"rows": [{"task": "other", "sentence": "good"}]}).status_code == 404
    service.batcher.drain()


def test_the_metrics_count_rows_batches_and_refusals(tiny_backbone, prompts):
    from bmtpt.serve.service import Service

    service = Service.of(tiny_backbone, prompts)
    client = TestClient(create_app(service))
    client.post("/predict", json={"rows": ROWS})
    client.post("/predict", json={"rows": [ROWS[1]]})
    client.post("/predict", json={"rows": ["a"], "task": "none"})
    client.get("/no-such")
    lines = client.get("/metrics").text.splitlines()
    for line in (
        'bmtpt_rows_total{prompt="sentiment"} 2.0',
        'bmtpt_rows_total{prompt="pairs"} 1.0',
        "bmtpt_batch_rows_count 2.0",
        "bmtpt_batch_rows_sum 5.0",
        'bmtpt_requests_total{route="/predict",status="200"} 2.0',
        'bmtpt_refusals_total{reason="unknown_prompt"} 1.0',
        'bmtpt_requests_total{route="none",status="404"} 1.0',
        'bmtpt_request_seconds_count{route="/predict"} 2.0',
        "bmtpt_queue_rows 0.0",
        "bmtpt_prompts 4.0",
    ):
        assert line in lines
    service.shelf.remove("pairs")
    text = client.get("/metrics").text
    assert ('prompt="pairs"' in text, 'prompt="sentiment"' in text) == (False, True)
    service.batcher.drain()
