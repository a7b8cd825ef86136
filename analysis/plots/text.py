"""Text from prompts, made fit for a picture."""

from __future__ import annotations

import unicodedata
from functools import cache
from typing import Final

from matplotlib import font_manager

PLACEHOLDER: Final = "□"
_SHOWN: Final = {"\n": "↵", "\r": "↵", "\t": "→", " ": "·"}
_INVISIBLE: Final = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # controls, direction marks, unassigned


@cache
def _drawable() -> frozenset[int]:
    """The characters that the pictures' font has."""
    return frozenset(font_manager.get_font(font_manager.findfont("DejaVu Sans")).get_charmap())


def printable(text: str, longest: int | None = None) -> str:
    """A text of which every character can be drawn and seen.

    Args:
        text: anything, from a tokenizer or a file.
        longest: most characters; a longer text ends in an ellipsis. None: all.

    Returns:
        One line: line breaks and tabs as arrows, and a placeholder for each character that the font lacks or that
        has no shape (controls, marks of direction).
    """
    shown = "".join(_drawn(character) for character in text)
    return shown if longest is None or len(shown) <= longest else shown[: longest - 1] + "…"


def token_text(text: str, longest: int = 12) -> str:
    """A token in quotation marks, with its spaces visible."""
    return f"“{printable(text.replace(' ', _SHOWN[' ']), longest)}”"


def counted(count: int, noun: str) -> str:
    """A number and its noun: ``1 head``, ``4 heads``."""
    return f"{count} {noun}" if count == 1 else f"{count} {'queries' if noun == 'query' else noun + 's'}"


def _drawn(character: str) -> str:
    if character == " ":
        return " "
    if character in _SHOWN:
        return _SHOWN[character]
    if unicodedata.category(character) in _INVISIBLE or ord(character) not in _drawable():
        return PLACEHOLDER
    return character
