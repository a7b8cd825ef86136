"""The sampler of masked-diffusion language models, with and without a cache of keys and values.

Source: LLaDA (arXiv 2502.09992, section 2.4): the answer begins as masks; blocks are filled from left to right
(semi-autoregressive), each in a number of passes, the most confident predictions first.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Generator, Tensor, nn

from kvcompress.bench.workloads.diffusion_lm.block_cache import BlockCache, CacheSettings, CacheUse
from kvcompress.bench.workloads.diffusion_lm.remasking import fill_most_confident
from kvcompress.bench.workloads.diffusion_lm.sampling_settings import SamplingSettings, check_prompts


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One pass of the model and what it filled.

    Attributes:
        step: number of the pass, over all blocks.
        block: number of the block.
        canvas: prompt and generated part after the pass, int64 [B, P + G].
        confidence: probability of the prediction of each of the block's masks, float32 [B, block_length]; NaN where
            there was none.
        tokens_computed: tokens that the pass computed, of each row.
    """

    step: int
    block: int
    canvas: Tensor
    confidence: Tensor
    tokens_computed: int


class StepListener(Protocol):
    """Hears the sampler."""

    def before_step(self, step: int, block: int) -> None:
        """The model is about to be called."""

    def after_step(self, step: Step) -> None:
        """The step has filled its masks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """What the sampler made.

    Attributes:
        ids: prompts and generated part, int64 [B, P + G].
        prompt_length: P.
        passes: calls of the model.
        tokens_computed: tokens that these computed, of each row; without a cache `passes * (P + G)`.
        cache: what the cache held; None without one.
    """

    ids: Tensor
    prompt_length: int
    passes: int
    tokens_computed: int
    cache: CacheUse | None

    @property
    def generated(self) -> Tensor:
        """The generated part, int64 [B, G]."""
        return self.ids[:, self.prompt_length :]


class _Passes(Protocol):
    """Runs the model for a block: its logits [B, block_length, V], and how many tokens were computed."""

    def __call__(self, canvas: Tensor, block: slice, step: int) -> tuple[Tensor, int]: ...


@torch.inference_mode()
def sample(
    model: nn.Module,
    prompts: Tensor,
    settings: SamplingSettings,
    *,
    mask_id: int,
    cache: CacheSettings | None = None,
    listeners: Sequence[StepListener] = (),
) -> Sampled:
    """Continue prompts by denoising masks.

    Args:
        model: a bidirectional masked language model in evaluation mode: called with `input_ids`, it returns an object
            with `logits` [B, T, V] (any `AutoModelForMaskedLM`). With a cache also `position_ids`, and its attention
            must go through transformers' `AttentionInterface`.
        prompts: ids, int64 [B, P], without padding.
        settings: lengths, steps, noise.
        mask_id: id of the mask token.
        cache: caches the keys and values of all but the block in hand; None: every pass computes the whole canvas.
        listeners: hear every step.

    Returns:
        The ids and what they cost. The prompts come back unchanged, and no mask is left.

    Raises:
        ValueError: prompts that the model cannot continue, or a model that cannot be cached.
    """
    check_prompts(getattr(model, "config", None), prompts, mask_id, settings.gen_length)
    prompt_length = prompts.shape[1]
    masks = torch.full((prompts.shape[0], settings.gen_length), mask_id, device=prompts.device)
    canvas = torch.cat((prompts, masks), dim=1)
    generator = Generator(device=prompts.device).manual_seed(settings.seed)
    computed = 0
    with _passes(model, cache) as (run, block_cache):
        for number in range(settings.steps):
            block_number, step = divmod(number, settings.steps_per_block)
            start = prompt_length + block_number * settings.block_length
            block = slice(start, start + settings.block_length)
            for listener in listeners:
                listener.before_step(number, block_number)
            logits, tokens = run(canvas, block, step)
            canvas = canvas.clone()
            canvas[:, block], confidence = fill_most_confident(
                canvas[:, block],
                logits,
                mask_id=mask_id,
                count=settings.tokens_of_step(step),
                temperature=settings.temperature,
                generator=generator,
            )
            computed += tokens
            for listener in listeners:
                listener.after_step(
                    Step(
                        step=number,
                        block=block_number,
                        canvas=canvas,
                        confidence=confidence,
                        tokens_computed=tokens,
                    )
                )
    use = None if block_cache is None else block_cache.use
    return Sampled(ids=canvas, prompt_length=prompt_length, passes=settings.steps, tokens_computed=computed, cache=use)


@contextmanager
def _passes(model: Any, cache: CacheSettings | None) -> Iterator[tuple[_Passes, BlockCache | None]]:
    if cache is None:

        def whole(canvas: Tensor, block: slice, step: int) -> tuple[Tensor, int]:
            return model(input_ids=canvas).logits[:, block].clone(), canvas.shape[1]

        yield whole, None
    else:
        with BlockCache(model, cache) as block_cache:
            yield block_cache.logits, block_cache
