"""``AttentionAnalyzer``: the metrics of a capture's folder, or of attention maps held in memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvcompress.analysis.metrics.attention_maps import Maps
from kvcompress.analysis.metrics.capture_analysis import CaptureAnalysis
from kvcompress.analysis.metrics.maps_analysis import MapsAnalysis


class AttentionAnalyzer:
    """Analyses a capture, or attention maps.

    Given a folder, :meth:`generate_analysis_report` reports on its samples. Given maps, the other methods say what is
    in them. Each kind refuses the other's methods.

    Args:
        source: folder of a capture; or attention probabilities ``{layer name: maps}``, where maps are a list of tensors
            ``[batch, heads, queries, keys]``, one for each step, a mapping ``{step: tensor}``, or a list of records
            ``{"step": ..., "attention_weights": tensor}``.
        output_dir: of a folder's analysis: where ``reports/`` is made; None: in the folder itself.

    Raises:
        TypeError: neither a folder nor a mapping.
        ValueError: no sample in the folder; or no layer, a layer without maps, or a map that is not finite or no
            probabilities; or an output folder for maps.
    """

    def __init__(self, source: str | Path | Maps, *, output_dir: str | Path | None = None) -> None:
        self._capture: CaptureAnalysis | None = None
        self._maps: MapsAnalysis | None = None
        if isinstance(source, str | Path):
            self._capture = CaptureAnalysis(source, output_dir)
        elif isinstance(source, Mapping):
            if output_dir is not None:
                raise ValueError(
                    "output_dir is for a folder's analysis; for maps give a path to export_analysis_report"
                )
            self._maps = MapsAnalysis(source)
        else:
            raise TypeError(
                "source must be the folder of a capture or a mapping from layer names to attention maps; got "
                f"{type(source).__name__}"
            )

    @property
    def samples(self) -> list[int]:
        """Numbers of the folder's complete samples."""
        return self._of_capture("samples").samples

    def generate_analysis_report(self, sample_index: int = 0) -> dict[str, Any]:
        """Reports on a sample, and writes ``reports/analysis_report_sample_<i>.json`` (an older one is replaced).

        Args:
            sample_index: number of the sample.

        Returns:
            The report, as docs/metrics.md describes it; numbers that do not apply are None.

        Raises:
            ValueError: made from maps; no such sample; damaged files; no events, or attention that is not a number.
            OSError: the report cannot be written.
        """
        return self._of_capture("generate_analysis_report").generate(sample_index)

    def get_attention_statistics(self) -> dict[str, Any]:
        """Of maps: how many there are, and each layer's entropy, variance, density and the like, over all queries."""
        return self._of_maps("get_attention_statistics").statistics()

    def analyze_attention_patterns(self) -> dict[str, Any]:
        """Of maps: density, focus, shares of sinks, recent tokens and diagonal, similarity of layers, evolution."""
        return self._of_maps("analyze_attention_patterns").patterns()

    def analyze_token_influence(self, prompt_length: int) -> dict[str, Any]:
        """Of maps: influence of each token, and the mass between the prompt and what was generated.

        Args:
            prompt_length: tokens of the prompt, in [1, tokens).

        Raises:
            ValueError: made from a folder; a length out of that range; or maps that are not over one sequence.
        """
        return self._of_maps("analyze_token_influence").token_influence(prompt_length)

    def get_layer_attention_summary(self, layer_name: str) -> dict[str, Any]:
        """Of maps: one layer's statistics, by head and over the steps.

        Raises:
            ValueError: made from a folder, or no such layer.
        """
        return self._of_maps("get_layer_attention_summary").layer_summary(layer_name)

    def export_analysis_report(self, path: str | Path, *, prompt_length: int | None = None) -> Path:
        """Of maps: writes all of the above as JSON, whole or not at all, and returns the path.

        Args:
            path: the file; its folder is made.
            prompt_length: adds the influence of tokens; None: left out.

        Raises:
            ValueError: made from a folder, or a prompt length out of range.
            OSError: it cannot be written.
        """
        return self._of_maps("export_analysis_report").export(path, prompt_length)

    def _of_capture(self, method: str) -> CaptureAnalysis:
        if self._capture is None:
            raise ValueError(f"{method} needs the folder of a capture; this analyzer was made from maps")
        return self._capture

    def _of_maps(self, method: str) -> MapsAnalysis:
        if self._maps is None:
            raise ValueError(
                f"{method} needs attention maps, {{layer name: tensors}}; this analyzer was made from a folder. Use "
                "generate_analysis_report."
            )
        return self._maps
