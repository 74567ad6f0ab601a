"""When a graph is captured, trusted and dropped, with captures that a CPU can make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from bmtpt.backbone.device import graphs
from bmtpt.backbone.device.graphs import Captured, CudaCapture, Function, GraphedPasses, Inputs, Tensors


@dataclass
class Recorded:
    """Stands for `CudaCapture`: a replay calls the function on the held inputs and writes the held outputs.

    Attributes:
        replays: Shapes of the first input of every replay, in order.
        wrong: What a replay does instead of what it should.
    """

    replays: list[tuple[int, ...]] = field(default_factory=list)
    captures: int = 0
    wrong: Callable[[Captured, Function], None] | None = None

    def __call__(self, function: Function, inputs: Inputs) -> Captured:
        self.captures += 1
        held = tuple(None if each is None else torch.zeros_like(each) for each in inputs)
        made = Captured(lambda: self._replay(made, function), held, function(*held))
        return made

    def _replay(self, made: Captured, function: Function) -> None:
        assert made.inputs[0] is not None
        self.replays.append(tuple(made.inputs[0].shape))
        if self.wrong is not None:
            self.wrong(made, function)
            return
        for output, value in zip(made.outputs, function(*made.inputs), strict=True):
            output.copy_(value)


class Doubled:
    """The function that is graphed; counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Tensor, mask: Tensor | None) -> Tensors:
        self.calls += 1
        return 2 * x if mask is None else 2 * x * mask, x.sum()


def graphed(**wrong: Callable[[Captured, Function], None]) -> tuple[GraphedPasses, Recorded]:
    capture = Recorded(**wrong)
    return GraphedPasses(1e-6, capture), capture


def call(passes: GraphedPasses, function: Function, number: float, width: int = 3) -> None:
    x = torch.full((width,), float(number))
    twice, total = passes(function, x, None)
    assert torch.equal(twice, 2 * x)
    assert total == number * width


def test_a_graph_is_captured_at_the_third_pass_of_its_shapes_and_trusted_after_two_equal_replays() -> None:
    (passes, capture), function = graphed(), Doubled()
    found = []
    for number in range(1, 7):
        call(passes, function, number)
        found.append((capture.captures, len(capture.replays), bool(passes.proved)))
    assert found == [(0, 0, False)] * 2 + [(1, 1, False), (1, 2, True), (1, 3, True), (1, 4, True)]


def test_a_trusted_graph_runs_instead_of_the_function() -> None:
    (passes, capture), function = graphed(), Doubled()
    for number in range(1, 5):
        call(passes, function, number)
    replays = len(capture.replays)
    x = torch.tensor([5.0, 6.0, 7.0])
    capture.wrong = lambda made, _: made.outputs[0].copy_(made.inputs[0] + 1)  # nobody would write this but a graph
    assert passes(function, x, None)[0].tolist() == [6.0, 7.0, 8.0]
    assert len(capture.replays) == replays + 1


def test_shapes_are_counted_apart_and_a_mask_makes_other_shapes() -> None:
    (passes, capture), function, x = graphed(), Doubled(), torch.ones(3)
    for _ in range(2):
        call(passes, function, 1.0, width=3)
        call(passes, function, 1.0, width=4)
        passes(function, x, torch.ones(3))
        passes(function, x.double(), None)
    assert capture.captures == 0
    passes(function, x, torch.ones(3))
    assert capture.captures == 1


def test_results_of_a_replay_survive_the_next_one() -> None:
    (passes, _), function = graphed(), Doubled()
    for number in range(1, 5):
        call(passes, function, number)
    first = passes(function, torch.ones(3), None)[0]
    passes(function, torch.zeros(3), None)
    assert torch.equal(first, 2 * torch.ones(3))


def nothing_written(made: Captured, function: Function) -> None:
    pass


def one_output_forgotten(made: Captured, function: Function) -> None:
    made.outputs[0].copy_(function(*made.inputs)[0])


def computed_from_what_was_captured(made: Captured, function: Function) -> None:
    for output, value in zip(made.outputs, function(torch.zeros(3), None), strict=True):
        output.copy_(value)


def slightly_off(made: Captured, function: Function) -> None:
    for output, value in zip(made.outputs, function(*made.inputs), strict=True):
        output.copy_(value * 1.001)


@pytest.mark.parametrize(
    "wrong", [nothing_written, one_output_forgotten, computed_from_what_was_captured, slightly_off]
)
def test_a_replay_that_differs_is_never_used(wrong: Callable[[Captured, Function], None]) -> None:
    (passes, capture), function = graphed(wrong=wrong), Doubled()
    for number in range(1, 8):
        call(passes, function, number)
    assert "differed" in passes.off
    assert (capture.captures, len(capture.replays), len(passes.captured)) == (1, 1, 0)


def test_a_graph_that_remembers_the_inputs_of_its_first_replay_is_found_at_the_next_call() -> None:
    (passes, capture), function, remembered = graphed(), Doubled(), []

    def stale(made: Captured, function: Function) -> None:
        remembered.append(made.inputs[0].clone())
        for output, value in zip(made.outputs, function(remembered[0], None), strict=True):
            output.copy_(value)

    capture.wrong = stale
    for number in range(1, 8):
        call(passes, function, number)
    assert "differed" in passes.off
    assert len(remembered) == 2


def test_one_failure_drops_all_graphs_and_no_more_are_captured() -> None:
    (passes, capture), function = graphed(), Doubled()
    for number in range(1, 5):
        call(passes, function, number, width=3)
    assert passes.proved
    capture.wrong = nothing_written
    for number in range(1, 4):
        call(passes, function, number, width=4)
    assert (passes.captured, passes.proved) == ({}, set())
    before = function.calls
    for number in range(1, 5):
        call(passes, function, number, width=3)
    assert function.calls == before + 4
    assert capture.captures == 2


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("operation not permitted when stream is capturing\nmore"), "operation not permitted when stream"),
        (RuntimeError("CUDA error: out of memory"), "memory is short"),
        (ValueError("Expected a cuda device, but got: cpu"), "Expected a cuda device"),
    ],
)
def test_a_capture_that_fails_costs_the_graphs_only(
    error: Exception, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(function: Function, inputs: Inputs) -> Captured:
        raise error

    passes, function = GraphedPasses(1e-6, failing), Doubled()
    with caplog.at_level("INFO", logger="bmtpt"):
        for number in range(1, 6):
            call(passes, function, number)
    assert passes.off.startswith(reason)
    assert "more" not in passes.off
    assert caplog.text.count("cuda graphs are off") == 1


def test_an_error_of_another_kind_is_not_hidden() -> None:
    def failing(function: Function, inputs: Inputs) -> Captured:
        raise KeyError("a mistake of ours")

    passes, function = GraphedPasses(1e-6, failing), Doubled()
    for number in range(1, 3):
        call(passes, function, number)
    with pytest.raises(KeyError):
        call(passes, function, 3)


def test_clearing_lets_go_of_every_graph_for_good() -> None:
    (passes, capture), function = graphed(), Doubled()
    for number in range(1, 5):
        call(passes, function, number)
    passes.clear()
    for number in range(1, 5):
        call(passes, function, number)
    assert (passes.off, passes.captured, capture.captures) == ("memory is short", {}, 1)


def test_beyond_the_most_graphs_none_is_captured_and_those_there_are_still_proved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(graphs, "MOST_GRAPHS", 1)
    (passes, capture), function = graphed(), Doubled()
    for number in range(1, 4):
        call(passes, function, number, width=3)
    for number in range(1, 6):
        call(passes, function, number, width=4)
    call(passes, function, 9, width=3)
    assert (capture.captures, len(passes.proved), passes.off) == (1, 1, "")


def test_every_engine_captures_on_a_stream_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    made, given = pretended_cuda(monkeypatch)
    first, second = CudaCapture(), CudaCapture()
    for capture in (first, first, second):
        capture(Doubled(), (torch.ones(3), None))
    assert len(made) == 2
    assert [stream for stream, _ in given] == [made[0], made[0], made[1]]
    assert given[0][1] == given[1][1] != given[2][1]  # the pools


def pretended_cuda(monkeypatch: pytest.MonkeyPatch) -> tuple[list[object], list[tuple[object, object]]]:
    """Let torch.cuda do nothing; return the streams that are made, and (stream, pool) of each capture."""
    from contextlib import nullcontext
    from itertools import count

    made: list[object] = []
    given: list[tuple[object, object]] = []

    class Stream:
        def __init__(self) -> None:
            made.append(self)

        def wait_stream(self, other: object) -> None: ...

    class Current(Stream):
        def __init__(self) -> None: ...

    def graph(_: object, pool: object, stream: object) -> nullcontext[None]:
        given.append((stream, pool))
        return nullcontext()

    pools = count(1)
    for name, value in {
        "Stream": Stream,
        "current_stream": Current,
        "stream": lambda _: nullcontext(),
        "device": lambda _: nullcontext(),
        "graph": graph,
        "CUDAGraph": object,
        "graph_pool_handle": lambda: next(pools),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return made, given
