"""Checks that keep a cache from being used in a way that would give wrong tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from kvcompress.errors import CacheStateError, UnsupportedModelError

if TYPE_CHECKING:
    from kvcompress.engine.attention import AttentionCall
    from kvcompress.engine.layer import CompressedLayer


def checked_mask(base: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The base's mask function, after a check that the prompt continues what the cache has seen.

    A static cache has seen a number of tokens that only the device knows; its decode steps get no mask.

    ``generate`` slices the prompt by the number of tokens that the cache has seen. Given a shorter, unrelated prompt
    the slice is nonsense, and the padding mask is too short for it; that is where it shows.
    """
    mask, queries, keys = kwargs.get("attention_mask"), kwargs.get("q_length"), kwargs.get("kv_length")
    seen = kwargs.get("q_offset", kwargs.get("kv_offset", 0))
    if queries == keys == 1 and isinstance(seen, torch.Tensor):
        return None  # a static decode step: nobody reads its mask, and making one can wait for the device
    # A used compressed cache asks for the new block alone; other caches, which are none of our business, for all keys.
    ours = isinstance(seen, int) and seen > 0 and isinstance(queries, int) and queries == keys
    if ours and isinstance(mask, torch.Tensor) and mask.ndim == 2 and mask.shape[-1] < seen + queries:
        raise CacheStateError(
            f"the attention mask covers {mask.shape[-1]} tokens, but the cache has seen {seen} and is given "
            f"{queries} more: this prompt does not continue what the cache holds. Call cache.reset() or make a new "
            "cache for a new prompt; for a continued one pass the mask of the whole conversation."
        )
    if ours and queries == 1 and kwargs.get("kv_offset") == 0:
        return None  # a decode step (`CompressedLayer.get_mask_sizes`): a mask could only be made of its one token
    return base(*args, **kwargs)


def check_selection(base: str, module: torch.nn.Module, options: dict[str, Any], *, compressed: bool) -> None:
    """Checks that a model's indexer, which chooses the keys that a token attends to, is heeded.

    It puts its choice into the mask for implementations called "eager" and "sdpa"; to others, such as ours, it passes
    indices, which "eager" and "sdpa" do not read: all keys would be attended to.

    Raises:
        UnsupportedModelError: it would not be.
    """
    chosen = any(options.get(name) is not None for name in ("indices", "block_indices"))
    if chosen and (compressed or base in ("eager", "sdpa")):
        raise UnsupportedModelError(
            f"{type(module).__name__} chooses by an indexer which keys a token attends to, and an attached model would "
            "attend to all. Use DynamicCache for this model, after kvcompress.detach(model)."
        )


def check_continues(layer: CompressedLayer, call: AttentionCall) -> None:
    """Checks that a new block's last position lies beyond what the layer has seen.

    ``generate`` drops a mask of ones, so that an unrelated prompt shows only in the positions that it gave its tokens.
    """
    positions = call.options.get("position_ids")
    if not isinstance(positions, torch.Tensor) or positions.ndim != 2:  # not passed on, or several per token
        return
    before = int(layer.seen) - call.query.shape[2]
    tokens = before if layer.padding is None else before - layer.padding
    last = positions[:, -1]
    if bool((last < tokens).any()):
        raise CacheStateError(
            f"the prompt ends at position {int(last.max())}, but the cache has seen {before} tokens: this prompt "
            "does not continue what the cache holds. Call cache.reset() or make a new cache for a new prompt."
        )


@torch.compiler.disable(  # type: ignore[untyped-decorator]
    reason="a compressed cache is compiled in one graph only if it was made with static=True"
)
def stay_out_of_graphs() -> None:
    """Breaks a compiled graph at a cache whose counts change on the host, so that no step is compiled anew.

    With ``fullgraph=True`` torch raises, and shows the reason.
    """
