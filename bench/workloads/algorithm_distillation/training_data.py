"""Batches of contexts: slices of learning histories of the training goals."""

from typing import Final

import numpy as np
import torch
from torch import Tensor

from kvcompress.bench.workloads.algorithm_distillation.darkroom import EPISODE_STEPS, split_goals
from kvcompress.bench.workloads.algorithm_distillation.histories import make_histories
from kvcompress.bench.workloads.algorithm_distillation.vocabulary import TOKENS_PER_STEP, encode

FROM_START_SHARE: Final = 0.6
_LONGEST_ANNEAL = 10


def make_batch(episodes: int, rows: int, *, key: str) -> Tensor:
    """Return contexts of equal length.

    A part of them begin where their history begins, the others anywhere in its first half, with an episode or within
    one, so that the agent also knows histories whose beginning it has not seen.

    Args:
        episodes: episodes' worth of steps in a context.
        rows: contexts.
        key: names the batch; the same key gives the same batch.

    Returns:
        Token ids, int64 [rows, 1 + 60 * episodes].
    """
    rng = np.random.default_rng(list(key.encode()))
    goals, _ = split_goals()
    late = rng.random(rows) >= FROM_START_SHARE
    offsets = np.where(late, rng.integers(episodes * EPISODE_STEPS + 1, size=rows), 0)
    longest = min(_LONGEST_ANNEAL, 2 * episodes)
    anneal = rng.integers(1, longest + 1, size=rows)
    histories = make_histories(rng.choice(goals, size=rows), 2 * episodes, anneal, rng)
    steps = offsets[:, None] + np.arange(episodes * EPISODE_STEPS)
    parts = (
        np.take_along_axis(part, steps, axis=1) for part in (histories.cells, histories.actions, histories.rewards)
    )
    return torch.from_numpy(encode(*parts))


def context_tokens(episodes: int) -> int:
    """Return the ids of a context of whole episodes, `<bos>` included."""
    return 1 + TOKENS_PER_STEP * EPISODE_STEPS * episodes
