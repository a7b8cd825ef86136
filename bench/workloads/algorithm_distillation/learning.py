"""How much an agent learns in context: return per episode on goals it was trained on and on held-out ones."""

from collections.abc import Callable
from typing import Any

import numpy as np
from transformers import LlamaForCausalLM

from kvcompress.bench.workloads.algorithm_distillation.cached_agent import CachedAgent
from kvcompress.bench.workloads.algorithm_distillation.darkroom import (
    ACTIONS,
    EPISODE_STEPS,
    Darkroom,
    Ints,
    best_return,
    split_goals,
)
from kvcompress.bench.workloads.algorithm_distillation.evaluation import LATE_EPISODES
from kvcompress.bench.workloads.algorithm_distillation.rollout import play, returns_by_episode


def played_returns(model: LlamaForCausalLM, goals: Ints, episodes: int, seeds: int) -> Ints:
    """Return the return of every episode, with everything cached.

    Args:
        model: in evaluation mode, on the CPU.
        goals: int64 [rooms].
        episodes: how many.
        seeds: how many times all rooms are played, each with other actions drawn.

    Returns:
        int64 [seeds, rooms, episodes].
    """
    games = (play(CachedAgent(model), goals, episodes, seed=seed).played() for seed in range(seeds))
    return np.stack([returns_by_episode(game) for game in games])


def random_return(goals: Ints, rounds: int = 50) -> float:
    """Return what uniformly random actions gain in an episode, the mean over goals."""
    rng = np.random.default_rng(0)
    room = Darkroom(np.repeat(goals, rounds))
    gained = [room.step(rng.integers(len(ACTIONS), size=len(room.goals))) for _ in range(EPISODE_STEPS)]
    return float(np.sum(gained, axis=0).mean())


def measure_learning(
    model: LlamaForCausalLM, episodes: int, seeds: int, *, advance: Callable[[], object] = lambda: None
) -> list[dict[str, Any]]:
    """Return a row for the training goals and one for the held-out goals.

    Args:
        model: in evaluation mode, on the CPU.
        episodes: how many.
        seeds: how many times all rooms are played.
        advance: called after each row.
    """
    rows = []
    for name, goals in zip(("training goals", "held-out goals"), split_goals(), strict=True):
        gained = played_returns(model, goals, episodes, seeds)
        returns = gained.mean(axis=1)  # [seeds, episodes]
        found = gained.sum(axis=2) > 0  # [seeds, rooms]
        best = best_return(goals)
        reached = (
            gained[..., -LATE_EPISODES:].mean(axis=2)[found].sum() / np.broadcast_to(best, found.shape)[found].sum()
        )
        rows.append(
            {
                "case": name,
                "goals": len(goals),
                "seeds": seeds,
                "return_by_episode": [round(float(mean), 3) for mean in returns.mean(axis=0)],
                "lowest_seed": [round(float(low), 3) for low in returns.min(axis=0)],
                "highest_seed": [round(float(high), 3) for high in returns.max(axis=0)],
                "best_possible": round(float(best.mean()), 3),
                "goal_never_found": round(1.0 - float(found.mean()), 4),
                "late_share_of_best_where_found": round(float(reached), 4),
                "random_actions": round(random_return(goals), 3),
            }
        )
        advance()
    return rows
