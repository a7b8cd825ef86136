"""A user's own Algorithm Distillation model, of any architecture, as an agent.

An adapter is a function without arguments that returns a `ForeignModel`; it is named as `module:function` and imported
from the Python path, so it runs with the user's rights like any module of theirs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

import torch
from torch import Tensor, nn

from kvcompress.bench.workloads.algorithm_distillation.darkroom import ACTIONS
from kvcompress.bench.workloads.algorithm_distillation.vocabulary import (
    FIRST_ACTION,
    FIRST_CELL,
    FIRST_REWARD,
    TOKENS_PER_STEP,
)

# Cells, actions and rewards of the steps so far, int64 [rooms, steps], and the cells the agents are in, int64 [rooms];
# returns logits of the actions, [rooms, 5].
Act = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignModel:
    """A model in PyTorch that plays Darkroom.

    Attributes:
        model: what is captured: its forward calls `scaled_dot_product_attention` or `nn.MultiheadAttention`.
        act: reads histories through the model, once per call, and returns the actions' logits.
        most_steps: steps of a history, the current one included, that the model has positions for.
    """

    model: nn.Module
    act: Act
    most_steps: int


class ForeignAgent:
    """Plays with a user's model, which reads its history again at every step, all of it or the latest steps.

    Attributes:
        foreign: the model.
        window_steps: whole steps that are read; `None` for all.
    """

    def __init__(self, foreign: ForeignModel, window_steps: int | None = None) -> None:
        """Set the agent up.

        Args:
            foreign: the model.
            window_steps: at least 1; `None` for the whole history.
        """
        self.foreign = foreign
        self.window_steps = window_steps
        self._ids = torch.empty(0, 0, dtype=torch.int64)

    @property
    def held_tokens(self) -> float:
        """Tokens of this workload's vocabulary that are read, as far as they compare: three per step."""
        return float(self._ids.shape[1])

    def begin(self, rooms: int) -> None:
        """Forget everything."""
        self._ids = torch.empty(rooms, 0, dtype=torch.int64)

    def note(self, ids: Tensor) -> None:
        """Take in new tokens, int64 [rooms, new], without reading the history."""
        ids = torch.cat((self._ids, ids), dim=1)
        if self.window_steps is not None:
            longest = 1 + TOKENS_PER_STEP * self.window_steps + 1
            ids = torch.cat((ids[:, :1], ids[:, 1 - longest :]), dim=1) if ids.shape[1] > longest else ids
        self._ids = ids

    def observe(self, ids: Tensor) -> Tensor:
        """Read the history with the new tokens at its end; see `Agent.observe`.

        Raises:
            ValueError: if the history is too long for the model, or its logits have another shape.
        """
        self.note(ids)
        ids = self._ids
        steps = (ids.shape[1] - 2) // TOKENS_PER_STEP
        if steps + 1 > self.foreign.most_steps:
            raise ValueError(
                f"a history must fit the model's {self.foreign.most_steps} steps, got {steps + 1}; play fewer episodes"
            )
        past = ids[:, 1:-1].unflatten(1, (steps, TOKENS_PER_STEP)) if steps else ids.new_zeros(len(ids), 0, 3)
        cells, actions, rewards = past.unbind(dim=2)
        logits = self.foreign.act(
            cells - FIRST_CELL, actions - FIRST_ACTION, rewards - FIRST_REWARD, ids[:, -1] - FIRST_CELL
        )
        if logits.shape != (len(ids), len(ACTIONS)):
            raise ValueError(f"an adapter's act must return logits [rooms, {len(ACTIONS)}], got {list(logits.shape)}")
        return logits.float()


def load_adapter(name: str) -> ForeignModel:
    """Import an adapter and call it.

    Args:
        name: `module:function`.

    Returns:
        The model, in evaluation mode.

    Raises:
        ValueError: if the name is not of that form, cannot be imported, or gives something else.
    """
    module, colon, function = name.partition(":")
    if not (colon and module and function):
        raise ValueError(f"an adapter is named as module:function, got {name!r}")
    try:
        made = getattr(import_module(module), function)()
    except (ImportError, AttributeError) as error:
        raise ValueError(f"the adapter {name!r} cannot be imported ({error}); is its folder on PYTHONPATH?") from error
    if not isinstance(made, ForeignModel):
        raise ValueError(f"an adapter returns a ForeignModel, {name!r} returned a {type(made).__name__}")
    made.model.eval()
    return made
