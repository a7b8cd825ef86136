"""What a compressed cache does with one model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from kvcompress import CakeCache
from kvcompress.bench.model_support.tiny import VOCABULARY, NotBuilt, tiny_model
from kvcompress.engine.cache_argument import cache_argument
from kvcompress.errors import CompressionError

Outcome = Literal["works", "refused", "wrong", "not built"]

LENGTHS: Final = (120, 90)  # tokens of the two prompts, padded on the left
NEW_TOKENS: Final = 6
SMALL, LARGE = 40, 400  # cache sizes: one that evicts, one that does not
_TOLERANCE: Final = 1e-4  # of logits of order one, float32


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What was seen of one kind of model.

    Attributes:
        model_type: key of transformers' registry of configs.
        seeing: whether it is one that also sees images (it is given none).
        model_class: name of the model's class; None where none was built.
        outcome: ``"works"``: without eviction logits are those of transformers' own cache, and a small cache holds
            fewer tokens than were seen. ``"refused"``: an error that says why. ``"wrong"``: anything else.
        reason: of another outcome than ``"works"``.
        difference: largest difference of a logit without eviction.
        layers: layers of the model's cache.
        compressed: those of them that are compressed.
    """

    model_type: str
    seeing: bool
    model_class: str | None = None
    outcome: Outcome
    reason: str | None = None
    difference: float | None = None
    layers: int | None = None
    compressed: int | None = None


def probe(model_type: str, *, seeing: bool) -> Probe:
    """Builds a tiny model of a kind and generates with transformers' own cache and with compressed ones.

    Args:
        model_type: key of transformers' registry of configs.
        seeing: see :class:`Probe`.
    """
    try:
        model = tiny_model(model_type, seeing=seeing)
        expected = _logits(model, None)
    except Exception as error:  # whatever keeps transformers' own code from running here
        told = str(error) if isinstance(error, NotBuilt) else _first_line(error)
        return Probe(model_type=model_type, seeing=seeing, outcome="not built", reason=told)
    return Probe(model_type=model_type, seeing=seeing, model_class=type(model).__name__, **_compared(model, expected))


def _compared(model: PreTrainedModel, expected: torch.Tensor) -> dict[str, Any]:
    try:
        difference = float((_logits(model, CakeCache(model, cache_size=LARGE)) - expected).abs().max())
        small = CakeCache(model, cache_size=SMALL)
        _logits(model, small)
    except (CompressionError, ValueError) as error:
        named = isinstance(error, CompressionError) or "cache" in str(error)  # a model may refuse it by itself
        return {"outcome": "refused" if named else "wrong", "reason": _first_line(error)}
    except Exception as error:
        return {"outcome": "wrong", "reason": _first_line(error)}
    held = {
        "difference": difference,
        "layers": len(small.layers),
        "compressed": len(small.compressed_layers),
    }
    if not difference <= _TOLERANCE:
        return {"outcome": "wrong", "reason": "logits differ without eviction", **held}
    if any(layer.tokens >= sum(LENGTHS) / len(LENGTHS) for layer in small.report().layers):
        return {"outcome": "wrong", "reason": "nothing was evicted", **held}
    return {"outcome": "works", **held}


def _logits(model: Any, cache: Cache | None) -> torch.Tensor:
    """Logits ``[new tokens, batch, vocabulary]`` of a greedy generation after two prompts, padded on the left."""
    generator = torch.Generator()
    generator.manual_seed(1)
    ids = torch.randint(3, VOCABULARY - 7, (len(LENGTHS), max(LENGTHS)), generator=generator)
    mask = (torch.arange(max(LENGTHS)) >= max(LENGTHS) - torch.tensor(LENGTHS)[:, None]).long()
    output = model.generate(
        input_ids=ids * mask,
        attention_mask=mask,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        **({} if cache is None else cache_argument(cache)),
    )
    return torch.stack([logits.float() for logits in output.logits])


def _first_line(error: BaseException) -> str:
    text = str(error).strip().partition("\n")[0]
    known = isinstance(error, (CompressionError, ValueError))
    return text if known else f"{type(error).__name__}: {text}"
