"""Agents that play the same rooms side by side: what compression saves, and what it costs."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import LlamaForCausalLM

from kvcompress.analysis.intervals import bootstrap_interval
from kvcompress.bench.workloads.algorithm_distillation.cached_agent import CachedAgent
from kvcompress.bench.workloads.algorithm_distillation.darkroom import EPISODE_STEPS, Ints, best_return
from kvcompress.bench.workloads.algorithm_distillation.histories import Histories
from kvcompress.bench.workloads.algorithm_distillation.rereading_agent import RereadingAgent
from kvcompress.bench.workloads.algorithm_distillation.rollout import Agent, Following, Player, returns_by_episode
from kvcompress.bench.workloads.algorithm_distillation.strategies import Strategy, make_agent
from kvcompress.bench.workloads.algorithm_distillation.vocabulary import TOKENS_PER_STEP, encode

LATE_EPISODES = 5  # the last ones, whose mean return is compared
LONG_HISTORY = 1000  # tokens from which on a step's time counts

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Game:
    """What one strategy did in a set of rooms.

    Attributes:
        strategy: what was done with the history.
        goals: int64 [rooms].
        returns: int64 [rooms, episodes].
        seconds: float64 [steps], the agent's processor time for all rooms together.
        held: float64 [steps], tokens held.
        histories: what was played.
    """

    strategy: Strategy
    goals: Ints
    returns: Ints
    seconds: Floats
    held: Floats
    histories: Histories

    @property
    def ids(self) -> Ints:
        """Return the histories up to the cell of the last choice, int64 [rooms, tokens]."""
        played = self.histories
        return encode(played.cells, played.actions, played.rewards)[:, : 1 - TOKENS_PER_STEP]


@dataclass(slots=True, kw_only=True)
class Evaluation:
    """All games of a model.

    Attributes:
        episodes: episodes of each game.
        games: of each strategy, one per set of rooms.
    """

    episodes: int
    games: dict[Strategy, list[Game]] = field(default_factory=dict)


def play_side_by_side(
    model: LlamaForCausalLM,
    strategies: Sequence[Strategy],
    goals: Ints,
    episodes: int,
    *,
    seed: int,
    advance: Callable[[], object] = lambda: None,
) -> list[Game]:
    """Play the same rooms with every strategy, all of them taking each step in turn, in changing order.

    Args:
        model: in evaluation mode, on the CPU; it is copied, not changed.
        strategies: who plays.
        goals: int64 [rooms].
        episodes: how many.
        seed: seed of the actions drawn, the same for all.
        advance: called after each step of all.

    Returns:
        One game per strategy, in the order given.

    Raises:
        ValueError: if the model has too few positions, or a ratio leaves too little for a policy.
    """
    agents = [(strategy, make_agent(copy.deepcopy(model), strategy)) for strategy in strategies]
    return play_agents(agents, goals, episodes, seed=seed, advance=advance)


def play_agents(
    agents: Sequence[tuple[Strategy, Agent]],
    goals: Ints,
    episodes: int,
    *,
    seed: int,
    advance: Callable[[], object] = lambda: None,
) -> list[Game]:
    """Play the same rooms with agents at hand; see `play_side_by_side`.

    Reading histories again is slow. Where the first agent holds everything, those that read again take its actions as
    long as they would choose the same: a window until it is full, and the whole history until its times count.
    """
    players: list[Player] = []
    for strategy, agent in agents:
        following = _following(players[0], strategy, agent, episodes) if players else None
        players.append(Player(agent=agent, goals=goals, seed=seed, following=following))
    for step in range(episodes * EPISODE_STEPS):
        players[0].step()  # the others may follow it
        others = players[1:]
        for place in range(len(others)):
            others[(step + place) % len(others)].step()
        advance()
    return [
        Game(
            strategy=strategy,
            goals=goals,
            returns=returns_by_episode(player.played()),
            seconds=np.array(player.seconds),
            held=np.array(player.held_tokens),
            histories=player.played(),
        )
        for (strategy, _), player in zip(agents, players, strict=True)
    ]


def _following(leader: Player, strategy: Strategy, agent: Agent, episodes: int) -> Following | None:
    """Return in which steps an agent that reads again need not do so."""
    if not isinstance(leader.agent, CachedAgent) or not isinstance(agent, RereadingAgent):
        return None
    steps = int(_long_steps(episodes * EPISODE_STEPS).argmax()) if agent.window_steps is None else agent.window_steps
    return Following(leader=leader, steps=steps, note=agent.note)


def summarise(evaluation: Evaluation, full: Strategy, reread: Strategy | None) -> list[dict[str, Any]]:
    """Return a row per strategy; see `_row`.

    Args:
        evaluation: the games; `full` played all sets of rooms that any strategy played.
        full: the strategy that returns and times are compared with.
        reread: another one that times are compared with; `None` where nobody read everything again.
    """
    return [_row(evaluation, strategy, full, reread) for strategy in evaluation.games]


def _row(evaluation: Evaluation, strategy: Strategy, full: Strategy, reread: Strategy | None) -> dict[str, Any]:
    games, base = evaluation.games[strategy], evaluation.games[full]
    # Another strategy may have played fewer sets of rooms; they are compared on what both played.
    late = np.concatenate([_late(game) for game in games])
    late_full = np.concatenate([_late(game) for game in base[: len(games)]])
    lost = (late_full - late) / late_full.mean()
    all_lost = np.concatenate([a.returns.mean(1) - b.returns.mean(1) for a, b in zip(base, games, strict=False)])
    mean_full = float(np.concatenate([game.returns.mean(1) for game in base[: len(games)]]).mean())
    best = np.concatenate([best_return(game.goals) for game in games])
    times = 1e3 * np.concatenate([game.seconds[_long(game)] for game in games])
    low, high = bootstrap_interval(lost)
    return {
        "case": strategy.label,
        "strategy": strategy.name,
        "keep_percent": round(100 * strategy.ratio),
        "interval_steps": strategy.interval if strategy.name in ("topk", "pooling") else 1,
        "rooms": len(late),
        "return_by_episode": [round(float(mean), 3) for mean in _curve(games)],
        "late_return": round(float(late.mean()), 3),
        "best_possible": round(float(best.mean()), 3),
        "late_return_lost": round(float(lost.mean()), 4),
        "late_return_lost_interval_95": [round(low, 4), round(high, 4)],
        "return_lost": round(float(all_lost.mean()) / mean_full, 4),
        "final_tokens": round(float(np.mean([game.held[-1] for game in games])), 1),
        "mean_tokens": round(float(np.mean([game.held.mean() for game in games])), 1),
        "unit": "ms of processor time per step of all rooms, history of at least 1,000 tokens",
        "median": round(float(np.median(times)), 4),
        "q20": round(float(np.quantile(times, 0.2)), 4),
        "q80": round(float(np.quantile(times, 0.8)), 4),
        "speedup_over_reread": None if reread is None else _speedup(evaluation.games[reread], games),
        "speedup_over_full": _speedup(base, games),
    }


def _late(game: Game) -> Floats:
    """Mean return of each room over the last episodes, float64 [rooms]."""
    means: Floats = game.returns[:, -LATE_EPISODES:].mean(axis=1)
    return means


def _curve(games: Sequence[Game]) -> Floats:
    means: Floats = np.concatenate([game.returns for game in games]).mean(axis=0)
    return means


def _long(game: Game) -> NDArray[np.bool_]:
    """Which steps count in the times, bool [steps]: those with a long history in which the agent chose itself."""
    chosen: NDArray[np.bool_] = _long_steps(len(game.seconds)) & np.isfinite(game.seconds)
    return chosen


def _long_steps(steps: int) -> NDArray[np.bool_]:
    """Which steps have a long history behind them, bool [steps]; the last half where none is that long."""
    seen = 2 + TOKENS_PER_STEP * np.arange(steps)
    long: NDArray[np.bool_] = seen >= min(LONG_HISTORY, seen[steps // 2])
    return long


def _speedup(yardstick: Sequence[Game], games: Sequence[Game]) -> float:
    """Median over steps of the yardstick's time by this one's, the same step of the same rooms."""
    ratios = [
        (theirs.seconds / ours.seconds)[_long(theirs) & _long(ours)]
        for theirs, ours in zip(yardstick, games, strict=False)
    ]
    return round(float(np.median(np.concatenate(ratios))), 3)
