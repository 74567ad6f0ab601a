"""What every method asks of the frozen model: the likelihood p(y | [θ; embed(x)]) and its gradient in θ."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, NamedTuple, Self, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bmtpt.backbone.execution import TOKEN_BUDGET
from bmtpt.backbone.model.frozen import FrozenModel
from bmtpt.backbone.passes import CUDA_FACTOR, IGNORED, Pass, at_least_fp32, run_passes
from bmtpt.backbone.ranked import run_shared
from bmtpt.parallel.ranks import ALONE, Ranks
from bmtpt.posterior.readout import Readout, read_out
from bmtpt.types import TokenBatch

Found = TypeVar("Found")


class Query(NamedTuple):
    """One text to answer with one prompt; the queries of a task refer to the same prompt and answers.

    Attributes:
        prompt: fp32; prompts of one call may differ in length.
        text: int64, end of sequence included.
        answers: C answers to rank, each int64 [T]; none to rank nothing.
        max_new_tokens: Longest text to generate; 0 to generate nothing.
    """

    prompt: Float[Tensor, "P D"]
    text: Int[Tensor, " L"]
    answers: Sequence[Tensor] = ()
    max_new_tokens: int = 0


class Written(str):
    """A generated text, without special tokens.

    Attributes:
        ended: Whether the model ended it; otherwise the limit on new tokens cut it.
    """

    ended: bool

    def __new__(cls, text: str = "", ended: bool = True) -> Self:
        made = super().__new__(cls, text)
        made.ended = ended
        return made


class Reply(NamedTuple):
    """What a query asked for.

    Attributes:
        log_likelihoods: log p(answer_c | [θ; embed(x)]) of its answers, on the CPU.
        states: What the model makes of the text, pooled (see `Readings`), on the CPU; empty if nothing was ranked.
        text: What was generated.
    """

    log_likelihoods: Float[Tensor, " C"]
    states: Float[Tensor, " D"]
    text: Written


class Readings(NamedTuple):
    """What M prompts make of N texts, in fp32: s and h of docs/method.md, section 5.

    Attributes:
        log_likelihoods: log p(answer_c | [θ_m; embed(x_n)]).
        states: The mean of the encoder's output over the text's tokens; of a decoder-only model, what its head reads
            after the last one.
    """

    log_likelihoods: Float[Tensor, "M N C"]
    states: Float[Tensor, "M N D"]


class Choice(NamedTuple):
    """The label words that a loss chooses among: −log softmax_c(z)[y] instead of −log p(answer) (METHOD, section 5).

    Attributes:
        answers: Token ids of the C label words; every target of the batch is one of them.
        readouts: One per prompt, or none: z is then the log-likelihood.
    """

    answers: Sequence[Tensor]
    readouts: Sequence[Readout] = ()

    def labels(self, targets: Sequence[Tensor]) -> list[int]:
        """Return which answer each target is."""
        known = {tuple(answer.tolist()): c for c, answer in enumerate(self.answers)}
        return [known[tuple(target.tolist())] for target in targets]


Shared = tuple[Tensor, ...]
"""What all rows of a prompt share, with the axes of the prompts in front: the prompts, or their keys and values."""


@dataclass(frozen=True)
class Engine(ABC):
    """Pairs M prompts with N examples, in passes of bounded size; a subclass says how one pass is computed.

    Prompts are [M, P, D], the same for every example, or [M, N, P, D], where example n has prompts of its own; P = 0 is
    the model without a prompt. They are on the backbone's device; token ids may be on the CPU. Losses and gradients are
    fp32 whatever the compute dtype.
    Axes of a pass: m prompts, n examples, R = n·m rows (example-major), C answers, T label tokens.

    Attributes:
        name: ``packed`` or ``generic``.
        token_budget: Most padded tokens of a pass on a CPU.
        ranks: Who shares the passes; all ranks make the same calls.
    """

    backbone: FrozenModel
    ranks: Ranks = field(default=ALONE, kw_only=True)

    name: ClassVar[str] = "generic"
    token_budget: ClassVar[int] = TOKEN_BUDGET

    @property
    def no_prompt(self) -> Float[Tensor, "1 0 D"]:
        """The prompt without rows, which asks for the model itself."""
        return self.backbone.embed(torch.zeros(1, 0, dtype=torch.int64))

    @torch.no_grad()
    def losses(self, prompts: Float[Tensor, "M *N P D"], batch: TokenBatch) -> Float[Tensor, "M N"]:
        """Return −log p(y_n | [θ_m; embed(x_n)]), summed over the target's tokens."""
        result = prompts.new_empty(len(prompts), len(batch))
        parts = self.cut(prompts, batch.inputs, batch.target_tokens())
        shared = self.prefix(prompts)

        def one_pass(part: Pass) -> Tensor:
            own = tuple(state[_key(prompts, part)] for state in shared)
            return self.pass_losses(own, batch, part.rows)

        for part, losses in self.run(parts, one_pass):
            result[part.prompts, part.rows] = losses
        return result

    def gradients(
        self,
        prompts: Float[Tensor, "M *N P D"],
        batch: TokenBatch,
        weights: Float[Tensor, " N"],
        choice: Choice | None = None,
    ) -> tuple[Float[Tensor, "M N"], Float[Tensor, "M *N P D"]]:
        """Return the losses and ∂/∂θ Σ_mn weights_n · loss_mn, in the shape of the prompts.

        The passes accumulate the gradient in what the rows share; one backward pass takes it from there to θ.

        Args:
            choice: Take −log softmax_c(z)[y] as the loss; None takes −log p(y | [θ_m; embed(x_n)]).
        """
        result, gradient = prompts.new_empty(len(prompts), len(batch)), torch.zeros_like(prompts)
        losses_of: Callable[[Shared, Pass], Tensor]
        if choice is None:
            parts = self.cut(prompts, batch.inputs, batch.target_tokens())
            losses_of = partial(self._own_losses, batch)
        else:
            answers, right = self.padded(choice.answers), choice.labels(batch.targets)
            parts = self.cut(prompts, batch.inputs, [answers.shape[1]] * len(batch), copies=len(answers))
            losses_of = partial(self._choice_losses, batch.inputs, choice.readouts, answers, right)
        if not parts:
            return result, gradient
        leaf = prompts.detach().clone().requires_grad_(True)
        states = self.prefix(leaf)
        # In fp32, so that the sum over examples and passes is not rounded to the compute dtype.
        shared = tuple(at_least_fp32(state.detach()) for state in states)
        sums = tuple(map(torch.zeros_like, shared))
        factors = self.sent(weights)

        def one_pass(part: Pass, into: Shared) -> Tensor:
            key = _key(prompts, part)
            own = tuple(state[key].detach().requires_grad_(True) for state in shared)
            losses = losses_of(own, part)
            pulled = self.pulled_back((losses * factors[part.rows]).sum(), own)
            for total, more in zip(into, pulled, strict=True):
                total[key] += more  # no example is twice in a pass
            return losses.detach().to(result.dtype)

        for part, found in self.run_adding(parts, one_pass, sums, disjoint=prompts.ndim == 4):
            result[part.prompts, part.rows] = found
        pulled = [total.to(state.dtype) for total, state in zip(sums, states, strict=True)]
        (gradient,) = torch.autograd.grad(states, leaf, pulled)
        return result, gradient

    def answer_log_likelihoods(
        self, prompts: Float[Tensor, "M *N P D"], inputs: Sequence[Tensor], answers: Sequence[Tensor]
    ) -> Float[Tensor, "M N C"]:
        """Return log p(answer_c | [θ_m; embed(x_n)]) for every answer; each text is read once for all of them."""
        return self.readings(prompts, inputs, answers).log_likelihoods

    @torch.no_grad()
    def readings(
        self, prompts: Float[Tensor, "M *N P D"], inputs: Sequence[Tensor], answers: Sequence[Tensor]
    ) -> Readings:
        """Return the log-likelihood of every answer and the pooled states; each text is read once for all of them."""
        M, N, C = len(prompts), len(inputs), len(answers)
        result = Readings(prompts.new_empty(M, N, C), prompts.new_empty(M, N, prompts.shape[-1]))
        labels = self.padded(answers)  # [C, T]
        parts = self.cut(prompts, inputs, [labels.shape[1]] * len(inputs), copies=C)
        shared = self.prefix(prompts)

        def one_pass(part: Pass) -> tuple[Tensor, Tensor]:
            own = tuple(state[_key(prompts, part)] for state in shared)
            return self.pass_readings(own, [inputs[i] for i in part.rows], labels)

        for part, found in self.run(parts, one_pass):
            for whole, rows in zip(result, found, strict=True):
                whole[part.prompts, part.rows] = rows.view(len(part.rows), -1, rows.shape[1]).transpose(0, 1)
        return result

    @torch.no_grad()
    def generate(
        self, prompts: Float[Tensor, "M *N P D"], inputs: Sequence[Tensor], max_new_tokens: int
    ) -> list[list[Written]]:
        """Decode greedily; return M lists of N texts."""
        found = [[Written()] * len(inputs) for _ in prompts]
        parts = self.cut(prompts, inputs, [max_new_tokens] * len(inputs))
        shared = self.prefix(prompts)

        def one_pass(part: Pass) -> list[Written]:
            own = tuple(state[_key(prompts, part)] for state in shared)
            return self.pass_texts(own, [inputs[i] for i in part.rows], max_new_tokens)

        # In lockstep no rank may write more tokens than another, so all write everything.
        for part, texts in (self.run_here if self.ranks.lockstep else self.run)(parts, one_pass):
            m = part.prompts.stop - part.prompts.start
            for position, text in enumerate(texts):
                found[part.prompts.start + position % m][part.rows[position // m]] = text
        return found

    @abstractmethod
    def answer(self, queries: Sequence[Query]) -> list[Reply]:
        """Answer texts that each have a prompt of their own, in order; queries of several prompts share passes."""

    def prefix(self, prompts: Float[Tensor, "M *N P D"]) -> Shared:
        """Return what all rows of a prompt share, differentiable in the prompts."""
        return (prompts,)

    @abstractmethod
    def cut(self, prompts: Tensor, inputs: Sequence[Tensor], answers: Sequence[int], copies: int = 1) -> list[Pass]:
        """Cut examples × prompts into passes, given the lengths of the answers and how many a row has."""

    @abstractmethod
    def pass_losses(self, shared: Shared, batch: TokenBatch, rows: list[int]) -> Float[Tensor, "m n"]:
        """Return the losses of some rows of the batch, given what the pass's prompts share."""

    def _own_losses(self, batch: TokenBatch, shared: Shared, part: Pass) -> Float[Tensor, "m n"]:
        return self.pass_losses(shared, batch, part.rows)

    def _choice_losses(
        self,
        inputs: Sequence[Tensor],
        readouts: Sequence[Readout],
        answers: Int[Tensor, "C T"],
        right: Sequence[int],
        shared: Shared,
        part: Pass,
    ) -> Float[Tensor, "m n"]:
        """Return −log softmax_c(z)[y] of the rows of a pass."""
        n, found = len(part.rows), self.pass_readings(shared, [inputs[i] for i in part.rows], answers)
        readings = (each.view(n, -1, each.shape[1]).transpose(0, 1) for each in found)
        z = read_out(readouts[part.prompts], *readings)  # [m, n, C]
        return -z.log_softmax(dim=2)[:, range(n), [right[i] for i in part.rows]]

    @abstractmethod
    def pass_readings(
        self, shared: Shared, inputs: Sequence[Tensor], labels: Int[Tensor, "C T"]
    ) -> tuple[Float[Tensor, "R C"], Float[Tensor, "R D"]]:
        """Return the log-likelihoods of all answers to each row, and its pooled states."""

    @abstractmethod
    def pass_texts(self, shared: Shared, inputs: Sequence[Tensor], limit: int) -> list[Written]:
        """Decode greedily after each row."""

    def pulled_back(self, total: Float[Tensor, ""], shared: Shared) -> Sequence[Tensor]:
        """Return the gradient of a pass's weighted loss in what its rows share."""
        return torch.autograd.grad(total, shared)

    def budget(self) -> int:
        """Return the most padded tokens of a pass on the backbone's device."""
        return self.token_budget * (CUDA_FACTOR if self.backbone.device.type == "cuda" else 1)

    def run(self, parts: Sequence[Pass], one_pass: Callable[[Pass], Found]) -> Iterator[tuple[Pass, Found]]:
        """Run passes, each on one of the ranks; yield them in order with what they found. As `run_adding`."""
        return self.run_adding(parts, lambda part, _: one_pass(part), (), disjoint=True)

    def run_adding(
        self, parts: Sequence[Pass], one_pass: Callable[[Pass, Shared], Found], sums: Shared, *, disjoint: bool
    ) -> Iterator[tuple[Pass, Found]]:
        """Run passes that add to ``sums``; yield them in order with what they found.

        One that memory is too small for is halved, and so are the passes of later calls. Arguments as for `run_shared`.
        """
        if self.ranks.size == 1 or not parts:
            yield from self.run_here(parts, lambda part: one_pass(part, sums))
        elif (yield from run_shared(parts, one_pass, sums, self.ranks, self.backbone.device, disjoint=disjoint)):
            self._halve()

    def run_here(self, parts: Sequence[Pass], one_pass: Callable[[Pass], Found]) -> Iterator[tuple[Pass, Found]]:
        """Run passes on this rank; yield them in order with what they found. Halves as `run_adding`."""
        left = len(parts)
        for each in run_passes(parts, one_pass, self.backbone.device, halve=not self.ranks.lockstep):
            left -= 1
            yield each
        if left < 0:
            self._halve()

    def _halve(self) -> None:
        object.__setattr__(self, "token_budget", max(1, self.token_budget // 2))

    def sent(self, tensor: Tensor) -> Tensor:
        """Return a tensor on the backbone's device."""
        return tensor.to(self.backbone.device)

    def padded(self, targets: Sequence[Tensor]) -> Int[Tensor, "n T"]:
        """Return targets padded with `IGNORED`, on the device."""
        return self.sent(pad_sequence(list(targets), batch_first=True, padding_value=IGNORED))

    def written(self, ids: Int[Tensor, "R T"]) -> list[Written]:
        """Return generated tokens as texts; a row that ended before others is filled up with its end or padding."""
        texts = self.backbone.tokenizer.batch_decode(ids, skip_special_tokens=True)
        ends = self.backbone.end_ids
        return [Written(text.strip(), last in ends) for text, last in zip(texts, ids[:, -1].tolist(), strict=True)]


def _key(prompts: Tensor, part: Pass) -> slice | tuple[slice, list[int]]:
    """Return the index of a pass's prompts in [M, P, D] or [M, N, P, D]."""
    return part.prompts if prompts.ndim == 3 else (part.prompts, part.rows)
