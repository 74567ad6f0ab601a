"""Result lines: what is written is read back, and a wrong line is named."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from bmtpt.errors import ArtifactError
from bmtpt.results import Result, append_results, read_results, settings_hash


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


def test_a_missing_file_and_a_folder_that_cannot_be_written_are_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"cannot read results from .*none\.jsonl"):
        read_results(tmp_path / "none.jsonl")
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot write results to"):
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
