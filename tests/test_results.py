"""Result lines: what is written is read back, and a wrong line is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from bmtpt.errors import ArtifactError
from bmtpt.results import Result, append_results, read_results, result_lines, settings_hash
from bmtpt.sealed import line_values
from damages import flipped

ROOT = Path(__file__).parents[1]


def a_result(**changes: object) -> Result:
    values: dict[str, object] = {
        "study": "tiny",
        "method": "pt",
        "backbone": "offline",
        "sources": ("sst2",),
        "target": "cb",
        "shots": None,
        "seed": 0,
        "metric": "accuracy",
        "value": 71.25,
        "primary": True,
        "constant_answer": 50.0,
        "invalid_share": 0.0,
        "trained_parameters": 77_668,
        "trained_share": 0.001,
        "steps": 10,
        "seconds": 1.5,
        "settings_hash": "0" * 12,
        "data": "cut",
        "versions": {"bmtpt": "0.1.0"},
    }
    return Result.model_validate(values | changes)


def test_appended_rows_come_back_in_order(tmp_path):
    path = tmp_path / "deep" / "results.jsonl"
    first, second = a_result(), a_result(seed=1, shots=16, constant_answer=None)
    append_results(path, [first])
    append_results(path, [second])
    assert read_results(path) == [first, second]
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_several_files_are_read_as_one_and_blank_lines_are_skipped(tmp_path):
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for seed, path in enumerate(paths):
        append_results(path, [a_result(seed=seed)])
    paths[0].write_text(paths[0].read_text() + "\n\n")
    assert [row.seed for row in read_results(paths)] == [0, 1]


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("{not json", "JSON"),
        ('{"study": "x"}', "method"),
        (a_result().model_dump_json()[:-1] + ', "extra": 1}', "extra"),
    ],
)
def test_a_wrong_line_is_named_with_file_and_number(tmp_path, line, named):
    path = tmp_path / "results.jsonl"
    path.write_text(a_result().model_dump_json() + "\n" + line + "\n")
    with pytest.raises(ArtifactError) as error:
        read_results(path)
    assert f"{path}, line 2" in str(error.value)
    assert named in str(error.value)
    assert "\n" not in str(error.value)


def test_of_a_doubled_line_the_last_counts_and_one_sentence_says_so(tmp_path, caplog):
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    append_results(first, [a_result(), a_result(seed=1), a_result(seed=1)])
    append_results(second, [a_result(value=50.0), a_result(target="rte")])
    rows = read_results([first, second])
    assert [(row.target, row.seed, row.value) for row in rows] == [("cb", 0, 50.0), ("cb", 1, 71.25), ("rte", 0, 71.25)]
    (said,) = caplog.messages
    assert (
        said == f"{first}, line 3 repeats the run of {first}, line 2 (and 1 more such lines); the last of each counts"
    )


def test_every_fifth_flipped_bit_of_a_line_is_refused_or_changes_nothing(tmp_path):
    path, wanted = tmp_path / "results.jsonl", a_result(shots=16, variant="π", moved=True)
    append_results(path, [wanted])
    content, refused = path.read_bytes(), 0
    for bit in range(0, 8 * len(content), 5):
        path.write_bytes(flipped(content, [bit]))
        try:
            assert read_results(path) == [wanted]
        except ArtifactError:
            refused += 1
    assert refused > 0.98 * 8 / 5 * len(content)


@pytest.mark.parametrize("separator", ["\x0b", "\x1c", "\x85", "\u2028"])
def test_a_name_with_what_some_call_a_line_break_stays_on_its_line(tmp_path, separator):
    path, row = tmp_path / "results.jsonl", a_result(variant=f"a{separator}b")
    append_results(path, [row, a_result()])
    assert read_results(path) == [row, a_result()]


def test_a_missing_file_and_a_folder_that_cannot_be_written_are_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"cannot read .*none\.jsonl"):
        read_results(tmp_path / "none.jsonl")
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot write"):
        append_results(tmp_path / "file" / "results.jsonl", [a_result()])


@pytest.mark.parametrize("wrong", [{"data": "guessed"}, {"value": "high"}, {"unknown": 1}])
def test_a_result_that_breaks_the_schema_is_refused(wrong):
    with pytest.raises(ValidationError):
        a_result(**wrong)


def test_the_settings_hash_sees_values_and_not_the_order_of_keys():
    assert settings_hash({"a": 1, "b": {"c": 2, "d": 3}}) == settings_hash({"b": {"d": 3, "c": 2}, "a": 1})
    assert settings_hash({"a": 1}) != settings_hash({"a": 2})
    assert settings_hash({"a": 1}) != settings_hash({"b": 1})
    assert len(settings_hash({})) == 12


def test_optional_fields_are_written_only_where_they_say_something():
    assert not {"variant", "source_seed", "train_rows", "moved"} & set(json.loads(a_result().model_dump_json()))
    said = json.loads(a_result(moved=False, source_seed=0, train_rows=26, selection_rows=6).model_dump_json())
    assert (said["moved"], said["source_seed"], said["train_rows"], said["selection_rows"]) == (False, 0, 26, 6)


def test_the_lines_of_a_run_share_everything_but_their_figures():
    facts = a_result().model_dump(include={"study", "method", "backbone", "sources", "target", "shots", "seed"})
    facts |= {"trained_parameters": 50, "steps": 1, "seconds": 1.0, "data": "cut", "versions": {}}
    first, second = result_lines(
        {"accuracy": 70.0, "nll": 0.5}, parameters=200, primary="accuracy", constant_answer=60.0, **facts
    )
    assert (first.metric, first.value, first.primary, first.constant_answer) == ("accuracy", 70.0, True, 60.0)
    assert (second.metric, second.value, second.primary, second.constant_answer) == ("nll", 0.5, False, None)
    assert first.trained_share == second.trained_share == 0.25


NO_STUDIES = ("particle_init", "few-labels-headroom")
"""Files of lines of a benchmark (benchmarks/particle_init.py) and of `bmtpt headroom`."""

COMMITTED = [path for path in sorted((ROOT / "studies" / "results").glob("*.jsonl")) if path.stem not in NO_STUDIES]


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_every_committed_line_is_read(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = read_results(path)
    assert len(rows) == len(lines)
    assert json.loads(rows[0].model_dump_json()) == line_values(lines[0])
