"""The agents by name, each at a share of the history that is kept."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from transformers import LlamaForCausalLM

from kvcompress.bench.workloads.algorithm_distillation.cached_agent import CachedAgent, EngineAgent
from kvcompress.bench.workloads.algorithm_distillation.compressing_agent import CompressingAgent
from kvcompress.bench.workloads.algorithm_distillation.compression import keep_attended_steps, pool
from kvcompress.bench.workloads.algorithm_distillation.rereading_agent import RereadingAgent
from kvcompress.bench.workloads.algorithm_distillation.rollout import Agent
from kvcompress.bench.workloads.algorithm_distillation.vocabulary import MAX_POSITIONS, TOKENS_PER_STEP
from kvcompress.engine.cache import CompressedCache
from kvcompress.policies.base import Policy
from kvcompress.policies.registry import POLICIES, make_policy, parameters_of

# Uncompressed: "reread" reads the whole history at every step, "full" caches it.
BASELINES: Final = ("reread", "full")
OWN: Final = ("fixed_window", "topk", "pooling")
DEFAULT_INTERVAL: Final = 10
_WINDOW = TOKENS_PER_STEP * 5  # of the engine's policies that score by a window


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """What is done with a history.

    Attributes:
        name: one of `BASELINES` and `OWN`, or a policy of the engine.
        ratio: share of the context's tokens that is KEPT, in (0, 1]; 1 for a baseline.
        interval: steps between two compressions by `topk` and `pooling`; the others work at every step.
    """

    name: str
    ratio: float = 1.0
    interval: int = DEFAULT_INTERVAL

    def __post_init__(self) -> None:
        """Check the values."""
        if self.name not in (*BASELINES, *OWN, *POLICIES):
            known = ", ".join((*BASELINES, *OWN, *sorted(POLICIES)))
            raise ValueError(f"strategy must be one of {known}; got {self.name!r}")
        if not 0 < self.ratio <= 1:
            raise ValueError(f"ratio is the share of the history KEPT and must lie in (0, 1], got {self.ratio}")
        if self.interval < 1:
            raise ValueError(f"interval must be at least 1 step, got {self.interval}")
        if self.name in OWN and self.budget < 8 * TOKENS_PER_STEP:
            raise ValueError(f"ratio must leave at least 8 steps of {MAX_POSITIONS} tokens, got {self.ratio}")

    @property
    def budget(self) -> int:
        """Return the tokens kept: the share of the longest history, 20 episodes."""
        return round(self.ratio * MAX_POSITIONS)

    @property
    def label(self) -> str:
        """Return the name with the share kept in percent, as `topk 30 %`; the name alone for a baseline."""
        return self.name if self.name in BASELINES else f"{self.name} {self.ratio:.0%}".replace("%", " %")


def make_agent(model: LlamaForCausalLM, strategy: Strategy) -> Agent:
    """Return an agent.

    Args:
        model: in evaluation mode, on the CPU; for a policy of the engine it is attached.
        strategy: what is done with the history.

    Raises:
        ValueError: if the ratio leaves too little for the policy.
    """
    budget, interval = strategy.budget, strategy.interval
    makers: Mapping[str, Callable[[], Agent]] = {
        "reread": lambda: RereadingAgent(model),
        "full": lambda: CachedAgent(model),
        "fixed_window": lambda: RereadingAgent(model, budget // TOKENS_PER_STEP),
        "topk": lambda: CompressingAgent(model, keep_attended_steps, budget=budget, interval=interval),
        "pooling": lambda: CompressingAgent(model, pool, budget=budget, interval=interval),
    }
    if strategy.name in makers:
        return makers[strategy.name]()
    return EngineAgent(model, _cache_maker(model, strategy))


def check_evicts(strategy: Strategy) -> None:
    """Refuse a strategy that cannot shrink a history that grows.

    Args:
        strategy: any.

    Raises:
        ValueError: if it is a policy that compresses prompts only, or its ratio leaves too little for the policy.
    """
    if strategy.name not in (*BASELINES, *OWN):
        _policy(strategy)


def _policy(strategy: Strategy) -> Policy:
    window = parameters_of(strategy.name)["window_size"]
    if strategy.name == "h2o":
        window = strategy.budget // 2  # as published
    elif window > 1:
        window = min(_WINDOW, strategy.budget // 2)
    policy = make_policy(strategy.name, cache_size=strategy.budget, window_size=window)
    if policy.decode_rule.order == "none":
        raise ValueError(
            f"strategy {strategy.name!r} compresses prompts only, and a history grows token by token; "
            "take one that evicts while decoding: cake, h2o, keydiff, knorm, kvc, streaming_llm, tova"
        )
    return policy


def _cache_maker(model: LlamaForCausalLM, strategy: Strategy) -> Callable[[], CompressedCache]:
    policy = _policy(strategy)
    return lambda: CompressedCache(model, policy)
