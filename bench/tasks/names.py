"""Names, numbers and words that occur in nothing but the sample that they are made for."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from kvcompress.bench.testbed.haystack import pick, pick_distinct
from kvcompress.bench.testbed.vocabulary import ADJECTIVES, NOUNS

_ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "dr", "st", "tr")
_VOWELS = ("a", "e", "i", "o", "u")


def keys(rng: Random, count: int) -> list[str]:
    """Different keys of an adjective and a noun, such as ``brave-baker``."""
    places = pick_distinct(rng, range(len(ADJECTIVES) * len(NOUNS)), count)
    return [f"{ADJECTIVES[place // len(NOUNS)]}-{NOUNS[place % len(NOUNS)]}" for place in places]


def numbers(rng: Random, count: int, digits: int = 7) -> list[str]:
    """Different numbers of as many digits, the first of them not zero."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[str(int((0.1 + 0.9 * rng.random()) * 10**digits))] = None
    return list(found)


def invented_words(rng: Random) -> Iterator[str]:
    """Endless different words of three syllables, none of which contains another."""
    seen: set[str] = set()
    while True:
        parts = [_ONSETS[pick(rng, range(len(_ONSETS)))] + _VOWELS[pick(rng, range(len(_VOWELS)))] for _ in range(3)]
        word = "".join(parts)
        # A shorter one may be part of a longer one ("tadaka", "stadaka"), which a match of substrings would confuse.
        if not any(word[start:] in seen for start in (0, 1)) and f"s{word}" not in seen:
            seen.add(word)
            yield word
