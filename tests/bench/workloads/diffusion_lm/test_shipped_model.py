"""The shipped model: small, right, and right with a cache."""

import json
from pathlib import Path

import pytest
import torch

from kvcompress.bench.workloads.diffusion_lm.block_cache import CacheSettings
from kvcompress.bench.workloads.diffusion_lm.contenders import evaluation_sums, sample_sums, settings_of_steps
from kvcompress.bench.workloads.diffusion_lm.location import MODEL_DIR, TRAINING_LOG_FILE, load_diffusion_model

_MOST_BYTES = 8 << 20


def test_the_model_is_small_and_has_its_log_and_card() -> None:
    assert sum(path.stat().st_size for path in MODEL_DIR.iterdir()) <= _MOST_BYTES
    last = json.loads(TRAINING_LOG_FILE.read_text(encoding="utf-8").splitlines()[-1])
    assert last["kind"] == "check"
    model, _ = load_diffusion_model()
    card = Path(MODEL_DIR / "README.md").read_text(encoding="utf-8")
    assert f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters" in card
    assert f"{last['step']} steps" in card


@pytest.mark.parametrize(
    "cache", [None, CacheSettings(), CacheSettings(keep=0.25)], ids=["uncached", "cached", "evicted"]
)
def test_it_adds(cache: CacheSettings | None) -> None:
    model, tokenizer = load_diffusion_model()
    sums = evaluation_sums(4, seed=7)  # not the ones that the published figures are of
    samples = sample_sums(model, sums, settings_of_steps(16), cache)
    assert float(samples.generated.eq(samples.answers).float().mean()) >= 0.98
    assert tokenizer.decode(samples.answers[0].tolist()).replace(" ", "").isdigit()


def test_scores_and_costs_are_what_they_say() -> None:
    model, _ = load_diffusion_model()
    sums = evaluation_sums(2, seed=7)
    samples = sample_sums(model, sums, settings_of_steps(8), CacheSettings(keep=0.25), batch=1)
    wrong = samples.answers.clone()
    wrong[0, :16] = 0
    scores = samples.scores(wrong)
    right = samples.generated.eq(samples.answers)
    assert scores["correct"] == int(right.all(1).sum())
    assert scores["digits_right"] == pytest.approx(float(right.float().mean()))
    assert scores["tokens_as_uncached"] == pytest.approx(float(samples.generated.eq(wrong).float().mean()))
    assert not torch.equal(samples.generated, wrong)
    cost = samples.cost()
    assert cost["full_bytes"] == 195 * 4 * 2 * 128 * 4  # tokens, layers, keys and values, width, float32
    assert cost["held_bytes"] == (round(0.25 * 187) + 8) * 4 * 2 * 128 * 4
