"""Checks of the arguments that a cache is made with."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from kvcompress.policies.base import Policy
from kvcompress.policies.checks import check_whole


def check_arguments(model: Any, policy: Any, cascade_every: Any, static: bool) -> None:
    """Checks what :class:`~kvcompress.CompressedCache` is given.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of range, or a policy that cannot be static.
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"model must be a transformers PreTrainedModel; got {type(model).__name__}")
    if not isinstance(policy, Policy):
        raise TypeError(
            f"policy must be a Policy such as SnapKV(cache_size=1024); got {policy!r}. kvcompress.make_policy(name, "
            "...) makes one from a name."
        )
    check_whole("cascade_every", cascade_every, at_least=1)
    if static and (policy.decode_rule.grows or policy.decode_rule.storage_order):
        raise ValueError(
            "static=True (and cuda_graph=True, which implies it) needs a policy whose rows have a fixed size while "
            f"decoding; policy {policy.name!r} has not. Choose a decode rule that evicts, such as decode='accumulate'."
        )
