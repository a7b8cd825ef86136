"""The work of ``kvcompress demo``."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import torch
from rich.console import Console
from rich.progress import Progress
from transformers.cache_utils import DynamicCache

from kvcompress.commands import demo_summary
from kvcompress.commands.loading import LoadedModel, choose_place, load_model
from kvcompress.commands.runs import Run, Settings, full_cache, full_cache_bytes, run_model, warm_up
from kvcompress.engine.cache import CompressedCache
from kvcompress.policies.base import Policy
from kvcompress.policies.cake import Cake
from kvcompress.policies.streaming_llm import StreamingLLM

if TYPE_CHECKING:
    from kvcompress.bench.testbed.tasks import Example

LENGTH: Final = 1024
TASKS: Final = ("needle_8", "variables_2")
BUDGETS: Final = (48, 96, 192)
# The questions have 3 or 6 tokens; a longer window would spend a small budget on filler text.
WINDOW_SIZE: Final = 8


@dataclass(slots=True, kw_only=True)
class Contender:
    """A cache that takes part, and what it did so far.

    Attributes:
        policy: its policy; None: transformers' own cache, which keeps everything.
        correct: right answers per task.
        num_bytes: bytes held after each answer.
        steps: decode steps.
        seconds: time that they took.
        answers: what it answered to each example, in order.
    """

    policy: Policy | None
    correct: dict[str, int] = field(default_factory=dict)
    num_bytes: list[int] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0
    answers: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The policy's name."""
        return "full" if self.policy is None else self.policy.name

    @property
    def cache_size(self) -> int | None:
        """Tokens kept per layer; None: all."""
        return None if self.policy is None else self.policy.cache_size

    @property
    def tokens_per_second(self) -> float | None:
        """Speed of decoding over all examples."""
        return self.steps / self.seconds if self.seconds > 0 else None

    @property
    def mean_bytes(self) -> float:
        """Bytes held, mean over the examples."""
        return sum(self.num_bytes) / max(len(self.num_bytes), 1)


def contenders() -> list[Contender]:
    """The full cache, CAKE and StreamingLLM, these at each budget."""
    policies: list[Policy] = [Cake(cache_size=size, window_size=WINDOW_SIZE) for size in BUDGETS]
    policies += [StreamingLLM(cache_size=size) for size in BUDGETS]
    return [Contender(policy=None), *(Contender(policy=policy) for policy in policies)]


def run_demo(*, seed: int, examples: int, device: str, dtype: str, as_json: bool) -> None:
    """Runs every contender on every example and prints what came of it.

    Args:
        seed: which set of examples.
        examples: how many of each task.
        device: see :func:`choose_place`.
        dtype: see there.
        as_json: print one JSON object instead of text.

    Raises:
        CommandError: the embedded model is not there, or the device.
    """
    from kvcompress.bench.testbed.tasks import make_example

    loaded = load_model(None, choose_place(device, dtype))
    asked = [make_example(task, LENGTH, seed=seed, index=i) for task in TASKS for i in range(examples)]
    field_of = contenders()
    start = time.perf_counter()
    quiet = not sys.stderr.isatty()
    with Progress(console=Console(stderr=True), transient=True, disable=quiet) as progress:
        bar = progress.add_task("asking", total=len(asked) * len(field_of))
        ask_all(loaded, field_of, asked, lambda: progress.advance(bar))
    result = demo_summary.DemoResult(
        loaded=loaded,
        contenders=field_of,
        examples=asked,
        seed=seed,
        seconds=time.perf_counter() - start,
    )
    if as_json:
        sys.stdout.write(json.dumps(demo_summary.as_json(result), allow_nan=False) + "\n")
    else:
        demo_summary.show(result, Console(highlight=False))


def ask_all(loaded: LoadedModel, field_of: list[Contender], asked: list[Example], done: Callable[[], object]) -> None:
    """Puts each example to every contender in turn, so that a busy moment of the machine slows all alike.

    Args:
        loaded: the model.
        field_of: the contenders; what they did is added to them.
        asked: the examples.
        done: called after each answer.
    """
    prompt = torch.tensor([asked[0].prompt_ids], device=loaded.model.device)
    for contender in field_of:
        warm_up(loaded, prompt, new_cache(loaded, contender.policy))
    for example in asked:
        for contender in field_of:
            ask(loaded, contender, example)
            done()


def ask(loaded: LoadedModel, contender: Contender, example: Example) -> Run:
    """Puts an example to a contender and notes what it did."""
    from kvcompress.bench.testbed.tasks import is_correct

    prompt = torch.tensor([example.prompt_ids], device=loaded.model.device)
    cache = new_cache(loaded, contender.policy)
    run = run_model(loaded, prompt, cache, Settings(max_new_tokens=len(example.answer_ids)))
    held = full_cache_bytes(cache) if isinstance(cache, DynamicCache) else cache.num_bytes
    contender.num_bytes.append(held)
    contender.correct.setdefault(example.task, 0)
    contender.correct[example.task] += is_correct(example, run.ids)
    contender.steps += len(run.ids) - 1
    contender.seconds += run.decode_seconds
    contender.answers.append(run.text)
    return run


def new_cache(loaded: LoadedModel, policy: Policy | None) -> DynamicCache | CompressedCache:
    """An empty cache of a policy."""
    return full_cache(loaded) if policy is None else CompressedCache(loaded.model, policy)
