"""Every script runs on tiny shapes; what it writes is checked, not how fast it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import baselines
import causal
import particle_init
import plot
import scaling
import step
from baselines import NAMES, by_length
from cases import draw_lengths, make_case
from result_tables import blocks, fill, read_lines
from targets import TARGETS, judged

ROOT = Path(__file__).parents[2]
SMOKE = ["--smoke", "--device", "cpu", "--rounds", "1"]


@pytest.fixture(scope="module", autouse=True)
def few_setups():
    """Two cases are enough: one of each family and precision."""
    few = [step.SMOKE[0], step.SMOKE[3]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "SMOKE", few)
        yield


def test_the_tasks_of_the_particles_start_are_there():
    assert [Path(name).stem for name in particle_init.SOURCES if Path(name).suffix] == [
        "mnli_dev",
        "qnli_rebuilt",
        "qqp_subset",
    ]
    assert all(Path(name).is_file() for name in particle_init.SOURCES if Path(name).suffix)


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A results folder that the smoke runs of step.py, scaling.py and causal.py have written."""
    folder = tmp_path_factory.mktemp("results")
    assert step.main([*SMOKE, "--out", str(folder / "step-cpu.jsonl")]) == 0
    assert scaling.main([*SMOKE, "--out", str(folder / "scaling-cpu.jsonl")]) == 0
    assert causal.main([*SMOKE, "--out", str(folder / "causal-cpu.jsonl")]) == 0
    return folder


def test_every_variant_of_a_step_computes_the_references_gradient(results):
    single, half = lines_of(results / "step-cpu.jsonl")
    assert list(single["seconds"]) == list(half["seconds"]) == list(NAMES)
    assert all(error < 1e-5 for error in single["relative_error"].values())
    assert all(cosine > 0.99 for cosine in half["cosine"].values())
    assert single["ratio"]["batched"] == pytest.approx(single["seconds"]["batched"] / single["seconds"]["packed"])


def test_a_variant_that_computes_something_else_ends_the_run(monkeypatch):
    wrong = lambda self, particles: (torch.zeros(2, 3), torch.ones_like(particles))  # noqa: E731
    monkeypatch.setattr(baselines.OurEngine, "__call__", wrong)
    with pytest.raises(SystemExit, match="ours, engine=packed does not compute the reference's quantity"):
        step.main([*SMOKE, "--variants", "packed"])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_gradient_that_is_not_finite_ends_the_run_in_any_precision(precision):
    case = make_case("tiny", 2, 4, draw_lengths(K=3, B=1), torch.randn(96, 32))
    truth = torch.zeros(2, 3), torch.ones_like(case.particles)
    broken = truth[1].clone()
    broken[0, 0, 0] = torch.nan
    with pytest.raises(SystemExit, match="not finite"):
        step._checked("packed", lambda particles: (truth[0], broken), case, truth, precision)


def test_recomputing_makes_a_line_of_its_own_next_to_the_cases_main_line(results, tmp_path):
    out = tmp_path / "step-cpu.jsonl"
    out.write_text((results / "step-cpu.jsonl").read_text())
    variants = ["packed", "packed_recompute"]
    assert step.main([*SMOKE, "--variants", *variants, "--out", str(out)]) == 0
    single, _, *plans = lines_of(out)
    assert [(line["benchmark"], line["targets"]) for line in plans] == [("plans", [])] * 2
    folder = tmp_path / "real"
    folder.mkdir()
    out.rename(tmp_path / "results.jsonl")
    text = (tmp_path / "results.jsonl").read_text().replace('"tiny"', '"t5-small"')
    (folder / "step-cpu.jsonl").write_text(text)
    made = blocks(read_lines(folder))
    assert f"{single['ratio']['loop_frozen']:.2f}" in made["step-cpu"]
    assert all(f"| {name} |" in made["plans-cpu"] for name in variants)
    assert made["plans-cuda"] == "Not measured."


def test_every_variant_of_a_decoder_only_step_computes_the_references_gradient(results):
    lines = lines_of(results / "causal-cpu.jsonl")
    assert [(line["size"], line["precision"]) for line in lines] == [(s.size, s.precision) for s in causal.SMOKE]
    for line in lines:
        assert set(line["seconds"]) == set(causal.VARIANTS)
        assert all(cosine > 0.99 for cosine in line["cosine"].values())
        if line["precision"] == "float32":
            assert all(error < 1e-5 for error in line["relative_error"].values())


def test_every_axis_of_the_scaling_is_walked_with_the_others_held(results):
    lines = lines_of(results / "scaling-cpu.jsonl")
    assert [(line["axis"], line[line["axis"]]) for line in lines] == [
        (axis, value) for axis, values in scaling.SMOKE_AXES.items() for value in values
    ]
    base = vars(scaling.SMOKE_BASE)
    assert all(line[name] == base[name] for line in lines for name in base if name != line["axis"])
    assert all(line["svgd_share"] == line["svgd_seconds"] / line["seconds"] > 0 for line in lines)


def test_a_case_that_does_not_fit_into_memory_costs_its_own_line_only(results, monkeypatch, tmp_path, capsys):
    lines = {line["size"]: line for line in lines_of(results / "step-cpu.jsonl")}

    def too_large(setup, *_):
        if setup.size == "tiny":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return lines[setup.size]

    monkeypatch.setattr(step, "measured", too_large)
    assert step.main([*SMOKE, "--out", str(tmp_path / "step.jsonl")]) == 1
    assert lines_of(tmp_path / "step.jsonl") == [lines["tiny-gated"]]
    assert "tiny, B = 2, float32: failed: CUDA out of memory" in capsys.readouterr().out


def test_the_length_sorted_baseline_holds_every_row_once_and_keeps_its_budget():
    case = make_case("tiny", 3, 4, draw_lengths(K=6, B=2), torch.randn(96, 32))
    passes = by_length(case, budget=600)
    lengths = [4 + len(ids) for ids in case.rows.inputs]
    assert sorted(pair for pairs in passes for pair in pairs) == [(n, m) for n in range(12) for m in range(3)]
    assert all(len(p) == 1 or len(p) * max(lengths[n] for n, _ in p) <= 600 for p in passes)


# Targets, tables, plots


def as_real(results: Path, folder: Path) -> Path:
    """Copy result lines with a published shape's name, because smoke runs are shown nowhere."""
    for path in results.glob("*.jsonl"):
        text = path.read_text().replace('"tiny"', '"t5-small"').replace('"tiny-gated"', '"t5-base"')
        (folder / path.name).write_text(text.replace('"B": 2', '"B": 1'))
    facts = lines_of(results / "step-cpu.jsonl")[0]["machine"]
    line = {"case": "mixed", "tasks": 4, "batch_rows": 64, "precision": "float32", "ratio": {"peft": 5.0}, **facts}
    line["rows_per_second"] = {"packed": 100.0, "peft": 20.0}
    (folder / "predict-cpu.jsonl").write_text(json.dumps(line) + "\n")
    return folder


def test_a_target_is_met_missed_or_not_measured():
    line = {"benchmark": "step", "size": "t5-small", "B": 1, "precision": "float32", "machine": {"device": "cpu"}}
    line |= {"ratio": {"loop_frozen": 4.6, "batched": 1.9}, "share_of_peak": {}}
    verdicts = {target["what"]: target["met"] for target in judged(line)}
    assert verdicts["≥ 4.5 × (b), fp32"] is True
    assert verdicts["≥ 2 × (d), fp32"] is False
    assert verdicts["≥ 70 % of the matmul peak, fp32"] is None
    fast = {"benchmark": "step", "size": "t5-base", "B": 4, "precision": "bfloat16", "machine": {"device": "cuda"}}
    assert {t["what"]: t["met"] for t in judged({**fast, "seconds": {"packed": 0.02}})}["under 25 ms a step"]
    assert judged({**line, "size": "tiny"}) == []


def test_without_results_every_measured_block_says_not_measured(tmp_path):
    made = blocks(read_lines(tmp_path))
    measured = {name: text for name, text in made.items() if name not in ("floor", "targets")}
    assert set(measured.values()) == {"Not measured."}
    assert made["targets"].count("not measured") == len(TARGETS)


def test_the_last_line_of_a_case_is_the_one_that_is_shown(results, tmp_path):
    folder = as_real(results, tmp_path)
    path = folder / "step-cpu.jsonl"
    newer = {**lines_of(path)[0], "ratio": {"loop_frozen": 123.45}}
    path.write_text(path.read_text() + json.dumps(newer) + "\n")
    table = blocks(read_lines(folder))["step-cpu"].split("![")[0]
    assert "123.45" in table
    assert table.count("| t5-small |") == 1


def test_the_same_lines_give_the_same_plots_and_the_page_links_to_them(results, tmp_path):
    folder = as_real(results, tmp_path)
    names = list(blocks([]))
    page = "".join(f"<!-- {name} -->\nold\n<!-- end {name} -->\n" for name in names)
    drawn = []
    for docs in (tmp_path / "first", tmp_path / "second"):
        docs.mkdir()
        (docs / "performance.md").write_text(page)
        assert plot.main(["--results", str(folder), "--docs", str(docs), "--fill"]) == 0
        drawn.append({path.name: path.read_bytes() for path in (docs / "plots").iterdir()})
    assert drawn[0] == drawn[1]
    text = (docs / "performance.md").read_text()
    assert "old" not in text
    assert {f"{name}.svg" for name in ("step-cpu", "scaling-cpu", "predict")} == set(drawn[0])
    assert all(f"(plots/{name})" in text for name in drawn[0])


def test_the_performance_page_holds_the_tables_of_the_committed_results():
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert fill(page, blocks(read_lines(ROOT / "benchmarks" / "results"))) == page


def test_a_page_without_a_block_is_refused():
    with pytest.raises(ValueError, match="no block '<!-- floor -->'"):
        fill("nothing here", {"floor": "text"})
