"""What a policy is, in a form that JSON has."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from kvcompress.policies.base import Policy


def policy_parameters(policy: Policy) -> dict[str, Any]:
    """Name and parameters of a policy; of a wrapper also its base's, in a mapping of its own."""
    return {"name": policy.name, **{field.name: _plain(getattr(policy, field.name)) for field in fields(policy)}}


def _plain(value: Any) -> Any:
    if isinstance(value, Policy):
        return policy_parameters(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
