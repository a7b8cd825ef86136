"""Checkpoints of a training run: weights, optimizer states and counters, as plain tensors and numbers."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

FILE_NAME = "checkpoint.pt"


@dataclass(slots=True, kw_only=True)
class Progress:
    """How far a run has come.

    Attributes:
        step: steps done.
        tokens: ids trained on, over all processes.
        seconds: wall time spent, over all the run's starts.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0


def save_checkpoint(folder: Path, model: nn.Module, optimizers: list[Optimizer], progress: Progress) -> None:
    """Write a checkpoint; one that is there is replaced only once the new one is whole.

    Args:
        folder: the run's folder.
        model: the model.
        optimizers: its optimizers.
        progress: the counters.
    """
    state: dict[str, Any] = {
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "step": progress.step,
        "tokens": progress.tokens,
        "seconds": progress.seconds,
    }
    partial = folder / (FILE_NAME + ".partial")
    torch.save(state, partial)
    partial.replace(folder / FILE_NAME)


def load_checkpoint(folder: Path, model: nn.Module, optimizers: list[Optimizer]) -> Progress:
    """Put a checkpoint's state into the model and the optimizers.

    Args:
        folder: the run's folder.
        model: the model; changed in place.
        optimizers: its optimizers; changed in place.

    Returns:
        The counters.

    Raises:
        FileNotFoundError: if the folder has no checkpoint.
    """
    path = folder / FILE_NAME
    if not path.exists():
        raise FileNotFoundError(f"--resume needs a checkpoint, got none at {path}; start without --resume")
    # weights_only: tensors and plain values, no code from the file is run.
    state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return Progress(step=state["step"], tokens=state["tokens"], seconds=state["seconds"])


def cut_log(path: Path, step: int) -> None:
    """Drop what an earlier start logged after its last checkpoint: those steps are done again."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        path.write_text("".join(line for line in lines if json.loads(line)["step"] <= step), encoding="utf-8")
