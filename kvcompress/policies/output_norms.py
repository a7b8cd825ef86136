"""How much each token's value adds to a layer's output: the norm of ``W_o v``."""

from __future__ import annotations

import torch

from kvcompress.errors import UnsupportedModelError

_NAMES = ("o_proj", "dense", "out_proj", "wo")  # what transformers' attention modules call the output projection
_CHUNK_ELEMENTS = 1 << 22  # of projected values held at once


def output_norms(module: torch.nn.Module, query_heads: int, values: torch.Tensor, count: int) -> torch.Tensor:
    """L1 norms of the first tokens' values after the output projection, the mean over each query group.

    Args:
        module: the attention module.
        query_heads: its query heads.
        values: ``[batch, kv_heads, tokens, value_dim]``.
        count: how many tokens, from the first.

    Returns:
        float32 ``[batch, kv_heads, count]``.

    Raises:
        UnsupportedModelError: the module has no output projection that takes all heads side by side.

    Source:
        arXiv 2502.03805, section 3.
    """
    batch, kv_heads, _, value_dim = values.shape
    weight = _output_weight(module, query_heads * value_dim)
    per_head = weight.view(weight.shape[0], kv_heads, -1, value_dim).permute(1, 2, 3, 0)  # [Hkv, G, D, hidden]
    norms = torch.zeros(batch, kv_heads, count, device=values.device)
    step = max(1, _CHUNK_ELEMENTS // (batch * kv_heads * weight.shape[0]))
    for start in range(0, count, step):
        chunk = values[:, :, start : min(start + step, count)].to(weight.dtype)
        for g in range(per_head.shape[1]):
            norms[:, :, start : start + step] += (chunk @ per_head[:, g]).float().abs().sum(-1)
    return norms / per_head.shape[1]


def _output_weight(module: torch.nn.Module, width: int) -> torch.Tensor:
    for name in _NAMES:
        layer = getattr(module, name, None)
        weight = getattr(layer, "weight", None)
        if isinstance(weight, torch.Tensor) and weight.is_floating_point() and weight.shape[-1] == width:
            return weight.detach()
    raise UnsupportedModelError(
        f"value-aware scores need the output projection of {type(module).__name__}: a floating-point weight "
        f"[hidden, {width}] called one of {', '.join(_NAMES)}. Use a policy that does not look at values."
    )
