"""Case of decoding: one step on the slots, with eviction and without, against attention alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import count
from types import MappingProxyType
from typing import Final

import torch
import torch.nn.functional as F

from kvcompress.bench.eager import exact_attention
from kvcompress.bench.kernels_bench.device_timing import CapturedRun
from kvcompress.bench.kernels_bench.optional_libraries import flash_attn_decode, flashinfer_decode
from kvcompress.bench.kernels_bench.prepared_case import OUTPUT_TOLERANCE, Layer, PreparedCase, Skipped, largest
from kvcompress.bench.measure import Contender, relative_error
from kvcompress.kernels.compact.reference import Slots
from kvcompress.kernels.decode_attend.reference import Eviction, EvictionOrder, Run, decode_attend_reference
from kvcompress.kernels.dispatch import operation

WITHOUT_EVICTION = "without_eviction"  # suffix of a provider
IN_A_GRAPH = "cuda_graph"  # likewise
ONE_LAUNCH = "one_launch"  # likewise
_ORDERS: Final[Mapping[str, EvictionOrder]] = MappingProxyType({"": "running", f"_{WITHOUT_EVICTION}": "none"})

Output = tuple[torch.Tensor, torch.Tensor]


class DecodeStep:
    """A store of full rows, and the token that each step decodes.

    Args:
        layer: sizes and random numbers.
        order: what the eviction compares.
        one_launch: hand the kernels the scratch with which the last program of a row finishes it.
    """

    def __init__(self, layer: Layer, order: EvictionOrder, *, one_launch: bool = False) -> None:
        shape = layer.shape
        rows, slots = shape.rows, shape.slots
        self.layer = layer
        self.eviction = Eviction(order, window_size=shape.window)
        self.query = layer.random(rows, shape.query_heads // shape.kv_heads, shape.head_dim)
        self.key, self.value = layer.random(rows, shape.head_dim), layer.random(rows, shape.head_dim)
        positions = torch.arange(slots, device=layer.device).repeat(rows)
        positions[slots - 1 :: slots] = -1
        keys, values = (layer.random(rows * slots, shape.head_dim) for _ in range(2))
        self.slots = Slots(keys, values, positions, torch.rand(rows * slots, device=layer.device))
        self.next_slot = torch.arange(1, rows + 1, device=layer.device) * slots - 1
        self.row_offsets = torch.arange(rows + 1, device=layer.device) * slots
        self.runs = (Run(0, rows, 0, slots),)
        self.arrivals = torch.zeros(rows, dtype=torch.int32, device=layer.device) if one_launch else None
        self._positions = count(slots - 1)

    def __call__(self, backend: str) -> Output:
        """Decodes a token at the next position."""
        return self.step(operation("decode_attend", backend), next(self._positions))

    def step(self, attend: Callable[..., Output], position: int | torch.Tensor) -> Output:
        """Decodes a token at a position."""
        return attend(
            self.query,
            self.key,
            self.value,
            self.slots,
            self.next_slot,
            self.row_offsets,
            self.runs,
            position,
            spec=self.layer.spec,
            eviction=self.eviction,
            full=True,
            arrivals=self.arrivals,
        )

    def error(self, run: Callable[[], Output]) -> float:
        """Error of output and probabilities of one step against float64; NaN if any is."""
        keys, values, positions, scores = (array.clone() for array in self.slots)
        exact = decode_attend_reference(
            self.query.double(),
            self.key.double(),
            self.value.double(),
            Slots(keys.double(), values.double(), positions, scores),
            self.next_slot.clone(),
            self.row_offsets,
            self.runs,
            self.layer.shape.slots,
            spec=self.layer.spec,
            eviction=self.eviction,
            full=True,
        )
        return largest(*(relative_error(got, wanted) for got, wanted in zip(run(), exact, strict=True)))


def decode_attend(layer: Layer) -> Iterator[PreparedCase]:
    """A decode step over full rows of slots; the whole prompt's cache stands beside it."""
    contenders: list[Contender] = []
    skipped: list[Skipped] = []
    for backend in layer.backends:
        for suffix, order in _ORDERS.items():
            contenders += _ours(layer, backend, suffix, order)
    contenders.append(_sdpa_on_slots(layer))
    contenders.append(_attention_alone(layer, "sdpa_full_cache", layer.key, layer.value))
    key, value = (layer.random(layer.shape.batch, layer.shape.kv_heads, layer.shape.slots, layer.shape.head_dim)
                  for _ in range(2))  # fmt: skip
    query = layer.random(layer.shape.batch, layer.shape.query_heads, 1, layer.shape.head_dim)
    for provider, library in (("flash_attn", flash_attn_decode), ("flashinfer", flashinfer_decode)):
        run_library, reasons = library(layer, query, key, value)
        skipped += reasons
        if run_library is not None:
            contenders.append(_library(layer, provider, run_library, exact_attention(query, key, value)))
    yield PreparedCase(case=layer.case("decode_attend"), contenders=contenders, skipped=skipped)


def _ours(layer: Layer, backend: str, suffix: str, order: EvictionOrder) -> Iterator[Contender]:
    """One of our backends; the Triton kernels also in one launch, and replayed from a graph."""
    step = DecodeStep(layer, order)
    yield _our_contender(layer, f"{backend}{suffix}", partial(step, backend), step)
    if layer.device.type == "cuda" and backend == "triton":
        once = DecodeStep(layer, order, one_launch=True)
        yield _our_contender(layer, f"{backend}{suffix}_{ONE_LAUNCH}", partial(once, backend), once)
        # The same position over and over; the work does not depend on it.
        position = torch.tensor(layer.shape.slots, device=layer.device)
        replayed = DecodeStep(layer, order)
        graph = CapturedRun(partial(replayed.step, operation("decode_attend", backend), position))
        contender = _our_contender(layer, f"{backend}{suffix}_{IN_A_GRAPH}", graph, replayed)
        yield replace(contender, error=partial(_graph_error, graph, replayed))


def _graph_error(graph: CapturedRun, step: DecodeStep) -> float:
    graph.record()  # which decodes some tokens itself: not between the reference and the step that is held to it
    return step.error(graph)


def _our_contender(layer: Layer, provider: str, run: Callable[[], Output], step: DecodeStep) -> Contender:
    return Contender(
        provider=provider,
        run=run,
        error=lambda: step.error(run),
        tolerance=OUTPUT_TOLERANCE[layer.dtype],
        calls=4,
        bytes_moved=_bytes(layer, layer.shape.slots),
        counts_memory=True,
    )


def _sdpa_on_slots(layer: Layer) -> Contender:
    """The same slots, written and attended by torch, and no word about which one goes."""
    shape = layer.shape
    key, value = (layer.random(shape.batch, shape.kv_heads, shape.slots, shape.head_dim) for _ in range(2))
    new_key, new_value = (layer.random(shape.batch, shape.kv_heads, 1, shape.head_dim) for _ in range(2))
    query = layer.random(shape.batch, shape.query_heads, 1, shape.head_dim)
    last = torch.tensor([shape.slots - 1], device=layer.device)

    def run() -> torch.Tensor:
        key.index_copy_(2, last, new_key)
        value.index_copy_(2, last, new_value)
        return F.scaled_dot_product_attention(query, key, value, scale=layer.spec.scaling, enable_gqa=True)

    return Contender(
        provider="sdpa_on_slots",
        run=run,
        error=lambda: relative_error(run().transpose(1, 2), exact_attention(query, key, value)),
        tolerance=OUTPUT_TOLERANCE[layer.dtype],
        calls=4,
        bytes_moved=_bytes(layer, shape.slots),
        counts_memory=True,
    )


def _attention_alone(layer: Layer, provider: str, key: torch.Tensor, value: torch.Tensor) -> Contender:
    """Torch's attention of one token over a cache that is there already."""
    query = layer.random(layer.shape.batch, layer.shape.query_heads, 1, layer.shape.head_dim)

    def run() -> torch.Tensor:
        return F.scaled_dot_product_attention(query, key, value, scale=layer.spec.scaling, enable_gqa=True)

    def error() -> float:
        return relative_error(run().transpose(1, 2), exact_attention(query, key, value))

    return Contender(
        provider=provider,
        run=run,
        error=error,
        tolerance=OUTPUT_TOLERANCE[layer.dtype],
        bytes_moved=_bytes(layer, key.shape[2]),
        counts_memory=True,
    )


def _library(layer: Layer, provider: str, run: Callable[[], torch.Tensor], exact: torch.Tensor) -> Contender:
    return Contender(
        provider=provider,
        run=run,
        error=lambda: relative_error(run(), exact),
        tolerance=OUTPUT_TOLERANCE[layer.dtype],
        calls=4,
        bytes_moved=_bytes(layer, layer.shape.slots),
        counts_memory=True,
    )


def _bytes(layer: Layer, tokens: int) -> int:
    """Bytes of the keys and values of that many tokens, read once."""
    return 2 * layer.shape.rows * tokens * layer.shape.head_dim * layer.key.itemsize
