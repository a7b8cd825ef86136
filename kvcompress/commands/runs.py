"""One run of a model with a cache, timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TextStreamer
from transformers.cache_utils import Cache, DynamicCache

from kvcompress.commands.loading import LoadedModel
from kvcompress.engine.cache_argument import cache_argument
from kvcompress.engine.linear_states import linear_states


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How tokens are chosen.

    Attributes:
        max_new_tokens: most tokens to generate.
        temperature: 0: the likeliest token.
        seed: seed of sampling.
    """

    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a run gave.

    Attributes:
        ids: the tokens generated.
        text: their text.
        ended: whether the model ended the text itself.
        first_seconds: from the start to the first token.
        decode_seconds: from the first token to the last.
    """

    ids: list[int]
    text: str
    ended: bool
    first_seconds: float
    decode_seconds: float

    @property
    def tokens_per_second(self) -> float | None:
        """Speed of decoding, without the first token; None where there was no second one."""
        steps = len(self.ids) - 1
        return steps / self.decode_seconds if steps > 0 and self.decode_seconds > 0 else None


@dataclass(slots=True)
class _Clock:
    start: float = 0.0
    ticks: list[float] = field(default_factory=list)


class _Stream(TextStreamer):
    """Notes when each token came, and hands its text on."""

    def __init__(self, tokenizer: Any, clock: _Clock, write: Callable[[str], object] | None) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._clock, self._write = clock, write

    def put(self, value: torch.Tensor) -> None:
        """Takes the prompt first, then a token a time; they are on the CPU: the device has computed them."""
        if not self.next_tokens_are_prompt:
            self._clock.ticks.append(time.perf_counter())
        if self._write is not None:
            TextStreamer.put(self, value)
        self.next_tokens_are_prompt = False

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Hands finished words on."""
        if self._write is not None and text:
            self._write(text)


def run_model(
    loaded: LoadedModel,
    prompt_ids: torch.Tensor,
    cache: Cache,
    settings: Settings,
    write: Callable[[str], object] | None = None,
) -> Run:
    """Generates with a cache.

    Args:
        loaded: the model.
        prompt_ids: int64 ``[1, tokens]``, on the model's device.
        cache: an empty cache; it holds the conversation afterwards.
        settings: how tokens are chosen.
        write: takes the text as it comes.

    Returns:
        The tokens and how long they took.
    """
    model: Any = loaded.model
    torch.manual_seed(settings.seed)
    clock = _Clock(start=time.perf_counter())
    with torch.inference_mode():
        output = model.generate(
            input_ids=prompt_ids,
            attention_mask=torch.ones_like(prompt_ids),
            **cache_argument(cache),
            streamer=_Stream(loaded.tokenizer, clock, write),
            **_generation_options(model.generation_config, settings),
        )
    ids = output[0, prompt_ids.shape[1] :].tolist()
    return Run(
        ids=ids,
        text=loaded.tokenizer.decode(ids, skip_special_tokens=True),
        ended=ids[-1] in _ends(model.generation_config),
        first_seconds=clock.ticks[0] - clock.start,
        decode_seconds=clock.ticks[-1] - clock.ticks[0],
    )


def _generation_options(config: Any, settings: Settings) -> dict[str, Any]:
    """What ``generate`` is told beside the model's own generation config."""
    config.cache_implementation = None  # generate refuses one where a cache is given
    padding = config.pad_token_id
    options = {
        "max_new_tokens": settings.max_new_tokens,
        "num_beams": 1,
        "pad_token_id": next(iter(_ends(config)), 0) if padding is None else padding,
        "do_sample": settings.temperature > 0,
    }
    return options | ({"temperature": settings.temperature} if settings.temperature > 0 else {})


def _ends(config: Any) -> list[int]:
    """Tokens that end a text."""
    ends = config.eos_token_id
    return [] if ends is None else list(ends) if isinstance(ends, list | tuple) else [ends]


def warm_up(loaded: LoadedModel, prompt_ids: torch.Tensor, cache: Cache) -> None:
    """Runs two steps, so that what happens once in a process (kernels compiled, pools started) is not timed.

    On a GPU the whole prompt is taken: kernels are compiled for its size.
    """
    part = prompt_ids if prompt_ids.is_cuda else prompt_ids[:, -64:]
    run_model(loaded, part, cache, Settings(max_new_tokens=3))


def full_cache(loaded: LoadedModel) -> DynamicCache:
    """An empty cache of transformers that keeps everything."""
    return DynamicCache(config=loaded.model.config)


def full_cache_bytes(cache: DynamicCache) -> int:
    """Bytes of the keys, values and states that such a cache holds."""
    tensors = [
        tensor
        for layer in cache.layers
        for tensor in (getattr(layer, "keys", None), getattr(layer, "values", None), *linear_states(layer))
        if isinstance(tensor, torch.Tensor)
    ]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
