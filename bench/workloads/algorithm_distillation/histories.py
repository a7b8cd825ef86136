"""Learning histories: a source policy that gets better from episode to episode.

The source is a near-optimal policy whose noise is annealed over the history, as in AD^ε (arXiv 2312.12275): with
probability ε the step is exploration, else it is the shortest way to the goal, and ε falls from 1 to 0. There the
noise is uniform over actions; here an explorer walks to random cells, one after another, which visits more of
the room in 20 steps. No reinforcement learning is run, and none of the source's knowledge is in the history but
through what it does.
"""

from dataclasses import dataclass

import numpy as np

from kvcompress.bench.workloads.algorithm_distillation.darkroom import (
    ACTIONS,
    CELLS,
    EPISODE_STEPS,
    SIZE,
    Darkroom,
    Ints,
)

_UP, _DOWN, _LEFT, _RIGHT, _STAY = range(len(ACTIONS))
_UNIFORM_SHARE = 0.1  # of the exploring steps: any action


@dataclass(frozen=True, slots=True, kw_only=True)
class Histories:
    """Histories of equal length.

    Attributes:
        goals: int64 [histories].
        cells: int64 [histories, steps], the cell that each action was taken in.
        actions: int64 [histories, steps].
        rewards: int64 [histories, steps].
    """

    goals: Ints
    cells: Ints
    actions: Ints
    rewards: Ints


def _towards(cells: Ints, targets: Ints, columns_first: np.typing.NDArray[np.bool_]) -> Ints:
    """Return the actions of shortest ways, int64 [histories]; `_STAY` where the target is reached."""
    rows, columns = np.divmod(targets, SIZE)
    own_rows, own_columns = np.divmod(cells, SIZE)
    vertical = np.where(rows < own_rows, _UP, _DOWN)
    horizontal = np.where(columns < own_columns, _LEFT, _RIGHT)
    row_done, column_done = rows == own_rows, columns == own_columns
    along_column = np.where(columns_first, ~column_done, row_done)
    return np.where(row_done & column_done, _STAY, np.where(along_column, horizontal, vertical))


class _Explorer:
    """Walks to random cells, one after another."""

    def __init__(self, histories: int, rng: np.random.Generator) -> None:
        self._rng = rng
        self._targets = rng.integers(CELLS, size=histories)

    def restart(self) -> None:
        """Choose new cells to walk to."""
        self._targets = self._rng.integers(CELLS, size=len(self._targets))

    def act(self, cells: Ints) -> Ints:
        """Return the actions, int64 [histories]."""
        rng, count = self._rng, len(cells)
        other_cells = (cells + rng.integers(1, CELLS, size=count)) % CELLS
        self._targets = np.where(self._targets == cells, other_cells, self._targets)
        actions = _towards(cells, self._targets, rng.random(count) < 0.5)
        uniform = rng.random(count) < _UNIFORM_SHARE
        return np.where(uniform, rng.integers(len(ACTIONS), size=count), actions)


def noise_levels(anneal_episodes: Ints, step: int) -> np.typing.NDArray[np.float64]:
    """Return ε at a step, float64, the shape of `anneal_episodes`: from 1 at step 0 linearly to 0."""
    levels: np.typing.NDArray[np.float64] = np.clip(1.0 - step / (anneal_episodes * EPISODE_STEPS), 0.0, 1.0)
    return levels


def make_histories(goals: Ints, episodes: int, anneal_episodes: Ints, rng: np.random.Generator) -> Histories:
    """Run the source policy.

    Args:
        goals: int64 [histories].
        episodes: episodes of each history.
        anneal_episodes: int64 [histories], after how many episodes the noise is gone; at least 1.
        rng: what the policy's choices are drawn from.

    Returns:
        Histories of `20 * episodes` steps.

    Raises:
        ValueError: if `episodes` or an entry of `anneal_episodes` is below 1, or a goal is no cell.
    """
    if episodes < 1 or anneal_episodes.min() < 1:
        raise ValueError(f"episodes and anneal_episodes must be at least 1, got {episodes} and {anneal_episodes.min()}")
    room, explorer = Darkroom(goals), _Explorer(len(goals), rng)
    columns: dict[str, list[Ints]] = {"cells": [], "actions": [], "rewards": []}
    rows_first = np.zeros(len(goals), dtype=np.bool_)
    for step in range(episodes * EPISODE_STEPS):
        if step % EPISODE_STEPS == 0:
            room.reset()
            explorer.restart()
        exploring = rng.random(len(goals)) < noise_levels(anneal_episodes, step)
        actions = np.where(exploring, explorer.act(room.cells), _towards(room.cells, goals, rows_first))
        columns["cells"].append(room.cells)
        columns["actions"].append(actions)
        columns["rewards"].append(room.step(actions))
    return Histories(goals=goals, **{name: np.stack(parts, axis=1) for name, parts in columns.items()})
