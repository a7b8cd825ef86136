"""Needles: facts hidden in filler, of which some are asked for.

The four kinds of RULER (arXiv 2404.06654, section 3.1): single, multi-key (distractors), multi-value, multi-query.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

from kvcompress.bench.tasks.draft import Draft, finish, hidden, sentences, shuffle
from kvcompress.bench.tasks.embedded import embedded_sample, is_embedded
from kvcompress.bench.tasks.names import keys, numbers
from kvcompress.bench.tasks.sample import Sample

_OPENING = "The text below hides some secret numbers. Keep them in mind: you will be asked for them.\n\n"
_TOKENS_PER_VALUE = 24  # seven digits, at worst a token each, and words around them


@dataclass(frozen=True, slots=True, kw_only=True)
class Needles:
    """Secret numbers of named things.

    Attributes:
        name: name of the task.
        hidden_keys: keys in the text.
        values: numbers of each key.
        asked_keys: keys in the question.
        embedded: the testbed's task that takes its place for the embedded model; None: it cannot do it.
    """

    name: str
    hidden_keys: int = 1
    values: int = 1
    asked_keys: int = 1
    embedded: str | None = None

    def __post_init__(self) -> None:
        """Checks the counts."""
        if not 1 <= self.asked_keys <= self.hidden_keys or self.values < 1:
            raise ValueError(
                "asked_keys must be in [1, hidden_keys] and values at least 1; got "
                f"asked_keys={self.asked_keys}, hidden_keys={self.hidden_keys}, values={self.values}"
            )

    def sample(self, tokenizer: Any, length: int, seed: int) -> Sample:
        """See :class:`~kvcompress.bench.tasks.sample.Task`."""
        if self.embedded is not None and is_embedded(tokenizer):
            return embedded_sample(self.name, self.embedded, length, seed)
        rng = Random(f"needles:{self.name}:{length}:{seed}")
        names = keys(rng, self.hidden_keys)
        secrets = numbers(rng, self.hidden_keys * self.values)
        owned = {name: secrets[place :: self.hidden_keys] for place, name in enumerate(names)}
        facts = [f"A secret number of {name} is {value}." for name, values in owned.items() for value in values]
        asked = names[: self.asked_keys]
        answers = [value for name in asked for value in owned[name]]
        draft = Draft(
            build=hidden(_OPENING, shuffle(rng, facts), sentences(f"{self.name}:{length}:{seed}"), rng),
            questions=[(needle_question(asked, self.values), answers)],
            max_new_tokens=_TOKENS_PER_VALUE * len(answers),
        )
        return finish(self.name, tokenizer, length, seed, draft)


def needle_question(asked: list[str], values: int) -> str:
    """The question for all numbers of some keys, with the beginning of its answer."""
    listed = ", ".join(asked)
    many = values * len(asked) > 1
    what = "all secret numbers" if many else "the secret number"
    begin = "The secret numbers" if many else "The secret number"
    return (
        f"\n\nQuestion: According to the text, what {'are' if many else 'is'} {what} of {listed}?\n"
        f"Answer: {begin} of {listed} {'are' if many else 'is'}"
    )
