"""A sweep searches on the tuning targets alone, a kill does not change its trials, and its best is a config file."""

from __future__ import annotations

from statistics import fmean

import pytest

from bmtpt.errors import ArtifactError, SettingsError, TrainingError
from bmtpt.report.sweep_page import SweepTrial, best_of, write_sweep_page
from bmtpt.results import read_results
from bmtpt.settings import AdaptSettings, LearnSettings, resolve, validated
from bmtpt.studies import StudySpec
from bmtpt.studies.load import checked
from bmtpt.studies.run import RESULTS
from bmtpt.studies.search import JOURNAL, Search
from bmtpt.studies.space import with_settings
from bmtpt.studies.sweep import sweep
from bmtpt.train.loop import Loop

pytest.importorskip("optuna")

SPACE = {
    "adapt.learning_rate": {"log": [0.01, 1.0]},
    "adapt.prior": {"choice": ["mean", "mixture", "none"]},
    "adapt.steps": {"uniform": [1, 3]},
}


@pytest.fixture(scope="module")
def swept(tiny_study, tiny_task_folder):
    """Makes a study with a sweep whose tuning target is `pairs`."""

    def make(sweep=SPACE, **changes):
        tasks = {name: str(tiny_task_folder / f"{name}.yaml") for name in ("answers", "sentiment", "pairs")}
        roles = {"sources": [tasks["answers"]], "targets": [tasks["sentiment"]], "tuning": [tasks["pairs"]]}
        return tiny_study(**{"methods": ["pt", "bmtpt"], "seeds": [0, 1], **roles, "sweep": sweep, **changes})

    return make


@pytest.fixture(scope="module")
def whole(swept, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, sweep(swept(), folder, trials=4)


def test_a_trial_is_a_variant_that_is_scored_on_the_tuning_targets_alone(whole, swept):
    folder, trials = whole
    rows = [row for row in read_results(folder / RESULTS) if row.target != "sources"]
    assert {(row.study, row.method, row.target) for row in rows} == {("tiny-tuning", "bmtpt", "pairs")}
    assert [trial.number for trial in trials] == [0, 1, 2, 3]
    assert trials[0].settings == {"adapt.learning_rate": 0.1, "adapt.prior": "mean", "adapt.steps": 2}
    assert len({row.variant for row in rows}) == len({tuple(trial.settings.values()) for trial in trials}) > 1
    for trial in trials:
        values = trial.settings.values()
        name = "learning_rate={:g},prior={},steps={}".format(*values)
        assert trial.scores == tuple(row.value for row in rows if (row.variant, row.metric) == (name, "nll"))
        assert trial.complete
        assert trial.score == fmean(trial.scores)


def test_one_source_stage_serves_all_trials_of_a_sweep_of_the_target_stage(whole):
    folder, _ = whole
    assert [path.name for path in (folder / "sources").iterdir()] == ["seed0"]


def test_the_best_settings_are_files_that_learn_and_adapt_take(whole, swept):
    folder, trials = whole
    best = best_of(trials, "nll")
    assert best.score == min(trial.score for trial in trials)
    wanted = with_settings(swept(), best.settings)
    assert resolve(AdaptSettings, folder / "adapt.yaml") == wanted.adapt
    assert resolve(LearnSettings, folder / "learn.yaml") == wanted.learn


def test_a_sweep_that_is_interrupted_goes_on_to_the_trials_that_it_would_have_had(whole, swept, tmp_path, monkeypatch):
    runs, run = [], Loop.run

    def interrupted(loop, **rest):
        runs.append(loop)
        if len(runs) == 5:  # a source stage, two cells of the first trial, and the second cell of the second
            raise KeyboardInterrupt
        return run(loop, **rest)

    monkeypatch.setattr(Loop, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweep(swept(), tmp_path, trials=4)
    with (tmp_path / JOURNAL).open("a") as file:
        file.write('{"op_code": 8, "wor')  # as after a power cut
    assert sweep(swept(), tmp_path, trials=4) == whole[1]
    assert len(runs) == 10  # the interrupted cell was run again, and nothing else


def test_a_sweep_may_grow_and_no_other_one_may_go_on_in_its_folder(swept, tmp_path, monkeypatch):
    space = {"adapt.steps": {"choice": [1, 2]}}
    first = sweep(swept(space, seeds=[0]), tmp_path, trials=1)
    more = sweep(swept(space, seeds=[0]), tmp_path, trials=2)
    assert more[:1] == first
    monkeypatch.setattr(Loop, "run", lambda *_, **__: pytest.fail("it trained"))
    for study, options, name in [
        (swept({"adapt.steps": {"choice": [1, 3]}}, seeds=[0]), {}, "sweep = "),
        (swept(space), {}, r"seeds = \[0\]"),
        (swept(space, seeds=[0]), {"seed": 1}, "sweep seed = 0"),
        (swept(space, seeds=[0]), {"metric": "accuracy"}, "metric = 'nll', and this sweep has 'accuracy'"),
    ]:
        with pytest.raises(SettingsError, match=f"was begun with {name}"):
            sweep(study, tmp_path, trials=3, **options)
    (tmp_path / JOURNAL).write_text("no journal\n")
    with pytest.raises(ArtifactError, match="is not the journal of a sweep"):
        sweep(swept(space, seeds=[0]), tmp_path, trials=3)


def test_a_trial_that_fails_is_noted_with_its_reason_and_the_sweep_goes_on(swept, tmp_path):
    space = {"adapt.learning_rate": {"choice": [0.1, 1e30]}, "adapt.warmup_steps": {"uniform": [0, 1]}}
    study = swept(space, seeds=[0])
    found = sweep(study, tmp_path, trials=6)
    assert [trial.complete for trial in found] == [trial.settings["adapt.learning_rate"] == 0.1 for trial in found]
    assert {trial.complete for trial in found} == {True, False}
    assert all("is not a finite number" in trial.why for trial in found if not trial.complete)
    with pytest.raises(TrainingError, match="none of 1 trials was completed; the first: the "):
        sweep(swept({"adapt.learning_rate": {"choice": [1e30, 1e29]}}, seeds=[0]), tmp_path / "all", trials=1)


@pytest.mark.parametrize(
    ("space", "parts"),
    [
        ({"adapt.learning_rat": {"log": [0.1, 1]}}, ["unknown option 'adapt.learning_rat'", "'learning_rate'"]),
        ({"adpt.learning_rate": {"log": [0.1, 1]}}, ["no option 'adpt.learning_rate' to sweep", "'adapt'"]),
        ({"adapt": {"log": [0.1, 1]}}, ["no option 'adapt' to sweep", "as in learn.steps"]),
        ({"adapt.learning_rate": {"log": [-1, 1]}}, ["adapt.learning_rate", "logarithms need numbers above 0"]),
        ({"adapt.learning_rate": {"uniform": [0, 1]}}, ["'adapt.learning_rate' cannot be 0", "greater than 0"]),
        ({"adapt.learning_rate": {"uniform": [2, 1]}}, ["lowest number must be less than the highest"]),
        ({"adapt.learning_rate": {"lg": [0.1, 1]}}, ["sweep: adapt.learning_rate: unknown option 'lg'", "'log'"]),
        ({"adapt.learning_rate": [0.1, 1]}, ["'adapt.learning_rate' needs a range"]),
        ({"adapt.learning_rate": {}}, ["give one of uniform, log and choice"]),
        ({"adapt.steps": {"uniform": [1.5, 3]}}, ["'adapt.steps' cannot be 1.5"]),
        ({"adapt.decompose": {"uniform": [0, 1]}}, ["'adapt.decompose' is true or false"]),
        ({"adapt.prior": {"choice": ["mean", "mixtur"]}}, ["'adapt.prior' cannot be 'mixtur'", "'mixture'"]),
        ({"adapt.shots": {"choice": [4, 8]}}, ["'adapt.shots' is set by the study itself"]),
        ({"options.lora.rnk": {"uniform": [1, 8]}}, ["options.lora: unknown option 'rnk'", "'rank'"]),
    ],
)
def test_a_wrong_sweep_is_refused_in_one_sentence_that_names_the_setting(space, parts, swept):
    values = swept({}).model_dump(mode="json") | {"sweep": space}
    with pytest.raises(SettingsError) as error:
        checked(validated(StudySpec, values, "file.yaml"), "file.yaml")
    sentence = str(error.value)
    assert all(part in sentence for part in parts), sentence


def test_a_sweep_needs_ranges_tuning_targets_and_a_score_that_these_have(swept, tmp_path):
    for study, options, sentence in [
        (swept({}), {}, "study tiny has nothing to sweep"),
        (swept(tuning=[]), {}, "study tiny names no targets for tuning"),
        (swept(), {"metric": "acuracy"}, "target pairs has no score 'acuracy'; did you mean 'accuracy'?"),
        (swept(), {"metric": "ece"}, "target pairs has no score 'ece'"),
        (swept(), {"method": "bmtp"}, "there is no method 'bmtp'"),
    ]:
        with pytest.raises(SettingsError, match=sentence):
            sweep(study, tmp_path / "new", trials=1, **options)
    assert not (tmp_path / "new").exists()


def done(search, scores):
    trial = search.next_trial()
    search.is_worse(trial, scores)
    search.end(trial, scores, complete=True)


def search(swept, folder, seed=0):
    study = swept(seeds=[0, 1, 2, 3])
    return Search(study, study.sweep, "nll", seed, folder)


def test_what_is_drawn_is_short_in_its_range_and_decided_by_the_seed_and_the_trials_before(swept, tmp_path):
    drawn = {}
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        (tmp_path / name).mkdir()
        found = search(swept, tmp_path / name, seed)
        for number in range(14):  # beyond the ten that are drawn at random
            done(found, [float(number % 3)])
        drawn[name] = [trial.settings for trial in found.trials()]
    assert drawn["one"] == drawn["same"]
    assert drawn["one"][0] == drawn["other"][0]
    assert drawn["one"][1:] != drawn["other"][1:]
    for settings in drawn["one"]:
        rate = settings["adapt.learning_rate"]
        assert 0.01 <= rate <= 1.0
        assert rate == float(f"{rate:.3g}")
        assert settings["adapt.steps"] in (1, 2, 3)
        assert settings["adapt.prior"] in ("mean", "mixture", "none")


def test_a_trial_is_stopped_when_it_is_worse_than_the_best_on_the_same_cells(swept, tmp_path):
    """Four losses of four are 1/16 by chance, less than a tenth; of three they are 1/8."""
    found = search(swept, tmp_path)
    done(found, [1.0, 5.0, 2.0, 9.0])
    trial = found.next_trial()
    assert not found.is_worse(trial, [1.1, 5.1, 2.1])
    assert found.is_worse(trial, [1.1, 5.1, 2.1, 9.4])
    found.end(trial, [1.1, 5.1, 2.1, 9.4], complete=False)
    better = found.next_trial()
    assert not found.is_worse(better, [0.9, 4.0, 2.1, 9.1])
    assert [trial.state for trial in found.trials()] == ["complete", "stopped after 4"]
    assert best_of(found.trials(), "nll").number == 0


def test_the_page_shows_every_trial_next_to_its_figure(tmp_path):
    settings = {"adapt.learning_rate": 0.1, "adapt.prior": "mean"}
    trials = [
        SweepTrial(0, settings, (1.0, 2.0), True),
        SweepTrial(1, settings | {"adapt.prior": "<b>"}, (3.0,), False),
        SweepTrial(2, settings | {"adapt.learning_rate": 1.0}, (), False, "it diverged"),
        SweepTrial(3, settings | {"adapt.learning_rate": 0.5}, (1.0, 1.0), True),
    ]
    page = write_sweep_page(tmp_path / "page.html", "tiny", trials, "nll").read_text()
    assert page.count("<svg") == 2
    assert page.count("<tr>") == 1 + len(trials)
    assert "Best: trial 3 with a mean nll of 1" in page
    assert "it diverged" in page
    assert "<b>" not in page
    places = [page.index(f'<tr><th scope="row">{number}</th>') for number in (3, 0, 1)]
    assert places == sorted(places)
    assert write_sweep_page(tmp_path / "again.html", "tiny", trials, "nll").read_text() == page
