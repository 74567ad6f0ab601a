"""A temperature from adapt to the answers: cross-fitted within the labels, kept in the artifact, used everywhere."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bmtpt.artifacts.card import Calibration
from bmtpt.artifacts.inspect import describe_artifact
from bmtpt.artifacts.saved import Prompt, PromptMixture
from bmtpt.errors import ArtifactError, DataError, SettingsError
from bmtpt.inference.predict import predict
from bmtpt.inference.score import labels_of, make_scorer, read
from bmtpt.methods.registry import Learned, get_method
from bmtpt.posterior.prompts import from_vocabulary
from bmtpt.posterior.readout import Labelled, Readout, Widths, fit, label_free_offset
from bmtpt.posterior.temperature import fit_temperature
from bmtpt.sealed import sealed, unsealed
from bmtpt.settings import AdaptSettings
from bmtpt.stages.evaluate import evaluate
from bmtpt.stages.rows import target_rows
from bmtpt.stages.target import fit_method
from bmtpt.tasks.metrics import calibration
from bmtpt.tasks.tokens import Tokenised

P = 3


def adapting(**changes: Any) -> AdaptSettings:
    values = {"steps": 2, "evaluate_every": 1, "batch_size": 4, "learning_rate": 0.1, "shots": 8, "prior": "none"}
    return AdaptSettings.model_validate(
        values
        | {
            "selection": "none",
            "readout": "none",
            "unlabelled_rows": 0,
            "calibrate": "temperature",
            "predictive": "map",
        }
        | changes
    )


def fitted(tiny_backbone: Any, target: Any, method: str = "pt", folder: Any = None, **changes: Any) -> Any:
    start = from_vocabulary(tiny_backbone.frequent_rows(), P, torch.Generator().manual_seed(5))
    learned = Learned(("answers",), prompts={"answers": start, "other": start.flip(0)})
    return fit_method(
        get_method(method), tiny_backbone, [target], adapting(**changes),
        learned=learned, prompt_length=P, folder=folder, budget=2,
    )[target.task.name]  # fmt: skip


def texts(backbone: Any, target: Any, prompt: Prompt, rows: Tokenised) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, states and labels of rows under a prompt."""
    found = read(backbone.engine, prompt.prompts, rows.batch.inputs, make_scorer(backbone, target.task))
    return found.log_likelihoods[0].double(), found.states[0].double(), labels_of(rows)


def linear(scores: Tensor, states: Tensor, labels: Tensor) -> Readout:
    return fit(scores, labels, Widths(1.0, 1.0, 0.0), states, label_free_offset(scores))


def without(n: int, left_out: int) -> list[int]:
    return [i for i in range(n) if i != left_out]


def test_the_temperature_of_few_rows_is_fitted_to_readouts_that_leave_each_row_out(tiny_backbone, tiny_tasks):
    target = tiny_tasks["pairs"]
    found = fitted(tiny_backbone, target, steps=0, readout="linear")
    s, h, y = texts(tiny_backbone, target, found, target_rows(tiny_backbone, target, adapting()).train)
    n = len(y)
    z = torch.stack([linear(*(part[without(n, i)] for part in (s, h, y))).logits(s[i], h[i]) for i in range(n)])
    wanted = fit_temperature(z[None], y)
    assert found.card.calibration.temperature == pytest.approx(wanted, rel=1e-4)
    full, (own,) = linear(s, h, y), found.readouts
    torch.testing.assert_close(own.logits(s, h), full.logits(s, h) / wanted, atol=1e-3, rtol=1e-3)
    # Before and after: every row is judged by a temperature that did not see it, either.
    others = [fit_temperature(z[None, without(n, i)], y[without(n, i)]) for i in range(n)]
    after = torch.stack([row / t for row, t in zip(z, others, strict=True)])
    for when, logits in (("before", z), ("after", after)):
        judged = calibration(logits.softmax(dim=1).numpy(), y.tolist())
        assert getattr(found.card.calibration, f"nll_{when}") == pytest.approx(judged["nll"], abs=1e-4)
        assert getattr(found.card.calibration, f"ece_{when}") == pytest.approx(100 * judged["ece"], abs=1e-2)
    assert found.card.calibration.rows == n == 8


def test_without_a_readout_the_words_are_read_at_the_temperature(tiny_backbone, tiny_tasks):
    target = tiny_tasks["pairs"]
    found, plain = fitted(tiny_backbone, target), fitted(tiny_backbone, target, calibrate="none")
    s, _, y = texts(tiny_backbone, target, found, target_rows(tiny_backbone, target, adapting()).train)
    temperature = found.card.calibration.temperature
    assert temperature == pytest.approx(fit_temperature(s[None], y), rel=1e-4)
    assert found.card.trained_parameters == plain.card.trained_parameters + 1
    one, other = (evaluate(tiny_backbone, each, target.test) for each in (found, plain))
    tempered = (other.probabilities.double().log() / temperature).softmax(dim=1).float()
    torch.testing.assert_close(one.probabilities, tempered, atol=1e-5, rtol=0)
    assert one.predictions == other.predictions


def test_rows_that_did_not_train_the_prompt_judge_alone_if_there_are_any(tiny_backbone, tiny_tasks):
    target = tiny_tasks["pairs"]
    held_back = {"selection": "loss", "readout": "linear"}
    found = fitted(tiny_backbone, target, **held_back)  # the target's own validation part: no readout saw it
    rows = target_rows(tiny_backbone, target, adapting(**held_back))
    (s, h, y), judged = (texts(tiny_backbone, target, found, part) for part in (rows.train, rows.select))
    wanted = fit_temperature(linear(s, h, y).logits(*judged[:2])[None], judged[2])
    assert found.card.calibration.temperature == pytest.approx(wanted, rel=1e-4)
    assert found.card.calibration.rows == len(rows.select) == 12

    lent = fitted(tiny_backbone, target, validation_rows=0, **held_back)  # the final readout saw these
    rows = target_rows(tiny_backbone, target, adapting(validation_rows=0, **held_back))
    parts = [texts(tiny_backbone, target, lent, part) for part in (rows.train, rows.select)]
    s, h, y = (torch.cat(each) for each in zip(*parts, strict=True))
    n, first = len(y), len(rows.train)
    z = [linear(*(each[without(n, i)] for each in (s, h, y))).logits(s[i], h[i]) for i in range(first, n)]
    assert lent.card.calibration.temperature == pytest.approx(
        fit_temperature(torch.stack(z)[None], y[first:]), rel=1e-4
    )
    assert lent.card.calibration.rows == len(rows.select) == 2


def test_all_labelled_rows_judge_an_untouched_prompt(tiny_backbone, tiny_tasks):
    found = fitted(tiny_backbone, tiny_tasks["pairs"], steps=0, selection="loss", validation_rows=0, readout="offset")
    assert found.card.calibration.rows == 8


def test_no_more_rows_are_read_than_the_fit_needs(tiny_backbone, tiny_tasks, monkeypatch):
    monkeypatch.setattr("bmtpt.inference.calibrate.ROWS", 5)
    target, seen = tiny_tasks["pairs"], []
    monkeypatch.setattr("bmtpt.inference.calibrate.read", lambda *args: seen.append(len(args[2])) or read(*args))
    for changes, judged, most in (({}, 5, 5), ({"selection": "loss"}, 5, 10)):
        found = fitted(tiny_backbone, target, shots=None, readout="linear", **changes)
        assert found.card.calibration.rows == judged
        assert seen.pop() == most


def test_rows_of_one_text_are_left_out_together(tiny_backbone, tiny_tasks):
    target = tiny_tasks["pairs"]
    once = replace(target, train=target.train[:6])
    twice = replace(target, train=target.train[:6] * 2)
    found, again = (
        fitted(tiny_backbone, each, steps=0, shots=None, readout="linear", offset_std=1e6, weight_std=1e6)
        for each in (once, twice)
    )
    # A readout this free learns a text by heart: had its twin stayed, the row would be judged as known.
    assert again.card.calibration.rows == 12
    assert again.card.calibration.nll_before > 0.7 * found.card.calibration.nll_before


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("pt", {}),
        ("pt", {"readout": "linear"}),
        ("source_ensemble", {"readout": "offset"}),
        ("attempt", {"readout": "linear"}),
        ("attempt", {}),
    ],
)
def test_what_is_saved_answers_as_what_was_fitted_in_predict_and_evaluate(
    tiny_backbone, tiny_tasks, tmp_path, method, changes
):
    target = tiny_tasks["pairs"]
    made = fitted(tiny_backbone, target, method, tmp_path / "run", **changes)
    loaded = (PromptMixture if method == "attempt" else Prompt).load(tmp_path / "run")
    assert loaded.card.calibration == made.card.calibration
    found, again = (evaluate(tiny_backbone, each, target.test) for each in (made, loaded))
    assert torch.equal(found.probabilities, again.probabilities)
    plain = evaluate(tiny_backbone, fitted(tiny_backbone, target, method, calibrate="none", **changes), target.test)
    assert not torch.allclose(found.probabilities, plain.probabilities, atol=1e-4)
    if method != "attempt":
        answers = list(predict(tiny_backbone, loaded, target.test))
        each = torch.tensor([list(answer["all"].values()) for answer in answers])
        torch.testing.assert_close(each, found.probabilities, atol=1e-5, rtol=0)


def test_the_temperature_comes_after_the_mean_over_the_readouts_posterior(tiny_backbone, tiny_tasks):
    target = tiny_tasks["pairs"]
    found = fitted(tiny_backbone, target, steps=0, readout="linear", predictive="laplace")
    s, h, y = texts(tiny_backbone, target, found, target_rows(tiny_backbone, target, adapting()).train)
    n = len(y)
    known = [Labelled(*(part[without(n, i)] for part in (s, h, y))).fit(Widths(), spread=True) for i in range(n)]
    wanted = fit_temperature(torch.stack([own.logits(s[i], h[i]) for i, own in enumerate(known)])[None], y)
    assert found.card.calibration.temperature == pytest.approx(wanted, rel=1e-4)
    (own,) = found.readouts
    full = Labelled(s, h, y).fit(Widths(), spread=True).logits(s, h)
    torch.testing.assert_close(own.logits(s, h), full / wanted, atol=1e-3, rtol=1e-3)


def test_the_prompts_of_an_ensemble_share_a_temperature(tiny_backbone, tiny_tasks):
    target = tiny_tasks["pairs"]
    found = fitted(tiny_backbone, target, "source_ensemble")
    assert len(found.prompts) == 2
    inputs = target_rows(tiny_backbone, target, adapting()).train
    z = read(tiny_backbone.engine, found.prompts, inputs.batch.inputs, make_scorer(tiny_backbone, target.task))
    wanted = fit_temperature(z.log_likelihoods, labels_of(inputs))
    assert found.card.calibration.temperature == pytest.approx(wanted, rel=1e-4)
    assert [readout.slope for readout in found.readouts] == pytest.approx([1 / wanted] * 2, rel=1e-4)


def test_a_mixed_batch_gives_each_task_its_own_temperature(tiny_backbone, tiny_tasks):
    prompts = {name: fitted(tiny_backbone, tiny_tasks[name]) for name in ("pairs", "sentiment")}
    prompts["answers"] = fitted(tiny_backbone, tiny_tasks["answers"], calibrate="none")
    asked = [(name, example) for name in prompts for example in tiny_tasks[name].test[:3]]
    mixed = list(predict(tiny_backbone, prompts, asked[::2] + asked[1::2]))
    for (name, example), answer in zip(asked[::2] + asked[1::2], mixed, strict=True):
        (alone,) = predict(tiny_backbone, prompts[name], [example])
        assert answer["label"] == alone["label"]
        if "all" in alone:
            assert answer["all"] == pytest.approx(alone["all"], abs=1e-5)


def test_a_card_from_before_temperatures_loads_with_the_same_answers(tiny_backbone, tiny_tasks, tmp_path):
    target = tiny_tasks["pairs"]
    made = fitted(tiny_backbone, target, "pt", tmp_path, readout="linear", calibrate="none")
    path = tmp_path / "card.json"
    card = unsealed(json.loads(path.read_text()))
    assert card.pop("calibration") is None
    path.write_text(json.dumps(sealed(card)))
    old = Prompt.load(tmp_path)
    assert old.card.calibration is None
    found, again = (evaluate(tiny_backbone, each, target.test).probabilities for each in (made, old))
    assert torch.equal(found, again)
    path.write_text(json.dumps(sealed(card | {"calibration": {"temperature": 0}})))
    with pytest.raises(ArtifactError, match="card"):
        Prompt.load(tmp_path)


def test_inspect_shows_the_temperature_and_what_it_does(tiny_backbone, tiny_tasks):
    found = fitted(tiny_backbone, tiny_tasks["pairs"])
    noted = Calibration(temperature=1.5, rows=8, nll_before=0.9, nll_after=0.8, ece_before=20.0, ece_after=12.5)
    shown = describe_artifact(replace(found, card=found.card.model_copy(update={"calibration": noted})))
    assert shown["calibration"] == (
        "temperature 1.50, fitted on 8 rows (cross-fitted: NLL 0.900 → 0.800, ECE 20.0 → 12.5)"
    )
    assert shown["readout"] == f"words alone, slope {found.readouts[0].slope:.2f}"
    assert "calibration" not in describe_artifact(fitted(tiny_backbone, tiny_tasks["pairs"], calibrate="none"))


def test_free_answers_have_no_temperature(tiny_backbone, tiny_tasks):
    with pytest.raises(SettingsError, match="has no label words, which calibrate 'temperature' needs"):
        fitted(tiny_backbone, tiny_tasks["answers"])


def test_one_labelled_text_has_no_temperature(tiny_backbone, tiny_tasks):
    with pytest.raises(DataError, match="target pairs has one labelled text, and a temperature needs 2; leave calib"):
        fitted(tiny_backbone, tiny_tasks["pairs"], shots=1, readout="offset")
