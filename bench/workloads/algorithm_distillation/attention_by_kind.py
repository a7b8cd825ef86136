"""Where an agent looks when it chooses: attention by what a token of the history is."""

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache, LlamaForCausalLM

from kvcompress.bench.workloads.algorithm_distillation.compressing_agent import attention_reader
from kvcompress.bench.workloads.algorithm_distillation.darkroom import CELLS, Ints
from kvcompress.bench.workloads.algorithm_distillation.vocabulary import (
    BOS_ID,
    FIRST_CELL,
    FIRST_REWARD,
    TOKENS_PER_STEP,
)
from kvcompress.engine.cache_argument import cache_argument

KINDS: Final = (
    "the beginning, <bos>",
    "cells reached with a reward",
    "other cells",
    "actions",
    "rewards got",
    "rewards not got",
)


def kinds_of(ids: Ints) -> Ints:
    """Return what each token is.

    Args:
        ids: int64 [rooms, tokens], histories as `encode` makes them.

    Returns:
        int64 [rooms, tokens], indices into `KINDS`.
    """
    is_cell = (ids >= FIRST_CELL) & (ids < FIRST_CELL + CELLS)
    after_reward = np.zeros_like(is_cell)
    after_reward[:, 1:] = ids[:, :-1] == FIRST_REWARD + 1
    return np.select(
        [ids == BOS_ID, is_cell & after_reward, is_cell, ids < FIRST_REWARD, ids == FIRST_REWARD + 1],
        [np.full_like(ids, place) for place in range(5)],
        default=5,
    ).astype(np.int64)


@torch.inference_mode()
def attention_shares(model: LlamaForCausalLM, ids: Ints) -> NDArray[np.float64]:
    """Return how the attention of the last token is shared out.

    Args:
        model: in evaluation mode, on the CPU.
        ids: int64 [rooms, tokens]; the last one is the cell in which the agent chooses.

    Returns:
        float64 [layers, 6]: shares by `KINDS`, the mean over rooms and heads; the last token's own share is left out,
        so that a row may sum to less than 1.
    """
    tokens = torch.from_numpy(ids)
    cache = DynamicCache()
    model(input_ids=tokens[:, :-1], **cache_argument(cache), use_cache=True, logits_to_keep=1)
    output = attention_reader(model)(
        input_ids=tokens[:, -1:], **cache_argument(cache), use_cache=True, output_attentions=True
    )
    kinds = torch.from_numpy(kinds_of(ids))[:, :-1]
    shares = []
    for attention in output.attentions:  # [rooms, heads, 1, tokens]
        mass = attention[:, :, 0, :-1].double().mean(dim=1)
        shares.append([float(mass.masked_fill(kinds != kind, 0.0).sum(dim=1).mean()) for kind in range(len(KINDS))])
    return np.array(shares)


def episode_ends(history_ids: Ints, episodes: int) -> list[int]:
    """Return for each whole episode the tokens up to the cell in which its last choice is made."""
    steps = (history_ids.shape[1] - 1) // TOKENS_PER_STEP // episodes
    return [2 + TOKENS_PER_STEP * (steps * (episode + 1) - 1) for episode in range(episodes)]
