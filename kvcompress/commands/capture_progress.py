"""Shows how far a capture is."""

from __future__ import annotations

import sys
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn


class CaptureProgress:
    """A bar on a terminal's stderr that moves with every layer of every pass; nothing where there is no terminal.

    Args:
        model: the model that runs.
        samples: how many samples there will be.
    """

    def __init__(self, model: nn.Module, samples: int) -> None:
        self.samples = samples
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True)
        self._task = self._bar.add_task("", total=None)
        self._layers = {} if self._bar.disable else _attention_modules(model)
        self._hooks: list[Any] = []

    def begin_sample(self, index: int, prompt_tokens: int, new_tokens: int) -> None:
        """A sample begins.

        Args:
            index: its number.
            prompt_tokens: tokens of its prompt.
            new_tokens: most tokens that follow.
        """
        work = len(self._layers) * (prompt_tokens + new_tokens)
        description = f"sample {index + 1} of {self.samples}, {prompt_tokens:,} tokens"
        self._bar.reset(self._task, total=work or None, description=description)

    def __enter__(self) -> CaptureProgress:
        self._bar.start()
        self._hooks = [
            module.register_forward_hook(self._advance, with_kwargs=True) for module in self._layers.values()
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._bar.stop()

    def _advance(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        hidden = kwargs.get("hidden_states", args[0] if args else None)
        tokens = hidden.shape[-2] if isinstance(hidden, torch.Tensor) and hidden.ndim > 1 else 1
        self._bar.advance(self._task, tokens)


def _attention_modules(model: nn.Module) -> dict[int, nn.Module]:
    """One module of each layer, by the layer's index."""
    found: dict[int, nn.Module] = {}
    for module in model.modules():
        index = getattr(module, "layer_idx", None)
        if isinstance(index, int):
            found.setdefault(index, module)
    return found
