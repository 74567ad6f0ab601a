"""Text to token ids: nothing that a text says can end it, pad it or open a turn of a chat."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import Any, NamedTuple

from bmtpt.errors import DataError


class Special(NamedTuple):
    """A tokenizer's special tokens.

    Attributes:
        ids: All but that of an unknown character.
        names: A pattern of all names.
        unknown: Id and name of what stands for an unknown character.
    """

    ids: frozenset[int]
    names: re.Pattern[str]
    unknown: tuple[int | None, str]

    def in_text(self, ids: list[int], text: str) -> bool:
        """Tell whether the ids of a text hold a special token; unknown characters alone are none."""
        unknown, name = self.unknown
        return not self.ids.isdisjoint(ids) or (unknown in ids and bool(name) and name in text)


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """Return the ids of a text, without framing; the name of a special token in it is text like any other.

    A tokenizer that knows the name as a piece of its vocabulary (T5's ``</s>``) gets it with a blank after the first
    character.

    Args:
        tokenizer: A Hugging Face tokenizer.

    Raises:
        DataError: The text holds half a surrogate pair, or the tokenizer makes a special token of it all the same.
    """
    if not text:
        return []
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise DataError(f"the text holds {half}, half of a surrogate pair and no character; remove it") from error
    special = _special(tokenizer, len(tokenizer))
    ids = _ids(tokenizer, text)
    if not special.in_text(ids, text):
        return ids
    ids = _ids(tokenizer, text, split_special_tokens=True)
    if not special.in_text(ids, text):
        return ids
    # Tokenizers normalise first, so that a name in full-width letters is the name, too.
    shown = unicodedata.normalize("NFKC", text)
    ids = _ids(tokenizer, special.names.sub(_parted, shown), split_special_tokens=True)
    if not special.ids.isdisjoint(ids):
        found = tokenizer.convert_ids_to_tokens(sorted(special.ids.intersection(ids)))
        raise DataError(f"the text holds the special token '{found[0]}', which cannot be read as text; remove it")
    return ids


def _ids(tokenizer: Any, text: str, **options: bool) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False, **options))


def _parted(name: re.Match[str]) -> str:
    return f"{name[0][0]} {name[0][1:]}"


@lru_cache(maxsize=8)
def _special(tokenizer: Any, size: int) -> Special:
    """Return the special tokens of a tokenizer of a size; a token added later makes it another one."""
    added = tokenizer.added_tokens_decoder
    tokens = {i: token.content for i, token in added.items() if token.special}
    tokens |= zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
    names = sorted(tokens.values(), key=len, reverse=True)
    unknown = tokenizer.unk_token_id
    return Special(
        frozenset(tokens) - {unknown},
        re.compile("|".join(map(re.escape, names)) or r"(?!)"),
        (unknown, tokens.get(unknown, "")),
    )
