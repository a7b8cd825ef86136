"""Darkroom: a grid with a hidden goal, many rooms at a time.

An agent sees its own cell and nothing else. It starts each episode in the middle, moves by one cell, and is
rewarded with 1 for every step that ends on the goal; the goal stays where it is over all episodes of a task.

Source: Algorithm Distillation, arXiv 2210.14215, section 4.1 (there 9 × 9 cells; here 7 × 7).
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

SIZE: Final = 7
CELLS: Final = SIZE * SIZE
START: Final = CELLS // 2
EPISODE_STEPS: Final = 20
ACTIONS: Final = ("up", "down", "left", "right", "stay")
HELD_OUT_GOALS: Final = 12

_ROW_MOVES: Final = np.array([-1, 1, 0, 0, 0])
_COLUMN_MOVES: Final = np.array([0, 0, -1, 1, 0])
_SPLIT_SEED = 0


class Darkroom:
    """Rooms that are stepped together.

    Attributes:
        goals: int64 [rooms], each room's goal cell, row by row from the top left.
        cells: int64 [rooms], where the agents are.
    """

    def __init__(self, goals: Ints) -> None:
        """Put the agents in the middle.

        Args:
            goals: int64 [rooms], cells in [0, 49).

        Raises:
            ValueError: if a goal is no cell of the room.
        """
        if goals.ndim != 1 or goals.size == 0 or goals.min() < 0 or goals.max() >= CELLS:
            raise ValueError(f"goals must be a non-empty row of cells in [0, {CELLS}), got {goals.tolist()}")
        self.goals = goals.astype(np.int64)
        self.cells = self.reset()

    def reset(self) -> Ints:
        """Begin an episode: put all agents in the middle and return their cells, int64 [rooms]."""
        self.cells = np.full_like(self.goals, START)
        return self.cells

    def step(self, actions: Ints) -> Ints:
        """Move all agents; who walks against a wall stays.

        Args:
            actions: int64 [rooms], indices into `ACTIONS`.

        Returns:
            The rewards, int64 [rooms]: 1 where the step ended on the goal, else 0.
        """
        rows, columns = np.divmod(self.cells, SIZE)
        rows = np.clip(rows + _ROW_MOVES[actions], 0, SIZE - 1)
        columns = np.clip(columns + _COLUMN_MOVES[actions], 0, SIZE - 1)
        self.cells = rows * SIZE + columns
        rewards: Ints = (self.cells == self.goals).astype(np.int64)
        return rewards


def best_return(goals: Ints) -> Ints:
    """Return what an agent that knows the goal gains in an episode: int64, the shape of `goals`."""
    return EPISODE_STEPS + 1 - np.maximum(distance(np.full_like(goals, START), goals), 1)


def distance(cells: Ints, others: Ints) -> Ints:
    """Return the steps from cells to others without walls: int64, the common shape."""
    rows, columns = np.divmod(cells, SIZE)
    other_rows, other_columns = np.divmod(others, SIZE)
    steps: Ints = np.abs(rows - other_rows) + np.abs(columns - other_columns)
    return steps


def split_goals() -> tuple[Ints, Ints]:
    """Return the goal cells for training and the held-out ones, ascending; the middle cell is in neither.

    The split is by cell and fixed: a held-out goal is in no training history.
    """
    goals = np.delete(np.arange(CELLS), START)
    order = np.random.default_rng(_SPLIT_SEED).permutation(goals)
    return np.sort(order[HELD_OUT_GOALS:]), np.sort(order[:HELD_OUT_GOALS])
