"""A small random model in float64, and a stand-in for a sample."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from kvcompress.analysis.summary.schema import DECODE, PREFILL
from tests.analysis.small_model import small_model


@pytest.fixture(scope="session")
def model() -> LlamaForCausalLM:
    return small_model()


class MadeUpSample:
    """What a pattern is read off: `events` decoded tokens after a prompt, the same numbers in every layer and head."""

    def __init__(
        self,
        *,
        recent: float,
        sink: float,
        covered: float,
        keys: float = 400.0,
        prompt_keys: float = 200.0,
        events: int = 3,
        compressed: bool = False,
    ) -> None:
        layers, heads = 2, 4
        self.compressed = compressed
        self.kinds = torch.tensor([PREFILL] + [DECODE] * events)
        self.summary = SimpleNamespace(
            settings=SimpleNamespace(recent_tokens=32, sink_tokens=4, coverage_percent=(50, 80, 90, 95, 99))
        )
        seen = torch.tensor([prompt_keys] + [keys] * events)[:, None].expand(-1, layers).clone()
        everywhere = (1 + events, layers, heads)
        coverage = torch.full((*everywhere, 5), torch.nan)
        coverage[..., 2] = covered
        self._tensors = {
            "attention.keys": seen,
            "attention.recent_mass": torch.full(everywhere, recent),
            "attention.sink_mass": torch.full(everywhere, sink),
            "attention.entropy_normalised": torch.full(everywhere, 0.5),
            "attention.coverage": coverage,
        }

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor by name."""
        return self._tensors[name]


@pytest.fixture(scope="session")
def made_up() -> Any:
    return MadeUpSample
