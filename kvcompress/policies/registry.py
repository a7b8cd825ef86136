"""Policies by name, for the command line and for sweeps."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from kvcompress.policies.adakv import AdaKV
from kvcompress.policies.base import Policy, Wrapper
from kvcompress.policies.cake import Cake
from kvcompress.policies.cake_reference import CakeReference
from kvcompress.policies.criticalkv import CriticalKV
from kvcompress.policies.defensivekv import DefensiveKV, LayerDefensiveKV
from kvcompress.policies.expected_attention import ExpectedAttention
from kvcompress.policies.full import Full
from kvcompress.policies.h2o import H2O
from kvcompress.policies.keydiff import KeyDiff
from kvcompress.policies.knorm import Knorm
from kvcompress.policies.kvc import KVC
from kvcompress.policies.observed_attention import ObservedAttention
from kvcompress.policies.pyramidkv import PyramidKV
from kvcompress.policies.random_eviction import Random
from kvcompress.policies.snapkv import SnapKV
from kvcompress.policies.streaming_llm import StreamingLLM
from kvcompress.policies.tova import TOVA

POLICIES: dict[str, type[Policy]] = {
    "adakv": AdaKV,
    "cake": Cake,
    "cake_reference": CakeReference,
    "criticalkv": CriticalKV,
    "defensivekv": DefensiveKV,
    "expected_attention": ExpectedAttention,
    "full": Full,
    "h2o": H2O,
    "keydiff": KeyDiff,
    "knorm": Knorm,
    "kvc": KVC,
    "layer_defensivekv": LayerDefensiveKV,
    "observed_attention": ObservedAttention,
    "pyramidkv": PyramidKV,
    "random": Random,
    "snapkv": SnapKV,
    "streaming_llm": StreamingLLM,
    "tova": TOVA,
}
DEFAULT_BASE = "snapkv"  # what a wrapper wraps, unless told otherwise


def make_policy(name: str, **parameters: Any) -> Policy:
    """Makes a policy from its name.

    A wrapper takes ``base``, the name of another policy, and hands on to it what it does not know itself:
    ``make_policy("adakv", base="criticalkv", cache_size=1024, floor=0.1)``.

    Args:
        name: a key of :data:`POLICIES`.
        **parameters: parameters of that policy.

    Raises:
        ValueError: unknown name, or a parameter out of range.
        TypeError: a parameter that the policy doesn't have.
    """
    if name not in POLICIES:
        raise ValueError(f"policy must be one of {', '.join(sorted(POLICIES))}; got {name!r}")
    known = parameters_of(name)
    if issubclass(POLICIES[name], Wrapper):
        base = parameters.get("base", DEFAULT_BASE)
        if isinstance(base, str):
            handed_on = {key: parameters[key] for key in parameters if key not in known}
            parameters = {key: parameters[key] for key in parameters if key in known}
            parameters["base"] = make_policy(base, **handed_on)
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise TypeError(f"policy {name!r} has no parameter {', '.join(unknown)}; it has: {', '.join(known)}")
    return POLICIES[name](**parameters)


def parameters_of(name: str) -> dict[str, Any]:
    """The parameters of a policy itself with their defaults; a wrapper's do not include those of its base.

    Args:
        name: a key of :data:`POLICIES`.
    """
    defaults = {field.name: field.default for field in fields(POLICIES[name]) if field.init}
    return {**defaults, "base": DEFAULT_BASE} if issubclass(POLICIES[name], Wrapper) else defaults
