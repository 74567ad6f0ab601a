"""Zero-shot and logistic regressions against Hugging Face's own forward and scikit-learn pipelines built by hand."""

from __future__ import annotations

import csv
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from bmtpt.backbone.model.minilm import MINILM, SentenceEncoder, sentence_encoder, sentence_transformer
from bmtpt.errors import BackboneError, DataError, SettingsError
from bmtpt.methods.classifier import Classifier
from bmtpt.methods.logreg import with_unseen
from bmtpt.methods.registry import all_methods, get_method
from bmtpt.settings import AdaptSettings
from bmtpt.stages.evaluate import evaluate, result_rows
from bmtpt.stages.target import fit_method
from bmtpt.tasks import few_shot
from bmtpt.types import Example

K = 12
CLASSIFIERS = [name for name, method in all_methods().items() if method.classifier]
ON_THE_BACKBONE = [name for name in CLASSIFIERS if name not in ("sentence_logreg", "setfit")]


def fit(backbone: Any, target: Any, name: str, **changes: Any) -> Classifier:
    settings = AdaptSettings.model_validate({"shots": K, "seed": 3} | changes)
    (found,) = fit_method(get_method(name), backbone, [target], settings).values()
    assert isinstance(found, Classifier)
    return found


def answered(backbone: Any, target: Any, name: str, **changes: Any) -> Tensor:
    """Probabilities [N, C] of the test rows, as a study gets them."""
    found = evaluate(backbone, fit(backbone, target, name, **changes), target.test).probabilities
    assert found is not None
    return found.double()


def drawn(target: Any) -> tuple[tuple[Example, ...], list[int | None]]:
    rows = few_shot(target.train, K, 3)
    return rows, [row.label for row in rows]


def columns(folder: Path, name: str) -> dict[str, str]:
    """The columns of every row as the files hold them, one a line, by the text that the template makes of them."""
    found = {}
    for part in ("train", "validation", "test"):
        with (folder / name / f"{part}.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                found[f"pairs premise: {row['premise']} hypothesis: {row['hypothesis']}"] = (
                    f"{row['premise']}\n{row['hypothesis']}"
                )
    return found


@pytest.mark.parametrize("engine", ["generic", "packed"])
@pytest.mark.parametrize("way", ["none", "length"])
def test_zero_shot_is_the_share_of_each_word_by_hugging_faces_own_loss(engine, way, tiny_backbone, tiny_tasks, tiny_hf):
    task = tiny_tasks["sentiment"].task.model_copy(update={"labels": {"0": "bad", "1": "very very good"}})
    rows = [replace(each, target=task.label_words[each.label or 0]) for each in tiny_tasks["sentiment"].test]
    target = replace(tiny_tasks["sentiment"], task=task, train=tuple(rows), test=tuple(rows))
    tokenizer, wanted = tiny_backbone.tokenizer, []
    words = [torch.tensor(tokenizer(word).input_ids) for word in task.label_words]
    assert [len(word) for word in words] == [2, 4]
    for row in rows:
        ids = torch.tensor([tokenizer(row.text).input_ids])
        losses = [tiny_hf(input_ids=ids, labels=word[None]).loss for word in words]  # means over the word's tokens
        wanted.append(-torch.stack(losses) * torch.tensor([1, 1] if way == "length" else [2, 4]))
    backbone = replace(tiny_backbone, engine_name=engine)
    found = answered(backbone, target, "zero_shot", normalise=way)
    torch.testing.assert_close(found, torch.stack(wanted).softmax(dim=1).double(), atol=1e-5, rtol=1e-5)


def test_zero_shot_uses_no_label_and_gives_the_same_answers_for_every_draw(tiny_backbone, tiny_tasks):
    first = fit(tiny_backbone, tiny_tasks["pairs"], "zero_shot")
    other = answered(tiny_backbone, tiny_tasks["pairs"], "zero_shot", shots=4, seed=0)
    assert torch.equal(first.fitted.probabilities(tiny_tasks["pairs"].test).double(), other)
    assert first.card.selection["train_rows"] == first.card.trained_parameters == 0


def test_tfidf_is_scikit_learns_pipeline_on_the_columns_of_the_same_rows(tiny_backbone, tiny_tasks, tiny_task_folder):
    target, own = tiny_tasks["pairs"], columns(tiny_task_folder, "pairs")
    rows, labels = drawn(target)
    truth = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b"),
        LogisticRegression(C=10.0, max_iter=1000),
    ).fit([own[row.text] for row in rows], labels)
    wanted = torch.from_numpy(truth.predict_proba([own[row.text] for row in target.test]))
    torch.testing.assert_close(answered(tiny_backbone, target, "tfidf_logreg"), wanted)
    terms = truth[0].vocabulary_
    assert not {"premise", "hypothesis"} & set(terms)
    found = fit(tiny_backbone, target, "tfidf_logreg").fitted
    assert found.trained_parameters == 2 * len(terms) + 2
    assert found.kept_bytes == 4 * (2 * len(terms) + 2) + 4 * len(terms) + len("".join(terms).encode())


def test_the_encoders_features_are_the_mean_of_hugging_faces_states_over_the_text(tiny_backbone, tiny_tasks, tiny_hf):
    target = tiny_tasks["pairs"]
    rows, labels = drawn(target)

    def states(examples: Any) -> np.ndarray:
        ids = [torch.tensor([tiny_backbone.tokenizer(each.text).input_ids]) for each in examples]
        return np.array([tiny_hf.encoder(input_ids=row).last_hidden_state[0].mean(dim=0).numpy() for row in ids])

    truth = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000)).fit(states(rows), labels)
    wanted = torch.from_numpy(truth.predict_proba(states(target.test))).double()
    torch.testing.assert_close(answered(tiny_backbone, target, "encoder_logreg"), wanted, atol=1e-5, rtol=1e-5)
    found = fit(tiny_backbone, target, "encoder_logreg").fitted
    assert (found.trained_parameters, found.kept_bytes) == (2 * 24 + 2, 4 * (2 * 24 + 2))


@pytest.mark.parametrize("name", ON_THE_BACKBONE)
def test_all_labels_are_used_whatever_the_settings_of_prompts_say(tiny_backbone, tiny_tasks, name):
    changes = {
        "selection": "score",
        "readout": "linear",
        "calibrate": "temperature",
        "likelihood": "labels",
        "steps": 50,
    }
    plain, changed = (fit(tiny_backbone, tiny_tasks["pairs"], name, **each) for each in ({}, changes))
    texts = tiny_tasks["pairs"].test
    assert torch.equal(plain.fitted.probabilities(texts), changed.fitted.probabilities(texts))
    used = 0 if name == "zero_shot" else K
    assert (changed.card.selection["train_rows"], changed.card.selection["validation_rows"]) == (used, 0)


@pytest.mark.parametrize("name", ON_THE_BACKBONE)
def test_lines_say_what_a_classifier_took_and_what_it_leaves(tiny_backbone, tiny_tasks, name):
    target = tiny_tasks["pairs"]
    found = fit(tiny_backbone, target, name)
    lines = result_rows(tiny_backbone, found, target, evaluate(tiny_backbone, found, target.test), study="s")
    assert {line.metric for line in lines} == {*target.task.metrics, "nll", "ece"}
    for line in lines:
        assert (line.method, line.sources, line.shots, line.steps, line.moved) == (name, (), K, 0, None)
        assert (line.trained_parameters, line.kept_bytes) == (
            found.fitted.trained_parameters,
            found.fitted.kept_bytes,
        )
        assert line.seconds == found.fitted.seconds
        assert line.predict_seconds is not None
        assert line.predict_seconds > 0


@pytest.mark.parametrize("name", ["tfidf_logreg", "encoder_logreg"])
def test_rows_of_a_single_label_leave_laplaces_share_to_the_other(tiny_backbone, tiny_tasks, name):
    same = tuple(row for row in tiny_tasks["pairs"].train if row.label == 1)
    target = replace(tiny_tasks["pairs"], train=same)
    found = answered(tiny_backbone, target, name, shots=None)
    wanted = torch.tensor([1, len(same) + 1], dtype=torch.float64) / (len(same) + 2)
    torch.testing.assert_close(found, wanted.expand(len(found), 2))


@given(st.data())
def test_labels_that_no_row_has_get_laplaces_share_and_the_others_keep_their_order(data):
    words = data.draw(st.integers(2, 9))
    seen = sorted(data.draw(st.sets(st.integers(0, words - 1), min_size=1)))
    rows = data.draw(st.integers(len(seen), 50))
    weights = data.draw(st.lists(st.floats(1e-3, 1), min_size=len(seen), max_size=len(seen)))
    known = np.array([weights]) / sum(weights)
    (found,) = with_unseen(known, seen, words, rows).numpy()
    assert found.sum() == pytest.approx(1)
    assert found.min() > 0
    unseen = sorted(set(range(words)) - set(seen))
    assert found[unseen] == pytest.approx(1 / (rows + words))
    assert found[seen] / found[seen].sum() == pytest.approx(known[0])
    assert found[unseen].max(initial=0) <= found[seen].max() + 1e-12  # an answer is never a label that was not seen
    if not unseen:
        assert np.array_equal(found, known[0])


def test_a_task_without_label_words_is_refused_in_one_sentence(tiny_backbone, tiny_tasks):
    with pytest.raises(SettingsError, match="target answers has no label words, which method 'zero_shot' needs"):
        fit(tiny_backbone, tiny_tasks["answers"], "zero_shot")


def test_a_folder_is_refused_because_nothing_is_kept(tiny_backbone, tiny_tasks, tmp_path):
    method = get_method("tfidf_logreg")
    with pytest.raises(SettingsError, match="method 'tfidf_logreg' keeps nothing on disk; leave folder out"):
        fit_method(method, tiny_backbone, [tiny_tasks["pairs"]], folder=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_texts_without_a_word_are_refused_by_what_counts_words(tiny_backbone, tiny_tasks):
    rows = tuple(Example(f"sentiment sentence: {mark}", "", "", "positive", 1) for mark in "!?.")
    target = replace(tiny_tasks["sentiment"], train=rows)
    with pytest.raises(DataError, match=r"target sentiment: none of its 3 labelled texts holds a word"):
        fit(tiny_backbone, target, "tfidf_logreg", shots=None)


def test_sentence_vectors_do_not_depend_on_the_texts_next_to_them(tiny_backbone):
    from transformers import BertConfig, BertModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20}
        model = BertModel(BertConfig(vocab_size=200, **sizes)).eval()
    encoder = SentenceEncoder(model, tiny_backbone.tokenizer)
    texts = ["the film is good", "good", "the song was not very lovely and it is cold in paris", ""] * 12
    found = encoder.embed(texts)
    for text, vector in zip(texts, found, strict=True):
        ids = torch.tensor([tiny_backbone.tokenizer(text).input_ids])
        with torch.no_grad():
            mean = model(input_ids=ids).last_hidden_state[0].mean(dim=0)
        torch.testing.assert_close(vector, mean / mean.norm(), atol=1e-5, rtol=1e-5)


def test_without_the_wheel_the_command_that_installs_it_is_told(monkeypatch):
    def missing(package: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr("bmtpt.backbone.model.embedded.metadata.distribution", missing)
    with pytest.raises(BackboneError, match="the MiniLM model is not installed; run: pip install"):
        MINILM.checked_files()


def installed() -> bool:
    try:
        return metadata.version(MINILM.package) == MINILM.version
    except metadata.PackageNotFoundError:
        return False


needs_minilm = pytest.mark.skipif(not installed(), reason="MiniLM's wheel is not installed")


@needs_minilm
def test_the_real_minilm_gives_the_similarities_that_sentence_transformers_prints():
    """The first example of its documentation (sbert.net, quickstart)."""
    sentences = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    vectors = sentence_encoder(torch.device("cpu")).embed(sentences)
    wanted = torch.tensor([[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]])
    torch.testing.assert_close(vectors @ vectors.T, wanted, atol=1e-4, rtol=0)


@needs_minilm
def test_sentence_vectors_are_classified_as_scikit_learn_does(tiny_backbone, tiny_tasks, tiny_task_folder):
    target, own = tiny_tasks["pairs"], columns(tiny_task_folder, "pairs")
    rows, labels = drawn(target)
    embed = sentence_encoder(torch.device("cpu")).embed
    truth = LogisticRegression(C=10.0, max_iter=1000).fit(embed([own[row.text] for row in rows]).double(), labels)
    wanted = torch.from_numpy(truth.predict_proba(embed([own[row.text] for row in target.test]).double()))
    torch.testing.assert_close(answered(tiny_backbone, target, "sentence_logreg"), wanted, atol=1e-6, rtol=1e-5)
    assert fit(tiny_backbone, target, "sentence_logreg").fitted.trained_parameters == 2 * 384 + 2


@needs_minilm
def test_setfit_answers_as_its_library_does_from_end_to_end(
    tiny_backbone, tiny_tasks, tiny_task_folder, tmp_path, capsys
):
    datasets, library = pytest.importorskip("datasets"), pytest.importorskip("setfit")
    target, own = tiny_tasks["pairs"], columns(tiny_task_folder, "pairs")
    rows, labels = drawn(target)
    before = torch.get_rng_state()
    found = answered(tiny_backbone, target, "setfit")
    assert torch.equal(torch.get_rng_state(), before)
    assert capsys.readouterr().out == ""  # its trainer prints

    model = library.SetFitModel(model_body=sentence_transformer(torch.device("cpu")), model_head=LogisticRegression())
    settings = library.TrainingArguments(str(tmp_path), save_strategy="no", report_to="none", seed=3)
    texts = datasets.Dataset.from_dict({"text": [own[row.text] for row in rows], "label": labels})
    library.Trainer(model, settings, texts).train()
    wanted = model.predict_proba([own[row.text] for row in target.test], as_numpy=True)
    torch.testing.assert_close(found, torch.from_numpy(wanted).double(), atol=1e-5, rtol=0)
    untuned = model.model_head.predict_proba(
        sentence_encoder(torch.device("cpu")).embed([own[row.text] for row in target.test]).double()
    )
    assert abs(untuned - wanted).max() > 1e-3  # the encoder was tuned


@needs_minilm
def test_setfit_keeps_an_encoder_for_each_task(tiny_backbone, tiny_tasks):
    pytest.importorskip("setfit")
    found = fit(tiny_backbone, tiny_tasks["pairs"], "setfit", seed=2**40).fitted
    encoder = sum(each.numel() for each in sentence_encoder(torch.device("cpu")).model.parameters())
    assert found.trained_parameters == encoder + 2 * (384 + 1)
    assert found.kept_bytes == 4 * found.trained_parameters


@needs_minilm
def test_setfit_without_two_labels_answers_by_the_rule_of_succession(tiny_backbone, tiny_tasks):
    pytest.importorskip("setfit")
    target = tiny_tasks["pairs"]
    one = replace(target, train=tuple(row for row in target.train if row.label == 0))
    found = answered(tiny_backbone, one, "setfit")
    torch.testing.assert_close(found[0], torch.tensor([(K + 1) / (K + 2), 1 / (K + 2)], dtype=torch.float64))
