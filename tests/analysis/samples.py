"""Complete samples of a capture, made of random queries and keys through the recorder's own reductions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from kvcompress.analysis.capture.observation import Attended
from kvcompress.analysis.capture.sample_capture import CompressedState, EventInfo, SampleCapture
from kvcompress.analysis.capture.settings import RecorderSettings
from kvcompress.analysis.summary.reader import Sample, read_sample
from kvcompress.analysis.summary.schema import DECODE, PREFILL
from kvcompress.analysis.summary.writer import SampleWriter
from kvcompress.kernels.window_scores.reference import AttentionSpec

WINDOW = 4  # last tokens that the made-up policy never evicts


def write_sample(
    folder: Path,
    index: int = 0,
    *,
    compressed: bool = True,
    layers: int = 3,
    query_heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 16,
    prompt: int = 48,
    generated: int = 8,
    seed: int = 0,
    tokens: Sequence[str] | None = None,
    settings: RecorderSettings | None = None,
) -> Sample:
    """Writes a sample and opens it.

    Args:
        folder: the capture's folder.
        index: number of the sample.
        compressed: whether tokens are evicted: half of the prompt, then one for each that comes in.
        layers: attention layers.
        query_heads: query heads of a layer.
        kv_heads: kv heads of a layer.
        head_dim: size of a head.
        prompt: tokens of the prompt.
        generated: decoded tokens.
        seed: of the random queries and keys.
        tokens: texts of the tokens; None: t0, t1, ...
        settings: of the recorder.
    """
    shape = (layers, query_heads, kv_heads, head_dim)
    made = _MadeUp(shape, prompt + generated, compressed, torch.Generator().manual_seed(seed))
    capture = SampleCapture(SampleWriter(folder, index), settings or RecorderSettings())
    made.event(capture, PREFILL, 0, prompt)
    for step in range(generated):
        made.event(capture, DECODE, prompt + step, 1)
    texts = [f"t{i}" for i in range(prompt + generated)] if tokens is None else list(tokens)
    capture.finish(description(capture, shape, texts))
    return read_sample(folder, index)


def description(capture: SampleCapture, shape: tuple[int, int, int, int], texts: list[str]) -> dict[str, Any]:
    """The JSON's fields that only a recorder knows."""
    layers, query_heads, kv_heads, head_dim = shape
    settings = capture.settings
    return {
        "created_utc": "2026-01-01T00:00:00Z",
        "model": {
            "name": "made up",
            "class_name": "Random",
            "layers": layers,
            "query_heads": query_heads,
            "kv_heads": kv_heads,
            "head_dim": head_dim,
            "value_dim": head_dim,
            "dtype": "float32",
            "device": "cpu",
            "attention": "none",
        },
        "layer_names": tuple(f"layer {i}" for i in range(layers)),
        "tokens": tuple(texts),
        "generated_text": " ".join(texts[capture.prompt_tokens :]),
        "settings": {
            "max_queries": settings.max_queries,
            "sink_tokens": settings.sink_tokens,
            "recent_tokens": settings.recent_tokens,
            "token_mass_every": capture.mass_every,
        },
        "raw_heads": None if settings.raw is None else settings.raw.heads or tuple(range(query_heads)),
        "versions": {"kvcompress": "0", "torch": torch.__version__},
        "seconds": 1.5,
    }


class _MadeUp:
    """A model of random queries and keys, with a policy that evicts at random."""

    def __init__(
        self, shape: tuple[int, int, int, int], tokens: int, compressed: bool, generator: torch.Generator
    ) -> None:
        self.layers, query_heads, kv_heads, head_dim = shape
        self.compressed, self.generator = compressed, generator

        def draw(heads: int) -> torch.Tensor:
            return torch.randn(self.layers, heads, tokens, head_dim, generator=generator)

        self.query, self.keys, self.values = draw(query_heads) * 2, draw(kv_heads), draw(kv_heads)
        self.held = torch.zeros(self.layers, kv_heads, tokens, dtype=torch.bool)

    def event(self, capture: SampleCapture, kind: int, first: int, queries: int) -> None:
        """Runs an event of all layers."""
        ids = torch.arange(first, first + queries)
        capture.begin(EventInfo(kind=kind, step=capture.events, block=-1, first_query=first, token_ids=ids))
        for layer in range(self.layers):
            self.held[layer, :, first : first + queries] = True
            capture.add(layer, self._attended(layer, first, queries))
            if self.compressed:
                self._evict(capture, layer, kind, first + queries)
        capture.end(self._state() if self.compressed else None)

    def _attended(self, layer: int, first: int, queries: int) -> Attended:
        end = first + queries
        positions = torch.where(self.held[layer, :, :end], torch.arange(end), -1)
        order = positions.argsort(dim=-1, stable=True)
        keys = self.keys[layer, :, :end].gather(1, order[..., None].expand(-1, -1, self.keys.shape[-1]))
        return Attended(
            query=self.query[layer, :, first:end],
            first_query=first,
            keys=keys,
            positions=positions.gather(1, order),
            new_keys=self.keys[layer, :, first:end],
            new_values=self.values[layer, :, first:end],
            spec=AttentionSpec(scaling=self.keys.shape[-1] ** -0.5),
            causal=True,
        )

    def _evict(self, capture: SampleCapture, layer: int, kind: int, tokens: int) -> None:
        log = capture.evictions(layer)
        if log is None:
            raise RuntimeError("the layer has just been added")
        heads = self.held.shape[1]
        count = (tokens - WINDOW) // 2 if kind == PREFILL else 1
        old = self.held[layer, :, : tokens - WINDOW]
        score = torch.rand(heads, old.shape[1], generator=self.generator)
        if kind == PREFILL:
            log.note_scores(torch.arange(old.shape[1]).expand(heads, -1), score, tokens)
        gone = score.masked_fill(~old, 2.0).topk(count, dim=-1, largest=False).indices
        self.held[layer].scatter_(1, gone, False)
        log.note_evicted(gone, capture.events, "prefill" if kind == PREFILL else "decode", tokens)

    def _state(self) -> CompressedState:
        budget = int(self.held[0, 0].sum()) - WINDOW
        return CompressedState(
            policy={"name": "made_up", "cache_size": budget + WINDOW, "window_size": WINDOW},
            num_bytes=int(self.held.sum()) * self.keys.shape[-1] * 8,
            layers={
                layer: (budget, 1.0 + layer, 10.0 * (layer + 1), 0.1 * (layer + 1)) for layer in range(self.layers)
            },
        )
