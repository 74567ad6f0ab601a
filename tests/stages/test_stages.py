"""The front door on the tiny T5: artifacts, folders, refusals, and what the cards say."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bmtpt.artifacts.saved import Posterior, Prompt
from bmtpt.backbone.encoder_decoder.generic import HuggingFaceEngine
from bmtpt.errors import ArtifactError, BackboneError, DataError, SettingsError, TaskError, TrainingError
from bmtpt.inference.score import make_scorer, metric_names, score_prompts
from bmtpt.methods.map_target import posterior_candidates
from bmtpt.methods.registry import get_method
from bmtpt.methods.svgd_source import SvgdSource, joined
from bmtpt.posterior.diagnostics import diagnose
from bmtpt.posterior.readout import Readout
from bmtpt.posterior.svgd import svgd_direction
from bmtpt.sealed import line_values
from bmtpt.settings import AdaptSettings, LearnSettings
from bmtpt.stages.evaluate import evaluate, result_rows
from bmtpt.stages.rows import divided, source_rows, target_rows
from bmtpt.stages.source import learn
from bmtpt.stages.target import adapt, adapt_together, fit_method
from bmtpt.tasks import few_shot
from bmtpt.tasks.tokens import tokenise
from bmtpt.types import Example

QUICK = {"steps": 3, "evaluate_every": 2, "batch_size": 2, "learning_rate": 0.1}
P, D = 3, 24
NO_READOUT = Readout(1.0, torch.zeros(2).double())


def learning(**changes: Any) -> LearnSettings:
    values = {**QUICK, "particles": 2, "prompt_length": P, "validation_rows": 4}
    return LearnSettings.model_validate(values | changes)


def adapting(**changes: Any) -> AdaptSettings:
    return AdaptSettings.model_validate({**QUICK, "prior_std_grid": (0.5, 5.0), "readout": "none", **changes})


@pytest.fixture(scope="module")
def sources(tiny_tasks) -> list[Any]:
    return [tiny_tasks["sentiment"], tiny_tasks["answers"]]


@pytest.fixture(scope="module")
def posterior(tiny_backbone, sources) -> Posterior:
    return learn(tiny_backbone, sources, learning(particles=3))


def test_a_learned_posterior_is_saved_with_a_card_that_tells_how(tiny_backbone, sources, tmp_path):
    found = learn(tiny_backbone, sources, learning(seed=4), folder=tmp_path / "deep" / "run")
    card = found.card
    assert found.particles.shape == (2, P, D)
    assert card.sources == ("sentiment", "answers")
    assert LearnSettings.model_validate(card.settings) == learning(seed=4)
    assert (card.steps, card.backbone.fingerprint) == (3, tiny_backbone.fingerprint)
    assert card.backbone.parameters == tiny_backbone.parameters
    loaded = Posterior.load(tmp_path / "deep" / "run")
    assert torch.equal(loaded.particles, found.particles)
    assert loaded.card == card


def test_without_a_folder_the_same_posterior_stays_in_memory(tiny_backbone, sources, tmp_path):
    kept = learn(tiny_backbone, sources, learning(), folder=tmp_path)
    assert torch.equal(kept.particles, learn(tiny_backbone, sources, learning()).particles)


def test_the_cards_mean_gap_is_that_of_the_saved_particles_on_held_back_rows(tiny_backbone, sources, posterior):
    gaps = []
    for source in sources:
        rows = tokenise(tiny_backbone, source.select, 64)
        drawn = [i for i in range(12) if i in _held_back(12, 4)]
        batch = rows.rows(drawn)
        prompts = torch.cat([posterior.mean[None], posterior.particles])
        nll = HuggingFaceEngine(tiny_backbone).losses(prompts, batch).mean(dim=1)
        assert posterior.card.diagnostics["mean_nll"][source.task.name] == pytest.approx(nll[0].item(), rel=1e-4)
        assert posterior.card.diagnostics["particle_nll"][source.task.name] == pytest.approx(nll[1:].tolist(), rel=1e-4)
        gaps.append((nll[0] - nll[1:].mean()).item())
    assert posterior.card.diagnostics["mean_gap"] == pytest.approx(sum(gaps) / 2, abs=1e-5)


def test_the_cards_svgd_diagnostics_are_those_of_the_last_step(tiny_backbone, sources):
    settings = learning(particles=3, schedule="constant")
    found = learn(tiny_backbone, sources, settings).card.diagnostics["svgd"]
    # The same run, stopped one step earlier: where the particles were when the last step began.
    before = learn(tiny_backbone, sources, settings.model_copy(update={"steps": settings.steps - 1})).particles
    train, held_back, _ = source_rows(tiny_backbone, sources, settings)
    stage = SvgdSource(HuggingFaceEngine(tiny_backbone), before, train, held_back, settings)
    batches = stage.draw(settings.steps - 1)
    weights = torch.tensor([1 / len(batch) for batch in batches.values() for _ in range(len(batch))])
    _, gradient = stage.engine.gradients(before, joined(batches), weights)
    _, info = svgd_direction(before, -gradient)
    wanted = diagnose(before, -gradient, info)._asdict()
    assert found.keys() == wanted.keys()
    for name in ("bandwidth", "kernel_rank", "repulsion_to_drive", "spread", "mean_rms", "stein_discrepancy"):
        assert found[name] == pytest.approx(wanted[name], rel=1e-3), name


def test_a_run_resumed_after_its_last_step_writes_the_card_of_a_run_that_was_not_stopped(
    tiny_backbone, sources, tmp_path
):
    whole = learn(tiny_backbone, sources, learning(), folder=tmp_path)
    (tmp_path / "card.json").unlink()  # killed between the last checkpoint and the artifact
    again = learn(tiny_backbone, sources, learning(), folder=tmp_path, resume=True)
    assert again.card.diagnostics == whole.card.diagnostics
    assert torch.equal(again.particles, whole.particles)


def test_a_run_is_not_resumed_on_rows_that_have_changed(tiny_backbone, sources, tmp_path):
    learn(tiny_backbone, sources, learning(), folder=tmp_path)
    first, second, *others = sources[0].train
    flipped = replace(first, label=1 - first.label, target=second.target if first.target != second.target else "true")
    changed = [
        [replace(sources[0], train=(flipped, second, *others)), sources[1]],
        [replace(sources[0], train=(second, first, *others)), sources[1]],
        [replace(sources[0], select=(flipped, *sources[0].select[1:])), sources[1]],
        [sources[1], sources[0]],
    ]
    for data in changed:
        with pytest.raises(SettingsError, match="other settings, rows or model"):
            learn(tiny_backbone, data, learning(), folder=tmp_path, resume=True)


def test_without_selection_every_labelled_row_trains_and_the_last_step_is_kept(tiny_backbone, tiny_tasks, posterior):
    target = replace(tiny_tasks["pairs"], select=())
    settings = adapting(shots=8, selection="none", prior_std=2.0, start="mean")
    prompt = adapt(posterior, target, settings, backbone=tiny_backbone)
    selection = prompt.card.selection
    assert (selection["train_rows"], selection["validation_rows"]) == (8, 0)
    assert [each["step"] for each in selection["winners"]] == [settings.steps]
    # Validation rows change nothing, not even where a method has several candidates: the first one trains alone.
    several = adapting(shots=8, selection="none")
    alone, given = (adapt(posterior, each, several, backbone=tiny_backbone) for each in (target, tiny_tasks["pairs"]))
    assert torch.equal(alone.prompts, given.prompts)
    (winner,) = alone.card.selection["candidates"]
    assert (winner["start"], winner["prior_std"]) == ("mean", 0.5)


def test_a_target_without_validation_rows_lends_a_share_of_its_shots(tiny_backbone, tiny_tasks):
    target = replace(tiny_tasks["pairs"], select=())
    rows = target_rows(tiny_backbone, target, adapting(shots=8, draw="balanced"))
    assert (len(rows.train), len(rows.select)) == (6, 2)
    drawn = few_shot(target.train, 8, seed=0, draw="balanced")
    assert Counter((*rows.train.examples, *rows.select.examples)) == Counter(drawn)
    assert {example.label for example in rows.select.examples} == {0, 1}
    almost_all = target_rows(tiny_backbone, target, adapting(shots=8, selection_share=0.99))
    assert (len(almost_all.train), len(almost_all.select)) == (1, 7)
    with pytest.raises(DataError, match=r"target pairs has 1 labelled rows .*; at least 2 texts are needed"):
        target_rows(tiny_backbone, target, adapting(shots=1))


@pytest.mark.parametrize(
    ("changes", "counted"),
    [
        ({}, (8, 12)),
        ({"validation_rows": 5}, (8, 5)),
        ({"validation_rows": 0}, (6, 2)),
        ({"validation_rows": 0, "selection_share": 0.5}, (4, 4)),
        ({"validation_rows": 0, "selection": "none"}, (8, 0)),
    ],
)
def test_result_lines_count_every_label_that_trained_or_selected(
    tiny_backbone, tiny_tasks, posterior, changes, counted
):
    data = tiny_tasks["pairs"]
    prompt = adapt(posterior, data, adapting(shots=8, **changes), backbone=tiny_backbone)
    lines = result_rows(tiny_backbone, prompt, data, evaluate(tiny_backbone, prompt, data.test), study="tiny")
    assert {(line.train_rows, line.selection_rows) for line in lines} == {counted}
    assert {line.shots for line in lines} == {8}


def test_a_target_whose_validation_part_is_left_alone_is_one_without_such_a_part(tiny_backbone, tiny_tasks, posterior):
    data = tiny_tasks["pairs"]
    left_alone = adapt(posterior, data, adapting(shots=8, validation_rows=0), backbone=tiny_backbone)
    without = adapt(posterior, replace(data, select=()), adapting(shots=8), backbone=tiny_backbone)
    assert torch.equal(left_alone.prompts, without.prompts)
    assert left_alone.card.selection == without.card.selection


def test_rows_are_divided_in_the_proportions_of_their_labels():
    examples = [Example(f"{i}", "", "", "", label=int(i >= 30)) for i in range(40)]
    first, second = divided(examples, 0.2, seed=3)
    assert sorted(e.before for e in (*first, *second)) == sorted(e.before for e in examples)
    assert [sum(e.label == c for e in second) for c in (0, 1)] == [6, 2]
    assert divided(examples, 0.2, seed=3) == (first, second) != divided(examples, 0.2, seed=4)


def test_rows_of_one_text_are_not_divided():
    examples = [Example(f"text {i // 2}", "", "", "w", label=i // 2 % 2) for i in range(40)]
    first, second = divided(examples, 0.2, seed=3)
    assert (len(first), len(second)) == (32, 8)
    assert not {example.text for example in first} & {example.text for example in second}
    assert divided(examples[:2], 0.5, seed=3) == (tuple(examples[:2]), ())


def _held_back(rows: int, count: int) -> list[int]:
    return torch.randperm(rows, generator=torch.Generator().manual_seed(0))[:count].tolist()


def test_seeds_give_different_posteriors_and_the_same_seed_the_same(tiny_backbone, sources):
    first, second = (learn(tiny_backbone, sources, learning(seed=seed)).particles for seed in (1, 2))
    assert not torch.equal(first, second)
    assert torch.equal(first, learn(tiny_backbone, sources, learning(seed=1)).particles)


def events(folder: Path) -> list[dict[str, Any]]:
    return [line_values(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def started(backbone: Any, sources: Any, **changes: Any) -> torch.Tensor:
    """Particles before they move (to rounding)."""
    return learn(backbone, sources, learning(learning_rate=1e-12, weight_decay=0, **changes)).particles


def test_particles_start_where_the_settings_say(tiny_backbone, sources):
    table = tiny_backbone.embed(torch.arange(tiny_backbone.vocab_size))
    independent = started(tiny_backbone, sources, particle_init="independent")
    assert torch.cdist(independent.flatten(0, 1), table).min(dim=1).values.max() < 1e-3
    assert not torch.allclose(independent[0], independent[1])
    shared = started(tiny_backbone, sources, particle_init="shared", init_jitter=0.01, particles=4)
    assert 0.005 < (shared - shared.mean(dim=0)).std() < 0.02
    assert torch.cdist(shared.mean(dim=0), table).min(dim=1).values.max() < 0.1


def test_particles_around_a_trained_prompt_share_the_budget_and_start_at_that_prompt(tiny_backbone, sources, tmp_path):
    settings = learning(particle_init="prompt", init_steps=4, steps=6, init_jitter=0.0)
    found = learn(tiny_backbone, sources, settings, folder=tmp_path)
    assert found.card.steps == 6
    told, first = events(tmp_path), events(tmp_path / "init")
    assert [event["step"] for event in told if event["event"] == "step"] == [0, 1]
    assert [event["step"] for event in first if event["event"] == "step"] == [0, 1, 2, 3]
    alone = learn(tiny_backbone, sources, learning(particles=1, steps=4, init_jitter=0.0))
    start = next(event for event in told if event["event"] == "validation")
    for name, values in alone.card.diagnostics["particle_nll"].items():
        assert start["particle_nll"][name] == pytest.approx(2 * values, rel=1e-5)


def test_a_start_that_does_not_fit_is_refused(tiny_backbone, sources):
    one, two = (learn(tiny_backbone, sources, learning(particles=M, steps=1)) for M in (1, 2))
    with pytest.raises(SettingsError, match="start is given and particle_init is 'shared'; set it to 'prompt'"):
        learn(tiny_backbone, sources, learning(), start=one)
    around = learning(particle_init="prompt", init_steps=1, steps=2)
    with pytest.raises(SettingsError, match=r"start holds 2 particles of .*; give 1 particle"):
        learn(tiny_backbone, sources, around, start=two)
    longer = around.model_copy(update={"prompt_length": around.prompt_length + 1})
    with pytest.raises(SettingsError, match=r"give 1 particle of \d+ rows \(prompt_length\)"):
        learn(tiny_backbone, sources, longer, start=one)


def test_a_folder_with_a_run_is_refused_unless_it_may_be_overwritten_or_resumed(tiny_backbone, sources, tmp_path):
    first = learn(tiny_backbone, sources, learning(), folder=tmp_path)
    with pytest.raises(ArtifactError, match=r"holds a run already .*resume or overwrite it"):
        learn(tiny_backbone, sources, learning(seed=1), folder=tmp_path)
    with pytest.raises(SettingsError, match="other settings"):
        learn(tiny_backbone, sources, learning(seed=1), folder=tmp_path, resume=True)
    assert torch.equal(Posterior.load(tmp_path).particles, first.particles)
    assert torch.equal(
        learn(tiny_backbone, sources, learning(), folder=tmp_path, resume=True).particles, first.particles
    )
    other = learn(tiny_backbone, sources, learning(seed=1), folder=tmp_path, overwrite=True)
    assert not torch.equal(other.particles, first.particles)
    assert torch.equal(Posterior.load(tmp_path).particles, other.particles)
    assert [event["step"] for event in events(tmp_path) if event["event"] == "step"] == [0, 1, 2]


def test_other_rows_or_sources_cannot_be_resumed(tiny_backbone, sources, tmp_path):
    learn(tiny_backbone, sources, learning(), folder=tmp_path)
    fewer = replace(sources[0], train=sources[0].train[:-1])
    for changed in ([fewer, sources[1]], sources[:1], sources[::-1]):
        with pytest.raises(SettingsError, match="other settings, rows or model"):
            learn(tiny_backbone, changed, learning(), folder=tmp_path, resume=True)


def test_a_folder_that_is_a_file_is_named(tiny_backbone, sources, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match=r"cannot write .*file.*choose another folder"):
        learn(tiny_backbone, sources, learning(), folder=tmp_path / "file" / "run")


def test_a_folder_of_the_other_kind_is_refused_before_training(
    tiny_backbone, sources, posterior, tmp_path, monkeypatch
):
    adapt(posterior, sources[0], adapting(), backbone=tiny_backbone, folder=tmp_path)
    kept = Prompt.load(tmp_path).card
    monkeypatch.setattr("bmtpt.train.loop.Loop.run", lambda *_, **__: pytest.fail("it trained"))
    with pytest.raises(ArtifactError, match="holds a prompt"):
        learn(tiny_backbone, sources, learning(), folder=tmp_path, overwrite=True)
    assert Prompt.load(tmp_path).card == kept


def test_of_several_targets_a_folder_that_is_taken_is_refused_before_training(
    tiny_backbone, tiny_tasks, posterior, tmp_path, monkeypatch
):
    targets = [tiny_tasks["sentiment"], tiny_tasks["pairs"]]
    adapt(posterior, targets[1], adapting(), backbone=tiny_backbone, folder=tmp_path / "both" / "pairs")
    monkeypatch.setattr("bmtpt.train.loop.Loop.run", lambda *_, **__: pytest.fail("it trained"))
    with pytest.raises(ArtifactError, match="pairs holds a run already"):
        adapt_together(posterior, targets, adapting(), backbone=tiny_backbone, folder=tmp_path / "both")
    assert [path.name for path in (tmp_path / "both").iterdir()] == ["pairs"]


def test_what_is_refused_leaves_the_folder_as_it_was(tiny_backbone, sources, tmp_path):
    with pytest.raises(SettingsError, match="start is given"):
        learn(
            tiny_backbone, sources, learning(), folder=tmp_path / "new", start=learn(tiny_backbone, sources, learning())
        )
    assert not (tmp_path / "new").exists()


def test_sources_must_be_named_once_and_hold_rows(tiny_backbone, sources):
    with pytest.raises(SettingsError, match="at least one source task is needed"):
        learn(tiny_backbone, [], learning())
    with pytest.raises(SettingsError, match="'sentiment' was given twice"):
        learn(tiny_backbone, [sources[0], sources[0]], learning())
    with pytest.raises(DataError, match="source sentiment has 1 training rows; at least 2 texts are needed"):
        learn(tiny_backbone, [replace(sources[0], train=sources[0].train[:1], select=())], learning())


def test_a_source_without_validation_rows_holds_some_of_its_training_rows_back(tiny_backbone, sources):
    source = replace(sources[0], select=())
    train, held_back, _ = source_rows(tiny_backbone, [source], learning(validation_rows=100))
    assert (len(train["sentiment"]), len(held_back["sentiment"])) == (19, 5)
    both = Counter((*train["sentiment"].examples, *held_back["sentiment"].examples))
    assert both == Counter(sources[0].train)  # every row is in one of the two, and the file's equal rows in as many


def test_a_learning_rate_that_is_far_too_high_is_reported_as_such(tiny_backbone, sources, tmp_path):
    wild = learning(learning_rate=1e30, optimiser="sgd", schedule="constant", steps=50)
    with pytest.raises(TrainingError, match=r"not a finite number.*learning rate of 1e\+30"):
        learn(tiny_backbone, sources, wild, folder=tmp_path)
    assert not (tmp_path / "card.json").exists()


# What a stage says although it goes on.


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_a_quiet_run_says_nothing(tiny_backbone, sources, posterior, tiny_tasks, caplog):
    caplog.clear()
    learn(tiny_backbone, sources, learning())
    adapt(posterior, tiny_tasks["pairs"], adapting(), backbone=tiny_backbone)
    assert told(caplog) == []


def test_a_worthless_mean_is_told_when_learning_ends(tiny_backbone, sources, monkeypatch, caplog):
    def worthless(stage: SvgdSource) -> dict[str, list[float]]:
        return {name: [4.7, 4.0, 4.0] for name in stage.held_back}

    monkeypatch.setattr(SvgdSource, "held_back_nll", worthless)
    learn(tiny_backbone, sources, learning())
    (warning,) = told(caplog)
    assert "lies in no mode: its held-back loss is 4.7, the particles' own is 4" in warning


@pytest.mark.parametrize("rate", [1e3, 1e9])
def test_particles_that_fly_off_are_told_though_the_loss_stays_finite(tiny_backbone, sources, caplog, rate):
    found = learn(tiny_backbone, sources, learning(learning_rate=rate))
    assert found.card.diagnostics["svgd"]["spread"] > 100
    assert [f"the likely cause is a learning rate of {rate:g}" in each for each in told(caplog)] == [True]


def test_a_batch_larger_than_the_rows_is_told_and_takes_each_row_once(tiny_backbone, sources, caplog):
    train, held_back, _ = source_rows(tiny_backbone, sources, learning(batch_size=10_000))
    assert told(caplog) == [
        f"batch_size is 10,000, and source {name} has 24 training rows: every step takes each of them once"
        for name in ("sentiment", "answers")
    ]
    stage = SvgdSource(tiny_backbone.engine, torch.ones(1, P, D), train, held_back, learning(batch_size=10_000))
    assert [len(batch) for batch in stage.draw(1).values()] == [24, 24]
    texts = [tuple(ids.tolist()) for ids in stage.draw(1)["answers"].inputs]
    assert Counter(texts) == Counter(tuple(ids.tolist()) for ids in train["answers"].batch.inputs)


def test_a_source_without_label_words_is_told_to_keep_its_tokens(tiny_backbone, sources, caplog):
    found = learn(tiny_backbone, sources, learning(likelihood="labels"))
    assert told(caplog) == ["source answers has no label words, so its likelihood stays that of its answers' tokens"]
    rows = tokenise(tiny_backbone, [sources[0].select[i] for i in sorted(_held_back(12, 4))], 64)
    scores = score_prompts(
        tiny_backbone.engine, found.mean[None], rows, make_scorer(tiny_backbone, sources[0].task), [NO_READOUT]
    )
    assert found.card.diagnostics["mean_nll"]["sentiment"] == pytest.approx(scores[0].nll, rel=1e-5)


def test_what_a_readout_cannot_be_learned_for_is_refused_in_a_sentence(tiny_backbone, sources, tiny_tasks):
    readout = learning(source_objective="readout")
    with pytest.raises(SettingsError, match="source answers has no label words, which source_objective 'readout'"):
        learn(tiny_backbone, sources, readout)
    for few, held_back in ((replace(sources[0], train=sources[0].train[:1]), 4), (sources[0], 1)):
        settings = readout.model_copy(update={"validation_rows": held_back})
        with pytest.raises(DataError, match=r"source sentiment has \d+ rows .* needs 2 of each"):
            learn(tiny_backbone, [few], settings)


def test_a_source_stage_for_readouts_that_is_resumed_ends_in_the_same_bits(tiny_backbone, tiny_tasks, tmp_path):
    data, settings = [tiny_tasks["sentiment"], tiny_tasks["pairs"]], learning(source_objective="readout", batch_size=6)

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn(tiny_backbone, data, settings, folder=tmp_path, listener=stop)
    resumed = learn(tiny_backbone, data, settings, folder=tmp_path, resume=True)
    whole = learn(tiny_backbone, data, settings)
    assert torch.equal(resumed.particles, whole.particles)
    assert resumed.card.diagnostics["mean_nll"] == whole.card.diagnostics["mean_nll"]


def test_a_target_that_was_a_source_is_told(tiny_backbone, sources, posterior, caplog):
    adapt(posterior, sources[0], adapting(), backbone=tiny_backbone)
    assert told(caplog) == [
        "target sentiment was a source task, so its scores do not tell how well a new task is learned"
    ]


# The target stage.


def test_the_chosen_prompt_is_the_candidate_that_validates_best(tiny_backbone, tiny_tasks, posterior):
    data = tiny_tasks["pairs"]
    prompt = adapt(posterior, data, adapting(steps=4), backbone=tiny_backbone)
    selection = prompt.card.selection
    *learned, vocabulary = [(c["start"], c["prior_std"]) for c in selection["candidates"]]
    assert learned == [
        (start, std) for start in dict.fromkeys(start for start, _ in learned) for std in (0.5, 5.0, None)
    ]
    assert vocabulary == ("vocabulary draw 0", 0.5)
    (winner,) = selection["winners"]
    assert winner["best"] == max(c["best"] for c in selection["candidates"])
    rows = tokenise(tiny_backbone, data.select, 64)
    scorer = make_scorer(tiny_backbone, data.task)
    (found,) = score_prompts(HuggingFaceEngine(tiny_backbone), prompt.prompts, rows, scorer)
    assert (found.score, -found.nll) == (winner["best"][0], pytest.approx(winner["best"][1], rel=1e-4))
    assert prompt.card.trained_parameters == P * D + P + D
    assert prompt.card.posterior == posterior.weights_sha256
    assert prompt.card.sources == posterior.card.sources
    assert prompt.card.method == "bmtpt"


def test_the_best_particle_is_the_one_that_fits_the_training_rows(tiny_backbone, tiny_tasks, posterior):
    data = tiny_tasks["pairs"]
    losses = HuggingFaceEngine(tiny_backbone).losses(posterior.particles, tokenise(tiny_backbone, data.train, 64).batch)
    best = int(losses.mean(dim=1).argmin())
    prompt = adapt(posterior, data, adapting(start="best", prior="none"), backbone=tiny_backbone)
    assert prompt.card.selection["winners"][0]["start"] == f"particle {best}"


def test_a_large_target_is_not_read_whole_to_find_the_best_particle(tiny_backbone, tiny_tasks, posterior, monkeypatch):
    monkeypatch.setattr("bmtpt.methods.map_target.JUDGED_ROWS", 5)
    engine = HuggingFaceEngine(tiny_backbone)
    read: list[int] = []

    class Counting:
        def losses(self, prompts: Any, batch: Any) -> Any:
            read.append(len(batch))
            return engine.losses(prompts, batch)

    rows = {"pairs": target_rows(tiny_backbone, tiny_tasks["pairs"], adapting())}
    setup = SimpleNamespace(particles=posterior.particles, engine=Counting(), rows=rows)
    posterior_candidates(SimpleNamespace(settings=adapting(start="best"), **vars(setup)))
    assert read == [5]
    for changes in ({"start": "mean"}, {"start": "particles"}, {"ensemble": True}):
        posterior_candidates(SimpleNamespace(settings=adapting(**changes), **vars(setup)))
    assert read == [5]


def test_an_ensemble_keeps_one_prompt_for_every_particle(tiny_backbone, tiny_tasks, posterior, tmp_path):
    settings = adapting(ensemble=True, learning_rate=1e-12, factor_learning_rate=1e-12, weight_decay=0)
    prompt = adapt(posterior, tiny_tasks["pairs"], settings, backbone=tiny_backbone, folder=tmp_path)
    assert torch.allclose(prompt.prompts, posterior.particles, atol=1e-4)
    assert [each["start"] for each in prompt.card.selection["winners"]] == [f"particle {m}" for m in range(3)]
    assert torch.equal(Prompt.load(tmp_path).prompts, prompt.prompts)
    with pytest.raises(SettingsError, match="answers has no label words"):
        adapt(posterior, tiny_tasks["answers"], settings, backbone=tiny_backbone)


def test_shots_are_drawn_by_the_seed_and_too_many_are_refused(tiny_backbone, tiny_tasks, posterior):
    data = tiny_tasks["pairs"]
    prompt = adapt(posterior, data, adapting(shots=6), backbone=tiny_backbone)
    assert (prompt.card.selection["train_rows"], prompt.card.selection["validation_rows"]) == (6, 12)
    other = adapt(posterior, data, adapting(shots=6, seed=1), backbone=tiny_backbone)
    assert not torch.equal(prompt.prompts, other.prompts)
    with pytest.raises(DataError, match="cannot draw 25 examples from 24"):
        adapt(posterior, data, adapting(shots=25), backbone=tiny_backbone)


def test_targets_adapted_together_differ_by_a_rank_one_factor(tiny_backbone, tiny_tasks, posterior, tmp_path):
    targets = [tiny_tasks["pairs"], tiny_tasks["sentiment"]]
    settings = adapting(steps=6, factor_learning_rate=0.1, batch_size=6)
    found = adapt_together(posterior, targets, settings, backbone=tiny_backbone, folder=tmp_path)
    first, second = found["pairs"].prompts[0], found["sentiment"].prompts[0]
    singular = torch.linalg.svdvals((first / second).double())
    assert singular[1] < 1e-4 * singular[0]
    assert found["pairs"].card.selection["winners"][0]["step"] > 0 or torch.equal(first, second)
    for name, prompt in found.items():
        assert torch.equal(Prompt.load(tmp_path / name).prompts, prompt.prompts)
        assert prompt.card.trained_parameters == P * D // 2 + P + D
        assert prompt.card.task == name


def test_another_model_is_refused(tiny_backbone, tiny_tasks, posterior):
    other = replace(tiny_backbone, fingerprint="0" * 64, name="other")
    prompt = adapt(posterior, tiny_tasks["pairs"], adapting(), backbone=tiny_backbone)
    with pytest.raises(BackboneError, match="'other'"):
        adapt(posterior, tiny_tasks["pairs"], adapting(), backbone=other)
    with pytest.raises(BackboneError, match="'other'"):
        evaluate(other, prompt, tiny_tasks["pairs"].test)


def test_an_evaluation_cuts_texts_as_the_training_did(tiny_backbone, tiny_tasks, posterior):
    data = tiny_tasks["pairs"]
    prompt = adapt(posterior, data, adapting(max_length=9), backbone=tiny_backbone)
    assert prompt.card.selection["texts_cut"] > 0
    as_trained = evaluate(tiny_backbone, prompt, data.test).probabilities
    assert torch.equal(as_trained, evaluate(tiny_backbone, prompt, data.test, max_length=9).probabilities)
    assert not torch.allclose(as_trained, evaluate(tiny_backbone, prompt, data.test, max_length=64).probabilities)


def test_an_evaluation_needs_rows_and_may_take_another_task_file(tiny_backbone, tiny_tasks, posterior):
    data = tiny_tasks["sentiment"]
    prompt = adapt(posterior, data, adapting(), backbone=tiny_backbone)
    with pytest.raises(DataError, match="sentiment has no rows"):
        evaluate(tiny_backbone, prompt, [])
    only_f1 = data.task.model_copy(update={"metrics": ("f1",), "primary": "f1"})
    assert set(evaluate(tiny_backbone, prompt, data.test, task=only_f1).metrics) == {"f1"}
    generated = evaluate(tiny_backbone, prompt, data.test, scorer="generate")
    assert len(generated.predictions) == len(data.test)


def test_every_metric_of_an_evaluation_becomes_one_result_line(tiny_backbone, tiny_tasks, posterior):
    data = tiny_tasks["sentiment"]
    prompt = adapt(posterior, data, adapting(shots=8, seed=2), backbone=tiny_backbone)
    evaluation = evaluate(tiny_backbone, prompt, data.test)
    rows = {row.metric: row for row in result_rows(tiny_backbone, prompt, data, evaluation, study="tiny")}
    assert set(rows) == metric_names(data.task) == {"accuracy", "f1", "ece", "nll"}
    assert [row.metric for row in rows.values() if row.primary] == ["accuracy"]
    assert rows["accuracy"].value == evaluation.metrics["accuracy"]
    assert rows["accuracy"].constant_answer == evaluation.constant_answer
    assert rows["nll"].constant_answer is None
    assert (rows["ece"].shots, rows["ece"].seed, rows["ece"].data) == (8, 2, data.status)
    assert rows["f1"].trained_share == pytest.approx((P * D + P + D) / tiny_backbone.parameters)


def test_answers_that_the_tokenizer_cannot_write_are_counted_in_one_warning(tiny_backbone, tiny_tasks, caplog):
    data = tiny_tasks["answers"]
    target_rows(tiny_backbone, data, adapting())
    assert not caplog.text
    odd = [
        replace(each, target=f"unheard {each.target}", references=(f"unheard {each.target}",)) for each in data.train
    ]
    different = len({each.target for each in odd})
    target_rows(tiny_backbone, replace(data, train=tuple(odd)), adapting())
    (record,) = caplog.records
    assert f"cannot write {different} of {different} answers, such as 'unheard " in record.getMessage()


def test_label_words_with_unknown_tokens_are_named_in_one_warning(tiny_backbone, tiny_tasks, caplog):
    data = tiny_tasks["sentiment"]
    target_rows(tiny_backbone, data, adapting())
    assert not caplog.text
    words = data.task.model_copy(update={"labels": {"0": "negative", "1": "unheard"}})
    target_rows(tiny_backbone, replace(data, task=words), adapting())
    (record,) = caplog.records
    assert "1 of 2 label words, such as 'unheard', have parts for which the tokenizer" in record.getMessage()


def test_label_words_that_differ_much_in_length_are_warned_about(tiny_backbone, tiny_tasks, caplog):
    data = tiny_tasks["sentiment"]

    def warnings_of(words: dict[str, str], **settings: Any) -> str:
        caplog.clear()
        task = data.task.model_copy(update={"labels": words})
        train = tuple(replace(each, target=task.label_words[each.label or 0]) for each in data.train)
        target_rows(tiny_backbone, replace(data, task=task, train=train), adapting(**settings))
        return caplog.text

    assert not warnings_of({"0": "bad", "1": "very very good"})
    long = {"0": "bad", "1": "not very very bad"}
    assert "task sentiment: label word 'bad' has 2 tokens and 'not very very bad' 5" in warnings_of(long)
    assert not warnings_of(long, normalise="pmi")


def test_a_source_whose_label_words_are_the_same_tokens_is_refused(tiny_backbone, sources):
    task = sources[0].task.model_copy(update={"labels": {"0": "unheard", "1": "unseen"}})
    with pytest.raises(TaskError, match="'unheard' and 'unseen' as the same tokens"):
        learn(tiny_backbone, [replace(sources[0], task=task)], learning())


def test_the_listener_hears_every_step_of_both_stages(tiny_backbone, sources, tiny_tasks):
    heard: list[dict[str, Any]] = []
    found = learn(tiny_backbone, sources, learning(), listener=heard.append)
    adapt(found, tiny_tasks["pairs"], adapting(), backbone=tiny_backbone, listener=heard.append)
    assert [event["step"] for event in heard if event["event"] == "step"] == [0, 1, 2] * 2
    assert all(event["steps"] == 3 for event in heard)
    json.dumps(heard, allow_nan=False)


def test_the_package_exports_what_it_says():
    import bmtpt

    for name in bmtpt.__all__:
        assert getattr(bmtpt, name) is not None
    with pytest.raises(AttributeError, match="nothing_such"):
        bmtpt.nothing_such  # noqa: B018


def test_folders_may_be_relative(tiny_backbone, sources, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    learn(tiny_backbone, sources[:1], learning(), folder=Path("here"))
    assert Posterior.load(tmp_path / "here").card.sources == ("sentiment",)


def test_several_targets_are_refused_by_a_method_that_trains_one_at_a_time(tiny_backbone, tiny_tasks):
    both = [tiny_tasks["pairs"], tiny_tasks["sentiment"]]
    with pytest.raises(SettingsError, match="method 'pt' cannot train several targets in one run"):
        fit_method(get_method("pt"), tiny_backbone, both)
