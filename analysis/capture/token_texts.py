"""Texts of single tokens, as a reader wants to see them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Final

_WORD_STARTS: Final = ("\u2581", "\u0120")  # of SentencePiece, and of byte-level BPE
_NOT_TEXT: Final = "\ufffd"


def token_texts(tokenizer: Any, ids: Sequence[int]) -> tuple[str, ...]:
    """The text of each token, white space included; of a part of a character, the vocabulary's own name.

    Args:
        tokenizer: a tokenizer of transformers.
        ids: token ids.
    """

    @cache
    def text(token_id: int) -> str:
        name = str(tokenizer.convert_ids_to_tokens(token_id))
        decoded = str(tokenizer.decode([token_id], clean_up_tokenization_spaces=False))
        if name and all(character in _WORD_STARTS for character in name):
            return " " * len(name)
        if not decoded or _NOT_TEXT in decoded:
            return name
        if name.startswith(_WORD_STARTS) and not decoded.startswith(" "):
            decoded = " " + decoded  # decoding a text alone may drop the space before its first word
        return decoded.encode("utf-8", "replace").decode()  # half of a surrogate pair is no text

    return tuple(text(int(token_id)) for token_id in ids)
