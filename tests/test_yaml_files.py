from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from bmtpt.errors import ArtifactError, SettingsError, TaskError
from bmtpt.report.runs import read_inputs
from bmtpt.settings import LearnSettings, resolve
from bmtpt.studies.load import study_values
from bmtpt.tasks import load_task
from bmtpt.yaml_files import read_yaml

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
REFUSED = {
    "a: " + "[" * 30_000: "line 1: .*more than 50 brackets or levels",
    "a: " + "{b: " * 30_000: "line 1: .*more than 50",
    "".join(" " * i + "a:\n" for i in range(200)): "line 50: .*more than 50",
    "- " * 30_000: "line 1: .*more than 50",
    BOMB: r"line \d+: .*aliases stand for more than 100,000 values",
    "a: &x [*x]\n": r"line 1: .*alias \*x stands for nothing, or for itself",
    "a: *x\n": r"line 1: .*alias \*x stands for nothing",
    "a: 1\nb: 2\na: 3\n": "line 3: .*the key 'a' is given twice",
    "a: {b: 1, b: 2}\n": "line 1: .*the key 'b' is given twice",
    "a: [1\n": "line 2: this YAML cannot be read .* needs quotes",
    "a: 1\n---\nb: 2\n": "this YAML cannot be read",
    "a: !!python/object/apply:os.getcwd []\n": "this YAML cannot be read",
    "a: \x00\n": "this YAML cannot be read",
    "- a\n": "must hold 'key: value' lines",
    "a\n": "must hold 'key: value' lines",
}


@pytest.mark.parametrize("text", REFUSED, ids=range(len(REFUSED)))
def test_yaml_that_cannot_be_used_is_refused_in_one_sentence(tmp_path, text):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=REFUSED[text]) as caught:
        read_yaml(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 250


@pytest.mark.parametrize("text", ["a: " + "[" * 30_000, BOMB])
def test_every_file_of_a_user_is_read_this_way(tmp_path, text):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    for kind, read in {TaskError: load_task, SettingsError: study_values, ArtifactError: read_run}.items():
        with pytest.raises(kind, match="this YAML cannot be read"):
            read(path)
    with pytest.raises(SettingsError, match="this YAML cannot be read"):
        resolve(LearnSettings, path)


def read_run(path):
    path.with_name("settings.yaml").write_text(path.read_text())
    path.with_name("events.jsonl").write_text('{"event": "start"}\n')
    return read_inputs([path.parent])


@pytest.mark.parametrize("text", ["2024-13-45", "!!int x", "!!int ''", "!!bool x", "!!timestamp 9", "9" * 5000])
def test_a_value_that_looks_like_a_date_or_number_and_is_none_needs_quotes(tmp_path, text):
    (tmp_path / "x.yaml").write_text(f"a: {text}\n")
    with pytest.raises(SettingsError, match=r"x\.yaml: a value cannot be read .* quotes"):
        read_yaml(tmp_path / "x.yaml")


def test_bytes_that_are_no_text_and_files_of_gigabytes_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"a: caf\xe9\n")
    with pytest.raises(SettingsError, match=r"latin\.yaml is not UTF-8 text; save it as UTF-8"):
        read_yaml(path)
    monkeypatch.setattr("bmtpt.yaml_files.MOST_BYTES", 7)
    for endless in (path, Path("/dev/zero")):
        with pytest.raises(SettingsError, match=f"{endless} has more than 7 bytes"):
            read_yaml(endless)


def test_what_is_read_is_what_pyyaml_reads(tmp_path):
    text = "\ufeffa: &x [1, 2.5, yes, null, 'é']\nb: {c: *x, d: [*x, *x]}\n<<: {e: 1}\n1: 2\n"
    (tmp_path / "x.yaml").write_text(text, encoding="utf-8")
    assert read_yaml(tmp_path / "x.yaml") == yaml.safe_load(text[1:])
    assert read_yaml(tmp_path / "x.yaml", scalars="text")["a"] == ["1", "2.5", "yes", "null", "é"]
    (tmp_path / "x.yaml").write_text("")
    assert read_yaml(tmp_path / "x.yaml") == {}
