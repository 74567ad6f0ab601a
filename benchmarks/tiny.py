"""A T5 of 28,832 random weights, tiny decoder-only models and three tiny tasks, written to disk: what tests and fault
harnesses run on.

The tasks have 24 + 12 + 12 rows, and their answers follow from their words.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

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
END = "<|endoftext|>"
TEXTS = ["the film is good .", "anna sees the dog .", "where is ben ?", "positive", "negative", "sentiment sentence:"]
WORDS = ["<pad>", "</s>", "<unk>", *OTHER, *GOOD, *BAD, *THINGS, *VERBS, *NAMES, *PLACES, *".,:;?!-'"]


def write_t5(folder: Path, words: Sequence[str] = WORDS) -> Path:
    """Write what `from_pretrained` loads: a T5 v1.1 with an untied head, and a tokenizer (pad 0, end 1, unknown 2)."""
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
    _write_tokenizer(folder, words)
    return folder


def write_gpt2(folder: Path) -> Path:
    """Write a random GPT-2 and a byte-level BPE tokenizer without padding token, as GPT-2's own."""
    from transformers import GPT2Config

    end = byte_level_bpe().token_to_id(END)
    sizes = {"n_embd": 24, "n_layer": 2, "n_head": 2, "n_positions": 128, "vocab_size": end + 1}
    write_model(folder, GPT2Config(**sizes, bos_token_id=end, eos_token_id=end), "AutoModelForCausalLM")
    write_tokenizer(folder, byte_level_bpe(), eos_token=END, bos_token=END, unk_token=END)
    return folder


def write_llama(folder: Path) -> Path:
    """Write a random Llama, and a tokenizer that marks the start of words and puts <s> in front of a text."""
    from transformers import LlamaConfig

    sizes = {"hidden_size": 24, "intermediate_size": 30, "num_hidden_layers": 1, "num_attention_heads": 2}
    write_model(folder, LlamaConfig(vocab_size=120, **sizes, eos_token_id=2), "AutoModelForCausalLM")
    write_tokenizer(folder, sentencepiece_bpe(), bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    return folder


def write_model(folder: Path, config: Any, kind: str) -> None:
    import torch
    import transformers

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, kind).from_config(config).requires_grad_(False)
    for weight in model.parameters():
        weight.mul_(6 if weight.dim() == 2 else 1)  # as initialised, hardly anything depends on the prompt
    model.save_pretrained(folder)


def write_tokenizer(folder: Path, tokenizer: Any, **special: str) -> None:
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def byte_level_bpe() -> Any:
    """As GPT-2, Llama 3, Qwen and SmolLM: the blank belongs to the word behind it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([f"{text} positive negative" for text in TEXTS], trainer)
    tokenizer.add_special_tokens([END])
    return tokenizer


def sentencepiece_bpe() -> Any:
    """As Llama 2: every word starts with a mark, and <s> stands in front of a text."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator([word for text in TEXTS for word in text.split()] * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def write_tasks(folder: Path) -> Path:
    """Write `<name>.yaml` and `<name>/{train,validation,test}.csv` for `sentiment`, `pairs` and `answers`."""
    rng = random.Random(0)
    for name, rows in {"sentiment": _sentiment(rng), "pairs": _pairs(rng), "answers": _answers(rng)}.items():
        (folder / f"{name}.yaml").write_text(f"name: {name}\n{FILES.format(name)}{TASKS[name]}")
        for split, count in {"train": 24, "validation": 12, "test": 12}.items():
            _write_csv(folder / name / f"{split}.csv", [next(rows) for _ in range(count)])
    return folder


def _write_tokenizer(folder: Path, vocabulary: Sequence[str]) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
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
