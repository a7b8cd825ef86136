"""What a sample of a masked-diffusion model is fixed by, and what must hold of it."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSettings:
    """Settings of the sampler, with the names that LLaDA (arXiv 2502.09992) and MMaDA (arXiv 2505.15809) use.

    Attributes:
        gen_length: tokens to generate, a multiple of `block_length`.
        steps: passes of the model in all, the same number for each block.
        block_length: tokens of a block; blocks are filled from left to right.
        temperature: of the Gumbel noise on the logits; 0: the likeliest token.
        seed: of that noise.
    """

    gen_length: int = 48
    steps: int = 48
    block_length: int = 8
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: a value out of range, or numbers that do not divide.
        """
        for name in ("gen_length", "steps", "block_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.gen_length % self.block_length:
            raise ValueError(
                f"gen_length must be a multiple of block_length={self.block_length}, got {self.gen_length}; "
                f"take {-(-self.gen_length // self.block_length) * self.block_length}"
            )
        if self.steps % self.blocks:
            raise ValueError(
                f"steps must be a multiple of the number of blocks, {self.blocks} "
                f"(gen_length / block_length), got {self.steps}; take {-(-self.steps // self.blocks) * self.blocks}"
            )
        if self.steps > self.gen_length:
            raise ValueError(
                f"steps must be at most gen_length={self.gen_length}, since each fills a token, got {self.steps}"
            )
        if not 0.0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be finite and at least 0, got {self.temperature}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")

    @property
    def blocks(self) -> int:
        """Blocks in all."""
        return self.gen_length // self.block_length

    @property
    def steps_per_block(self) -> int:
        """Passes of the model for each block."""
        return self.steps // self.blocks

    def tokens_of_step(self, step: int) -> int:
        """Return how many masks a step of a block fills: as many in each, the first ones one more.

        Args:
            step: number of the step within its block.
        """
        evenly, left = divmod(self.block_length, self.steps_per_block)
        return evenly + (step < left)


def check_prompts(config: Any, prompts: Tensor, mask_id: int, gen_length: int) -> None:
    """Check that a model can continue prompts.

    Args:
        config: the model's configuration; `vocab_size` and `max_position_embeddings` are looked at where they are.
        prompts: ids, int64 [B, P].
        mask_id: id of the mask token.
        gen_length: tokens to generate.

    Raises:
        ValueError: prompts of another shape, ids or a mask outside the vocabulary, masks in a prompt, or a sequence
            longer than the model's positions.
    """
    if prompts.ndim != 2 or prompts.shape[0] < 1 or prompts.shape[1] < 1:
        raise ValueError(f"prompts must be ids [batch, tokens] with at least one of each, got {tuple(prompts.shape)}")
    vocabulary = getattr(config, "vocab_size", None)
    if vocabulary is not None and not 0 <= mask_id < vocabulary:
        raise ValueError(
            f"mask_id must be in the model's vocabulary of {vocabulary} ids, got {mask_id}; "
            "take the mask token of the tokenizer that the model was trained with"
        )
    if vocabulary is not None and (int(prompts.min()) < 0 or int(prompts.max()) >= vocabulary):
        raise ValueError(
            f"prompts must hold ids of the model's vocabulary, [0, {vocabulary}), got ids from {int(prompts.min())} "
            f"to {int(prompts.max())}; use the tokenizer that the model was trained with"
        )
    masks = int((prompts == mask_id).sum())
    if masks:
        raise ValueError(
            f"masks must lie in the generated part only, got {masks} in the prompts; the sampler adds gen_length masks "
            "after the prompt by itself"
        )
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and prompts.shape[1] + gen_length > positions:
        raise ValueError(
            f"prompt and generated part must fit into the model's {positions} positions, got {prompts.shape[1]} + "
            f"{gen_length} = {prompts.shape[1] + gen_length}; shorten the prompt or gen_length"
        )
