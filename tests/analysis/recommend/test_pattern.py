"""The pattern of a capture: the numbers are means of the sample's tensors, the names follow the thresholds."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kvcompress.analysis.recommend.pattern import find_pattern
from tests.analysis.samples import write_sample


@pytest.mark.parametrize(
    ("recent", "sink", "covered", "name"),
    [
        (0.5, 0.2, 4.0, "recency"),
        (0.5, 0.19, 100.0, "sparse"),
        (0.5, 0.19, 101.0, "uniform"),
        (0.9, 0.1, 400.0, "recency"),
    ],
)
def test_names_follow_the_thresholds(recent: float, sink: float, covered: float, name: str, made_up: Any) -> None:
    found = find_pattern(made_up(recent=recent, sink=sink, covered=covered))
    assert found.name == name
    assert found.coverage_share == pytest.approx(covered / 400)
    assert (found.recent_mass, found.sink_mass) == pytest.approx((recent, sink))
    assert (found.events, found.note) == (3, None)
    content = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert content["thresholds"] == {"local_mass": 0.7, "few_keys": 0.25}


def test_prompts_count_where_no_decoded_token_sees_enough(made_up: Any) -> None:
    found = find_pattern(made_up(recent=0.5, sink=0.1, covered=10.0, keys=100.0, compressed=True))
    assert found.events == 1
    assert found.note is not None
    assert "no decoded token sees 144 keys" in found.note
    assert "the capture was compressed" in found.note


def test_short_samples_are_read_and_said_to_be_short(tmp_path: Path) -> None:
    sample = write_sample(tmp_path, compressed=False)
    found = find_pattern(sample)
    assert found.note is not None
    assert "can be told apart" in found.note
    assert found.events == sample.events
    assert found.recent_mass == pytest.approx(float(sample.tensor("attention.recent_mass").double().mean()))
    assert found.sink_mass == pytest.approx(float(sample.tensor("attention.sink_mass").double().mean()))
    share = sample.tensor("attention.coverage")[..., 2] / sample.tensor("attention.keys")[..., None]
    assert found.coverage_share == pytest.approx(float(share.double().mean()))


def test_samples_without_attention_are_refused(made_up: Any) -> None:
    nothing = made_up(recent=0.5, sink=0.1, covered=1.0, keys=0.0, prompt_keys=0.0)
    with pytest.raises(ValueError, match="no event with attention in it"):
        find_pattern(nothing)
    unknown = made_up(recent=float("nan"), sink=0.1, covered=1.0)
    with pytest.raises(ValueError, match="recent_mass has no finite value"):
        find_pattern(unknown)


def test_numbers_that_do_not_apply_are_left_out(made_up: Any) -> None:
    sample = made_up(recent=0.5, sink=0.1, covered=1.0)
    sample.tensor("attention.recent_mass")[1, 0] = torch.nan
    assert find_pattern(sample).recent_mass == pytest.approx(0.5)
