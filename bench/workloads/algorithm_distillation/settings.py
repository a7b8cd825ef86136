"""Settings of a training run, and what follows from them at each step."""

from dataclasses import dataclass
from random import Random
from typing import Final

from kvcompress.bench.testbed.settings import Settings as Schedule
from kvcompress.bench.workloads.algorithm_distillation.vocabulary import MAX_EPISODES

# (episodes of a context, share of the steps), in this order: short contexts until in-context learning has emerged.
STAGES: Final = ((3, 0.45), (6, 0.25), (MAX_EPISODES, 0.30))
_SHORTER_SHARE = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a training run is fixed by.

    Attributes:
        seed: seed of the weights and of the data.
        steps: optimizer steps in all.
        tokens_per_step: ids of a batch, about.
        muon_rate: highest learning rate of the layers' matrices.
        adam_rate: highest learning rate of embeddings, head and norms.
        reward_weight: weight of the loss on rewards against that on actions.
        cell_weight: weight of the loss on the next cell against that on actions.
        clip: largest norm of the gradient.
        check_rooms: rooms per held-out goal on which the return is logged now and then.
    """

    seed: int = 0
    steps: int = 1000
    tokens_per_step: int = 6000
    muon_rate: float = 6e-3
    adam_rate: float = 3e-3
    reward_weight: float = 0.5
    cell_weight: float = 0.2
    clip: float = 1.0
    check_rooms: int = 2

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("steps", "tokens_per_step", "check_rooms"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}; leave it at its default")

    @property
    def schedule(self) -> Schedule:
        """Return rates and their course over the steps, as the testbed's trainer takes them."""
        return Schedule(seed=self.seed, steps=self.steps, muon_rate=self.muon_rate, adam_rate=self.adam_rate)


def stage_episodes(settings: Settings, step: int) -> int:
    """Return the episodes of a context in the stage that a step of [0, steps) belongs to."""
    passed = 0.0
    for episodes, share in STAGES:
        passed += share
        if step < round(passed * settings.steps):
            return episodes
    return STAGES[-1][0]


def batch_episodes(settings: Settings, step: int) -> int:
    """Return the episodes of a step's contexts: its stage's, or for a fifth of the steps a shorter stage's."""
    episodes = stage_episodes(settings, step)
    shorter = [other for other, _ in STAGES if other < episodes]
    rng = Random(f"episodes:{settings.seed}:{step}")
    if shorter and rng.random() < _SHORTER_SHARE:
        return shorter[int(rng.random() * len(shorter))]
    return episodes
