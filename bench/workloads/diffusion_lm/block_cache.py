"""Keys and values of everything but the block in hand, cached between the passes of a masked-diffusion sampler.

A pass at the start of a block computes the whole canvas and stores each layer's keys and values; the passes that
follow compute the block's tokens alone and attend to the stored ones beside their own. What is stored goes stale, since
in a bidirectional model every token sees the block: hence the refresh at each block.

Source: Fast-dLLM (arXiv 2505.22618, section 3.2, DualCache: prompt, finished blocks and masks to come are cached);
Sparse-dLLM (arXiv 2508.02558: tokens are evicted from that cache by the attention that the block pays to them);
dLLM-Cache (arXiv 2506.06295: refresh at intervals).
"""

from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kvcompress.bench.workloads.diffusion_lm import block_attention
from kvcompress.bench.workloads.diffusion_lm.layer_store import LayerStore


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSettings:
    """How the cache works.

    Attributes:
        keep: share of the tokens outside the block that each head keeps, in (0, 1]; the others are evicted, those
            first to which the block paid the least attention.
        refresh_every: passes from one refresh to the next within a block; None: only at a block's first. With 1 and
            nothing evicted the samples are those without a cache.
    """

    keep: float = 1.0
    refresh_every: int | None = None

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: a value out of range.
        """
        if not 0.0 < self.keep <= 1.0:
            raise ValueError(f"keep must be in (0, 1], a share of the tokens, got {self.keep}; 1 evicts nothing")
        if self.refresh_every is not None and self.refresh_every < 1:
            raise ValueError(f"refresh_every must be at least 1 pass, got {self.refresh_every}; None: once a block")


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheUse:
    """What a cache held.

    Attributes:
        refreshes: passes that computed the whole canvas.
        block_passes: passes that computed the block alone.
        full_bytes: of keys and values of the whole canvas, all layers and rows.
        held_bytes: of what the cache held between passes, the room for the block's own included.
        kept_tokens: tokens outside the block that each head kept.
    """

    refreshes: int
    block_passes: int
    full_bytes: int
    held_bytes: int
    kept_tokens: int


class BlockCache:
    """The cache of one sampling run; within its `with` the model's attention goes through it.

    Args:
        model: a bidirectional model of transformers that takes `position_ids`, counted from 0.
        settings: how the cache works.

    Raises:
        ValueError: a model whose attention cannot be replaced.
    """

    def __init__(self, model: PreTrainedModel, settings: CacheSettings) -> None:
        self.model, self.settings = model, settings
        self._layers: list[LayerStore] = []
        self._block = slice(0, 0)
        self._refreshing = False
        self._place = 0
        self._refreshes = self._block_passes = self._full_bytes = 0
        self._implementation = block_attention.check_model(model)

    def __enter__(self) -> "BlockCache":
        """Replace the model's attention."""
        block_attention.install(self.model)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the model back its attention."""
        self.model.set_attn_implementation(self._implementation)
        self._layers = []

    @property
    def use(self) -> CacheUse:
        """What it has held so far."""
        return self._use

    def logits(self, canvas: Tensor, block: slice, step: int) -> tuple[Tensor, int]:
        """Run the model for a block.

        Args:
            canvas: ids, int64 [B, T].
            block: places of the block.
            step: number of the pass within the block.

        Returns:
            Logits of the block, float [B, block, V], and how many tokens were computed of each row.
        """
        every = self.settings.refresh_every
        self._refreshing = step == 0 or (every is not None and step % every == 0)
        self._block = block
        self._place = 0
        rows = slice(0, canvas.shape[1]) if self._refreshing else block
        if self._refreshing:
            self._layers = []
        positions = torch.arange(rows.start, rows.stop, device=canvas.device)[None]
        # Any: transformers types the call of a model as that of any module.
        model: Any = self.model
        with block_attention.attending(self._attend):
            logits: Tensor = model(input_ids=canvas[:, rows], position_ids=positions).logits
        self._note(canvas.shape[1])
        return (logits[:, block].clone() if self._refreshing else logits), rows.stop - rows.start

    def _attend(self, call: block_attention.Call) -> Tensor:
        """Attention of one layer; layers call in the same order in every pass."""
        place, self._place = self._place, self._place + 1
        if self._refreshing:
            self._layers.append(LayerStore.of_pass(call, self._block, self.settings.keep))
            return call.attend(call.key, call.value, call.mask)
        return self._layers[place].attend(call)

    def _note(self, tokens: int) -> None:
        if self._refreshing:
            self._refreshes += 1
        else:
            self._block_passes += 1
        self._use = CacheUse(
            refreshes=self._refreshes,
            block_passes=self._block_passes,
            full_bytes=sum(layer.full_bytes(tokens) for layer in self._layers),
            held_bytes=sum(layer.held_bytes for layer in self._layers),
            kept_tokens=self._layers[0].kept_tokens,
        )
