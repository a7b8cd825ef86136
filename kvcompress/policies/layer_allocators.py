"""Layer allocators: how many tokens each layer keeps, for one batch row."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from kvcompress.policies.protocols import LayerDemand

# A preference of zero still gets what the others leave, shared evenly: below every logarithm of a positive float64.
_LEAST_LOG_PREFERENCE = -1.0e4


@dataclass(frozen=True, slots=True)
class Uniform:
    """The same budget for every layer."""

    needs_statistics = False
    needs_ladders = False

    def __call__(self, demand: LayerDemand) -> list[int]:
        """Returns ``min(cap, budget)`` per layer."""
        return [cap if demand.budget is None else min(cap, demand.budget) for cap in demand.caps]

    def limits(self, demand: LayerDemand, budgets: list[int]) -> list[int | None]:
        """The budget itself: a short prompt leaves room that generated tokens fill."""
        return [demand.budget] * len(budgets)

    def preference(self, entropy: torch.Tensor, variance: torch.Tensor) -> None:
        """None: there is no preference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """CAKE's layer preference ``H^(1/tau1) * V^(1/tau2)``, split into whole tokens by a divisor method.

    Args:
        tau1: temperature of the entropy, > 0.
        tau2: temperature of the variance, > 0.

    Source:
        CAKE, arXiv 2503.12491, equations 6 to 8.
    """

    tau1: float
    tau2: float
    needs_statistics = True
    needs_ladders = False

    def __call__(self, demand: LayerDemand) -> list[int]:
        """Returns budgets that sum to ``min(budget * layers, sum(caps))`` exactly."""
        if demand.budget is None:
            return list(demand.caps)
        if demand.entropy is None or demand.variance is None:
            raise ValueError("the Preference allocator needs a scorer that returns entropy and variance")
        logs = [
            log_preference(entropy, variance, self.tau1, self.tau2)
            for entropy, variance in zip(demand.entropy, demand.variance, strict=True)
        ]
        return apportion(logs, demand.budget * demand.layers, demand.caps)

    def limits(self, demand: LayerDemand, budgets: list[int]) -> list[int | None]:
        """The budgets; what a short prompt left of the total is shared evenly."""
        return with_leftover(demand, budgets)

    def preference(self, entropy: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
        """``H^(1/tau1) * V^(1/tau2)`` in float32; the entropy's factor alone where there is no variance (NaN)."""
        spread = variance.double() ** (1 / self.tau2)
        return (entropy.double() ** (1 / self.tau1) * spread.nan_to_num(nan=1.0)).float()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pyramid:
    """Budgets that fall linearly from the first layer to the last.

    The last layer's share is ``1 / beta`` of the average, the first one's ``2 - 1 / beta``; what a layer cannot take
    goes to the others in proportion.

    Args:
        beta: steepness, >= 1; 1 is flat.

    Source:
        PyramidKV, arXiv 2406.02069, section 4.2.
    """

    beta: float
    needs_statistics = False
    needs_ladders = False

    def __call__(self, demand: LayerDemand) -> list[int]:
        """Returns budgets that sum to ``min(budget * layers, sum(caps))`` exactly."""
        if demand.budget is None:
            return list(demand.caps)
        least = 1 / self.beta
        steps = max(demand.layers - 1, 1)
        shares = [2 - least - 2 * (1 - least) * i / steps for i in range(len(demand.caps))]
        return apportion([_log(share) for share in shares], demand.budget * demand.layers, demand.caps, rounding=0.5)

    def limits(self, demand: LayerDemand, budgets: list[int]) -> list[int | None]:
        """The budgets; what a short prompt left of the total is shared evenly."""
        return with_leftover(demand, budgets)

    def preference(self, entropy: torch.Tensor, variance: torch.Tensor) -> None:
        """None: the share depends on the layer's index alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GlobalScores:
    """One budget for all layers: a token per head goes to the layer that gains the highest scores by it.

    A layer takes ``kv_heads`` tokens at a time, all heads together, worth the mean of their scores; a head allocator
    then shares them within the layer. A layer's ladder depends on its own scores alone and descends, so adding a
    layer never raises another's budget.

    Args:
        floor: part of the average budget that each layer gets in any case, in [0, 1].

    Source:
        Layer-wise budgets by one shared selection: Feng et al., DefensiveKV, arXiv 2510.13334.
    """

    floor: float = 0.0
    needs_statistics = False
    needs_ladders = True

    def __call__(self, demand: LayerDemand) -> list[int]:
        """Returns budgets that sum to ``min(budget * layers, sum(caps))`` exactly; equal worth: the lower layer."""
        if demand.budget is None:
            return list(demand.caps)
        if demand.ladders is None:
            raise ValueError("the GlobalScores allocator needs the layers' ladders of token scores")
        total = min(demand.budget * demand.layers, sum(demand.caps))
        floor = math.floor(self.floor * demand.budget)
        worth = [np.minimum.accumulate(ladder) for ladder in demand.ladders]  # rounding must not let it rise
        for steps in worth:
            steps[:floor] = np.inf
        layer = np.repeat(np.arange(len(worth)), [len(steps) for steps in worth])
        given = layer[np.argsort(-np.concatenate(worth), kind="stable")[:total]]
        return [int(n) for n in np.bincount(given, minlength=len(worth))]

    def limits(self, demand: LayerDemand, budgets: list[int]) -> list[int | None]:
        """The budgets; what a short prompt left of the total is shared evenly."""
        return with_leftover(demand, budgets)

    def preference(self, entropy: torch.Tensor, variance: torch.Tensor) -> None:
        """None: tokens compete, not layers."""


def with_leftover(demand: LayerDemand, budgets: list[int]) -> list[int | None]:
    """Budgets raised evenly by what is left of the total."""
    if demand.budget is None:
        return [None] * len(budgets)
    share, rest = divmod(max(demand.budget * demand.layers - sum(budgets), 0), len(budgets))
    return [budget + share + (i < rest) for i, budget in enumerate(budgets)]


def log_preference(entropy: float, variance: float, tau1: float, tau2: float) -> float:
    """Natural logarithm of ``entropy^(1/tau1) * variance^(1/tau2)``, ``-inf`` where either is zero.

    A window of one query has no variance; the engine then gives NaN, and the entropy decides alone.
    """
    spread = 0.0 if math.isnan(variance) else _log(variance) / tau2
    return _log(entropy) / tau1 + spread


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


def apportion(
    log_weights: list[float], total: int, caps: tuple[int, ...] | list[int], rounding: float = 1.0
) -> list[int]:
    """Divides ``total`` seats by a divisor method with caps.

    Seat ``s`` of layer ``l`` has priority ``weight_l / (s + rounding)``; the seats of highest priority are given, equal
    ones to the lower layer. Each layer's priorities depend on its own weight alone, hence two laws: the sum is exactly
    ``min(total, sum(caps))``, and adding a layer never raises another layer's seats.

    Args:
        log_weights: natural logarithm of each layer's weight; ``-inf`` for zero.
        total: seats to give, >= 0.
        caps: most seats that a layer can take.
        rounding: what is added to a layer's seats in the divisor: 1 is the method of Jefferson (d'Hondt), which rounds
            quotients down; 0.5 that of Webster (Sainte-Lague), which rounds them to the nearest.

    Returns:
        Seats per layer.

    Source:
        Balinski and Young, Fair Representation, 1982, chapter on divisor methods.
    """
    logs = np.maximum(np.asarray(log_weights, dtype=np.float64), _LEAST_LOG_PREFERENCE)
    limits = np.asarray(caps, dtype=np.int64)
    total = min(int(total), int(limits.sum()))
    seats = _seats_below(logs, total, limits, rounding)
    queue = [(math.log(seats[i] + rounding) - logs[i], i) for i in range(len(logs)) if seats[i] < limits[i]]
    heapq.heapify(queue)
    for _ in range(total - int(seats.sum())):
        _, i = heapq.heappop(queue)
        seats[i] += 1
        if seats[i] < limits[i]:
            heapq.heappush(queue, (math.log(seats[i] + rounding) - logs[i], i))
    return [int(s) for s in seats]


def _seats_below(
    logs: NDArray[np.float64], total: int, limits: NDArray[np.int64], rounding: float
) -> NDArray[np.int64]:
    """A start for the exact method: seats that every layer is sure to get, found by bisection on the divisor."""
    low, high = float(logs.min()) - math.log(total + 1) - 1, float(logs.max()) + 1
    for _ in range(64):
        middle = (low + high) / 2
        if _quotients(logs, middle, limits, rounding).sum() > total:
            low = middle
        else:
            high = middle
    # One seat less than the quotient: rounding of exp() must never give a seat that the priorities would not.
    sure: NDArray[np.int64] = np.maximum(_quotients(logs, high, limits, rounding) - 1, 0)
    return sure


def _quotients(
    logs: NDArray[np.float64], log_divisor: float, limits: NDArray[np.int64], rounding: float
) -> NDArray[np.int64]:
    wanted = np.floor(np.exp(np.minimum(logs - log_divisor, 60.0)) + (1 - rounding))
    seats: NDArray[np.int64] = np.minimum(wanted, limits).astype(np.int64)
    return seats
