"""The classifier keeps scikit-learn's contract: its own checks see almost nothing of an estimator of texts."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

import bmtpt
from bmtpt.errors import DataError, SettingsError
from bmtpt.sklearn import SoftPromptClassifier

TEXTS = [f"{text}{' indeed' * (i // 4)}" for i in range(24) for text in [["good film", "bad film"][i % 2]]]
TEAMS = ["positive", "negative"] * 12
QUICK = {"settings": {"evaluate_every": 2, "batch_size": 2}, "steps": 2, "prompt_length": 3, "random_state": 0}


@pytest.fixture
def model(tiny_backbone):
    return SoftPromptClassifier(tiny_backbone, text="text: {body}", **QUICK)


@pytest.fixture(scope="module")
def posterior(tiny_backbone, tiny_tasks):
    settings = {"particles": 2, "prompt_length": 3, "steps": 2, "evaluate_every": 2, "validation_rows": 2}
    return bmtpt.learn(tiny_backbone, [tiny_tasks["pairs"]], settings, progress=False)


def test_lists_arrays_series_and_tables_get_the_same_answers(model):
    wanted = model.fit(TEXTS, TEAMS).predict_proba(TEXTS)
    assert model.classes_.tolist() == ["negative", "positive"]
    np.testing.assert_allclose(wanted.sum(axis=1), 1, atol=1e-6)
    assert model.predict(TEXTS).tolist() == model.classes_[wanted.argmax(axis=1)].tolist()
    assert model.predict_proba([]).shape == (0, 2)
    for texts in (np.array(TEXTS), pd.Series(TEXTS, index=range(50, 74)), pd.DataFrame({"body": TEXTS})):
        again = clone(model).fit(texts, pd.Series(TEAMS))
        assert np.array_equal(again.predict_proba(texts), wanted)


def test_the_estimator_answers_as_the_librarys_prompt(model, posterior):
    model.set_params(posterior=posterior).fit(TEXTS, TEAMS)
    rows = [{"body": text, "label": team} for text, team in zip(TEXTS, TEAMS, strict=True)]
    task = bmtpt.Task(rows, "text: {body}", label="label", labels=["negative", "positive"], split="none")
    seed = int(np.random.RandomState(0).randint(2**31 - 1))
    prompt = posterior.adapt(task, steps=2, evaluate_every=2, batch_size=2, seed=seed, progress=False)
    assert np.array_equal(model.predict_proba(TEXTS), prompt.predict_proba(TEXTS).to_numpy())
    assert model.prompt_.card.posterior


def test_a_clone_has_the_same_settings_and_shares_the_model(model, tiny_backbone):
    model.set_params(steps=1, words={"negative": "bad", "positive": "good"})
    copy = clone(model)
    assert copy.get_params() == model.get_params()
    assert copy.backbone is tiny_backbone
    assert copy.fit(TEXTS, TEAMS).prompt_.labels == ("bad", "good")
    assert copy.predict(TEXTS[:1])[0] in ("negative", "positive")
    with pytest.raises(NotFittedError):
        model.predict(TEXTS)


def test_a_pickle_holds_the_prompt_and_no_model(model, tiny_backbone):
    model.fit(TEXTS, TEAMS)
    kept = pickle.dumps(model)
    assert len(kept) < 30_000 < sum(weight.nbytes for weight in tiny_backbone.model.parameters())
    again = pickle.loads(kept)
    assert (again.backbone.name, again.backbone.dtype) == (tiny_backbone.name, tiny_backbone.dtype)
    assert again.backbone is again.prompt_.backbone
    np.testing.assert_allclose(again.predict_proba(TEXTS), model.predict_proba(TEXTS), atol=1e-6)


def test_it_works_in_a_pipeline_in_cross_validation_and_in_a_grid_search(model):
    lower = FunctionTransformer(lambda texts: [text.lower() for text in texts])
    assert make_pipeline(lower, model).fit(TEXTS, TEAMS).predict(TEXTS[:2]).shape == (2,)
    scores = cross_val_score(model, np.array(TEXTS), TEAMS, cv=2, scoring="neg_log_loss")
    assert scores.shape == (2,)
    assert (scores < 0).all()
    search = GridSearchCV(model, {"readout": ["none", "linear"], "steps": [0, 2]}, cv=2).fit(TEXTS, TEAMS)
    assert set(search.best_params_) == {"readout", "steps"}
    assert not np.isnan(search.cv_results_["mean_test_score"]).any()


def test_new_labels_fit_the_readout_as_all_labels_at_once_would(model):
    early = clone(model).set_params(steps=0).fit(TEXTS[:8], TEAMS[:8])
    start = early.prompt_._saved.prompts
    late = early.partial_fit(TEXTS[8:], TEAMS[8:])
    whole = clone(model).set_params(steps=0).fit(TEXTS, TEAMS)
    assert torch.equal(late.prompt_._saved.prompts, start)
    np.testing.assert_allclose(late.predict_proba(TEXTS), whole.predict_proba(TEXTS), atol=1e-6)
    assert late.prompt_.card.trained_parameters == whole.prompt_.card.trained_parameters
    with pytest.raises(DataError, match="class 'neutral' is new"):
        late.partial_fit(["so so"], ["neutral"])
    with pytest.raises(DataError, match="class 'neutral' has no row; the first rows must hold every class"):
        clone(model).partial_fit(TEXTS, TEAMS, classes=["negative", "neutral", "positive"])
    with pytest.raises(SettingsError, match="no readout to fit"):
        clone(model).set_params(readout="none").fit(TEXTS, TEAMS).partial_fit(TEXTS[:2], TEAMS[:2])


def test_classes_of_any_kind_come_back_as_they_were_given(model):
    numbers = np.array([3 if team == "positive" else -1 for team in TEAMS])
    found = model.set_params(words={-1: "bad", 3: "good"}).fit(TEXTS, numbers).predict(TEXTS)
    assert found.dtype == numbers.dtype
    assert set(found.tolist()) <= {-1, 3}
    with pytest.raises(SettingsError, match="words has none for class -1"):
        model.set_params(words={3: "good"}).fit(TEXTS, numbers)


@pytest.mark.parametrize(
    ("texts", "teams", "error", "sentence"),
    [
        (TEXTS[:3], TEAMS[:2], ValueError, "inconsistent numbers of samples"),
        ("good film", ["positive"], DataError, "X is .*; give a list, an array or a Series of texts, or a table"),
        ([["good"], ["bad"]], TEAMS[:2], DataError, r"X\[0\] is .*; give a text"),
        (["good", 3.5], TEAMS[:2], DataError, r"X\[1\] is a float; give a text"),
        (np.array([["good"], ["bad"]]), TEAMS[:2], DataError, "X is .*; give a list"),
        (TEXTS[:2], [0.1, 0.2], ValueError, "Unknown label type"),
    ],
)
def test_wrong_input_is_told_in_a_sentence(model, texts, teams, error, sentence):
    with pytest.raises(error, match=sentence):
        model.fit(texts, teams)
