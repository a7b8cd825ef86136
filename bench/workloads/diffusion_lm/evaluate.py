"""Measures the diffusion model: what training came to, and what caching saves and loses.

`kvcompress diffusion evaluate` calls this. Times are processor time of one thread, the contenders in turns.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from kvcompress.bench.measure import Case, Contender, measure
from kvcompress.bench.results_file import environment, results
from kvcompress.bench.testbed.evaluate import file_sha256
from kvcompress.bench.workloads.diffusion_lm.contenders import (
    BLOCK_LENGTH,
    CACHES,
    UNCACHED,
    evaluation_sums,
    sample_sums,
    settings_of_steps,
)
from kvcompress.bench.workloads.diffusion_lm.location import MODEL_DIR, TRAINING_LOG_FILE, load_diffusion_model
from kvcompress.bench.workloads.diffusion_lm.sums import DIGITS, PROMPT_LENGTH, Sums

TRAINING_SCHEMA: Final = "kvcompress.bench.diffusion_training/1"
CACHING_SCHEMA: Final = "kvcompress.bench.diffusion_caching/1"
TRAINING_FILE: Final = "diffusion_training.json"
CACHING_FILE: Final = "diffusion_caching.json"

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is measured.

    Attributes:
        sums: sums on which accuracy and agreement are measured.
        steps: passes of the model for the 64 digits; each a multiple of the 8 blocks, at most 64.
        timed_rows: sums of the batch that is timed.
        rounds: timed runs of each contender.
        seed: which sums.
    """

    sums: int = 100
    steps: tuple[int, ...] = (64, 32, 16)
    timed_rows: int = 8
    rounds: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: a number below 1, or steps that the sampler refuses.
        """
        for name in ("sums", "timed_rows", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.steps:
            raise ValueError("steps must name at least one number of passes, got none; take 64")
        for steps in self.steps:
            settings_of_steps(steps)


def measure_caching(
    plan: Plan,
    folder: Path = MODEL_DIR,
    *,
    told: Callable[[Row], object] = lambda row: None,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, Any]:
    """Measure accuracy, agreement, tokens computed, bytes and time of the uncached and the cached samplers.

    Args:
        plan: what is measured.
        folder: the model's.
        told: is given each row as it is there.
        clock: seconds; tests give their own.

    Returns:
        What `diffusion_caching.json` holds: a case for each number of steps and contender.
    """
    torch.set_num_threads(1)
    made_in = environment()
    model, _ = load_diffusion_model(folder)
    sums = evaluation_sums(plan.sums, plan.seed)
    rows = []
    for steps in plan.steps:
        for row in _cases(model, sums, steps, plan, clock):
            rows.append(row)
            told(row)
    notes = {
        "clock": "processor time",
        "model_sha256": file_sha256(folder / "model.safetensors"),
        "prompt_length": PROMPT_LENGTH,
        "gen_length": DIGITS,
        "block_length": BLOCK_LENGTH,
        "timed_rows": plan.timed_rows,
        "seed": plan.seed,
    }
    return results(rows, made_in=made_in, schema=CACHING_SCHEMA, notes=notes)


def _cases(model: nn.Module, sums: Sums, steps: int, plan: Plan, clock: Callable[[], float]) -> list[Row]:
    settings = settings_of_steps(steps)
    timed = evaluation_sums(plan.timed_rows, plan.seed)
    contenders = [
        Contender(provider=name, run=partial(sample_sums, model, timed, settings, cache, batch=plan.timed_rows))
        for name, cache in CACHES.items()
    ]
    shape = f"{plan.timed_rows} sums, {PROMPT_LENGTH} + {DIGITS} tokens, blocks of {BLOCK_LENGTH}, {steps} steps"
    case = Case(name=f"steps_{steps}", shape=shape, ratio_to=UNCACHED, unit="ms, processor time")
    times = measure(case, contenders, repeats=plan.rounds, warm_up=1, clock=clock)
    reference: Tensor | None = None
    rows = []
    for (name, cache), time_row in zip(CACHES.items(), times, strict=True):
        samples = sample_sums(model, sums, settings, cache)
        reference = samples.generated if reference is None else reference  # the uncached come first
        keep = 1.0 if cache is None else cache.keep
        rows.append(
            {**time_row, "steps": steps, "cache": name, "keep": keep, **samples.scores(reference), **samples.cost()}
        )
    return rows


def training_results(log: Path = TRAINING_LOG_FILE, folder: Path = MODEL_DIR) -> dict[str, Any]:
    """Return what `diffusion_training.json` holds: the training log, and the model's size and hash.

    Args:
        log: the training's `training_log.jsonl`.
        folder: the model that it led to.

    Raises:
        FileNotFoundError: if the log or the model is not there.
    """
    made_in = environment()
    cases = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    weights = folder / "model.safetensors"
    model, _ = load_diffusion_model(folder)
    notes = {
        "model_sha256": file_sha256(weights),
        "model_bytes": weights.stat().st_size,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "layers": model.config.num_hidden_layers,
        "width": model.config.hidden_size,
    }
    return results(cases, made_in=made_in, schema=TRAINING_SCHEMA, notes=notes)


def best_speed_up(rows: Sequence[Row], least_exact_match: float) -> Row | None:
    """Return the fastest cached row against its uncached one, of those that are right often enough.

    Args:
        rows: cases of `diffusion_caching.json`.
        least_exact_match: share of the sums that must be right.
    """
    fit = [row for row in rows if row["cache"] != UNCACHED and row["exact_match"] >= least_exact_match]
    return min(fit, key=lambda row: row["ratio"], default=None)
