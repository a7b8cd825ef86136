"""What is on the page equals the sample's tensors, or says that it was thinned."""

from pathlib import Path

import numpy as np
import pytest
import torch

from kvcompress.analysis.report.arrays import PROFILES, STATISTICS
from kvcompress.analysis.report.data import bytes_per_token, plain, sample_data
from kvcompress.analysis.report.encoding import size_of
from kvcompress.analysis.report.render import as_json
from kvcompress.analysis.report.thinning import Limits, halving, spread
from kvcompress.analysis.summary.reader import Sample
from tests.analysis.report.unpacking import unpack
from tests.analysis.samples import write_sample
from tests.tolerances import TOLERANCES

HALF = TOLERANCES[torch.float16]
EXACT = ("kv.key_scale", "kv.value_sparsity", "kv.key_energy", "kv.value_singular_values", "token.influence")
COMPRESSION = ("budget", "preference", "entropy", "variance", "score", "evicted_event", "evicted_stage", "held")


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    return write_sample(tmp_path_factory.mktemp("compressed"))


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    return write_sample(tmp_path_factory.mktemp("full"), compressed=False)


@pytest.mark.parametrize("name", [*(f"attention.{name}" for name in STATISTICS), *EXACT])
def test_statistics_are_the_samples_own(compressed: Sample, name: str) -> None:
    got = unpack(sample_data(compressed)["arrays"][name])
    np.testing.assert_array_equal(got, compressed.tensor(name).double().numpy())


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_are_the_samples_own_to_eleven_bits(compressed: Sample, name: str) -> None:
    got = unpack(sample_data(compressed)["arrays"][f"attention.{name}"])
    atol, rtol = HALF
    np.testing.assert_allclose(got, compressed.tensor(f"attention.{name}").double().numpy(), atol=atol, rtol=rtol)


def test_masses_of_every_event_are_the_samples_own(compressed: Sample) -> None:
    data = sample_data(compressed)
    assert data["massEvents"] == compressed.token_mass_events
    for event in data["massEvents"]:
        got = unpack(data["arrays"][f"mass.{event}"])
        np.testing.assert_array_equal(got, compressed.token_mass(event).double().numpy())


@pytest.mark.parametrize("name", COMPRESSION)
def test_compression_is_the_samples_own(compressed: Sample, name: str) -> None:
    got = unpack(sample_data(compressed)["arrays"][f"compression.{name}"])
    np.testing.assert_array_equal(got, compressed.tensor(f"compression.{name}").double().numpy())


def test_evictions_of_the_page_add_up_to_the_samples(compressed: Sample) -> None:
    evictions = unpack(sample_data(compressed)["arrays"]["evictions"])
    event, stage = (compressed.tensor(f"compression.evicted_{name}") for name in ("event", "stage"))
    for number in range(compressed.events):
        for code in (1, 2, 3):
            wanted = ((event == number) & (stage == code)).sum((1, 2)).double().numpy()
            np.testing.assert_array_equal(evictions[number, :, code - 1], wanted)


def test_thinned_events_carry_the_evictions_of_those_between(compressed: Sample) -> None:
    data = sample_data(compressed, Limits(events=3))
    assert data["events"]["number"] == [0, 4, 8]
    assert unpack(data["arrays"]["evictions"]).sum() == int((compressed.tensor("compression.evicted_event") >= 0).sum())
    assert any("3 of 9 events" in note for note in data["notes"])


def test_lists_of_events_are_the_samples_own(compressed: Sample) -> None:
    events = sample_data(compressed)["events"]
    assert events["number"] == list(range(compressed.events))
    for name in ("kind", "step", "queries", "observed_queries", "tokens"):
        assert events[name] == compressed.tensor(f"event.{name}").tolist()
    assert events["held_bytes"] == compressed.tensor("compression.bytes").tolist()


def test_full_cache_holds_all_of_its_bytes(full: Sample) -> None:
    events = sample_data(full)["events"]
    model = full.summary.model
    token = model.layers * model.kv_heads * 2 * model.head_dim * 4  # float32 keys and values
    assert bytes_per_token(full) == token
    assert events["held_bytes"] == events["full_bytes"] == [token * count for count in events["tokens"]]


def test_full_cache_has_no_compression_on_its_page(full: Sample) -> None:
    data = sample_data(full)
    assert data["policy"] is None
    assert not [name for name in data["arrays"] if name.startswith(("compression.", "cuts", "evictions"))]


@pytest.mark.parametrize("limit", [40_000, 60_000, 200_000])
def test_page_stays_within_its_limit_and_says_what_it_left_out(tmp_path: Path, limit: int) -> None:
    sample = write_sample(tmp_path, layers=4, kv_heads=4, query_heads=8, prompt=700, generated=12)
    data = sample_data(sample, Limits(sample_bytes=limit))
    assert sum(map(size_of, data["arrays"].values())) <= limit
    assert any("Masses per token are of" in note for note in data["notes"]) or len(data["massEvents"]) == sample.events
    for name, coding in data["codings"].items():
        mentioned = coding == "exact" or any("rounded" in note or "means" in note for note in data["notes"])
        assert mentioned, name


def test_when_tokens_were_evicted_is_never_rounded_and_thinned_last(tmp_path: Path) -> None:
    sample = write_sample(tmp_path, layers=4, kv_heads=4, query_heads=8, prompt=700, generated=12)
    data = sample_data(sample, Limits(sample_bytes=60_000))
    assert len(data["massEvents"]) < sample.events
    got = unpack(data["arrays"]["compression.evicted_event"])
    np.testing.assert_array_equal(got, sample.tensor("compression.evicted_event").double().numpy())


def test_samples_share_the_page(compressed: Sample) -> None:
    assert Limits().of_sample(1) == Limits().sample_bytes
    assert Limits(page_bytes=1000).of_sample(4) == 250


def test_long_texts_of_tokens_are_cut(tmp_path: Path) -> None:
    texts = ["a" * 5000, *(f"t{i}" for i in range(55))]
    tokens = sample_data(write_sample(tmp_path, tokens=texts))["tokens"]
    assert tokens[0] == "a" * 256 + "…"
    assert tokens[1:] == texts[1:]


@pytest.mark.parametrize("count", [1, 2, 3, 10, 50])
def test_spread_has_the_first_and_the_last(count: int) -> None:
    got = spread(range(40), count)
    assert len(got) == min(count, 40)
    assert got == sorted(set(got))
    assert got[0] == 0
    assert count == 1 or got[-1] == 39


def test_spread_prefers_what_it_must_have() -> None:
    assert {5, 6, 7} <= set(spread(range(100), 6, always=[5, 6, 7]))


def test_halving_orders_all_with_the_ends_first() -> None:
    order = halving(list(range(17)))
    assert sorted(order) == list(range(17))
    assert order[:3] == [0, 16, 8]


def test_what_json_cannot_say_becomes_text() -> None:
    assert plain({"a": float("nan"), 1: (float("inf"), np.float32(2.0)), "c": Path("x")}) == {
        "a": "nan",
        "1": ["inf", 2.0],
        "c": "x",
    }


def test_data_is_json(compressed: Sample, full: Sample) -> None:
    for sample in (compressed, full):
        assert len(as_json(sample_data(sample))) > 1000
