"""Jobs of a study: side by side, one after the other, and after a kill, the lines are the same."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from itertools import groupby

import pytest
import torch
import yaml

from bmtpt.artifacts.saved import Posterior, Prompt
from bmtpt.backbone import Backbone
from bmtpt.errors import ArtifactError, DataError, SettingsError
from bmtpt.methods.registry import all_methods, get_method
from bmtpt.methods.target import TargetStage
from bmtpt.results import append_results, read_results
from bmtpt.settings import AdaptSettings
from bmtpt.stages.source import learn
from bmtpt.studies import run_study
from bmtpt.studies.grid import Grid
from bmtpt.studies.jobs import done_jobs, in_order, place_of, put_in_order, stages_first, to_do, whole_lines
from bmtpt.studies.run import FAILED, RESULTS, IncompleteStudyError, prompt_folder
from bmtpt.studies.sources import Sources, Stage, stages
from bmtpt.tasks import load_data, load_task
from bmtpt.train.loop import Loop

INSTALLED = [name for name, each in all_methods().items() if each.package is None or find_spec(each.package)]


def without_seconds(rows):
    return [row.model_copy(update={"seconds": 0.0, "predict_seconds": None}) for row in rows]


@pytest.fixture(scope="module")
def alone(tiny_study, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    return folder, run_study(tiny_study(), folder)


# The plan


def test_a_variant_of_the_source_stage_has_stages_and_lines_of_its_own(alone, tiny_study):
    folder, results = alone
    assert len(list((folder / "sources").iterdir())) == 2
    assert (folder / "sources" / "seed0" / "m2").is_dir()
    spread = {(row.method, row.variant, row.target): row for row in results if row.metric == "spread"}
    assert set(spread) == {("posterior", f"particles={M}", "sources") for M in (1, 2)}
    assert spread["posterior", "particles=1", "sources"].value == 0
    particles = Posterior.load(folder / "sources" / "seed0" / "m2").particles
    rms = (particles - particles.mean(0)).square().mean().sqrt()
    assert spread["posterior", "particles=2", "sources"].value == pytest.approx(float(rms))
    assert not any(row.primary for row in spread.values())


def test_lines_name_their_variant_and_its_prompt_is_kept_apart(alone):
    folder, results = alone
    cells = {(row.method, row.variant): row.settings_hash for row in results if row.target == "pairs"}
    assert set(cells) == {("pt", ""), ("bmtpt", "particles=1"), ("bmtpt", "particles=2")}
    for method, variant in cells:
        assert (prompt_folder(folder, "pairs", method, 8, 0, variant) / "card.json").is_file()
    assert cells["bmtpt", "particles=2"] == cells["pt", ""] != cells["bmtpt", "particles=1"]


def test_variants_of_the_target_stage_share_the_source_stage(tiny_study, tmp_path):
    study = tiny_study(variants={"bmtpt": [{"adapt.prior_std": [1.0, 2.0]}]})
    jobs = Grid(study, tmp_path).jobs()
    assert [job.work[0] for job in jobs] == ["cell", "stage", "cell", "cell"]


def test_the_jobs_of_a_target_on_one_backbone_stand_together(tiny_study, tmp_path):
    variants = {"all": [{"backbone": ["one", "other"]}]}
    jobs = Grid(tiny_study(methods=["pt", "ptp"], variants=variants), tmp_path).jobs()
    assert [(job.place.method, job.place.variant) for job in jobs] == [
        *(("pt", "backbone=one"), ("ptp", "backbone=one")),
        *(("pt", "backbone=other"), ("ptp", "backbone=other")),
    ]


def test_variants_of_mpts_own_settings_have_source_stages_of_their_own(tiny_study, tmp_path):
    run_study(
        tiny_study(methods=["mpt"], variants={"mpt": [{"options.mpt.distillation_weight": [0.0, 0.9]}]}), tmp_path
    )
    assert len(list((tmp_path / "sources" / "seed0").glob("mpt-*/mpt.safetensors"))) == 2


def starting(study, particle_init):
    return study.model_copy(
        update={"learn": study.learn.model_copy(update={"particle_init": particle_init, "init_steps": 1})}
    )


def test_variants_that_differ_in_svgd_only_share_the_prompt_that_they_start_around(tiny_study, tmp_path):
    grid = {"learn.kernel": ["rbf", "linear"], "learn.particles": [1, 2]}
    study = starting(tiny_study(methods=["bmtpt"], variants={"bmtpt": [grid]}), "prompt")
    run_study(study, tmp_path)
    (start,) = (tmp_path / "sources").glob("start-*")
    assert not list((tmp_path / "sources").glob("seed*/*/init"))
    learn(
        Backbone.from_pretrained(study.backbone),
        [load_data(load_task(name), study.data, limits=study.limits) for name in study.sources],
        study.learn.model_copy(update={"particles": 2}),
        folder=tmp_path / "alone",
    )
    found = {start: tmp_path / "alone" / "init", tmp_path / "sources" / "seed0" / "m2": tmp_path / "alone"}
    for kept, expected in found.items():  # a study runs on one thread, and sums depend on the number of threads
        torch.testing.assert_close(Posterior.load(kept).particles, Posterior.load(expected).particles)


@pytest.mark.parametrize("start", ["shared", "prompt"])
@pytest.mark.parametrize("method", INSTALLED)
def test_a_method_declares_every_source_stage_that_it_learns(method, start, tiny_study, tmp_path, monkeypatch):
    learned = []
    kept, kept_own = Sources._kept, Sources.own

    def noted(sources, folder, *rest):
        learned.append(folder.name.partition("-")[0] if folder.name.startswith("start") else folder.name)
        return kept(sources, folder, *rest)

    def noted_own(sources, name):
        learned.append(f"own-{name}")
        return kept_own(sources, name)

    monkeypatch.setattr(Sources, "_kept", noted)
    monkeypatch.setattr(Sources, "own", noted_own)
    study = starting(tiny_study(methods=[method], variants={}), start)
    run_study(study, tmp_path)
    folders = {Stage("posterior", M): f"m{M}" for M in (1, 2)} | {Stage("start"): "start"}
    folders |= {Stage("prompt", name): f"only-{name}" for name in ("sentiment", "answers")}
    declared = [
        folders.get(stage, "-".join(map(str, stage)))
        for stage in stages(get_method(method), study, ["sentiment", "answers"])
    ]
    # The stages come first; the cell then finds what it asks for.
    assert list(dict.fromkeys(learned)) == declared


def test_a_stage_is_done_only_when_a_job_that_is_left_needs_it(tiny_study, tmp_path):
    jobs = Grid(tiny_study(), tmp_path).jobs()
    stage_of_1, cell_of_1 = (job for job in jobs if "particles=1" in job.place.variant)
    assert to_do(jobs, []) == jobs
    assert to_do(jobs, set(jobs) - {cell_of_1}) == [stage_of_1, cell_of_1]
    assert to_do(jobs, [job for job in jobs if job.work[0] == "cell"]) == []


def test_results_are_put_in_the_order_of_the_jobs(alone, tiny_study):
    folder, results = alone
    assert in_order(results[::-1], Grid(tiny_study(), folder).jobs())[0].method == results[0].method


# Several processes


def test_two_processes_find_the_lines_of_one(alone, tiny_study, tmp_path):
    _, results = alone
    heard = []
    found = run_study(tiny_study(), tmp_path, heard.append, processes=2)
    assert without_seconds(found) == without_seconds(results)
    assert read_results(tmp_path / RESULTS) == found
    assert [event["step"] for event in heard] == [0, 1, 2, 3, 4, 5]
    assert children() == []


def test_a_seeds_source_stages_come_before_its_cells_and_its_cells_before_the_next_seed(tiny_study, tmp_path):
    seeds = {"seeds": [0, 1, 2], "source_seeds": [0, 1]}
    study = starting(tiny_study(methods=["pt", "mpt", "bmtpt"], variants={}, **seeds), "prompt")
    jobs = stages_first(Grid(study, tmp_path).jobs())
    found = [next(group) for _, group in groupby(jobs, lambda job: (job.work[0], job.place.seed))]
    assert [(job.work[0], job.place.seed) for job in found] == [
        *(("stage", 0), ("cell", 0)),
        *(("stage", 1), ("cell", 1)),
        ("cell", 2),
    ]
    assert all(jobs.index(need) < jobs.index(job) for job in jobs for need in job.needs)


def test_the_file_is_sorted_as_the_plan_goes_and_lines_of_others_stay(alone, tiny_study, tmp_path):
    folder, results = alone
    stranger = results[0].model_copy(update={"study": "other"})
    append_results(tmp_path / RESULTS, [results[-1], stranger, *reversed(results[:-1])])
    put_in_order(tmp_path / RESULTS, in_order(results[::-1], Grid(tiny_study(), folder).jobs()))
    kept = read_results(tmp_path / RESULTS)
    assert kept.pop(1) == stranger
    assert [place_of(row) for row in kept] == [place_of(row) for row in results]


def children(of: int | None = None) -> list[int]:
    """Return the processes whose parent is a process (this one), without the tracker of semaphores, which may stay."""
    listed = subprocess.run(["ps", "-eww", "-o", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()[1:]]
    return [int(pid) for pid, ppid, command in rows if int(ppid) == (of or os.getpid()) and "LokyProcess" in command]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_job_that_fails_is_named_and_all_that_do_not_need_it_are_done(alone, tiny_study, tmp_path, caplog, processes):
    study = tiny_study(variants={"pt": [{"adapt.learning_rate": [0.1, 1e30]}], "bmtpt": [{"learn.particles": 2}]})
    with pytest.raises(IncompleteStudyError) as error:
        run_study(study, tmp_path, processes=processes)
    assert str(error.value) == (
        f"1 of 4 jobs failed: pairs pt[learning_rate=1e+30] k=8 seed=0; {tmp_path / FAILED} says why; "
        "the same command tries them again"
    )
    assert "pairs pt[learning_rate=1e+30] k=8 seed=0 failed: " in caplog.text
    assert "is not a finite number" in caplog.text
    assert "Traceback" in (tmp_path / FAILED).read_text()
    assert read_results(tmp_path / RESULTS) == error.value.results
    found = {(row.method, row.variant) for row in error.value.results}
    assert found == {("pt", "learning_rate=0.1"), ("posterior", "particles=2"), ("bmtpt", "particles=2")}
    assert children() == []


def test_what_needs_a_failed_source_stage_is_not_tried_until_the_same_command_tries_both_again(
    alone, tiny_study, tmp_path, monkeypatch
):
    def broken(*_, **__):
        raise RuntimeError("a bug")

    monkeypatch.setattr(Sources, "_kept", broken)
    with pytest.raises(IncompleteStudyError, match=r"2 of 5 jobs failed, and 2 that need them were not tried: sources"):
        run_study(tiny_study(), tmp_path)
    assert "RuntimeError: a bug" in (tmp_path / FAILED).read_text()
    monkeypatch.undo()
    assert without_seconds(run_study(tiny_study(), tmp_path)) == without_seconds(alone[1])
    assert not (tmp_path / FAILED).exists()


def test_a_mistake_about_the_whole_study_ends_it_and_its_processes(tiny_study, tmp_path):
    study = tiny_study(methods=["pt"], variants={}, shots=[10_000, 8], seeds=range(20))
    with pytest.raises(DataError, match="cannot draw 10000 examples"):
        run_study(study, tmp_path, processes=2)
    assert children() == []


@pytest.fixture
def running(tiny_study, tmp_path):
    """A study of many short jobs in two processes, started from a shell, once it has lines."""
    with started(slow_study(tiny_study), tmp_path, "--jobs", "2") as process:
        yield process


@contextmanager
def started(study, folder, *options):
    """Give `bmtpt study` in a shell's way, and wait for its first lines."""
    file = folder / "slow.yaml"
    file.write_text(yaml.safe_dump(study.model_dump(mode="json")))
    command = [sys.executable, "-m", "bmtpt", "study", str(file), "--out", str(folder / "run"), *options]
    pipe = subprocess.PIPE
    # A shell's background jobs, and so a CI's, may have been told to ignore the signal, which children inherit.
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stderr=pipe, stdout=pipe, text=True, start_new_session=True, preexec_fn=heard)
    try:
        wait_until(lambda: (folder / "run" / RESULTS).is_file() or process.poll() is not None)
        yield process
    finally:
        if is_there(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def slow_study(tiny_study):
    return tiny_study(methods=["pt"], variants={}, seeds=range(500))


@pytest.mark.parametrize("on", ["local", "ray"])
def test_ctrl_c_ends_every_process_keeps_whole_lines_and_says_how_to_go_on(on, tiny_study, tmp_path, monkeypatch):
    """As from a terminal: the signal goes to the whole process group."""
    if on == "ray":
        if find_spec("ray") is None:  # it is not imported here: see `imported_ray`
            pytest.skip("ray is not installed")
        monkeypatch.delenv("RAY_ADDRESS", raising=False)  # a cluster of this machine alone, which ends with the study
    with started(slow_study(tiny_study), tmp_path, "--jobs", "2", "--on", on) as running:
        os.killpg(running.pid, signal.SIGINT)
        _, said = running.communicate(timeout=60)
        assert running.returncode == 130, said
        assert "give the same command again" in said
        assert "Traceback" not in said
        wait_until(lambda: not is_there(running.pid))
    results = tmp_path / "run" / RESULTS
    assert results.read_text().endswith("\n")
    jobs, rows = Grid(slow_study(tiny_study), tmp_path / "run").jobs(), read_results(results)
    assert whole_lines(results, jobs) == rows
    assert 0 < len(done_jobs(jobs, rows)) < len(jobs)


def test_a_killed_process_is_one_clear_sentence(running):
    os.kill(children(running.pid)[0], signal.SIGKILL)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 2, said
    assert "a process of the study was killed, probably because the machine ran out of memory" in " ".join(said.split())
    assert "Traceback" not in said


def test_a_killed_study_leaves_no_processes_behind(running):
    workers = children(running.pid)
    assert len(workers) == 2
    running.kill()
    wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in workers))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "it took two minutes"
        time.sleep(0.05)


def is_there(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_after_a_kill_only_the_missing_jobs_are_done(alone, tiny_study, tmp_path, monkeypatch):
    folder, results = alone
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    lost = [row for row in results if row.variant != "particles=1"]
    (copy / RESULTS).unlink()
    append_results(copy / RESULTS, lost)
    done, run = [], Grid.run
    monkeypatch.setattr(Grid, "run", lambda grid, job, listener: done.append(job.place) or run(grid, job, listener))
    found = run_study(tiny_study(), copy)
    assert [place[1:] for place in done] == [
        ("posterior", "particles=1", "sources", None, 0),
        ("bmtpt", "particles=1", "pairs", 8, 0),
    ]
    assert without_seconds(found) == without_seconds(results)


@pytest.mark.parametrize("variant", ["source=../../x", "a/b=c", "x=..", "sources=/etc"])
def test_a_variant_leads_to_no_other_folder(tmp_path, variant):
    place = prompt_folder(tmp_path, "cb", "pt", 16, 0, variant)
    assert place.resolve().parent == (tmp_path / "prompts").resolve()


def test_a_finished_study_that_gets_one_more_way_to_read_scores_that_alone(tiny_study, tmp_path, monkeypatch):
    plain = {"steps": 2, "evaluate_every": 2, "batch_size": 2, "selection": "none", "readout": "none"}
    ways = [{"readout": "offset"}, {"readout": "linear"}]
    before, after = (
        tiny_study(methods=["pt", "attempt", "zero_shot"], variants={}, adapt=plain, reread=given)
        for given in (ways[:1], ways)
    )
    first = run_study(before, tmp_path / "run")
    wanted = run_study(after, tmp_path / "at once")
    scored, score = [], Grid._scored
    monkeypatch.setattr(Loop, "run", lambda *_, **__: pytest.fail("it trained"))
    monkeypatch.setattr(Grid, "_scored", lambda grid, *given: scored.append(given[-1]) or score(grid, *given))
    found = run_study(after, tmp_path / "run")
    assert scored == ["readout=linear"] * 2
    assert [row for row in found if row.variant != "readout=linear"] == first
    found, wanted = ([row for row in rows if row.target == "pairs"] for rows in (found, wanted))
    assert without_seconds(found) == without_seconds(wanted)


@pytest.mark.parametrize("change", ["settings", "posterior", "damage"])
def test_a_kept_prompt_that_is_not_the_cells_own_is_not_taken(tiny_study, tmp_path, change):
    plain = {"steps": 2, "evaluate_every": 2, "batch_size": 2, "selection": "none"}
    study = tiny_study(methods=["bmtpt"], variants={}, adapt=plain)
    wanted = run_study(study, tmp_path)
    (tmp_path / RESULTS).unlink()
    folder = prompt_folder(tmp_path, "pairs", "bmtpt", 8, 0)
    prompt = Prompt.load(folder)
    changed = replace(prompt, prompts=prompt.prompts + 1)
    if change == "damage":
        (folder / "prompt.safetensors").write_bytes(b"nothing")
        with pytest.raises(ArtifactError, match="its SHA-256 differs"):
            run_study(study, tmp_path)
        return
    other = {"settings": prompt.card.settings | {"steps": 3}} if change == "settings" else {"posterior": "0" * 64}
    replace(changed, card=prompt.card.model_copy(update=other)).save(folder, overwrite=True)
    assert without_seconds(run_study(study, tmp_path)) == without_seconds(wanted)


def test_variants_that_differ_in_how_a_prompt_is_read_alone_are_trained_once(tiny_study, tmp_path, monkeypatch):
    plain = {"steps": 2, "evaluate_every": 2, "batch_size": 2, "learning_rate": 0.1, "selection": "none"}
    ways = [
        {"adapt.readout": "linear", "adapt.average": "starts"},
        {"adapt.readout": "linear", "adapt.average": "starts", "adapt.predictive": "map"},
        {"adapt.readout": "offset", "adapt.average": "starts", "adapt.offset_std": 2.0},
        {"adapt.readout": "linear", "adapt.average": "starts", "adapt.likelihood": "labels"},
        {"adapt.readout": "linear", "adapt.average": "starts", "adapt.steps": 0},
    ]
    study = tiny_study(methods=["bmtpt"], variants={"bmtpt": ways}, adapt=plain)
    with monkeypatch.context() as patched:
        patched.setattr(Grid, "_read_otherwise", lambda *_: [])  # each variant is trained
        wanted = run_study(study, tmp_path / "apart")
    trained, run = [], Loop.run
    monkeypatch.setattr(Loop, "run", lambda loop, **rest: trained.append(loop.settings) or run(loop, **rest))
    found = run_study(study, tmp_path / "once")
    own = [settings for settings in trained if isinstance(settings, AdaptSettings)]
    assert [(each.likelihood, each.steps) for each in own] == [("tokens", 2), ("labels", 2), ("tokens", 0)]
    assert without_seconds(found) == without_seconds(wanted)
    for way in study.contenders():
        folders = [prompt_folder(tmp_path / run, "pairs", "bmtpt", 8, 0, way.variant.name) for run in ("apart", "once")]
        apart, once = (Prompt.load(folder) for folder in folders)
        assert (apart.card.weights_sha256, apart.card.settings) == (once.card.weights_sha256, once.card.settings)
        assert apart.card.selection == once.card.selection


def test_prompts_are_trained_once_and_read_in_every_way_that_is_asked_for(tiny_study, tmp_path, monkeypatch):
    plain = {
        "steps": 2,
        "evaluate_every": 2,
        "batch_size": 2,
        "learning_rate": 0.1,
        "selection": "none",
        "readout": "none",
    }
    variants = {"pt": [{}, {"adapt.steps": 1}]}
    apart = [{"adapt.readout": ["none", "linear"]}, {"adapt.steps": 1, "adapt.readout": ["none", "linear"]}]
    methods = ["pt", "attempt", "zero_shot"]
    with monkeypatch.context() as patched:
        patched.setattr(Grid, "_read_otherwise", lambda *_: [])  # each variant is trained
        wanted = run_study(tiny_study(methods=methods, variants={"pt": apart}, adapt=plain), tmp_path / "apart")
    runs, run = [], Loop.run
    monkeypatch.setattr(Loop, "run", lambda loop, **rest: runs.append(loop) or run(loop, **rest))
    study = tiny_study(methods=methods, variants=variants, adapt=plain, reread=[{"readout": "linear"}])
    found = [row for row in run_study(study, tmp_path / "once") if row.target == "pairs"]
    assert {job.name for job in Grid(study, tmp_path / "once").jobs() if job.place.method == "attempt"} == {
        "pairs attempt k=8 seed=0"  # one target, and two lines of it
    }
    assert len([loop for loop in runs if isinstance(loop.method, TargetStage)]) == 3
    again = {(row.method, row.variant.replace("readout=none,", ""), row.metric): row for row in found}
    names = {(row.method, row.variant) for row in found}
    assert names == {
        *(("pt", name) for name in ("", "readout=linear", "steps=1", "steps=1,readout=linear")),
        *(("attempt", name) for name in ("", "readout=linear")),
        ("zero_shot", ""),
    }
    for row in (row for row in wanted if row.method == "pt"):
        variant = ",".join(part for part in row.variant.split(",") if part != "readout=none")
        assert again["pt", variant, row.metric].value == row.value
        assert again["pt", variant, row.metric].trained_parameters == row.trained_parameters
    kept = Prompt.load(prompt_folder(tmp_path / "once", "pairs", "pt", 8, 0, "readout=linear"))
    assert kept.card.settings["readout"] == "linear"
    monkeypatch.setattr(Loop, "run", lambda *_, **__: pytest.fail("it trained"))
    assert run_study(study, tmp_path / "once") == read_results(tmp_path / "once" / RESULTS)


def test_reading_again_needs_prompts_that_no_readout_chose(tiny_study, tmp_path):
    with pytest.raises(ValueError, match="reread is given, and validation ranks prompts after their readouts"):
        tiny_study(reread=[{"readout": "linear"}])
    plain = {"steps": 2, "selection": "none", "readout": "none"}
    twice = {"pt": [{}, {"adapt.readout": "linear"}]}
    study = tiny_study(methods=["pt"], variants=twice, adapt=plain, reread=[{"readout": "linear"}])
    with pytest.raises(SettingsError, match="pt has 'readout=linear' already"):
        study.contenders()
    study = tiny_study(methods=["pt"], variants={}, adapt={**plain, "readout": "auto"}, reread=[{"readout": "linear"}])
    with pytest.raises(SettingsError, match=r"every prompt has a readout already; set adapt\.readout to none"):
        study.contenders()
