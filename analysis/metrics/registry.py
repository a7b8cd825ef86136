"""Metrics that users add: functions of a sample, whose values stand in every analysis report."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from kvcompress.analysis.metrics.json_values import to_json
from kvcompress.analysis.summary.reader import Sample

Metric = Callable[[Sample], object]

_METRICS: dict[str, Metric] = {}


class UserMetricWarning(RuntimeWarning):
    """A registered metric failed; the report names it and its error."""


class UserMetrics(NamedTuple):
    """What the registered metrics say of a sample.

    Attributes:
        values: by name, as JSON has them.
        errors: by name, ``"type: message"`` of those that failed.
    """

    values: dict[str, Any]
    errors: dict[str, str]


def register_metric(name: str, function: Metric, *, replace: bool = False) -> None:
    """Adds a metric to all analysis reports, under ``"user_metrics"``.

    Args:
        name: its name in the report.
        function: takes a :class:`~kvcompress.analysis.summary.reader.Sample`; returns numbers, texts, tensors, or lists
            and mappings of such.
        replace: whether it may take the place of one of the same name.

    Raises:
        TypeError: the function cannot be called.
        ValueError: an empty name, or one that is taken.
    """
    if not name.strip():
        raise ValueError(f"name must not be empty; got {name!r}")
    if not callable(function):
        raise TypeError(f"function must take a Sample and return a value; got {type(function).__name__}")
    if name in _METRICS and not replace:
        raise ValueError(f"name must be new; a metric {name!r} is registered. Give another name, or replace=True.")
    _METRICS[name] = function


def unregister_metric(name: str) -> None:
    """Takes a metric out of the reports.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in _METRICS:
        raise ValueError(f"name must be that of a registered metric, one of {sorted(_METRICS)}; got {name!r}")
    del _METRICS[name]


def registered_metrics() -> Mapping[str, Metric]:
    """The registered metrics, by name; a view that cannot be written."""
    return MappingProxyType(_METRICS)


def user_metrics(sample: Sample) -> UserMetrics:
    """Computes the registered metrics; one that fails does not keep the others from the report.

    Warns:
        UserMetricWarning: one failed; the error stands in :attr:`UserMetrics.errors` too.
    """
    values, errors = {}, {}
    for name, function in _METRICS.items():
        try:
            values[name] = to_json(function(sample), f"the value of metric {name!r}")
        except Exception as error:  # code of the user's: it may raise anything, and its name must be told
            errors[name] = f"{type(error).__name__}: {error}"
            warnings.warn(f"metric {name!r} failed: {errors[name]}", UserMetricWarning, stacklevel=2)
    return UserMetrics(values=values, errors=errors)
