"""Metrics that users add: functions of a sample, whose values stand in every analysis report."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from kvcompress.analysis.metrics.json_values import to_json
from kvcompress.analysis.summary.reader import Sample
from kvcompress.analysis.user_functions import UserFunctions

Metric = Callable[[Sample], object]

_METRICS: UserFunctions[Metric] = UserFunctions("metric", "take a Sample and return a value")


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
    _METRICS.add(name, function, replace=replace)


def unregister_metric(name: str) -> None:
    """Takes a metric out of the reports.

    Raises:
        ValueError: there is none of that name.
    """
    _METRICS.remove(name)


def registered_metrics() -> Mapping[str, Metric]:
    """The registered metrics, by name; a view that cannot be written."""
    return _METRICS.all()


def user_metrics(sample: Sample) -> UserMetrics:
    """Computes the registered metrics; one that fails does not keep the others from the report.

    Warns:
        UserMetricWarning: one failed; the error stands in :attr:`UserMetrics.errors` too.
    """
    values, errors = {}, {}
    for name, function in _METRICS.all().items():
        try:
            values[name] = to_json(function(sample), f"the value of metric {name!r}")
        except Exception as error:  # code of the user's: it may raise anything, and its name must be told
            errors[name] = f"{type(error).__name__}: {error}"
            warnings.warn(f"metric {name!r} failed: {errors[name]}", UserMetricWarning, stacklevel=2)
    return UserMetrics(values=values, errors=errors)
