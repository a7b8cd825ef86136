"""Key-value retrieval: a context of nothing but pairs, one asked for.

Source: "Lost in the middle" (arXiv 2307.03172), section 3.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from kvcompress.bench.tasks.draft import Draft, finish, grown, hidden
from kvcompress.bench.tasks.embedded import embedded_sample, is_embedded
from kvcompress.bench.tasks.names import invented_words
from kvcompress.bench.tasks.sample import Sample

OPENING = "Below are pairs of a key and its value, one on each line.\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyValue:
    """Pairs of invented words; the context holds as many as fit.

    Attributes:
        name: name of the task.
        embedded: the testbed's task that takes its place for the embedded model; None: it cannot do it.
    """

    name: str = "key_value"
    embedded: str | None = None

    def sample(self, tokenizer: Any, length: int, seed: int) -> Sample:
        """See :class:`~kvcompress.bench.tasks.sample.Task`."""
        if self.embedded is not None and is_embedded(tokenizer):
            return embedded_sample(self.name, self.embedded, length, seed)
        rng = Random(f"key_value:{self.name}:{length}:{seed}")
        words = invented_words(Random(f"key_value:words:{self.name}:{length}:{seed}"))
        key, value = next(words), next(words)
        draft = Draft(
            build=hidden(OPENING, [f"{key}: {value}"], grown(pair_lines(words)), rng, separator="\n"),
            questions=[(f"\n\nQuestion: What is the value of {key}?\nAnswer: {key}:", [value])],
            max_new_tokens=12,
        )
        return finish(self.name, tokenizer, length, seed, draft)


def pair_lines(words: Iterator[str]) -> Iterator[str]:
    """Endless lines ``key: value`` of different words."""
    while True:
        yield f"{next(words)}: {next(words)}"
