"""Prompts in natural language, of a wanted length in tokens of any tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from kvcompress.bench.tasks.embedded import is_embedded
from kvcompress.bench.tasks.sample import Sample, Turn, check_request, text_ids
from kvcompress.bench.testbed.haystack import pick_distinct, sentence
from kvcompress.bench.testbed.vocabulary import ids_text

_MOST_UNITS = 1 << 22  # of filler; more means that filler takes no tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A prompt whose length is still open.

    Attributes:
        build: makes the context from a number of units of filler; a pure function, longer for more.
        least: fewest units with which the task makes sense.
        questions: of each turn the question and its answers.
        max_new_tokens: most tokens of an answer.
        metric: how answers are judged.
    """

    build: Callable[[int], str]
    questions: Sequence[tuple[str, Sequence[str]]]
    max_new_tokens: int
    metric: str = "string_match_all"
    least: int = 0


def finish(task: str, tokenizer: Any, length: int, seed: int, draft: Draft) -> Sample:
    """Gives a draft as much filler as the length has room for.

    Args:
        task: name of the task.
        tokenizer: a tokenizer of transformers.
        length: most tokens of context and first question.
        seed: which sample.
        draft: the prompt.

    Raises:
        ValueError: not even the least filler fits, or it is the embedded model's tokenizer.
    """
    check_request(length, seed)
    if is_embedded(tokenizer):
        raise ValueError(
            f"task {task!r} must be asked of a model that reads English; the embedded model was not trained for it. "
            "Choose needle_1, needle_8, needle_20, variables_2, variables_4, key_value, multi_value, copy, "
            "frequent_words, multi_turn, multi_turn_variables or multi_turn_key_value, or another model."
        )
    turns = tuple(
        Turn(
            question=question,
            question_ids=text_ids(tokenizer, question, special=False),
            answers=tuple(answers),
            max_new_tokens=draft.max_new_tokens,
        )
        for question, answers in draft.questions
    )
    context, context_ids = _fill(task, tokenizer, draft, length, len(turns[0].question_ids))
    return Sample(
        task=task, seed=seed, context=context, context_ids=context_ids, turns=turns, metric=draft.metric
    )  # fmt: skip


def _fill(task: str, tokenizer: Any, draft: Draft, length: int, question_tokens: int) -> tuple[str, tuple[int, ...]]:
    """The longest context that leaves room for the question: doubling, then halving the gap."""
    room = length - question_tokens

    def attempt(units: int) -> tuple[str, tuple[int, ...]] | None:
        text = draft.build(units)
        ids = text_ids(tokenizer, text, special=True)
        return (text, ids) if len(ids) <= room else None

    best = attempt(draft.least)
    if best is None:
        needed = len(text_ids(tokenizer, draft.build(draft.least), special=True)) + question_tokens
        raise ValueError(f"length must be at least {needed} tokens for this sample of {task!r}, got {length}")
    fits, step = draft.least, 1
    while fits + step < _MOST_UNITS and (found := attempt(fits + step)) is not None:
        best, fits, step = found, fits + step, 2 * step
    while step > 1:
        step //= 2
        if (found := attempt(fits + step)) is not None:
            best, fits = found, fits + step
    return best


def sentences(key: str) -> Callable[[int], list[str]]:
    """Filler of the testbed's grammar as English sentences; the first ones stay the same when more are asked for."""
    return grown(_sentences(Random(f"sentences:{key}")))


def _sentences(rng: Random) -> Iterator[str]:
    while True:
        text = ids_text(sentence(rng))
        yield f"{text[0].upper()}{text[1:].removesuffix(' .')}."


def grown(source: Iterator[str]) -> Callable[[int], list[str]]:
    """The first items of an endless source, each made once."""
    made: list[str] = []

    def first(count: int) -> list[str]:
        while len(made) < count:
            made.append(next(source))
        return made[:count]

    return first


def hidden(
    opening: str,
    statements: Sequence[str],
    filler: Callable[[int], Sequence[str]],
    rng: Random,
    *,
    separator: str = " ",
) -> Callable[[int], str]:
    """Statements at random places of filler; a place is a share of the text, the same whatever its length.

    Args:
        opening: what stands before the text.
        statements: to be hidden, in this order.
        filler: its first units.
        rng: source of the places; used at once.
        separator: between units.

    Returns:
        The context from a number of units.
    """
    depths = sorted(rng.random() for _ in statements)

    def build(units: int) -> str:
        parts = list(filler(units))
        for statement, depth in reversed(list(zip(statements, depths, strict=True))):
            parts.insert(int(depth * (units + 1)), statement)
        return opening + separator.join(parts)

    return build


def shuffle(rng: Random, items: Sequence[str]) -> list[str]:
    """The items in random order, by ``rng.random`` alone (stable over versions of Python)."""
    return [items[place] for place in pick_distinct(rng, range(len(items)), len(items))]
