"""CriticalKV: another policy's scores, times what a token's value adds to the layer's output."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kvcompress.engine.score import LayerScores, ScoreInputs
from kvcompress.policies.base import Wrapper
from kvcompress.policies.checks import check_number, check_share
from kvcompress.policies.output_norms import output_norms
from kvcompress.policies.protocols import Scorer


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueAware:
    """Two stages: the best by the base's score first, the best by score times output norm beside them.

    A token's place is ``min(a / first_stage, c / (1 - first_stage))``, with ``a`` its rank by the base's score and
    ``c`` its rank by ``(score + epsilon) * norm``: of any number of tokens that are kept, the two stages choose about
    their shares, and fewer are always among more. The i-th place then carries the i-th highest weighted score, so that
    heads and layers are compared by these.

    Args:
        base: the scorer.
        first_stage: share of the base's own choice, in [0, 1].
        epsilon: added to the base's score, >= 0, so that a large value counts where the score is zero.
    """

    base: Scorer
    first_stage: float
    epsilon: float

    def __call__(self, inputs: ScoreInputs) -> LayerScores:
        """Returns weighted scores in two-stage order, with the base's entropy and variance."""
        found = self.base(inputs)
        scores = found.token_scores
        weighted = (scores + self.epsilon) * output_norms(
            inputs.module, inputs.query.shape[1], inputs.values, inputs.scored
        )
        if inputs.positions is not None:  # no place without a token may take a rank
            absent = inputs.token_positions() < 0
            scores, weighted = (s.masked_fill(absent, float("-inf")) for s in (scores, weighted))
        place = torch.minimum(_ranks(scores) / self.first_stage, _ranks(weighted) / (1 - self.first_stage))
        places = place.argsort(dim=-1, stable=True).argsort(dim=-1)
        dealt = weighted.sort(dim=-1, descending=True).values.gather(-1, places)
        return LayerScores(token_scores=dealt, entropy=found.entropy, variance=found.variance)


def _ranks(scores: torch.Tensor) -> torch.Tensor:
    """Place of each score from the highest, 1, 2, ..., equal ones by lower index: float64 of the same shape."""
    order = scores.argsort(dim=-1, descending=True, stable=True)
    return order.argsort(dim=-1).double() + 1


@dataclass(frozen=True, kw_only=True)
class CriticalKV(Wrapper):
    """Value-aware scores for another policy: attention times the norm of what the value adds to the layer's output.

    Args:
        base: the policy that scores, ``CriticalKV(base=SnapKV(cache_size=1024))``.
        first_stage: share of the tokens that the base chooses alone, in [0, 1].
        epsilon: added to the base's score, >= 0.

    Source:
        Feng et al., Identify Critical KV Cache in LLM Inference from an Output Perturbation Perspective, arXiv
        2502.03805.
    """

    first_stage: float = 0.5
    epsilon: float = 1e-4

    def __post_init__(self) -> None:
        """Checks the parameters."""
        super().__post_init__()
        check_share("first_stage", self.first_stage)
        check_number("epsilon", self.epsilon, at_least=0.0)
        if hasattr(self.base.scorer, "score_new"):  # only what looks at no attention can score a token by itself
            raise ValueError(
                f"CriticalKV weighs attention by values, and the scores of {self.base.name!r} are not attention. Give "
                "a base such as SnapKV, Cake or H2O."
            )

    @property
    def name(self) -> str:
        """``"criticalkv"``."""
        return "criticalkv"

    @property
    def scorer(self) -> ValueAware:
        """The base's scores, weighted."""
        return ValueAware(base=self.base.scorer, first_stage=self.first_stage, epsilon=self.epsilon)
