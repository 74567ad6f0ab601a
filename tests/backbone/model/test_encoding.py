"""No text can be read as the end of itself, as padding or as a turn of a chat."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bmtpt.backbone.model.encoding import plain_ids
from bmtpt.errors import DataError

LETTERS = "abcdefghijklmnopqrstuvwxyz/<>|_ "


def unigram() -> Any:
    """As T5's: the names of special tokens are pieces, and the normaliser makes plain letters of full-width ones."""
    names = ["<pad>", "</s>", "<unk>", "<extra_id_0>"]
    pieces = [(name, 0.0) for name in names] + [(letter, -2.0) for letter in ["▁", *LETTERS.replace(" ", "")]]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("\x01", "")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, extra_special_tokens=["<extra_id_0>"], **special)


def byte_level(eos: str) -> Any:
    """As GPT-2's and SmolLM's: some special tokens have a role, others are reserved."""
    alphabet = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(alphabet, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    tokenizer.add_special_tokens([end, "<|im_start|>", AddedToken("<|reserved|>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos, bos_token=end, unk_token=end)


T5, GPT, SMOL = unigram(), byte_level("<|endoftext|>"), byte_level("<|im_start|>")
NAMES = ["<pad>", "</s>", "<extra_id_0>", "<|endoftext|>", "<|im_start|>", "<|reserved|>", "＜/s＞"]
TEXTS = st.lists(st.sampled_from([*NAMES, *NAMES, *LETTERS]), max_size=12).map("".join)


@given(text=TEXTS)
def test_a_text_never_becomes_a_special_token_whatever_it_says(text):
    assert not {0, 1, 3} & set(plain_ids(T5, text))
    for tokenizer in (GPT, SMOL):
        assert max(plain_ids(tokenizer, text), default=0) < 256
        assert tokenizer.decode(plain_ids(tokenizer, text)) == text


@given(text=st.text(LETTERS))
def test_a_text_without_such_a_name_has_the_tokenizers_own_ids(text):
    for tokenizer, ends in ((T5, {0, 1, 3}), (GPT, set(range(256, 300)))):
        own = tokenizer.encode(text, add_special_tokens=False)
        if not ends & set(own):
            assert plain_ids(tokenizer, text) == own


def test_reading_a_name_as_text_leaves_the_tokenizer_as_it_was():
    before = GPT.encode("a<|im_start|>", add_special_tokens=False)
    assert plain_ids(GPT, "a<|im_start|>") != before
    assert GPT.encode("a<|im_start|>", add_special_tokens=False) == before


def test_a_name_that_the_tokenizer_still_takes_for_the_token_is_refused():
    with pytest.raises(DataError, match="special token '</s>', which cannot be read as text"):
        plain_ids(T5, "a <\x01/s>")


def test_half_a_surrogate_pair_is_refused_by_its_number():
    with pytest.raises(DataError, match=r"the text holds \\ud800, half of a surrogate pair"):
        plain_ids(GPT, "a \ud800 b")


def test_an_unknown_character_is_not_taken_for_a_special_token():
    assert plain_ids(T5, "a é") == T5.encode("a é", add_special_tokens=False)


def test_the_name_of_the_unknown_token_is_text_too():
    assert T5.encode("<unk>", add_special_tokens=False)[-1] == 2
    assert 2 not in plain_ids(T5, "<unk>")
    assert T5.decode(plain_ids(T5, "<unk>")) == "< unk>"
