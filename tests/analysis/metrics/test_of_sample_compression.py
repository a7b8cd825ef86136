"""What a compressed sample kept, against its own eviction record and raw attention."""

from pathlib import Path

import pytest
import torch

from kvcompress.analysis.capture.raw import RawRequest
from kvcompress.analysis.capture.settings import RecorderSettings
from kvcompress.analysis.metrics.of_sample import compression as of_compression
from kvcompress.analysis.metrics.of_sample import stages as of_stages
from kvcompress.analysis.metrics.of_sample.preserved import preserved, preserved_exactly
from kvcompress.analysis.summary.reader import Sample
from tests.analysis.samples import WINDOW, write_sample

PROMPT, DECODED, LAYERS, KV_HEADS, GROUP = 48, 8, 3, 2, 2


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    return write_sample(tmp_path_factory.mktemp("sample"), settings=RecorderSettings(raw=RawRequest()))


def held_after(sample: Sample, event: int) -> torch.Tensor:
    """Bool ``[L, K, T]``, token by token from the file's definition."""
    evicted = sample.tensor("compression.evicted_event")
    held = torch.zeros_like(evicted, dtype=torch.bool)
    for place in torch.cartesian_prod(*map(torch.arange, evicted.shape)).tolist():
        gone = int(evicted[tuple(place)])
        held[tuple(place)] = place[2] < PROMPT + event and (gone == -1 or gone > event)
    return held


def test_ratio_and_bytes(sample: Sample) -> None:
    ratio = of_compression.ratio_by_layer(sample)
    for event in (0, 3, DECODED):
        wanted = 1 - held_after(sample, event).sum((1, 2)) / (KV_HEADS * (PROMPT + event))
        assert ratio[event].tolist() == pytest.approx(wanted.tolist())
    # Keys and values of 16 float32 numbers each.
    assert of_compression.full_bytes(sample) == LAYERS * KV_HEADS * (PROMPT + DECODED) * 16 * 4 * 2
    section = of_compression.section(sample)
    assert section is not None
    assert int(section["bytes"]["held"]) == int(held_after(sample, DECODED).sum()) * 16 * 8
    assert float(section["ratio"]) == pytest.approx(section["bytes"]["removed_fraction"])


def test_evictions_and_budgets(sample: Sample) -> None:
    section = of_compression.section(sample)
    assert section is not None
    in_prefill = LAYERS * KV_HEADS * ((PROMPT - WINDOW) // 2)
    assert section["evictions_by_event"].tolist() == [in_prefill] + [LAYERS * KV_HEADS] * DECODED
    assert section["layers"]["eviction_frequency"].tolist() == [1.0] * LAYERS
    assert section["layers"]["budget_share"].tolist() == pytest.approx([1 / LAYERS] * LAYERS)
    assert section["layers"]["budget_utilisation"].tolist() == pytest.approx([1.0] * LAYERS)
    assert int(section["heads"]["evicted_prefill_cascade_decode"][..., 2].sum()) == LAYERS * KV_HEADS * DECODED


def test_policy_without_a_window_has_no_utilisation(sample: Sample, tmp_path: Path) -> None:
    other = write_sample(tmp_path)
    policy = {"name": "own", "cache_size": 10}
    other.summary = other.summary.model_copy(update={"policy": policy})
    assert torch.isnan(of_compression.utilisation(other)).all()


def test_preserved_mass_is_the_kept_share_of_the_mass_per_token(sample: Sample) -> None:
    for event in (0, 4):
        mass, held = sample.token_mass(event).double(), held_after(sample, event)
        for layer in range(LAYERS):
            for head in range(KV_HEADS):
                kept = sum(float(m) for m, k in zip(mass[layer], held[layer, head], strict=False) if k)
                wanted = kept / float(mass[layer].sum())
                assert float(preserved(sample, event).mass[layer, head]) == pytest.approx(wanted, abs=1e-6)


def test_preserved_exactly_averages_over_queries(sample: Sample) -> None:
    found, held = preserved_exactly(sample, 0), held_after(sample, 0)
    assert found is not None
    for layer in range(LAYERS):
        raw = sample.raw_attention(0, layer).double()
        for head in range(KV_HEADS):
            kept = held[layer, head, :PROMPT]
            masses, entropies, variances = [], [], []
            for rows in raw[head * GROUP : (head + 1) * GROUP]:
                for query, p in enumerate(rows):
                    p, here = p[: query + 1], kept[: query + 1]
                    masses.append(float(p[here].sum() / p.sum()))
                    if query:
                        terms, squares = -p * p.log(), (p - p.mean()).square()
                        entropies.append(float(terms[here].sum() / terms.sum()))
                        variances.append(float(squares[here].sum() / squares.sum()))
            for got, wanted in zip(found, (masses, entropies, variances), strict=True):
                assert float(got[layer, head]) == pytest.approx(sum(wanted) / len(wanted), abs=1e-6)


def test_raw_attention_is_used_where_it_is_there(sample: Sample, tmp_path: Path) -> None:
    section = of_compression.section(sample)
    assert section is not None
    assert [row["basis"] for row in section["information_preserved"]] == ["raw attention"]
    without = of_compression.section(write_sample(tmp_path))
    assert without is not None
    assert [row["basis"] for row in without["information_preserved"]] == ["mass per token"]
    for name in ("mass", "entropy", "variance"):
        assert 0 < float(without["information_preserved"][0][name]) < 1


def test_chosen_heads_leave_the_others_out(tmp_path: Path) -> None:
    sample = write_sample(tmp_path, settings=RecorderSettings(raw=RawRequest(heads=(1,))))
    sample.summary = sample.summary.model_copy(update={"raw_heads": (1,)})
    found = preserved_exactly(sample, 0)
    assert found is not None
    assert not torch.isnan(found.mass[:, 0]).any()
    assert torch.isnan(found.mass[:, 1]).all()  # heads 2 and 3 share the second kv head


def test_held_by_stage(sample: Sample) -> None:
    found = of_stages.held_by_stage(sample)
    assert found is not None
    for stage, events in enumerate(([0], [1, 2, 3], [4, 5, 6], [7, 8])):
        wanted = torch.stack([held_after(sample, event).sum(2).double().mean(1) for event in events]).mean(0)
        assert found[stage].tolist() == pytest.approx(wanted.tolist())


def test_uncompressed_run_has_no_section(tmp_path: Path) -> None:
    assert of_compression.section(write_sample(tmp_path, compressed=False)) is None
