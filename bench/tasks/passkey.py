"""Passkey: one number, said twice, in a text that repeats itself."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

from kvcompress.bench.tasks.draft import Draft, finish, hidden
from kvcompress.bench.tasks.names import numbers
from kvcompress.bench.tasks.sample import Sample

_OPENING = "Most of this text does not matter. One passkey in it does: find it and remember it.\n\n"
_NOISE = ("The grass is green.", "The sky is blue.", "The sun is bright.", "We walk there and back again.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Passkey:
    """A passkey of some digits in filler of four sentences, over and over.

    Attributes:
        name: name of the task.
        digits: digits of the passkey.

    Source: landmark attention (arXiv 2305.16300), section 4.2.
    """

    name: str = "passkey"
    digits: int = 5

    def __post_init__(self) -> None:
        """Checks the number of digits."""
        if not 1 <= self.digits <= 15:
            raise ValueError(f"digits must be in [1, 15], got {self.digits}")

    def sample(self, tokenizer: Any, length: int, seed: int) -> Sample:
        """See :class:`~kvcompress.bench.tasks.sample.Task`."""
        rng = Random(f"passkey:{self.name}:{self.digits}:{length}:{seed}")
        (passkey,) = numbers(rng, 1, self.digits)
        fact = f"The passkey is {passkey}. Remember it: {passkey} is the passkey."
        draft = Draft(
            build=hidden(_OPENING, [fact], _noise, rng),
            questions=[("\n\nQuestion: What is the passkey?\nAnswer: The passkey is", [passkey])],
            max_new_tokens=self.digits + 4,
        )
        return finish(self.name, tokenizer, length, seed, draft)


def _noise(units: int) -> list[str]:
    return [_NOISE[unit % len(_NOISE)] for unit in range(units)]
