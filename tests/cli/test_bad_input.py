"""What a person does wrong is answered with one sentence and exit code 2, and nothing is left half-written."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

TASK = 'name: {0}\nfile: {0}.csv\ntext: "t: {{x}}"\nlabel: y\nlabels: [a, b]\n'
LONG = "the film is good " * 200
FILES = {
    "stray.yaml": TASK.format("stray"),
    "stray.csv": "x,y\none,a\ntwo,b\nthree,c\nfour,a\nfive,b\n",
    "empty.yaml": TASK.format("empty"),
    "empty.csv": "x,y\n",
    "same.yaml": TASK.format("same"),
    "same.csv": "x,y\n" + "one,a\n" * 5,
    "ragged.yaml": TASK.format("ragged"),
    "ragged.csv": "x,y\none,a\ntwo, and three,b\nfour,a\n",
    "gone.yaml": TASK.format("gone"),
    "typo.yaml": TASK.format("typo") + "metrik: accuracy\n",
    "broken.yaml": "name: broken\nlabels: [a\n",
    "long.yaml": TASK.format("long"),
    "long.csv": "x,y\n"
    + "".join(f"{text} {i},{'ab'[i % 2]}\n" for i, text in enumerate(["short", "short", *[LONG] * 4] * 5)),
    "up.yaml": TASK.format("up").replace("name: up", "name: ../up"),
    "up.csv": "x,y\none,a\ntwo,b\n",
    "study-up.yaml": "name: ../up\nsources: [sst2]\ntargets: [cb]\n",
    "unknown-key.yaml": "kernell: rbf\n",
    "no-yaml.yaml": "steps: [1\n",
    "list.yaml": "- steps\n",
    "dashes.yaml": TASK.format("dashes").replace("labels: [a, b]", "labels: [{0: a}, {1: b}]"),
    "ruled.yaml": TASK.format("ruled") + "split: [own]\n",
    "measured.yaml": TASK.format("measured") + "metrics: {accuracy: 1}\n",
    "study-empty.yaml": "name: s\nsources: [sst2]\ntargets: [cb]\nmethods: [bmtpt]\nvariants: {bmtpt: []}\n",
    "empty.jsonl": "",
    "evaluate-typo.yaml": "promt: x\n",
    "study-typo.yaml": "name: s\nmethod: [pt]\nsources: [sst2]\ntargets: [cb]\n",
    "sweep-typo.yaml": "name: s\nsources: [sst2]\ntargets: [cb]\nsweep: {adapt.stepps: {uniform: [1, 2]}}\n",
    "sweep-low.yaml": "name: s\nsources: [sst2]\ntargets: [cb]\nsweep: {adapt.learning_rate: {uniform: [0, 1]}}\n",
    "study-both.yaml": "name: s\nsources: [sst2, cb]\ntargets: [cb]\n",
    "rows.jsonl": '{"sentence": "fine"}\n{"sentence": \n',
    "column.jsonl": '{"sentense": "fine"}\n',
    "text.txt": "a plain text\n",
}


def sentence_of(ran: Any) -> str:
    """The one sentence on standard error."""
    assert ran.code == 2
    assert "Traceback" not in ran.out + ran.err
    errors = [line for line in ran.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert ran.err.rstrip().endswith(errors[0])
    return errors[0]


@pytest.fixture
def place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: Path, tiny_t5_folder: Path, tiny_task_folder: Path
) -> Path:
    """The working folder: wrong files, and links to what is right (t5, tasks, post, prompt)."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    links = {"t5": tiny_t5_folder, "tasks": tiny_task_folder, "post": runs / "post", "prompt": runs / "prompt"}
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
    monkeypatch.chdir(tmp_path)
    return tmp_path


LEARN = "learn --backbone t5 --out new --steps 2 --prompt-length 3"
ADAPT = "adapt --posterior post --out new --steps 2"
GOOD = "--source tasks/sentiment.yaml"
TARGET = "--target tasks/sentiment.yaml"

BAD: list[tuple[str, list[str]]] = [
    # options
    (f"{LEARN}", ["'source' is missing"]),
    (f"{LEARN} {GOOD} --kernel rbff", ["'rbff'", "did you mean 'rbf'"]),
    (f"{LEARN} {GOOD} --track tensorbord", ["'track'", "did you mean 'tensorboard'"]),
    (f"{LEARN} {GOOD} --steps abc", ["'steps'", "'abc'", "integer"]),
    (f"{LEARN} {GOOD} --bandwidth mediam", ["'bandwidth'", "'median'"]),
    (f"{LEARN} {GOOD} --particle-init prompt --init-steps 5", ["init_steps is 5"]),
    (f"{ADAPT} {TARGET} --shots 0", ["'shots'", "'0'", "greater than 0"]),
    (f"{ADAPT} {TARGET} --prior men", ["did you mean 'mean'"]),
    ("evaluate --prompt prompt --scorer ranks", ["--scorer", "did you mean 'rank'"]),
    ("evaluate --prompt prompt --normalise pmy", ["--normalise", "did you mean 'pmi'"]),
    ("evaluate --prompt prompt --predictions new.txt", ["cannot write new.txt", ".parquet"]),
    (
        "evaluate --prompt prompt --task tasks/answers.yaml --normalise pmi",
        ["fitted with normalise 'none'", "leave it out"],
    ),
    ("predict --prompt prompt --normalise lenght text.txt", ["--normalise", "did you mean 'length'"]),
    ("evaluate --prompt prompt --split train", ["--split", "select, test"]),
    ("evaluate --prompt prompt --precision float3", ["precision", "'float32'"]),
    ("export prompt --to peff --out new", ["--to", "did you mean 'peft'"]),
    ("export prompt --to vllm --out new", ["vLLM runs decoder-only models", "bmtpt serve"]),
    (f"{LEARN} --config unknown-key.yaml", ["unknown-key.yaml", "'kernell'", "did you mean 'kernel'"]),
    (f"{LEARN} --config no-yaml.yaml", ["no-yaml.yaml, line 2: this YAML cannot be read"]),
    (f"{LEARN} --config list.yaml", ["list.yaml must hold 'key: value' lines"]),
    (f"{LEARN} --config nowhere.yaml", ["cannot read nowhere.yaml"]),
    ("evaluate --config evaluate-typo.yaml", ["'promt'", "did you mean 'prompt'"]),
    # tasks and rows
    (f"{LEARN} --source sst3", ["there is no task 'sst3'", "did you mean 'sst2'"]),
    ("tasks show sst3", ["there is no task 'sst3'"]),
    ("tasks --dir nowhere", ["there is no folder nowhere"]),
    (f"{LEARN} --source nowhere.yaml", ["cannot read nowhere.yaml"]),
    (f"{LEARN} --source typo.yaml", ["typo.yaml", "'metrik'", "did you mean 'metrics'"]),
    (f"{LEARN} --source broken.yaml", ["broken.yaml, line 3", "this YAML cannot be read"]),
    (f"{LEARN} --source dashes.yaml", ["dashes.yaml", "'labels'", "leave the dashes out"]),
    (f"{LEARN} --source ruled.yaml", ["ruled.yaml", "'split'"]),
    (f"{LEARN} --source measured.yaml", ["measured.yaml", "'metrics'"]),
    (f"{LEARN} --source up.yaml", ["up.yaml", "'name'", "a name begins with a letter or digit"]),
    (f"{ADAPT} {TARGET} --target up.yaml", ["up.yaml", "'name'", "a name begins with a letter or digit"]),
    (f"{LEARN} --source gone.yaml", ["there is no file", "gone.csv"]),
    (f"{LEARN} --source stray.yaml", ["stray.csv, line 4", "'c'", "(a, b)"]),
    (f"{ADAPT} --target stray.yaml", ["stray.csv, line 4", "'c'"]),
    ("tasks check stray.yaml", ["stray.csv, line 4", "'c'"]),
    (f"{LEARN} --source empty.yaml", ["empty.csv", "no training rows"]),
    (f"{LEARN} --source same.yaml", ["same.csv", "every training row has the label 'a'"]),
    ("tasks check same.yaml", ["same.csv", "every training row has the label 'a'"]),
    (f"{LEARN} --source ragged.yaml", ["ragged.csv, line 3", "3 values", "quote"]),
    (f"{LEARN} --source sst2 --data nowhere", ["'sst2' has no rows in nowhere", "train.parquet"]),
    (f"{LEARN} --source cola --data offline", ["'cola' has no offline rows"]),
    (f"{LEARN} {GOOD} {GOOD}", ["source task 'sentiment' was given twice"]),
    (f"{ADAPT} {TARGET} {TARGET}", ["target task 'sentiment' was given twice"]),
    (f"{ADAPT} {TARGET} --target tasks/pairs.yaml --shots 25", ["target sentiment", "25 examples from 24", "1 to 24"]),
    (f"{ADAPT} --target tasks/answers.yaml --ensemble", ["answers", "no label words", "ensemble"]),
    ("evaluate --prompt prompt --task tasks/answers.yaml --scorer rank", ["answers", "use the scorer 'generate'"]),
    # folders
    ("adapt --posterior nowhere --out new --target tasks/sentiment.yaml", ["nowhere holds no posterior"]),
    ("adapt --posterior prompt --out new --target tasks/sentiment.yaml", ["holds a prompt where a posterior"]),
    ("export post --out new", ["post holds a posterior where a prompt is needed"]),
    ("evaluate --prompt nowhere", ["nowhere holds no posterior or prompt"]),
    ("inspect nowhere", ["nowhere holds no posterior or prompt"]),
    ("import nowhere --task tasks/sentiment.yaml --backbone t5 --out new", ["cannot read nowhere/adapter_config.json"]),
    (f"learn --backbone t5 {GOOD} --out post", ["post holds a run already", "resume or overwrite it"]),
    (f"learn --backbone t5 {GOOD} --out prompt --overwrite", ["prompt holds a prompt and not a posterior"]),
    (f"learn --backbone t5 {GOOD} --out post --resume", ["made with other settings"]),
    (f"learn --backbone t5 {GOOD} --out text.txt/new", ["cannot write text.txt/new", "choose another folder"]),
    ("evaluate --prompt prompt --out text.txt/new", ["cannot write text.txt/new"]),
    ("report post --out text.txt/new", ["cannot write text.txt/new"]),
    (f"learn --backbone tasks {GOOD} --out new", ["backbone folder tasks has no config.json"]),
    ("report nowhere", ["nowhere does not exist"]),
    ("report tasks", ["tasks holds nothing to report"]),
    ("report rows.jsonl", ["rows.jsonl, line 1"]),
    # prediction
    ("predict --prompt prompt nowhere.jsonl", ["there is no file nowhere.jsonl"]),
    ("predict --prompt prompt rows.jsonl", ["rows.jsonl, line 2: this is not JSON"]),
    ("predict --prompt prompt stray.yaml", ["stray.yaml: the ending is none of .txt", "--format"]),
    ("predict --prompt prompt text.txt --out new.xlsx", ["cannot write new.xlsx", ".parquet"]),
    ("predict --prompt prompt text.txt --out text.txt/new.csv", ["cannot write text.txt/new.csv"]),
    ("predict --prompt prompt text.txt --on-error go", ["--on-error", "report, stop"]),
    ("predict --prompt prompt text.txt --format jsonnl", ["--format", "did you mean 'jsonl'"]),
    ("predict --prompt prompt column.jsonl", ["column.jsonl, line 1", "no column 'sentence'", "sentense"]),
    ("predict --prompt prompt latin.txt", ["latin.txt, line 1", "byte 0xE9, which is not UTF-8"]),
    # studies
    ("study nowhere.yaml --out new", ["cannot read nowhere.yaml"]),
    ("study study-typo.yaml --out new", ["study-typo.yaml", "'method'", "did you mean 'methods'"]),
    ("study study-up.yaml --out new", ["study-up.yaml", "'name' cannot be '../up'", "a name begins with a letter"]),
    ("study particels --out new", ["there is no study 'particels'", "did you mean 'particles'"]),
    ("study particles --scale smal --out new", ["no scale 'smal'", "did you mean 'small'"]),
    ("study study-both.yaml --scale smoke --out new", ["study-both.yaml has no scales"]),
    ("study study-empty.yaml --out new", ["study-empty.yaml", "variants of 'bmtpt' are empty"]),
    ("study paper-fewshot --target sst2 --out new", ["sst2 is both a source and a target"]),
    ("table latin.txt", ["latin.txt is not UTF-8 text"]),
    ("table empty.jsonl --markdown --json", ["--markdown and --json exclude each other"]),
    ("table empty.jsonl --metric seconds", ["empty.jsonl holds no result lines yet"]),
    ("study particles --tuning --shots many --out new", ["'shots' cannot be 'many'"]),
    ("study particles --on slrum --out new", ["'on' cannot be 'slrum'", "did you mean 'slurm'"]),
    ("sweep particles --out new", ["study particles has nothing to sweep"]),
    ("sweep sweep --metric nlll --out new", ["has no score 'nlll'", "did you mean 'nll'"]),
    ("sweep sweep-typo.yaml --out new", ["sweep-typo.yaml", "'adapt.stepps'", "did you mean 'steps'"]),
    ("sweep sweep-low.yaml --out new", ["sweep-low.yaml", "'adapt.learning_rate' cannot be 0", "greater than 0"]),
    ("study wording --tuning --out new", ["wording names no targets for tuning"]),
    ("study study-both.yaml --out new", ["study-both.yaml", "cb is both a source and a target"]),
]


@pytest.mark.parametrize(("command", "parts"), BAD, ids=[command for command, _ in BAD])
def test_a_mistake_is_answered_with_one_sentence_and_leaves_nothing(bmtpt, place, runs, command, parts):
    before = {path: path.read_bytes() for path in sorted(runs.rglob("*")) if path.is_file()}
    sentence = sentence_of(bmtpt(*command.split()))
    assert all(part in sentence for part in parts), sentence
    assert not (place / "new").exists()
    assert {path: path.read_bytes() for path in sorted(runs.rglob("*")) if path.is_file()} == before


@pytest.mark.parametrize(
    ("command", "part"),
    [
        ("lern", "Did you mean 'learn'?"),
        ("learn --kernell rbf", "--kernell"),
        ("evaluate", "Missing option '--prompt'"),
        ("tasks show sst2 --rows many", "Invalid value for '--rows'"),
    ],
)
def test_a_command_line_that_cannot_be_read_is_refused_with_its_mend(bmtpt, command, part):
    ran = bmtpt(*command.split())
    assert ran.code == 2
    assert part in " ".join(ran.err.replace("│", " ").split())
    assert "Traceback" not in ran.err


def test_debug_shows_the_traceback_and_the_sentence_wherever_it_is_written():
    sentence = "error: there is no folder nowhere; --dir names one with task files (*.yaml)\n"
    for words in ("tasks --dir nowhere --debug", "tasks --dir nowhere"):
        command = [sys.executable, "-m", "bmtpt", *words.split()]
        ran = subprocess.run(command, capture_output=True, text=True)
        assert ran.returncode == 2
        assert ran.stderr.startswith("Traceback") == ("--debug" in words)
        assert ran.stderr.endswith(sentence)
        assert (ran.stderr == sentence) == ("--debug" not in words)


@pytest.mark.parametrize("wrapped", [False, True])
def test_ctrl_c_says_how_to_go_on_even_where_a_library_wraps_it(wrapped, bmtpt, place, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            if wrapped:
                raise RuntimeError("while it imports") from error
            raise

    monkeypatch.setattr("bmtpt.stages.source.learn", interrupted)
    ran = bmtpt(*f"{LEARN} {GOOD}".split())
    assert ran.code == 130
    assert "--resume" in ran.err


def test_a_fault_of_ours_is_not_dressed_up_as_a_mistake(bmtpt, place, monkeypatch):
    def fault(*_: object) -> None:
        raise KeyError("ours")

    monkeypatch.setattr("bmtpt.artifacts.inspect.describe_artifact", fault)
    with pytest.raises(KeyError, match="ours"):
        bmtpt("inspect", "post")


def test_check_prints_the_wrong_rows_before_it_refuses_them(bmtpt, place):
    (place / "stray.csv").write_text("x,y\none,a\ntwo,c\nthree\n")
    ran = bmtpt("tasks", "check", "stray.yaml")
    assert sentence_of(ran).endswith("stray.csv, line 3: label 'c' is not one of the task's labels (a, b); add it to "
                                     "'labels' or fix the row; 1 more of 3 rows are wrong")  # fmt: skip
    lines = [line.partition("stray.csv, ")[2] or line for line in ran.out.splitlines()]
    assert [line[:8] for line in lines] == ["line 3: ", "line 4: ", "wrong ro", "1 × labe", "1 × … va"]


# Texts that are too long


def test_a_text_that_is_too_long_is_cut_and_counted(bmtpt, place):
    learned = bmtpt(*f"{LEARN} --source long.yaml".split())
    assert learned.code == 0
    assert re.search(r"texts too long and cut: \d+ ", learned.err)
    adapted = bmtpt("adapt", "--posterior", "new", "--target", "long.yaml", "--steps", "2", "--out", "adapted")
    assert re.search(r"texts too long and cut: \d+ ", adapted.err)
    scored = bmtpt("evaluate", "--prompt", "adapted", "--json")
    assert re.search(r"texts too long and cut: \d of 6 ", scored.err)
    assert [json.loads(line)["metric"] for line in scored.out.splitlines()] == ["accuracy", "ece", "nll"]
    answered = bmtpt("predict", "--prompt", "adapted", stdin="the film is good\n" + "the film is good " * 200)
    assert "texts too long and cut: 1 " in answered.err
    assert ["cut" in json.loads(line) for line in answered.out.splitlines()] == [False, True]
    assert "cut" not in bmtpt("evaluate", "--prompt", "prompt").err


# Artifacts


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def edit_card(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


DAMAGE = {
    "weights cut off": (lambda folder: cut_off(folder / "prompt.safetensors"), "cut off, edited or replaced"),
    "card cut off": (lambda folder: cut_off(folder / "card.json"), "is not JSON"),
    "weights gone": (lambda folder: (folder / "prompt.safetensors").unlink(), "cannot read"),
    "another version": (lambda folder: edit_card(folder / "card.json", format_version=9), "format version 9"),
    "a card with more": (lambda folder: edit_card(folder / "card.json", note="x"), "its SHA-256 differs"),
}


@pytest.mark.parametrize("command", ["evaluate --prompt", "predict --prompt", "inspect", "export --out new"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_artifact_is_refused_by_every_command(bmtpt, place, command, damage):
    shutil.copytree(place / "prompt", place / "copy")
    break_it, part = DAMAGE[damage]
    break_it(place / "copy")
    sentence = sentence_of(bmtpt(*command.split(), "copy"))
    assert part in sentence
    assert "copy" in sentence
    assert not (place / "new").exists()


def test_an_artifact_of_another_backbone_is_refused_by_both_names(bmtpt, place):
    from safetensors.torch import load_file, save_file

    shutil.copytree(place / "t5", place / "other-t5")
    weights = place / "other-t5" / "model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(weights).items()}, weights, metadata={"format": "pt"})
    for command in (
        "evaluate --prompt prompt",
        "predict --prompt prompt text.txt",
        "inspect post --tokens 1",
        f"{ADAPT} {TARGET}",
    ):
        sentence = sentence_of(bmtpt(*command.split(), "--backbone", "other-t5"))
        trained_with = json.loads((place / "prompt" / "card.json").read_text())["backbone"]["name"]
        assert f"'{trained_with}'" in sentence
        assert "'other-t5'" in sentence
        assert not (place / "new").exists()


# Training that cannot continue


def test_a_refused_run_leaves_none_of_the_folders_that_it_made(bmtpt, place):
    (place / "there").mkdir()
    for out in ("a/b/c", "there/a/b"):
        refused = sentence_of(bmtpt(*f"learn --backbone t5 {GOOD} --steps 2 --prompt-length 5000 --out {out}".split()))
        assert "prompt_length is 5000" in refused
    assert not (place / "a").exists()
    assert list((place / "there").iterdir()) == []


def test_a_loss_that_is_not_a_number_names_step_and_cause_and_keeps_the_last_checkpoint(bmtpt, place):
    from bmtpt.train.checkpoint import load_checkpoint

    options = ["--learning-rate", "1e30", "--steps", "4", "--evaluate-every", "1", "--schedule", "constant"]
    sentence = sentence_of(bmtpt(*f"{LEARN} {GOOD}".split(), *options))
    step = re.search(r"at step (\d)|after (?:step )?(\d)", sentence)
    assert step
    assert "is not a finite number" in sentence
    assert "learning rate of 1e+30 that is too high (try 0.3)" in sentence
    assert "the last good checkpoint is in new" in sentence
    kept = load_checkpoint(place / "new" / "checkpoint.safetensors")[0]
    assert all(bool(torch.isfinite(tensor).all()) for tensor in kept.values())
    assert not (place / "new" / "card.json").exists()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
    ids=["Python", "CUDA", "CPU"],
)
def test_when_memory_runs_out_the_numbers_to_try_are_named(bmtpt, place, monkeypatch, error):
    from bmtpt.backbone.encoder_decoder.engine import PassEngine

    def exhausted(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(PassEngine, "gradients", exhausted)
    learned = sentence_of(bmtpt(*f"{LEARN} {GOOD} --particles 6 --batch-size 4".split()))
    assert "memory ran out at step 0 with 6 prompts trained together" in learned
    assert "batch_size 2 instead of 4" in learned
    assert "particles 3 instead of 6" in learned
    monkeypatch.setattr(PassEngine, "readings", exhausted)
    assert "memory ran out" in sentence_of(bmtpt("evaluate", "--prompt", "prompt"))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6])
def test_a_full_disk_leaves_no_part_of_a_file_whenever_it_happens(bmtpt, place, monkeypatch, count):
    """The count-th forced write fails: events, settings, checkpoints or the posterior."""
    calls = []

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) >= count:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        sentence = sentence_of(bmtpt(*f"{LEARN} {GOOD} --steps 2 --evaluate-every 1".split()))
    assert "no space left on device" in sentence
    assert "new" in sentence
    left = {path.name for path in (place / "new").glob("*")}
    assert left <= {"events.jsonl", "settings.yaml", "checkpoint.safetensors"}
    assert bmtpt(*f"{LEARN} {GOOD} --steps 2 --evaluate-every 1 --resume".split()).code == 0
    assert bmtpt("inspect", "new").code == 0


def test_a_refused_overwrite_leaves_the_finished_run_as_it_was(bmtpt, place):
    shutil.copytree(place / "prompt", place / "copy")
    before = {path.name: path.read_bytes() for path in (place / "copy").iterdir()}
    options = f"--posterior post {TARGET} --shots 99 --out copy --overwrite"
    assert "99 examples" in sentence_of(bmtpt("adapt", *options.split()))
    after = {path.name: path.read_bytes() for path in (place / "copy").iterdir()}
    # The checkpoint is only good for a resume, which nobody asked for.
    assert after | {"checkpoint.safetensors": before["checkpoint.safetensors"]} == before


# What is not installed, and what is not what it should be


def test_missing_extras_name_the_pip_command(bmtpt, place, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    assert "pip install 'bmtpt[peft]'" in sentence_of(bmtpt("export", "prompt", "--out", "new"))
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert "pip install 'bmtpt[wandb]'" in sentence_of(bmtpt(*f"{ADAPT} {TARGET} --track wandb".split()))
    assert not (place / "new").exists()
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.setenv("BMTPT_CACHE", str(place / "cache"))
    monkeypatch.setattr("bmtpt.backbone.model.embedded.Embedded.checked_files", lambda _: place)
    learn = f"learn --backbone offline {GOOD} --out new".split()
    assert "pip install 'bmtpt[offline]'" in sentence_of(bmtpt(*learn))
    assert not (place / "new").exists()
    assert not (place / "cache").exists()


def test_a_missing_or_corrupt_wheel_names_the_pip_command(bmtpt, place, monkeypatch):
    from bmtpt.backbone.model import embedded, offline

    def absent(_: str) -> None:
        raise embedded.metadata.PackageNotFoundError

    monkeypatch.setenv("BMTPT_CACHE", str(place / "cache"))
    learn = f"learn --backbone offline {GOOD} --out new".split()
    with monkeypatch.context() as patched:
        patched.setattr(embedded.metadata, "distribution", absent)
        sentence = sentence_of(bmtpt(*learn))
        assert "the offline backbone is not installed" in sentence
        assert "requirements-offline.txt" in sentence
    for name in offline.OFFLINE.files:
        (place / name).write_text("damaged")
    wheel = SimpleNamespace(locate_file=lambda _: place)
    with monkeypatch.context() as patched:
        patched.setattr(embedded.metadata, "distribution", lambda _: wheel)
        sentence = sentence_of(bmtpt(*learn))
        assert "encoder.onnx is not the file of traceforge-title-model==0.2.0" in sentence
        assert "--force-reinstall" in sentence
    assert not (place / "new").exists()


def test_a_damaged_cache_is_not_used(bmtpt, place, monkeypatch):
    from bmtpt.backbone.model.embedded import Embedded, sha256_of
    from bmtpt.backbone.model.offline import OFFLINE
    from bmtpt.errors import BackboneError

    monkeypatch.setenv("BMTPT_CACHE", str(place / "cache"))
    cache = OFFLINE.cache_folder
    shutil.copytree(place / "t5", cache)
    parts = {path.name: sha256_of(path) for path in (place / "t5").iterdir()}
    (cache / "provenance.json").write_text(json.dumps({"files": parts}))

    def rebuild(_: Embedded) -> Path:
        raise BackboneError("built again")

    monkeypatch.setattr(Embedded, "checked_files", rebuild)
    assert OFFLINE.folder() == cache
    cut_off(cache / "model.safetensors")
    assert "built again" in sentence_of(bmtpt(*f"learn --backbone offline {GOOD} --out new".split()))


def test_missing_offline_rows_name_the_pip_command(bmtpt, place, monkeypatch):
    absent = SimpleNamespace(util=SimpleNamespace(find_spec=lambda _: None))
    monkeypatch.setattr("bmtpt.tasks.sources.importlib", absent)
    sentence = sentence_of(bmtpt("tasks", "show", "sst2", "--data", "offline", "--backbone", "t5"))
    assert "requirements-offline.txt" in sentence
