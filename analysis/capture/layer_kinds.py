"""Which layers of a model can stand in one recording: those whose heads are alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from kvcompress.engine.attach import text_config
from kvcompress.engine.head_shapes import head_shapes
from kvcompress.errors import UnsupportedModelError


def layers_of_one_kind(model: torch.nn.Module) -> tuple[int, ...] | None:
    """The layers to record where a model's layers differ in their heads (Gemma 4); None: they do not differ.

    Args:
        model: any module; the config of a model of transformers tells.

    Returns:
        Indices of the full-attention layers, which a cache compresses; where those differ too, of most of them.
    """
    if not isinstance(model, PreTrainedModel):
        return None
    config = text_config(model)
    try:
        shapes = head_shapes(config)
    except (AttributeError, UnsupportedModelError):  # a config that does not speak of heads cannot tell them apart
        return None
    if len(set(shapes)) <= 1:
        return None
    types: Sequence[str] = getattr(config, "layer_types", None) or ()
    full = [index for index, kind in enumerate(types) if kind == "full_attention"] or list(range(len(shapes)))
    most, _ = Counter(shapes[index] for index in full).most_common(1)[0]
    return tuple(index for index in full if shapes[index] == most)
