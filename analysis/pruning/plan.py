"""What of a prompt's cache is dropped, layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from kvcompress.analysis.pruning.edited_cache import Edited, PromptStates
from kvcompress.analysis.pruning.importance import Importance
from kvcompress.analysis.pruning.order import Order, dropped_count, kept

What = Literal["layers", "heads", "dimensions", "tokens"]
WHATS: tuple[What, ...] = get_args(What)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerPlan:
    """What stays of a layer. All bool, on the CPU.

    Attributes:
        tokens: ``[kv_heads, tokens]``.
        key_dimensions: ``[kv_heads, head_dim]``.
        value_dimensions: ``[kv_heads, value_dim]``.
    """

    tokens: torch.Tensor
    key_dimensions: torch.Tensor
    value_dimensions: torch.Tensor

    @property
    def entries(self) -> int:
        """Numbers that stay in the cache: those of dropped dimensions need not be stored."""
        dimensions = self.key_dimensions.sum(1) + self.value_dimensions.sum(1)
        return int((self.tokens.sum(1) * dimensions).sum())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """What stays of a prompt's cache.

    Attributes:
        layers: by index in the model.
        dropped: units dropped.
        units: units that there were.
    """

    layers: dict[int, LayerPlan]
    dropped: int
    units: int

    def edit(self, states: PromptStates) -> Edited:
        """Drops, of one sequence, what the plan says: an edit of an ``EditedCache``."""
        plan, device = self.layers[states.layer], states.keys.device
        return Edited(
            keys=states.keys * plan.key_dimensions.to(device)[None, :, None],
            values=states.values * plan.value_dimensions.to(device)[None, :, None],
            keep=plan.tokens.to(device)[None],
        )

    @property
    def entries(self) -> int:
        """Numbers that stay in the cache."""
        return sum(plan.entries for plan in self.layers.values())


def make_plan(importance: Importance, what: What, ratio: float, order: Order, seed: int = 0) -> Plan:
    """Chooses what is dropped of a prompt's cache.

    Args:
        importance: of the prompt, see :func:`~kvcompress.analysis.pruning.importance.prompt_importance`.
        what: the units. Layers and heads compete over the whole model; tokens within their layer and head; dimensions
            within their head's keys, or values.
        ratio: fraction of the units dropped, in [0, 1].
        order: which of them, see :func:`~kvcompress.analysis.pruning.order.kept`.
        seed: of the order ``"random"``.

    Raises:
        ValueError: an unknown unit or order, or a ratio out of range.
    """
    if what not in WHATS:
        raise ValueError(f"what must be one of {', '.join(WHATS)}; got {what!r}")
    return _PLANNERS[what](importance, ratio, order, seed)


def _everything(importance: Importance) -> dict[int, LayerPlan]:
    return {
        entry.layer: LayerPlan(
            tokens=torch.ones(entry.tokens.shape, dtype=torch.bool),
            key_dimensions=torch.ones(entry.key_dimensions.shape, dtype=torch.bool),
            value_dimensions=torch.ones(entry.value_dimensions.shape, dtype=torch.bool),
        )
        for entry in importance
    }


def _with_heads(importance: Importance, keep: list[torch.Tensor], dropped: int, units: int) -> Plan:
    """A plan that keeps all tokens of the heads marked (bool ``[kv_heads]`` per layer) and none of the others."""
    layers = _everything(importance)
    for entry, heads in zip(importance, keep, strict=True):
        layers[entry.layer].tokens.logical_and_(heads[:, None])
    return Plan(layers=layers, dropped=dropped, units=units)


def _layers(importance: Importance, ratio: float, order: Order, seed: int) -> Plan:
    scores = torch.tensor([entry.whole for entry in importance], dtype=torch.float64)
    count = dropped_count(len(scores), ratio)
    keep = kept(scores, count, order, seed)
    heads = [keep[place].expand(len(entry.heads)) for place, entry in enumerate(importance)]
    return _with_heads(importance, heads, count, len(scores))


def _heads(importance: Importance, ratio: float, order: Order, seed: int) -> Plan:
    scores = torch.cat([entry.heads for entry in importance])
    count = dropped_count(len(scores), ratio)
    keep = kept(scores, count, order, seed).split([len(entry.heads) for entry in importance])
    return _with_heads(importance, list(keep), count, len(scores))


def _tokens(importance: Importance, ratio: float, order: Order, seed: int) -> Plan:
    layers, total, units = _everything(importance), 0, 0
    for entry in importance:
        heads, tokens = entry.tokens.shape
        count = dropped_count(tokens, ratio)
        layers[entry.layer].tokens.copy_(kept(entry.tokens, count, order, seed + entry.layer))
        total, units = total + heads * count, units + heads * tokens
    return Plan(layers=layers, dropped=total, units=units)


def _dimensions(importance: Importance, ratio: float, order: Order, seed: int) -> Plan:
    layers, total, units = _everything(importance), 0, 0
    for entry in importance:
        plan = layers[entry.layer]
        for place, (mask, scores) in enumerate(
            ((plan.key_dimensions, entry.key_dimensions), (plan.value_dimensions, entry.value_dimensions))
        ):
            count = dropped_count(scores.shape[1], ratio)
            mask.copy_(kept(scores, count, order, seed + 2 * entry.layer + place))
            total, units = total + len(scores) * count, units + scores.numel()
    return Plan(layers=layers, dropped=total, units=units)


_PLANNERS: dict[str, Callable[[Importance, float, Order, int], Plan]] = {
    "layers": _layers,
    "heads": _heads,
    "dimensions": _dimensions,
    "tokens": _tokens,
}
