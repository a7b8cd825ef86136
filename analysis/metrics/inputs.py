"""What raw attention must be, and which keys its queries see."""

from __future__ import annotations

import torch

# Rows of half-precision probabilities sum to one within some hundred roundings only.
_EXCESS = {torch.float16: 2e-2, torch.bfloat16: 5e-2}


def checked_attention(attention: object, name: str = "attention") -> torch.Tensor:
    """Checks raw attention and gives it a precision that sums can be made in.

    Args:
        attention: probabilities ``[..., queries, keys]``, floating point. A row sums to 1, or to less where a learned
            sink took part or keys were cut off.
        name: what an error calls it.

    Returns:
        The same in float64 where it came so, else in float32.

    Raises:
        TypeError: not a tensor of a floating-point dtype.
        ValueError: without a query or a key, not finite, or no probabilities.
    """
    if not (isinstance(attention, torch.Tensor) and attention.is_floating_point()):
        got = attention.dtype if isinstance(attention, torch.Tensor) else type(attention).__name__
        raise TypeError(f"{name} must be a tensor of floating-point probabilities [..., queries, keys]; got {got}")
    if attention.ndim < 2 or attention.numel() == 0:
        raise ValueError(
            f"{name} must be [..., queries, keys] with at least one of each; got shape {tuple(attention.shape)}"
        )
    values = attention.detach() if attention.dtype == torch.float64 else attention.detach().float()
    if not bool(torch.isfinite(values).all()):
        count = int((~torch.isfinite(values)).sum())
        raise ValueError(
            f"{name} must be finite; {count} of its {values.numel()} values are NaN or infinite. Look for a row in "
            "which the mask hides every key, or for half precision that overflowed."
        )
    excess = _EXCESS.get(attention.dtype, 1e-3)
    if float(values.min()) < -excess or float(values.sum(-1).max()) > 1 + excess:
        raise ValueError(
            f"{name} must be probabilities over the last axis; its smallest value is {float(values.min()):.4g} and "
            f"its largest row sum {float(values.sum(-1).max()):.4g}. Give what softmax returned."
        )
    return values.clamp(min=0)


def query_positions(queries: int, keys: int, first_query: int | None = None) -> torch.Tensor:
    """Positions of the queries: int64 ``[queries]``.

    Args:
        queries: how many, at least 1.
        keys: how many keys there are; keys stand at positions 0 to ``keys - 1``.
        first_query: position of the first query; None: the queries are the last of the keys.

    Raises:
        ValueError: a first query before the first key, or more queries than keys and no first query.
    """
    first = keys - queries if first_query is None else first_query
    if first < 0:
        raise ValueError(
            f"first_query must be at least 0; got {first} for {queries} queries and {keys} keys. Give first_query "
            "where the queries are not the last of the keys."
        )
    return torch.arange(first, first + queries)


def causal_mask(queries: int, keys: int, first_query: int | None = None) -> torch.Tensor:
    """Keys that a causal model's queries see: bool ``[queries, keys]``; arguments of :func:`query_positions`."""
    return torch.arange(keys) <= query_positions(queries, keys, first_query)[:, None]


def visible_keys(attention: torch.Tensor) -> torch.Tensor:
    """Which keys the queries of one map see, as far as the map tells: bool ``[queries, keys]``.

    Causal where no query pays anything to a key after itself (queries taken as the last of the keys), else all keys.

    Args:
        attention: probabilities ``[..., queries, keys]``.
    """
    queries, keys = attention.shape[-2:]
    everything = torch.ones(queries, keys, dtype=torch.bool, device=attention.device)
    if queries > keys:
        return everything
    causal = causal_mask(queries, keys).to(attention.device)
    return everything if bool((attention * ~causal).any()) else causal


def keys_seen(attention: torch.Tensor, seen: torch.Tensor | None) -> torch.Tensor:
    """Number of keys that each query sees, in the attention's dtype: ``[..., queries]``.

    Args:
        attention: probabilities ``[..., queries, keys]``.
        seen: bool, broadcastable to ``attention``; None: every query sees every key.

    Raises:
        ValueError: a query that sees no key, or mass on a key that is not seen.
    """
    if seen is None:
        return attention.new_full(attention.shape[:-1], attention.shape[-1])
    counts = seen.expand(attention.shape).sum(-1)
    if bool((counts == 0).any()):
        raise ValueError("seen must let every query see at least one key; it hides all keys from one or more")
    if bool((attention * ~seen).any()):
        raise ValueError("attention must be 0 on keys that seen hides; it is not. Give the mask of the model.")
    return counts.to(attention.dtype)
