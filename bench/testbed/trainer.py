"""The training loop, run by each of a few data-parallel processes."""

import json
import time
from collections import defaultdict
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from kvcompress.bench.testbed.accuracy import count_correct
from kvcompress.bench.testbed.architecture import build_model
from kvcompress.bench.testbed.checkpoint import Progress, cut_log, load_checkpoint, save_checkpoint
from kvcompress.bench.testbed.optimizers import build_optimizers, step_optimizers
from kvcompress.bench.testbed.settings import Settings, batch_length, rate_factor, stage_length, task_mix
from kvcompress.bench.testbed.tasks import TASKS
from kvcompress.bench.testbed.training_data import Batch, make_batch

LOG_NAME = "training_log.jsonl"
_LOG_EVERY = 25
_CHECK_EVERY = 500
_CHECK_SEED = 1_000_000  # not a set that the final evaluation uses
_SAVE_SECONDS = 180.0


def batch_loss(model: LlamaForCausalLM, batch: Batch, filler_weight: float) -> tuple[Tensor, Tensor]:
    """Return the loss of a batch and which answer ids were predicted.

    Args:
        model: the model.
        batch: ids and weights [B, S].
        filler_weight: weight of the mean loss on the filler against the mean loss on the answers.

    Returns:
        Loss, float32 []; and int8 [B, S]: 1 for an answer id predicted, 0 for one that was not, -1 else.
    """
    with torch.autocast("cpu", torch.bfloat16):
        # The mask of ones keeps transformers from taking position gaps for borders of packed sequences.
        hidden = model.model(
            input_ids=batch.input_ids,
            position_ids=batch.positions,
            attention_mask=torch.ones_like(batch.input_ids),
            use_cache=False,
        ).last_hidden_state[:, :-1]
        answers, filler = batch.answer_weights[:, 1:], batch.filler_weights[:, 1:]
        used = (answers + filler) > 0
        logits = model.lm_head(hidden[used]).float()  # [N, V]
    targets = batch.input_ids[:, 1:][used]
    losses = F.cross_entropy(logits, targets, reduction="none")
    answer_loss = (losses * answers[used]).sum() / answers.sum().clamp_min(1.0)
    filler_loss = (losses * filler[used]).sum() / filler.sum().clamp_min(1.0)
    outcome = torch.full(batch.input_ids.shape, -1, dtype=torch.int8)
    hits = logits.argmax(dim=-1).eq(targets).to(torch.int8)
    outcome[:, 1:][used] = torch.where(answers[used] > 0, hits, -1).to(torch.int8)
    return answer_loss + filler_weight * filler_loss, outcome


def _average_gradients(parameters: list[nn.Parameter]) -> None:
    """Replace each process's gradients by their mean, in one message."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.view(-1) for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


class Trainer:
    """One process's part of a run: steps, logging, checkpoints.

    All processes hold the same weights; the first one logs and saves.
    """

    def __init__(self, settings: Settings, folder: Path, *, resume: bool) -> None:
        """Build the model and the optimizers, or take them from the folder's checkpoint."""
        self.settings = settings
        self.folder = folder
        self.rank = dist.get_rank()
        self.model = build_model(settings.seed)
        self.parameters = list(self.model.parameters())
        self.optimizers = build_optimizers(self.model, settings)
        self.progress = load_checkpoint(folder, self.model, self.optimizers) if resume else Progress()
        if self.rank == 0:
            cut_log(folder / LOG_NAME, self.progress.step)
        self._hits: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        self._losses: list[float] = []

    def run(self, minutes: float) -> bool:
        """Train to the last step, or until the time is over.

        Args:
            minutes: wall time allowed to this call.

        Returns:
            Whether the last step was reached.
        """
        started = saved = last = time.monotonic()
        while self.progress.step < self.settings.steps:
            self._step()
            now = time.monotonic()
            self.progress.seconds += now - last
            last = now
            if self.progress.step % _LOG_EVERY == 0:
                self._log_training()
            if self.progress.step % _CHECK_EVERY == 0 or self.progress.step == self.settings.steps:
                self._log_check()
            # The first process's clock decides, so that all stop at the same step.
            clock = torch.tensor([now - started > minutes * 60, now - saved > _SAVE_SECONDS], dtype=torch.int8)
            dist.broadcast(clock, 0)
            stop, save = (bool(flag) for flag in clock.tolist())
            if stop or save or self.progress.step == self.settings.steps:
                saved = now
                if self.rank == 0:
                    save_checkpoint(self.folder, self.model, self.optimizers, self.progress)
            if stop:
                break
        return self.progress.step >= self.settings.steps

    def _step(self) -> None:
        settings, step = self.settings, self.progress.step
        length = batch_length(settings, step)
        rows = settings.tokens_per_process // length
        key = f"{settings.seed}:{length}:{step}:{self.rank}"
        batch = make_batch(task_mix(settings, step), length, rows, key=key)
        loss, outcome = batch_loss(self.model, batch, settings.filler_weight)
        loss.backward()
        _average_gradients(self.parameters)
        nn.utils.clip_grad_norm_(self.parameters, settings.clip)
        step_optimizers(self.optimizers, rate_factor(settings, step))
        self.progress.step += 1
        self.progress.tokens += settings.tokens_per_process * settings.processes
        self._losses.append(loss.item())
        for task, row in zip(batch.tasks, outcome, strict=True):
            self._hits[task][0] += int((row == 1).sum())
            self._hits[task][1] += int((row >= 0).sum())

    def _log_training(self) -> None:
        """Log the mean loss and the share of answer ids predicted per task, in this process's batches."""
        shares = {task: round(hits / seen, 4) for task, (hits, seen) in sorted(self._hits.items()) if seen}
        self._write(
            {
                "kind": "training",
                "loss": round(sum(self._losses) / len(self._losses), 4),
                "rate_factor": round(rate_factor(self.settings, self.progress.step - 1), 4),
                "answer_token_accuracy": shares,
            }
        )
        self._hits.clear()
        self._losses.clear()

    def _log_check(self) -> None:
        """Log exact match per task at the stage's length; the processes share the tasks among them."""
        length, samples = stage_length(self.settings, self.progress.step - 1), self.settings.check_samples
        correct = torch.zeros(len(TASKS), dtype=torch.int64)
        self.model.eval()
        for place, task in enumerate(TASKS):
            if place % self.settings.processes == self.rank:
                correct[place] = count_correct(self.model, task, length, samples=samples, seed=_CHECK_SEED)
        self.model.train()
        dist.all_reduce(correct)
        accuracy = {task: hits / samples for task, hits in zip(TASKS, correct.tolist(), strict=True)}
        self._write({"kind": "check", "length": length, "samples": samples, "exact_match": accuracy})

    def _write(self, record: dict[str, object]) -> None:
        if self.rank != 0:
            return
        counters = {
            "step": self.progress.step,
            "tokens": self.progress.tokens,
            "seconds": round(self.progress.seconds, 1),
            "stage": stage_length(self.settings, self.progress.step - 1),
        }
        with (self.folder / LOG_NAME).open("a", encoding="utf-8") as log:
            log.write(json.dumps({**counters, **record}) + "\n")
