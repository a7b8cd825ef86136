"""Metrics by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final, Protocol

from kvcompress.bench.metrics.classification import classification
from kvcompress.bench.metrics.code_similarity import code_similarity
from kvcompress.bench.metrics.exact_match import exact_match
from kvcompress.bench.metrics.numbers_named import numbers_named
from kvcompress.bench.metrics.recall import recall
from kvcompress.bench.metrics.rouge_l import rouge_l
from kvcompress.bench.metrics.string_match import string_match_all, string_match_part
from kvcompress.bench.metrics.token_f1 import token_f1


class Metric(Protocol):
    """Judges a text: ``(prediction, references, choices) -> score in [0, 1]``, higher is better."""

    def __call__(self, prediction: str, references: Sequence[str], choices: Sequence[str] = ()) -> float:
        """Returns the score."""


METRICS: Final[Mapping[str, Metric]] = MappingProxyType(
    {
        metric.__name__: metric
        for metric in (
            classification,
            code_similarity,
            exact_match,
            numbers_named,
            recall,
            rouge_l,
            string_match_all,
            string_match_part,
            token_f1,
        )
    }
)


def get_metric(name: str) -> Metric:
    """Returns a metric.

    Args:
        name: a key of :data:`METRICS`.

    Raises:
        ValueError: no such metric.
    """
    if name not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}; got {name!r}")
    return METRICS[name]
