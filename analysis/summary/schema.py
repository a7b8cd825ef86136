"""The schema of a capture's files: what the JSON says, and which tensors of which shape there are (docs/formats.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

SCHEMA: Final = "kvcompress.capture"
SCHEMA_VERSION: Final = 1

PREFILL, DECODE, STEP = 0, 1, 2  # values of event.kind

POSITION_BINS: Final = 64
DISTANCE_BINS: Final = 33
TOP_POSITIONS: Final = 16
COVERAGE_PERCENT: Final = (50, 80, 90, 95, 99)
SPARSITY_THRESHOLDS: Final = (0.01, 0.05, 0.10, 0.25)
TOKEN_SPARSITY_THRESHOLD: Final = 0.10

Dimension = str | int
Shape = tuple[Dimension, ...]

# attention.*, [E, L, H]; the other tensors of that family have a further axis.
ATTENTION_SCALARS: Final = (
    "entropy",
    "entropy_normalised",
    "maximum",
    "variance",
    "density",
    "sink_mass",
    "recent_mass",
    "diagonal_mass",
    "prompt_mass",
    "learned_sink_mass",
)

EVENT_TENSORS: Final[Mapping[str, tuple[torch.dtype, Shape]]] = {
    f"event.{name}": (torch.int64, ("E",))
    for name in ("kind", "step", "block", "first_query", "queries", "observed_queries", "tokens")
}
ATTENTION_TENSORS: Final[Mapping[str, tuple[torch.dtype, Shape]]] = {
    "attention.keys": (torch.float32, ("E", "L")),
    **{f"attention.{name}": (torch.float32, ("E", "L", "H")) for name in ATTENTION_SCALARS},
    "attention.coverage": (torch.float32, ("E", "L", "H", len(COVERAGE_PERCENT))),
    "attention.position_mass": (torch.float32, ("E", "L", "H", POSITION_BINS)),
    "attention.distance_mass": (torch.float32, ("E", "L", "H", DISTANCE_BINS)),
    "attention.top_positions": (torch.int64, ("E", "L", "H", TOP_POSITIONS)),
    "attention.top_mass": (torch.float32, ("E", "L", "H", TOP_POSITIONS)),
    "heatmap.event": (torch.int64, ("M",)),
    "heatmap.mass": (torch.float32, ("M", "L", "H", POSITION_BINS, POSITION_BINS)),
}
TOKEN_TENSORS: Final[Mapping[str, tuple[torch.dtype, Shape]]] = {
    "token.ids": (torch.int64, ("T",)),
    "token.mass_event": (torch.int64, ("N",)),
    "token.mass_offset": (torch.int64, ("N+1",)),
    "token.mass": (torch.float32, ("A",)),
    "token.influence": (torch.float32, ("L", "T")),
}
KEY_VALUE_TENSORS: Final[Mapping[str, tuple[torch.dtype, Shape]]] = {
    f"kv.{what}_{name}": (torch.float32, shape)
    for what in ("key", "value")
    for name, shape in (
        ("norm", ("L", "K", "T")),
        ("token_sparsity", ("L", "K", "T")),
        ("scale", ("L", "K")),
        ("sparsity", ("L", "K", len(SPARSITY_THRESHOLDS))),
        ("dimension_sparsity", ("L", "K", f"D_{what}")),
        ("energy", ("L", "K", f"D_{what}")),
        ("singular_values", ("L", "K", f"D_{what}")),
    )
}
COMPRESSION_TENSORS: Final[Mapping[str, tuple[torch.dtype, Shape]]] = {
    "compression.budget": (torch.int64, ("L",)),
    "compression.preference": (torch.float32, ("L",)),
    "compression.entropy": (torch.float32, ("L",)),
    "compression.variance": (torch.float32, ("L",)),
    "compression.score": (torch.float32, ("L", "K", "T")),
    "compression.evicted_event": (torch.int64, ("L", "K", "T")),
    "compression.evicted_stage": (torch.int64, ("L", "K", "T")),
    "compression.held": (torch.int64, ("E", "L", "K")),
    "compression.bytes": (torch.int64, ("E",)),
}
REQUIRED_TENSORS: Final[Mapping[str, tuple[torch.dtype, Shape]]] = {
    **EVENT_TENSORS,
    **ATTENTION_TENSORS,
    **TOKEN_TENSORS,
    **KEY_VALUE_TENSORS,
}
RAW_ATTENTION, RAW_KEYS, RAW_VALUES = "raw.attention", "raw.keys", "raw.values"
OPTIONAL_PREFIXES: Final = (RAW_ATTENTION + ".", RAW_KEYS + ".", RAW_VALUES + ".")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class ModelInfo(_Frozen):
    """The model that was captured.

    Attributes:
        name: what the user called it.
        class_name: its Python class.
        layers: attention layers that were captured.
        query_heads: query heads of a layer.
        kv_heads: key and value heads of a layer.
        head_dim: size of a key's head.
        value_dim: size of a value's head.
        dtype: of its weights.
        device: where it ran.
        attention: the attention implementation.
    """

    name: str
    class_name: str
    layers: int = Field(ge=1)
    query_heads: int = Field(ge=1)
    kv_heads: int = Field(ge=1)
    head_dim: int = Field(ge=1)
    value_dim: int = Field(ge=1)
    dtype: str
    device: str
    attention: str


class CaptureSettings(_Frozen):
    """How a capture reduced what it saw.

    Attributes:
        max_queries: most queries of an event that are observed.
        sink_tokens: first tokens whose mass is the sink mass.
        recent_tokens: nearest tokens, the query's own included, whose mass is the recent mass.
        token_mass_every: decode steps from one stored mass per token to the next.
        position_bins: bins of positions.
        distance_bins: bins of distances.
        top_positions: positions of largest mass that are kept.
        coverage_percent: percentages of ``attention.coverage``.
        sparsity_thresholds: of ``kv.*_sparsity``, fractions of the scale.
    """

    max_queries: int = Field(ge=1)
    sink_tokens: int = Field(ge=0)
    recent_tokens: int = Field(ge=1)
    token_mass_every: int = Field(ge=1)
    position_bins: Literal[64] = POSITION_BINS
    distance_bins: Literal[33] = DISTANCE_BINS
    top_positions: Literal[16] = TOP_POSITIONS
    coverage_percent: tuple[int, ...] = COVERAGE_PERCENT
    sparsity_thresholds: tuple[float, ...] = SPARSITY_THRESHOLDS


class TensorInfo(_Frozen):
    """A tensor of the data file."""

    dtype: str
    shape: tuple[int, ...]


class Summary(_Frozen):
    """The JSON of a sample: everything about it but the tensors. Fields as in docs/formats.md."""

    format: Literal["kvcompress.capture"] = Field(alias="schema")
    schema_version: Literal[1]
    sample: int = Field(ge=0)
    created_utc: str
    model: ModelInfo
    layer_indices: tuple[int, ...]
    layer_names: tuple[str, ...]
    policy: dict[str, Any] | None
    prompt_tokens: int = Field(ge=0)
    tokens: tuple[str, ...] | None
    generated_text: str | None
    settings: CaptureSettings
    raw_heads: tuple[int, ...] | None = None
    raw_left_out: tuple[int, ...] = ()
    versions: dict[str, str | None]
    seconds: float = Field(ge=0)
    data_file: str
    data_bytes: int = Field(ge=0)
    tensors: dict[str, TensorInfo]
