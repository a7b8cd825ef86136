"""Which tokens what was generated looks at: prompt on generated, received by each, across the boundary.

All take probabilities ``[..., queries, keys]`` in which queries and keys are the tokens of one sequence from its
start, so that ``queries == keys``, and ``prompt_length``, in [1, keys): the generated tokens are the rest.
:mod:`kvcompress.analysis.metrics.of_sample.influence` has the same for a capture.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from kvcompress.analysis.metrics.inputs import checked_attention


class CrossMass(NamedTuple):
    """Mean mass that a token of one part pays to all tokens of another; all ``[...]``, in [0, 1].

    Attributes:
        prompt_to_prompt: paid by a token of the prompt to the prompt.
        prompt_to_generated: to what is generated; 0 in a causal model.
        generated_to_prompt: paid by a generated token to the prompt.
        generated_to_generated: to what is generated.
    """

    prompt_to_prompt: torch.Tensor
    prompt_to_generated: torch.Tensor
    generated_to_prompt: torch.Tensor
    generated_to_generated: torch.Tensor


def influence_of_prompt(attention: torch.Tensor, prompt_length: int) -> torch.Tensor:
    """Mean attention that generated tokens pay to each token of the prompt: ``mean over generated i of p_ij``.

    Range: [0, 1]; the sum is the generated tokens' mass on the prompt.

    Returns:
        ``[..., prompt_length]``.

    Raises:
        ValueError: a prompt length that leaves no prompt or nothing generated.
    """
    values = _square(attention, prompt_length)
    return values[..., prompt_length:, :prompt_length].mean(-2)


def influence_received(attention: torch.Tensor, seen: torch.Tensor | None = None) -> torch.Tensor:
    """Mean attention that each token gets from those that see it: ``Σ_i p_ij / #{i sees j}``.

    Range: [0, 1]; 0 for a token that nobody sees.

    Args:
        attention: probabilities ``[..., queries, keys]``, of any number of queries.
        seen: bool, broadcastable to it; None: every query sees every key.

    Returns:
        ``[..., keys]``.
    """
    values = checked_attention(attention)
    count = values.shape[-2] if seen is None else seen.expand(values.shape).sum(-2).clamp(min=1)
    return values.sum(-2) / count


def influence_paid(attention: torch.Tensor) -> torch.Tensor:
    """Attention that each token pays to others than itself: ``Σ_{j ≠ i} p_ij``, ``[..., tokens]``. Range: [0, 1].

    Raises:
        ValueError: queries and keys that differ in number.
    """
    values = _square(attention, None)
    return (values.sum(-1) - values.diagonal(dim1=-2, dim2=-1)).clamp(min=0)


def cross_mass(attention: torch.Tensor, prompt_length: int) -> CrossMass:
    """Mass between the prompt and what was generated, each way: ``mean over i of part A of Σ_{j in part B} p_ij``.

    Raises:
        ValueError: a prompt length that leaves no prompt or nothing generated.
    """
    values = _square(attention, prompt_length)
    prompt, generated = values[..., :prompt_length, :], values[..., prompt_length:, :]
    return CrossMass(
        prompt_to_prompt=prompt[..., :prompt_length].sum(-1).mean(-1),
        prompt_to_generated=prompt[..., prompt_length:].sum(-1).mean(-1),
        generated_to_prompt=generated[..., :prompt_length].sum(-1).mean(-1),
        generated_to_generated=generated[..., prompt_length:].sum(-1).mean(-1),
    )


def boundary_share(attention: torch.Tensor, prompt_length: int, width: int = 8) -> torch.Tensor:
    """Mass that generated tokens pay to the ``width`` tokens before and after the prompt's end, each token's.

    Formula: ``Σ_{|j - prompt_length + 1/2| < width} p_ij``. Range: [0, 1].

    Returns:
        ``[..., generated]``.

    Raises:
        ValueError: a prompt length that leaves no prompt or nothing generated, or a width below 1.
    """
    values = _square(attention, prompt_length)
    if width < 1:
        raise ValueError(f"width must be at least 1 token; got {width}")
    near = slice(max(prompt_length - width, 0), prompt_length + width)
    return values[..., prompt_length:, near].sum(-1)


def check_prompt_length(prompt_length: int, tokens: int) -> None:
    """Refuses a boundary that leaves no prompt or nothing generated.

    Raises:
        ValueError: not in [1, tokens).
    """
    if not 1 <= prompt_length < tokens:
        raise ValueError(
            f"prompt_length must be in [1, {tokens}) so that both a prompt and generated tokens are among the {tokens} "
            f"tokens; got {prompt_length}"
        )


def _square(attention: torch.Tensor, prompt_length: int | None) -> torch.Tensor:
    values = checked_attention(attention)
    queries, keys = values.shape[-2:]
    if queries != keys:
        raise ValueError(
            f"attention must have all tokens of the sequence as queries and as keys; got {queries} queries and {keys} "
            "keys. Join the rows of the steps first."
        )
    if prompt_length is not None:
        check_prompt_length(prompt_length, keys)
    return values
