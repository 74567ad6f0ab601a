"""The floor in FLOPs and the benchmark's lengths are those that PERFORMANCE.md states."""

from __future__ import annotations

import statistics

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cases import draw_lengths, make_case, padding_cost
from flops import cross_flop, encoder_flop, sequence_flop, step_flop
from shapes import SHAPES, random_model

TEXTS, LABELS = [100] * 24, [4] * 24  # K = 6, B = 4


@pytest.mark.parametrize(
    ("size", "stated"), [("t5-small", "2.10"), ("t5-base", "9.08"), ("t5-large", "31.7"), ("t5-3b", "126")]
)
def test_a_step_costs_the_teraflop_that_the_design_states(size, stated):
    teraflop = step_flop(SHAPES[size], M=5, P=100, lengths=TEXTS, label_lengths=LABELS) / 1e12
    digits = len(stated.partition(".")[2])
    assert f"{teraflop:.{digits}f}" == stated


@pytest.mark.parametrize("size", ["tiny", "tiny-gated"])
def test_the_forward_part_of_the_floor_is_what_torch_counts_in_hugging_face(size):
    shape, S, T = SHAPES[size], 30, 3
    a = shape.heads * shape.k
    model = random_model(shape)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(inputs_embeds=torch.randn(1, S, shape.D), labels=torch.ones(1, T, dtype=torch.long))
    # Of the floor's figure a backward pass is half the linear layers and two thirds of attention.
    attention = 4 * (shape.layers[0] * S**2 + shape.layers[1] * T**2) * a
    plain = 8 * shape.D * a * S + 12 * T * S * a
    linear = sequence_flop(shape, S, T) - cross_flop(shape, S, T) - 3 * attention
    forward = linear // 2 + attention + shape.layers[1] * (4 * shape.D * a * S + 4 * T * S * a)
    assert counter.get_total_flops() == forward
    assert cross_flop(shape, S, T) <= shape.layers[1] * plain


def test_cross_attention_is_counted_by_the_cheaper_way_on_both_sides_of_the_head_width():
    shape, S = SHAPES["t5-small"], 200
    a, layers = shape.heads * shape.k, shape.layers[1]
    assert cross_flop(shape, S, 2) == layers * (8 * 2 * shape.D * a + 12 * 2 * shape.heads * shape.D * S)
    assert cross_flop(shape, S, 64) == layers * (8 * shape.D * a * S + 12 * 64 * S * a)


def test_the_encoder_is_nine_tenths_of_a_step():
    share = encoder_flop(SHAPES["t5-base"], 200) / sequence_flop(SHAPES["t5-base"], 200, 4)
    assert 0.9 < share < 0.99


def test_padding_to_256_costs_1_76_times_the_useful_tokens_at_four_examples_a_task():
    assert padding_cost(draw_lengths(K=6, B=4), P=100) == pytest.approx(1.76, abs=0.005)


def test_the_benchmarks_draw_pads_no_more_than_other_seeds_do():
    costs = [padding_cost(draw_lengths(K=6, B=4, seed=seed), P=100) for seed in range(200)]
    spread = statistics.stdev(costs)
    assert abs(padding_cost(draw_lengths(K=6, B=4), P=100) - statistics.mean(costs)) < 2 * spread


def test_lengths_stay_in_their_bounds_and_a_small_batch_begins_a_larger_one():
    many = draw_lengths(K=6, B=200)
    assert all(8 <= L <= 256 for task in many for L, _ in task)
    assert {T for _, T in many[3]} == {2}
    assert {T for _, T in many[4]} == set(range(2, 9))
    assert [task[:1] for task in many] == draw_lengths(K=6, B=1)


def test_a_case_has_the_lengths_it_was_given_and_weights_that_sum_to_one_per_label_token():
    lengths = draw_lengths(K=3, B=2)
    case = make_case("tiny", 2, 4, lengths, torch.randn(96, 32))
    assert [[(len(x), len(y)) for x, y in zip(t.inputs, t.targets, strict=True)] for t in case.tasks] == lengths
    tokens = torch.tensor(case.rows.target_tokens())
    assert (case.weights * tokens).sum().item() == pytest.approx(3)
