"""Shapes of attention layers that the kernels are timed on, by the names of the models that have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShape:
    """Sizes of one attention layer at the end of its prefill.

    Attributes:
        model: name of the model, a key of :data:`SHAPES`.
        query_heads: query heads.
        kv_heads: key and value heads.
        head_dim: size of a head.
        batch: sequences.
        tokens: tokens of the prompt.
        window: queries of the observation window, always kept.
        budget: tokens kept of those before the window.
    """

    model: str
    query_heads: int
    kv_heads: int
    head_dim: int
    batch: int = 1
    tokens: int = 8192
    window: int = 32
    budget: int = 1024

    @property
    def label(self) -> str:
        """The sizes in one line; two shapes with one label are equal."""
        heads = f"{self.query_heads}/{self.kv_heads} heads, D={self.head_dim}"
        return f"{self.model}, B={self.batch}, {self.tokens} -> {self.budget} + {self.window} tokens, {heads}"

    @property
    def rows(self) -> int:
        """Rows of the slot store: one per sequence and kv head."""
        return self.batch * self.kv_heads

    @property
    def scored(self) -> int:
        """Keys that get scores: all before the window."""
        return self.tokens - self.window

    @property
    def slots(self) -> int:
        """Slots per row once the layer is compressed."""
        return self.budget + self.window


SHAPES: Final[Mapping[str, LayerShape]] = MappingProxyType(
    {
        "small": LayerShape(model="small", query_heads=8, kv_heads=2, head_dim=64, tokens=2048, budget=256),
        "llama-3.1-8b": LayerShape(model="llama-3.1-8b", query_heads=32, kv_heads=8, head_dim=128),
        "qwen2.5-7b": LayerShape(model="qwen2.5-7b", query_heads=28, kv_heads=4, head_dim=128),
        "gemma-2-9b": LayerShape(model="gemma-2-9b", query_heads=16, kv_heads=8, head_dim=256),
    }
)
_QUICK_TOKENS, _QUICK_BUDGET = 512, 64
_GPU_TOKENS, _GPU_BATCHES = (8192, 32768, 131072), (1, 4)
_CPU_TOKENS, _CPU_BATCHES = (8192, 32768), (1,)


def default_names(*, gpu: bool) -> list[str]:
    """What is timed where no shape is named."""
    return ["llama-3.1-8b"] if gpu else ["small", "llama-3.1-8b"]


def shapes_of(
    names: list[str],
    *,
    gpu: bool,
    quick: bool = False,
    contexts: Sequence[int] | None = None,
    batches: Sequence[int] | None = None,
) -> list[LayerShape]:
    """The shapes behind some names: prompt lengths and batches that suit the device.

    Args:
        names: keys of :data:`SHAPES`.
        gpu: up to 131072 tokens and 4 sequences; else up to 32768 tokens of one.
        quick: one tiny prompt per name.
        contexts: tokens of the prompts; None: those that suit the device.
        batches: sequences; likewise.

    Raises:
        ValueError: an unknown name, or a prompt that is not longer than what is kept of it.
    """
    unknown = sorted(set(names) - set(SHAPES))
    if unknown:
        raise ValueError(f"shapes must be among {', '.join(SHAPES)}; got {', '.join(unknown)}")
    found = []
    for name in names:
        shape = SHAPES[name]
        if quick:
            found.append(replace(shape, tokens=_QUICK_TOKENS, budget=_QUICK_BUDGET))
        elif name == "small" and not contexts and not batches:
            found.append(shape)
        else:
            counts = batches or (_GPU_BATCHES if gpu else _CPU_BATCHES)
            lengths = contexts or (_GPU_TOKENS if gpu else _CPU_TOKENS)
            found += [replace(shape, batch=batch, tokens=tokens) for batch, tokens in product(counts, lengths)]
    short = [shape.label for shape in found if shape.tokens <= shape.slots]
    if short:
        raise ValueError(f"contexts must be longer than what is kept of them; got {short[0]}: take longer ones")
    return found
