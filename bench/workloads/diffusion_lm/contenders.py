"""Ways to sample that are set against each other, and how right their samples are."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor, nn

from kvcompress.analysis.intervals import wilson_interval
from kvcompress.bench.workloads.diffusion_lm.block_cache import CacheSettings
from kvcompress.bench.workloads.diffusion_lm.sampler import Sampled, sample
from kvcompress.bench.workloads.diffusion_lm.sampling_settings import SamplingSettings
from kvcompress.bench.workloads.diffusion_lm.sums import DIGITS, Sums, make_sums
from kvcompress.bench.workloads.diffusion_lm.vocabulary import MASK_ID

UNCACHED: Final = "uncached"
CACHES: Final[Mapping[str, CacheSettings | None]] = MappingProxyType(
    {
        UNCACHED: None,
        "cached": CacheSettings(),
        "cached, 25 % kept": CacheSettings(keep=0.25),
        "cached, 10 % kept": CacheSettings(keep=0.1),
        "cached, 5 % kept": CacheSettings(keep=0.05),
        "cached, 2 % kept": CacheSettings(keep=0.02),
        "refreshed every 4 steps": CacheSettings(refresh_every=4),
    }
)
EVALUATION_SEED: Final = 1 << 41  # far from the seeds that training uses
BLOCK_LENGTH: Final = 8


def settings_of_steps(steps: int) -> SamplingSettings:
    """Return the sampler's settings for sums: 64 digits in blocks of 8."""
    return SamplingSettings(gen_length=DIGITS, steps=steps, block_length=BLOCK_LENGTH)


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Samples of one contender on a set of sums.

    Attributes:
        generated: ids, int64 [N, 64].
        answers: the true ids, int64 [N, 64].
        passes: calls of the model for each sum.
        tokens_computed: tokens computed for each sum.
        cached: what the cache held in the last batch and its number of rows; None without a cache.
    """

    generated: Tensor
    answers: Tensor
    passes: int
    tokens_computed: int
    cached: tuple[Sampled, int] | None

    def scores(self, reference: Tensor) -> dict[str, Any]:
        """Return how many sums and digits are right, and how far the text is another sampler's.

        Args:
            reference: ids of the uncached sampler, int64 [N, 64].
        """
        right = self.generated.eq(self.answers)
        sums, correct = right.shape[0], int(right.all(dim=1).sum())
        low, high = wilson_interval(correct, sums)
        same = self.generated.eq(reference)
        return {
            "sums": sums,
            "correct": correct,
            "exact_match": correct / sums,
            "interval_95": [round(low, 4), round(high, 4)],
            "digits_right": float(right.float().mean()),
            "tokens_as_uncached": float(same.float().mean()),
            "texts_as_uncached": float(same.all(dim=1).float().mean()),
        }

    def cost(self) -> dict[str, Any]:
        """Return what a sum cost: passes, tokens computed, and bytes of keys and values held between passes."""
        cost: dict[str, Any] = {"passes": self.passes, "tokens_computed": self.tokens_computed}
        use, rows = (None, 1) if self.cached is None else (self.cached[0].cache, self.cached[1])
        cost["held_bytes"] = None if use is None else use.held_bytes // rows
        cost["full_bytes"] = None if use is None else use.full_bytes // rows
        return cost


def sample_sums(
    model: nn.Module, sums: Sums, settings: SamplingSettings, cache: CacheSettings | None, *, batch: int = 25
) -> Samples:
    """Sample the answers of sums, a batch at a time.

    Args:
        model: the model, in evaluation mode.
        sums: the sums.
        settings: the sampler's.
        cache: the cache's; None: none.
        batch: rows of a batch.

    Returns:
        The samples.
    """
    runs = [sample(model, part, settings, mask_id=MASK_ID, cache=cache) for part in sums.prompts.split(batch)]
    last = runs[-1]
    return Samples(
        generated=torch.cat([run.generated for run in runs]),
        answers=sums.answers,
        passes=last.passes,
        tokens_computed=last.tokens_computed,
        cached=None if cache is None else (last, last.ids.shape[0]),
    )


def evaluation_sums(rows: int, seed: int = 0) -> Sums:
    """Return sums that training has not seen: no zeros were put in, a quarter of the places pass carries on."""
    return make_sums(rows, seed=EVALUATION_SEED + seed)
