"""Ranks of a Tucker decomposition, and which of them a tensor can have."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """Sizes of the core.

    Args:
        token: rank of the token mode, at least 1.
        embedding: rank of the embedding mode, at least 1.
        head: rank of the head mode; None leaves that mode as it is.
    """

    token: int
    embedding: int
    head: int | None = None

    def __post_init__(self) -> None:
        """Checks that each is a whole number of at least 1."""
        for name in ("token", "embedding", "head"):
            value = getattr(self, name)
            if value is None and name == "head":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"the {name} rank must be a whole number of at least 1; got {value!r}")

    def core_shape(self, heads: int) -> tuple[int, int, int]:
        """``(head, token, embedding)`` sizes of the core of a tensor with so many heads."""
        return (heads if self.head is None else self.head, self.token, self.embedding)

    def check(self, shape: tuple[int, int, int]) -> None:
        """Checks the ranks against a tensor.

        Args:
            shape: ``(kv_heads, tokens, head_dim)``.

        Raises:
            ValueError: a rank beyond its mode, or beyond the product of the others, where it could hold nothing.
        """
        core = self.core_shape(shape[0])
        for place, name in enumerate(("head", "token", "embedding")):
            if name == "head" and self.head is None:
                continue
            others = core[0] * core[1] * core[2] // core[place]
            most = min(shape[place], others)
            if core[place] > most:
                raise ValueError(
                    f"the {name} rank must be at most {most}, the lesser of the mode's size {shape[place]} and the "
                    f"product {others} of the other ranks, for a tensor of {shape[0]} heads, {shape[1]} tokens and "
                    f"{shape[2]} dimensions; got {core[place]}. Give a smaller one, or larger others."
                )

    def entries(self, shape: tuple[int, int, int]) -> int:
        """Numbers that core and factors hold for a tensor ``(kv_heads, tokens, head_dim)``."""
        core = self.core_shape(shape[0])
        head_factor = 0 if self.head is None else shape[0] * core[0]
        return core[0] * core[1] * core[2] + head_factor + shape[1] * core[1] + shape[2] * core[2]

    def to_json(self) -> dict[str, Any]:
        """The ranks by name."""
        return {"head": self.head, "token": self.token, "embedding": self.embedding}


def ranks_at(shape: tuple[int, int, int], fraction: float, head: int | None = None) -> Ranks:
    """Ranks that are a fraction of each mode, as far as a tensor can have them.

    Args:
        shape: ``(kv_heads, tokens, head_dim)``.
        fraction: of the token and the embedding mode, in (0, 1].
        head: rank of the head mode; None leaves it as it is.

    Raises:
        ValueError: the fraction is out of range.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must lie in (0, 1]; got {fraction!r}. Give 0.25 for a quarter of each mode.")
    heads = shape[0] if head is None else head
    embedding = min(ceil(fraction * shape[2]), heads * shape[1])
    token = min(ceil(fraction * shape[1]), heads * embedding)
    return Ranks(token=token, embedding=min(embedding, heads * token), head=head)
