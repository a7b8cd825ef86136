"""Metrics of users: in the report, with their errors named."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kvcompress.analysis.metrics.registry import (
    UserMetricWarning,
    register_metric,
    registered_metrics,
    unregister_metric,
    user_metrics,
)
from kvcompress.analysis.summary.reader import Sample
from tests.analysis.samples import write_sample


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    return write_sample(tmp_path)


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    yield
    for name in list(registered_metrics()):
        unregister_metric(name)


def test_value_of_a_metric_is_made_json(sample: Sample) -> None:
    register_metric("entropy", lambda s: {"mean": s.tensor("attention.entropy").mean(), "none": math.nan})
    found = user_metrics(sample)
    assert found.values["entropy"]["mean"] == pytest.approx(float(sample.tensor("attention.entropy").mean()))
    assert found.values["entropy"]["none"] is None
    assert found.errors == {}


def test_error_is_named_and_the_others_are_kept(sample: Sample) -> None:
    def broken(_: Sample) -> object:
        raise ZeroDivisionError("no tokens")

    register_metric("broken", broken)
    register_metric("no json", lambda _: {1, 2})
    register_metric("works", lambda s: s.token_count)
    with pytest.warns(UserMetricWarning) as caught:
        found = user_metrics(sample)
    assert found.values == {"works": 56}
    assert found.errors["broken"] == "ZeroDivisionError: no tokens"
    assert "the value of metric 'no json'" in found.errors["no json"]
    assert [str(warning.message).split(" failed")[0] for warning in caught] == ["metric 'broken'", "metric 'no json'"]


def test_name_is_taken_until_it_is_given_back(sample: Sample) -> None:
    register_metric("one", lambda _: 1)
    with pytest.raises(ValueError, match="registered"):
        register_metric("one", lambda _: 2)
    register_metric("one", lambda _: 2, replace=True)
    assert user_metrics(sample).values == {"one": 2}
    unregister_metric("one")
    assert user_metrics(sample).values == {}
    with pytest.raises(ValueError, match=r"one of \[\]; got 'one'"):
        unregister_metric("one")


def test_what_cannot_be_registered() -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        register_metric(" ", lambda _: 1)
    not_a_function: object = torch.zeros(1)
    with pytest.raises(TypeError, match="function must take a Sample"):
        register_metric("x", not_a_function)  # type: ignore[arg-type]
