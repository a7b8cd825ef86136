"""The optimizers of the models that are trained here."""

from collections.abc import Sequence
from typing import Protocol

from torch import nn
from torch.optim import AdamW, Muon, Optimizer


class Rates(Protocol):
    """The highest learning rates of a run."""

    @property
    def muon_rate(self) -> float:
        """Of the layers' matrices."""

    @property
    def adam_rate(self) -> float:
        """Of embeddings, head and norms."""


def build_optimizers(model: nn.Module, settings: Rates) -> list[Optimizer]:
    """Return Muon for the layers' matrices and AdamW for embeddings, head and norms.

    Args:
        model: the model.
        settings: of the run; its highest rates.

    Returns:
        The two optimizers; each group has its highest rate under `peak`.
    """
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "layers." in name]
    others = [p for name, p in model.named_parameters() if not (p.ndim == 2 and "layers." in name)]
    muon = Muon(
        [{"params": matrices, "peak": settings.muon_rate}],
        lr=settings.muon_rate,
        weight_decay=0.05,
        momentum=0.95,
        nesterov=True,
        adjust_lr_fn="match_rms_adamw",
    )
    adam = AdamW(
        [{"params": others, "peak": settings.adam_rate}],
        lr=settings.adam_rate,
        betas=(0.9, 0.98),
        weight_decay=0.0,
    )
    return [muon, adam]


def step_optimizers(optimizers: Sequence[Optimizer], rate_factor: float) -> None:
    """Take a step with the gradients, which are forgotten then.

    Args:
        optimizers: as :func:`build_optimizers` returns them.
        rate_factor: the learning rate as a share of its highest.
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate_factor
        optimizer.step()
        optimizer.zero_grad()
