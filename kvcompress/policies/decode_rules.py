"""Decode rules: which token makes room for the next one."""

from __future__ import annotations

from dataclasses import dataclass

from kvcompress.kernels.decode_attend.reference import Eviction, EvictionOrder
from kvcompress.policies.checks import check_number


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeRule:
    """A decode rule of the general kind; the last ``window_size`` tokens and the sinks are never victims.

    Args:
        order: what is compared, least first; see :class:`kvcompress.kernels.decode_attend.reference.Eviction`.
        decay: factor of the running score, in (0, 1].
        keep_prompt: never evict what prefill kept; generated tokens get ``window_size`` slots of their own.
        storage_order: the authors' rule of CAKE, over score-ordered storage (``CakeReference`` alone).
    """

    order: EvictionOrder
    decay: float = 1.0
    keep_prompt: bool = False
    storage_order: bool = False

    def __post_init__(self) -> None:
        """Checks the decay."""
        check_number("decay", self.decay, above=0.0)
        if self.decay > 1:
            raise ValueError(f"decay must lie in (0, 1]; got {self.decay!r}")

    @property
    def grows(self) -> bool:
        """Whether rows grow without bound while decoding."""
        return self.order == "none"

    def eviction(self, window_size: int, sink_tokens: int) -> Eviction:
        """The kernel's description of this rule."""
        return Eviction(self.order, self.decay, window_size, sink_tokens, self.keep_prompt)


# Which one is Cake's default was decided by measurement: bench/decode_rules.py, docs/numerics.md.
DECODE_RULES: dict[str, DecodeRule] = {
    "last_query": DecodeRule(order="probability"),
    "ema": DecodeRule(order="running", decay=0.95),
    "accumulate": DecodeRule(order="running", decay=1.0),
    "keep_prompt": DecodeRule(order="position", keep_prompt=True),
    "position": DecodeRule(order="position"),
    "stored": DecodeRule(order="stored"),
    "off": DecodeRule(order="none"),
}


def decode_rule(name: str) -> DecodeRule:
    """Looks a rule up by name.

    Raises:
        ValueError: unknown name.
    """
    if name not in DECODE_RULES:
        raise ValueError(f"decode must be one of {', '.join(DECODE_RULES)}; got {name!r}")
    return DECODE_RULES[name]
