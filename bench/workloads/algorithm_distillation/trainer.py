"""The training loop: one process, one thread, resumable at any checkpoint."""

import json
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from kvcompress.bench.testbed.checkpoint import Progress, cut_log, load_checkpoint, save_checkpoint
from kvcompress.bench.testbed.optimizers import build_optimizers, step_optimizers
from kvcompress.bench.testbed.settings import rate_factor
from kvcompress.bench.workloads.algorithm_distillation.architecture import build_model, plain_model
from kvcompress.bench.workloads.algorithm_distillation.cached_agent import CachedAgent
from kvcompress.bench.workloads.algorithm_distillation.darkroom import split_goals
from kvcompress.bench.workloads.algorithm_distillation.rollout import play, returns_by_episode
from kvcompress.bench.workloads.algorithm_distillation.settings import Settings, batch_episodes, stage_episodes
from kvcompress.bench.workloads.algorithm_distillation.training_data import context_tokens, make_batch

LOG_NAME = "training_log.jsonl"
_LOG_EVERY = 25
_CHECK_EVERY = 150
_CHECK_SEED = 1_000_000  # not one that the evaluation uses
_SAVE_SECONDS = 120.0
_PARTS = ("action", "reward", "cell")


def batch_losses(model: LlamaForCausalLM, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean losses on actions, rewards and next cells.

    Args:
        model: the model.
        ids: contexts, int64 [rows, 1 + 3 * steps].

    Returns:
        Three float32 scalars.
    """
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, 1:-1]
        logits = model.lm_head(hidden).float()
    losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 2:].flatten(), reduction="none").view(len(ids), -1)
    # After `<bos>` and the first cell, which nothing foretells: action, reward, cell, action, ...
    action, reward, cell = (losses[:, place::3].mean() for place in range(3))
    return action, reward, cell


class Trainer:
    """A run: steps, logging, checkpoints.

    Attributes:
        settings: what the run is fixed by.
        folder: where checkpoint and log go.
        model: the model in training.
        progress: how far it has come.
    """

    def __init__(self, settings: Settings, folder: Path, *, resume: bool) -> None:
        """Build the model and the optimizers, or take them from the folder's checkpoint."""
        self.settings = settings
        self.folder = folder
        self.model = build_model(settings.seed)
        self.optimizers = build_optimizers(self.model, settings.schedule)
        self.progress = load_checkpoint(folder, self.model, self.optimizers) if resume else Progress()
        cut_log(folder / LOG_NAME, self.progress.step)
        self._losses: list[list[float]] = []

    def run(self, minutes: float) -> bool:
        """Train to the last step, or until the time is over.

        Args:
            minutes: wall time allowed to this call.

        Returns:
            Whether the last step was reached.
        """
        started = saved = last = time.monotonic()
        steps = self.settings.steps
        while self.progress.step < steps:
            self._step()
            now = time.monotonic()
            self.progress.seconds += now - last
            last = now
            if self.progress.step % _LOG_EVERY == 0:
                self._log_training()
            if self.progress.step % _CHECK_EVERY == 0 or self.progress.step == steps:
                self._log_check()
            stop = now - started > minutes * 60
            if stop or now - saved > _SAVE_SECONDS or self.progress.step == steps:
                saved = now
                save_checkpoint(self.folder, self.model, self.optimizers, self.progress)
            if stop:
                break
        return self.progress.step >= steps

    def _step(self) -> None:
        settings, step = self.settings, self.progress.step
        episodes = batch_episodes(settings, step)
        rows = max(1, settings.tokens_per_step // context_tokens(episodes))
        ids = make_batch(episodes, rows, key=f"{settings.seed}:{episodes}:{step}")
        action, reward, cell = batch_losses(self.model, ids)
        torch.autograd.backward(action + settings.reward_weight * reward + settings.cell_weight * cell)
        nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip)
        step_optimizers(self.optimizers, rate_factor(settings.schedule, step))
        self.progress.step += 1
        self.progress.tokens += ids.numel()
        self._losses.append([part.item() for part in (action, reward, cell)])

    def _log_training(self) -> None:
        """Log the mean losses since the last time."""
        means = np.mean(self._losses, axis=0)
        losses = {part: round(float(mean), 4) for part, mean in zip(_PARTS, means, strict=True)}
        self._write({"kind": "training", "losses": losses})
        self._losses.clear()

    def _log_check(self) -> None:
        """Log the return of each episode on the held-out goals, with the stage's context."""
        _, held_out = split_goals()
        episodes = stage_episodes(self.settings, self.progress.step - 1)
        goals = np.repeat(held_out, self.settings.check_rooms)
        agent = CachedAgent(plain_model(self.model))
        returns = returns_by_episode(play(agent, goals, episodes, seed=_CHECK_SEED).played())
        curve = [round(float(mean), 2) for mean in returns.mean(axis=0)]
        self._write({"kind": "check", "rooms": len(goals), "return_by_episode": curve})

    def _write(self, record: dict[str, object]) -> None:
        counters = {
            "step": self.progress.step,
            "tokens": self.progress.tokens,
            "seconds": round(self.progress.seconds, 1),
            "episodes": stage_episodes(self.settings, self.progress.step - 1),
        }
        with (self.folder / LOG_NAME).open("a", encoding="utf-8") as log:
            log.write(json.dumps({**counters, **record}) + "\n")
