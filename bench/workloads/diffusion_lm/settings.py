"""Settings of a training run, and what follows from them at each step."""

from dataclasses import dataclass
from random import Random

from kvcompress.bench.workloads.diffusion_lm.sums import DIGITS, PROMPT_LENGTH

_MANY_ZEROS = 0.8
_FEWER_FROM, _NONE_FROM = 0.15, 0.5  # shares of the steps between which the zeros disappear
_HIDING_FROM, _HIDING_SHARE = 0.25, 0.5
_BLOCK_LENGTH = 8
_WARMUP_STEPS = 50
_CONSTANT_UNTIL = 0.6
_FINAL_FACTOR = 0.03


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a training run is fixed by.

    Attributes:
        seed: seed of the weights and of the data.
        steps: optimizer steps in all.
        rows: sums of each batch.
        muon_rate: highest learning rate of the layers' matrices.
        adam_rate: highest learning rate of embeddings, head and norms.
        clip: largest norm of the gradient.
        check_sums: sums on which the accuracy is logged now and then.
    """

    seed: int = 0
    steps: int = 2000
    rows: int = 16
    muon_rate: float = 6e-3
    adam_rate: float = 3e-3
    clip: float = 1.0
    check_sums: int = 32

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("steps", "rows", "check_sums"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}; leave it at its default")


def zeros_of_step(settings: Settings, step: int) -> float:
    """Return the share of zeroed places in a step's sums: 0.8 at first, none from half of the steps on.

    A sum of two digits tells nothing to a model that sees one of them; beside a zero it is the other.

    Args:
        settings: the run's settings.
        step: in [0, steps).
    """
    passed = (step / settings.steps - _FEWER_FROM) / (_NONE_FROM - _FEWER_FROM)
    return _MANY_ZEROS * (1.0 - min(1.0, max(0.0, passed)))


def hidden_block(settings: Settings, step: int) -> slice | None:
    """Return the block of the canvas that no other token sees in a step; None for a quarter of the steps, then half.

    Args:
        settings: the run's settings.
        step: in [0, steps).
    """
    rng = Random(f"block:{settings.seed}:{step}")
    if step < round(_HIDING_FROM * settings.steps) or rng.random() >= _HIDING_SHARE:
        return None
    start = PROMPT_LENGTH + _BLOCK_LENGTH * rng.randrange(DIGITS // _BLOCK_LENGTH)
    return slice(start, start + _BLOCK_LENGTH)


def rate_factor(settings: Settings, step: int) -> float:
    """Return the learning rate as a share of its highest: warm-up, constant to 60 %, linear to 3 %."""
    if step < _WARMUP_STEPS:
        return (step + 1) / _WARMUP_STEPS
    progress = step / settings.steps
    if progress < _CONSTANT_UNTIL:
        return 1.0
    left = (1.0 - progress) / (1.0 - _CONSTANT_UNTIL)
    return _FINAL_FACTOR + (1.0 - _FINAL_FACTOR) * left
