"""Sums of two numbers of 64 digits: a synthetic grammar whose answers can be checked token by token.

`add 4 7 ... plus 8 9 ... equals` is to be continued with the digits of the sum. Numbers are written with the digit of
lowest value first, so that a sampler that goes from left to right meets carries in the order in which they arise. In a
share of the places the digits add up to nine, where a carry passes through: a chain that no single digit decides.
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Generator, Tensor

from kvcompress.bench.workloads.diffusion_lm.vocabulary import ADD_ID, EQUALS_ID, FIRST_DIGIT_ID, PLUS_ID

DIGITS: Final = 64
PROMPT_LENGTH: Final = 3 + 2 * DIGITS
NINES: Final = 0.25  # share of the places where the digits are made to add up to nine


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """A batch of sums.

    Attributes:
        prompts: ids, int64 [B, 131].
        answers: ids of the sum's digits, lowest value first, int64 [B, 64]; a carry out of the last is dropped.
    """

    prompts: Tensor
    answers: Tensor


def make_sums(rows: int, *, seed: int, nines: float = NINES, zeros: float = 0.0) -> Sums:
    """Return sums that a seed fixes.

    Args:
        rows: number of sums B, at least 1.
        seed: what the digits are drawn from.
        nines: share of the places, in [0, 1], where the digits are made to add up to nine.
        zeros: in [0, 1]; each of the two digits is then made zero with half that probability, not both: sums that a
            model can learn first.

    Returns:
        The sums.

    Raises:
        ValueError: if a value is out of range.
    """
    if rows < 1 or not (0.0 <= nines <= 1.0 and 0.0 <= zeros <= 1.0):
        raise ValueError(f"rows must be at least 1, nines and zeros shares in [0, 1], got {rows}, {nines} and {zeros}")
    generator = Generator().manual_seed(seed)
    first = torch.randint(10, (rows, DIGITS), generator=generator)
    second = torch.randint(10, (rows, DIGITS), generator=generator)
    passing = torch.rand(rows, DIGITS, generator=generator) < nines
    second = torch.where(passing, 9 - first, second)
    zeroed = torch.rand(2, rows, DIGITS, generator=generator) < zeros / 2
    first, second = first.masked_fill(zeroed[0], 0), second.masked_fill(zeroed[1] & ~zeroed[0], 0)
    total = _add(first, second)

    def column(token: int) -> Tensor:
        return torch.full((rows, 1), token)

    parts = (column(ADD_ID), first + FIRST_DIGIT_ID, column(PLUS_ID), second + FIRST_DIGIT_ID, column(EQUALS_ID))
    return Sums(prompts=torch.cat(parts, dim=1), answers=total + FIRST_DIGIT_ID)


def _add(first: Tensor, second: Tensor) -> Tensor:
    """Return the digits of the sums of two rows of digits, int64 [B, N]."""
    carry = torch.zeros_like(first[:, 0])
    digits = []
    for place in range(first.shape[1]):
        at_place = first[:, place] + second[:, place] + carry
        digits.append(at_place % 10)
        carry = at_place // 10
    return torch.stack(digits, dim=1)
