"""The forward process of masked diffusion, and the loss of its reverse.

Source: LLaDA (arXiv 2502.09992), equation 3 and section 2.3 (answers alone are masked); one random offset for a
whole batch's ratios as in MDLM (arXiv 2406.07524), which makes the loss less noisy. That other tokens may not see a
block is what block diffusion (arXiv 2503.09573) does to all later ones: such a model can be cached.
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Generator, Tensor
from torch.nn import functional as F
from transformers import ModernBertForMaskedLM

from kvcompress.bench.workloads.diffusion_lm.sums import Sums
from kvcompress.bench.workloads.diffusion_lm.vocabulary import MASK_ID

_SMALLEST_RATIO: Final = 0.02  # the loss is divided by the ratio, so it must not vanish


@dataclass(frozen=True, slots=True, kw_only=True)
class Masked:
    """A batch with part of its answers masked.

    Attributes:
        input_ids: prompts and masked answers, int64 [B, P + A].
        masked: which ids of the answers are masked, bool [B, A].
        ratios: mask ratio of each row, float32 [B], uniform over (0.02, 1).
    """

    input_ids: Tensor
    masked: Tensor
    ratios: Tensor


def mask_answers(sums: Sums, generator: Generator) -> Masked:
    """Mask each id of an answer with its row's ratio.

    Args:
        sums: prompts and answers.
        generator: source of randomness.

    Returns:
        The masked batch.
    """
    rows = sums.answers.shape[0]
    spread = (torch.rand(1, generator=generator) + torch.arange(rows) / rows) % 1.0
    ratios = _SMALLEST_RATIO + (1.0 - _SMALLEST_RATIO) * spread
    masked = torch.rand(sums.answers.shape, generator=generator) < ratios[:, None]
    answers = sums.answers.masked_fill(masked, MASK_ID)
    return Masked(input_ids=torch.cat((sums.prompts, answers), dim=1), masked=masked, ratios=ratios)


def hide_block(tokens: int, block: slice) -> dict[str, Tensor]:
    """Return an attention mask under which a block sees everything and no other token sees the block.

    That is what a cached sampler does within a block: what it has stored of the others does not know the block.

    Args:
        tokens: of the sequence, T.
        block: places of the block in it.

    Returns:
        As ModernBERT takes it: bool [1, 1, T, T] for its layers of global attention, True where a query sees a key.
    """
    visible = torch.ones(tokens, tokens, dtype=torch.bool)
    visible[:, block] = False
    visible[block] = True
    return {"full_attention": visible[None, None]}


def diffusion_loss(
    model: ModernBertForMaskedLM, masked: Masked, answers: Tensor, hidden_block: slice | None = None
) -> tuple[Tensor, Tensor]:
    """Return the bound on the negative log-likelihood per id of the answers, and what was predicted.

    Args:
        model: the model.
        masked: the masked batch.
        answers: the true ids, int64 [B, A].
        hidden_block: places of a block that other tokens do not see; None: all see all.

    Returns:
        Loss, float32 []: cross entropy of the masked ids, each over its row's ratio, divided by B * A; and int8
        [B, A]: 1 for a masked id predicted, 0 for one that was not, -1 for one that was not masked.
    """
    where = masked.masked
    mask = None if hidden_block is None else hide_block(masked.input_ids.shape[1], hidden_block)
    with torch.autocast("cpu", torch.bfloat16):
        output = model.model(input_ids=masked.input_ids, attention_mask=mask)
        hidden = output.last_hidden_state[:, -answers.shape[1] :][where]
        logits = model.decoder(model.head(hidden)).float()  # [N, V]
    losses = F.cross_entropy(logits, answers[where], reduction="none")
    weights = (1.0 / masked.ratios)[:, None].expand(where.shape)[where]
    outcome = torch.full(where.shape, -1, dtype=torch.int8)
    outcome[where] = logits.argmax(dim=-1).eq(answers[where]).to(torch.int8)
    return (losses * weights).sum() / where.numel(), outcome
