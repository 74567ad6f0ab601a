from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from bmtpt.errors import DataError
from bmtpt.tasks import load_task
from bmtpt.tasks.metrics import (
    calibration,
    constant_answer,
    invalid_share,
    normalise_answer,
    reliability,
    score,
    token_f1,
)
from bmtpt.types import Example

MRPC, COLA, CB, STSB, NQ, MULTIRC = map(load_task, ("mrpc", "cola", "cb", "stsb", "nq", "multirc"))


def labelled(spec, labels, groups=None):
    words = spec.label_words
    groups = groups or [""] * len(labels)
    return [Example("", "", "", words[i], i, (words[i],), g) for i, g in zip(labels, groups, strict=True)]


def free(*references):
    return [Example("", "", "", texts[0], None, tuple(texts)) for texts in references]


def numbers(*targets):
    return [Example("", "", "", str(target), None, (str(target),)) for target in targets]


def words(spec, labels):
    return [spec.label_words[i] for i in labels]


PAIRS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=2, max_size=30)
TRIPLES = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=2, max_size=30)


@given(PAIRS)
def test_two_class_metrics_are_those_of_scikit_learn(pairs):
    gold, found = zip(*pairs, strict=True)
    scores = score(MRPC, words(MRPC, found), labelled(MRPC, gold))
    assert scores["accuracy"] == pytest.approx(100 * accuracy_score(gold, found))
    assert scores["f1"] == pytest.approx(100 * f1_score(gold, found, zero_division=0))


@given(PAIRS)
def test_matthews_is_the_correlation_of_two_zero_one_variables(pairs):
    gold, found = map(np.array, zip(*pairs, strict=True))
    value = score(COLA, words(COLA, found), labelled(COLA, gold))["matthews"]
    if gold.std() == 0 or found.std() == 0:
        assert value == 0
    else:
        assert value == pytest.approx(100 * np.corrcoef(gold, found)[0, 1])
        assert value == pytest.approx(100 * matthews_corrcoef(gold, found))


@given(TRIPLES)
def test_macro_f1_averages_the_f1_of_each_class(pairs):
    gold, found = map(np.array, zip(*pairs, strict=True))
    per_class = []
    for label in range(3):
        right = int(((gold == label) & (found == label)).sum())
        all_of_it = int((gold == label).sum() + (found == label).sum())
        per_class.append(2 * right / all_of_it if all_of_it else 0.0)
    assert score(CB, words(CB, found), labelled(CB, gold))["macro_f1"] == pytest.approx(100 * np.mean(per_class))


def test_an_output_that_is_no_label_counts_as_wrong_in_f1():
    gold = labelled(MRPC, [1, 1, 0, 0])
    scores = score(MRPC, ["equivalent", "maybe", "not_equivalent", "maybe"], gold)
    # The two invalid outputs become one missed positive and one false positive.
    assert scores == {"accuracy": 50.0, "f1": pytest.approx(50.0)}
    assert scores == score(MRPC, words(MRPC, [1, 0, 0, 1]), gold)


def test_an_invalid_output_never_helps_matthews():
    gold = labelled(COLA, [1, 1, 0, 0])
    assert score(COLA, ["", "acceptable", "unacceptable", "?"], gold)["matthews"] == pytest.approx(0.0)


def test_an_invalid_output_is_no_class_of_macro_f1():
    gold = labelled(CB, [0, 1, 2])
    found = score(CB, ["entailment", "contradiction", "???"], gold)["macro_f1"]
    assert found == pytest.approx(100 * (1 + 1 + 0) / 3)


def test_blanks_around_a_label_do_not_matter():
    assert score(MRPC, [" equivalent\n"], labelled(MRPC, [1]))["accuracy"] == 100.0


def test_multirc_counts_a_question_only_if_every_answer_is_right():
    gold = labelled(MULTIRC, [1, 0, 1, 1], ["0-1", "0-1", "0-2", "1-1"])
    scores = score(MULTIRC, words(MULTIRC, [0, 0, 1, 1]), gold)
    assert scores["group_em"] == pytest.approx(100 * 2 / 3)
    assert scores["f1"] == pytest.approx(100 * 0.8)


def test_pearson_and_spearman_follow_their_definitions():
    gold, found = [0.0, 1.2, 2.4, 3.0, 5.0], [0.4, 1.0, 1.0, 4.8, 4.0]
    scores = score(STSB, [str(x) for x in found], numbers(*gold))
    assert scores["pearson"] == pytest.approx(100 * np.corrcoef(gold, found)[0, 1])
    assert scores["spearman"] == pytest.approx(100 * np.corrcoef(rankdata(gold), rankdata(found))[0, 1])


def test_text_that_is_no_number_lowers_the_correlation():
    gold = numbers(1.0, 3.0, 5.0, 4.0)
    right = score(STSB, ["1.0", "3.0", "5.0", "4.0"], gold)["pearson"]
    for noise in ("five", "nan", "inf", ""):
        assert score(STSB, ["1.0", "3.0", noise, "4.0"], gold)["pearson"] < right - 10


@pytest.mark.parametrize("spec", [STSB, COLA])
def test_constant_predictions_score_zero_without_a_warning(spec):
    gold = numbers(1.0, 2.0, 3.0) if spec is STSB else labelled(COLA, [0, 1, 1])
    constant = "2.0" if spec is STSB else "acceptable"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = score(spec, [constant] * 3, gold)
    assert scores[spec.primary] == 0.0


@given(st.sampled_from(["mrpc", "cola", "cb", "stsb", "nq"]), st.data())
def test_no_prediction_gives_a_warning_or_a_value_out_of_range(name, data):
    spec = load_task(name)
    n = data.draw(st.integers(1, 6))
    if spec.kind == "labels":
        gold = labelled(spec, data.draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)))
    else:
        gold = numbers(*data.draw(st.lists(st.sampled_from([0.0, 2.4, 5.0]), min_size=n, max_size=n)))
    outputs = st.sampled_from([*spec.label_words, "", "2.0", "3.4", "the"])
    found = data.draw(st.lists(outputs, min_size=n, max_size=n))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = score(spec, found, gold)
    assert set(scores) == set(spec.metrics)
    assert all(-100.0 - 1e-9 <= value <= 100.0 + 1e-9 for value in scores.values())


@pytest.mark.parametrize(
    ("raw", "bare"), [("The Cat!", "cat"), ("an  apple, a day", "apple day"), ("Theatre", "theatre"), ("U.S.", "us")]
)
def test_answers_are_normalised_as_in_squad(raw, bare):
    assert normalise_answer(raw) == bare


def test_the_best_reference_counts():
    scores = score(NQ, ["the Denver Broncos", "blue"], free(["Panthers", "Denver Broncos!"], ["red", "dark blue"]))
    assert scores["em"] == 50.0
    assert scores["f1"] == pytest.approx(100 * (1 + 2 / 3) / 2)


TOKENS = st.lists(st.sampled_from("bcdef"), max_size=6).map(" ".join)


@given(TOKENS, TOKENS)
def test_word_f1_is_the_harmonic_mean_of_precision_and_recall(found, wanted):
    left, right = found.split(), wanted.split()
    common = sum(min(left.count(word), right.count(word)) for word in set(left))
    expected = 0.0
    if common:
        precision, recall = common / len(left), common / len(right)
        expected = 2 * precision * recall / (precision + recall)
    assert token_f1(found, wanted) == pytest.approx(expected)


def test_the_constant_answer_of_accuracy_is_the_largest_class():
    spec = load_task("wsc")
    gold = labelled(spec, [0] * 35 + [1] * 17)
    assert constant_answer(spec, gold) == pytest.approx(100 * 35 / 52)  # the 67.3 in the papers' tables


def test_the_constant_answer_of_f1_is_all_true():
    gold = labelled(MULTIRC, [1, 0, 0, 0], ["a", "a", "b", "b"])
    assert constant_answer(MULTIRC, gold) == pytest.approx(100 * 2 * 0.25 / 1.25)


def test_the_constant_answer_of_matthews_is_zero_and_of_a_correlation_undefined():
    assert constant_answer(COLA, labelled(COLA, [0, 1, 1])) == 0.0
    assert constant_answer(STSB, numbers(1.0, 2.0)) is None


def test_the_constant_answer_of_choices_is_always_the_same_choice():
    spec = load_task("copa")
    gold = [Example("", "", "", f"choice {i}", label) for i, label in enumerate([0, 1, 1, 1])]
    assert constant_answer(spec, gold) == 75.0


def test_the_constant_answer_of_free_text_is_the_best_of_the_frequent_ones():
    assert constant_answer(NQ, free(["paris"], ["Paris"], ["rome"], ["oslo"])) == pytest.approx(50.0)


def test_invalid_outputs_are_counted_by_kind():
    assert invalid_share(MRPC, ["equivalent", " equivalent", "Equivalent", ""]) == 50.0
    assert invalid_share(STSB, ["1.0", "3", "three", "nan"]) == 50.0
    assert invalid_share(NQ, ["paris", " ", "", "rome"]) == 50.0
    assert invalid_share(NQ, []) == 0.0


@given(st.integers(1, 40), st.integers(2, 4), st.integers(0, 1000))
def test_calibration_error_equals_the_sum_over_bins(n, classes, seed):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(classes), size=n)
    labels = rng.integers(0, classes, size=n).tolist()
    top, right = p.max(axis=1), p.argmax(axis=1) == np.array(labels)
    error = 0.0
    for b in range(15):
        inside = [i for i in range(n) if b / 15 < top[i] <= (b + 1) / 15]
        if inside:
            error += len(inside) / n * abs(np.mean(right[inside]) - np.mean(top[inside]))
    found = calibration(p, labels)
    assert found["ece"] == pytest.approx(error)
    assert found["accuracy"] == pytest.approx(right.mean())
    assert found["nll"] == pytest.approx(-sum(math.log(p[i, labels[i]]) for i in range(n)) / n)


def test_full_confidence_shares_the_last_bin():
    p = np.array([[1.0, 0.0], [0.95, 0.05]])
    assert calibration(p, [1, 0])["ece"] == pytest.approx(abs(1 / 2 - (1.0 + 0.95) / 2))


def test_a_sure_and_right_model_is_calibrated_and_a_sure_and_wrong_one_is_not():
    p = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert calibration(p, [0, 1]) == {"accuracy": 1.0, "nll": 0.0, "ece": 0.0}
    wrong = calibration(p, [1, 0])
    assert wrong["ece"] == 1.0
    assert math.isfinite(wrong["nll"])


def test_scores_need_one_prediction_per_example():
    with pytest.raises(DataError, match="1 predictions for 2 examples"):
        score(MRPC, ["equivalent"], labelled(MRPC, [0, 1]))
    with pytest.raises(DataError, match="0 predictions"):
        score(MRPC, [], [])
    with pytest.raises(DataError, match="at least one"):
        calibration(np.zeros((0, 2)), [])


def test_the_calibration_curve_gives_back_the_calibration_error_and_the_accuracy():
    rng = np.random.default_rng(3)
    p, labels = rng.dirichlet([0.5] * 3, 200), rng.integers(0, 3, 200).tolist()
    curve, found = reliability(p, labels), calibration(p, labels)
    assert sum(n for _, n, *_ in curve) == 200
    assert sum(n * abs(accuracy - confidence) for _, n, confidence, accuracy in curve) / 200 == pytest.approx(
        found["ece"]
    )
    assert sum(n * accuracy for _, n, _, accuracy in curve) / 200 == pytest.approx(found["accuracy"])
    assert all(b / 15 < confidence <= (b + 1) / 15 for b, _, confidence, _ in curve)
