"""The work of ``kvcompress generate``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from rich.console import Console
from torch import nn

from kvcompress.commands import summary
from kvcompress.commands.choice import PolicyChoice
from kvcompress.commands.comparison import Agreement, Divergence, agreement, divergence
from kvcompress.commands.failures import CommandError, warn
from kvcompress.commands.loading import LoadedModel, choose_place, load_model
from kvcompress.commands.runs import Run, Settings, full_cache, full_cache_bytes, run_model, warm_up
from kvcompress.engine.cache import CompressedCache
from kvcompress.engine.report import CacheReport
from kvcompress.policies.base import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the user asked for."""

    prompt: str
    choice: PolicyChoice
    max_new_tokens: int
    temperature: float
    seed: int
    compare_full: bool

    @property
    def settings(self) -> Settings:
        """How tokens are chosen."""
        return Settings(max_new_tokens=self.max_new_tokens, temperature=self.temperature, seed=self.seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The run with the full cache."""

    run: Run
    num_bytes: int
    agreement: Agreement
    divergence: Divergence | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Everything that is told in the end."""

    loaded: LoadedModel
    policy: Policy
    prompt_tokens: int
    run: Run
    report: CacheReport
    comparison: Comparison | None
    warnings: list[str]


def run_request(request: Request, *, model: str | None, device: str, dtype: str, as_json: bool) -> None:
    """Runs a request and prints what came of it.

    Args:
        request: what the user asked for.
        model: a folder, a hub id, or None for the embedded model.
        device: see :func:`choose_place`.
        dtype: see there.
        as_json: print one JSON object instead of text.

    Raises:
        CommandError: something that was given cannot be used.
        ValueError: a policy's parameter is out of range.
        UnsupportedModelError: the model cannot be compressed.
    """
    request.choice.check()
    place = choose_place(device, dtype)
    outcome = carry_out(request, load_model(model, place), write=None if as_json else _write)
    if as_json:
        _write(json.dumps(summary.as_json(outcome), allow_nan=False) + "\n")
    else:
        summary.show(outcome, Console(highlight=False))


def carry_out(request: Request, loaded: LoadedModel, write: Callable[[str], object] | None = None) -> Outcome:
    """Generates, and runs with the full cache too where that is asked for; warnings go to stderr.

    Args:
        request: what the user asked for.
        loaded: the model.
        write: takes the text as it comes.
    """
    prompt_ids = encode(loaded, request.prompt)
    policy = request.choice.policy(prompt_ids.shape[1])
    cache = CompressedCache(loaded.model, policy)
    early = [*loaded.warnings, *length_warnings(loaded, prompt_ids.shape[1], request.max_new_tokens)]
    _warn(early)
    if request.compare_full:
        warm_up(loaded, prompt_ids, CompressedCache(loaded.model, policy))
        warm_up(loaded, prompt_ids, full_cache(loaded))
    run = run_model(loaded, prompt_ids, cache, request.settings, write)
    if write is not None:
        write("\n")
    report = cache.report()
    late = uncompressed_warnings(policy, report)
    _warn(late)
    return Outcome(
        loaded=loaded,
        policy=policy,
        prompt_tokens=prompt_ids.shape[1],
        run=run,
        report=report,
        comparison=compare(loaded, prompt_ids, policy, request, run) if request.compare_full else None,
        warnings=[*early, *late],
    )


def _warn(messages: list[str]) -> None:
    for message in messages:
        warn(message)


def encode(loaded: LoadedModel, prompt: str) -> torch.Tensor:
    """The prompt's tokens, int64 ``[1, tokens]``.

    Raises:
        CommandError: the tokenizer makes no token of it.
    """
    ids: torch.Tensor = loaded.tokenizer(prompt, return_tensors="pt")["input_ids"].to(loaded.model.device)
    if ids.shape[1] == 0:
        raise CommandError(f"the prompt must have tokens; the tokenizer of {loaded.name!r} makes none of it.")
    return ids.long()


def length_warnings(loaded: LoadedModel, prompt_tokens: int, new_tokens: int) -> list[str]:
    """Warns where the text goes beyond the positions that the model was made for.

    Raises:
        CommandError: the model has a table of positions, and none for these.
    """
    config = loaded.model.config.get_text_config(decoder=True)
    limit = getattr(config, "max_position_embeddings", None)
    total = prompt_tokens + new_tokens
    if not isinstance(limit, int) or total <= limit:
        return []
    what = (
        f"prompt ({prompt_tokens} tokens) and --max-new-tokens ({new_tokens}) go beyond the {limit} "
        f"positions that the model {loaded.name!r} was made for"
    )
    if _has_position_table(loaded.model, limit):
        raise CommandError(f"{what}, and it has no others. Shorten the prompt.")
    return [f"{what}; beyond them its text is unreliable, whatever the cache. Shorten the prompt."]


def uncompressed_warnings(policy: Policy, report: CacheReport) -> list[str]:
    """Warns where the policy had nothing to evict, so that nobody takes a full cache for a compressed one."""
    kept_all = all(layer.tokens >= report.seen for layer in report.layers)
    if policy.name == "full" or not kept_all:
        return []
    size = f"cache_size={policy.cache_size}" if policy.cache_size is not None else "the window and sinks"
    return [
        f"nothing was evicted: all {report.seen} tokens fit in {size}, so the cache was not compressed. "
        "Give a smaller --cache-size (and --window-size), or a longer prompt."
    ]


def compare(loaded: LoadedModel, prompt_ids: torch.Tensor, policy: Policy, request: Request, run: Run) -> Comparison:
    """Runs with the full cache, and feeds its tokens through both caches."""
    cache = full_cache(loaded)
    full = run_model(loaded, prompt_ids, cache, request.settings)
    return Comparison(
        run=full,
        num_bytes=full_cache_bytes(cache),
        agreement=agreement(full.ids, run.ids),
        divergence=divergence(loaded, prompt_ids, full.ids, full_cache(loaded), CompressedCache(loaded.model, policy)),
    )


def _has_position_table(model: nn.Module, limit: int) -> bool:
    """Whether positions are rows of a table, as in GPT-2; OPT's table has two rows more."""
    return any(
        isinstance(module, nn.Embedding)
        and module.num_embeddings in (limit, limit + 2)
        and any(part in name for part in ("wpe", "pos"))
        for name, module in model.named_modules()
    )


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
