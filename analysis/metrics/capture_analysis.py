"""The analysis report of a sample of a capture."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from kvcompress.analysis.metrics.json_values import to_json, write_json
from kvcompress.analysis.metrics.of_sample import (
    attention,
    cache,
    compression,
    influence,
    positions,
    stages,
    step_change,
)
from kvcompress.analysis.metrics.of_sample.events import check_sample
from kvcompress.analysis.metrics.registry import user_metrics
from kvcompress.analysis.summary.reader import Sample, list_samples, read_sample
from kvcompress.analysis.summary.schema import DECODE, PREFILL, STEP

SCHEMA: Final = "kvcompress.analysis_report/1"


def analysis_report(sample: Sample) -> dict[str, Any]:
    """Everything that the metrics say about a sample, as JSON has it: NaN and infinities are None.

    Raises:
        SummaryError: a sample without events, or with attention that is not a number.
    """
    check_sample(sample)
    summary, kinds = sample.summary, sample.kinds
    own = user_metrics(sample)
    report = {
        "schema": SCHEMA,
        "sample": sample.index,
        "model": summary.model.model_dump(),
        "policy": summary.policy,
        "tokens": {
            "prompt": summary.prompt_tokens,
            "generated": sample.token_count - summary.prompt_tokens,
            "total": sample.token_count,
        },
        "events": {
            name: int((kinds == kind).sum())
            for name, kind in (("prefill", PREFILL), ("decode", DECODE), ("step", STEP))
        },
        "attention": attention.section(sample),
        "compression": compression.section(sample),
        "cache": cache.section(sample),
        "most_attended_tokens": influence.most_attended(sample),
        "influence": influence.section(sample),
        "generation_stages": stages.section(sample),
        "positions": positions.section(sample),
        "step_change": step_change.section(sample),
        "user_metrics": own.values,
        "user_metric_errors": own.errors,
    }
    whole: dict[str, Any] = to_json(report, "report")
    return whole


class CaptureAnalysis:
    """Reports of the samples of a capture.

    Args:
        folder: the capture's folder.
        output_dir: where ``reports/`` is made; None: in the capture's folder.

    Raises:
        ValueError: the folder holds no sample.
    """

    def __init__(self, folder: str | Path, output_dir: str | Path | None = None) -> None:
        self.folder = Path(folder)
        self.output_dir = self.folder if output_dir is None else Path(output_dir)
        self.samples = list_samples(self.folder)
        if not self.samples:
            read_sample(self.folder)  # raises, and says what is the matter with the folder

    def report_path(self, index: int) -> Path:
        """Where the report of a sample is written."""
        return self.output_dir / "reports" / f"analysis_report_sample_{index}.json"

    def generate(self, index: int = 0) -> dict[str, Any]:
        """Makes a sample's report and writes it, whole or not at all; a report that is there is replaced.

        Raises:
            SummaryError: no such sample, damaged files, or nothing that can be analysed.
            OSError: the report cannot be written.
        """
        report = analysis_report(read_sample(self.folder, index))
        write_json(self.report_path(index), report)
        return report
