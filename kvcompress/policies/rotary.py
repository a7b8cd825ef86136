"""The rotary embedding of an attention module: to take it off queries, and to put future positions on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from kvcompress.errors import UnsupportedModelError

# Frequencies of these depend on how long the sequence is: what was put on cannot be known afterwards.
_CHANGING = ("dynamic", "longrope")


@dataclass(frozen=True, slots=True)
class Rotary:
    """Turns vectors as a model's own rotary embedding does, forwards and backwards.

    Attributes:
        embedding: the model family's module that gives cosines and sines.
        apply: the model family's ``apply_rotary_pos_emb``.
    """

    embedding: Any
    apply: Callable[..., tuple[torch.Tensor, torch.Tensor]]

    def turn(self, vectors: torch.Tensor, positions: torch.Tensor, *, back: bool = False) -> torch.Tensor:
        """Turns vectors by their positions, or back.

        Args:
            vectors: float32 ``[batch, heads, count, head_dim]``.
            positions: int64 ``[batch, count]``.
            back: take the embedding off instead.

        Returns:
            float32 of the same shape. Dimensions beyond the rotary ones stay as they are.
        """
        cos, sin = self.embedding(vectors, positions)
        width = cos.shape[-1]
        turned = self.apply(vectors[..., :width], vectors[..., :width], cos, -sin if back else sin)[0]
        # cos and sin both carry the attention scaling of yarn; forwards and back it is there twice.
        turned = turned / self.embedding.attention_scaling**2 if back else turned
        return torch.cat([turned, vectors[..., width:]], dim=-1)

    def average(self, positions: torch.Tensor, head_dim: int) -> torch.Tensor:
        """The mean rotation over positions, as a matrix for row vectors: ``turned = vector @ matrix``.

        Args:
            positions: int64 ``[batch, count]``.
            head_dim: size of a head.

        Returns:
            float32 ``[batch, head_dim, head_dim]``.
        """
        batch, count = positions.shape
        axes = torch.eye(head_dim, device=positions.device)[None, :, None]
        total = torch.zeros(batch, head_dim, head_dim, device=positions.device)
        for chunk in positions.split(64, dim=1):
            total += self.turn(axes.expand(batch, -1, chunk.shape[1], -1), chunk).sum(2)
        return total / count


def rotary_of(module: torch.nn.Module) -> Rotary:
    """Finds the rotary embedding of an attention module in its model family's code and config.

    Raises:
        UnsupportedModelError: none is found, or it is not the same for all layers and lengths.
    """
    config = getattr(module, "config", None)
    rope = getattr(config, "rope_parameters", None)
    if not isinstance(rope, dict) or "rope_type" not in rope:
        raise _unsupported(module, "its config has no rope_parameters that hold for all layers")
    if rope["rope_type"] in _CHANGING or "mrope_section" in rope:
        raise _unsupported(module, f"its rotary embedding is of type {rope['rope_type']!r}, multimodal or by length")
    if len(set(getattr(config, "layer_types", None) or ())) > 1 or hasattr(config, "no_rope_layers"):
        raise _unsupported(module, "its layers are of several kinds, and not all may have a rotary embedding")
    for family in type(module).__mro__:
        code = vars(sys.modules[family.__module__])
        apply = code.get("apply_rotary_pos_emb")
        kinds = [kind for name, kind in code.items() if name.endswith("RotaryEmbedding") and isinstance(kind, type)]
        if apply is not None and len(kinds) == 1:
            rotary = Rotary(kinds[0](config).to(next(module.parameters()).device), apply)
            _check(rotary, module)
            return rotary
    raise _unsupported(module, "its code has no RotaryEmbedding with apply_rotary_pos_emb")


def _check(rotary: Rotary, module: torch.nn.Module) -> None:
    """Raises unless the embedding is one that can be taken off again."""
    device = next(module.parameters()).device
    head_dim = getattr(module, "head_dim", None) or getattr(module, "head_size", None)
    if not isinstance(head_dim, int):
        raise _unsupported(module, "it does not say its head_dim")
    vectors = torch.linspace(-1, 1, 2 * head_dim, device=device).view(1, 1, 2, head_dim)
    positions = torch.tensor([[3, 50]], device=device)
    try:
        again = rotary.turn(rotary.turn(vectors, positions), positions, back=True)
    except (RuntimeError, ValueError, TypeError) as error:
        raise _unsupported(module, f"its rotary embedding is laid out in another way ({error})") from error
    if again.shape != vectors.shape or not torch.allclose(again, vectors, atol=1e-4):
        raise _unsupported(module, "its rotary embedding cannot be taken off again")


def _unsupported(module: torch.nn.Module, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"ExpectedAttention needs queries without their rotary embedding, and that of {type(module).__name__} is not "
        f"available: {reason}. Use a policy that looks at the attention itself, such as SnapKV or Cake."
    )
