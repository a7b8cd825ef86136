"""The lowest scores kept, and evictions counted, against plain loops."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from kvcompress import Cake, CompressedCache, Policy, SnapKV
from kvcompress.analysis.capture.recorder import Recorder
from kvcompress.analysis.report.cuts import count_evictions, lowest_kept
from kvcompress.analysis.report.data import sample_data
from kvcompress.analysis.report.encoding import Array
from kvcompress.analysis.summary.reader import read_sample
from kvcompress.engine.cache_argument import cache_argument
from tests.analysis.report.unpacking import unpack
from tests.kvcompress.engine.architectures import shared_model
from tests.kvcompress.engine.helpers import prompt


def made_up(seed: int, layers: int = 3, heads: int = 2, tokens: int = 20) -> tuple[Array, Array, Array]:
    """Return random scores, events of eviction in -1..3 and stages: prefills are events 0 and 1."""
    generator = np.random.default_rng(seed)
    shape = (layers, heads, tokens)
    score = generator.random(shape)
    score[generator.random(shape) < 0.2] = np.nan
    event = generator.integers(-1, 4, shape)
    stage = np.where(event < 0, 0, np.where(event < 2, generator.integers(1, 3, shape), 3))
    return score, event, stage


def cut_by_loops(score: Array, event: Array, stage: Array, number: int, tokens: int, sinks: int) -> float:
    """Return the lowest score of one head that the cascade left."""
    kept, evicted = [], 0
    for token in range(sinks, tokens):
        if event[token] == number and stage[token] in (1, 2):
            evicted += 1
        elif (event[token] == -1 or event[token] >= number) and math.isfinite(score[token]):
            kept.append(score[token])
    return min(kept) if kept and evicted else math.nan


def test_cut_is_the_lowest_score_that_stays() -> None:
    for seed in range(20):
        score, event, stage = made_up(seed)
        got = lowest_kept(score, event, stage, event=1, tokens=17, sink_tokens=2)
        for layer in range(3):
            for head in range(2):
                wanted = cut_by_loops(score[layer, head], event[layer, head], stage[layer, head], 1, 17, 2)
                np.testing.assert_equal(got[layer, head, 1], wanted)


def test_own_prefill_is_cut_lower_than_the_cascade() -> None:
    score = np.array([[[0.1, 0.2, 0.3, 0.4]]])
    event, stage = np.array([[[0, 0, -1, -1]]]), np.array([[[1, 2, 0, 0]]])
    np.testing.assert_array_equal(lowest_kept(score, event, stage, event=0, tokens=4, sink_tokens=0), [[[0.2, 0.3]]])


def test_sinks_do_not_lower_the_cut() -> None:
    score = np.array([[[0.0, 0.2, 0.3]]])
    event, stage = np.array([[[-1, 0, -1]]]), np.array([[[0, 1, 0]]])
    assert lowest_kept(score, event, stage, event=0, tokens=3, sink_tokens=1)[0, 0, 1] == 0.3
    assert lowest_kept(score, event, stage, event=0, tokens=3, sink_tokens=0)[0, 0, 1] == 0.0


def test_head_that_evicts_nothing_has_no_cut() -> None:
    score, event = np.ones((1, 1, 4)), np.full((1, 1, 4), -1)
    assert np.isnan(lowest_kept(score, event, np.zeros((1, 1, 4), int), event=0, tokens=4, sink_tokens=0)).all()


def test_evictions_are_counted_by_event_layer_and_stage() -> None:
    _, event, stage = made_up(3)
    got = count_evictions(event, stage, 4)
    for number in range(4):
        for layer in range(3):
            for code in (1, 2, 3):
                wanted = int(((event[layer] == number) & (stage[layer] == code)).sum())
                assert got[number, layer, code - 1] == wanted
    assert int(torch.from_numpy(got).sum()) == int((event >= 0).sum())


@pytest.mark.parametrize("policy", [SnapKV(cache_size=20, window_size=4), Cake(cache_size=20, window_size=4)])
@pytest.mark.parametrize("blocks", [1, 3])
def test_cut_separates_what_the_engine_kept_from_what_it_evicted(tmp_path: Path, policy: Policy, blocks: int) -> None:
    model, ids = shared_model("llama"), prompt(90)
    cache = CompressedCache(model, policy)
    with Recorder(model, tmp_path), torch.inference_mode():
        for block in ids.chunk(blocks, dim=1):
            model(block, **cache_argument(cache))
    sample = read_sample(tmp_path)
    data = sample_data(sample)
    last, cuts = data["lastPrefill"], unpack(data["arrays"]["cuts"])
    assert last == blocks - 1
    score = sample.tensor("compression.score").double().numpy()
    event, stage = (sample.tensor(f"compression.evicted_{name}").numpy() for name in ("event", "stage"))
    scored = np.isfinite(score)
    for code in (1, 2):
        evicted = scored & (event == last) & (stage == code)
        kept = scored & ((event < 0) | (event > last) | ((event == last) & (stage > code)))
        cut = np.broadcast_to(cuts[..., code - 1, None], score.shape)
        assert evicted.any() or code == 2
        assert (score[evicted] <= cut[evicted]).all()
        assert (score[kept] >= cut[kept])[np.isfinite(cut[kept])].all()
