"""The training loop of the diffusion model, in one process with one thread."""

import json
import time
from pathlib import Path

import torch
from torch import Generator, Tensor, nn
from transformers import ModernBertForMaskedLM

from kvcompress.bench.testbed.checkpoint import Progress, cut_log, load_checkpoint, save_checkpoint
from kvcompress.bench.testbed.optimizers import build_optimizers, step_optimizers
from kvcompress.bench.workloads.diffusion_lm.architecture import build_model
from kvcompress.bench.workloads.diffusion_lm.masking import diffusion_loss, mask_answers
from kvcompress.bench.workloads.diffusion_lm.settings import Settings, hidden_block, rate_factor, zeros_of_step
from kvcompress.bench.workloads.diffusion_lm.sums import DIGITS, make_sums
from kvcompress.bench.workloads.diffusion_lm.vocabulary import MASK_ID

LOG_NAME = "training_log.jsonl"
_LOG_EVERY = 25
_CHECK_EVERY = 200
_SAVE_EVERY = 100
_CHECK_SEED = 1 << 40  # far from the seeds of training and of the evaluation


@torch.inference_mode()
def one_pass_accuracy(model: ModernBertForMaskedLM, *, sums: int, seed: int) -> float:
    """Return the share of ids that one pass over wholly masked answers predicts: the hardest step of sampling.

    Args:
        model: the model; put into evaluation mode and back.
        sums: number of sums.
        seed: which sums.
    """
    batch = make_sums(sums, seed=seed)
    model.eval()
    canvas = torch.cat((batch.prompts, torch.full_like(batch.answers, MASK_ID)), dim=1)
    predicted = model(input_ids=canvas).logits[:, -DIGITS:].argmax(dim=-1)
    model.train()
    return float(predicted.eq(batch.answers).float().mean())


class Trainer:
    """A run: steps, logging, checkpoints.

    A step's batch is fixed by (seed, step), so a resumed run sees what an uninterrupted one would have.
    """

    def __init__(self, settings: Settings, folder: Path, *, resume: bool) -> None:
        """Build the model and the optimizers, or take them from the folder's checkpoint."""
        self.settings = settings
        self.folder = folder
        self.model = build_model(settings.seed)
        self.optimizers = build_optimizers(self.model, settings)
        self.progress = load_checkpoint(folder, self.model, self.optimizers) if resume else Progress()
        cut_log(self.folder / LOG_NAME, self.progress.step)
        self._losses: list[float] = []
        self._outcomes: list[Tensor] = []

    def run(self, minutes: float) -> bool:
        """Train to the last step, or until the time is over.

        Args:
            minutes: wall time allowed to this call.

        Returns:
            Whether the last step was reached.
        """
        started = last = time.monotonic()
        while self.progress.step < self.settings.steps:
            self._step()
            now = time.monotonic()
            self.progress.seconds += now - last
            last = now
            finished, over = self.progress.step == self.settings.steps, now - started > minutes * 60
            if self.progress.step % _LOG_EVERY == 0 or finished:
                self._log_training()
            if self.progress.step % _CHECK_EVERY == 0 or finished:
                self._log_check()
            if self.progress.step % _SAVE_EVERY == 0 or finished or over:
                save_checkpoint(self.folder, self.model, self.optimizers, self.progress)
            if over:
                break
        return self.progress.step >= self.settings.steps

    def _step(self) -> None:
        settings, step = self.settings, self.progress.step
        seed = (settings.seed << 32) + step
        sums = make_sums(settings.rows, seed=seed, zeros=zeros_of_step(settings, step))
        masked = mask_answers(sums, Generator().manual_seed(seed))
        loss, outcome = diffusion_loss(self.model, masked, sums.answers, hidden_block(settings, step))
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip)
        step_optimizers(self.optimizers, rate_factor(settings, step))
        self.progress.step += 1
        self.progress.tokens += masked.input_ids.numel()
        self._losses.append(loss.item())
        self._outcomes.append(outcome)

    def _log_training(self) -> None:
        """Log the mean loss, and the share of masked digits predicted."""
        outcomes = torch.cat(self._outcomes)
        share = float((outcomes == 1).sum() / (outcomes >= 0).sum().clamp_min(1))
        loss = sum(self._losses) / len(self._losses)
        self._write({"kind": "training", "loss": round(loss, 4), "predicted": round(share, 4)})
        self._losses.clear()
        self._outcomes.clear()

    def _log_check(self) -> None:
        accuracy = one_pass_accuracy(self.model, sums=self.settings.check_sums, seed=_CHECK_SEED)
        self._write({"kind": "check", "one_pass_accuracy": round(accuracy, 4)})

    def _write(self, record: dict[str, object]) -> None:
        counters = {
            "step": self.progress.step,
            "tokens": self.progress.tokens,
            "seconds": round(self.progress.seconds, 1),
            "zeros": round(zeros_of_step(self.settings, self.progress.step - 1), 3),
        }
        with (self.folder / LOG_NAME).open("a", encoding="utf-8") as log:
            log.write(json.dumps({**counters, **record}) + "\n")
