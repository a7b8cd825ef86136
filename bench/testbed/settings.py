"""Settings of a training run, and what follows from them at each step."""

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Final

from kvcompress.bench.testbed.training_data import EARLY_MIX, FINAL_MIX, LATE_MIX

# (length of the sequences, share of the steps), in this order.
STAGES: Final = ((64, 0.352), (128, 0.243), (256, 0.088), (512, 0.135), (1024, 0.182))
_SHORTER_SHARE = 0.25
_EARLY_SHARE = 0.352
_FINAL_FROM = 0.79
_WARMUP_STEPS = 50
_CONSTANT_UNTIL = 0.62
_FINAL_FACTOR = 0.03


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a training run is fixed by.

    Attributes:
        seed: seed of the weights and of the data.
        steps: optimizer steps in all.
        tokens_per_process: ids of each process's batch; a multiple of 1024.
        processes: data-parallel processes, one thread each.
        muon_rate: highest learning rate of the layers' matrices.
        adam_rate: highest learning rate of embeddings, head and norms.
        filler_weight: weight of the language-model loss on the filler.
        clip: largest norm of the gradient.
        check_samples: examples of each task on which exact match is logged now and then.
    """

    seed: int = 0
    steps: int = 5800
    tokens_per_process: int = 2048
    processes: int = 2
    muon_rate: float = 6e-3
    adam_rate: float = 3e-3
    filler_weight: float = 0.15
    clip: float = 1.0
    check_samples: int = 32

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("steps", "processes", "check_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}; leave it at its default")
        if self.tokens_per_process < 1024 or self.tokens_per_process % 1024:
            raise ValueError(
                "tokens_per_process must be a multiple of 1024 (the longest stage), "
                f"got {self.tokens_per_process}; take 2048"
            )


def stage_length(settings: Settings, step: int) -> int:
    """Return the length of the stage that a step belongs to.

    Args:
        settings: the run's settings.
        step: in [0, steps).

    Returns:
        Ids per sequence of the stage.
    """
    passed = 0.0
    for length, share in STAGES:
        passed += share
        if step < round(passed * settings.steps):
            return length
    return STAGES[-1][0]


def batch_length(settings: Settings, step: int) -> int:
    """Return the sequence length of a step: its stage's, or for a quarter of the steps a shorter stage's."""
    length = stage_length(settings, step)
    shorter = [other for other, _ in STAGES if other < length]
    rng = Random(f"length:{settings.seed}:{step}")
    if shorter and rng.random() < _SHORTER_SHARE:
        return shorter[int(rng.random() * len(shorter))]
    return length


def task_mix(settings: Settings, step: int) -> Mapping[str, float]:
    """Return the task shares of a step: much copying until retrieval has emerged, many sets at the end."""
    if step < round(_EARLY_SHARE * settings.steps):
        return EARLY_MIX
    return LATE_MIX if step < round(_FINAL_FROM * settings.steps) else FINAL_MIX


def rate_factor(settings: Settings, step: int) -> float:
    """Return the learning rate as a share of its highest: warm-up, constant to 62 %, linear to 3 %."""
    if step < _WARMUP_STEPS:
        return (step + 1) / _WARMUP_STEPS
    progress = step / settings.steps
    if progress < _CONSTANT_UNTIL:
        return 1.0
    left = (1.0 - progress) / (1.0 - _CONSTANT_UNTIL)
    return _FINAL_FACTOR + (1.0 - _FINAL_FACTOR) * left
