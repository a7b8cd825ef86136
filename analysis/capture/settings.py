"""What is recorded, and how finely."""

from __future__ import annotations

from dataclasses import dataclass

from kvcompress.analysis.capture.raw import RawRequest

_EVERY_STEP_TOKENS = 4096  # up to this prompt length the mass per token of every decode step is stored
_SPARSE_STEPS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class RecorderSettings:
    """What a recorder keeps.

    Attributes:
        max_queries: most queries of a block that are observed, evenly spaced; statistics are means over them.
        sink_tokens: first tokens whose mass is the sink mass.
        recent_tokens: nearest tokens whose mass is the recent mass.
        token_mass_every: decode steps from one stored mass per token to the next; None: 1 for prompts up to 4096
            tokens, else 16.
        raw: which raw attention is stored; None: none.
        save_kv: store keys and values of the first event.
    """

    max_queries: int = 256
    sink_tokens: int = 4
    recent_tokens: int = 32
    token_mass_every: int | None = None
    raw: RawRequest | None = None
    save_kv: bool = False

    def __post_init__(self) -> None:
        for name, least in (("max_queries", 1), ("sink_tokens", 0), ("recent_tokens", 1), ("token_mass_every", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")

    def mass_every(self, prompt_tokens: int) -> int:
        """Decode steps from one stored mass per token to the next."""
        if self.token_mass_every is not None:
            return self.token_mass_every
        return 1 if prompt_tokens <= _EVERY_STEP_TOKENS else _SPARSE_STEPS
