"""Policies by name, for the command line and for sweeps."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from kvcompress.policies.base import Policy
from kvcompress.policies.cake import Cake
from kvcompress.policies.cake_reference import CakeReference
from kvcompress.policies.full import Full
from kvcompress.policies.random_eviction import Random
from kvcompress.policies.snapkv import SnapKV
from kvcompress.policies.streaming_llm import StreamingLLM

POLICIES: dict[str, type[Policy]] = {
    "cake": Cake,
    "cake_reference": CakeReference,
    "full": Full,
    "random": Random,
    "snapkv": SnapKV,
    "streaming_llm": StreamingLLM,
}


def make_policy(name: str, **parameters: Any) -> Policy:
    """Makes a policy from its name.

    Args:
        name: a key of :data:`POLICIES`.
        **parameters: parameters of that policy.

    Raises:
        ValueError: unknown name, or a parameter out of range.
        TypeError: a parameter that the policy doesn't have.
    """
    if name not in POLICIES:
        raise ValueError(f"policy must be one of {', '.join(sorted(POLICIES))}; got {name!r}")
    known = [field.name for field in fields(POLICIES[name])]
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise TypeError(f"policy {name!r} has no parameter {', '.join(unknown)}; it has: {', '.join(known)}")
    return POLICIES[name](**parameters)
