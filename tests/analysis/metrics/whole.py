"""Samples written by the recorder, and beside them the whole attention that it saw, computed here in float64."""

from pathlib import Path
from typing import NamedTuple

import torch

from kvcompress.analysis.capture.observation import Attended
from kvcompress.analysis.capture.sample_capture import EventInfo, SampleCapture
from kvcompress.analysis.capture.settings import RecorderSettings
from kvcompress.analysis.summary.reader import Sample, read_sample
from kvcompress.analysis.summary.schema import DECODE, PREFILL, STEP
from kvcompress.analysis.summary.writer import SampleWriter
from kvcompress.kernels.window_scores.reference import AttentionSpec
from tests.analysis.samples import description

LAYERS, QUERY_HEADS, KV_HEADS, HEAD_DIM = 3, 4, 2, 16
SETTINGS = RecorderSettings(recent_tokens=6)


class Block(NamedTuple):
    """An event: its kind, the position of its first query, and its queries."""

    kind: int
    first: int
    queries: int


class Whole(NamedTuple):
    """A sample and what it was made from.

    Attributes:
        sample: the sample.
        attention: each event's probabilities, float64 ``[L, H, queries, keys]``.
        keys: float32 ``[L, K, T, D]`` of the last event.
        values: the same for the values.
    """

    sample: Sample
    attention: list[torch.Tensor]
    keys: torch.Tensor
    values: torch.Tensor

    @property
    def map(self) -> torch.Tensor:
        """The events' attention below each other, as of one sequence: float64 ``[L, H, T, T]``."""
        tokens = self.attention[-1].shape[-1]
        return torch.cat([torch.nn.functional.pad(p, (0, tokens - p.shape[-1])) for p in self.attention], dim=2)


def generation(prompt: list[int], decoded: int) -> list[Block]:
    """The events of a prompt in blocks and of tokens decoded after it."""
    ends = torch.tensor(prompt).cumsum(0).tolist()
    blocks = [Block(PREFILL, end - size, size) for end, size in zip(ends, prompt, strict=True)]
    return blocks + [Block(DECODE, ends[-1] + step, 1) for step in range(decoded)]


def steps(tokens: int, count: int) -> list[Block]:
    """The steps of a sampler that sees the whole sequence each time."""
    return [Block(STEP, 0, tokens)] * count


def write_whole(
    folder: Path,
    blocks: list[Block],
    settings: RecorderSettings = SETTINGS,
    *,
    seed: int = 0,
    prompt: int | None = None,
) -> Whole:
    """Writes an uncompressed sample of random queries and keys; steps draw new ones each time."""
    generator = torch.Generator().manual_seed(seed)
    tokens = max(block.first + block.queries for block in blocks)
    capture = SampleCapture(SampleWriter(folder, 0), settings, prompt)
    query, keys, values = _draw(tokens, generator)
    found = []
    for block in blocks:
        if block.kind == STEP:
            query, keys, values = _draw(tokens, generator)
        end = block.first + block.queries
        ids = torch.arange(block.first, end)
        capture.begin(EventInfo(kind=block.kind, step=capture.events, block=-1, first_query=block.first, token_ids=ids))
        for layer in range(LAYERS):
            capture.add(layer, _attended(block, query[layer], keys[layer], values[layer]))
        capture.end(None)
        found.append(_attention(query[:, :, block.first : end], keys[:, :, :end], causal=block.kind != STEP))
    shape = (LAYERS, QUERY_HEADS, KV_HEADS, HEAD_DIM)
    capture.finish(description(capture, shape, [f"t{i}" for i in range(tokens)]))
    return Whole(read_sample(folder), found, keys, values)


def _draw(tokens: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    sizes = (QUERY_HEADS, KV_HEADS, KV_HEADS)
    query, keys, values = (torch.randn(LAYERS, heads, tokens, HEAD_DIM, generator=generator) for heads in sizes)
    return 2 * query, keys, values


def _attended(block: Block, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> Attended:
    end = block.first + block.queries
    return Attended(
        query=query[:, block.first : end],
        first_query=block.first,
        keys=keys[:, :end],
        positions=torch.arange(end)[None],
        new_keys=keys[:, block.first : end],
        new_values=values[:, block.first : end],
        spec=AttentionSpec(scaling=HEAD_DIM**-0.5),
        causal=block.kind != STEP,
    )


def _attention(query: torch.Tensor, keys: torch.Tensor, *, causal: bool) -> torch.Tensor:
    """Softmax attention in float64, by its formula."""
    shared = keys.double().repeat_interleave(QUERY_HEADS // KV_HEADS, dim=1)
    logits = query.double() @ shared.transpose(2, 3) / HEAD_DIM**0.5
    if causal:
        places = torch.arange(keys.shape[2])
        logits = logits.masked_fill(places > places[-query.shape[2] :, None], -torch.inf)
    return logits.softmax(-1)
