"""An agent's first and last episode side by side, as an animated GIF."""

from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kvcompress.analysis.files import replacing
from kvcompress.analysis.plots.style import BLUE, GREEN, GREY, VERMILION, common_style
from kvcompress.bench.workloads.algorithm_distillation.darkroom import EPISODE_STEPS, SIZE, START, Ints
from kvcompress.bench.workloads.algorithm_distillation.histories import Histories

_FRAMES_PER_SECOND: Final = 4
_HOLD: Final = 6  # frames at the end


def visited_cells(histories: Histories, room: int, episode: int) -> Ints:
    """Return the cells of an episode, int64 [20]: where each action was taken."""
    first = episode * EPISODE_STEPS
    return histories.cells[room, first : first + EPISODE_STEPS]


def save_animation(histories: Histories, path: Path, *, room: int = 0) -> None:
    """Write the GIF, whole or not at all; its folder is made where there is none.

    Args:
        histories: what was played, at least two whole episodes.
        path: the file.
        room: which history.

    Raises:
        ValueError: if fewer than two episodes were played.
        OSError: if the file cannot be written.
    """
    episodes = histories.cells.shape[1] // EPISODE_STEPS
    if episodes < 2:
        raise ValueError(f"an animation needs two whole episodes or more, got {episodes}")
    with common_style():
        figure = Figure(figsize=(7.0, 4.0), layout="constrained")
        sides = figure.subplots(1, 2)
        shown = (0, episodes - 1)
        for axes, episode in zip(sides, shown, strict=True):
            _draw_room(axes, histories, room, episode, 0)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # else every frame would have a layout of its own

        def draw(frame: int) -> list[Axes]:
            step = min(frame, EPISODE_STEPS - 1)
            for axes, episode in zip(sides, shown, strict=True):
                _draw_room(axes, histories, room, episode, step)
            return list(sides)

        frames = EPISODE_STEPS + _HOLD
        animation = FuncAnimation(figure, draw, frames=frames, init_func=list, blit=False)
        with replacing(path) as partial:
            animation.save(str(partial), writer=PillowWriter(fps=_FRAMES_PER_SECOND), dpi=100)


def _draw_room(axes: Axes, histories: Histories, room: int, episode: int, step: int) -> None:
    cells = visited_cells(histories, room, episode)[: step + 1]
    first = episode * EPISODE_STEPS
    gained = int(histories.rewards[room, first : first + step + 1].sum())
    rows, columns = np.divmod(cells, SIZE)
    axes.clear()
    axes.set(xlim=(-0.5, SIZE - 0.5), ylim=(SIZE - 0.5, -0.5), aspect="equal")
    axes.set_xticks(np.arange(SIZE + 1) - 0.5, [""] * (SIZE + 1))
    axes.set_yticks(np.arange(SIZE + 1) - 0.5, [""] * (SIZE + 1))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(True)
    goal_row, goal_column = divmod(int(histories.goals[room]), SIZE)
    start_row, start_column = divmod(START, SIZE)
    axes.plot(start_column, start_row, "s", color=GREY, markersize=9, fillstyle="none", label="start")
    axes.plot(goal_column, goal_row, "*", color=GREEN, markersize=22, label="hidden goal")
    axes.plot(columns, rows, "-", color=BLUE, linewidth=2.5, alpha=0.6)
    axes.plot(columns[-1], rows[-1], "o", color=VERMILION, markersize=13, label="agent")
    axes.set_title(f"episode {episode + 1}, step {step + 1}: return {gained}")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.01), ncols=3, markerscale=0.6)
