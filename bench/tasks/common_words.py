"""Common words: which words of a list occur often (RULER, arXiv 2404.06654, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

from kvcompress.bench.tasks.draft import Draft, finish, grown, shuffle
from kvcompress.bench.tasks.names import invented_words
from kvcompress.bench.tasks.sample import Sample
from kvcompress.bench.testbed.haystack import pick_distinct
from kvcompress.bench.testbed.vocabulary import CONTENT_WORDS

_OPENING = "Below is a list of words. A few of them occur often, all others once. Find those that occur often.\n\n"
_LONG = [word for word in CONTENT_WORDS if len(word) > 3]  # shorter ones are parts of others


@dataclass(frozen=True, slots=True, kw_only=True)
class CommonWords:
    """Some words many times among words that occur once; the more of these, the longer the text.

    Attributes:
        name: name of the task.
        common: words that occur often, all of which are asked for.
        repeats: how often each does, at least 2.
    """

    name: str = "common_words"
    common: int = 5
    repeats: int = 8

    def __post_init__(self) -> None:
        """Checks the counts."""
        if not 1 <= self.common <= len(_LONG) or self.repeats < 2:
            raise ValueError(
                f"common must be in [1, {len(_LONG)}] and repeats at least 2; got common={self.common}, "
                f"repeats={self.repeats}"
            )

    def sample(self, tokenizer: Any, length: int, seed: int) -> Sample:
        """See :class:`~kvcompress.bench.tasks.sample.Task`."""
        key = f"common:{self.name}:{length}:{seed}"
        rng = Random(key)
        common = [_LONG[place] for place in pick_distinct(rng, range(len(_LONG)), self.common)]
        rare = grown(invented_words(rng))

        def build(units: int) -> str:
            words = shuffle(Random(f"{key}:{units}"), [*common * self.repeats, *rare(units)])
            return _OPENING + " ".join(words)

        question = (
            f"\n\nQuestion: Which {self.common} words occur most often in the list?\n"
            f"Answer: The {self.common} words that occur most often are"
        )
        draft = Draft(build=build, questions=[(question, common)], max_new_tokens=16 + 10 * self.common)
        return finish(self.name, tokenizer, length, seed, draft)
