"""Policies as one word of a command line: `cake`, `snapkv:window_size=8`, `adakv:base=cake:floor=0.1`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from kvcompress.policies.base import Policy, Wrapper
from kvcompress.policies.registry import DEFAULT_BASE, POLICIES, make_policy, parameters_of

FULL: Final = "full"
WRAPPERS: Final = frozenset(name for name, kind in POLICIES.items() if issubclass(kind, Wrapper))
_GIVEN: Final = ("cache_size", "compression_ratio", "seed")


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyText:
    """A policy without its budget.

    Attributes:
        name: a key of :data:`kvcompress.POLICIES`.
        parameters: names and values, sorted by name.
    """

    name: str
    parameters: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        """The text that :func:`parse_policy` reads, the same for the same policy."""
        return ":".join([self.name, *(f"{name}={_write(value)}" for name, value in self.parameters)])

    def policy(self, *, cache_size: int | None, ratio: float | None, seed: int) -> Policy:
        """Makes the policy.

        Args:
            cache_size: tokens kept per layer and head on average; None where ``ratio`` is given, and for ``full``.
            ratio: fraction of the prompt that is removed.
            seed: seed of a policy that draws.

        Raises:
            ValueError: an unknown name, or a value out of range; the message begins with the policy's text.
            TypeError: a parameter that the policy does not have; likewise.
        """
        given: dict[str, Any] = dict(self.parameters)
        if cache_size is not None:
            given["cache_size"] = cache_size
        if ratio is not None:
            given["compression_ratio"] = ratio
        if "seed" in parameters_of(given.get("base", self.name)):
            given["seed"] = seed
        try:
            return make_policy(self.name, **given)
        except (TypeError, ValueError) as error:
            budget = "" if self.name == FULL else f" at cache_size={cache_size}, ratio={ratio}"
            raise type(error)(f"policy {str(self)!r} cannot run{budget}: {error}") from error


def parse_policy(text: str, *, shared: Mapping[str, Any] = MappingProxyType({})) -> PolicyText:
    """Reads a policy.

    Args:
        text: its name, then ``:name=value`` for each parameter that is not the default.
        shared: parameters of all policies of a sweep, such as a window; a policy that does not have one goes without
            it, and what ``text`` says comes first.

    Raises:
        ValueError: an unknown policy, or no ``name=value``.
    """
    name, *parts = text.strip().split(":")
    own = parse_parameters(parts, text)
    base = own.get("base", DEFAULT_BASE) if name in WRAPPERS else name
    for policy in (name, base):
        if policy not in POLICIES:
            raise ValueError(f"policy must be one of {', '.join(sorted(POLICIES))}; got {policy!r}")
    known = set() if name == FULL else {*parameters_of(name), *parameters_of(base)}
    parameters = {**{key: value for key, value in shared.items() if key in known}, **own}
    return PolicyText(name=name, parameters=tuple(sorted(parameters.items())))


def parse_parameters(parts: Iterable[str], whole: str) -> dict[str, Any]:
    """Reads ``name=value`` texts; ``whole`` is what they are part of, for the message.

    Raises:
        ValueError: not of that form, or a parameter that the sweep gives.
    """
    parameters: dict[str, Any] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if not key or not equals or not value or key in _GIVEN:
            raise ValueError(
                "parameters are written name=value, with colons between, as in snapkv:window_size=8:decode=accumulate, "
                f"and without {', '.join(_GIVEN)}, which the sweep gives; got {part!r} in {whole!r}"
            )
        parameters[key] = _read(value)
    return parameters


def _read(value: str) -> Any:
    """A number or a truth value where it is one, else the text itself."""
    try:
        return json.loads(value)
    except ValueError:
        return value


def _write(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
