"""Two ways to shrink a held history: keep the most attended steps, or merge tokens four to one."""

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from kvcompress.bench.workloads.algorithm_distillation.darkroom import EPISODE_STEPS
from kvcompress.bench.workloads.algorithm_distillation.held_history import HeldHistory, HeldLayer, take
from kvcompress.bench.workloads.algorithm_distillation.vocabulary import TOKENS_PER_STEP

Compress = Callable[[HeldHistory, int], HeldHistory]

GROUP_SIZE: Final = 4
_RECENT_STEPS: Final = EPISODE_STEPS // 2  # never touched, nor is `<bos>`


def recent_tokens(budget: int) -> int:
    """Return how many of the latest tokens stay as they are: half an episode, at most half of the budget."""
    return TOKENS_PER_STEP * min(_RECENT_STEPS, budget // (2 * TOKENS_PER_STEP)) + 1


def keep_attended_steps(history: HeldHistory, budget: int) -> HeldHistory:
    """Keep `<bos>`, the latest steps, and of the others those that all layers and heads attended most.

    Args:
        history: `<bos>`, whole steps, and the cell that the agent is in.
        budget: tokens to hold afterwards, at most.

    Returns:
        The steps kept, in order; each room has its own.
    """
    recent = recent_tokens(budget)
    steps = (history.held - 1 - recent) // TOKENS_PER_STEP
    kept = (budget - 1 - recent) // TOKENS_PER_STEP
    if kept >= steps:
        return history
    mass = torch.stack([layer.mass.sum(dim=1) for layer in history.layers]).sum(dim=0)  # [rooms, held]
    by_step = mass[:, 1 : 1 + steps * TOKENS_PER_STEP].unflatten(1, (steps, TOKENS_PER_STEP)).sum(dim=2)
    chosen = by_step.topk(max(kept, 0), dim=1).indices.sort(dim=1).values  # [rooms, kept]
    tokens = (1 + chosen[..., None] * TOKENS_PER_STEP + torch.arange(TOKENS_PER_STEP)).flatten(1)
    rooms = len(mass)
    last = torch.arange(history.held - recent, history.held).expand(rooms, -1)
    places = torch.cat((torch.zeros(rooms, 1, dtype=torch.int64), tokens, last), dim=1)
    return HeldHistory(layers=[take(layer, places) for layer in history.layers], merged=torch.ones(places.shape[1]))


def pool(history: HeldHistory, budget: int) -> HeldHistory:
    """Merge the oldest tokens, four neighbours to one, weighted by attention, until the budget is met.

    Merged tokens are merged again once there are too few whole ones. Each head has its own weights; where a group
    got no attention its tokens count alike.

    Args:
        history: what is held.
        budget: tokens to hold afterwards, at most.

    Returns:
        A history with no more tokens than the budget.
    """
    recent = recent_tokens(budget)
    while history.held > budget:
        excess = history.held - budget
        groups = min(-(-excess // (GROUP_SIZE - 1)), (history.held - 1 - recent) // GROUP_SIZE)
        if groups < 1:
            break
        # Least merged first, oldest first: nothing is averaged over and over while other tokens are whole.
        first = _first_to_merge(history, groups, recent)
        history = _merge(history, first, groups)
    return history


def _first_to_merge(history: HeldHistory, groups: int, recent: int) -> int:
    """Return where merging begins: after what was merged already, if enough whole tokens are there."""
    whole = int((history.merged > 1).sum()) + 1
    return whole if whole + groups * GROUP_SIZE <= history.held - recent else 1


def _merge(history: HeldHistory, first: int, groups: int) -> HeldHistory:
    last = first + groups * GROUP_SIZE
    merged = history.merged
    counts = merged[first:last].unflatten(0, (groups, GROUP_SIZE)).sum(dim=1)
    return HeldHistory(
        layers=[_merge_layer(layer, first, last) for layer in history.layers],
        merged=torch.cat((merged[:first], counts, merged[last:])),
    )


def _merge_layer(layer: HeldLayer, first: int, last: int) -> HeldLayer:
    mass = layer.mass[..., first:last].unflatten(2, (-1, GROUP_SIZE))  # [rooms, kv_heads, groups, 4]
    total = mass.sum(dim=-1, keepdim=True)
    weights = torch.where(total > 0, mass / total.clamp_min(1e-30), 1.0 / GROUP_SIZE)

    def merged(states: Tensor) -> Tensor:
        means = (states[:, :, first:last].unflatten(2, (-1, GROUP_SIZE)) * weights[..., None]).sum(dim=3)
        return torch.cat((states[:, :, :first], means.to(states.dtype), states[:, :, last:]), dim=2)

    sums = torch.cat((layer.mass[..., :first], total[..., 0], layer.mass[..., last:]), dim=2)
    return HeldLayer(keys=merged(layer.keys), values=merged(layer.values), mass=sums)
