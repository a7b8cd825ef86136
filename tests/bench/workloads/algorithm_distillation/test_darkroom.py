"""Darkroom: walls, rewards, and a split of goals that keeps the held-out ones out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcompress.bench.workloads.algorithm_distillation.darkroom import (
    ACTIONS,
    CELLS,
    EPISODE_STEPS,
    HELD_OUT_GOALS,
    SIZE,
    START,
    Darkroom,
    best_return,
    distance,
    split_goals,
)

cells = st.integers(0, CELLS - 1)


@given(goal=cells, actions=st.lists(st.integers(0, len(ACTIONS) - 1), min_size=1, max_size=30))
def test_agent_moves_by_one_cell_at_most_and_is_paid_on_the_goal_alone(goal: int, actions: list[int]) -> None:
    room = Darkroom(np.array([goal]))
    for action in actions:
        before = room.cells.copy()
        reward = room.step(np.array([action]))
        assert 0 <= room.cells[0] < CELLS
        assert distance(before, room.cells)[0] <= 1
        assert reward[0] == (room.cells[0] == goal)


@pytest.mark.parametrize(("action", "row", "column"), [("up", 0, 3), ("down", 6, 3), ("left", 3, 0), ("right", 3, 6)])
def test_walls_stop_the_agent(action: str, row: int, column: int) -> None:
    room = Darkroom(np.array([0]))
    for _ in range(SIZE):
        room.step(np.array([ACTIONS.index(action)]))
    assert room.cells[0] == row * SIZE + column


def test_rooms_do_not_disturb_each_other() -> None:
    together = Darkroom(np.array([0, 48, 25]))
    for actions in ([0, 1, 3], [2, 3, 4], [0, 3, 3]):
        together.step(np.array(actions))
    for place, goal in enumerate((0, 48, 25)):
        alone = Darkroom(np.array([goal]))
        for actions in ([0, 1, 3], [2, 3, 4], [0, 3, 3]):
            alone.step(np.array([actions[place]]))
        assert alone.cells[0] == together.cells[place]


@given(goal=cells.filter(lambda cell: cell != START))
def test_best_return_is_that_of_a_shortest_way(goal: int) -> None:
    room, gained = Darkroom(np.array([goal])), 0
    for _ in range(EPISODE_STEPS):
        rows, columns = divmod(int(room.cells[0]), SIZE), divmod(goal, SIZE)
        if rows[0] != columns[0]:
            action = "down" if columns[0] > rows[0] else "up"
        elif rows[1] != columns[1]:
            action = "right" if columns[1] > rows[1] else "left"
        else:
            action = "stay"
        gained += int(room.step(np.array([ACTIONS.index(action)]))[0])
    assert gained == best_return(np.array([goal]))[0]


def test_split_parts_all_goals_but_the_start() -> None:
    training, held_out = split_goals()
    assert len(held_out) == HELD_OUT_GOALS
    assert sorted([*training, *held_out]) == [cell for cell in range(CELLS) if cell != START]


@pytest.mark.parametrize("goals", [[], [-1], [CELLS], [[1]]])
def test_goals_outside_are_refused(goals: list[int]) -> None:
    with pytest.raises(ValueError, match=r"goals must be a non-empty row of cells in \[0, 49\)"):
        Darkroom(np.array(goals, dtype=np.int64))
