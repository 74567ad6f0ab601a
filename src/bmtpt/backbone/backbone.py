"""The frozen language model as a user holds it: loaded once, with the one engine that runs it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from pickle import PicklingError
from typing import Any, Self

from bmtpt.backbone.decoder_only.generic import HuggingFaceCausalEngine
from bmtpt.backbone.decoder_only.shared_prompt import CausalEngine, causal_supports
from bmtpt.backbone.encoder_decoder.generic import HuggingFaceEngine
from bmtpt.backbone.engine import Engine
from bmtpt.backbone.execution import TOKEN_BUDGET, EngineName, Execution, Memory, Precision
from bmtpt.backbone.fast_t5.engine import PackedT5Engine, packed_supports
from bmtpt.backbone.model.families import adopt, require_tokenizer, require_tokens
from bmtpt.backbone.model.fingerprint import fingerprint_of_files, fingerprint_of_state, fingerprint_v1
from bmtpt.backbone.model.frozen import FrozenModel
from bmtpt.backbone.model.load import device_named, load_model, load_tokenizer
from bmtpt.backbone.model.sharded import spread_weights
from bmtpt.errors import BackboneError
from bmtpt.parallel.ranks import ALONE, Ranks, device_of_rank, joined
from bmtpt.parallel.torchrun import Reduce


@dataclass(frozen=True, repr=False)
class Backbone(FrozenModel):
    """A frozen language model and the engine that runs it.

    Make one with `from_pretrained` or `from_model`.

    Attributes:
        engine_name: Which engine was asked for (see `Execution`).
        memory: What it keeps for the backward pass (see `Execution`).
        weight_files: The safetensors files that the model was loaded from.
        token_budget: Most tokens of a pass (see `Execution`).
        ranks: This process among those of its run: several where torchrun started it.
    """

    engine_name: EngineName = "auto"
    memory: Memory = "keep"
    weight_files: tuple[Path, ...] = ()
    token_budget: int = TOKEN_BUDGET
    ranks: Ranks = ALONE

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        device: str = "auto",
        precision: Precision = "auto",
        engine: EngineName = "auto",
        memory: Memory = "keep",
        token_budget: int = TOKEN_BUDGET,
        reduce: Reduce = "exact",
        shard_weights: bool = False,
    ) -> Self:
        """Load a T5, another encoder-decoder or a decoder-only model, frozen, without dropout.

        Where torchrun started this process, it joins the other ranks of its run, and they share all work.

        Args:
            name: A Hugging Face hub id (``google/t5-v1_1-base``, ``Qwen/Qwen2.5-0.5B``), a local folder, or
                ``offline``.
            device, precision, engine, memory, token_budget, reduce, shard_weights: See `Execution`.

        Raises:
            BackboneError: A choice is unknown or cannot be had here; the model cannot be found, is of a kind that
                cannot be used, or has no safetensors weights.
            RankError: The other ranks cannot be reached, or have another model.
        """
        execution = Execution(device, precision, engine, memory, token_budget, reduce, shard_weights).checked()
        if not isinstance(name, str | Path):
            raise BackboneError(
                "a backbone is named by a hub id, a folder or 'offline', not by an object of type "
                f"{type(name).__name__}; Backbone.from_model takes a model that is loaded"
            )
        name, ranks, place = str(name), joined(reduce, lockstep=shard_weights), device_of_rank(device)
        model, files = load_model(name, execution._replace(device="cpu" if shard_weights else place))
        fingerprint = fingerprint_of_files(model, files) if files else fingerprint_of_state(model)
        ranks.require_same(fingerprint, "weights")
        if shard_weights:
            spread_weights(model, name, ranks, device_named(place))
            engine = "generic"
        tokenizer = load_tokenizer(name)
        require_tokens(tokenizer, model, name)
        made = cls(name, model, tokenizer, fingerprint, engine, memory, files, token_budget, ranks)
        if (engine, memory) != ("auto", "keep"):
            made.engine  # noqa: B018  (refuse now, before any rows are read, what this model cannot do)
        return made

    @classmethod
    def from_model(
        cls, model: Any, tokenizer: Any, *, name: str = "a loaded model", engine: EngineName = "generic"
    ) -> Self:
        """Take a model that is loaded already: quantised, or with LoRA weights in it, too.

        The model itself is frozen, not a copy: its weights no longer ask for gradients, and its dropout is off.

        Args:
            model: Hugging Face's model: an encoder-decoder or a decoder-only one, with its language-model head.
            tokenizer: Its tokenizer.
            name: How artifacts and messages call it.
            engine: `packed` only for plain weights; quantised or wrapped layers need the generic engine.

        Raises:
            BackboneError: The model or the tokenizer is not one, or not of a kind that can be used.
        """
        Execution(engine=engine).checked()
        if not isinstance(name, str) or not name:
            raise BackboneError("from_model takes as name a text, which artifacts and messages use for the model")
        adopt(model, name)
        require_tokenizer(tokenizer, name)
        require_tokens(tokenizer, model, name)
        return cls(name, model, tokenizer, fingerprint_of_state(model), engine, ranks=joined())

    def __deepcopy__(self, memo: Any) -> Self:
        """Return the backbone itself: it is frozen, and scikit-learn copies the arguments of every estimator."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the name and not the weights: whoever reads it loads the model, once in a process.

        Raises:
            PicklingError: The model was given loaded, so its name leads nowhere, or it is shared by ranks.
        """
        if self.ranks.size > 1:
            raise PicklingError(f"backbone '{self.name}' belongs to the ranks of one run; load it in each process")
        if not self.weight_files:
            raise PicklingError(f"backbone '{self.name}' was given loaded; load it by name, and it can be pickled")
        precision = str(self.dtype).removeprefix("torch.")
        how = (str(self.device), precision, self.engine_name, self.memory, self.token_budget)
        return _loaded_again, (type(self), self.name, *how)

    @cached_property
    def engine(self) -> Engine:
        """The engine that runs this model: built when it is first needed, then kept.

        Raises:
            BackboneError: The model cannot be run by the packed engine, which `engine_name` or `memory` asks for.
        """
        made, why = self._choose()
        if self.token_budget != TOKEN_BUDGET:
            object.__setattr__(made, "token_budget", self.token_budget)
        logging.getLogger("bmtpt").info("engine=%s (%s)", made.name, why)
        return made

    def _choose(self) -> tuple[Engine, str]:
        """Return the engine that `Execution` describes, and why it is this one."""
        generic = partial(HuggingFaceCausalEngine if self.decoder_only else HuggingFaceEngine, self, ranks=self.ranks)
        recompute = self.memory == "recompute"
        if recompute and self.decoder_only:
            raise BackboneError("memory=recompute is for T5, and this model is decoder-only; use memory=keep")
        if self.engine_name == "generic":
            if recompute:
                raise BackboneError("memory=recompute needs the packed engine; use engine=auto, or memory=keep")
            return generic(), "asked for"
        asked = self.engine_name == "packed" or recompute
        if reason := (causal_supports if self.decoder_only else packed_supports)(self):
            if asked:
                choice = "memory=recompute" if self.engine_name != "packed" else "engine=packed"
                raise BackboneError(f"{choice} cannot be used with backbone '{self.name}': {reason}; leave it out")
            return generic(), f"packed cannot run this backbone: {reason}"
        if self.decoder_only:
            return CausalEngine(self, ranks=self.ranks), "each prompt's keys and values are shared by its examples"
        if not asked and self.device.type != "cpu":
            return generic(), "packed is made for CPUs"
        why = "asked for" if self.engine_name == "packed" else "the fastest for T5 on a CPU"
        return PackedT5Engine(self, self.memory, ranks=self.ranks), f"{why}; memory={self.memory}"

    @property
    def identity(self) -> dict[str, str]:
        """What decides the bits that the model computes: its weights, the compute dtype and the engine."""
        dtype = str(self.dtype).removeprefix("torch.")
        return {"fingerprint": self.fingerprint, "dtype": dtype, "engine": self.engine.name}

    def matches(self, fingerprint: str) -> bool:
        """Tell whether an artifact with this fingerprint was made with this model; version 1 had another hash."""
        return fingerprint == self.fingerprint or fingerprint == self._fingerprint_v1

    @cached_property
    def _fingerprint_v1(self) -> str:
        return fingerprint_v1(self.model, self.weight_files)

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"Backbone({self.name!r}, {self.parameters:,} parameters, {dtype} on {self.device})"


@cache
def _loaded_again(
    kind: type[Backbone], name: str, device: str, precision: Precision, engine: EngineName, memory: Memory, budget: int
) -> Backbone:
    how = Execution(device, precision, engine, memory, budget)
    return kind.from_pretrained(name, **how._asdict())
