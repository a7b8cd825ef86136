"""Every picture of a sample: its name, its file, and what draws it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from matplotlib.figure import Figure

from kvcompress.analysis.plots import (
    compression,
    embeddings,
    entropy,
    eviction,
    heads,
    heatmaps,
    layers,
    over_time,
    tokens,
)
from kvcompress.analysis.summary.reader import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a picture is of, where it is not of the whole sample.

    Attributes:
        layer: number of the layer in the model.
        step: number of the event.
        head: query head; None: mean over heads.
    """

    layer: int
    step: int
    head: int | None


Each = Literal["sample", "layer", "step"]


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A picture.

    Attributes:
        file: its name below the output folder, with ``{sample}``, ``{layer}`` and ``{step}`` where they vary.
        draw: makes it.
        each: whether there is one of a sample, of a layer or of a step.
        always: whether it belongs to the comprehensive report, or is drawn on request.
    """

    file: str
    draw: Callable[[Sample, Place], Figure]
    each: Each = "sample"
    always: bool = True


def _whole(file: str, draw: Callable[[Sample], Figure], *, always: bool = True) -> View:
    """A view of the whole sample."""
    return View(file=file, draw=lambda sample, _: draw(sample), always=always)


VIEWS: Final[Mapping[str, View]] = {
    "attention_entropy_evolution": _whole(
        "reports/plots/attention_entropy_evolution_sample_{sample}.png", entropy.entropy_evolution
    ),
    "compression_ratios": _whole(
        "reports/plots/compression_ratios_sample_{sample}.png", compression.compression_ratios
    ),
    "layer_similarity": _whole("reports/plots/layer_similarity_sample_{sample}.png", layers.layer_similarity),
    "layer_comparison": View(
        file="plots/layer_comparison_sample_{sample}.png",
        draw=lambda sample, at: heatmaps.layer_comparison(sample, at.step, at.head),
    ),
    "attention_heatmap": View(
        file="plots/attention_heatmap_layer_{layer}_sample_{sample}.png",
        draw=lambda sample, at: heatmaps.attention_heatmap(sample, at.layer, at.step, at.head),
        each="layer",
    ),
    "entropy_variance": View(
        file="plots/entropy_variance_layer_{layer}_sample_{sample}.png",
        draw=lambda sample, at: entropy.entropy_variance(sample, at.layer),
        each="layer",
    ),
    "head_comparison": View(
        file="plots/head_comparison_layer_{layer}_sample_{sample}.png",
        draw=lambda sample, at: heatmaps.head_comparison(sample, at.layer, at.step),
        each="layer",
    ),
    "preference_scores": _whole("plots/preference_scores_sample_{sample}.png", compression.preference_scores),
    "eviction_timeline": _whole("plots/eviction_timeline_sample_{sample}.png", eviction.eviction_timeline),
    "attention_analysis_comprehensive": _whole("attention_analysis_comprehensive.png", over_time.comprehensive),
    "attention_heatmap_step": View(
        file="attention_heatmap_step{step}.png",
        draw=lambda sample, at: heatmaps.step_heatmap(sample, at.step, at.head),
        each="step",
    ),
    "layer_head_analysis": _whole("layer_head_analysis.png", entropy.layer_head_analysis),
    "layer_statistics": _whole("layers/layer_statistics.png", layers.layer_statistics),
    "layer_pruning_potential": _whole("layers/layer_pruning_potential.png", layers.layer_pruning_potential),
    "head_sparsity": _whole("heads/head_sparsity.png", heads.head_sparsity),
    "head_pruning_potential": _whole("heads/head_pruning_potential.png", heads.head_pruning_potential),
    "pruning_heatmap_by_layer_head": _whole("heads/pruning_heatmap_by_layer_head.png", heads.pruning_heatmap),
    "token_position_importance": _whole("tokens/token_position_importance.png", tokens.token_position_importance),
    "generation_stages_comparison": _whole(
        "tokens/generation_stages_comparison.png", tokens.generation_stages_comparison
    ),
    "embedding_consistency": _whole("embeddings/embedding_consistency.png", embeddings.embedding_consistency),
    "sparse_dense_embedding_patterns": _whole(
        "embeddings/sparse_dense_embedding_patterns.png", embeddings.sparse_dense_patterns
    ),
    "attention_over_time": _whole(
        "plots/attention_over_time_sample_{sample}.png", over_time.alone(over_time.over_time), always=False
    ),
    "recent_vs_distant": _whole(
        "plots/recent_vs_distant_sample_{sample}.png", over_time.alone(over_time.recent_vs_distant), always=False
    ),
    "sequence_growth": _whole(
        "plots/sequence_growth_sample_{sample}.png", over_time.alone(over_time.sequence_growth), always=False
    ),
    "distance_profile": _whole(
        "plots/distance_profile_sample_{sample}.png", over_time.alone(over_time.distance_profile), always=False
    ),
    "cumulative_mass": _whole(
        "plots/cumulative_mass_sample_{sample}.png", over_time.alone(over_time.cumulative_mass), always=False
    ),
}
