"""An agent in rooms: its history grows while it plays, its weights stay as they are."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from kvcompress.bench.workloads.algorithm_distillation.darkroom import ACTIONS, EPISODE_STEPS, Darkroom, Ints
from kvcompress.bench.workloads.algorithm_distillation.histories import Histories
from kvcompress.bench.workloads.algorithm_distillation.vocabulary import (
    BOS_ID,
    FIRST_ACTION,
    FIRST_CELL,
    FIRST_REWARD,
)


class Agent(Protocol):
    """Chooses actions from histories of many rooms at a time."""

    @property
    def held_tokens(self) -> float:
        """Tokens of a history that the next choice is made from, the mean over layers."""

    def begin(self, rooms: int) -> None:
        """Forget everything; `rooms` histories begin."""

    def observe(self, ids: Tensor) -> Tensor:
        """Take in what happened.

        Args:
            ids: int64 [rooms, new], the tokens since the last call; the last one is the cell.

        Returns:
            Logits of the actions, float32 [rooms, 5].
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Following:
    """First steps in which a player does what another one does, because its agent would choose the same.

    Attributes:
        leader: does each step before the player.
        steps: how many.
        note: makes the agent take in new tokens, int64 [rooms, new], without choosing.
    """

    leader: "Player"
    steps: int
    note: Callable[[Tensor], None]


@dataclass(slots=True, kw_only=True)
class Player:
    """Rooms in play with one agent: `step` does one environment step in all of them.

    Attributes:
        agent: who plays.
        goals: int64 [rooms].
        seed: seed of the actions drawn.
        following: in which steps another player's actions are taken; `None` for none.
        seconds: processor time of the agent in each step, NaN in those.
        held_tokens: what the agent held at each step.
    """

    agent: Agent
    goals: Ints
    seed: int
    following: Following | None = None
    seconds: list[float] = field(default_factory=list)
    held_tokens: list[float] = field(default_factory=list)
    _columns: dict[str, list[Ints]] = field(default_factory=lambda: {"cells": [], "actions": [], "rewards": []})
    _room: Darkroom = field(init=False)
    _rng: torch.Generator = field(init=False)
    _new_ids: Tensor = field(init=False)

    def __post_init__(self) -> None:
        """Begin the first episode."""
        self._room = Darkroom(self.goals)
        self._rng = torch.Generator().manual_seed(self.seed)
        self._new_ids = torch.full((len(self.goals), 1), BOS_ID)
        self.agent.begin(len(self.goals))

    @property
    def steps(self) -> int:
        """Return the steps done."""
        return len(self.seconds)

    @torch.inference_mode()
    def step(self) -> None:
        """Let the agent act once in every room; an episode begins after every 20 steps."""
        if self.steps % EPISODE_STEPS == 0:
            self._room.reset()
        cells = self._room.cells
        ids = torch.cat((self._new_ids, torch.from_numpy(cells + FIRST_CELL)[:, None]), dim=1)
        actions = self._follow(ids) if self._follows() else self._choose(ids)
        self.held_tokens.append(self.agent.held_tokens)
        rewards = self._room.step(actions[:, 0].numpy())
        self._new_ids = torch.cat((actions + FIRST_ACTION, torch.from_numpy(rewards + FIRST_REWARD)[:, None]), dim=1)
        for name, part in (("cells", cells), ("actions", actions[:, 0].numpy()), ("rewards", rewards)):
            self._columns[name].append(part)

    def _follows(self) -> bool:
        return self.following is not None and self.steps < self.following.steps

    def _follow(self, ids: Tensor) -> Tensor:
        """Return the leader's actions of this step, int64 [rooms, 1]."""
        if self.following is None or self.following.leader.steps <= self.steps:
            raise ValueError("a player follows a leader that has done the step already; let the leader step first")
        leader = self.following.leader
        self.following.note(ids)
        self._rng.set_state(leader._rng.get_state())
        actions = torch.from_numpy(leader._columns["actions"][self.steps])[:, None]
        self.seconds.append(math.nan)
        return actions

    def _choose(self, ids: Tensor) -> Tensor:
        """Return the agent's own actions, int64 [rooms, 1]."""
        # Processor time of the agent alone: others may use the machine as well.
        started = time.thread_time()
        logits = self.agent.observe(ids)
        self.seconds.append(time.thread_time() - started)
        return torch.multinomial(logits.softmax(dim=-1), 1, generator=self._rng)

    def played(self) -> Histories:
        """Return the histories so far."""
        return Histories(goals=self.goals, **{name: np.stack(parts, axis=1) for name, parts in self._columns.items()})


def returns_by_episode(histories: Histories) -> Ints:
    """Return the sum of rewards of each whole episode, int64 [histories, episodes]."""
    rewards = histories.rewards
    episodes = rewards.shape[1] // EPISODE_STEPS
    sums: Ints = rewards[:, : episodes * EPISODE_STEPS].reshape(len(rewards), episodes, EPISODE_STEPS).sum(axis=2)
    return sums


def play(agent: Agent, goals: Ints, episodes: int, *, seed: int) -> Player:
    """Play whole episodes.

    Args:
        agent: who plays.
        goals: int64 [rooms].
        episodes: how many.
        seed: seed of the actions drawn.

    Returns:
        The player, with histories and times.
    """
    player = Player(agent=agent, goals=goals, seed=seed)
    for _ in range(episodes * EPISODE_STEPS):
        player.step()
    return player


def action_logits(logits: Tensor) -> Tensor:
    """Return the actions' part of logits over the vocabulary, float32: [rooms, vocabulary] -> [rooms, 5]."""
    return logits[:, FIRST_ACTION : FIRST_ACTION + len(ACTIONS)].float()
