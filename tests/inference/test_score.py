"""Scoring against Hugging Face's model one row and one label word at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bmtpt.backbone.engine import Engine, Readings
from bmtpt.errors import SettingsError, TaskError
from bmtpt.inference.score import (
    ANSWER_ROOM,
    ANSWER_TOKENS,
    evaluate_prompts,
    label_probabilities,
    make_reader,
    make_scorer,
    metric_names,
    score_prompts,
)
from bmtpt.tasks.metrics import calibration
from bmtpt.tasks.tokens import Tokenised, tokenise
from bmtpt.types import Example, TokenBatch

M, P = 3, 4
PROMPTS = 3 * torch.randn(M, P, 24, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=["generic", "packed"])
def engine(tiny_backbone, request) -> Engine:
    return replace(tiny_backbone, engine_name=request.param).engine


@pytest.fixture(scope="module")
def rows(tiny_backbone, tiny_tasks) -> dict[str, Tokenised]:
    return {name: tokenise(tiny_backbone, data.test, 64) for name, data in tiny_tasks.items()}


def nll(model: Any, prompt: Tensor, ids: Tensor, target: Tensor) -> float:
    """−log p(target | prompt, text) by Hugging Face's own loss."""
    embedded = torch.cat([prompt, model.shared(ids)])[None]
    loss = model(inputs_embeds=embedded, labels=target[None]).loss
    return loss.item() * len(target)


def word_likelihoods(model: Any, prompt: Tensor, rows: Tokenised, answers: tuple[Tensor, ...]) -> Tensor:
    return torch.tensor([[-nll(model, prompt, ids, answer) for answer in answers] for ids in rows.batch.inputs])


@pytest.mark.parametrize("name", ["sentiment", "pairs"])
def test_rank_scoring_is_that_of_one_forward_pass_per_label_word(
    name, engine, rows, tiny_tasks, tiny_backbone, tiny_hf
):
    task = tiny_tasks[name].task
    scorer = make_scorer(tiny_backbone, task)
    assert scorer.kind == "rank"
    assert [ids.tolist() for ids in scorer.answers] == [tiny_backbone.tokenizer(w).input_ids for w in task.label_words]
    gold = [example.label for example in rows[name].examples]
    for m, found in enumerate(score_prompts(engine, PROMPTS, rows[name], scorer)):
        likelihoods = word_likelihoods(tiny_hf, PROMPTS[m], rows[name], scorer.answers)
        right = [int(row.argmax()) == label for row, label in zip(likelihoods, gold, strict=True)]
        assert found.score == pytest.approx(100 * sum(right) / len(right))
        wanted = -sum(row[label].item() for row, label in zip(likelihoods, gold, strict=True)) / len(gold)
        assert found.nll == pytest.approx(wanted, rel=1e-5)


def test_an_ensemble_averages_probabilities_and_not_logits(engine, rows, tiny_tasks, tiny_backbone, tiny_hf):
    scorer = make_scorer(tiny_backbone, tiny_tasks["pairs"].task)
    found = evaluate_prompts(engine, PROMPTS, rows["pairs"], scorer)
    logits = torch.stack([word_likelihoods(tiny_hf, prompt, rows["pairs"], scorer.answers) for prompt in PROMPTS])
    averaged = logits.softmax(dim=2).mean(dim=0)
    assert torch.allclose(found.probabilities, averaged, atol=1e-5)
    assert not torch.allclose(found.probabilities, logits.mean(dim=0).softmax(dim=1), atol=1e-3)
    assert found.predictions == [scorer.task.label_words[i] for i in averaged.argmax(dim=1)]
    gold = [example.label for example in rows["pairs"].examples]
    wanted = calibration(averaged.double().numpy(), gold)
    assert found.calibration["nll"] == pytest.approx(wanted["nll"], rel=1e-5)
    assert found.calibration["ece"] == pytest.approx(100 * wanted["ece"], abs=1e-3)
    assert set(found.metrics) | set(found.calibration) == metric_names(scorer.task)


@pytest.mark.parametrize("way", ["none", "length", "pmi"])
def test_label_words_of_different_length_are_compared_as_asked(way, engine, tiny_backbone, tiny_tasks, tiny_hf):
    """Against Hugging Face's loss, word by word; the domain is the text with its columns empty."""
    task = tiny_tasks["sentiment"].task.model_copy(update={"labels": {"0": "bad", "1": "very very good"}})
    examples = [replace(each, target=task.label_words[each.label or 0]) for each in tiny_tasks["sentiment"].test]
    part, scorer = tokenise(tiny_backbone, examples, 64), make_scorer(tiny_backbone, task, normalise=way)
    assert [len(ids) for ids in scorer.answers] == [2, 4]
    domain = torch.tensor(tiny_backbone.tokenizer("sentiment sentence: ").input_ids)
    wanted = []
    for prompt in PROMPTS:
        scores = word_likelihoods(tiny_hf, prompt, part, scorer.answers)
        if way == "length":
            scores = scores / torch.tensor([2, 4])
        if way == "pmi":
            scores = scores - torch.tensor([-nll(tiny_hf, prompt, domain, ids) for ids in scorer.answers])
        wanted.append(scores)
    averaged = torch.stack(wanted).softmax(dim=2).mean(dim=0)
    found = evaluate_prompts(engine, PROMPTS, part, scorer)
    assert torch.allclose(found.probabilities, averaged, atol=1e-5)
    assert found.predictions == [task.label_words[i] for i in averaged.argmax(dim=1)]
    gold = torch.tensor([example.label for example in examples])
    for score, each in zip(score_prompts(engine, PROMPTS, part, scorer), wanted, strict=True):
        assert score.score == pytest.approx(100 * (each.argmax(dim=1) == gold).double().mean().item())
    losses = [score.nll for score in score_prompts(engine, PROMPTS, part, scorer)]
    plain = score_prompts(engine, PROMPTS, part, make_scorer(tiny_backbone, task))
    assert losses == pytest.approx([score.nll for score in plain])  # of the right answer, as in training


def test_pmi_needs_a_text_and_every_way_needs_label_words(tiny_backbone, tiny_tasks):
    with pytest.raises(SettingsError, match="answers has no fixed label words; leave normalise 'length' out"):
        make_scorer(tiny_backbone, tiny_tasks["answers"].task, normalise="length")


def test_predictions_and_confusion_are_those_of_the_rows(engine, rows, tiny_tasks, tiny_backbone):
    from sklearn.metrics import confusion_matrix

    scorer = make_scorer(tiny_backbone, tiny_tasks["sentiment"].task)
    found = evaluate_prompts(engine, PROMPTS, rows["sentiment"], scorer)
    words = list(scorer.task.label_words)
    gold = [example.target for example in rows["sentiment"].examples]
    table = found.confusion()
    assert table.to_numpy().tolist() == confusion_matrix(gold, found.predictions, labels=words).tolist()
    assert (list(table.index), list(table.columns)) == (words, words)
    listed = list(found.rows())
    assert [row["target"] for row in listed] == gold
    assert [row["prediction"] for row in listed] == found.predictions
    for row, shares in zip(listed, found.probabilities.tolist(), strict=True):
        assert [row[f"p({word})"] for word in words] == shares
        assert row["probability"] == max(shares)
    generating = make_scorer(tiny_backbone, scorer.task, "generate")
    odd = evaluate_prompts(Echo(["film", *gold[1:]]), PROMPTS[:1], rows["sentiment"], generating)
    assert odd.confusion()["no label"].tolist() == [int(gold[0] == word) for word in words]
    free = evaluate_prompts(
        engine, PROMPTS[:1], rows["answers"], make_scorer(tiny_backbone, tiny_tasks["answers"].task)
    )
    assert free.confusion() is None
    assert next(free.rows())["references"] == list(rows["answers"].examples[0].references)


def test_an_ensemble_of_one_is_the_prompt_itself(engine, rows, tiny_tasks, tiny_backbone):
    scorer = make_scorer(tiny_backbone, tiny_tasks["sentiment"].task)
    alone = evaluate_prompts(engine, PROMPTS[:1], rows["sentiment"], scorer)
    assert alone.metrics["accuracy"] == score_prompts(engine, PROMPTS[:1], rows["sentiment"], scorer)[0].score


@pytest.mark.parametrize("name", ["answers", "pairs"])
def test_generation_is_hugging_faces_with_the_prompt_in_front(name, engine, rows, tiny_tasks, tiny_backbone, tiny_hf):
    scorer = make_scorer(tiny_backbone, tiny_tasks[name].task, "generate")
    found = evaluate_prompts(engine, PROMPTS[:1], rows[name], scorer)
    longest = max(len(tiny_backbone.tokenizer(word).input_ids) for word in tiny_tasks["pairs"].task.label_words)
    most = {"answers": ANSWER_TOKENS, "pairs": longest + ANSWER_ROOM}[name]
    for prediction, ids in zip(found.predictions, rows[name].batch.inputs, strict=True):
        embedded = torch.cat([PROMPTS[0], tiny_hf.shared(ids)])[None]
        out = tiny_hf.generate(
            inputs_embeds=embedded, attention_mask=torch.ones(1, embedded.shape[1]), max_new_tokens=most,
            do_sample=False, num_beams=1,
        )  # fmt: skip
        assert prediction == tiny_backbone.tokenizer.decode(out[0], skip_special_tokens=True).strip()
    assert len(set(found.predictions)) > 1 or name == "pairs"


def test_each_prompt_generates_its_own_answers(engine, rows, tiny_tasks, tiny_backbone):
    inputs = rows["answers"].batch.inputs
    together = engine.generate(PROMPTS, inputs, 5)
    for m in range(M):
        assert together[m] == engine.generate(PROMPTS[m : m + 1], inputs, 5)[0]


def test_generated_answers_are_scored_and_their_nll_is_that_of_the_right_answer(
    engine, rows, tiny_tasks, tiny_backbone, tiny_hf
):
    scorer = make_scorer(tiny_backbone, tiny_tasks["answers"].task)
    assert scorer.kind == "generate"
    assert scorer.answers == ()
    for m, found in enumerate(score_prompts(engine, PROMPTS, rows["answers"], scorer)):
        batch = rows["answers"].batch
        pairs = zip(batch.inputs, batch.targets, strict=True)
        wanted = sum(nll(tiny_hf, PROMPTS[m], ids, target) for ids, target in pairs) / len(batch)
        assert found.nll == pytest.approx(wanted, rel=1e-5)


class Echo:
    """An engine that answers what it is told to."""

    def __init__(self, answers: list[str]) -> None:
        self.answers = answers

    def generate(self, prompts: Tensor, inputs: Any, max_new_tokens: int) -> list[list[str]]:
        return [self.answers] * len(prompts)

    def readings(self, prompts: Tensor, inputs: Any, answers: Any) -> Readings:
        return Readings(torch.zeros(len(prompts), len(inputs), len(answers)), torch.zeros(len(prompts), len(inputs), 1))


def test_outputs_that_are_no_answer_are_counted_and_wrong(rows, tiny_tasks, tiny_backbone):
    examples = rows["sentiment"].examples[:4]
    part = Tokenised(examples, rows["sentiment"].rows(range(4)), 0)
    scorer = make_scorer(tiny_backbone, tiny_tasks["sentiment"].task, "generate")
    right = [example.target for example in examples]
    found = evaluate_prompts(Echo([*right[:2], "film", ""]), PROMPTS[:1], part, scorer)
    assert found.metrics["accuracy"] == 50
    assert found.invalid_share == 50
    assert found.predictions == [*right[:2], "film", ""]


UNWRITABLE = ["paris unheard", "rome, unheard", "unheard"]


def test_a_perfect_answer_is_right_though_the_tokenizer_cannot_write_it(tiny_backbone, tiny_tasks):
    """What a model writes that has learned the answers' own tokens is what the tokenizer makes of them."""
    examples = [Example("where ?", "", "", answer, references=(answer, "in " + answer)) for answer in UNWRITABLE]
    part = tokenise(tiny_backbone, examples, 64)
    perfect = [tiny_backbone.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in part.batch.targets]
    assert perfect == ["paris", "rome ,", ""]
    scorer = make_scorer(tiny_backbone, tiny_tasks["answers"].task)
    found = evaluate_prompts(Echo([*perfect[:2], "in"]), PROMPTS[:1], part, scorer)
    assert found.metrics == {"f1": 100, "em": 100}
    assert found.predictions == ["paris", "rome ,", "in"]
    assert set(found.unwritable) == {*UNWRITABLE, *(f"in {answer}" for answer in UNWRITABLE)}
    empty = evaluate_prompts(Echo([""] * 3), PROMPTS[:1], part, scorer)
    assert empty.metrics == {"f1": 0, "em": 0}  # nothing is not the answer of which nothing can be written


def test_a_label_word_counts_as_itself_however_the_tokenizer_writes_it(tiny_backbone, tiny_tasks):
    task = tiny_tasks["sentiment"].task.model_copy(update={"labels": {"0": "not-good", "1": "unheard good"}})
    words = task.label_words
    examples = [Example("film", "", "", word, label=i, references=(word,)) for i, word in enumerate(words)]
    scorer = make_scorer(tiny_backbone, task, "generate")
    part = tokenise(tiny_backbone, examples, 64)
    written = [tiny_backbone.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in part.batch.targets]
    assert written == ["not - good", "good"]
    found = evaluate_prompts(Echo(written), PROMPTS[:1], part, scorer)
    assert found.predictions == list(words)
    assert found.metrics["accuracy"] == 100
    assert found.invalid_share == 0


def test_texts_with_many_label_words_are_read_in_passes_within_the_budget(engine, rows):
    inputs = rows["sentiment"].batch.inputs * 4
    few = engine.cut(PROMPTS[:1], inputs, [3] * len(inputs), copies=2)
    assert [len(part.rows) for part in few] == [len(inputs)]
    for copies in (200, 2_000):
        parts = engine.cut(PROMPTS[:1], inputs, [4] * len(inputs), copies=copies)
        assert sorted(row for part in parts for row in part.rows) == list(range(len(inputs)))
        assert max(len(part.rows) for part in parts) == max(1, engine.budget() // (4 * copies))


def test_the_best_constant_answer_is_told_beside_the_score(rows, tiny_tasks, tiny_backbone):
    examples = rows["pairs"].examples
    found = evaluate_prompts(Echo([]), PROMPTS[:1], rows["pairs"], make_scorer(tiny_backbone, tiny_tasks["pairs"].task))
    shares = [sum(example.label == c for example in examples) / len(examples) for c in (0, 1)]
    assert found.constant_answer == pytest.approx(100 * max(shares))
    assert found.invalid_share == 0


def test_rank_scoring_without_label_words_and_a_generating_ensemble_are_refused(
    engine, rows, tiny_tasks, tiny_backbone
):
    with pytest.raises(SettingsError, match=r"answers has no fixed label words.*'generate'"):
        make_scorer(tiny_backbone, tiny_tasks["answers"].task, "rank")
    scorer = make_scorer(tiny_backbone, tiny_tasks["answers"].task)
    with pytest.raises(SettingsError, match="ensemble of 3 prompts"):
        evaluate_prompts(engine, PROMPTS, rows["answers"], scorer)


# One forward path: what is trained is what is scored.


def test_training_and_scoring_give_a_row_the_same_loss_with_and_without_padding(
    engine, rows, tiny_tasks, tiny_backbone
):
    part = rows["pairs"]
    scorer = make_scorer(tiny_backbone, tiny_tasks["pairs"].task)
    trained, _ = engine.gradients(PROMPTS, part.batch, torch.ones(len(part)))
    validated = engine.losses(PROMPTS, part.batch)
    scored = -engine.answer_log_likelihoods(PROMPTS, part.batch.inputs, scorer.answers)
    gold = torch.tensor([example.label for example in part.examples]).expand(M, -1)[..., None]
    assert torch.allclose(trained, validated, atol=1e-5, rtol=0)
    assert torch.allclose(trained, scored.gather(2, gold)[..., 0], atol=1e-5, rtol=0)
    for n in range(len(part)):
        alone, _ = engine.gradients(PROMPTS, part.rows([n]), torch.ones(1))
        assert torch.allclose(alone[:, 0], trained[:, n], atol=1e-5, rtol=0)


def test_a_long_neighbour_changes_no_loss(engine, tiny_backbone, tiny_hf):
    examples = [Example("good film", "", "", "positive"), Example("bad " * 40, "", "", "not very good")]
    batch = tokenise(tiny_backbone, examples, 64).batch
    losses = engine.losses(PROMPTS, batch)
    for m in range(M):
        for n in range(2):
            wanted = nll(tiny_hf, PROMPTS[m], batch.inputs[n], batch.targets[n])
            assert losses[m, n].item() == pytest.approx(wanted, abs=2e-5)


def test_the_probabilities_of_a_row_do_not_depend_on_its_neighbours(engine, tiny_backbone, tiny_tasks):
    scorer = make_scorer(tiny_backbone, tiny_tasks["pairs"].task)
    short = torch.tensor([5, 6, 1])
    inputs = [short, torch.arange(3, 60), short]
    reader = make_reader(engine, PROMPTS, scorer)
    together = label_probabilities(engine, PROMPTS, inputs, reader)
    alone = label_probabilities(engine, PROMPTS, [short], reader)
    assert torch.allclose(together[0], alone[0], atol=1e-6)
    assert torch.allclose(together[2], alone[0], atol=1e-6)
    assert torch.allclose(together.sum(dim=1), torch.ones(3), atol=1e-6)


def test_the_first_generated_token_is_the_likeliest_one_in_training(engine, tiny_backbone):
    """A prompt that generation left out, or put elsewhere, would show here."""
    ids = torch.tensor([5, 6, 7, 1])
    words = [torch.tensor([token]) for token in range(3, 150)]
    batch = TokenBatch([ids] * len(words), words)
    likeliest = engine.losses(PROMPTS, batch).argmin(dim=1)
    for m, (text,) in enumerate(engine.generate(PROMPTS, [ids], 1)):
        assert text == tiny_backbone.tokenizer.decode(words[likeliest[m]])


def test_label_words_that_the_tokenizer_writes_alike_are_refused_with_both_words(tiny_backbone, tiny_tasks):
    task = tiny_tasks["sentiment"].task
    words = task.model_copy(update={"labels": {"0": "negative", "1": "unheard", "2": "unseen"}})  # both unknown
    with pytest.raises(TaskError, match=r"task sentiment: .* 'unheard' and 'unseen' as the same tokens"):
        make_scorer(tiny_backbone, words)
    one = task.model_copy(update={"labels": {"0": "negative", "1": "unheard"}})
    assert len(make_scorer(tiny_backbone, one).answers) == 2
