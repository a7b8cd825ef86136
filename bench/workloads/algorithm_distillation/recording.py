"""Captures what an agent attends to at the end of every episode of a history."""

from pathlib import Path

import torch
from transformers import DynamicCache, LlamaForCausalLM

from kvcompress.analysis.capture.recorder import Recorder
from kvcompress.bench.workloads.algorithm_distillation.adapter import ForeignAgent, ForeignModel
from kvcompress.bench.workloads.algorithm_distillation.attention_by_kind import episode_ends
from kvcompress.bench.workloads.algorithm_distillation.darkroom import EPISODE_STEPS
from kvcompress.bench.workloads.algorithm_distillation.histories import Histories
from kvcompress.bench.workloads.algorithm_distillation.vocabulary import build_tokenizer, encode
from kvcompress.engine.cache_argument import cache_argument


def history_ids(histories: Histories, room: int) -> torch.Tensor:
    """Return one room's history as token ids, int64 [1, tokens]."""
    rows = slice(room, room + 1)
    return torch.from_numpy(encode(histories.cells[rows], histories.actions[rows], histories.rewards[rows]))


@torch.inference_mode()
def record(model: LlamaForCausalLM, ids: torch.Tensor, episodes: int, folder: Path, *, force: bool) -> None:
    """Read a history again with a cache, and capture it.

    Every episode is two events: a block of all its tokens but the last choice's cell (and what was left of the episode
    before), and that cell alone, so that what the agent looks at when it chooses stands for itself.

    Args:
        model: in evaluation mode, on the CPU.
        ids: int64 [1, tokens].
        episodes: whole episodes in it.
        folder: where the sample goes.
        force: overwrite a sample that is there.

    Raises:
        SummaryError: there is one and `force` is not given, or the folder cannot be written.
    """
    cache = DynamicCache()
    with Recorder(model, folder, tokenizer=build_tokenizer(), name="algorithm distillation", force=force) as recorder:
        read = 0
        for episode, end in enumerate(episode_ends(ids.numpy(), episodes)):
            recorder.set_generation_context(step=(episode + 1) * EPISODE_STEPS - 1, block=episode)
            model(input_ids=ids[:, read : end - 1], **cache_argument(cache), use_cache=True, logits_to_keep=1)
            model(input_ids=ids[:, end - 1 : end], **cache_argument(cache), use_cache=True, logits_to_keep=1)
            read = end


@torch.inference_mode()
def record_foreign(foreign: ForeignModel, ids: torch.Tensor, episodes: int, folder: Path, *, force: bool) -> None:
    """Let a user's model read a history up to the end of each episode, and capture every pass; see `record`."""
    agent = ForeignAgent(foreign)
    name = f"adapter: {type(foreign.model).__name__}"
    with Recorder(foreign.model, folder, name=name, force=force) as recorder:
        for episode, end in enumerate(episode_ends(ids.numpy(), episodes)):
            recorder.set_generation_context(step=(episode + 1) * EPISODE_STEPS - 1, block=episode)
            agent.begin(1)
            agent.observe(ids[:, :end])
