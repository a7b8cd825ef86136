"""The cells of a sweep, checked before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeVar

from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from kvcompress import CompressedCache, detach
from kvcompress.bench.sweep.identity import model_digest
from kvcompress.bench.sweep.policy_text import FULL, PolicyText, parse_policy
from kvcompress.bench.sweep.row import Cell
from kvcompress.bench.tasks.registry import make_task
from kvcompress.bench.tasks.sample import MODES, Sample, Task
from kvcompress.policies.base import Policy

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """What a sweep goes through: every policy at every budget, on every task, length and mode.

    Attributes:
        policies: without budgets; ``full`` always runs, named or not.
        cache_sizes: tokens kept per layer and head on average.
        ratios: fractions of the prompt that are removed.
        tasks: names.
        lengths: most tokens of context and question.
        modes: query-aware, query-agnostic.
        samples: of each cell, at least 1.
        fidelity_samples: of them, how many ``kl`` and ``top1`` are measured on, at least 1; all where there are fewer.
        seed: the samples are those numbered from ``seed * samples``.
    """

    policies: Sequence[PolicyText]
    cache_sizes: Sequence[int]
    ratios: Sequence[float]
    tasks: Sequence[str]
    lengths: Sequence[int]
    modes: Sequence[str]
    samples: int
    fidelity_samples: int
    seed: int

    def __post_init__(self) -> None:
        """Checks what needs no model."""
        if min(self.samples, self.fidelity_samples) < 1 or self.seed < 0:
            raise ValueError(
                "samples and fidelity_samples must be at least 1 and seed at least 0; got "
                f"samples={self.samples}, fidelity_samples={self.fidelity_samples}, seed={self.seed}"
            )
        unknown = [mode for mode in self.modes if mode not in MODES]
        if unknown:
            raise ValueError(f"mode must be one of {', '.join(MODES)}; got {unknown[0]!r}")
        for name in ("policies", "tasks", "lengths", "modes"):
            if not getattr(self, name):
                raise ValueError(f"{name} must name at least one, with commas between; got none")
        if not (self.cache_sizes or self.ratios) and any(text.name != FULL for text in self.policies):
            raise ValueError("a sweep needs budgets; give cache_sizes (tokens kept) or ratios (fraction removed)")
        for text, size, ratio in self.contenders():
            text.policy(cache_size=size, ratio=ratio, seed=self.seed)
        for task in self.tasks:
            make_task(task)

    def contenders(self) -> list[tuple[PolicyText, int | None, float | None]]:
        """Policies with budgets, the full cache first."""
        compressed = [text for text in unique(self.policies) if text.name != FULL]
        budgets = [(size, None) for size in unique(self.cache_sizes)] + [(None, ratio) for ratio in unique(self.ratios)]
        return [
            (parse_policy(FULL), None, None),
            *((text, size, ratio) for size, ratio in budgets for text in compressed),
        ]


def cells_of(grid: Grid, name: str, model: PreTrainedModel, tokenizer: Any) -> list[Cell]:
    """The cells, those of one task, length and mode together: they share samples and the full cache's answers.

    Args:
        grid: what to go through.
        name: what the user called the model.
        model: the model that the cells are for.
        tokenizer: its tokenizer.

    Raises:
        ValueError: a policy that the model cannot be compressed with, or a task that cannot have such a length.
    """
    for task, length in product(grid.tasks, grid.lengths):
        _check_task(make_task(task), tokenizer, length, grid)
    policies = []
    for text, size, ratio in grid.contenders():
        policy = text.policy(cache_size=size, ratio=ratio, seed=grid.seed)
        make_cache(model, policy)  # refuses what this model cannot be compressed with
        policies.append((str(text), size, ratio, repr(policy)))
    digest = model_digest(model)
    return [
        Cell(
            policy=policy,
            cache_size=size,
            ratio=ratio,
            task=task,
            length=length,
            mode=mode,
            n=grid.samples,
            seed=grid.seed,
            fidelity_n=min(grid.fidelity_samples, grid.samples),
            policy_parameters=parameters,
            task_parameters=repr(make_task(task)),
            model=name,
            model_digest=digest,
            dtype=str(model.dtype).removeprefix("torch."),
            device=model.device.type,
        )
        for task, length, mode in product(unique(grid.tasks), unique(grid.lengths), unique(grid.modes))
        for policy, size, ratio, parameters in policies
    ]


def samples_of(task: Task, tokenizer: Any, length: int, n: int, seed: int) -> list[Sample]:
    """The samples of a cell; another seed has none in common with them."""
    return [task.sample(tokenizer, length, seed * n + number) for number in range(n)]


def make_cache(model: PreTrainedModel, policy: Policy) -> Cache:
    """An empty cache; for ``full`` transformers' own, on the model as transformers runs it."""
    if policy.name != FULL:
        return CompressedCache(model, policy)
    detach(model)
    return DynamicCache(config=model.config)


def unique(items: Sequence[_Item]) -> list[_Item]:
    """The items without repetitions, in order."""
    return list(dict.fromkeys(items))


def _check_task(task: Task, tokenizer: Any, length: int, grid: Grid) -> None:
    try:
        for number in (0, grid.samples - 1):  # the last one too: a file may have fewer
            task.sample(tokenizer, length, grid.seed * grid.samples + number)
    except (ValueError, ImportError) as error:
        raise ValueError(f"task {task.name!r} cannot run at length {length}: {error}") from error
