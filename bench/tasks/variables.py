"""Variable tracking: chains of assignments to follow (RULER, arXiv 2404.06654, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Any

from kvcompress.bench.tasks.draft import Draft, finish, hidden, sentences
from kvcompress.bench.tasks.embedded import embedded_sample, is_embedded
from kvcompress.bench.tasks.names import numbers
from kvcompress.bench.tasks.sample import Sample
from kvcompress.bench.testbed.haystack import pick_distinct

_OPENING = "The text below hides assignments to variables. Keep track of which variable has which value.\n\n"
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, slots=True, kw_only=True)
class Variables:
    """Chains ``VAR ABC = 12345``, ``VAR QRS = VAR ABC``; asked for are all variables with a value.

    Attributes:
        name: name of the task.
        hops: assignments of a chain, at least 1; so many variables have the value.
        chains: chains in the text.
        embedded: the testbed's task that takes its place for the embedded model; None: it cannot do it.
    """

    name: str
    hops: int = 4
    chains: int = 3
    embedded: str | None = None

    def __post_init__(self) -> None:
        """Checks the counts."""
        if self.hops < 1 or self.chains < 1:
            raise ValueError(f"hops and chains must be at least 1; got hops={self.hops}, chains={self.chains}")

    def sample(self, tokenizer: Any, length: int, seed: int) -> Sample:
        """See :class:`~kvcompress.bench.tasks.sample.Task`."""
        if self.embedded is not None and is_embedded(tokenizer):
            return embedded_sample(self.name, self.embedded, length, seed)
        rng = Random(f"variables:{self.name}:{length}:{seed}")
        values = numbers(rng, self.chains, 5)
        places = pick_distinct(rng, range(len(_LETTERS) ** 3), self.hops * self.chains)
        names = [_LETTERS[n // 676] + _LETTERS[n // 26 % 26] + _LETTERS[n % 26] for n in places]
        chains = [names[chain * self.hops : (chain + 1) * self.hops] for chain in range(self.chains)]
        lines = _interleaved(rng, [_chain(chain, value) for chain, value in zip(chains, values, strict=True)])
        question = (
            f"\n\nQuestion: Which variables have the value {values[0]}, directly or through another variable?\n"
            f"Answer: The {self.hops} variables with the value {values[0]} are"
        )
        draft = Draft(
            build=hidden(_OPENING, lines, sentences(f"{self.name}:{length}:{seed}"), rng),
            questions=[(question, chains[0])],
            max_new_tokens=16 + 8 * self.hops,
        )
        return finish(self.name, tokenizer, length, seed, draft)


def _chain(names: list[str], value: str) -> list[str]:
    """A chain's lines in the order in which they can be followed."""
    links = [f"VAR {new} = VAR {old}." for old, new in pairwise(names)]
    return [f"VAR {names[0]} = {value}.", *links]


def _interleaved(rng: Random, chains: list[list[str]]) -> list[str]:
    """All lines, chains mixed, each chain in its own order."""
    owners = [number for number, chain in enumerate(chains) for _ in chain]
    left = [iter(chain) for chain in chains]
    return [next(left[owners[place]]) for place in pick_distinct(rng, range(len(owners)), len(owners))]
