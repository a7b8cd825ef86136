"""Every picture of the results of factorisation, similarity and pruning: its name, its file, and what draws it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from matplotlib.figure import Figure

from kvcompress.analysis.plots import pruning, similarities, tucker
from kvcompress.analysis.plots.results import Results


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultView:
    """A picture of results.

    Attributes:
        file: its name below the output folder, with ``{layer}`` where there is one of each layer.
        results: ``"tucker"``, ``"similarity"`` or ``"pruning"``.
        draw: makes it, of one layer where there is one of each.
        by_layer: whether there is one of each layer.
    """

    file: str
    results: str
    draw: Callable[[Results, int], Figure]
    by_layer: bool = False


def _whole(file: str, results: str, draw: Callable[[Results], Figure]) -> ResultView:
    """A view of all layers."""
    return ResultView(file=file, results=results, draw=lambda content, _: draw(content))


RESULT_VIEWS: Final[Mapping[str, ResultView]] = {
    "tucker_components": _whole("tucker/tucker_components.png", "tucker", tucker.tucker_components),
    "layer_sensitivity": _whole("tucker/layer_sensitivity.png", "tucker", tucker.layer_sensitivity),
    "token_similarity": ResultView(
        file="similarity/token_similarity_layer_{layer}.png",
        results="similarity",
        draw=similarities.token_similarity,
        by_layer=True,
    ),
    "head_similarity": ResultView(
        file="similarity/head_similarity_layer_{layer}.png",
        results="similarity",
        draw=similarities.head_similarity,
        by_layer=True,
    ),
    "cache_similarity_between_layers": _whole(
        "similarity/similarity_between_layers.png", "similarity", similarities.between_layers
    ),
    "redundancy": _whole("similarity/redundancy.png", "similarity", similarities.redundancy),
    "pruning_divergence": _whole("pruning/pruning_divergence.png", "pruning", pruning.pruning_divergence),
    "pruning_agreement": _whole("pruning/pruning_agreement.png", "pruning", pruning.pruning_agreement),
    "pruning_importance": _whole("pruning/pruning_importance.png", "pruning", pruning.pruning_importance),
}
