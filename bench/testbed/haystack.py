"""Filler text from a small grammar, and the placing of statements in it.

The filler is English-like and partly predictable (a noun allows four verbs), so a model learns something of
it. One place in five is a content word, so a key or value is not recognisable by being a rare kind of word.
"""

from collections.abc import Sequence
from random import Random

from kvcompress.bench.testbed.vocabulary import (
    ADJECTIVES,
    CONTENT_WORDS,
    NOUNS,
    PREPOSITIONS,
    VERBS,
    word_ids,
)

_NOUNS = word_ids(" ".join(NOUNS))
_VERBS = word_ids(" ".join(VERBS))
_ADJECTIVES = word_ids(" ".join(ADJECTIVES))
_PREPOSITIONS = word_ids(" ".join(PREPOSITIONS))
_CONTENT = word_ids(" ".join(CONTENT_WORDS))
_THE, _STOP = word_ids("the .")

_VERBS_PER_NOUN = 4
_CONTENT_NOUN_SHARE = 0.2
_ADJECTIVE_SHARE = 0.4


def pick(rng: Random, pool: Sequence[int]) -> int:
    """Return one element of the pool, by `rng.random` alone (stable over Python versions)."""
    return pool[int(rng.random() * len(pool))]


def pick_distinct(rng: Random, pool: Sequence[int], count: int) -> list[int]:
    """Return `count` different elements of the pool in random order.

    Args:
        rng: source of randomness.
        pool: elements without repeats.
        count: at most `len(pool)`.

    Returns:
        The elements picked.

    Raises:
        ValueError: if the pool is too small.
    """
    if count > len(pool):
        raise ValueError(f"count must be at most the pool's size {len(pool)}, got {count}; ask for fewer")
    left = list(pool)
    for place in range(count):
        other = place + int(rng.random() * (len(left) - place))
        left[place], left[other] = left[other], left[place]
    return left[:count]


def shuffled(rng: Random, items: Sequence[list[int]]) -> list[list[int]]:
    """Return the items in random order."""
    order = pick_distinct(rng, range(len(items)), len(items))
    return [items[place] for place in order]


def sentence(rng: Random) -> list[int]:
    """Return one sentence: `the (adjective) noun verb preposition the noun .`, 7 or 8 ids."""
    subject = int(rng.random() * len(_NOUNS))
    # A fixed set of verbs per noun gives the language model something to learn.
    verb = _VERBS[(subject * 5 + int(rng.random() * _VERBS_PER_NOUN)) % len(_VERBS)]
    ids = [_THE]
    if rng.random() < _ADJECTIVE_SHARE:
        ids.append(pick(rng, _ADJECTIVES))
    place = pick(rng, _CONTENT if rng.random() < _CONTENT_NOUN_SHARE else _NOUNS)
    return [*ids, _NOUNS[subject], verb, pick(rng, _PREPOSITIONS), _THE, place, _STOP]


def _filler(rng: Random, length: int) -> list[list[int]]:
    """Return sentences of `length` ids together, the last one cut short."""
    sentences: list[list[int]] = []
    total = 0
    while total < length:
        sentences.append(sentence(rng)[: length - total])
        total += len(sentences[-1])
    return sentences


def hide(rng: Random, statements: Sequence[list[int]], length: int) -> tuple[list[int], list[bool]]:
    """Place statements, in the order given, at random sentence boundaries of filler text.

    Args:
        rng: source of randomness.
        statements: ids of each statement.
        length: number of ids wanted in all; at least that of the statements together.

    Returns:
        The text's ids, `length` of them, and for each whether it is filler (True) or belongs to a statement.
        The last sentence of the filler is cut short to fit.

    Raises:
        ValueError: if the statements do not fit.
    """
    filler_length = length - sum(map(len, statements))
    if filler_length < 0:
        raise ValueError(f"length must hold the statements ({length - filler_length} ids), got {length}; use fewer")
    sentences = _filler(rng, filler_length)
    # Never after the cut last sentence: a statement must not continue half a sentence.
    places = sorted(int(rng.random() * max(1, len(sentences))) for _ in statements)
    ids: list[int] = []
    is_filler: list[bool] = []
    pending = 0
    for number in range(max(1, len(sentences))):
        while pending < len(statements) and places[pending] == number:
            ids += statements[pending]
            is_filler += [False] * len(statements[pending])
            pending += 1
        if number < len(sentences):
            ids += sentences[number]
            is_filler += [True] * len(sentences[number])
    return ids, is_filler
