"""What the cases of the kernels have in common: their inputs, and what is handed to the timing."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from math import inf
from typing import Final, NamedTuple

import torch

from kvcompress.bench.kernels_bench.layer_shapes import LayerShape
from kvcompress.bench.measure import Case, Contender
from kvcompress.kernels.window_scores.reference import AttentionSpec, WindowScores, window_scores_reference

GAMMA: Final = 200.0
POOL_SIZE: Final = 5
# Sums are in float32 whatever the inputs; only an output of 16 bits is rounded once more.
SCORE_TOLERANCE: Final = 1e-3
OUTPUT_TOLERANCE: Final = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3.2e-2}


class Skipped(NamedTuple):
    """A contender that is not timed, and why not."""

    provider: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedCase:
    """A case and who takes part in it.

    Attributes:
        case: its name, shape and yardstick.
        contenders: who is timed if its result is right.
        skipped: who would take part and cannot.
        launch_bound: providers that launch so many small kernels that their time on the device alone is no news.
    """

    case: Case
    contenders: list[Contender]
    skipped: list[Skipped] = field(default_factory=list)
    launch_bound: frozenset[str] = frozenset({"torch"})


def dtype_name(dtype: torch.dtype) -> str:
    """``bfloat16`` for ``torch.bfloat16``."""
    return str(dtype).removeprefix("torch.")


def eager_tolerance(dtype: torch.dtype) -> float:
    """The authors' formula rounds probabilities to the model's dtype: in 16 bits its variance is no measure of speed.

    Its error is reported all the same; only NaN is refused.
    """
    return 1e-4 if dtype == torch.float32 else inf


class Layer:
    """Random queries, keys and values of a layer, with the exact scores of its keys.

    Args:
        shape: sizes.
        dtype: float32, float16 or bfloat16.
        device: where the tensors are made.
        backends: backends of ours that take part, yardstick first.
    """

    def __init__(self, shape: LayerShape, dtype: torch.dtype, device: torch.device, backends: tuple[str, ...]) -> None:
        self.shape, self.dtype, self.device, self.backends = shape, dtype, device, backends
        self._generator = torch.Generator(device).manual_seed(0)
        self.query = self.random(shape.batch, shape.query_heads, shape.window, shape.head_dim)
        self.key = self.random(shape.batch, shape.kv_heads, shape.tokens, shape.head_dim)
        self.value = self.random(shape.batch, shape.kv_heads, shape.tokens, shape.head_dim)
        self.spec = AttentionSpec(scaling=shape.head_dim**-0.5)

    def random(self, *sizes: int) -> torch.Tensor:
        """Standard normal values of the layer's dtype and device."""
        return torch.randn(*sizes, generator=self._generator, device=self.device, dtype=self.dtype)

    def case(self, name: str) -> Case:
        """A case of this layer."""
        return Case(name=name, shape=self.shape.label, dtype=dtype_name(self.dtype), ratio_to=self.backends[0])

    @cached_property
    def exact(self) -> WindowScores:
        """The scores in float64."""
        return window_scores_reference(
            self.query.double(),
            self.key.double(),
            spec=self.spec,
            scored=self.shape.scored,
            gamma=GAMMA,
            pool_size=POOL_SIZE,
        )

    @cached_property
    def exact_score(self) -> torch.Tensor:
        """The token scores in float64, ``[batch, kv_heads, scored]``."""
        if self.exact.score is None:
            raise RuntimeError("window_scores_reference emits the score where nothing else is asked for")
        return self.exact.score

    @cached_property
    def log_sum_exp(self) -> torch.Tensor:
        """What an attention forward would hand on: float32 ``[batch, query_heads, window]``."""
        window, tokens = self.shape.window, self.shape.tokens
        later = torch.ones(window, tokens, dtype=torch.bool, device=self.device).triu(tokens - window + 1)
        queries = self.query.view(self.shape.batch, self.shape.kv_heads, -1, window, self.shape.head_dim)
        parts = []
        for head in range(self.shape.kv_heads):  # one head at a time: the logits of all would be large
            keys = self.key[:, head].float().transpose(1, 2)[:, None]
            logits = (queries[:, head].float() @ keys) * self.spec.scaling
            parts.append(torch.logsumexp(logits.masked_fill_(later, -inf), dim=-1))
        return torch.cat(parts, dim=1)


def largest(*errors: float) -> float:
    """The largest of some errors; NaN if any is."""
    return float(torch.tensor(errors, dtype=torch.float64).max())
