"""What ``--analysis-focus`` chooses: sections of the analysis report, pictures, and studies of the model's cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Focus:
    """A part of the analysis.

    Attributes:
        sections: of the analysis report, as ``"attention.layers"``.
        pictures: names of plots.
        studies: of the model's cache: ``"tucker"``, ``"similarity"``.
    """

    sections: tuple[str, ...]
    pictures: tuple[str, ...]
    studies: tuple[str, ...]


# Every picture that is drawn without being asked for belongs to one focus.
FOCUSES: Final[Mapping[str, Focus]] = {
    "layers": Focus(
        sections=(
            *("attention.overall", "attention.prompt", "attention.generated", "attention.layers"),
            *("attention.coverage", "attention.layer_similarity", "attention.evolution"),
            *("compression.policy", "compression.ratio", "compression.ratio_by_event", "compression.bytes"),
            *("compression.information_preserved", "compression.layers"),
            *("cache.thresholds", "cache.layers"),
        ),
        pictures=(
            *("attention_entropy_evolution", "compression_ratios", "layer_similarity", "layer_comparison"),
            *("attention_heatmap", "entropy_variance", "preference_scores", "interactive_attention"),
            *("layer_statistics", "layer_pruning_potential"),
            *("layer_sensitivity", "cache_similarity_between_layers"),
        ),
        studies=("tucker", "similarity"),
    ),
    "heads": Focus(
        sections=("attention.heads", "compression.policy", "compression.heads", "cache.thresholds", "cache.heads"),
        pictures=(
            *("head_comparison", "layer_head_analysis", "head_sparsity", "head_pruning_potential"),
            *("pruning_heatmap_by_layer_head", "head_similarity"),
        ),
        studies=("similarity",),
    ),
    "tokens": Focus(
        sections=(
            *("most_attended_tokens", "influence", "generation_stages", "positions", "step_change"),
            *("compression.policy", "compression.evictions_by_event"),
            *("cache.token_and_dimension_threshold", "cache.tokens"),
        ),
        pictures=(
            *("token_position_importance", "generation_stages_comparison", "eviction_timeline"),
            *("attention_analysis_comprehensive", "attention_heatmap_step", "token_similarity", "redundancy"),
        ),
        studies=("similarity",),
    ),
    "embeddings": Focus(
        sections=("cache.token_and_dimension_threshold", "cache.embeddings"),
        pictures=("embedding_consistency", "sparse_dense_embedding_patterns", "tucker_components"),
        studies=("tucker",),
    ),
}
_ALWAYS: Final = ("schema", "sample", "model", "policy", "tokens", "events", "user_metrics", "user_metric_errors")


def sections_of(report: Mapping[str, Any], focus: str) -> dict[str, Any]:
    """The part of an analysis report that a focus wants.

    Args:
        report: the whole report.
        focus: a key of :data:`FOCUSES`.

    Returns:
        The same nesting, with ``"focus"`` beside it.
    """
    found: dict[str, Any] = {name: report[name] for name in _ALWAYS} | {"focus": focus}
    for section in FOCUSES[focus].sections:
        outer, _, inner = section.partition(".")
        content = report[outer]
        if not inner or content is None:  # a sample that was not compressed has nothing within compression
            found[outer] = content
        else:
            found.setdefault(outer, {})[inner] = content[inner]
    return found
