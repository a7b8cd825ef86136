"""Listens to a model: where passes begin and end, and what each layer attends to, until it is stopped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import torch
from transformers import PreTrainedModel

from kvcompress.analysis.capture.hugging_face import HuggingFaceSource
from kvcompress.analysis.capture.model_pass import PassInputs
from kvcompress.analysis.capture.sdpa import SdpaSource, uses_attention_interface
from kvcompress.analysis.capture.sink import AttentionSink

Source = Literal["auto", "transformers", "sdpa"]


class PassSink(AttentionSink, Protocol):
    """Takes passes, and what happens in them."""

    def begin_pass(self, inputs: PassInputs) -> None:
        """The model has been called."""

    def end_pass(self) -> None:
        """The call has returned."""

    def drop_pass(self) -> None:
        """The call has failed."""


class Listening:
    """Listens to one model from :meth:`start` to :meth:`stop`.

    Args:
        model: the module whose forward is a pass.
        sink: where it goes.
        layers: indices of the layers that are heard; None: all.
        source: ``"auto"``: through transformers' attention where the model uses it, else by intercepting
            ``scaled_dot_product_attention``; or one of ``"transformers"`` and ``"sdpa"``.

    Raises:
        ValueError: an unknown source, one that the model does not have, or no layers.
    """

    def __init__(self, model: torch.nn.Module, sink: PassSink, layers: Sequence[int] | None, source: Source) -> None:
        self.model, self.sink = model, sink
        chosen = _checked_layers(layers)
        self._source: HuggingFaceSource | SdpaSource
        if _through_transformers(model, source) and isinstance(model, PreTrainedModel):
            self._source = HuggingFaceSource(model, sink, chosen)
        else:
            self._source = SdpaSource(sink, chosen)
        self._hooks: list[Any] = []

    @property
    def active(self) -> bool:
        """Whether it is listening."""
        return bool(self._hooks)

    def start(self) -> None:
        """Begins to listen; nothing happens where it does already."""
        if self.active:
            return
        self._source.start()
        self._hooks = [
            self.model.register_forward_pre_hook(self._before, with_kwargs=True),
            self.model.register_forward_hook(self._after, with_kwargs=True, always_call=True),
        ]

    def stop(self) -> None:
        """Ends listening; nothing happens where it has not begun."""
        if not self.active:
            return
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._source.stop()

    def _before(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.sink.begin_pass(PassInputs.of_call(args, kwargs))
        if isinstance(self._source, SdpaSource):
            self._source.begin_pass()

    def _after(self, module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if output is None:  # the forward has raised
            self.sink.drop_pass()
        else:
            self.sink.end_pass()


def _checked_layers(layers: Sequence[int] | None) -> frozenset[int] | None:
    if layers is None:
        return None
    if not layers or min(layers) < 0:
        raise ValueError(f"layers must be indices from 0 on, at least one, got {list(layers)}; None captures all")
    return frozenset(layers)


def _through_transformers(model: torch.nn.Module, source: str) -> bool:
    if source not in ("auto", "transformers", "sdpa"):
        raise ValueError(f"source must be 'auto', 'transformers' or 'sdpa', got {source!r}")
    able = uses_attention_interface(model)
    if source == "transformers" and not able:
        raise ValueError(
            "source='transformers' needs a model whose attention goes through transformers' AttentionInterface; got "
            f"{type(model).__name__}. Use source='sdpa'."
        )
    return able and source != "sdpa"
