"""A small study over tiny tasks: it runs every method, goes on where it stopped, and its lines are valid."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from bmtpt.artifacts.saved import Posterior, Prompt, PromptMixture
from bmtpt.errors import SettingsError
from bmtpt.inference.score import metric_names
from bmtpt.methods.registry import all_methods
from bmtpt.results import Result, append_results, read_results
from bmtpt.sealed import line_values, read_sealed, sealed
from bmtpt.studies import StudySpec, load_study, run_study
from bmtpt.studies.grid import Grid
from bmtpt.studies.identity import IDENTITY
from bmtpt.studies.run import RESULTS, prompt_folder

TUNINGS = [name for name, method in all_methods().items() if method.tunes_weights]
METHODS = [name for name, method in all_methods().items() if not method.tunes_weights and not method.classifier]
SOURCELESS = ("pt", "ptp", "anchored_pt")
QUICK = {"steps": 2, "evaluate_every": 2, "batch_size": 2, "learning_rate": 0.1}
SOURCE = {**QUICK, "prompt_length": 3, "validation_rows": 2}


def written(folder: Path, model: Path, tasks: Path, **changes: Any) -> Path:
    values = {
        "name": "tiny",
        "backbone": str(model),
        "sources": [str(tasks / "sentiment.yaml"), str(tasks / "answers.yaml")],
        "targets": [str(tasks / "pairs.yaml")],
        "shots": [8],
        "seeds": [0, 1],
        "methods": list(METHODS),
        "learn": {**SOURCE, "particles": 2},
        "source_prompt": {**SOURCE, "particles": 1},
        "adapt": {**QUICK, "prior_std_grid": [1.0]},
        "options": {"attempt": {"attention_width": 5}},
        "candidates": 2,
        **changes,
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def study(tmp_path_factory, tiny_t5_folder, tiny_task_folder) -> StudySpec:
    return load_study(written(tmp_path_factory.mktemp("spec"), tiny_t5_folder, tiny_task_folder))


@pytest.fixture(scope="module")
def first(study, tmp_path_factory) -> tuple[Path, list[Result]]:
    folder = tmp_path_factory.mktemp("study") / "run"
    return folder, run_study(study, folder)


def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bmtpt.train.loop.Loop.run", lambda *_, **__: pytest.fail("it trained"))


def values(rows: list[Result]) -> dict[tuple[Any, ...], float]:
    return {(row.target, row.shots, row.seed, row.method, row.metric): row.value for row in rows}


def cells_of(rows: list[Result]) -> list[Result]:
    """Return the lines of cells, without those of source stages."""
    return [row for row in rows if row.target != "sources"]


def test_every_cell_has_one_valid_line_for_every_metric(first, tiny_tasks):
    folder, results = first
    assert read_results(folder / RESULTS) == results
    results = cells_of(results)
    counts = Counter((row.target, row.shots, row.seed, row.method, row.metric) for row in results)
    metrics = metric_names(tiny_tasks["pairs"].task)
    assert counts == {("pairs", 8, seed, method, m): 1 for seed in (0, 1) for method in METHODS for m in metrics}
    for line in (folder / RESULTS).read_text().splitlines():
        assert Result.model_validate(line_values(line)).study == "tiny"
    readout = 1 + (1 + 24) * len(tiny_tasks["pairs"].task.label_words)
    prompt = 3 * 24 + 3 + 24 + readout
    numbers = {"source_ensemble": 2 * prompt, "attempt": 3 * 24 + 2 * 24 * 5 + 2 * 24 + readout}
    assert all(row.trained_parameters == numbers.get(row.method, prompt) for row in results)
    assert all(row.seconds > 0 for row in results)
    assert {row.sources for row in results if row.method in SOURCELESS} == {()}
    assert {row.sources for row in results if row.method not in SOURCELESS} == {("sentiment", "answers")}


def test_the_prompts_of_every_cell_are_kept_with_what_they_competed_with(first):
    folder, _ = first
    kinds = {"attempt": PromptMixture}
    found = {
        method: kinds.get(method, Prompt).load(prompt_folder(folder, "pairs", method, 8, 0)).card for method in METHODS
    }
    tried = {
        method: [(c["start"], c["prior_std"]) for c in card.selection["candidates"]] for method, card in found.items()
    }
    assert tried["pt"] == [("vocabulary draw 0", None), ("vocabulary draw 1", None)]
    assert tried["ptp"] == tried["attempt"] == tried["pt"]
    assert {c["noise_std"] for c in found["ptp"].selection["candidates"]} == {1.0}
    assert tried["mpt"] == [("shared prompt of the sources", None)]
    assert tried["source_ensemble"] == [("source sentiment", None), ("source answers", None)]
    assert len(found["source_ensemble"].selection["winners"]) == 2
    assert sorted(tried["spot"]) == [("source answers", None), ("source sentiment", None)]
    assert tried["source_mean"] == [("mean of source prompts", None)]
    assert tried["multitask"] == [("mean", None)]
    assert {std for _, std in tried["bmtpt"]} == {1.0, None}
    assert tried["bmtpt"][-1] == ("vocabulary draw 0", 1.0)
    assert {std for _, std in tried["bmtpt_no_prior"]} == {None}
    assert {method for method, card in found.items() if card.posterior} == {"multitask", "bmtpt", "bmtpt_no_prior"}
    assert {card.method: method for method, card in found.items()} == {method: method for method in METHODS}


def test_the_source_stages_are_learned_once_and_kept(first):
    folder, _ = first
    places = {each.name: each for each in (folder / "sources" / "seed0").iterdir()}
    (mpt,) = (name for name in places if name.startswith("mpt-"))
    shared = load_file(places.pop(mpt) / "mpt.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in shared.items()} == {
        "full": (3, 24),
        "row": (3,),
        "col": (24,),
    }
    kept = {name: Posterior.load(place) for name, place in places.items()}
    assert set(kept) == {"m1", "m2", "only-sentiment", "only-answers"}
    assert [len(kept[name].particles) for name in ("m1", "m2", "only-sentiment")] == [1, 2, 1]
    assert kept["only-sentiment"].card.sources == ("sentiment",)
    mean = Prompt.load(prompt_folder(folder, "pairs", "source_mean", 8, 0)).prompts[0]
    wanted = (kept["only-sentiment"].mean + kept["only-answers"].mean) / 2
    assert (mean - wanted).abs().max() < 0.3  # two steps of at most 0.1, and two factors' steps, lie between them


def test_a_second_call_computes_nothing(study, first, monkeypatch):
    folder, results = first
    text = (folder / RESULTS).read_text()
    no_training(monkeypatch)
    assert run_study(study, folder) == results
    assert (folder / RESULTS).read_text() == text


@pytest.mark.parametrize("cut", ["whole cells", "half a cell", "half a line"])
@pytest.mark.parametrize("prompts", ["lost", "kept"])
def test_lines_that_are_lost_are_computed_again_with_the_same_values(study, first, tmp_path, monkeypatch, cut, prompts):
    folder, results = first
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    if prompts == "lost":
        shutil.rmtree(copy / "prompts")
    lines = (copy / RESULTS).read_text().splitlines(keepends=True)
    per_cell = len(cells_of(results)) // (2 * len(METHODS))
    lost = {"whole cells": 2 * per_cell, "half a cell": 1, "half a line": 0}[cut]
    kept = "".join(lines[: len(lines) - lost])
    (copy / RESULTS).write_text(kept[:-40] if cut == "half a line" else kept)
    trained: list[str] = []
    run = run_study(study, copy, lambda event: trained.append(event["stage"]))
    assert values(run) == values(results)
    assert values(read_results(copy / RESULTS)) == values(results)
    assert len(read_results(copy / RESULTS)) == len(results)
    cells = [row for row in results if row.metric == "accuracy"]
    again = cells[-2:] if cut == "whole cells" else cells[-1:]
    assert set(trained) == {f"pairs {row.method} k=8 seed={row.seed}" for row in again if prompts == "lost"}
    no_training(monkeypatch)
    run_study(study, copy)


def test_a_study_may_grow_and_keeps_what_it_has(study, first, tmp_path, monkeypatch):
    folder, results = first
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    trained: list[str] = []
    more = study.model_copy(update={"methods": ("pt",), "seeds": (0, 1, 2)})
    found = run_study(more, copy, lambda event: trained.append(event["stage"]))
    assert set(trained) == {"pairs pt k=8 seed=2"}
    assert {row.seed for row in found} == {0, 1, 2}
    assert read_results(copy / RESULTS)[: len(results)] == results


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"limits": {"train": 10}}, "limits.train = None, and this study has 10"),
        ({"learn": {**SOURCE, "particles": 3}}, "learn.particles = 2, and this study has 3"),
        ({"candidates": 1}, "candidates = 2, and this study has 1"),
        (
            {"options": {"ptp": {"noise_std": 0.5}}},
            "in its variants ptp.options.noise_std = 1.0, and this",
        ),
        ({"name": "other"}, "name = 'tiny', and this study has 'other'"),
    ],
)
def test_a_folder_that_was_begun_with_other_settings_is_refused_by_the_first_that_differs(
    first, changes, option, tmp_path, tiny_t5_folder, tiny_task_folder, monkeypatch
):
    folder, _ = first
    before = (folder / RESULTS).read_text()
    no_training(monkeypatch)
    with pytest.raises(SettingsError, match=rf"was begun with {option}.*; choose another folder"):
        run_study(load_study(written(tmp_path, tiny_t5_folder, tiny_task_folder, **changes)), folder)
    assert (folder / RESULTS).read_text() == before


def test_a_folder_that_was_begun_before_draws_could_be_chosen_goes_on_with_balanced_ones_alone(
    study, first, tmp_path, monkeypatch
):
    shutil.copytree(first[0], copy := tmp_path / "copy")
    kept = read_sealed(copy / IDENTITY, SettingsError)
    assert kept["settings"]["adapt"].pop("draw") == "random"
    (copy / IDENTITY).write_text(json.dumps(sealed(kept)))
    no_training(monkeypatch)
    with pytest.raises(SettingsError, match=r"was begun with adapt.draw = 'balanced', and this study has 'random'"):
        run_study(study, copy)
    balanced = study.adapt.model_copy(update={"draw": "balanced"})
    assert run_study(study.model_copy(update={"adapt": balanced}), copy) == first[1]


def test_what_a_folder_was_begun_with_is_written_before_anything_is_trained(study, tmp_path, monkeypatch):
    monkeypatch.setattr("bmtpt.train.loop.Loop.run", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run_study(study, tmp_path)
    kept = json.loads((tmp_path / IDENTITY).read_text())
    assert kept["settings"]["learn"]["particles"] == 2
    assert set(kept["tasks"]) == {"sentiment", "answers", "pairs"}
    assert kept["variants"]["attempt"]["options"]["attention_width"] == 5


@pytest.mark.parametrize("file", ["pairs.yaml", "pairs/train.csv"])
def test_a_target_whose_task_file_or_rows_changed_is_another_task(study, first, tmp_path, tiny_task_folder, file):
    copy, tasks = tmp_path / "copy", tmp_path / "tasks"
    shutil.copytree(first[0], copy)
    shutil.copytree(tiny_task_folder, tasks)
    if file.endswith(".csv"):
        header, row, *rest = (tasks / file).read_text().splitlines(keepends=True)
        (tasks / file).write_text("".join([header, *rest, row]))
    else:
        values = yaml.safe_load((tasks / file).read_text())
        (tasks / file).write_text(yaml.safe_dump({**values, "text": f"so: {values['text']}"}))
    other = study.model_copy(update={"targets": (str(tasks / "pairs.yaml"),), "seeds": (9,)})
    with pytest.raises(SettingsError, match="another definition or other rows of task pairs; choose another"):
        run_study(other, copy)
    assert not [row for row in read_results(copy / RESULTS) if row.seed == 9]


def test_a_study_may_be_moved_with_its_tasks(study, first, tmp_path, tiny_t5_folder, tiny_task_folder, monkeypatch):
    folder, results = first
    shutil.copytree(folder, tmp_path / "copy")
    shutil.copytree(tiny_task_folder, tmp_path / "tasks")
    no_training(monkeypatch)
    assert run_study(load_study(written(tmp_path, tiny_t5_folder, tmp_path / "tasks")), tmp_path / "copy") == results


def test_another_source_seed_for_a_seed_that_is_done_is_refused(study, first):
    folder, _ = first
    with pytest.raises(SettingsError, match="from source seed 0, and this study asks for 7; choose another folder"):
        run_study(study.model_copy(update={"source_seeds": (7,)}), folder)


def test_lines_name_their_source_seed_the_rows_they_used_and_whether_the_prompt_moved(first):
    folder, results = first
    for row in cells_of(results):
        assert row.source_seed == (None if row.method in SOURCELESS else 0)
        assert (row.train_rows, row.shots) == (8, 8)
        assert row.selection_rows > 0
        card = json.loads((prompt_folder(folder, "pairs", row.method, 8, row.seed) / "card.json").read_text())
        assert row.moved is any(winner["step"] > 0 for winner in card["selection"]["winners"])
    assert all(row.source_seed == 0 for row in results if row.target == "sources")


def test_an_ensemble_of_free_answers_is_left_out(study, tiny_task_folder, tmp_path):
    both = tuple(str(tiny_task_folder / f"{name}.yaml") for name in ("answers", "pairs"))
    jobs = Grid(study.model_copy(update={"targets": both}), tmp_path).jobs()
    found = {(job.place.target, job.place.method) for job in jobs if not job.on_demand}
    assert found == {(name, method) for name in ("answers", "pairs") for method in METHODS} - {
        ("answers", "source_ensemble")
    }


def test_source_stage_seeds_are_cycled(study):
    cycled = study.model_copy(update={"source_seeds": (7, 9), "seeds": (0, 1, 2, 5)})
    assert [cycled.source_seed(seed) for seed in cycled.seeds] == [7, 9, 7, 9]


def test_task_files_are_looked_up_beside_the_study(tmp_path, tiny_t5_folder, tiny_task_folder, monkeypatch):
    shutil.copytree(tiny_task_folder, tmp_path / "study")
    changes = {"sources": ["sentiment.yaml", "sst2"], "targets": ["pairs.yaml"]}
    path = written(tmp_path / "study", tiny_t5_folder, tiny_task_folder, **changes)
    monkeypatch.chdir(tmp_path)
    found = load_study(path.relative_to(tmp_path))
    assert found.sources == ("study/sentiment.yaml", "sst2")


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"methods": ["pt", "bmtp"]}, ["'methods'", "did you mean 'bmtpt'"]),
        ({"learn": {"kernell": "rbf"}}, ["unknown option 'learn.kernell'", "'kernel'"]),
        ({"learn": {"bandwidth": "wide"}}, ["'learn.bandwidth'", "'median'"]),
        ({"methods": ["lora"], "options": {"lora": {"rnk": 4}}}, ["options.lora: unknown option 'rnk'", "'rank'"]),
        ({"options": {"lroa": {"rank": 4}}}, ["unknown option 'options.lroa'", "'lora'"]),
        ({"limits": {"train": 0}}, ["'limits.train'", "greater than 0"]),
        ({"limits": {"trian": 5}}, ["unknown option 'limits.trian'", "'train'"]),
        ({"seeds": []}, ["'seeds'", "at least 1"]),
        ({"seeds": [0, 0]}, ["'seeds'", "twice"]),
        ({"seeds": [-1]}, ["'seeds'", "greater than or equal to 0"]),
        ({"target": ["cb"]}, ["unknown option 'target'", "'targets'"]),
        ({"sources": ["rte"], "targets": ["rte", "cb"]}, ["rte is both a source and a target"]),
        ({"name": "two words"}, ["'name'"]),
        ({"learn": {"prompt_length": 4}}, ["source_prompt.prompt_length is 3", "learn.prompt_length 4"]),
    ],
)
def test_a_wrong_study_is_refused_in_one_sentence_that_names_the_file(
    changes, parts, tmp_path, tiny_t5_folder, tiny_task_folder
):
    path = written(tmp_path, tiny_t5_folder, tiny_task_folder, **changes)
    with pytest.raises(SettingsError) as error:
        load_study(path)
    sentence = str(error.value)
    assert sentence.startswith(str(path))
    assert all(part in sentence for part in parts), sentence
    assert "\n" not in sentence


def test_the_shipped_studies_are_valid():
    import bmtpt

    shipped = [*(Path(bmtpt.__file__).parent / "studies").glob("*.yaml")]
    shipped += (Path(bmtpt.__file__).parent.parent.parent / "studies").glob("*.yaml")
    assert any(path.stem == "quickstart" for path in shipped)
    for path in shipped:
        assert load_study(path).sources


def test_lines_of_another_study_in_the_same_file_are_left_alone(study, first, tmp_path, monkeypatch):
    folder, results = first
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    stranger = results[0].model_copy(update={"study": "other", "target": "elsewhere"})
    append_results(copy / RESULTS, [stranger])
    no_training(monkeypatch)
    assert run_study(study, copy) == results
    assert read_results(copy / RESULTS) == [*results, stranger]


@pytest.fixture(scope="module")
def tuning(tmp_path_factory, tiny_t5_folder, tiny_task_folder) -> StudySpec:
    changes = {"methods": list(TUNINGS), "seeds": [3], "options": {"lora": {"rank": 2}, "adapter": {"reduction": 8}}}
    return load_study(written(tmp_path_factory.mktemp("tuning"), tiny_t5_folder, tiny_task_folder, **changes))


def test_weight_tuning_runs_as_cells_with_lines_of_its_own_and_leaves_no_weights(tuning, tiny_tasks, tmp_path):
    results = run_study(tuning, tmp_path)
    metrics = metric_names(tiny_tasks["pairs"].task)
    assert Counter((row.method, row.metric) for row in results) == {(t, m): 1 for t in TUNINGS for m in metrics}
    trained = {row.method: row.trained_parameters for row in results}
    assert trained["lora"] == 6 * 2 * 2 * (24 + 16)  # attentions × (q and v) × rank × (in + out)
    assert trained["full"] == 28_832  # the whole tiny T5
    assert all(row.sources == () and row.seconds > 0 and row.steps == 2 for row in results)
    assert {path.name for path in tmp_path.iterdir()} == {RESULTS, IDENTITY}


def test_weight_tuning_gives_the_same_numbers_again_and_is_resumed_by_its_lines(tuning, tmp_path, monkeypatch):
    first, second = run_study(tuning, tmp_path / "first"), run_study(tuning, tmp_path / "second")
    assert values(first) == values(second)
    no_training(monkeypatch)
    assert run_study(tuning, tmp_path / "first") == first
