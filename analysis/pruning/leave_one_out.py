"""Importance of heads by leaving each out once, measured on the prompt itself: dear, and better than any stand-in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

from kvcompress.analysis.pruning.consequences import consequences
from kvcompress.analysis.pruning.edited_cache import Edited, PromptStates
from kvcompress.analysis.pruning.importance import Importance

_LEAST_TOKENS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class WithoutHead:
    """An edit that drops one head's cache.

    Attributes:
        layer: index in the model.
        head: the kv head.
    """

    layer: int
    head: int

    def __call__(self, states: PromptStates) -> Edited:
        """Keeps everything else."""
        keep = torch.ones_like(states.positions, dtype=torch.bool)
        if states.layer == self.layer:
            keep[:, self.head] = False
        return Edited(keys=states.keys, values=states.values, keep=keep)


def measured_importance(
    model: PreTrainedModel,
    prompt: Sequence[int],
    importance: Importance,
    *,
    advance: Callable[[], object] = lambda: None,
) -> Importance:
    """Replaces the heads' scores by what the last quarter of the prompt loses without each, the rest being cached.

    Two passes over the prompt for each kv head of each layer.

    Args:
        model: a decoder that the engine can compress, in evaluation mode.
        prompt: its tokens, at least 8.
        importance: of the same prompt.
        advance: called after each head.

    Returns:
        The importance with ``heads`` the mean KL(full || without the head) in nats.

    Raises:
        ValueError: a prompt of fewer tokens.
    """
    if len(prompt) < _LEAST_TOKENS:
        raise ValueError(
            f"prompt must have at least {_LEAST_TOKENS} tokens, to cache and to predict; got {len(prompt)}"
        )
    window, context = torch.tensor([list(prompt)]), 3 * len(prompt) // 4
    measured = []
    for entry in importance:
        losses = []
        for head in range(len(entry.heads)):
            edit = WithoutHead(layer=entry.layer, head=head)
            losses.append(consequences(model, window, context=context, edits=[edit]).kl)
            advance()
        measured.append(replace(entry, heads=torch.tensor(losses, dtype=torch.float64)))
    return tuple(measured)
