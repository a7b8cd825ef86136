"""Records what a model attends to while it runs, as reduced tensors, into a folder."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from kvcompress.analysis.capture.layer_kinds import layers_of_one_kind
from kvcompress.analysis.capture.listening import Listening, Source
from kvcompress.analysis.capture.sample_capture import SampleCapture
from kvcompress.analysis.capture.session import Session, Shapes
from kvcompress.analysis.capture.settings import RecorderSettings
from kvcompress.analysis.capture.token_texts import token_texts
from kvcompress.analysis.summary.errors import SummaryError
from kvcompress.analysis.summary.paths import sample_indices
from kvcompress.analysis.summary.schema import Summary

_logger = logging.getLogger("kvcompress")

_PACKAGES = ("kvcompress", "torch", "transformers", "triton", "numpy", "safetensors")


class Recorder(AbstractContextManager["Recorder"]):
    """Within ``with Recorder(model, folder):`` every forward and ``generate`` of the model is recorded.

    A sample is one sequence; a batch makes one sample per row (its rows must keep their places: no beam search). With a
    cache of transformers or of this package, a new sample begins by itself where a cache that has seen nothing is used;
    otherwise call :meth:`new_sample`. What is computed does not change (``nn.TransformerEncoder`` leaves its fused fast
    path, which moves the last bit), and no matrix of queries times keys is held unless raw attention is asked for. A
    sample appears in the folder when it is complete; after an error the unfinished one is dropped.

    Args:
        model: a decoder of transformers, with any cache, or any PyTorch module that calls
            ``scaled_dot_product_attention``.
        folder: where the samples go; docs/formats.md describes them.
        tokenizer: for the texts of the tokens; None: ids alone.
        name: what to call the model; None: its own name.
        layers: indices of the layers to capture, whose heads must be alike; None: all, or where a model's layers differ
            in their heads (Gemma 4) those with full attention, which one line in the log tells.
        settings: what is kept, and how finely.
        source: ``"auto"``: through transformers' attention where the model uses it, else by intercepting
            ``scaled_dot_product_attention``; or one of ``"transformers"`` and ``"sdpa"``.
        force: overwrite samples that the folder has.

    Raises:
        SummaryError: the folder has samples and ``force`` is not set, or cannot be written.
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        folder: str | Path,
        *,
        tokenizer: Any = None,
        name: str | None = None,
        layers: Sequence[int] | None = None,
        settings: RecorderSettings | None = None,
        source: Source = "auto",
        force: bool = False,
    ) -> None:
        self.model, self.folder, self.tokenizer = model, Path(folder), tokenizer
        self.name = name or getattr(getattr(model, "config", None), "name_or_path", "") or type(model).__name__
        self.settings = settings or RecorderSettings()
        self._check_folder(force)
        self.session = Session(self.folder, self.settings, self._describe, first_sample=0)
        self._listening = Listening(model, self.session, _alike(model) if layers is None else layers, source)
        self._started = 0.0

    # ---- what users call --------------------------------------------------------------------------------------------

    def new_sample(self, *, prompt_tokens: int | None = None) -> None:
        """Writes the samples in hand and begins others with the next pass.

        Args:
            prompt_tokens: tokens of the next prompt, where the model's passes do not tell (samplers that are not
                autoregressive); None: all tokens before the first decoded one.
        """
        self.session.finish_samples()
        self.session.prompt_tokens = prompt_tokens
        self._started = time.perf_counter()

    def set_generation_context(self, step: int | None = None, block: int | None = None) -> None:
        """Marks the passes that follow, for samplers that are not autoregressive.

        Args:
            step: of the sampler; None: passes are counted.
            block: of the sampler; None: none.
        """
        self.session.step = step
        self.session.block = -1 if block is None else block

    @property
    def samples(self) -> tuple[Summary, ...]:
        """The samples written so far."""
        return tuple(self.session.finished)

    # ---- the context ------------------------------------------------------------------------------------------------

    def __enter__(self) -> Recorder:
        """Begins recording."""
        self._started = time.perf_counter()
        self._listening.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends recording: writes the samples in hand, or drops them after an error."""
        self._listening.stop()
        if kind is None:
            self.session.finish_samples()
        else:
            self.session.discard_samples()

    # ---- what goes into a sample's JSON ------------------------------------------------------------------------------

    def _describe(self, capture: SampleCapture, shapes: Shapes) -> Mapping[str, Any]:
        ids, settings = capture.token_ids(), self.settings
        layers = capture.layer_indices
        return {
            "created_utc": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "model": {**self._model_info(), "layers": len(layers), **_asdict(shapes)},
            "layer_names": tuple(f"layer {index}" for index in layers),
            "tokens": self._texts(ids),
            "generated_text": self._decoded(ids[capture.prompt_tokens :]),
            "settings": {
                "max_queries": settings.max_queries,
                "sink_tokens": settings.sink_tokens,
                "recent_tokens": settings.recent_tokens,
                "token_mass_every": capture.mass_every,
            },
            "raw_heads": self._raw_heads(shapes),
            "versions": {package: _version(package) for package in _PACKAGES},
            "seconds": time.perf_counter() - self._started,
        }

    def _model_info(self) -> dict[str, Any]:
        parameter = next(self.model.parameters(), torch.empty(0))
        config = getattr(self.model, "config", None)
        attention = getattr(config, "_attn_implementation", None) or "scaled_dot_product_attention"
        return {
            "name": str(self.name),
            "class_name": type(self.model).__name__,
            "dtype": str(parameter.dtype).removeprefix("torch."),
            "device": str(parameter.device),
            "attention": str(attention).removeprefix("kvc_"),
        }

    def _raw_heads(self, shapes: Shapes) -> tuple[int, ...] | None:
        raw = self.settings.raw
        if raw is None:
            return None
        return tuple(range(shapes.query_heads)) if raw.heads is None else raw.heads

    def _texts(self, ids: Sequence[int]) -> tuple[str, ...] | None:
        if self.tokenizer is None or not ids or min(ids) < 0:
            return None
        return token_texts(self.tokenizer, ids)

    def _decoded(self, ids: Sequence[int]) -> str | None:
        if self.tokenizer is None or (ids and min(ids) < 0):
            return None
        return str(self.tokenizer.decode(list(ids)))

    def _check_folder(self, force: bool) -> None:
        there = sample_indices(self.folder)
        if there and not force:
            raise SummaryError(
                f"{self.folder} has a capture already (samples {', '.join(map(str, there))}). Choose another folder, "
                "or overwrite it with force=True (--force)."
            )


def _alike(model: torch.nn.Module) -> tuple[int, ...] | None:
    layers = layers_of_one_kind(model)
    if layers is not None:
        _logger.warning(
            "the layers of this model differ in their heads, and a recording holds layers of one kind: recording "
            "layers %s (Recorder(..., layers=[...]) chooses others)",
            ", ".join(map(str, layers)),
        )
    return layers


def _asdict(shapes: Shapes) -> dict[str, int]:
    return {name: getattr(shapes, name) for name in ("query_heads", "kv_heads", "head_dim", "value_dim")}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
