"""Readouts from adapt to the answers: fitted to the labels, kept in the artifact, used by predict and evaluate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from bmtpt.artifacts.saved import Posterior, Prompt, PromptMixture
from bmtpt.backbone.engine import Choice
from bmtpt.errors import SettingsError
from bmtpt.inference import calibrate
from bmtpt.inference.predict import predict
from bmtpt.inference.score import make_scorer, read
from bmtpt.methods.map_target import BMTPT
from bmtpt.methods.registry import Learned, get_method
from bmtpt.posterior.prompts import from_vocabulary
from bmtpt.posterior.readout import Widths, fit, label_free_offset
from bmtpt.settings import AdaptSettings, LearnSettings
from bmtpt.stages.evaluate import evaluate
from bmtpt.stages.rows import target_rows
from bmtpt.stages.source import learn
from bmtpt.stages.target import fit_method, read_again

P = 3


def adapting(**changes: Any) -> AdaptSettings:
    values = {"steps": 2, "evaluate_every": 1, "batch_size": 4, "learning_rate": 0.1, "shots": 12, "prior": "none"}
    return AdaptSettings.model_validate(
        values | {"selection": "none", "readout": "none", "unlabelled_rows": 0, "predictive": "map"} | changes
    )


def fitted(tiny_backbone: Any, target: Any, method: str = "pt", folder: Any = None, **changes: Any) -> Any:
    start = from_vocabulary(tiny_backbone.frequent_rows(), P, torch.Generator().manual_seed(5))
    learned = Learned(("answers",), prompts={"answers": start, "other": start.flip(0)})
    settings = adapting(**changes)
    found = fit_method(
        get_method(method), tiny_backbone, [target], settings, learned=learned, prompt_length=P, folder=folder
    )
    return found[target.task.name]


def test_the_readout_of_an_untouched_prompt_is_the_map_fit_to_all_labelled_rows(tiny_backbone, tiny_tasks):
    target = tiny_tasks["pairs"]
    found = fitted(tiny_backbone, target, steps=0, readout="linear", offset_std=0.7, weight_std=1.3, slope_std=0.4)
    plain = fitted(tiny_backbone, target, steps=0)
    assert torch.equal(found.prompts, plain.prompts)  # nothing is trained
    assert (found.card.steps, plain.readouts) == (0, ())
    rows = target_rows(tiny_backbone, target, adapting()).train
    readings = read(tiny_backbone.engine, found.prompts, rows.batch.inputs, make_scorer(tiny_backbone, target.task))
    scores, labels = readings.log_likelihoods[0], torch.tensor([example.label for example in rows.examples])
    wanted = fit(scores, labels, Widths(0.7, 1.3, 0.4), readings.states[0], label_free_offset(scores))
    (own,) = found.readouts
    assert own.slope == pytest.approx(wanted.slope, abs=1e-4)
    torch.testing.assert_close(own.offset, wanted.offset, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(own.weights, wanted.weights, atol=1e-4, rtol=1e-3)
    words = len(target.task.label_words)
    assert found.card.trained_parameters == 1 + words + words * 24
    assert plain.card.trained_parameters == 0


@pytest.mark.parametrize("readout", ["offset", "linear"])
def test_the_mean_over_the_posterior_is_less_sure_than_the_map_and_gives_the_same_answers(
    tiny_backbone, tiny_tasks, tmp_path, readout
):
    target = tiny_tasks["pairs"]
    mean = fitted(tiny_backbone, target, readout=readout, predictive="laplace", folder=tmp_path / "run")
    at_map = fitted(tiny_backbone, target, readout=readout)
    assert torch.equal(mean.prompts, at_map.prompts)
    assert mean.card.trained_parameters == at_map.card.trained_parameters
    averaged, single = (evaluate(tiny_backbone, each, target.test) for each in (mean, at_map))
    assert averaged.predictions == single.predictions
    assert bool((averaged.probabilities.amax(dim=1) < single.probabilities.amax(dim=1)).all())
    again = evaluate(tiny_backbone, Prompt.load(tmp_path / "run"), target.test)
    assert torch.equal(again.probabilities, averaged.probabilities)
    served = [list(answer["all"].values()) for answer in predict(tiny_backbone, mean, target.test)]
    torch.testing.assert_close(torch.tensor(served), averaged.probabilities, atol=1e-5, rtol=0)


def test_what_is_read_again_is_averaged_as_its_settings_say_and_old_cards_say_the_map(tiny_backbone, tiny_tasks):
    target = tiny_tasks["pairs"]
    mean = fitted(tiny_backbone, target, readout="linear", predictive="laplace")
    old = replace(
        mean, card=mean.card.model_copy(update={"settings": mean.card.settings | {"readout": "linear"}}), readouts=()
    )
    old.card.settings.pop("predictive")
    (own,), (changed,) = (
        read_again(tiny_backbone, old, target, changes).readouts for changes in ({}, {"predictive": "laplace"})
    )
    assert (own.spread is None, changed.spread is None) == (True, False)
    assert torch.equal(changed.spread.directions, mean.readouts[0].spread.directions)


def test_an_offset_alone_reads_no_states(tiny_backbone, tiny_tasks):
    (own,) = fitted(tiny_backbone, tiny_tasks["pairs"], steps=0, readout="offset").readouts
    assert own.weights is None


@pytest.mark.parametrize("method", ["pt", "attempt"])
def test_what_is_saved_answers_as_what_was_trained_in_predict_and_evaluate(tiny_backbone, tiny_tasks, tmp_path, method):
    target = tiny_tasks["pairs"]
    made = fitted(tiny_backbone, target, method, readout="linear", folder=tmp_path / "run")
    loaded = (Prompt if method == "pt" else PromptMixture).load(tmp_path / "run")
    found, again = (evaluate(tiny_backbone, each, target.test) for each in (made, loaded))
    assert torch.equal(found.probabilities, again.probabilities)
    plain = evaluate(tiny_backbone, fitted(tiny_backbone, target, method), target.test)
    assert not torch.allclose(found.probabilities, plain.probabilities, atol=1e-3)
    if method == "pt":
        answers = list(predict(tiny_backbone, loaded, target.test))
        each = torch.tensor([list(answer["all"].values()) for answer in answers])
        torch.testing.assert_close(each, found.probabilities, atol=1e-5, rtol=0)


def test_a_mixed_batch_gives_each_task_its_own_readout(tiny_backbone, tiny_tasks):
    prompts = {name: fitted(tiny_backbone, tiny_tasks[name], readout="linear") for name in ("pairs", "sentiment")}
    asked = [(name, example) for name in prompts for example in tiny_tasks[name].test[:3]]
    mixed = list(predict(tiny_backbone, prompts, asked[::2] + asked[1::2]))
    for (name, example), answer in zip(asked[::2] + asked[1::2], mixed, strict=True):
        (alone,) = predict(tiny_backbone, prompts[name], [example])
        assert answer["all"] == pytest.approx(alone["all"], abs=1e-5)


def test_validation_ranks_candidates_after_their_readouts(tiny_backbone, tiny_tasks):
    found = fitted(tiny_backbone, tiny_tasks["pairs"], readout="linear", selection="loss", shots=None)
    (winner,) = found.card.selection["winners"]
    rows = target_rows(tiny_backbone, tiny_tasks["pairs"], adapting(selection="loss", shots=None))
    # −log of the right label's share: at most log C once the offset is there, and far below −log p of its tokens.
    assert -winner["best"][0] < 1.0
    plain = fitted(tiny_backbone, tiny_tasks["pairs"], selection="loss", shots=None)
    assert -plain.card.selection["winners"][0]["best"][0] > 2.0
    assert len(rows.labelled) == (1 if tiny_tasks["pairs"].select else 2)


def test_validations_fit_readouts_to_a_few_rows_and_the_end_to_all(tiny_backbone, tiny_tasks, monkeypatch):
    read, sizes = calibrate.read, []
    monkeypatch.setattr("bmtpt.methods.target.RANKING_ROWS", 3)
    monkeypatch.setattr(calibrate, "read", lambda *given: sizes.append(len(given[2])) or read(*given))
    target = tiny_tasks["pairs"]
    fitted(tiny_backbone, target, readout="linear", selection="loss", shots=None)
    assert sizes == [3, 3, 3, len(target.train)]  # before the first step, and after each of two


def test_training_on_labels_lowers_the_loss_of_the_decision(tiny_backbone, tiny_tasks):
    target = tiny_tasks["pairs"]
    rows = target_rows(tiny_backbone, target, adapting()).train
    before, after = (
        evaluate(
            tiny_backbone, fitted(tiny_backbone, target, likelihood="labels", steps=steps, batch_size=12), rows.examples
        )
        for steps in (0, 30)
    )
    assert after.calibration["nll"] < before.calibration["nll"] - 0.02


@pytest.mark.parametrize("predictive", ["map", "laplace"])
def test_the_loss_of_labels_holds_the_map_readout_of_the_start(tiny_backbone, tiny_tasks, predictive):
    target = tiny_tasks["pairs"]
    one = {"steps": 1, "optimiser": "sgd", "decompose": False, "weight_decay": 0.0, "batch_size": 12}
    one |= {"predictive": predictive}
    found = fitted(tiny_backbone, target, likelihood="labels", readout="linear", **one)
    start = fitted(tiny_backbone, target, steps=0, readout="linear")
    rows = target_rows(tiny_backbone, target, adapting()).train
    answers = make_scorer(tiny_backbone, target.task).answers
    _, gradient = tiny_backbone.engine.gradients(
        start.prompts, rows.batch, torch.full((12,), 1 / 12), Choice(answers, start.readouts)
    )
    torch.testing.assert_close(found.prompts, start.prompts - 0.1 * gradient, atol=1e-6, rtol=0)
    assert float(gradient.abs().max()) > 1e-4


def test_the_average_with_the_start_is_that_of_both_ones_probabilities(tiny_backbone, tiny_tasks):
    target = tiny_tasks["pairs"]
    both = fitted(tiny_backbone, target, readout="linear", average="start")
    alone = [fitted(tiny_backbone, target, readout="linear", steps=steps) for steps in (0, 2)]
    assert torch.equal(both.prompts, torch.cat([each.prompts for each in alone]))
    wanted = sum(evaluate(tiny_backbone, each, target.test).probabilities for each in alone) / 2
    torch.testing.assert_close(evaluate(tiny_backbone, both, target.test).probabilities, wanted, atol=1e-6, rtol=0)
    assert torch.equal(fitted(tiny_backbone, target, steps=0, average="start").prompts, alone[0].prompts)


@pytest.mark.parametrize(
    ("words", "prompts", "wanted"),
    [
        (True, True, ("labels", "linear", "start")),
        (True, False, ("labels", "none", "none")),
        (False, True, ("tokens", "none", "none")),
    ],
)
def test_auto_takes_what_the_task_and_the_method_can_have(words, prompts, wanted):
    settings = adapting(likelihood="auto", readout="auto", average="auto").decided(words=words, prompts=prompts)
    assert (settings.likelihood, settings.readout, settings.average) == wanted
    given = adapting(readout="offset", average="none").decided(words=words, prompts=prompts)
    assert (given.likelihood, given.readout, given.average) == ("tokens", "offset", "none")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"readout": "linear"}, "has no label words, which readout 'linear' needs"),
        ({"average": "start"}, "has no label words, which average 'start' needs"),
        ({"likelihood": "labels"}, "has no label words, which likelihood 'labels' needs"),
    ],
)
def test_free_answers_have_neither_readout_nor_label_likelihood(tiny_backbone, tiny_tasks, changes, words):
    with pytest.raises(SettingsError, match=words):
        fitted(tiny_backbone, tiny_tasks["answers"], **changes)


def test_methods_that_tune_weights_have_neither_readout_nor_temperature(tiny_backbone, tiny_tasks):
    for option, value in {"readout": "linear", "calibrate": "temperature"}.items():
        with pytest.raises(SettingsError, match=f"'bitfit' tunes weights, .* neither .*; leave {option} out"):
            fitted(tiny_backbone, tiny_tasks["pairs"], "bitfit", **{option: value})


def test_a_readout_is_not_used_for_a_task_with_other_labels(tiny_backbone, tiny_tasks):
    prompt = fitted(tiny_backbone, tiny_tasks["pairs"], readout="offset", steps=0)
    other = tiny_tasks["sentiment"].task.model_copy(update={"labels": {0: "negative", 1: "positive", 2: "yes"}})
    with pytest.raises(SettingsError, match="the prompt's readout is for the 2 labels of task pairs"):
        evaluate(tiny_backbone, prompt, tiny_tasks["sentiment"].test, task=other)


def posterior_of(backbone: Any, source: Any) -> Posterior:
    settings = {"particles": 2, "prompt_length": P, "steps": 2, "batch_size": 2, "evaluate_every": 2}
    return learn(backbone, [source], LearnSettings.model_validate(settings | {"particle_init": "shared"}))


def test_texts_without_labels_centre_and_scale_the_readout_and_lend_no_label(tiny_backbone, tiny_tasks):
    target = tiny_tasks["pairs"]
    few = {"shots": 4, "steps": 0, "readout": "linear", "offset_std": 0.7, "weight_std": 1.3}
    found = fitted(tiny_backbone, target, unlabelled_rows=6, **few)
    rows = target_rows(tiny_backbone, target, adapting(unlabelled_rows=6, **few))
    assert len(rows.texts) == found.card.selection["unlabelled_texts"] == 6
    assert not {each.text for each in rows.unlabelled.examples} & {each.text for each in rows.train.examples}
    scorer = make_scorer(tiny_backbone, target.task)
    readings = read(tiny_backbone.engine, found.prompts, [*rows.train.batch.inputs, *rows.texts], scorer)
    scores, states = readings.log_likelihoods[0], readings.states[0]
    labels = torch.tensor([example.label for example in rows.train.examples])
    mean, std = states.double().mean(dim=0), states.double().std(dim=0, correction=0)
    centre = -scores.double().log_softmax(dim=1).mean(dim=0)
    unit = (states[:4].double() - mean) / std
    wanted = fit(scores[:4], labels, Widths(0.7, 1.3), unit, centre, (mean * 0, torch.ones_like(std)))
    (own,) = found.readouts
    there = wanted.logits(scores, (states.double() - mean) / std)
    torch.testing.assert_close(own.logits(scores, states), there, atol=1e-3, rtol=1e-3)
    switched = tuple(replace(each, label=1 - each.label) for each in target.train)
    kept = {id(each) for each in rows.train.examples}
    other = replace(target, train=tuple(a if id(a) in kept else b for a, b in zip(target.train, switched, strict=True)))
    (again,) = fitted(tiny_backbone, other, unlabelled_rows=6, **few).readouts
    assert torch.equal(own.weights, again.weights)
    assert torch.equal(own.offset, again.offset)


def test_all_starts_answer_trained_and_untouched_each_with_a_readout(tiny_backbone, tiny_tasks):
    target, posterior = tiny_tasks["pairs"], posterior_of(tiny_backbone, tiny_tasks["sentiment"])
    common = {"start": "mean", "prior_std": 5.0, "readout": "linear", "selection": "none", "learning_rate": 0.1}
    found = fit_method(
        BMTPT,
        tiny_backbone,
        [target],
        adapting(average="starts", steps=3, **common),
        learned=Learned(("a",), posterior),
    )[target.task.name]
    draw = from_vocabulary(tiny_backbone.frequent_rows(), P, torch.Generator().manual_seed(adapting().seed))
    starts = torch.stack([posterior.mean, draw])
    assert (len(found.prompts), len(found.readouts)) == (4, 4)
    torch.testing.assert_close(found.prompts[:2], starts)
    assert [each["start"] for each in found.card.selection["winners"]] == ["mean", "vocabulary draw 0"]
    alone = fit_method(BMTPT, tiny_backbone, [target], adapting(steps=3, **common), learned=Learned(("a",), posterior))[
        target.task.name
    ]
    torch.testing.assert_close(
        found.prompts[2], alone.prompts[0], atol=1e-5, rtol=1e-4
    )  # they do not disturb each other
    untrained = fit_method(
        BMTPT,
        tiny_backbone,
        [target],
        adapting(average="starts", steps=0, **common),
        learned=Learned(("a",), posterior),
    )[target.task.name]
    torch.testing.assert_close(untrained.prompts, starts)
    shares = []
    for prompt, readout in zip(untrained.prompts, untrained.readouts, strict=True):
        one = replace(untrained, prompts=prompt[None], readouts=(readout,))
        shares.append(evaluate(tiny_backbone, one, target.test[:5]).probabilities)
    answers = [list(each["all"].values()) for each in predict(tiny_backbone, untrained, target.test[:5])]
    torch.testing.assert_close(torch.tensor(answers), sum(shares) / 2, atol=1e-5, rtol=0)


def test_texts_that_are_given_without_labels_join_those_that_the_draw_leaves_out(tiny_backbone, tiny_tasks, caplog):
    target = tiny_tasks["pairs"]
    texts = tuple(replace(each, label=None, target="") for each in target.test[:5])
    given = replace(target, unlabelled=texts)
    rows = target_rows(tiny_backbone, given, adapting(shots=4, readout="linear", unlabelled_rows=3))
    assert [each.text for each in rows.unlabelled.examples][:5] == [each.text for each in texts]
    assert len(rows.texts) == 8
    assert not caplog.records
    target_rows(tiny_backbone, given, adapting(shots=4))
    assert "only a readout looks at texts without labels; set readout" in caplog.text
