"""CakeReference: the authors' code of CAKE, reproduced with its quirks. For reproducing published numbers only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from kvcompress.engine.score import LayerScores, ScoreInputs
from kvcompress.errors import UnsupportedModelError
from kvcompress.kernels.window_scores.reference import pool
from kvcompress.policies.base import Policy
from kvcompress.policies.checks import check_number
from kvcompress.policies.decode_rules import DecodeRule
from kvcompress.policies.protocols import LayerDemand


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceScorer:
    """Scores from the materialised window attention, rounded to the model's dtype as the authors do.

    Args:
        gamma: weight of the variance.
    """

    gamma: float

    def __call__(self, inputs: ScoreInputs) -> LayerScores:
        """Returns CAKE's eviction indicator, entropy and variance, exactly as coded (steps 1 to 3)."""
        attention = _window_attention(inputs)  # [B, Hkv, G, W, S] in the model's dtype
        before = attention[..., : inputs.scored]
        entropy = -(before * torch.log(before + 1e-10)).sum((1, 2, 3, 4))
        single = attention.shape[3] < 2
        variance = before.mean(3) * 0 if single or inputs.scored == 0 else before.var(3)  # var() of nothing warns
        total = variance.sum((1, 2, 3)) if not single else torch.full_like(entropy, float("nan"))
        spread = 0.0 if single else self.gamma * attention.var(3)
        scores = (attention.mean(3) + spread)[..., : inputs.scored]
        pooled = pool(scores.flatten(1, 2), 5).view(scores.shape)
        return LayerScores(token_scores=pooled.mean(2).float(), entropy=entropy.float(), variance=total.float())


def _window_attention(inputs: ScoreInputs) -> torch.Tensor:
    spec = inputs.spec
    if spec.softcap is not None or spec.sinks is not None or spec.sliding_window is not None:
        raise UnsupportedModelError(
            "CakeReference reproduces code that knows neither softcap nor learned sinks nor sliding windows; got a "
            "model with one of them. Use Cake."
        )
    batch, heads, tokens, head_dim = inputs.keys.shape
    queries = min(inputs.window, inputs.query.shape[2])
    query = inputs.query[:, :, -queries:].view(batch, heads, -1, queries, head_dim)
    # Divided, as the authors do: a product with the reciprocal would round differently and change near-ties.
    logits = torch.matmul(query, inputs.keys[:, :, None].transpose(-1, -2)) / (1 / inputs.spec.scaling)
    query_positions = torch.arange(inputs.last_position - queries + 1, inputs.last_position + 1, device=query.device)
    positions = inputs.positions
    if positions is None:
        positions = torch.arange(tokens, device=query.device)[None, None]
    visible = (positions[:, :, None, :] <= query_positions[:, None]) & (positions >= 0)[:, :, None]
    logits = logits.masked_fill(~visible[:, :, None], torch.finfo(logits.dtype).min)
    attention = torch.softmax(logits, dim=-1, dtype=torch.float32).to(inputs.query.dtype)
    if inputs.valid_queries is not None:
        attention = attention * inputs.valid_queries[:, None, None, -queries:, None]
    return attention


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceAllocator:
    """The authors' way from preferences to whole budgets (steps 4 and 5).

    Args:
        tau1: temperature of the entropy.
        tau2: temperature of the variance.
    """

    tau1: float
    tau2: float
    needs_statistics = True
    needs_ladders = False

    def __call__(self, demand: LayerDemand) -> list[int]:
        """Returns budgets; unlike the exact method's they may sum to less than the total."""
        if demand.budget is None or demand.entropy is None or demand.variance is None:
            raise ValueError("the reference allocator needs a cache size, entropy and variance")
        if self._skipped(demand):
            return list(demand.caps)
        preference = self.preference(torch.tensor(demand.entropy), torch.tensor(demand.variance))
        return reference_budgets(preference.double().numpy(), demand.budget * demand.layers, max(demand.caps))

    def limits(self, demand: LayerDemand, budgets: list[int]) -> list[int | None]:
        """The budgets; where prefill evicted nothing, the uniform one, which the first decode step then enforces."""
        return [demand.budget] * len(budgets) if self._skipped(demand) else list(budgets)

    def preference(self, entropy: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
        """``H^(1/tau1) * V^(1/tau2)``, float32."""
        spread = (variance.float() ** (1 / self.tau2)).nan_to_num(nan=1.0)
        return (entropy.float() ** (1 / self.tau1)) * spread

    def _skipped(self, demand: LayerDemand) -> bool:
        return prefill_skips(demand.tokens, demand.budget or 0, demand.window_size)


def prefill_skips(tokens: int, budget: int, window_size: int) -> bool:
    """Whether prefill evicts nothing: up to cache size + window tokens (step 4)."""
    return tokens <= budget + 2 * window_size


def reference_budgets(preference: np.ndarray, total: int, cap: int) -> list[int]:
    """Budgets of the layers scored so far.

    Args:
        preference: float64 ``[layers]``.
        total: tokens of all layers of the model together, window excluded.
        cap: tokens that a layer has to offer.

    Returns:
        Budgets clamped to ``[0, cap]``; the overflow is dropped.
    """
    share = preference / preference.sum() if preference.sum() > 0 else np.full(len(preference), 1 / len(preference))
    wanted = (share * total).astype(np.int64)
    budgets = np.minimum(wanted, cap)
    budgets = _spread(budgets, int((wanted - budgets).sum()), budgets < cap)
    rest = total - int(budgets.sum())
    budgets = _spread(budgets, rest, budgets < cap if rest > 0 else budgets > 1)
    return [int(b) for b in np.clip(budgets, 0, cap)]


def _spread(budgets: np.ndarray, amount: int, where: np.ndarray) -> np.ndarray:
    """Adds ``amount`` (or takes it away, if negative) evenly where allowed, the remainder from the lowest index."""
    targets = np.flatnonzero(where)
    if amount == 0 or len(targets) == 0:
        return budgets
    each, rest = divmod(abs(amount), len(targets))
    change = np.full(len(targets), each)
    change[:rest] += 1
    budgets = budgets.copy()
    budgets[targets] += change if amount > 0 else -change
    return budgets


@dataclass(frozen=True, kw_only=True)
class CakeReference(Policy):
    """CAKE exactly as its authors' code runs it, storage order included, but each batch row by itself.

    Prompts of up to 4096 tokens are attended by the plain formula whatever the model's attention
    implementation, so that
    results agree to the last bit with the authors' code on the CPU; longer ones by the model's own implementation.

    Args:
        tau1: temperature of the entropy, > 0.
        tau2: temperature of the variance, > 0.
        gamma: weight of the variance in the token score, >= 0.

    Source:
        The official code of Qin et al., CAKE, ICLR 2025, arXiv 2503.12491.
    """

    tau1: float = 1.0
    tau2: float = 1.0
    gamma: float = 200.0

    def __post_init__(self) -> None:
        """Checks the parameters."""
        super().__post_init__()
        check_number("tau1", self.tau1, above=0.0)
        check_number("tau2", self.tau2, above=0.0)
        check_number("gamma", self.gamma, at_least=0.0)
        if self.sink_tokens:
            raise ValueError(f"the authors' code of CAKE knows no sinks; got sink_tokens={self.sink_tokens}. Use Cake.")

    @property
    def name(self) -> str:
        """``"cake_reference"``."""
        return "cake_reference"

    @property
    def scorer(self) -> ReferenceScorer:
        """Materialised window attention."""
        return ReferenceScorer(gamma=self.gamma)

    @property
    def layer_allocator(self) -> ReferenceAllocator:
        """The authors' allocation."""
        return ReferenceAllocator(tau1=self.tau1, tau2=self.tau2)

    @property
    def decode_rule(self) -> DecodeRule:
        """The authors' rule over storage order."""
        return DecodeRule(order="probability", storage_order=True)

    def stores_chronologically(self, tokens: int) -> bool:
        """Where prefill evicts nothing, the authors' code leaves the order as it is."""
        return prefill_skips(tokens, self.budget(tokens) or 0, self.window_size)
