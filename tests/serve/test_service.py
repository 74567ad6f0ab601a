"""Answers of the service are those of `predict`, whatever shares a batch with them."""

from __future__ import annotations

import asyncio
import logging
import threading

import pytest

from bmtpt.artifacts.saved import Prompt
from bmtpt.errors import BackboneError
from bmtpt.inference.predict import predict
from bmtpt.inference.rows import as_example
from bmtpt.serve.errors import BadPrompt, BadRow, Busy, Draining, Late, TooLarge, UnknownPrompt
from bmtpt.serve.log import JsonLines
from bmtpt.serve.service import Row, Service
from bmtpt.serve.settings import ServeSettings
from bmtpt.tasks import saved_task


@pytest.fixture
def service(tiny_backbone, prompts):
    service = Service.of(tiny_backbone, prompts, ServeSettings(max_batch=16, queue=64))
    yield service
    service.batcher.drain()


ROWS = [
    Row("sentiment", {"sentence": "good film"}),
    Row("pairs", {"premise": "bad", "hypothesis": "good movie"}),
    Row("answers", {"question": "bad", "context": "good movie"}),
    Row("sentiment", "bad " * 40),
    Row("ensemble", "bad movie"),
]


def offline(backbone, prompts, row: Row):
    prompt = prompts[row.task]
    return next(predict(backbone, prompt, [as_example(row.example, "", saved_task(prompt.card.task_definition))]))


def require_same(answer, wanted) -> None:
    assert answer.label == wanted["label"]
    assert (answer.probabilities or {}) == pytest.approx(wanted.get("all", {}), abs=1e-5)
    assert answer.cut == wanted.get("cut", False)
    assert answer.answer_cut == wanted.get("answer_cut", False)


def held_up(service):
    """Make the model wait for an event; return the names of the prompts in each batch, and the event."""
    batches, work, free = [], service.batcher.work, threading.Event()

    def waiting(asked):
        free.wait(5)
        batches.append([each.served.name for each in asked])
        return work(asked)

    service.batcher.work = waiting
    return batches, free


def test_every_answer_equals_that_of_predict(service, tiny_backbone, prompts):
    answers = asyncio.run(service.answer(ROWS * 3))
    for row, answer in zip(ROWS * 3, answers, strict=True):
        assert answer.task == row.task
        require_same(answer, offline(tiny_backbone, prompts, row))
        assert answer.spread is None


def test_rows_of_different_requests_and_tasks_share_a_pass(service):
    batches, work, free = [], service.batcher.work, threading.Event()
    service.batcher.work = lambda rows: (free.wait(5), batches.append([each.served.name for each in rows]), work(rows))[
        2
    ]

    async def together():
        first = asyncio.create_task(service.answer(ROWS[:1]))
        await asyncio.sleep(0.05)  # the model is busy with it
        others = [asyncio.create_task(service.answer([row])) for row in ROWS[1:]]
        await asyncio.sleep(0.05)
        free.set()
        return await asyncio.gather(first, *others)

    answers = asyncio.run(together())
    assert batches == [["sentiment"], ["pairs", "answers", "sentiment", "ensemble"]]
    assert [answer.task for (answer,) in answers] == [row.task for row in ROWS]


def test_the_spread_of_an_ensemble_is_the_standard_deviation_over_its_prompts(service, tiny_backbone, prompts):
    (answer,) = asyncio.run(service.answer([ROWS[4]], spread=True))
    ensemble = prompts["ensemble"]
    members = zip(ensemble.prompts, ensemble.readouts, strict=True)
    alone = [Prompt(each[None], ensemble.card, (readout,)) for each, readout in members]
    first, second = (offline(tiny_backbone, {"ensemble": each}, ROWS[4])["all"] for each in alone)
    assert answer.spread == pytest.approx({word: abs(first[word] - second[word]) / 2 for word in first}, abs=1e-6)
    assert asyncio.run(service.answer([ROWS[0]], spread=True))[0].spread is None


@pytest.mark.parametrize(
    ("row", "error", "sentence"),
    [
        (Row("sentimnt", "good"), UnknownPrompt, r"'sentimnt'; did you mean 'sentiment'\?"),
        (Row("pairs", "good"), BadRow, r"row 2: task pairs needs rows with the columns premise, hypothesis"),
        (Row("pairs", {"premise": "good"}), BadRow, r"row 2: there is no column 'hypothesis'"),
        (Row("sentiment", 3), BadRow, r"row 2 is an int; give a text"),
        (Row("sentiment", {"sentence": ["a"]}), BadRow, r"row 2: column 'sentence'"),
    ],
)
def test_a_row_that_cannot_be_answered_is_refused_in_a_sentence(row, error, sentence, service):
    with pytest.raises(error, match=sentence):
        asyncio.run(service.answer([ROWS[0], row]))


def test_a_full_queue_refuses_and_says_when_to_ask_again(service):
    _, free = held_up(service)

    async def crowded():
        accepted = [asyncio.create_task(service.answer(ROWS * 12)) for _ in range(2)]
        await asyncio.sleep(0.05)  # 16 rows of the first are in the model, 44 wait: no room for the other 60
        with pytest.raises(Busy, match=r"the queue is full \(64 rows\)") as caught:
            await accepted[1]
        free.set()
        assert len(await accepted[0]) == 60
        return caught.value

    assert int(asyncio.run(crowded()).headers["retry-after"]) >= 1
    with pytest.raises(TooLarge, match="65 rows are too many; send at most 64 at a time"):
        asyncio.run(service.answer(ROWS * 13))


def test_a_row_that_is_too_long_is_refused(tiny_backbone, prompts):
    service = Service.of(tiny_backbone, prompts, ServeSettings(max_text=30))
    prefix = len("sentiment sentence: ")
    assert asyncio.run(service.answer([Row("sentiment", "x" * (30 - prefix))]))
    with pytest.raises(TooLarge, match="row 2 has 31 characters, and at most 30 are allowed"):
        asyncio.run(service.answer([Row("sentiment", "x"), Row("sentiment", "x" * (31 - prefix))]))
    service.batcher.drain()


def test_a_deadline_that_passes_is_told_and_its_rows_never_reach_the_model(service):
    batches, free = held_up(service)

    async def late():
        first = asyncio.create_task(service.answer(ROWS[:1]))
        await asyncio.sleep(0.05)
        with pytest.raises(Late, match="deadline"):
            await service.answer(ROWS[:4], deadline=0.02)
        free.set()
        await first
        return await service.answer(ROWS[:1])

    asyncio.run(late())
    assert [len(batch) for batch in batches] == [1, 1]


def test_draining_answers_what_was_accepted_and_takes_nothing_new(service):
    async def drained():
        accepted = [asyncio.create_task(service.answer([row])) for row in ROWS * 3]
        await asyncio.sleep(0)
        await asyncio.to_thread(service.batcher.drain)
        with pytest.raises(Draining):
            await service.answer(ROWS[:1])
        return await asyncio.gather(*accepted)

    assert [answer.task for (answer,) in asyncio.run(drained())] == [row.task for row in ROWS * 3]


def test_a_prompt_is_replaced_and_removed_while_requests_wait(service, prompts):
    other = Prompt(-prompts["sentiment"].prompts, prompts["sentiment"].card)

    async def swapped():
        (before,) = await service.answer(ROWS[:1])
        waiting = asyncio.create_task(service.answer(ROWS[:1]))
        await asyncio.sleep(0)
        old = await asyncio.to_thread(service.load, "sentiment", other)
        (after,) = await service.answer(ROWS[:1])
        assert old.prompt is prompts["sentiment"]
        assert (await waiting)[0] == before
        return before, after

    before, after = asyncio.run(swapped())
    assert before.probabilities != after.probabilities
    assert service.shelf.remove("sentiment").prompt is other
    with pytest.raises(UnknownPrompt):
        asyncio.run(service.answer(ROWS[:1]))


def test_a_prompt_of_another_backbone_is_refused_by_name(tiny_backbone, prompts):
    card = prompts["pairs"].card
    stranger = card.model_copy(update={"backbone": card.backbone.model_copy(update={"fingerprint": "0" * 64})})
    with pytest.raises(BackboneError, match=r"prompt for task pairs: this artifact was trained with backbone"):
        Service.of(tiny_backbone, {"pairs": Prompt(prompts["pairs"].prompts, stranger)})


@pytest.mark.parametrize("name", ["", "a b", "../x", "a/b", ".hidden", "x" * 65, "a\0", "é", "a\n"])
def test_a_prompt_is_called_by_a_plain_name(name, service, prompts):
    with pytest.raises(BadPrompt, match="cannot be called"):
        service.load(name, prompts["pairs"])


def test_a_prompt_with_too_many_labels_is_refused(tiny_backbone, prompts):
    with pytest.raises(BadPrompt, match="prompt 'pairs' has 2 label words, and at most 1 are allowed"):
        Service.of(tiny_backbone, {"pairs": prompts["pairs"]}, ServeSettings(max_labels=1))


def test_a_row_that_breaks_the_model_takes_no_other_row_with_it(service):
    work = service.batcher.work

    def fragile(asked):
        if any("bad movie" in each.example.text for each in asked):
            raise RuntimeError("out of luck")
        return work(asked)

    service.batcher.work = fragile

    async def all_of_them():
        return await asyncio.gather(*(service.answer([row]) for row in ROWS), return_exceptions=True)

    found = asyncio.run(all_of_them())
    assert [type(each) for each in found] == [list, list, list, list, RuntimeError]


def test_a_row_that_finds_the_model_idle_waits_for_others_only_if_it_is_told_to(tiny_backbone, prompts):
    async def two_in_a_row(service):
        first = asyncio.create_task(service.answer(ROWS[:1]))
        await asyncio.sleep(0.02)
        await asyncio.gather(first, service.answer(ROWS[1:2]))

    for wait, expected in [(0, [1, 1]), (2_000, [2])]:
        service = Service.of(tiny_backbone, prompts, ServeSettings(max_wait_ms=wait, max_batch=2))
        batches, free = held_up(service)
        free.set()
        asyncio.run(two_in_a_row(service))
        assert [len(batch) for batch in batches] == expected
        service.batcher.drain()


@pytest.mark.parametrize("wanted", [False, True])
def test_texts_are_logged_only_if_that_is_asked_for(wanted, tiny_backbone, prompts, caplog):
    caplog.set_level(logging.DEBUG)
    service = Service.of(tiny_backbone, prompts, ServeSettings(log_texts=wanted))
    asyncio.run(service.answer([Row("sentiment", "a secret")]))
    service.batcher.drain()
    lines = [JsonLines().format(record) for record in caplog.records]
    assert any("a secret" in line for line in lines) is wanted
