"""The report as a browser would read it."""

from __future__ import annotations

import json
import re
import shutil
from hashlib import sha256
from html.parser import HTMLParser

import numpy as np
import pytest
from safetensors.numpy import save

from bmtpt.errors import ArtifactError
from bmtpt.posterior.positions import written_positions
from bmtpt.report.html import write_report
from bmtpt.report.particle_plots import path_plot
from bmtpt.report.prompt_maps import principal_components, task_maps
from bmtpt.report.runs import Run
from bmtpt.report.svg import style
from bmtpt.report.training_plots import Series, thin
from bmtpt.results import Result, append_results
from bmtpt.sealed import sealed_line


class Page(HTMLParser):
    """Tags with attributes, texts, and the cells of tables."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.rows, self._in_cell = [], [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag):
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        self.texts.append(data)
        if self._in_cell:
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def page_text(pristine_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "report.html"
    return write_report([pristine_folder], out).read_text(encoding="utf-8")


def test_nothing_is_fetched_from_anywhere(page_text):
    for _, attributes in Page(page_text).tags:
        for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png"))
    assert not re.findall(r"@import|https?://|url\((?!#|&quot;#)", page_text)


def test_a_task_called_script_is_only_a_text(page_text):
    page = Page(page_text)
    assert [tag for tag, _ in page.tags].count("script") == 1  # ours
    assert "b" not in {tag for tag, _ in page.tags}  # from the logged warning
    assert any("<script>alert(1)</script>" in text for text in page.texts)


ATTACK = """<img src=x onerror=alert(1)>"'&]]>-->{{7*7}}{%x%}"""


def attacked(value):
    """Return JSON in which every text is an attack, and one more key is."""
    if isinstance(value, dict):
        return {key: attacked(item) for key, item in value.items()} | {ATTACK: ATTACK}
    if isinstance(value, list):
        return [attacked(item) for item in value]
    return ATTACK if isinstance(value, str) else value


def attacked_run(folder, run_folder):
    """Copy a run with attacks in the card, the settings, every event and the folder's name."""
    shutil.copytree(run_folder, folder)
    kept = ("kind", "weights_sha256", "format_version")
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps(attacked(card) | {key: card[key] for key in kept}))
    (folder / "settings.yaml").write_text(json.dumps(attacked({"particles": 3, "inner": {"kernel": "rbf"}})))
    lines = map(json.loads, (folder / "events.jsonl").read_text().splitlines())
    events = []
    for line in lines:
        losses = {key: {ATTACK: next(iter(line[key].values()))} for key in ("loss", "particle_nll") if key in line}
        means = {"mean_nll": {ATTACK: 2.0}} if "mean_nll" in line else {}
        events.append(attacked(line) | losses | means | {"event": line["event"]})
    (folder / "events.jsonl").write_text("".join(map(sealed_line, map(without_seal, events))))


def without_seal(event):
    return {key: value for key, value in event.items() if key != "sha256"}


def test_an_attack_in_any_field_of_a_run_or_a_result_line_is_only_a_text(run_folder, study, tmp_path):
    folder = tmp_path / ATTACK.replace("/", "")
    attacked_run(folder, run_folder)
    texts = [name for name, field in Result.model_fields.items() if field.annotation is str]
    assert {"study", "method", "backbone", "target", "metric", "variant", "settings_hash"} == set(texts)
    changes = dict.fromkeys(texts, ATTACK) | {"sources": (ATTACK,), "versions": {ATTACK: ATTACK}}
    append_results(folder / "results.jsonl", [row.model_copy(update=changes) for row in study[:1]])
    page = Page(write_report([folder], tmp_path / "r.html").read_text(encoding="utf-8"))
    tags = [(tag, attributes) for tag, attributes in page.tags]
    assert all(attributes["xlink:href"].startswith("data:image/png") for tag, attributes in tags if tag == "image")
    assert {tag for tag, _ in tags}.isdisjoint({"img", "iframe", "object", "embed", "form", "link"})
    assert [tag for tag, _ in tags].count("script") == 1
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]
    shown = [text for text in page.texts if ATTACK[:20] in text]
    assert len(shown) > 20
    assert "49" not in shown


def test_text_that_cannot_be_written_is_refused_where_it_is_read(tmp_path, result):
    append_results(tmp_path / "results.jsonl", [result("pt", "cb", 0, 50.0)])
    line = (tmp_path / "results.jsonl").read_text().replace('"cb"', '"c\\ud800b"')
    (tmp_path / "results.jsonl").write_text(line)
    with pytest.raises(ArtifactError, match=r"results\.jsonl, line 1"):
        write_report([tmp_path / "results.jsonl"], tmp_path / "r.html")


def test_the_numbers_of_the_score_table_are_numpys(page_text, study):
    rows = {row[0]: row for row in reversed(Page(page_text).rows) if row}  # the first table
    for target in ("cb", "rte", "paws"):
        for column, method in enumerate(("pt", "spot", "bmtpt"), start=1):
            v = np.array([r.value for r in study if (r.method, r.target) == (method, target)])
            assert rows[f"{target} (32 shots)"][column] == f"{v.mean():.1f} ± {v.std(ddof=1) / 2:.1f}"


def test_every_section_of_a_full_run_is_there(page_text):
    headings = re.findall(r"<h[23]>(.*?)</h[23]>", page_text)
    assert headings == [
        "Scores: small", "Run: source run", "Loss", "The mean against the particles",
        "Particles", "Map of prompts",
    ]  # fmt: skip
    assert {"nested.kernel", "fingerprint"} <= {row[0] for row in Page(page_text).rows if row}


def test_a_worthless_mean_is_warned_about(page_text):
    assert re.search(r'class="warning">On sst2, .*its held-back loss is 2\.4', page_text)


def test_only_the_last_check_warns_and_a_sentence_on_the_mean_stands_once(run_folder, tmp_path):
    sentences = ["Old news.", "The posterior mean lies in no mode: 2.4 against 0.3.", "Unstable."]
    lines = [
        json.dumps({"event": "diagnostics", "step": step, "diagnostics": {}, "warnings": warnings}) + "\n"
        for step, warnings in ((200, sentences[:1]), (220, sentences[1:]))
    ]
    with (run_folder / "events.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(lines)
    text = write_report([run_folder], tmp_path / "r.html").read_text(encoding="utf-8")
    assert [found[:8] for found in re.findall(r'class="warning">(.*?)</p>', text)] == ["On sst2,", "Unstable"]


def test_targets_without_a_gain_over_plain_prompt_tuning_are_named_in_one_warning(result, tmp_path):
    ours, plain = {"cb": 0.8, "rte": 0.5, "paws": 0.7}, {"cb": 0.6, "rte": 0.6, "paws": 0.7}
    lines = [
        result(method, target, seed, value, metric=metric, primary=metric == "accuracy")
        for method, losses in (("bmtpt", ours), ("pt", plain))
        for target, loss in losses.items()
        for seed in (0, 1)
        for metric, value in (("accuracy", 60.0), ("nll", loss + 0.1 * seed))
    ]
    append_results(tmp_path / "results.jsonl", lines)
    text = write_report([tmp_path / "results.jsonl"], tmp_path / "r.html").read_text(encoding="utf-8")
    (warning,) = re.findall(r'class="warning">(.*?)</p>', text)
    assert warning.startswith(
        "On cb (32 shots), paws (32 shots) (averages of the test NLL): The posterior is no better"
    )
    assert "(0.8 against 0.7)" in warning


def test_the_starts_of_a_target_are_called_candidates(tmp_path):
    folder = tmp_path / "target"
    folder.mkdir()
    lines = [
        {"event": "validation", "step": step, "candidate_scores": [1.0, 2.0], "loss": {"cb": [0.5, 0.4]}}
        for step in (-1, 19)
    ]
    (folder / "events.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    text = write_report([folder], tmp_path / "r.html").read_text(encoding="utf-8")
    assert "candidate 2" in text
    assert "particle 2" not in text


def test_the_same_input_gives_the_same_bytes(run_folder, tmp_path):
    first, second = (write_report([run_folder], tmp_path / name).read_bytes() for name in ("a.html", "b.html"))
    assert first == second
    assert len(first) < 1_000_000


def test_a_long_run_with_many_tasks_stays_under_a_megabyte(tmp_path):
    rng = np.random.default_rng(0)
    tasks = [f"task{k}" for k in range(6)]
    lines = [
        {"event": "step", "step": step, "loss": {task: rng.uniform(size=10).tolist() for task in tasks}}
        for step in range(1200)
    ]
    folder = tmp_path / "long"
    folder.mkdir()
    (folder / "events.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert write_report([folder], tmp_path / "out.html").stat().st_size < 1_000_000


def test_a_killed_run_is_reported_up_to_its_last_whole_line(run_folder, tmp_path):
    for name in ("card.json", "posterior.safetensors", "results.jsonl"):
        (run_folder / name).unlink()
    with (run_folder / "events.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"event": "step", "st')
    assert "<h3>Loss</h3>" in write_report([run_folder], tmp_path / "r.html").read_text(encoding="utf-8")


def test_numbers_that_are_not_those_of_the_card_are_refused(run_folder, tmp_path):
    path = run_folder / "posterior.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    with pytest.raises(ArtifactError, match=r"posterior\.safetensors is not the file that card\.json"):
        write_report([run_folder], tmp_path / "r.html")


def test_an_event_that_was_changed_is_named(run_folder, tmp_path):
    path = run_folder / "events.jsonl"
    path.write_text(path.read_text().replace('"lr":0.3', '"lr":0.2', 1))
    with pytest.raises(ArtifactError, match=r"events\.jsonl, line \d+ is not as it was written"):
        write_report([run_folder], tmp_path / "r.html")


def test_a_broken_line_in_the_middle_is_named(run_folder, tmp_path):
    path = run_folder / "events.jsonl"
    path.write_text("{broken\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"events\.jsonl, line 1"):
        write_report([run_folder], tmp_path / "r.html")


def test_losses_that_are_null_or_not_a_number_are_gaps(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    lines = ['{"event":"step","step":1,"loss":{"a":[NaN,null]}}', '{"event":"step","step":2,"loss":{"a":[1,2]}}']
    (folder / "events.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert "<svg" in write_report([folder], tmp_path / "r.html").read_text(encoding="utf-8")


def test_a_results_file_alone_is_enough_and_studies_stand_apart(tmp_path, study):
    path = tmp_path / "studies.jsonl"
    append_results(path, [*study, *(row.model_copy(update={"study": "other"}) for row in study)])
    text = write_report([path], tmp_path / "r.html").read_text(encoding="utf-8")
    assert re.findall(r"<h2>(.*?)</h2>", text) == ["Scores: small", "Scores: other"]


def test_prompts_of_targets_join_the_map(run_folder, tmp_path):
    folder = tmp_path / "target"
    folder.mkdir()
    content = save({"prompts": np.ones((1, 5, 8), np.float32)})
    (folder / "prompt.safetensors").write_bytes(content)
    card = {"format_version": 1, "kind": "prompt", "task": "boolq", "weights_sha256": sha256(content).hexdigest()}
    (folder / "card.json").write_text(json.dumps(card))
    text = write_report([run_folder, folder], tmp_path / "r.html").read_text(encoding="utf-8")
    assert "target: boolq" in text
    assert "source run: particle 3" in text


def test_folders_of_one_name_are_told_apart(run_folder, tmp_path):
    twin = tmp_path / "other" / "source run"
    shutil.copytree(run_folder, twin)
    (twin / "results.jsonl").unlink()
    text = write_report([run_folder, twin], tmp_path / "r.html").read_text(encoding="utf-8")
    assert "Run: other/source run" in text


@pytest.mark.parametrize("make", ["missing", "empty folder", "empty file"])
def test_a_path_without_anything_to_report_is_a_clear_error(tmp_path, make):
    path = tmp_path / "x"
    if make == "empty folder":
        path.mkdir()
    if make == "empty file":
        path.touch()
    with pytest.raises(ArtifactError, match=r"x (does not exist|holds nothing to report)"):
        write_report([path], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_a_method_that_no_line_has_is_a_clear_error(tmp_path, study):
    append_results(tmp_path / "lines.jsonl", study)
    with pytest.raises(ArtifactError, match="no results of the method 'bmtpd'; did you mean 'bmtpt'"):
        write_report([tmp_path / "lines.jsonl"], tmp_path / "page.html", "bmtpd")


def test_principal_components_keep_distances_of_points_in_a_plane():
    rng = np.random.default_rng(3)
    plane = rng.normal(size=(6, 2)) @ np.linalg.qr(rng.normal(size=(9, 2)))[0].T
    points, shares = principal_components(plane)
    apart = [np.linalg.norm(x[:, None] - x[None], axis=-1) for x in (points, plane)]
    assert np.allclose(*apart)
    assert sum(shares) == pytest.approx(1)


def path_of(positions):
    """Draw particles that were at these places [checks, M, D], one check every 20 steps."""
    events = [
        {"event": "validation", "step": 20 * check, "positions": written_positions(at)}
        for check, at in enumerate(positions)
    ]
    with style():
        return path_plot(Run("run", events=tuple(events)))


def test_the_path_keeps_the_distances_between_checks_of_a_particle():
    rng = np.random.default_rng(5)
    at = rng.normal(size=(4, 3, 2)) @ np.linalg.qr(rng.normal(size=(9, 2)))[0].T
    rows = path_of(at).table.rows
    assert [row[:2] for row in rows[:5]] == [
        *(("particle 1", f"step {20 * c}") for c in range(4)),
        ("particle 2", "step 0"),
    ]
    drawn = np.array([[float(text.replace("−", "-")) for text in row[2:]] for row in rows]).reshape(3, 4, 2)
    apart = [np.linalg.norm(np.diff(each, axis=1), axis=-1) for each in (drawn, at.transpose(1, 0, 2))]
    np.testing.assert_allclose(*apart, atol=0.02)


def test_a_path_of_one_check_is_none_and_of_many_checks_shows_the_first_and_the_last():
    assert path_of(np.ones((1, 2, 9))) is None
    steps = [row[1] for row in path_of(np.random.default_rng(0).normal(size=(200, 1, 9))).table.rows]
    assert (steps[0], steps[-1]) == ("step 0", "step 3980")
    assert len(steps) < 80


def test_likeness_is_the_cosine_of_the_prompts_averages():
    prompts = {name: np.random.default_rng(seed).normal(size=(5, 8)) for seed, name in enumerate(("a", "b", "c"))}
    with style():
        (_, _), (likeness, _) = task_maps([Run("run", prompts=prompts)])
    a, b = prompts["a"].mean(0), prompts["b"].mean(0)
    expected = a @ b / np.sqrt(a @ a * (b @ b))
    assert float(likeness.table.rows[0][3].replace("−", "-")) == pytest.approx(expected, rel=1e-2)


def test_thinning_keeps_the_mean_of_a_curve():
    steps, values = thin(Series(np.arange(100.0), np.arange(100.0)[:, None]), 10)
    assert values.shape == (10, 1)
    assert values.mean() == pytest.approx(49.5)
    assert list(steps) == list(values[:, 0])
