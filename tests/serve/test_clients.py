"""The clients that people have already work against a server on this machine, unchanged."""

from __future__ import annotations

import asyncio

import httpx2 as httpx
import openai
import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from bmtpt.serve.routes.decisions import Question, decided
from bmtpt.serve.service import Answer

SENTENCE = "the film is good ."
PAIR = {"premise": "anna sees the film .", "hypothesis": "anna sees the dog ."}
QUESTION = {"question": "where is anna ?", "context": "anna lives in oslo ."}


@pytest.fixture(scope="module")
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0) as client:
        yield client


@pytest.fixture
def hub(monkeypatch):
    """The hub's client refuses every host, this machine too, where HF_HUB_OFFLINE is set, as it is for tests."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


def question(*values, **fields):
    choices = [{"value": value} for value in values]
    return {"type": "choice", "instructions": "Which one?", "choices": choices, **fields}


def as_json(row):
    return {"role": "user", "content": [{"type": "input_json", "data": row}]}


def test_the_client_of_openai_gets_choices_with_the_probabilities_of_predict(client, offline):
    both = [question("positive", "negative", name="mood"), question("negative", "positive")]
    decision = client.decisions.create(model="sentiment", input=SENTENCE, questions=both)
    wanted = offline("sentiment", SENTENCE)
    assert decision.model == "sentiment"
    assert [answer.name for answer in decision.answers] == ["mood", None]
    for answer, asked in zip(decision.answers, both, strict=True):
        assert answer.type == "choice"
        assert [each.value for each in answer.probabilities] == [each["value"] for each in asked["choices"]]
        assert {each.value: each.probability for each in answer.probabilities} == pytest.approx(wanted, abs=1e-5)
        assert answer.choice == max(wanted, key=wanted.get)
        assert answer.confidence == pytest.approx(max(wanted.values()), abs=1e-5)
    assert decision.usage.input_tokens == decision.usage.total_tokens == 9  # its words, the template's, and the end


def test_columns_reach_a_task_as_json_and_texts_as_messages(client, offline):
    labels = question("contradiction", "entailment")
    (answer,) = client.decisions.create(model="pairs", input=[as_json(PAIR)], questions=[labels]).answers
    found = {each.value: each.probability for each in answer.probabilities}
    assert found == pytest.approx(offline("pairs", PAIR), abs=1e-5)
    parts = [
        {"role": "user", "content": "the film"},
        {"role": "user", "content": [{"type": "input_text", "text": "is good ."}]},
    ]
    joined = client.decisions.create(model="sentiment", input=parts, questions=[question("positive", "negative")])
    found = {each.value: each.probability for each in joined.answers[0].probabilities}
    assert found == pytest.approx(offline("sentiment", "the film\nis good ."), abs=1e-5)


def test_of_some_of_the_labels_the_probabilities_are_conditional_ones():
    answer = Answer("colour", "red", {"red": 0.5, "green": 0.3, "blue": 0.1, "True": 0.1})
    found = decided(Question.model_validate(question("blue", "green")), 1, answer, None)
    assert (found.choice, found.confidence) == ("green", pytest.approx(0.75))
    assert [(each.value, each.probability) for each in found.probabilities] == [
        ("blue", pytest.approx(0.25)),
        ("green", pytest.approx(0.75)),
    ]
    typed = decided(Question.model_validate(question("blue", True)), 1, answer, None)
    assert [each.value for each in typed.probabilities] == ["blue", True]
    assert decided(Question.model_validate(question("blue", "green")), 1, answer, 0.76).type == "refusal"
    assert decided(Question.model_validate(question("blue", "green")), 1, answer, 0.74).type == "choice"


def test_a_question_is_refused_where_no_choice_is_as_likely_as_was_asked(client, offline):
    asked = [question("positive", "negative", name="mood")]
    sure = max(offline("sentiment", SENTENCE).values())
    for limit, kind in ((sure - 1e-3, "choice"), (sure + 1e-3, "refusal")):
        body = {"abstain": limit}
        decision = client.decisions.create(model="sentiment", input=SENTENCE, questions=asked, extra_body=body)
        assert [(answer.type, answer.name) for answer in decision.answers] == [(kind, "mood")]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"questions": [question("positive", "bad")]}, "question 1: 'bad' is not a label of this task; choose from"),
        ({"questions": [question("positive", "positive")]}, "question 1: a label comes twice"),
        ({"questions": [question("positive", True)]}, "question 1: True is not a label"),
        ({"questions": [question("positive")]}, "questions[0].choices: list should have at least 2 items"),
        (
            {"questions": [question(3, "positive")]},
            "questions[0].choices[0].value: give a label, as text or as a boolean",
        ),
        ({"questions": [{"type": "predicate"}]}, "questions[0].type: input should be 'choice'"),
        ({"input": [{"role": "system", "content": "x"}]}, "input[0].role: input should be 'user'"),
        ({"input": [{"role": "user", "content": 3}]}, "input[0].content: give a text, or a list of parts"),
        ({"input": []}, "input holds nothing; give texts"),
        ({"input": [as_json(PAIR), as_json(PAIR)]}, "input holds 2 objects and 0 texts; give texts"),
        ({"input": 3}, "input: give a text, or a list of messages"),
        ({"model": "pairs"}, "row 1: task pairs needs rows with the columns premise, hypothesis"),
        ({"model": "answers", "input": [as_json(QUESTION)]}, "prompt 'answers' writes its answers"),
    ],
)
def test_the_client_of_openai_raises_its_own_error_with_our_sentence(changes, sentence, client):
    asked = {"model": "sentiment", "input": SENTENCE, "questions": [question("positive", "negative")], **changes}
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        client.decisions.create(**asked)
    assert caught.value.body["message"].startswith(sentence)


def test_a_prompt_that_is_not_loaded_is_not_found(client):
    with pytest.raises(openai.NotFoundError, match=r"no prompt is called 'sentimnt'; did you mean 'sentiment'\?"):
        client.decisions.create(model="sentimnt", input=SENTENCE, questions=[question("positive", "negative")])


def test_the_asynchronous_client_of_openai_works_too(url, offline):
    async def both():
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="-") as client:
            asked = {"model": "sentiment", "questions": [question("positive", "negative")]}
            texts = [SENTENCE, "the meal is cold ."]
            return await asyncio.gather(*(client.decisions.create(input=text, **asked) for text in texts))

    for text, decision in zip([SENTENCE, "the meal is cold ."], asyncio.run(both()), strict=True):
        assert decision.answers[0].confidence == pytest.approx(max(offline("sentiment", text).values()), abs=1e-5)


def test_models_are_the_loaded_prompts(client, prompts):
    found = {model.id: model for model in client.models.list()}
    assert sorted(found) == sorted(prompts)
    assert found["pairs"].columns == ["premise", "hypothesis"]
    assert found["pairs"].labels == ["contradiction", "entailment"]
    assert found["answers"].labels == []
    assert client.models.retrieve("pairs") == found["pairs"]
    with pytest.raises(openai.NotFoundError, match="did you mean 'pairs'"):
        client.models.retrieve("pair")


@pytest.mark.parametrize("several", [False, True])
def test_classify_answers_as_vllm_does(several, url, offline):
    texts = [SENTENCE, {"sentence": "the meal is cold ."}]
    reply = httpx.post(
        f"{url}/v1/classify", json={"model": "ensemble", "input": texts if several else SENTENCE, "user": "me"}
    )
    assert reply.status_code == 200
    found = reply.json()
    assert found["object"] == "list"
    assert found["model"] == "ensemble"
    assert found["id"].startswith("classify-")
    for place, (text, each) in enumerate(zip(texts, found["data"], strict=several)):
        wanted = offline("ensemble", text)
        assert each["index"] == place
        assert each["probs"] == pytest.approx(list(wanted.values()), abs=1e-5)
        assert each["label"] == max(wanted, key=wanted.get)
        assert each["num_classes"] == 2
    assert found["usage"] == {
        "prompt_tokens": 18 if several else 9,
        "total_tokens": 18 if several else 9,
        "completion_tokens": 0,
    }


def test_classify_gives_no_label_where_none_is_as_likely_as_was_asked(url):
    reply = httpx.post(f"{url}/v1/classify", json={"model": "sentiment", "input": SENTENCE, "abstain": 1})
    (found,) = reply.json()["data"]
    assert found["label"] is None
    assert sum(found["probs"]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"model": "sentiment", "input": []}, "input: list should have at least 1 item"),
        ({"model": "sentiment", "input": ["a", 3]}, "input[1]: give a text, or an object with the columns of the task"),
        (
            {"model": "sentiment", "input": None},
            "input: give a text, an object with the columns of the task, or a list",
        ),
        ({"model": "sentiment", "input": {"text": "a"}}, "row 1: there is no column 'sentence'"),
        ({"input": "a"}, "model: field required"),
        ({"model": "sentiment", "input": "a", "abstain": 2}, "abstain: input should be less than or equal to 1"),
    ],
)
def test_a_wrong_field_is_named_in_one_sentence(body, sentence, url):
    reply = httpx.post(f"{url}/v1/classify", json=body)
    assert reply.status_code == 422
    assert reply.json()["error"]["message"].startswith(sentence)


def test_a_body_that_is_no_json_is_refused_in_a_sentence(url):
    reply = httpx.post(f"{url}/v1/classify", content=b'{"model": ', headers={"content-type": "application/json"})
    assert reply.status_code in (400, 422)
    assert reply.json()["error"]["message"].startswith("the body is not JSON")


def test_the_client_of_hugging_face_gets_every_label_likeliest_first(hub, url, offline):
    found = InferenceClient(model=f"{url}/models/sentiment").text_classification(SENTENCE)
    wanted = offline("sentiment", SENTENCE)
    assert {each.label: each.score for each in found} == pytest.approx(wanted, abs=1e-5)
    assert [each.label for each in found] == sorted(wanted, key=wanted.get, reverse=True)


def test_the_client_of_hugging_face_gets_as_many_labels_as_it_asks_for(hub, url, offline):
    client = InferenceClient(model=f"{url}/models/sentiment")
    wanted = offline("sentiment", SENTENCE)
    assert [each.label for each in client.text_classification(SENTENCE, top_k=1)] == [max(wanted, key=wanted.get)]
    assert len(client.text_classification(SENTENCE, top_k=5, function_to_apply="softmax")) == 2
    with pytest.raises(HfHubHTTPError):
        client.text_classification(SENTENCE, function_to_apply="sigmoid")


def test_the_asynchronous_client_of_hugging_face_works_too(hub, url, offline):
    client = AsyncInferenceClient(model=f"{url}/models/ensemble")
    found = asyncio.run(client.text_classification(SENTENCE))
    assert {each.label: each.score for each in found} == pytest.approx(offline("ensemble", SENTENCE), abs=1e-5)


def test_hugging_face_s_shape_takes_several_rows_with_columns(url, offline):
    other = {**PAIR, "premise": "ben keeps the dog ."}
    reply = httpx.post(f"{url}/models/pairs", json={"inputs": [PAIR, other]})
    for row, scores in zip([PAIR, other], reply.json(), strict=True):
        assert {each["label"]: each["score"] for each in scores} == pytest.approx(offline("pairs", row), abs=1e-5)
