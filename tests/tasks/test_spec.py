from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

import bmtpt
from bmtpt.errors import TaskError
from bmtpt.tasks import TaskSpec, builtin_tasks, describe, load_task, saved_task

STUDY_TASKS = sorted((Path(__file__).parents[2] / "studies" / "tasks").glob("*.yaml"))
TICKETS = """\
name: tickets
file: tickets.csv
text: "tickets subject: {subject} body: {body}"
context: body
label: team
labels: [billing, technical]
"""

# The sizes of the literature's splits, typed from TASKS.md.
PUBLISHED = {
    "mnli": (392702, 9832, 9815),
    "qqp": (362846, 1000, 40431),
    "qnli": (103743, 1000, 5463),
    "sst2": (66349, 1000, 872),
    "stsb": (5749, 750, 750),
    "mrpc": (3668, 204, 204),
    "rte": (2490, 138, 139),
    "cola": (8551, 521, 522),
    "multirc": (27243, 2424, 2424),
    "boolq": (9427, 1635, 1635),
    "wic": (5428, 319, 319),
    "wsc": (554, 52, 52),
    "cb": (250, 28, 28),
    "nq": (103071, 1000, 12836),
    "hotpotqa": (71928, 1000, 5901),
    "searchqa": (116384, 1000, 16980),
    "newsqa": (73160, 1000, 4212),
    "winogrande": (39398, 1000, 1267),
    "yelp": (100000, 1000, 38000),
    "scitail": (23596, 652, 652),
    "paws": (49401, 8000, 8000),
}
PRIMARY = {"stsb": "pearson", "multirc": "f1", "cola": "matthews"} | dict.fromkeys(
    ("nq", "hotpotqa", "searchqa", "newsqa", "squad", "record", "sciq"), "f1"
)
METRICS = {
    "cola": {"matthews", "accuracy"},
    "mrpc": {"f1", "accuracy"},
    "qqp": {"f1", "accuracy"},
    "stsb": {"pearson", "spearman"},
    "multirc": {"f1", "group_em"},
    "cb": {"accuracy", "macro_f1"},
} | {name: {"em", "f1"} for name in ("nq", "hotpotqa", "searchqa", "newsqa", "squad", "record", "sciq")}


def write(folder: Path, text: str) -> Path:
    path = folder / "tickets.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_blanks_around_a_label_word_do_not_count():
    spec = TaskSpec(name="x", file="x.csv", text="{a}", labels={"0": " no", "1": "yes "})
    assert spec.label_words == ("no", "yes")


def test_all_tasks_of_the_paper_are_built_in():
    assert set(builtin_tasks()) == set(PUBLISHED) | {"squad", "record", "copa", "sciq"}


@pytest.mark.parametrize("name", builtin_tasks())
def test_a_built_in_task_has_the_published_sizes_and_metrics(name):
    spec = load_task(name)
    assert spec.name == name
    assert spec.published == PUBLISHED.get(name)
    assert spec.primary == PRIMARY.get(name, "accuracy")
    assert set(spec.metrics) == METRICS.get(name, {"accuracy"})
    long = {"multirc": 348} | dict.fromkeys(("nq", "hotpotqa", "searchqa", "newsqa", "squad", "record"), 512)
    assert spec.max_length == long.get(name, 256)
    assert spec.text.startswith(f"{name} ")


@pytest.mark.parametrize("path", STUDY_TASKS, ids=lambda path: path.stem)
def test_task_files_outside_the_package_are_valid(path):
    assert load_task(path).folder


def test_label_words_are_those_of_t5():
    assert load_task("mnli").label_words == ("entailment", "neutral", "contradiction")
    assert load_task("mrpc").label_words == ("not_equivalent", "equivalent")
    assert load_task("boolq").label_words == ("false", "true")
    assert load_task("cb").label_words == ("entailment", "contradiction", "neutral")


def test_a_user_task_of_six_lines_over_one_csv_is_enough(tmp_path):
    spec = load_task(write(tmp_path, TICKETS))
    assert spec.file == tmp_path / "tickets.csv"
    assert spec.label_words == ("billing", "technical")
    assert (spec.metrics, spec.primary, spec.max_length) == (("accuracy",), "accuracy", 256)


def test_yes_and_no_stay_words(tmp_path):
    spec = load_task(write(tmp_path, TICKETS.replace("[billing, technical]", "{no: no, yes: yes}")))
    assert spec.labels == {"no": "no", "yes": "yes"}


@pytest.mark.parametrize("name", ["boolq", "stsb", "copa", "multirc", "nq", "yelp"])
def test_a_task_survives_json(name):
    spec = load_task(name)
    assert TaskSpec.model_validate(json.loads(json.dumps(spec.model_dump(mode="json")))) == spec


def test_a_task_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        load_task("rte").name = "other"


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("labels:", "lables:", "unknown key 'lables'; did you mean 'labels'"),
        ("name: tickets\n", "", "key 'name' is missing"),
        ("context: body", "context: bdy", "'context' names 'bdy'"),
        ("{subject} body: {body}", "{body} body: {body}", "exactly once"),
        ("[billing, technical]", "[billing]", "at least two"),
        ("label: team\n", "label: team\nsteps: 5\n", "exactly one of"),
        ("label: team\n", "label: team\nmetrics: [pearson]\n", "'pearson' does not fit"),
        ("label: team\n", "label: team\nprimary: f1\n", "not among 'metrics'"),
        ("label: team\n", "label: team\nmetrics: [group_em]\n", "'group' is missing"),
        ("label: team\n", "label: team\nsplit: halv\n", "key 'split'"),
        ("label: team\n", "label: team\nsplit: halve\n", "rows in one file need one of stratify, cut, column, none"),
        ("file: tickets.csv", "split: cut\nfiles: {train: a.csv}", "rows in several parts need one of own, halve"),
        ("label: team\n", "label: team\nsplit: column\n", "'split_column' names the column"),
        ("[billing, technical]", "['', technical]", "a label word is empty"),
        ("label: team\n", "label: team\nsplit_names: [train]\n", "'split_names'"),
        ("label: team\n", "label: team\nmax_length: long\n", "key 'max_length'"),
        ("file: tickets.csv\n", "", "name the rows"),
        ("label: team\n", "label: team\nencoding: utf-99\n", "key 'encoding': there is no encoding 'utf-99'"),
        ("label: team\n", "label: team\nencoding: base64\n", "key 'encoding': there is no encoding 'base64'"),
        ("label: team\n", "label: team\ndelimiter: ';;'\n", "key 'delimiter': ';;' cannot separate columns"),
        ("label: team\n", "label: team\nquoting: all\n", "key 'quoting'"),
        ("[billing, technical]", "['{{', x]", "the label word '{{' holds a brace"),
        ("[billing, technical]", "[1, 1.0]", "the label '1.0' is there twice"),
        ("label: team\n", "label: team\nfiles: {train: a.csv}\n", "not both"),
        ("[billing, technical]", "[a, b, c]\nmetrics: [f1]", "macro_f1"),
        ("{subject}", "{subject!r}", "plain column name"),
        ("{body}", "{body", "tickets subject: {subject} body: {body"),
    ],
)
def test_a_wrong_task_file_is_refused_with_its_name_and_key(tmp_path, old, new, sentence):
    path = write(tmp_path, TICKETS.replace(old, new))
    with pytest.raises(TaskError) as caught:
        load_task(path)
    assert str(path) in str(caught.value)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_text_that_is_not_yaml_is_refused_with_its_line(tmp_path):
    with pytest.raises(TaskError, match=r"line 3.*needs quotes"):
        load_task(write(tmp_path, TICKETS.replace('"', "")))


def test_a_list_is_no_task(tmp_path):
    with pytest.raises(TaskError, match="key: value"):
        load_task(write(tmp_path, "- a\n- b\n"))


def test_a_missing_task_file_is_named(tmp_path):
    with pytest.raises(TaskError, match=r"nowhere\.yaml"):
        load_task(tmp_path / "nowhere.yaml")


def test_an_unknown_task_gets_the_nearest_names():
    with pytest.raises(TaskError, match="did you mean 'mnli'"):
        load_task("mnl1")


def test_describe_names_the_headline_metric_and_the_labels():
    facts = describe("rte")
    assert facts["rows"] == "2,490 / 138 / 139"
    assert facts["labels"] == "entailment, not_entailment"
    assert facts["metrics"] == "accuracy*"
    assert describe("stsb")["labels"] == "number"
    assert describe("nq")["labels"] == "free answer"


def test_listing_tasks_loads_no_heavy_library():
    code = (
        "import sys; from bmtpt.tasks import builtin_tasks, describe; [describe(n) for n in builtin_tasks()];"
        "print([m for m in ('torch', 'numpy', 'datasets', 'sklearn', 'pyarrow', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_card_whose_task_is_none_is_refused_in_one_sentence():
    assert saved_task(load_task("cb").model_dump(mode="json")) == load_task("cb")
    with pytest.raises(TaskError, match=r"card.json of the prompt for cb .*: .*; give a card as it was written"):
        saved_task({"name": "cb", "text": "x", "metrik": []})


def test_one_file_of_a_version_1_task_is_still_cut_in_three(tmp_path):
    definition = load_task(write(tmp_path, TICKETS)).model_dump(mode="json")
    names = {"split": "own", "split_names": ["train", "validation", "test"]}
    assert saved_task({**definition, **names}).split == "cut"


def test_a_label_next_to_answers_is_refused_and_read_in_older_cards():
    keys = {"name": "t", "text": "{question}", "answers": "answer"}
    with pytest.raises(ValidationError, match=r"'answers' \(answer\) and 'label' \(team\) both name"):
        TaskSpec.model_validate({**keys, "label": "team"})
    with pytest.raises(TaskError, match="both name the answer's column; give one of them"):
        bmtpt.Task([{"question": "who ?", "answer": "ben", "team": "x"}], "{question}", answers="answer", label="team")
    assert saved_task({**keys, "label": "team"}) == TaskSpec.model_validate(keys)


@pytest.mark.parametrize("name", ["rows.csv", "Rows.JSONL.gz", "rows.parquet"])
def test_rows_that_are_given_as_a_task_are_told_from_one(tmp_path, name):
    (tmp_path / name).write_text("text,label\n")
    wanted = f"{name} holds rows, and a task is a .yaml file that says how to read them: write 'file: {name}', 'text'"
    with pytest.raises(TaskError, match=re.escape(wanted)):
        load_task(tmp_path / name)
