"""The sampler: what it may change, how many masks a step fills, seeds, and what it refuses."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput

from kvcompress.bench.workloads.diffusion_lm.block_cache import CacheSettings
from kvcompress.bench.workloads.diffusion_lm.remasking import fill_most_confident
from kvcompress.bench.workloads.diffusion_lm.sampler import Sampled, Step, sample
from kvcompress.bench.workloads.diffusion_lm.sampling_settings import SamplingSettings

MASK = 1
SETTINGS = SamplingSettings(gen_length=12, steps=9, block_length=4)


class Kept:
    """A listener that keeps every step."""

    def __init__(self) -> None:
        self.before: list[tuple[int, int]] = []
        self.steps: list[Step] = []

    def before_step(self, step: int, block: int) -> None:
        self.before.append((step, block))

    def after_step(self, step: Step) -> None:
        self.steps.append(step)


def canvases(kept: Kept, prompts: Tensor, settings: SamplingSettings) -> list[Tensor]:
    """The canvas before the first step and after each."""
    first = torch.cat((prompts, torch.full((len(prompts), settings.gen_length), MASK)), dim=1)
    return [first, *(step.canvas for step in kept.steps)]


@pytest.mark.parametrize(
    "cache", [None, CacheSettings(), CacheSettings(keep=0.4)], ids=["uncached", "cached", "evicted"]
)
def test_steps_fill_masks_of_their_block_and_change_nothing_else(
    model: PreTrainedModel, prompts: Tensor, cache: CacheSettings | None
) -> None:
    kept = Kept()
    sampled = sample(model, prompts, SETTINGS, mask_id=MASK, cache=cache, listeners=[kept])
    states = canvases(kept, prompts, SETTINGS)
    assert kept.before == [(step.step, step.block) for step in kept.steps]
    for number, (before, after) in enumerate(pairwise(states)):
        block, step = divmod(number, SETTINGS.steps_per_block)
        start = prompts.shape[1] + block * SETTINGS.block_length
        changed = before != after
        assert bool((before[changed] == MASK).all())
        assert changed[:, start : start + SETTINGS.block_length].sum(1).tolist() == [SETTINGS.tokens_of_step(step)] * 3
        assert int(changed.sum()) == 3 * SETTINGS.tokens_of_step(step)
    assert torch.equal(sampled.ids, states[-1])
    assert torch.equal(sampled.ids[:, : prompts.shape[1]], prompts)
    assert not bool((sampled.generated == MASK).any())


@given(blocks=st.integers(1, 5), block_length=st.integers(1, 9), steps_per_block=st.integers(1, 9))
def test_steps_of_a_block_fill_all_of_it_evenly(blocks: int, block_length: int, steps_per_block: int) -> None:
    if steps_per_block > block_length:
        with pytest.raises(ValueError, match="at most gen_length"):
            SamplingSettings(
                gen_length=blocks * block_length, steps=blocks * steps_per_block, block_length=block_length
            )
        return
    settings = SamplingSettings(
        gen_length=blocks * block_length, steps=blocks * steps_per_block, block_length=block_length
    )
    counts = [settings.tokens_of_step(step) for step in range(settings.steps_per_block)]
    assert sum(counts) == block_length
    assert max(counts) - min(counts) <= 1
    assert counts == sorted(counts, reverse=True)


@given(seed=st.integers(0, 1000), count=st.integers(1, 3))
def test_the_most_confident_masks_are_filled(seed: int, count: int) -> None:
    generator = Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, 6, 7, generator=generator)
    ids = torch.randint(2, 7, (2, 6), generator=generator)
    ids[:, :3] = MASK
    filled, confidence = fill_most_confident(
        ids, logits.clone(), mask_id=MASK, count=count, temperature=0.0, generator=generator
    )
    allowed = logits.double()
    allowed[..., MASK] = -torch.inf
    for row in range(2):
        best = allowed[row].softmax(-1).max(-1)
        order = sorted(range(3), key=lambda place: -float(best.values[place]))[:count]
        for place in range(6):
            expected = best.indices[place] if place in order else ids[row, place]
            assert filled[row, place] == expected
        torch.testing.assert_close(confidence[row, :3].double(), best.values[:3], atol=1e-6, rtol=1e-5)
        assert bool(confidence[row, 3:].isnan().all())


def test_noise_draws_from_the_tempered_distribution() -> None:
    logits = torch.tensor([0.0, -torch.inf, 1.0, 2.0])
    rows, temperature = 20_000, 0.5
    ids, _ = fill_most_confident(
        torch.full((rows, 1), MASK),
        logits.expand(rows, 1, 4).clone(),
        mask_id=MASK,
        count=1,
        temperature=temperature,
        generator=Generator().manual_seed(0),
    )
    shares = torch.bincount(ids.flatten(), minlength=4).double() / rows
    expected = (logits.double() / temperature).softmax(-1)
    # Four standard deviations of a share of 20,000 draws.
    assert float((shares - expected).abs().max()) < 4 * (0.25 / rows) ** 0.5


def noisy(model: PreTrainedModel, prompts: Tensor, seed: int, cache: CacheSettings | None = None) -> Sampled:
    settings = SamplingSettings(gen_length=12, steps=6, block_length=4, temperature=2.0, seed=seed)
    return sample(model, prompts, settings, mask_id=MASK, cache=cache)


def test_a_seed_repeats_and_another_differs(model: PreTrainedModel, prompts: Tensor) -> None:
    assert torch.equal(noisy(model, prompts, 3).ids, noisy(model, prompts, 3).ids)
    assert not torch.equal(noisy(model, prompts, 3).ids, noisy(model, prompts, 4).ids)
    refreshed = CacheSettings(refresh_every=1)
    assert torch.equal(noisy(model, prompts, 3, refreshed).ids, noisy(model, prompts, 3).ids)


class Foreign(nn.Module):
    """A model of no library, with `scaled_dot_product_attention` of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(19, 8)
        self.out = nn.Linear(8, 19)

    def forward(self, input_ids: Tensor) -> MaskedLMOutput:
        hidden = self.embedding(input_ids)[:, None]
        attended = nn.functional.scaled_dot_product_attention(hidden, hidden, hidden)
        return MaskedLMOutput(logits=self.out((hidden + attended)[:, 0]))


def test_models_of_no_library_can_be_sampled_but_not_cached(prompts: Tensor) -> None:
    sampled = sample(Foreign().eval(), prompts, SETTINGS, mask_id=MASK)
    assert not bool((sampled.generated == MASK).any())
    with pytest.raises(ValueError, match="sample without a cache"):
        sample(Foreign().eval(), prompts, SETTINGS, mask_id=MASK, cache=CacheSettings())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gen_length": 12, "steps": 12, "block_length": 5}, "gen_length must be a multiple of block_length=5, got 12"),
        ({"gen_length": 12, "steps": 8, "block_length": 4}, "steps must be a multiple of the number of blocks, 3"),
        ({"gen_length": 12, "steps": 24, "block_length": 4}, "steps must be at most gen_length=12"),
        ({"gen_length": 0}, "gen_length must be at least 1"),
        ({"temperature": -1.0}, "temperature must be finite and at least 0"),
        ({"temperature": float("inf")}, "temperature must be finite and at least 0"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_settings_that_do_not_divide_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingSettings(**values)


@pytest.mark.parametrize(
    ("prompt", "mask", "message"),
    [
        ([2, 3, MASK], MASK, "masks must lie in the generated part only, got 1"),
        ([2, 3, 19], MASK, r"prompts must hold ids of the model's vocabulary, \[0, 19\)"),
        ([2, -1], MASK, "prompts must hold ids"),
        ([2, 3], 19, "mask_id must be in the model's vocabulary of 19 ids, got 19"),
        ([2] * 53, MASK, r"must fit into the model's 64 positions, got 53 \+ 12 = 65"),
        ([], MASK, "prompts must be ids"),
    ],
)
def test_prompts_that_cannot_be_continued_are_refused(
    model: PreTrainedModel, prompt: list[int], mask: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        sample(model, torch.tensor([prompt], dtype=torch.int64), SETTINGS, mask_id=mask)
