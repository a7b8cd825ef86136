"""Makes the policy that the options of a command describe."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvcompress.commands.failures import CommandError
from kvcompress.policies.base import Policy
from kvcompress.policies.registry import make_policy
from kvcompress.presets import preset as preset_temperatures

DEFAULT_SHARE = 0.5  # of the prompt
DEFAULT_MOST = 1024  # tokens per layer
_ANY_LENGTH = 1 << 40


@dataclass(frozen=True, slots=True)
class PolicyChoice:
    """A policy before the length of the prompt is known.

    Args:
        name: a key of :data:`kvcompress.POLICIES`.
        parameters: its parameters by name; None stands for the policy's default.
        preset: published temperatures of CAKE, a key of :data:`kvcompress.presets.PRESETS`.
        seed: seed of the policies that draw.
    """

    name: str
    parameters: Mapping[str, Any]
    preset: str | None = None
    seed: int = 0

    def check(self) -> None:
        """Raises what :meth:`policy` would raise for a prompt of any length, before a model is loaded."""
        self.policy(_ANY_LENGTH)

    def policy(self, prompt_tokens: int) -> Policy:
        """Makes the policy.

        Args:
            prompt_tokens: tokens of the prompt; they decide the cache size where none was given.

        Raises:
            ValueError: an unknown name, or a value out of range.
            TypeError: a parameter that the policy does not have.
            CommandError: a preset for a policy that takes none.
        """
        given = {name: value for name, value in self.parameters.items() if value is not None}
        if self.name == "random":
            given["seed"] = self.seed
        if self.is_default_size:
            given["cache_size"] = self._default_size(given, prompt_tokens)
        return make_policy(self.name, **{**self._temperatures(given, prompt_tokens), **given})

    @property
    def is_default_size(self) -> bool:
        """Whether the prompt's length decides the cache size."""
        sizes = (self.parameters.get("cache_size"), self.parameters.get("compression_ratio"))
        return self.name != "full" and sizes == (None, None)

    def _default_size(self, given: dict[str, Any], prompt_tokens: int) -> int:
        # Made once with a size that suits any window: its defaults of the always-kept tokens are needed.
        policy = make_policy(self.name, **{**given, "cache_size": _ANY_LENGTH})
        wanted = min(DEFAULT_MOST, math.ceil(DEFAULT_SHARE * prompt_tokens))
        return max(wanted, policy.window_size + policy.sink_tokens)

    def _temperatures(self, given: dict[str, Any], prompt_tokens: int) -> dict[str, float]:
        if self.preset is None:
            return {}
        if self.name not in ("cake", "cake_reference"):
            raise CommandError(
                f"--preset holds settings of CAKE; got policy {self.name!r}. Leave it out, or give --policy cake."
            )
        ratio = given.get("compression_ratio")
        size = given.get("cache_size") or math.ceil((1 - (ratio or 0.0)) * prompt_tokens)
        return preset_temperatures(self.preset, size)._asdict()
