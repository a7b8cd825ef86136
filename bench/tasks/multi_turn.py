"""Multi-turn: several questions one after the other on one compressed context.

The cache is compressed for the first question, or for none; what later questions need must have survived that.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

from kvcompress.bench.tasks.draft import Draft, finish, hidden, sentences
from kvcompress.bench.tasks.embedded import embedded_turns, is_embedded
from kvcompress.bench.tasks.names import keys, numbers
from kvcompress.bench.tasks.needles import needle_question
from kvcompress.bench.tasks.sample import Sample

_OPENING = "The text below hides some secret numbers. Keep them in mind: you will be asked for them one by one.\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiTurn:
    """A question a turn, each on another fact.

    Attributes:
        name: name of the task.
        turns: questions, at least 2.
        embedded: the testbed's task of whose facts the embedded model is asked.
        english: whether there is a form in English, of needles; else it is for the embedded model alone.

    Source: SCBench (arXiv 2412.10319), section 2: methods that know the first question fail at the next.
    """

    name: str = "multi_turn"
    turns: int = 4
    embedded: str = "needle_8"
    english: bool = True

    def __post_init__(self) -> None:
        """Checks the number of turns."""
        if self.turns < 2:
            raise ValueError(f"turns must be at least 2, got {self.turns}; one question is a needle task")

    def sample(self, tokenizer: Any, length: int, seed: int) -> Sample:
        """See :class:`~kvcompress.bench.tasks.sample.Task`."""
        if is_embedded(tokenizer):
            return embedded_turns(self.name, self.embedded, length, seed, self.turns)
        if not self.english:
            raise ValueError(f"task {self.name!r} must be asked of the embedded model; for others take multi_turn")
        rng = Random(f"multi_turn:{self.name}:{self.turns}:{length}:{seed}")
        names, secrets = keys(rng, self.turns), numbers(rng, self.turns)
        facts = [f"A secret number of {name} is {value}." for name, value in zip(names, secrets, strict=True)]
        build = hidden(_OPENING, facts, sentences(f"{self.name}:{length}:{seed}"), rng)
        asked = [(needle_question([name], 1), [value]) for name, value in zip(names, secrets, strict=True)]
        asked = asked[1:] + asked[:1]  # not in the order of the text
        return finish(self.name, tokenizer, length, seed, Draft(build=build, questions=asked, max_new_tokens=24))
