"""What the block cache holds of one layer."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kvcompress.bench.workloads.diffusion_lm.block_attention import Call


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerStore:
    """Keys and values in one buffer: those that were kept, and room for the block's own, written in place.

    Attributes:
        keys: [B, Hkv, N, D].
        values: [B, Hkv, N, D].
        positions: int64 [B, Hkv, N], or [1, 1, N] where all heads keep the same.
        block: where the block's own lie in the buffer.
        block_positions: int64 [block], absolute.
    """

    keys: Tensor
    values: Tensor
    positions: Tensor
    block: slice
    block_positions: Tensor

    @classmethod
    def of_pass(cls, call: Call, block: slice, keep: float) -> "LayerStore":
        """Store what a pass over the whole canvas has computed.

        Args:
            call: the layer's attention.
            block: places of the block in the canvas.
            keep: share of the other tokens that each head keeps.

        Returns:
            The store.
        """
        tokens, device = call.key.shape[2], call.key.device
        everything = torch.arange(tokens, device=device)
        own = everything[block]
        others = tokens - own.numel()
        kept = max(1, round(keep * others)) if others else 0
        if kept == others:  # the canvas as it is, the block at its place
            return cls(
                keys=call.key.clone(),
                values=call.value.clone(),
                positions=everything[None, None],
                block=block,
                block_positions=own,
            )
        mass = call.mass_of(block)
        mass[..., block] = -1.0
        positions = mass.topk(kept, dim=-1).indices.sort(dim=-1).values  # [B, Hkv, kept]
        positions = torch.cat((positions, own.expand(*positions.shape[:2], -1)), dim=-1)
        return cls(
            keys=call.key.take_along_dim(positions[..., None], 2),
            values=call.value.take_along_dim(positions[..., None], 2),
            positions=positions,
            block=slice(kept, kept + own.numel()),
            block_positions=own,
        )

    def attend(self, call: Call) -> Tensor:
        """Attend from a block's queries to what is held and to the block itself.

        Args:
            call: the layer's attention over the block alone.

        Returns:
            [B, block, H, D].
        """
        self.keys[:, :, self.block] = call.key
        self.values[:, :, self.block] = call.value
        return call.attend(self.keys, self.values, call.window_mask(self.block_positions, self.positions))

    @property
    def kept_tokens(self) -> int:
        """Tokens outside the block that each head holds."""
        return self.keys.shape[2] - self.block_positions.numel()

    @property
    def held_bytes(self) -> int:
        """Bytes of keys and values."""
        return self.keys.nbytes + self.values.nbytes

    def full_bytes(self, tokens: int) -> int:
        """Bytes that keys and values of that many tokens would take."""
        return self.held_bytes // self.keys.shape[2] * tokens
