"""Which model it is, whatever its folder is called."""

from __future__ import annotations

import hashlib
import json

import torch
from transformers import PreTrainedModel

_SAMPLED = 4096  # elements of each weight: reading all of a large model's would take longer than many a cell


def model_digest(model: PreTrainedModel) -> str:
    """A digest of a model's configuration and of an even sample of each of its weights.

    Args:
        model: the model, on any device.

    Returns:
        16 hexadecimal digits, the same on every machine for the same weights in the same dtype.
    """
    digest = hashlib.sha256()
    config = {name: value for name, value in model.config.to_dict().items() if not _is_about_the_run(name)}
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        flat = weight.detach().flatten()
        sample = flat[:: max(1, flat.numel() // _SAMPLED)].contiguous().cpu()
        digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _is_about_the_run(name: str) -> bool:
    """Where it was loaded from, by which version, and how it attends say nothing about the model."""
    return name.startswith("_") or name in ("transformers_version", "attn_implementation", "torch_dtype")
