"""Which files of an earlier run a run would overwrite, or mix with its own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from kvcompress.commands.failures import CommandError

_PLACE = re.compile(r"\{\w+\}")
RESULTS = ("tucker.json", "similarity.json")
RECOMMENDATIONS = ("compression_recommendations.txt", "compression_recommendations.json")


def refuse_existing(paths: Sequence[Path]) -> None:
    """Checks that files are not there yet.

    Raises:
        CommandError: one is.
    """
    there = [path for path in paths if path.exists()]
    if there:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise CommandError(f"{there[0]}{more} would be overwritten. Give --force, or another --output-dir.")


def of_earlier_run(folder: Path) -> list[Path]:
    """Files in a folder that belong to another capture than the one that is about to be made."""
    return sorted({path for pattern in _patterns() for path in folder.glob(pattern)})


def _patterns() -> Iterator[str]:
    from kvcompress.analysis.plots.catalogue import VIEWS
    from kvcompress.analysis.plots.interactive_views import INTERACTIVE_VIEWS
    from kvcompress.analysis.plots.result_views import RESULT_VIEWS
    from kvcompress.analysis.report.write import FILE_NAME

    yield from (FILE_NAME, *RESULTS, "pruning.json", *RECOMMENDATIONS, "reports/analysis_report_sample_*.json")
    files = [view.file for view in VIEWS.values()]
    files += [view.file for view in INTERACTIVE_VIEWS.values()]
    files += [view.file for view in RESULT_VIEWS.values()]
    for file in files:
        pattern = _PLACE.sub("*", file)
        yield from (pattern, f"sample_*/{pattern}")
