"""Which masks of a block a step fills, and with what.

Source: low-confidence remasking of LLaDA (arXiv 2502.09992, section 2.4): of all predictions those of the highest
probability stay, the others are masked again.
"""

import torch
from torch import Generator, Tensor


def fill_most_confident(
    ids: Tensor, logits: Tensor, *, mask_id: int, count: int, temperature: float, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Fill the masks that the model is surest of. Ids that are no masks never change.

    Args:
        ids: a block, int64 [B, N].
        logits: float [B, N, V].
        mask_id: id of the mask token; it is never predicted.
        count: masks to fill in each row; at most as many as there are.
        temperature: of the Gumbel noise that picks the tokens; 0: none is drawn.
        generator: source of the noise.

    Returns:
        The block after the step, int64 [B, N], and the probability of each mask's prediction, float32 [B, N]; NaN where
        there was no mask.
    """
    logits = logits.float()
    logits[..., mask_id] = -torch.inf
    masked = ids == mask_id
    predicted = _perturbed(logits, temperature, generator).argmax(dim=-1)
    confidence = logits.softmax(dim=-1).gather(-1, predicted[..., None]).squeeze(-1)
    # Stable sorting: of equal confidences the first place wins, on every device.
    order = confidence.masked_fill(~masked, -1.0).sort(dim=-1, descending=True, stable=True).indices[:, :count]
    chosen = torch.zeros_like(masked).scatter_(1, order, value=True) & masked
    return torch.where(chosen, predicted, ids), confidence.masked_fill(~masked, torch.nan)


def _perturbed(logits: Tensor, temperature: float, generator: Generator) -> Tensor:
    """Return logits whose argmax is a draw from `softmax(logits / temperature)` (the Gumbel-max trick)."""
    if temperature == 0.0:
        return logits
    # float64 as in LLaDA: rounded noise distorts the draws.
    uniform = torch.rand(logits.shape, dtype=torch.float64, device=logits.device, generator=generator)
    gumbel = -torch.log(-torch.log(uniform.clamp_min(torch.finfo(torch.float64).tiny)))
    return logits.double() + temperature * gumbel
