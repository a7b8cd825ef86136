"""The attention function that the block cache registers with transformers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from inspect import signature
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

IMPLEMENTATION: Final = "kvcompress_diffusion_block"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One layer's attention, as transformers asked for it.

    Attributes:
        query: [B, H, Q, D], rotary embedding applied.
        key: [B, Hkv, Q, D].
        value: [B, Hkv, Q, D].
        mask: what transformers made for these queries and keys; None: all is seen.
        scaling: factor on the logits.
        sliding_window: distance from which on a key is not seen; None: all are.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scaling: float
    sliding_window: int | None

    def attend(self, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Attend from the queries to other keys and values [B, Hkv, N, D]; returns [B, Q, H, D]."""
        output = F.scaled_dot_product_attention(
            self.query,
            key,
            value,
            attn_mask=mask,
            scale=self.scaling,
            enable_gqa=self.query.shape[1] != key.shape[1],
        )
        return output.transpose(1, 2)

    def mass_of(self, block: slice) -> Tensor:
        """Attention that a block's queries pay to each key, mean over them and over the heads of a group.

        Args:
            block: places of the queries.

        Returns:
            float32 [B, Hkv, Q].
        """
        heads, tokens = self.query.shape[1:3]
        kv_heads = self.key.shape[1]
        query = self.query[:, :, block].unflatten(1, (kv_heads, heads // kv_heads)).flatten(2, 3)
        logits = torch.matmul(query, self.key.transpose(2, 3)).float() * self.scaling  # [B, Hkv, G * block, Q]
        visible = self.window_mask(
            torch.arange(tokens, device=query.device)[block], torch.arange(tokens, device=query.device)[None, None]
        )
        if visible is not None:
            logits = logits.masked_fill(~visible.repeat(1, 1, heads // kv_heads, 1), -torch.inf)
        return logits.softmax(dim=-1).mean(dim=2)

    def window_mask(self, queries: Tensor, keys: Tensor) -> Tensor | None:
        """Which keys a query sees by its sliding window.

        Args:
            queries: positions, int64 [Q].
            keys: positions, int64 [B or 1, Hkv or 1, N].

        Returns:
            bool [B or 1, H or 1, Q, N], or None: all.
        """
        if self.sliding_window is None:
            return None
        near = (queries[:, None] - keys[:, :, None, :]).abs() < self.sliding_window
        if near.shape[1] == 1:
            return near
        return near.repeat_interleave(self.query.shape[1] // near.shape[1], dim=1)


_attend: ContextVar[Callable[[Call], Tensor]] = ContextVar("attend")


def check_model(model: object) -> str:
    """Return the name of a model's attention implementation, once it is clear that it can be replaced.

    Raises:
        ValueError: a model that cannot be cached.
    """
    if not isinstance(model, PreTrainedModel) or not model._can_set_attn_implementation():
        raise ValueError(
            "the block cache needs a model whose attention goes through transformers' AttentionInterface, got "
            f"{type(model).__name__}; sample without a cache"
        )
    if "position_ids" not in signature(model.forward).parameters:
        raise ValueError(
            f"the block cache needs a model that takes position_ids, got {type(model).__name__}; sample without a cache"
        )
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            raise ValueError(
                "the block cache needs a model whose positions count from 0; those of "
                f"{type(model).__name__} count from the padding's id. Sample without a cache"
            )
    return str(model.config._attn_implementation)


def install(model: PreTrainedModel) -> None:
    """Make a model's attention go through `attending`."""
    if IMPLEMENTATION not in ALL_MASK_ATTENTION_FUNCTIONS:
        AttentionInterface.register(IMPLEMENTATION, _forward)
        AttentionMaskInterface.register(IMPLEMENTATION, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    model.set_attn_implementation(IMPLEMENTATION)


@contextmanager
def attending(attend: Callable[[Call], Tensor]) -> Iterator[None]:
    """Let a function answer the attention of the models that were installed, in this thread."""
    token = _attend.set(attend)
    try:
        yield
    finally:
        _attend.reset(token)


def _forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    call = Call(
        query=query,
        key=key,
        value=value,
        mask=attention_mask,
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        sliding_window=sliding_window,
    )
    return _attend.get()(call), None
