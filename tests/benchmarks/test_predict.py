"""The prediction benchmark on a tiny model: what it writes is checked, not how fast it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("peft")

import predict

TINY = ["--prompt-tokens", "3", "--rows", "10", "--rounds", "1", "--device", "cpu", "--precisions", "float32"]


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory, tiny_t5_folder: Path) -> list[dict]:
    out = tmp_path_factory.mktemp("results") / "predict.jsonl"
    predict.main(["--backbone", str(tiny_t5_folder), *TINY, "--arrivals", "1", "7", "--out", str(out)])
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_all_three_ways_give_the_same_answers_to_labels_and_texts(lines):
    assert [line["arrival"] for line in lines] == [1, 7]
    for line in lines:
        assert line["equal_answers"] == {"one_task_at_a_time": 1, "peft": 1}
        assert 0 < line["rows_that_generate"] < line["rows"] == 10
        assert line["tokens_generated"] > line["rows_that_generate"]


def test_rates_and_ratios_are_those_of_the_seconds(lines):
    for line in lines:
        seconds = line["seconds"]
        assert list(seconds) == ["mixed", "one_task_at_a_time", "peft"]
        assert line["ratio"]["peft"] == pytest.approx(seconds["peft"] / seconds["mixed"], abs=0.02)
        assert line["rows_per_second"]["mixed"] == pytest.approx(10 / seconds["mixed"], rel=0.01)


def test_a_decoder_only_shape_is_timed_without_peft(tmp_path: Path) -> None:
    out = tmp_path / "predict.jsonl"
    predict.main(["--shape", "tiny-gpt2", *TINY, "--arrivals", "5", "--out", str(out)])
    (line,) = map(json.loads, out.read_text().splitlines())
    assert line["backbone"] == "tiny-gpt2"
    assert line["equal_answers"] == {"one_task_at_a_time": 1}
    assert line["tokens_generated"] > line["rows_that_generate"] > 0
