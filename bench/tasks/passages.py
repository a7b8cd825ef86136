"""Passages with questions on them: from a file, or made up about towns that do not exist.

What is made up is in no model's memory, so that an answer comes from the context or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from kvcompress.bench.data_source import read_jsonl
from kvcompress.bench.tasks.names import invented_words
from kvcompress.bench.testbed.haystack import pick

_CROPS: Final = ("barley", "apples", "hops", "plums", "flax", "walnuts", "rye", "cherries")
_LANDMARKS: Final = ("a stone bridge", "a round tower", "an old mill", "a covered market", "a glass hall")


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """A passage and a question that it answers.

    Attributes:
        title: its title.
        text: the passage.
        question: asked of it alone.
        answers: each right by itself.
    """

    title: str
    text: str
    question: str
    answers: tuple[str, ...]


def town_passages(rng: Random) -> Iterator[Passage]:
    """Endless passages about invented towns, every one another town with other facts."""
    words = invented_words(rng)
    while True:
        town, founder, river, guild = (next(words).capitalize() for _ in range(4))
        year = 1100 + int(rng.random() * 800)
        crop, landmark = _CROPS[pick(rng, range(len(_CROPS)))], _LANDMARKS[pick(rng, range(len(_LANDMARKS)))]
        text = (
            f"{town} is a small town on the river {river}. It was founded in {year} by the merchant {founder}, who "
            f"came for the {crop} that grow in the valley. Visitors know it for {landmark}, which the {guild} guild "
            f"has kept in repair ever since. On market days the whole town gathers at the river."
        )
        asked = (
            (f"Who founded the town of {town}?", founder),
            (f"In which year was the town of {town} founded?", str(year)),
            (f"On which river does the town of {town} lie?", river),
            (f"Which guild keeps the landmark of {town} in repair?", guild),
        )
        question, answer = asked[pick(rng, range(len(asked)))]
        yield Passage(title=town, text=text, question=question, answers=(answer,))


def read_passages(path: Path) -> list[Passage]:
    """Reads passages from a file of one JSON object a line: ``title``, ``text``, ``question``, ``answers``.

    Args:
        path: the file, UTF-8.

    Raises:
        ValueError: it cannot be read, or a line is not such an object; the message names file and line.
    """
    return [_passage(row, f"{path}, line {number}") for number, row in read_jsonl(path)]


def _passage(row: dict[str, object], place: str) -> Passage:
    answers = row.get("answers")
    texts = [row.get(name) for name in ("title", "text", "question")]
    if not isinstance(answers, list) or not answers or not all(isinstance(item, str) for item in [*texts, *answers]):
        raise ValueError(
            f"{place} must have the texts title, text, question and a list of texts answers; got {', '.join(row)}"
        )
    title, text, question = map(str, texts)
    return Passage(title=title, text=text, question=question, answers=tuple(answers))
