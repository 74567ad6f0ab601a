"""Truths that all tests share: one tiny T5 and one folder of tiny tasks. Shapes are checked while tests run.

Fixtures:
    tiny_t5_folder: A Hugging Face folder with a random T5 v1.1 (untied head) and a word tokenizer; see `TINY_T5`.
    tiny_backbone: The same folder, loaded in fp32.
    tiny_hf: The same folder as transformers loads it, without any code of ours.
    tiny_tasks: The data of the tiny tasks, by name.
    tiny_task_folder: `<name>.yaml` and `<name>/{train,validation,test}.csv` for `sentiment`, `pairs` and `answers`.
"""

from __future__ import annotations

import csv
import json
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import hypothesis
import pytest
from beartype import beartype
from jaxtyping import AbstractArray, install_import_hook

if TYPE_CHECKING:
    from bmtpt.backbone import Backbone
    from bmtpt.tasks import TaskData

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may depend on a hub
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see bmtpt.cli.main


# CI draws the same examples every time, so that a red run is always the change's own doing; elsewhere they vary.
hypothesis.settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    hypothesis.settings.load_profile("ci")


def check_shapes(function: Callable[..., object]) -> Callable[..., object]:
    """Beartype for arrays only: tests must be able to pass a wrong option and read the sentence that refuses it.

    jaxtyping hands over a stand-in with the checked function's signature, so its annotations are ours to change.
    """
    function.__annotations__ = {name: hint for name, hint in function.__annotations__.items() if _has_axes(hint)}
    return beartype(function)


def _has_axes(hint: object) -> bool:
    return (isinstance(hint, type) and issubclass(hint, AbstractArray)) or any(map(_has_axes, get_args(hint)))


# The hook imports its checker by name, and pytest's importlib mode gives this file no name of its own choosing.
sys.modules["bmtpt_shape_checks"] = sys.modules[__name__]
# Must come before the first import of bmtpt: from here on every annotated tensor shape is checked at each call.
install_import_hook("bmtpt", "bmtpt_shape_checks.check_shapes")

# No two widths are equal, so that a mixed-up axis cannot pass unnoticed; the table is longer than the vocabulary, as
# in T5. `tie_word_embeddings: false` is what hub folders of T5 v1.1 say: transformers 5 reads it as "do not scale the
# decoder's output" and unties the head because the folder holds both weights.
TINY_T5 = {
    "architectures": ["T5ForConditionalGeneration"],
    "model_type": "t5",
    "is_encoder_decoder": True,
    "vocab_size": 160,
    "d_model": 24,
    "d_kv": 8,
    "d_ff": 40,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 2,
    "feed_forward_proj": "gated-gelu",
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "dropout_rate": 0.0,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
    "tie_word_embeddings": False,
    "dtype": "float32",
}

# fmt: off
GOOD = ["good", "great", "lovely", "bright", "warm", "happy", "fine", "superb"]
BAD = ["bad", "awful", "dull", "cold", "sad", "poor", "grim", "broken"]
THINGS = ["film", "book", "song", "meal", "town", "game", "story", "house", "garden", "river", "car", "dog", "cat"]
VERBS = ["sees", "likes", "finds", "moves", "keeps", "opens"]
NAMES = ["anna", "ben", "carla", "david", "emma", "frank"]
PLACES = ["paris", "rome", "oslo", "lima", "cairo", "delhi"]
OTHER = [
    "the", "a", "is", "was", "not", "very", "and", "or", "in", "of", "to", "it", "this", "that", "with", "from",
    "where", "who", "what", "lives", "one", "two", "three", "four", "five",
    "sentiment", "sentence", "pairs", "premise", "hypothesis", "answers", "question", "context", "answer", "text",
    "label", "positive", "negative", "true", "false", "yes", "no", "entailment", "contradiction", "neutral",
    "equivalent", "different", "acceptable", "unacceptable",
]
# fmt: on
TASKS = {
    "sentiment": """
text: "sentiment sentence: {sentence}"
labels: {0: negative, 1: positive}
metrics: [accuracy, f1]
""",
    "pairs": """
text: "pairs premise: {premise} hypothesis: {hypothesis}"
context: premise
labels: [contradiction, entailment]
""",
    "answers": """
text: "answers question: {question} context: {context}"
context: context
answers: answer
""",
}
FILES = "files: {{train: {0}/train.csv, validation: {0}/validation.csv, test: {0}/test.csv}}"
WORDS = ["<pad>", "</s>", "<unk>", *OTHER, *GOOD, *BAD, *THINGS, *VERBS, *NAMES, *PLACES, *".,:;?!-'"]


@pytest.fixture(scope="session")
def tiny_t5_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A loadable T5 v1.1 of 28,832 random fp32 weights, and its tokenizer (pad 0, end 1, unknown 2)."""
    folder = tmp_path_factory.mktemp("tiny_t5")
    _write_model(folder)
    _write_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_task_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tasks of 24 + 12 + 12 rows whose answers follow from their words."""
    folder = tmp_path_factory.mktemp("tiny_tasks")
    rng = random.Random(0)
    for name, rows in {"sentiment": _sentiment(rng), "pairs": _pairs(rng), "answers": _answers(rng)}.items():
        (folder / f"{name}.yaml").write_text(f"name: {name}\n{FILES.format(name)}{TASKS[name]}")
        for split, count in {"train": 24, "validation": 12, "test": 12}.items():
            _write_csv(folder / name / f"{split}.csv", [next(rows) for _ in range(count)])
    return folder


@pytest.fixture(scope="session")
def tiny_backbone(tiny_t5_folder: Path) -> Backbone:
    from bmtpt.backbone import Backbone

    return Backbone.from_pretrained(str(tiny_t5_folder), precision="float32", device="cpu")


@pytest.fixture(scope="session")
def tiny_hf(tiny_t5_folder: Path) -> Any:
    from transformers import T5ForConditionalGeneration

    model = T5ForConditionalGeneration.from_pretrained(tiny_t5_folder, attn_implementation="eager")
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def tiny_tasks(tiny_task_folder: Path) -> dict[str, TaskData]:
    from bmtpt.tasks import load_data, load_task

    return {path.stem: load_data(load_task(path)) for path in sorted(tiny_task_folder.glob("*.yaml"))}


def _write_model(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import T5Config, T5ForConditionalGeneration

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = T5ForConditionalGeneration(T5Config(**TINY_T5))
        # A fresh model is tied whatever its config says; this head is its own.
        head = 0.5 * torch.randn(TINY_T5["vocab_size"], TINY_T5["d_model"])
    ours = ("shared.weight", "encoder.block", "encoder.final", "decoder.block", "decoder.final")
    weights = {key: value.contiguous() for key, value in model.state_dict().items() if key.startswith(ours)}
    # Written by hand: save_pretrained would note tie_word_embeddings as true, unlike the folders on the hub.
    save_file({**weights, "lm_head.weight": head}, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(TINY_T5, indent=2))


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    # As T5: special tokens means one end of sequence and nothing else.
    words.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=512, **special).save_pretrained(folder)


def _sentiment(rng: random.Random) -> Iterator[dict[str, str | int]]:
    while True:
        for label in (0, 1):
            yield {"sentence": f"the {rng.choice(THINGS)} is {rng.choice((BAD, GOOD)[label])} .", "label": label}


def _pairs(rng: random.Random) -> Iterator[dict[str, str | int]]:
    while True:
        for label in (0, 1):
            name, verb = rng.choice(NAMES), rng.choice(VERBS)
            first, second = rng.sample(THINGS, 2)
            claimed = (second, first)[label]
            yield {
                "premise": f"{name} {verb} the {first} .",
                "hypothesis": f"{name} {verb} the {claimed} .",
                "label": ("contradiction", "entailment")[label],
            }


def _answers(rng: random.Random) -> Iterator[dict[str, str | int]]:
    while True:
        asked, other = rng.sample(NAMES, 2)
        here, there = rng.sample(PLACES, 2)
        yield {
            "question": f"where is {asked} ?",
            "context": f"{other} lives in {there} . {asked} lives in {here} .",
            "answer": here,
        }


def _write_csv(path: Path, rows: list[dict[str, str | int]]) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
