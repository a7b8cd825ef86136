"""The public names of the analysis: ``from kvcompress.analysis.api import Recorder, read_sample, ...``."""

from kvcompress.analysis.analyzer import AttentionAnalyzer
from kvcompress.analysis.capture.hook import AttentionHook
from kvcompress.analysis.capture.raw import RawRequest
from kvcompress.analysis.capture.recorder import Recorder
from kvcompress.analysis.capture.settings import RecorderSettings
from kvcompress.analysis.fidelity.fidelity import Fidelity, fidelity
from kvcompress.analysis.metrics.registry import register_metric
from kvcompress.analysis.plots.registry import register_plot
from kvcompress.analysis.report.write import write_report
from kvcompress.analysis.summary.errors import SummaryError
from kvcompress.analysis.summary.export import export_sample
from kvcompress.analysis.summary.reader import Sample, list_samples, read_sample
from kvcompress.analysis.visualizer import AttentionVisualizer

__all__ = [
    "AttentionAnalyzer",
    "AttentionHook",
    "AttentionVisualizer",
    "Fidelity",
    "RawRequest",
    "Recorder",
    "RecorderSettings",
    "Sample",
    "SummaryError",
    "export_sample",
    "fidelity",
    "list_samples",
    "read_sample",
    "register_metric",
    "register_plot",
    "write_report",
]
