"""Runs cells on one model: every way of running a sweep has one of these in each process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from functools import lru_cache, partial
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from kvcompress.analysis.intervals import score_interval
from kvcompress.bench.results_file import environment
from kvcompress.bench.sweep.closeness import FullAnswers, closeness, full_answers
from kvcompress.bench.sweep.grid import make_cache, samples_of
from kvcompress.bench.sweep.identity import model_digest
from kvcompress.bench.sweep.pace import pace
from kvcompress.bench.sweep.policy_text import parse_policy
from kvcompress.bench.sweep.prompt_memory import PROMPT_BYTES, PromptMemory
from kvcompress.bench.sweep.row import Cell, Row
from kvcompress.bench.tasks.registry import make_task
from kvcompress.bench.tasks.run import Outcome, run_samples
from kvcompress.bench.tasks.sample import Sample
from kvcompress.engine.layer import CompressedLayer
from kvcompress.engine.report import layer_report
from kvcompress.errors import CompressionError
from kvcompress.policies.base import Policy
from kvcompress.policies.full import Full

Load = Callable[[], tuple[PreTrainedModel, Any]]  # gives the model and its tokenizer; must survive pickling


class Runner:
    """A loaded model that measures cells.

    Args:
        load: loads the model and its tokenizer.
        batch_size: most samples at a time, at least 1.
        prompt_bytes: room for prompts that are kept for further cells; see
            :class:`~kvcompress.bench.sweep.prompt_memory.PromptMemory`.

    Raises:
        ValueError: a batch size below 1.
    """

    def __init__(self, load: Load, *, batch_size: int, prompt_bytes: int = PROMPT_BYTES) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}; 1 runs every sample alone")
        with explained("the model"):
            self.model, self.tokenizer = load()
        self.batch_size = batch_size
        self.digest = model_digest(self.model)
        self.made_in = environment()
        self.prompts = PromptMemory(self.model, prompt_bytes)
        # The cells of one task, length and mode come one after the other.
        self._samples = lru_cache(maxsize=1)(self._make_samples)
        self._answers = lru_cache(maxsize=1)(self._make_answers)

    def run(self, cell: Cell, advance: Callable[[int], object] = lambda samples: None) -> Row:
        """Measures a cell.

        Args:
            cell: which one; it must be of this model.
            advance: is told after each batch how many samples have run.

        Raises:
            ValueError: the cell is of another model, does not fit into the memory, or is refused by the engine.
        """
        with explained(f"the cell {cell}"):
            return self._run(cell, advance)

    def _run(self, cell: Cell, advance: Callable[[int], object]) -> Row:
        if cell.model_digest != self.digest:
            raise ValueError(
                f"the cell is of model {cell.model!r} with digest {cell.model_digest}, and the model loaded here has "
                f"{self.digest}. Every process must load the same weights."
            )
        started = time.perf_counter()
        torch.manual_seed(cell.seed)
        policy = parse_policy(cell.policy).policy(cache_size=cell.cache_size, ratio=cell.ratio, seed=cell.seed)
        samples = self._samples(cell.task, cell.length, cell.n, cell.seed)
        self.prompts.enter((cell.task, cell.task_parameters, cell.length, cell.n, cell.seed, cell.mode))
        outcomes, layer_tokens = self._answer(policy, samples, cell.mode, advance)
        scores = tuple(outcome.score for outcome in outcomes)
        answers = self._answers(cell.task, cell.length, cell.n, cell.seed, cell.fidelity_n, cell.mode)
        kept = partial(self.prompts.make_cache, policy)
        close = closeness(self.model, kept, answers, cell.mode, self.prompts.converse)
        prompt = [*samples[0].context_ids, *samples[0].turns[0].question_ids]
        speed = pace(self.model, lambda: make_cache(self.model, policy), prompt)
        return Row(
            cell=cell,
            score=sum(scores) / len(scores),
            ci95=score_interval(scores),
            scores=scores,
            kv_bytes=sum(outcome.kv_bytes for outcome in outcomes) / len(outcomes),
            layer_tokens=layer_tokens,
            kl=close.kl,
            kl_ci95=close.kl_ci95,
            top1=close.top1,
            top1_ci95=close.top1_ci95,
            tokens_per_second=speed.tokens_per_second,
            tokens_per_second_ci95=speed.tokens_per_second_ci95,
            ttft=speed.ttft,
            peak_bytes=speed.peak_bytes,
            seconds=time.perf_counter() - started,
            batch_size=self.batch_size,
            **self._place(),
        )

    def _answer(
        self, policy: Policy, samples: Sequence[Sample], mode: str, advance: Callable[[int], object]
    ) -> tuple[list[Outcome], tuple[float, ...]]:
        """Outcomes, and the tokens that each layer held in the end, mean over the samples."""
        outcomes: list[Outcome] = []
        totals: list[float] = []
        caches: list[Cache] = []

        def kept() -> Cache:
            caches.append(self.prompts.make_cache(policy))
            return caches[-1]

        for start in range(0, len(samples), self.batch_size):
            batch = samples[start : start + self.batch_size]
            outcomes += run_samples(
                self.model,
                self.tokenizer,
                kept,
                batch,
                mode,
                batch_size=self.batch_size,
                converse=self.prompts.converse,
            )
            weight = len(batch) / len(caches)  # more than one where the samples could not run together
            for cache in caches:
                held = _tokens_held(cache)
                totals = totals or [0.0] * len(held)
                totals = [total + weight * tokens for total, tokens in zip(totals, held, strict=True)]
            caches.clear()
            advance(len(batch))
        return outcomes, tuple(total / len(samples) for total in totals)

    def _make_samples(self, task: str, length: int, n: int, seed: int) -> list[Sample]:
        return samples_of(make_task(task), self.tokenizer, length, n, seed)

    def _make_answers(self, task: str, length: int, n: int, seed: int, fidelity_n: int, mode: str) -> list[FullAnswers]:
        samples = self._samples(task, length, n, seed)[:fidelity_n]
        return full_answers(self.model, lambda: make_cache(self.model, Full()), samples, mode, self.batch_size)

    def _place(self) -> dict[str, Any]:
        """Where and with what the row was made."""
        made_in = self.made_in
        on_gpu = self.model.device.type == "cuda"
        return {
            "versions": {name: made_in[name] for name in ("torch", "transformers", "triton")},
            "commit": made_in["commit"],
            "dirty": made_in["dirty"],
            "cpu": made_in["cpu"],
            "accelerator": made_in["device"] if on_gpu else None,
            "time_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Makes an error of the engine or of the memory one that says what of the sweep it stopped.

    Raises:
        ValueError: ``what`` does not fit into the memory, or cannot run.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise _too_large(what) from error
    except RuntimeError as error:
        if "can't allocate memory" in str(error):  # torch on the CPU
            raise _too_large(what) from error
        if isinstance(error, CompressionError):
            raise ValueError(f"{what} cannot run: {error} Finished rows are kept.") from error
        raise


def _too_large(what: str) -> ValueError:
    return ValueError(
        f"{what} does not fit into the memory. Give a smaller --batch-size, shorter --lengths or a smaller --dtype; "
        "finished rows are kept."
    )


def _tokens_held(cache: Cache) -> list[float]:
    """Tokens in each layer, mean over rows and heads; 0 for a layer that keeps none."""
    held = []
    for layer in cache.layers:
        if isinstance(layer, CompressedLayer):
            held.append(layer_report(layer).tokens)
        else:
            keys = getattr(layer, "keys", None)
            held.append(float(keys.shape[-2]) if isinstance(keys, torch.Tensor) else 0.0)
    return held
