"""docs/metrics.md names functions that are there, and describes the report that is written."""

import importlib
import re
from pathlib import Path

from kvcompress.analysis.metrics.capture_analysis import analysis_report
from tests.analysis.samples import write_sample
from tests.source_tree import ROOT

PAGE = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
PACKAGE = "kvcompress.analysis.metrics"


def tables() -> list[tuple[list[str], list[list[str]]]]:
    """Each section's modules, and the rows of its table."""
    found = []
    for section in PAGE.split("\n## ")[1:]:
        title = section.split("\n")[0]
        modules = [name.removesuffix(".py").replace("/", ".") for name in re.findall(r"`([a-z_/]+\.py)`", title)]
        lines = [line for line in section.split("\n") if line.startswith("|")]
        found.append((modules, [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]))
    return found


def test_every_function_is_there() -> None:
    count = 0
    for modules, rows in tables():
        if not modules:
            continue
        there = set().union(*(vars(importlib.import_module(f"{PACKAGE}.{module}")) for module in modules))
        for row in rows:
            names = [name for name in re.findall(r"`([a-z_]+)`", row[-1]) if not name.endswith("_")]
            assert names, f"{row[0]} names no function"
            assert set(names) <= there, f"{row[0]}: {set(names) - there} is in none of {modules}"
            count += len(names)
    assert count > 40


def test_every_field_of_the_report_is_named(tmp_path: Path) -> None:
    report = analysis_report(write_sample(tmp_path))
    section = PAGE.split("## The report")[1].split("\n## ")[0]
    named = {name for line in section.split("\n") if line.startswith("|") for name in re.findall(r"`(\w+)`", line)}
    assert set(report) <= named
    for part in ("attention", "compression", "cache", "generation_stages"):
        assert set(report[part]) - {"policy", "thresholds", "token_and_dimension_threshold"} <= named
