"""By which name transformers' models take a cache: ``cache`` from 5.24 on, ``past_key_values`` before."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Final

from transformers import GenerationMixin

CACHE_ARGUMENTS: Final = ("cache", "past_key_values")

_NEW = "cache" in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters


def cache_argument(cache: Any) -> dict[str, Any]:
    """A cache as the keyword argument that ``model(...)`` and ``model.generate(...)`` take in this transformers.

    Args:
        cache: any cache of transformers, or None.

    Returns:
        ``{"cache": cache}``; before transformers 5.24 ``{"past_key_values": cache}``, a name that later versions still
        take, with a warning.
    """
    return {CACHE_ARGUMENTS[0 if _NEW else 1]: cache}


def cache_name(arguments: Mapping[str, Any]) -> str | None:
    """The name under which a cache stands among a model's arguments, or in its output; None where there is none."""
    return next((name for name in CACHE_ARGUMENTS if arguments.get(name) is not None), None)


def given_cache(arguments: Mapping[str, Any]) -> Any:
    """The cache among a model's arguments, or in its output, under either name; None where there is none."""
    name = cache_name(arguments)
    return None if name is None else arguments[name]
