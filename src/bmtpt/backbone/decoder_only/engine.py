"""What the engines for decoder-only models share: losses, gradients, scoring and generation.

A row is [prompt; text; answer] and positions count from the prompt's first token. Where rows of one pass differ in
length, texts are padded on the left, masked and without a position: the last token of every text is then in one
column, followed by the answer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, ClassVar, Concatenate, ParamSpec, TypeVar

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bmtpt.backbone.engine import Query, Reply
from bmtpt.backbone.model.frozen import FrozenModel
from bmtpt.backbone.passes.loss import IGNORED, at_least_fp32, summed_nll
from bmtpt.backbone.passes.packing import TOKEN_BUDGET, Pass, budget_on, passes
from bmtpt.backbone.passes.run import run_passes, sound_attention
from bmtpt.errors import BackboneError
from bmtpt.types import TokenBatch


class Reading(ABC):
    """R rows that the model reads from left to right, each begun with its prompt."""

    @abstractmethod
    def feed(self, ids: Int[Tensor, "R S"], real: Int[Tensor, "R S"], keep: int) -> Float[Tensor, "R T V"]:
        """Read S more tokens (none where ``real`` is 0); return the logits after each of the last T = keep."""

    @abstractmethod
    def repeat(self, copies: int) -> None:
        """Go on with ``copies`` of every row, next to each other."""


Asked = ParamSpec("Asked")
Found = TypeVar("Found")


def soundly(
    ask: Callable[Concatenate[CausalPassEngine, Asked], Found],
) -> Callable[Concatenate[CausalPassEngine, Asked], Found]:
    """Make `sound_attention` hold for all of a question: what its prompts share, the passes, the last backward."""

    @wraps(ask)
    def asked(self: CausalPassEngine, /, *args: Asked.args, **kwargs: Asked.kwargs) -> Found:
        with sound_attention(self.backbone.device):
            return ask(self, *args, **kwargs)

    return asked


@dataclass(frozen=True)
class CausalPassEngine(ABC):
    """`Engine` in passes of bounded size; a subclass says what is shared by a prompt's rows and how they are read.

    Prompts are [M, P, D], the same for every example, or [M, N, P, D], where example n has prompts of its own: nothing
    is shared then, and losses and gradients go example by example.
    Axes of a pass: R rows (n examples × M prompts, example-major), C answers, T label tokens.

    Attributes:
        name: For the log.
    """

    backbone: FrozenModel

    name: ClassVar[str] = "generic"
    token_budget: ClassVar[int] = TOKEN_BUDGET

    @abstractmethod
    def prefix(self, prompts: Float[Tensor, "M P D"]) -> tuple[Tensor, ...]:
        """Return what all rows of a prompt share, differentiable in the prompts, M leading in each tensor."""

    @abstractmethod
    def read(self, shared: tuple[Tensor, ...], examples: int) -> Reading:
        """Begin n·M rows that continue what `prefix` returned."""

    @torch.no_grad()
    @soundly
    def losses(self, prompts: Float[Tensor, "M *N P D"], batch: TokenBatch) -> Float[Tensor, "M N"]:
        """Return −log p(y_n | [θ_m; embed(x_n)]), summed over the target's tokens, in fp32."""
        result = prompts.new_empty(len(prompts), len(batch))
        if prompts.ndim == 4:
            for n, (own, one) in enumerate(_one_by_one(prompts, batch)):
                result[:, n : n + 1] = self.losses(own, one)
            return result
        parts = self._passes(prompts, batch.inputs, batch.target_tokens())
        shared = self.prefix(prompts)

        def one_pass(part: Pass) -> None:
            result[part.prompts, part.rows] = self._pass_losses(_of(shared, part), batch, part.rows)

        self.run(parts, one_pass)
        return result

    @soundly
    def gradients(
        self, prompts: Float[Tensor, "M *N P D"], batch: TokenBatch, weights: Float[Tensor, " N"]
    ) -> tuple[Float[Tensor, "M N"], Float[Tensor, "M *N P D"]]:
        """Return the losses and ∂/∂θ_m Σ_n weights_n · loss_mn.

        The passes accumulate the gradient in what the rows share; one backward pass takes it from there to θ.
        """
        result, gradient = prompts.new_empty(len(prompts), len(batch)), torch.zeros_like(prompts)
        if prompts.ndim == 4:
            for n, (own, one) in enumerate(_one_by_one(prompts, batch)):
                result[:, n : n + 1], gradient[:, n] = self.gradients(own, one, weights[n : n + 1])
            return result, gradient
        parts = self._passes(prompts, batch.inputs, batch.target_tokens())
        if not parts:
            return result, gradient
        leaf = prompts.detach().clone().requires_grad_(True)
        states = self.prefix(leaf)
        # In fp32, so that the sum over examples and passes is not rounded to the compute dtype.
        shared = tuple(at_least_fp32(state.detach()) for state in states)
        sums = tuple(map(torch.zeros_like, shared))

        def one_pass(part: Pass) -> None:
            own = tuple(state.requires_grad_(True) for state in _of(shared, part))
            loss = self._pass_losses(own, batch, part.rows)  # [m, n]
            pulled = torch.autograd.grad((loss * weights[part.rows].to(loss.device)).sum(), own)
            for total, more in zip(_of(sums, part), pulled, strict=True):
                total += more
            result[part.prompts, part.rows] = loss.detach()

        self.run(parts, one_pass)
        pulled = [total.to(state.dtype) for total, state in zip(sums, states, strict=True)]
        (gradient,) = torch.autograd.grad(states, leaf, pulled)
        return result, gradient

    @torch.no_grad()
    @soundly
    def answer_log_likelihoods(
        self, prompts: Float[Tensor, "M *N P D"], inputs: Sequence[Tensor], answers: Sequence[Tensor]
    ) -> Float[Tensor, "M N C"]:
        """Return log p(answer_c | [θ_m; embed(x_n)]) for every answer; each text is read once for all of them."""
        C = len(answers)
        result = prompts.new_empty(len(prompts), len(inputs), C)
        if prompts.ndim == 4:
            found = [each.log_likelihoods for each in self.answer(_own_queries(prompts, inputs, answers=answers))]
            return result.copy_(torch.stack(found).view_as(result)) if found else result
        targets = self.padded_answers(answers)  # [C, T]
        parts = self._passes(prompts, inputs, [targets.shape[1]] * len(inputs), copies=C)
        shared = self.prefix(prompts)

        def one_pass(part: Pass) -> None:
            reading, first = self.read_texts(_of(shared, part), [inputs[i] for i in part.rows])  # [n·m, 1, V]
            scores = self.answer_scores(reading, first, targets.repeat(len(first), 1), C)
            result[part.prompts, part.rows] = scores.view(len(part.rows), -1, C).transpose(0, 1)

        self.run(parts, one_pass)
        return result

    @torch.no_grad()
    @soundly
    def generate(
        self, prompts: Float[Tensor, "M *N P D"], inputs: Sequence[Tensor], max_new_tokens: int
    ) -> list[list[str]]:
        """Decode greedily; return M lists of N texts without special tokens."""
        if prompts.ndim == 4:
            found = [each.text for each in self.answer(_own_queries(prompts, inputs, max_new_tokens=max_new_tokens))]
            return [found[m * len(inputs) :][: len(inputs)] for m in range(len(prompts))]
        texts = [[""] * len(inputs) for _ in prompts]
        parts = self._passes(prompts, inputs, [max_new_tokens] * len(inputs))
        shared = self.prefix(prompts)

        def one_pass(part: Pass) -> None:
            reading, first = self.read_texts(_of(shared, part), [inputs[i] for i in part.rows])
            m = part.prompts.stop - part.prompts.start
            for position, text in enumerate(self.continued(reading, first, max_new_tokens)):
                texts[part.prompts.start + position % m][part.rows[position // m]] = text

        self.run(parts, one_pass)
        return texts

    @abstractmethod
    def answer(self, queries: Sequence[Query]) -> list[Reply]:
        """Answer texts that each have a prompt of their own, in order."""

    def padded_answers(self, answers: Sequence[Tensor]) -> Int[Tensor, "C T"]:
        """Return the answers' tokens on the device, padded with `IGNORED`."""
        (padded,) = self._sent(pad_sequence(list(answers), batch_first=True, padding_value=IGNORED))
        return padded

    def cut_rows(self, queries: Sequence[Query], after: int, copies: int) -> list[Pass]:
        """Cut rows with prompts of their own, of one length, into passes; ``after`` tokens may follow each text."""
        prompts = queries[0].prompt[None]
        return self._passes(prompts, [query.text for query in queries], [after] * len(queries), copies)

    def _passes(self, prompts: Tensor, inputs: Sequence[Tensor], answers: Sequence[int], copies: int = 1) -> list[Pass]:
        """Cut examples × prompts into passes, given the lengths of the answers; ``copies`` are read side by side.

        A row of the pass holds a prompt of its own, be it embeddings or keys and values.

        Raises:
            BackboneError: A text has no tokens, or a row more than the model has positions.
        """
        P = prompts.shape[-2]
        lengths = [len(ids) + answer for ids, answer in zip(inputs, answers, strict=True)]
        if not all(len(ids) for ids in inputs):
            raise BackboneError("a text has no tokens, and a decoder-only model continues a text: give one with some")
        self.backbone.require_positions(P + max(lengths, default=0))
        return self.cut(len(prompts), [len(ids) for ids in inputs], [copies * (P + length) for length in lengths])

    def cut(self, prompts: int, texts: Sequence[int], tokens: Sequence[int]) -> list[Pass]:
        """Cut examples × prompts, given the length of each text and how many tokens it takes with one prompt."""
        return passes(tokens, copies=prompts, budget=budget_on(self.backbone.device, self.token_budget))

    def run(self, parts: Sequence[Pass], one_pass: Callable[[Pass], None]) -> None:
        """Run passes in order; one that memory is too small for is halved."""
        run_passes(parts, one_pass, self.backbone.device)

    def _pass_losses(self, shared: tuple[Tensor, ...], batch: TokenBatch, rows: list[int]) -> Float[Tensor, "M n"]:
        padded = pad_sequence([batch.targets[i] for i in rows], batch_first=True, padding_value=IGNORED)
        (targets,) = self._sent(padded)  # [n, T]
        ids, real = self._sent(*_left_padded([batch.inputs[i] for i in rows]))
        T, M = targets.shape[1], len(shared[0])
        ids = torch.cat([ids, targets[:, :-1].clamp(min=0)], dim=1)  # [n, L + T − 1]
        real = F.pad(real, (0, T - 1), value=1)  # no label position sees what follows a label's end
        logits = self.read(shared, len(rows)).feed(_each(ids, M), _each(real, M), keep=T)  # [n·M, T, V]
        return summed_nll(logits, _each(targets, M)).view(len(rows), M).T

    def _sent(self, *ids: Tensor) -> tuple[Tensor, ...]:
        """Token ids may be on the CPU, where they are padded, and are sent together."""
        return tuple(each.to(self.backbone.device) for each in ids)

    def read_texts(
        self, shared: tuple[Tensor, ...], inputs: Sequence[Tensor], own: bool = False
    ) -> tuple[Reading, Float[Tensor, "R 1 V"]]:
        """Read n texts that continue what `prefix` returned for M prompts; return the logits after each.

        The rows are every text with every prompt (example-major), or each text with its ``own`` prompt, M = n.
        """
        ids, real = self._sent(*_left_padded(inputs))
        copies = 1 if own else len(shared[0])
        reading = self.read(shared, 1 if own else len(inputs))
        return reading, reading.feed(_each(ids, copies), _each(real, copies), keep=1)

    def answer_scores(
        self, reading: Reading, first: Float[Tensor, "R 1 V"], labels: Int[Tensor, "A T"], answers: int
    ) -> Float[Tensor, "R C"]:
        """Return the log-likelihoods of C = ``answers`` answers to each row that was read; A = R·C."""
        reading.repeat(answers)
        logits = first.repeat_interleave(answers, dim=0)
        if labels.shape[1] > 1:
            ids = labels[:, :-1].clamp(min=0)
            fed = reading.feed(ids, torch.ones_like(ids), keep=ids.shape[1])
            logits = torch.cat([logits, fed], dim=1)  # [R·C, T, V]
        return -summed_nll(logits, labels).view(-1, answers)

    def continued(self, reading: Reading, first: Float[Tensor, "R 1 V"], most: int) -> list[str]:
        """Write up to ``most`` tokens after each row that was read; return the texts without special tokens."""
        ids = greedy(reading, first, most, self.backbone.tokenizer.eos_token_id)
        return [text.strip() for text in self.backbone.tokenizer.batch_decode(ids, skip_special_tokens=True)]


@contextmanager
def folded_head(model: Any) -> Iterator[None]:
    """Hand the vocabulary product contiguous states while the model runs.

    What `logits_to_keep` cuts out of [R, S, D] is a slice, which torch does not fold into one product with frozen
    weights: it would copy all V × D of them once per row.
    """
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, inputs: tuple(each.contiguous() for each in inputs))
    try:
        yield
    finally:
        hook.remove()


def greedy(reading: Reading, logits: Float[Tensor, "R 1 V"], most: int, end: int) -> Int[Tensor, "R T"]:
    """Write up to ``most`` tokens a row, each the likeliest; a row that has ended is filled up with ``end``."""
    written = [logits[:, -1].argmax(dim=1)]
    ended = written[-1] == end
    while len(written) < most and not ended.all():
        last = written[-1][:, None]
        logits = reading.feed(last, torch.ones_like(last), keep=1)
        written.append(logits[:, -1].argmax(dim=1).masked_fill(ended, end))
        ended = ended | (written[-1] == end)
    return torch.stack(written, dim=1)


def _own_queries(prompts: Float[Tensor, "M N P D"], inputs: Sequence[Tensor], **asked: Any) -> list[Query]:
    """Return the queries of M × N prompts, each with its text, m-major."""
    texts = list(inputs) * len(prompts)
    return [Query(prompt, text, **asked) for prompt, text in zip(prompts.flatten(0, 1), texts, strict=True)]


def _one_by_one(prompts: Float[Tensor, "M N P D"], batch: TokenBatch) -> Iterator[tuple[Tensor, TokenBatch]]:
    """Yield each example with its own prompts."""
    for own, text, target in zip(prompts.unbind(1), batch.inputs, batch.targets, strict=True):
        yield own, TokenBatch([text], [target])


def _of(shared: tuple[Tensor, ...], part: Pass) -> tuple[Tensor, ...]:
    """Return what a pass's prompts share, M leading in each tensor."""
    return tuple(each[part.prompts] for each in shared)


def _left_padded(inputs: Sequence[Tensor]) -> tuple[Int[Tensor, "n L"], Int[Tensor, "n L"]]:
    ids = pad_sequence(list(inputs), batch_first=True, padding_value=0, padding_side="left")
    real = pad_sequence([torch.ones_like(row) for row in inputs], batch_first=True, padding_side="left")
    return ids, real


def _each(rows: Int[Tensor, "n S"], prompts: int) -> Int[Tensor, "R S"]:
    return rows.repeat_interleave(prompts, dim=0)
