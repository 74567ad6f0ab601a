"""Prompts in lm-evaluation-harness: `PromptLM` is a model of it, and `write_task` writes a task as its YAML.

    import lm_eval
    from bmtpt.lm_eval import PromptLM

    lm_eval.simple_evaluate(model=PromptLM("prompts/tickets"), tasks=["boolq"])

The label words of the prompt's own task are scored as `bmtpt evaluate` scores them: readout, temperature and ensemble
included. Other answers are scored by a single prompt's likelihood, end of sequence included, as it was trained.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bmtpt.artifacts.card import require_backbone
from bmtpt.artifacts.files import write_files_atomically
from bmtpt.artifacts.saved import Prompt
from bmtpt.backbone import Backbone
from bmtpt.errors import DataError, SettingsError
from bmtpt.inference.score import ANSWER_TOKENS, chosen_way, make_reader, make_scorer, read
from bmtpt.tasks import TaskData, saved_task
from bmtpt.tasks.tokens import tokenise_answer, tokenise_text
from bmtpt.types import Example

try:
    from lm_eval.api.model import LM
except ImportError:  # said when a model is made: the commands' help imports this module, too
    LM = object

log = logging.getLogger("bmtpt")

METRICS = {"accuracy": "acc", "f1": "f1", "matthews": "mcc"}
"""The harness's name of each metric of ours that it computes in the same way, from 0 to 1."""
PARTS = ("before", "context", "after")
"""Columns of a written row that say where its text may be cut."""
PREFIX = "bmtpt_"
"""Of a task's name in the harness, which has tasks of the same names with other words."""

Scored = tuple[Float[Tensor, "N C"], Bool[Tensor, "N C"]]
"""The score of each answer to each text, and whether it is what the prompt answers with."""


def require_harness() -> None:
    """Raise a SettingsError if lm-evaluation-harness is not installed."""
    if LM is object:
        raise SettingsError("lm-evaluation-harness needs the lm-eval package; run: pip install 'bmtpt[lm-eval]'")


class PromptLM(LM):  # type: ignore[misc]  # the harness has no types
    """A model of the harness that answers with a prompt.

    Args:
        prompt: A prompt, its folder, or `hub:user/name`.
        backbone: A backbone or its name; None takes the one that the prompt was trained with.
        device: auto, cpu, cuda or cuda:N; None is auto.
        precision: Compute dtype of the model.
        sizes: The harness's `batch_size` and `max_batch_size`, which have no effect: an engine sizes its own passes.

    Raises:
        SettingsError: The harness is not installed.
        ArtifactError: There is no such prompt.
        BackboneError: The prompt was trained with another backbone.
    """

    def __init__(
        self,
        prompt: Prompt | str | Path,
        backbone: Backbone | str | None = None,
        device: str | None = None,
        precision: Any = "auto",
        **sizes: Any,
    ) -> None:
        require_harness()
        super().__init__()
        self.prompt = prompt if isinstance(prompt, Prompt) else Prompt.load(prompt)
        card = self.prompt.card
        if not isinstance(backbone, Backbone):
            name = backbone or card.backbone.name
            backbone = Backbone.from_pretrained(name, device=str(device or "auto"), precision=precision)
        require_backbone(card.backbone, backbone)
        self.backbone = backbone
        self.prompts = self.prompt.prompts.to(backbone.device)
        self.task = saved_task(card.task_definition)
        self.max_length = int(card.settings.get("max_length") or self.task.max_length)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return a score of each request's answer, and whether the prompt answers with it.

        Raises:
            SettingsError: The answers are not the prompt's label words, and it is an ensemble or has a readout.
        """
        answers: dict[str, dict[str, None]] = {}
        for request in requests:
            text, answer = request.args
            answers.setdefault(text, {})[answer.strip()] = None
        texts: dict[tuple[str, ...], dict[str, Example]] = {}
        for request in requests:
            text = request.args[0]
            texts.setdefault(tuple(answers[text]), {})[text] = _example(request)
        found: dict[tuple[str, str], tuple[float, bool]] = {}
        for words, examples in texts.items():
            scores, given = self._scored(list(examples.values()), words)
            for text, row, own in zip(examples, scores.tolist(), given.tolist(), strict=True):
                found |= {(text, word): each for word, each in zip(words, zip(row, own, strict=True), strict=True)}
        results = [found[request.args[0], request.args[1].strip()] for request in requests]
        for request, result in zip(requests, results, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, result)
        return results

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return what the prompt writes after each request's text, greedily, up to the first of its stop texts.

        Raises:
            SettingsError: The prompt is an ensemble, or a request asks for samples.
        """
        self._require_one("writes no texts")
        found = []
        for request in requests:
            options = request.args[1]
            if options.get("do_sample") or options.get("temperature"):
                raise SettingsError("a prompt answers greedily; leave do_sample and temperature out of the task")
            limit = int(options.get("max_gen_toks") or self.prompt.card.answer_tokens or ANSWER_TOKENS)
            ((written,),) = self.backbone.engine.generate(self.prompts, self._ids([_example(request)]), limit)
            until = options.get("until") or ()
            answer = str(written)
            for stop in [until] if isinstance(until, str) else until:
                answer = answer.split(stop)[0] if stop else answer
            found.append(answer)
            self.cache_hook.add_partial("generate_until", request.args, answer)
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Refuse: raises a SettingsError."""
        raise SettingsError(
            "a prompt answers texts and gives no probability of a text alone; choose tasks with answers"
        )

    def _scored(self, examples: Sequence[Example], answers: Sequence[str]) -> Scored:
        ids = self._ids(examples)
        if self.task.fixed_words and set(answers) == set(self.task.label_words):
            return self._label_scores(ids, answers)
        self._require_one(f"scores only the label words of task {self.task.name}")
        tokens = [tokenise_answer(self.backbone, answer) for answer in answers]
        scores = self.backbone.engine.answer_log_likelihoods(self.prompts, ids, tokens)[0]
        (written,) = self.backbone.engine.generate(self.prompts, ids, max(map(len, tokens)))
        read_back = self.backbone.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        given = [[text.ended and text == answer.strip() for answer in read_back] for text in written]
        return scores.cpu(), torch.tensor(given)

    def _label_scores(self, ids: Sequence[Tensor], answers: Sequence[str]) -> Scored:
        """Return the logarithms of the label words' probabilities, in the order of the answers."""
        engine, prompt = self.backbone.engine, self.prompt
        way = chosen_way(None, prompt.card.settings, prompt.readouts)
        scorer = make_scorer(self.backbone, self.task, normalise=way)
        reader = make_reader(engine, self.prompts, scorer, prompt.readouts)
        scores = reader.scores(read(engine, self.prompts, ids, scorer)).log_softmax(dim=2)  # [M, N, C]
        mean = scores.logsumexp(dim=0) - torch.tensor(float(len(scores))).log()
        mean = mean[:, [self.task.label_words.index(answer) for answer in answers]].cpu()
        return mean, mean == mean.amax(dim=1, keepdim=True)

    def _ids(self, examples: Sequence[Example]) -> list[Tensor]:
        found = [tokenise_text(self.backbone, example, self.max_length) for example in examples]
        if cut := sum(was_cut for _, was_cut in found):
            log.warning("texts that were cut to the prompt's %d tokens: %d of %d", self.max_length, cut, len(found))
        return [ids for ids, _ in found]

    def _require_one(self, what: str) -> None:
        if self.prompt.readouts or len(self.prompts) > 1:
            kind = "an ensemble" if len(self.prompts) > 1 else "a prompt with a readout or a temperature"
            raise SettingsError(f"{kind} {what}; adapt with readout 'none' and average 'none'")


def _example(request: Any) -> Example:
    """Return a request's text; one of `write_task` in its parts, so that a long one is cut where it may be."""
    text, doc = request.args[0], request.doc
    parts = [doc.get(part) for part in PARTS] if isinstance(doc, Mapping) else []
    known = [part for part in parts if isinstance(part, str)]
    before, context, after = known if len(known) == len(PARTS) and "".join(known) == text else ("", text, "")
    return Example(before, context, after, target="")


def write_task(data: TaskData, folder: str | Path, *, split: str = "test") -> dict[str, Any]:
    """Write a task's rows (NAME.jsonl) and its definition for the harness (bmtpt_NAME.yaml); return the definition.

    Args:
        split: Which rows: `test` or `select`.

    Raises:
        SettingsError: The task has no fixed label words.
        DataError: It has no such rows.
        ArtifactError: The folder cannot be written.
    """
    import yaml

    task, folder = data.task, Path(folder)
    if not task.fixed_words:
        raise SettingsError(
            f"task {task.name} has no fixed label words, and the harness computes its metrics in other ways; score it "
            "with bmtpt evaluate"
        )
    if not data.parts[split]:
        raise DataError(f"task {task.name} has no rows in its part '{split}'")
    lines = [
        json.dumps({"text": each.text, **{part: getattr(each, part) for part in PARTS}, "label": each.label})
        for each in data.parts[split]
    ]
    place = folder.resolve() / f"{task.name}.jsonl"
    metrics = [METRICS[name] for name in task.metrics if name in METRICS] or ["acc"]
    definition = {
        "task": PREFIX + task.name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(place)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "text",
        "doc_to_target": "label",
        "doc_to_choice": list(task.label_words),
        "target_delimiter": "",  # a blank before an answer is another token for T5
        "metric_list": [{"metric": name} for name in metrics],
    }
    written = yaml.safe_dump(definition, sort_keys=False, allow_unicode=True)
    files = {place.name: ("\n".join(lines) + "\n").encode(), f"{PREFIX}{task.name}.yaml": written.encode()}
    write_files_atomically(folder, files)
    return definition
