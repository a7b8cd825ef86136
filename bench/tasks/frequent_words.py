"""Frequent words: the three most frequent words of a coded text (RULER, arXiv 2404.06654, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from math import fsum
from random import Random
from typing import Any

from kvcompress.bench.tasks.draft import Draft, finish, grown, shuffle
from kvcompress.bench.tasks.embedded import embedded_sample, is_embedded
from kvcompress.bench.tasks.names import invented_words
from kvcompress.bench.tasks.sample import Sample

_OPENING = "Below is a text in an unknown language. Count how often each of its words occurs.\n\n"
_ASKED = 3
_LEAST = 40  # words, so that the three differ in their counts


@dataclass(frozen=True, slots=True, kw_only=True)
class FrequentWords:
    """Invented words whose counts follow a power law.

    Attributes:
        name: name of the task.
        exponent: of the law, above 1; the word of rank r takes a share proportional to ``r ** -exponent``.
        embedded: the testbed's task that takes its place for the embedded model; None: it cannot do it.
    """

    name: str = "frequent_words"
    exponent: float = 2.0
    embedded: str | None = None

    def __post_init__(self) -> None:
        """Checks the exponent."""
        if not 1 < self.exponent <= 3:
            raise ValueError(f"exponent must be in (1, 3], got {self.exponent}; RULER takes 2")

    def sample(self, tokenizer: Any, length: int, seed: int) -> Sample:
        """See :class:`~kvcompress.bench.tasks.sample.Task`."""
        if self.embedded is not None and is_embedded(tokenizer):
            return embedded_sample(self.name, self.embedded, length, seed)
        key = f"frequent:{self.name}:{length}:{seed}"
        words = grown(invented_words(Random(key)))

        def build(units: int) -> str:
            counts = self.counts(units)
            text = [word for word, times in zip(words(len(counts)), counts, strict=True) for _ in range(times)]
            return _OPENING + " ".join(shuffle(Random(f"{key}:{units}"), text)) + "."

        question = (
            f"\n\nQuestion: Which {_ASKED} words occur most often in the text?\n"
            f"Answer: The {_ASKED} words that occur most often are"
        )
        draft = Draft(build=build, questions=[(question, words(_ASKED))], max_new_tokens=48, least=_LEAST)
        return finish(self.name, tokenizer, length, seed, draft)

    def counts(self, total: int) -> list[int]:
        """How often the word of each rank occurs in a text of ``total`` words; what rounding leaves occurs once."""
        norm = fsum(rank**-self.exponent for rank in range(1, 1001))
        counts: list[int] = []
        left = total
        for rank in count(1):
            times = min(left, max(1, int(total * rank**-self.exponent / norm)))
            if times == 0:
                return counts
            counts.append(times)
            left -= times
        return counts
