"""Copy: a run of words to repeat word for word."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Any

from kvcompress.bench.tasks.draft import Draft, finish, hidden, sentences
from kvcompress.bench.tasks.embedded import embedded_sample, is_embedded
from kvcompress.bench.tasks.names import invented_words
from kvcompress.bench.tasks.sample import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """A list in brackets, hidden in filler.

    Attributes:
        name: name of the task.
        words: words to repeat.
        embedded: the testbed's task that takes its place for the embedded model; None: it cannot do it.
    """

    name: str = "copy"
    words: int = 16
    embedded: str | None = None

    def __post_init__(self) -> None:
        """Checks the number of words."""
        if self.words < 1:
            raise ValueError(f"words must be at least 1, got {self.words}")

    def sample(self, tokenizer: Any, length: int, seed: int) -> Sample:
        """See :class:`~kvcompress.bench.tasks.sample.Task`."""
        if self.embedded is not None and is_embedded(tokenizer):
            return embedded_sample(self.name, self.embedded, length, seed)
        rng = Random(f"copy:{self.name}:{self.words}:{length}:{seed}")
        segment = " ".join(islice(invented_words(rng), self.words))
        draft = Draft(
            build=hidden(
                "The text below holds a list of words in brackets.\n\n",
                [f"[ {segment} ]"],
                sentences(f"{self.name}:{length}:{seed}"),
                rng,
            ),
            questions=[("\n\nQuestion: Repeat the list in brackets, word for word.\nAnswer: [", [segment])],
            max_new_tokens=8 * self.words,
        )
        return finish(self.name, tokenizer, length, seed, draft)
