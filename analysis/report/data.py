"""A sample as the data of its page: small, bounded, and with notes that say what was left out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from kvcompress.analysis.report.arrays import Arrays, PageEvents, choose_events
from kvcompress.analysis.report.thinning import Limits
from kvcompress.analysis.summary.errors import SummaryError
from kvcompress.analysis.summary.reader import Sample

_BITS = {"float64": 64, "float32": 32, "float16": 16, "bfloat16": 16}


def sample_data(sample: Sample, limits: Limits | None = None, *, samples: int = 1) -> dict[str, Any]:
    """Returns what the page needs of a sample, ready for JSON.

    Args:
        sample: the sample.
        limits: bounds of the page; None: the defaults.
        samples: how many samples share the page.

    Returns:
        ``index``, ``model``, ``policy``, ``tokens``, ``events`` (lists, one entry per event of the page), ``arrays``
        (name -> encoded array), ``notes`` (what was thinned) and the rest of the sample's JSON.

    Raises:
        SummaryError: the sample has no events.
    """
    limits = limits or Limits()
    if sample.events == 0:
        raise SummaryError(f"sample {sample.index} of {sample.folder} has no events; capture a forward pass.")
    texts = _texts(sample, limits)
    events = choose_events(sample, limits, samples)
    arrays = Arrays(sample, events, limits, room=limits.of_sample(samples) - sum(map(len, texts or ())))
    arrays.add_all()
    return {
        **_description(sample),
        "tokens": texts,
        "events": _event_lists(sample, events),
        "arrays": arrays.encoded,
        "massEvents": arrays.mass_events,
        "statisticsEvents": events.statistics,
        "profileEvents": events.profiles,
        "heatmapEvents": arrays.heatmap_events,
        "lastPrefill": arrays.last_prefill,
        "codings": arrays.codings,
        "notes": arrays.notes,
    }


def _description(sample: Sample) -> dict[str, Any]:
    """What the sample's JSON says, with nothing that JSON cannot say."""
    summary = sample.summary
    model = summary.model
    described: dict[str, Any] = plain(
        {
            "index": sample.index,
            "created": summary.created_utc,
            "model": {
                "name": model.name,
                "class": model.class_name,
                "layers": model.layers,
                "queryHeads": model.query_heads,
                "kvHeads": model.kv_heads,
                "headDim": model.head_dim,
                "valueDim": model.value_dim,
                "dtype": model.dtype,
                "device": model.device,
                "attention": model.attention,
            },
            "layerIndices": summary.layer_indices,
            "layerNames": summary.layer_names,
            "policy": summary.policy,
            "promptTokens": summary.prompt_tokens,
            "tokenCount": sample.token_count,
            "totalEvents": sample.events,
            "generatedText": summary.generated_text,
            "settings": summary.settings.model_dump(),
            "versions": summary.versions,
            "seconds": summary.seconds,
        }
    )
    return described


def _event_lists(sample: Sample, events: PageEvents) -> dict[str, list[Any]]:
    """One list per field, each with an entry for every event of the page."""

    def of(name: str) -> list[int]:
        numbers: list[int] = sample.tensor(name)[events.page].tolist()
        return numbers

    fields = ("kind", "step", "block", "first_query", "queries", "observed_queries", "tokens")
    lists: dict[str, list[Any]] = {name: of(f"event.{name}") for name in fields}
    full = [tokens * bytes_per_token(sample) for tokens in lists["tokens"]]
    held = of("compression.bytes") if sample.compressed else full
    return {"number": events.page, **lists, "full_bytes": full, "held_bytes": held}


def bytes_per_token(sample: Sample) -> int:
    """Bytes of keys and values that a cache without compression holds for one token, over the captured layers."""
    model = sample.summary.model
    bits = _BITS.get(model.dtype.removeprefix("torch."), 32)
    return model.layers * model.kv_heads * (model.head_dim + model.value_dim) * bits // 8


def _texts(sample: Sample, limits: Limits) -> list[str] | None:
    """Texts of the tokens, each cut to a length; None where the capture had no tokenizer."""
    tokens = sample.summary.tokens
    if tokens is None:
        return None
    most = limits.token_text
    return [text if len(text) <= most else text[:most] + "…" for text in tokens]


def plain(value: Any) -> Any:
    """A value as JSON has it: mappings, lists, texts, numbers; what is no finite number becomes a text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
