"""Every command on the tiny model, the documents' own lines among them."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
HEAVY = {"torch", "transformers", "datasets", "sklearn", "scipy", "matplotlib", "pyarrow", "numpy", "safetensors"}


EVALUATE = ("evaluate", "--json", "--prompt")


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def unfolded(text: str) -> str:
    return " ".join(text.split())


def next_command(out: str) -> list[str]:
    """The command that a command says to give next."""
    return shlex.split(out.rpartition("next: bmtpt ")[2])


def commands() -> dict[str, Any]:
    import typer

    from bmtpt.cli import app

    found = dict(typer.main.get_command(app).commands)
    return found | {f"tasks {name}": command for name, command in found["tasks"].commands.items()}


def block(page: str, language: str, containing: str) -> str:
    """The page's code block of a language that holds some text."""
    found = [code for code in re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL) if containing in code]
    assert len(found) == 1
    return found[0]


# Help


@pytest.mark.parametrize("name", commands())
def test_help_shows_an_example_whose_options_the_command_has(bmtpt, name):
    ran = bmtpt(*name.split(), "--help")
    assert ran.code == 0
    shown = " ".join(ran.out.split())
    example = commands()[name].epilog
    assert f"bmtpt {name}" in example
    assert example in shown
    assert all(option in shown.replace(example, "") for option in re.findall(r"--[\w-]+", example))


def test_help_of_a_command_describes_every_setting_and_its_default(bmtpt):
    shown = " ".join(re.sub("[│╭╮╰╯─]", " ", bmtpt("learn", "--help").out).split())
    for option in ("--particles", "--kernel", "--likelihood-scale", "--no-task-factors", "--seed"):
        assert option in shown
    assert shown.count("--no-") == 2  # the switches of learn: task factors, and spread weights
    assert "[default: rbf]" in shown
    assert "--decompose" in bmtpt("adapt", "--help").out


@pytest.mark.parametrize("command", [[], ["-h"], ["learn", "-h"], ["tasks", "show", "-h"]])
def test_help_is_shown_for_h_and_without_a_command(bmtpt, command):
    ran = bmtpt(*command)
    assert ran.code == 0
    assert f"Usage: bmtpt {' '.join(command)}".removesuffix(" -h").strip() in ran.out
    assert ran.out == bmtpt(*(["--help"] if not command else [*command[:-1], "--help"])).out


def test_the_version_is_that_of_the_package(bmtpt):
    from importlib.metadata import version

    assert bmtpt("--version") == (0, f"bmtpt {version('bmtpt')}\n", "")


@pytest.mark.parametrize("name", ["learn", "adapt"])
def test_every_choice_of_a_setting_is_in_the_help(name):
    from bmtpt.cli.train_commands import AdaptOptions, LearnOptions

    fields = {"learn": LearnOptions, "adapt": AdaptOptions}[name].model_fields
    options = {option.name: option for option in commands()[name].params}
    lists = {key: re.findall(r"Literal\[(.*?)\]", str(field.annotation)) for key, field in fields.items()}
    assert lists["optimiser"] == ["'adamw', 'adafactor', 'sgd'"]
    for key, found in lists.items():
        assert all(value in options[key].help for each in found for value in re.findall(r"'(\w+)'", each)), key


def test_the_first_help_loads_nothing_heavy():
    code = (
        "import sys\nfrom bmtpt.cli import main\nsys.argv = ['bmtpt', '--help']\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "print('loaded:', *(name for name in sys.modules if '.' not in name))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    _, _, loaded = ran.stdout.rpartition("loaded:")
    assert "typer" in loaded.split()
    assert HEAVY.isdisjoint(loaded.split())


# Tasks


def test_tasks_lists_the_built_in_ones_and_those_of_a_folder(bmtpt, tiny_task_folder):
    ran = bmtpt("tasks", "--dir", tiny_task_folder)
    assert ran.code == 0
    assert "rte: rows 2,490 / 138 / 139; metrics accuracy*; from hub, folder, offline" in ran.out
    assert "\n    sentiment sentence: {sentence} → negative, positive\n" in ran.out
    assert "\n    copa question: {question} premise: {premise} choice1: {choice1} choice2:\n    {choice2} → " in ran.out


def test_tasks_show_prints_examples_and_their_length_in_tokens(bmtpt, tiny_task_folder, tiny_t5_folder, tiny_tasks):
    file = tiny_task_folder / "sentiment.yaml"
    ran = bmtpt("tasks", "show", file, "--rows", "2", "--backbone", tiny_t5_folder)
    assert ran.code == 0, ran.err
    for example in tiny_tasks["sentiment"].train[:2]:
        assert f"\n{example.text}\n  → {example.target}\n" in ran.out
    assert tiny_tasks["sentiment"].train[2].text not in ran.out
    assert "100 % ≤ 9" in ran.out  # 2 words of the template, its colon, 5 words, the end of the sequence


def test_tasks_check_counts_the_rows_of_each_label(bmtpt, tiny_task_folder):
    ran = bmtpt("tasks", "check", tiny_task_folder / "sentiment.yaml")
    assert ran.code == 0
    assert "train: 24 examples (negative 12, positive 12)" in ran.out


# Options


def test_show_config_prints_what_config_reads_and_the_command_line_wins(bmtpt, tmp_path):
    config = tmp_path / "learn.yaml"
    config.write_text("kernel: imq\nsteps: 9\nsource: [sst2, mrpc]\nout: somewhere\nbackbone: offline\n")
    ran = bmtpt("learn", "--config", config, "--steps", "3", "--show-config")
    assert ran.code == 0
    shown = yaml.safe_load(ran.out)
    assert (shown["kernel"], shown["steps"], shown["source"]) == ("imq", 3, ["sst2", "mrpc"])
    config.write_text(ran.out)
    assert bmtpt("learn", "--config", config, "--show-config").out == ran.out


def test_the_other_commands_take_options_from_a_file_too(bmtpt, tmp_path, runs):
    config = tmp_path / "evaluate.yaml"
    config.write_text(f"prompt: {runs / 'prompt'}\nsplit: select\nscorer: generate\n")
    options = ["--prompt", runs / "prompt", "--split", "select", "--scorer"]
    generated, ranked = (bmtpt("evaluate", *options, scorer).out for scorer in ("generate", "rank"))
    assert generated != ranked
    assert bmtpt("evaluate", "--config", config).out == generated
    assert bmtpt("evaluate", "--config", config, "--scorer", "rank").out == ranked


def test_the_resolved_settings_are_saved_next_to_the_result(bmtpt, runs):
    saved = yaml.safe_load((runs / "post" / "settings.yaml").read_text())
    assert (saved["particles"], saved["prompt_length"], saved["kernel"]) == (2, 4, "rbf")
    again = bmtpt("learn", "--config", runs / "post" / "settings.yaml", "--show-config")
    assert yaml.safe_load(again.out) == saved


# Learn and adapt


def test_learn_reports_the_mean_gap_and_what_to_do_next(bmtpt, tmp_path, tiny_t5_folder, tiny_task_folder):
    task = tiny_task_folder / "pairs.yaml"
    options = ["--steps", "2", "--prompt-length", "3", "--out", tmp_path / "post"]
    ran = bmtpt("learn", "--backbone", tiny_t5_folder, "--source", task, *options)
    assert ran.code == 0, ran.err
    assert "posterior of 5 particles written to" in ran.out
    assert re.search(r"held-back NLL of the mean minus that of the particles: [+-]\d", ran.out)
    assert next_command(ran.out) == ["adapt", "--posterior", str(tmp_path / "post"), "--target", "TASK", "--out", "DIR"]


def test_learn_and_inspect_show_the_widths_that_the_sources_want(bmtpt, tmp_path, tiny_t5_folder, tiny_task_folder):
    options = ["--steps", "1", "--prompt-length", "3", "--readout-prior", "sources", "--out", tmp_path / "post"]
    ran = bmtpt("learn", "--backbone", tiny_t5_folder, "--source", tiny_task_folder / "pairs.yaml", *options)
    wanted = r"4 labels: offset σ_b [\d.]+.* \([\d.]+ nats\), linear σ_b [\d.]+.* \([\d.]+ nats\)"
    assert re.search(f"readout prior, as the sources want it: {wanted}", unfolded(ran.out)), ran.err
    assert re.search(f"readout prior: {wanted}", unfolded(bmtpt("inspect", tmp_path / "post").out))


def test_several_targets_are_adapted_together_into_one_folder_each(bmtpt, tmp_path, runs, tiny_task_folder):
    names = ("sentiment", "answers")
    targets = [word for name in names for word in ("--target", tiny_task_folder / f"{name}.yaml")]
    ran = bmtpt("adapt", "--posterior", runs / "post", *targets, "--steps", "2", "--out", tmp_path / "both")
    assert ran.code == 0, ran.err
    advice = [line for line in ran.out.splitlines() if line.startswith("next: ")]
    for line, name in zip(advice, names, strict=True):
        assert (
            line == f"next: bmtpt evaluate --prompt {tmp_path / 'both' / name}"
        )  # the prompt knows where its rows are
        done = bmtpt(*shlex.split(line.removeprefix("next: bmtpt ")), "--json")
        assert done.code == 0, done.err
        assert json_lines(done.out)[0]["target"] == name


def test_a_finished_run_is_replaced_only_if_that_is_asked_for(bmtpt, tmp_path, runs, tiny_task_folder):
    def adapt(steps: int, *more: str) -> Any:
        target = ["--target", tiny_task_folder / "sentiment.yaml", "--steps", str(steps), "--out", tmp_path / "prompt"]
        return bmtpt("adapt", "--posterior", runs / "post", *target, *more)

    assert adapt(2).code == 0
    refused = adapt(3)
    assert refused.code == 2
    assert "resume or overwrite it" in refused.err
    assert adapt(3, "--overwrite").code == 0
    assert json.loads((tmp_path / "prompt" / "card.json").read_text())["steps"] == 3


# Artifacts


def test_evaluate_prints_a_table_of_metrics_and_the_confusion_matrix(bmtpt, tmp_path, runs):
    import pandas as pd

    files = ["--predictions", tmp_path / "rows.csv", "--confusion", tmp_path / "matrix.parquet"]
    ran = bmtpt("evaluate", "--prompt", runs / "prompt", *files)
    assert ran.code == 0, ran.err
    lines = {row["metric"]: row["value"] for row in json_lines(bmtpt(*EVALUATE, runs / "prompt").out)}
    shown = dict(re.findall(r"^(\w[\w ]*?) +(-?[\d.]+)$", ran.out, re.MULTILINE))
    assert {name: float(shown[name]) for name in lines} == pytest.approx(lines, rel=1e-3)
    rows, matrix = pd.read_csv(tmp_path / "rows.csv"), pd.read_parquet(tmp_path / "matrix.parquet")
    assert (rows["prediction"] == rows["target"]).mean() * 100 == pytest.approx(lines["accuracy"])
    assert matrix.set_index("label").to_numpy().trace() == (rows["prediction"] == rows["target"]).sum()
    for label, counts in matrix.set_index("label").iterrows():
        assert re.search(rf"^{label} +{counts.iloc[0]} +{counts.iloc[1]}$", ran.out, re.MULTILINE), ran.out
    again = bmtpt("evaluate", "--prompt", runs / "prompt", *files)
    assert "rows.csv is there already; overwrite it" in again.err
    assert bmtpt("evaluate", "--prompt", runs / "prompt", *files, "--overwrite").code == 0


def test_evaluate_prints_result_lines_and_appends_them_to_a_file(bmtpt, tmp_path, runs):
    from bmtpt.results import read_results

    out = tmp_path / "scores.jsonl"
    first = bmtpt(*EVALUATE, runs / "prompt", "--out", out)
    assert first.code == 0
    assert [row["metric"] for row in json_lines(first.out)] == ["accuracy", "f1", "ece", "nll"]
    rows = read_results(out)
    assert len(rows) == 4
    bmtpt("evaluate", "--prompt", runs / "prompt", "--scorer", "generate", "--out", out)
    assert len(out.read_text().splitlines()) == 8
    assert rows[0].model_dump(mode="json") == json_lines(first.out)[0]


def test_a_prompt_knows_its_own_task_and_another_can_be_named(bmtpt, runs, tiny_task_folder):
    own = json_lines(bmtpt(*EVALUATE, runs / "prompt").out)
    assert {row["target"] for row in own} == {"sentiment"}
    named = bmtpt(*EVALUATE, runs / "prompt", "--task", tiny_task_folder / "pairs.yaml")
    assert {row["target"] for row in json_lines(named.out)} == {"pairs"}
    other = "the prompt was trained for task 'sentiment' and is evaluated on 'pairs', which has another name"
    assert other in named.err


def test_predict_answers_the_same_from_a_file_from_standard_input_and_from_plain_text(bmtpt, tmp_path, runs):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"sentence": "the film is good ."}\n\n{"sentence": "the meal is cold ."}\n')
    ran = bmtpt("predict", "--prompt", runs / "prompt", rows)
    assert ran.code == 0, ran.err
    answers = json_lines(ran.out)
    assert [answer["text"] for answer in answers] == [
        "sentiment sentence: the film is good .",
        "sentiment sentence: the meal is cold .",
    ]
    for answer in answers:
        assert answer["probability"] == max(answer["all"].values()) == answer["all"][answer["label"]]
        assert sum(answer["all"].values()) == pytest.approx(1)
    assert bmtpt("predict", "--prompt", runs / "prompt", stdin=rows.read_text()).out == ran.out
    assert [answer.pop("row") for answer in answers] == [
        json.loads(row) for row in rows.read_text().splitlines() if row
    ]
    plain = bmtpt("predict", "--prompt", runs / "prompt", stdin="the film is good .\nthe meal is cold .\n")
    assert json_lines(plain.out) == answers


def test_adapt_and_inspect_show_the_temperature(bmtpt, runs, tiny_task_folder, tmp_path):
    target = ["--target", tiny_task_folder / "sentiment.yaml", "--shots", "8", "--steps", "2"]
    options = ["--calibrate", "temperature", "--out", tmp_path / "out"]
    ran = bmtpt("adapt", "--posterior", runs / "post", *target, *options)
    (shown,) = re.findall(r"temperature [\d.]+, fitted on \d+ rows \(cross-fitted: NLL .* → .*, ECE .* → .*\)", ran.out)
    assert f"calibration: {shown}" in unfolded(bmtpt("inspect", tmp_path / "out").out)


def test_inspect_shows_the_card_and_the_nearest_tokens_of_each_row(bmtpt, runs):
    shown = bmtpt("inspect", runs / "post", "--tokens", "3")
    assert shown.code == 0, shown.err
    assert "shape: 2 × 4 × 24 (prompts × rows × width), fp32" in shown.out
    assert len(re.findall(r"^prompt \d, row \d: \S+ \S+ \S+$", shown.out, re.MULTILINE)) == 2 * 3
    svgd = json.loads((runs / "post" / "card.json").read_text())["diagnostics"]["svgd"]
    assert f"Stein discrepancy: {svgd['stein_discrepancy']:.3g} (squared" in shown.out
    assert f"repulsion: {svgd['repulsion_to_drive']:.2g} of the drive" in shown.out
    prompt = bmtpt("inspect", runs / "prompt")
    # A ∘ (u vᵀ) with 4 rows of width 24 and the readout of 2 labels, in a model of 28,832 parameters
    assert f"trained: {4 * 24 + 4 + 24 + 1 + 2 + 2 * 24} numbers, 0.6070% of the model" in prompt.out
    assert re.search(r"^readout: linear, averaged over its posterior, slope 1.00, offsets", prompt.out, re.MULTILINE)
    assert re.search(r"^selected: start .+, prior .+, step \d", prompt.out, re.MULTILINE)


def test_the_nearest_tokens_are_words_of_the_vocabulary_though_the_table_is_longer(tiny_backbone, runs):
    from dataclasses import replace

    from bmtpt.artifacts.inspect import nearest_tokens
    from bmtpt.artifacts.saved import Posterior

    posterior = Posterior.load(runs / "post")
    vocabulary = len(tiny_backbone.tokenizer)
    assert vocabulary < tiny_backbone.vocab_size
    nameless = tiny_backbone.embed(torch.arange(vocabulary, vocabulary + 4)).expand(2, -1, -1)
    assert len(list(nearest_tokens(replace(posterior, particles=nameless), tiny_backbone, 4))) == 8
    named = replace(posterior, particles=tiny_backbone.embed(torch.arange(40, 44)).expand(2, -1, -1))
    first = [nearest.tokens[0] for nearest in nearest_tokens(named, tiny_backbone, 4)]
    assert first == tiny_backbone.tokenizer.convert_ids_to_tokens([40, 41, 42, 43]) * 2


def test_a_prompt_comes_back_from_peft_with_the_same_scores(bmtpt, tmp_path, runs, tiny_t5_folder, tiny_task_folder):
    pytest.importorskip("peft")
    task = tiny_task_folder / "sentiment.yaml"
    plain = tmp_path / "plain"
    ran = bmtpt(
        "adapt", "--posterior", runs / "post", "--target", task, "--steps", "2", "--readout", "none", "--out", plain
    )
    assert ran.code == 0, ran.err
    assert bmtpt("export", plain, "--to", "peft", "--out", tmp_path / "peft").code == 0
    options = ["--task", task, "--backbone", tiny_t5_folder, "--out", tmp_path / "prompt"]
    assert bmtpt("import", tmp_path / "peft", *options).code == 0
    assert bmtpt("import", tmp_path / "peft", *options).code == 2
    assert bmtpt("import", tmp_path / "peft", *options, "--overwrite").code == 0
    scores = [
        [(row["metric"], row["value"]) for row in json_lines(bmtpt(*EVALUATE, folder).out)]
        for folder in (plain, tmp_path / "prompt")
    ]
    assert scores[0] == scores[1]


def test_a_tracked_run_leaves_its_curves_in_its_folder(bmtpt, tmp_path, runs, tiny_task_folder):
    pytest.importorskip("tensorboard")
    target = ["--target", tiny_task_folder / "sentiment.yaml", "--shots", "8", "--steps", "2"]
    ran = bmtpt("adapt", "--posterior", runs / "post", *target, "--track", "tensorboard", "--out", tmp_path / "tracked")
    assert ran.code == 0, ran.err
    assert list((tmp_path / "tracked" / "tensorboard").glob("events.out.tfevents.*"))


def test_an_export_for_an_embedded_backbone_names_a_folder_that_hugging_face_loads(bmtpt, tmp_path, runs):
    from bmtpt.artifacts.saved import Prompt
    from bmtpt.backbone.model.offline import OFFLINE

    pytest.importorskip("peft")
    prompt = Prompt.load(runs / "prompt")
    offline = prompt.card.backbone.model_copy(update={"name": "offline"})
    Prompt(prompt.prompts, prompt.card.model_copy(update={"backbone": offline})).save(tmp_path / "prompt")
    assert bmtpt("export", tmp_path / "prompt", "--out", tmp_path / "peft").code == 0
    assert f'base = "{OFFLINE.cache_folder}"' in (tmp_path / "peft" / "README.md").read_text()


def test_report_writes_one_page_of_runs_and_scores(bmtpt, tmp_path, runs):
    scores = tmp_path / "scores.jsonl"
    bmtpt("evaluate", "--prompt", runs / "prompt", "--out", scores)
    page = tmp_path / "report.html"
    ran = bmtpt("report", runs / "post", runs / "prompt", scores, "--out", page)
    assert ran.code == 0, ran.err
    text = page.read_text(encoding="utf-8")
    assert "<svg" in text
    assert "sentiment" in text
    assert "The particles&#39; path: table" in text
    assert "Accuracy over confidence: table" in text


def test_piped_tables_are_markdown_or_80_columns_wide_unless_columns_is_set(bmtpt, monkeypatch):
    lines = ROOT / "studies" / "results" / "quickstart.jsonl"
    monkeypatch.delenv("COLUMNS", raising=False)
    assert max(map(len, bmtpt("table", lines, "--text").out.splitlines())) == 80
    monkeypatch.setenv("COLUMNS", "120")
    wide = bmtpt("table", lines, "--text").out
    assert 110 < max(map(len, wide.splitlines())) <= 120
    markdown = bmtpt("table", lines).out
    assert markdown == bmtpt("table", lines, "--markdown").out
    assert markdown.startswith("| method | subject (16 shots) | prompts moved |")


def test_tables_and_reports_do_not_load_torch(runs, tmp_path):
    code = (
        "import sys\nfrom bmtpt.cli import main\nsys.argv[0] = 'bmtpt'\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert stop.code == 0\nassert 'torch' not in sys.modules"
    )
    file = ROOT / "studies" / "results" / "kernels.jsonl"
    for words in (["table", file], ["report", file, runs / "post", runs / "prompt", "--out", tmp_path / "page.html"]):
        ran = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout


def test_a_study_runs_once_and_prints_the_same_table_when_it_is_asked_again(
    bmtpt, tmp_path, tiny_t5_folder, tiny_task_folder
):
    study = {
        "name": "tiny",
        "sources": [f"{tiny_task_folder}/sentiment.yaml", f"{tiny_task_folder}/pairs.yaml"],
        "targets": [f"{tiny_task_folder}/answers.yaml"],
        "shots": [8],
        "learn": {"particles": 2, "prompt_length": 3, "steps": 2},
        "source_prompt": {"particles": 1, "prompt_length": 3, "steps": 2},
        "adapt": {"steps": 2, "prior_std_grid": [1.0]},
    }
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(study))
    command = ["study", file, "--backbone", tiny_t5_folder, "--out", tmp_path / "out", "--jobs", "1"]
    first = bmtpt(*command)
    assert first.code == 0, first.err
    assert "BMTPT is best on" in first.out
    scores = (tmp_path / "out" / "results.jsonl").read_bytes()
    stages = {"posterior", "source prompt pairs", "source prompt sentiment"}
    assert {row["method"] for row in json_lines(scores.decode())} == {"pt", "spot", "bmtpt"} | stages
    assert {"report.html", "study.json"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert not (tmp_path / "out" / "settings.yaml").exists()
    assert bmtpt(*command).out == first.out
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == scores


# The documents


def test_every_public_name_can_be_called_however_often_it_is_looked_up():
    import bmtpt as package

    code = (
        "import sys, bmtpt\n"
        "for name in sys.argv[1:] * 2:\n"
        "    assert callable(getattr(bmtpt, name)), name\n"
        "from bmtpt import learn, task\n"
        "assert callable(learn) and callable(task)"
    )
    subprocess.run([sys.executable, "-c", code, *package.__all__[::-1]], check=True)


def test_the_tasks_of_the_readmes_python_have_offline_rows():
    from bmtpt.tasks import load_task

    names = re.findall(r'"(\w+)"', block(README, "python", "import bmtpt").replace('"offline"', ""))
    assert len(names) == 4
    assert all(load_task(name).offline for name in names)


def test_resumed_after_a_full_disk_a_run_ends_in_the_same_bits(
    bmtpt, tmp_path, monkeypatch, tiny_t5_folder, tiny_task_folder
):
    import bmtpt.artifacts.files as files
    from bmtpt.artifacts.saved import Posterior

    def learn(folder: Path, *more: str) -> Any:
        options = ["--steps", "6", "--evaluate-every", "2", "--prompt-length", "3", "--precision", "float32"]
        task = tiny_task_folder / "sentiment.yaml"
        return bmtpt("learn", "--backbone", tiny_t5_folder, "--source", task, *options, "--out", folder, *more)

    assert learn(tmp_path / "whole").code == 0
    written: list[Path] = []

    def full(path: Path, content: bytes) -> None:
        written.append(path)
        if len([each for each in written if "checkpoint" in each.name]) == 2:
            raise OSError(28, "No space left on device", str(path))
        path.write_bytes(content)

    with monkeypatch.context() as patched:
        patched.setattr(files, "_write_to_disk", full)
        stopped = learn(tmp_path / "stopped")
    assert stopped.code == 2
    assert "no space left on device" in stopped.err
    assert sorted(path.name for path in (tmp_path / "stopped").iterdir()) == [
        "checkpoint.safetensors",
        "events.jsonl",
        "settings.yaml",
    ]
    assert learn(tmp_path / "stopped", "--resume").code == 0
    ends = [Posterior.load(tmp_path / name).particles for name in ("whole", "stopped")]
    assert torch.equal(*ends)
